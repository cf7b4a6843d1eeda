"""Shipments: what a rollout has besides when it was made as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from flota.errors import NotFound
from flota.fleet.scope import Scope
from flota.fleet.shipments import CompareField, ShipmentConditions, ShipmentRecord
from flota.store.queries.base import in_batches
from flota.store.queries.rollouts import RolloutQueries
from flota.store.tables import rollouts, shipments


class ShipmentQueries(RolloutQueries):
    """One row a rollout that was made as a shipment, or deleted as one."""

    async def add_shipment(self, scope: Scope, new: ShipmentRecord) -> None:
        """Record that the rollout is a shipment. Raises `NotFound` for the rollout."""
        await self.rollout(scope, new.rollout_id)
        await self._connection.execute(sa.insert(shipments).values(**_row_of(new)))

    async def shipment_records(self, scope: Scope, rollout_ids: Sequence[int]) -> Mapping[int, ShipmentRecord]:
        """Return by rollout what is recorded of these; rollouts that are no shipments are left out."""
        found: dict[int, ShipmentRecord] = {}
        for batch in in_batches(rollout_ids):
            rows = await self._rows(
                sa.select(shipments)
                .join(rollouts, rollouts.c.id == shipments.c.rollout_id)
                .where(shipments.c.rollout_id.in_(batch), rollouts.c.tenant_id == scope.tenant_id)
            )
            found |= {row.rollout_id: _record(row) for row in rows}
        return found

    async def delete_shipment(self, scope: Scope, rollout_id: int, *, now: datetime) -> None:
        """Leave the rollout out of the listings of shipments from now on. Raises `NotFound`, also if it is already."""
        rollout = await self.rollout(scope, rollout_id)
        record = (await self.shipment_records(scope, [rollout_id])).get(rollout_id)
        if record is not None and record.deleted_at is not None:
            raise NotFound("no such shipment", found=rollout_id)
        if record is None:
            new = ShipmentRecord(rollout_id, ShipmentConditions(), "", "", deleted_at=now)
            await self._connection.execute(sa.insert(shipments).values(**_row_of(new)))
        else:
            await self._connection.execute(
                sa.update(shipments).where(shipments.c.rollout_id == rollout_id).values(deleted_at=now)
            )
        self._audit(scope, "shipment.deleted", f"rollout:{rollout_id}", {"name": rollout.name}, now=now)


def _row_of(record: ShipmentRecord) -> dict[str, object]:
    return {
        "rollout_id": record.rollout_id,
        "compare_field": record.conditions.compare.value,
        "skip_type_check": record.conditions.skip_type_check,
        "attempts": record.conditions.attempts,
        "attempt_period_s": record.conditions.attempt_period_s,
        "started_by": record.started_by,
        "file_name": record.file_name,
        "deleted_at": record.deleted_at,
    }


def _record(row: sa.Row[Any]) -> ShipmentRecord:
    conditions = ShipmentConditions(
        CompareField(row.compare_field), row.skip_type_check, row.attempts, row.attempt_period_s
    )
    return ShipmentRecord(row.rollout_id, conditions, row.started_by, row.file_name, row.deleted_at)
