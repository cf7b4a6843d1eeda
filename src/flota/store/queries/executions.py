"""Executions: compare-and-set changes, their history, and what a device is to do next."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from flota.errors import Conflict, NotFound, VersionMismatch
from flota.fleet.changes import Changes
from flota.fleet.devices import DeviceState
from flota.fleet.executions import (
    OPEN_STATES,
    Basis,
    Execution,
    ExecutionChange,
    ExecutionState,
    apply_change,
)
from flota.fleet.releases import ReleaseState
from flota.fleet.rollouts import RolloutState
from flota.fleet.scope import Scope
from flota.fleet.storage import ExecutionEvent
from flota.store.change_notes import concerning
from flota.store.failures import is_unique_violation
from flota.store.queries.base import Queries
from flota.store.tables import devices, execution_events, executions, releases, rollouts

EXECUTION_COLUMNS: Final[tuple[sa.ColumnElement[Any], ...]] = (
    executions.c.id,
    executions.c.rollout_id,
    executions.c.device_id,
    devices.c.name.label("device_name"),
    executions.c.release_id,
    executions.c.wave,
    executions.c.state,
    executions.c.version,
    executions.c.created_at,
    executions.c.changed_at,
    executions.c.basis,
    executions.c.details,
    executions.c.started_at,
    executions.c.finished_at,
    executions.c.cancel_requested_at,
    executions.c.step_expires_at,
)
"""The fields of `Execution`, in their order: a row is taken apart by position, at a fraction of the cost of names."""
_NAMES: Final = [column.key for column in EXECUTION_COLUMNS]
_STATE: Final = _NAMES.index("state")
_BASIS: Final = _NAMES.index("basis")

SELECT_EXECUTION: Final = sa.select(*EXECUTION_COLUMNS).join(devices, devices.c.id == executions.c.device_id)

_WRITTEN: Final = (
    "state",
    "version",
    "basis",
    "details",
    "changed_at",
    "started_at",
    "finished_at",
    "cancel_requested_at",
    "step_expires_at",
)
"""Columns that a change may replace; the others are fixed when the wave opens."""


OF_DEVICES: Final = sa.and_(
    executions.c.device_id.in_(sa.bindparam("device_ids", expanding=True)),
    executions.c.tenant_id + 0 == sa.bindparam("tenant_id"),
)
"""The sum keeps SQLite from the index by tenant: it would read all that the tenant has in these states, each time."""

_NEXT_EXECUTIONS: Final = (
    SELECT_EXECUTION.join(rollouts, rollouts.c.id == executions.c.rollout_id)
    .join(releases, releases.c.id == executions.c.release_id)
    .where(
        OF_DEVICES,
        executions.c.state.in_(sorted(OPEN_STATES)),
        devices.c.state == DeviceState.ACCEPTED.value,
        devices.c.removed_at.is_(None),
        sa.or_(
            executions.c.state == ExecutionState.IN_PROGRESS.value,
            sa.and_(
                executions.c.state == ExecutionState.QUEUED.value,
                rollouts.c.state == RolloutState.ACTIVE.value,
                releases.c.state == ReleaseState.PUBLISHED.value,
            ),
        ),
    )
    .order_by(executions.c.state.desc(), executions.c.id.desc())  # of a device's rows the last counts: IN_PROGRESS
)
"""Built once: to build such a statement costs as much as to run it."""


@functools.lru_cache(maxsize=16)
def _latest_executions(without_detail: str) -> sa.Select[Any]:
    rank = sa.func.row_number().over(
        partition_by=executions.c.device_id, order_by=(executions.c.changed_at.desc(), executions.c.id.desc())
    )
    ranked = (
        sa.select(executions.c.id, rank.label("rank"))
        .where(
            OF_DEVICES,
            executions.c.state == sa.bindparam("wanted_state"),
            executions.c.details[without_detail].as_string().is_(None),
        )
        .subquery()
    )
    return SELECT_EXECUTION.join(ranked, ranked.c.id == executions.c.id).where(ranked.c.rank == 1)


class ExecutionQueries(Queries):
    """One row a device and rollout. Every change checks the version it was decided on."""

    async def execution(self, scope: Scope, execution_id: int) -> Execution:
        """Return the execution; raises `NotFound`."""
        row = await self._row(
            SELECT_EXECUTION.where(executions.c.id == execution_id, executions.c.tenant_id == scope.tenant_id)
        )
        if row is None:
            raise NotFound("no such execution", found=execution_id)
        return execution_of(row)

    async def list_executions(
        self,
        scope: Scope,
        *,
        rollout_id: int | None = None,
        device_id: int | None = None,
        states: frozenset[ExecutionState] | None = None,
        limit: int = 10_000,
    ) -> Sequence[Execution]:
        """Return at most `limit` executions that fulfil all given conditions, oldest first."""
        statement = SELECT_EXECUTION.where(executions.c.tenant_id == scope.tenant_id)
        if rollout_id is not None:
            statement = statement.where(executions.c.rollout_id == rollout_id)
        if device_id is not None:
            statement = statement.where(executions.c.device_id == device_id)
        if states is not None:
            statement = statement.where(executions.c.state.in_(sorted(states)))
        rows = await self._rows(statement.order_by(executions.c.id).limit(limit))
        return tuple(execution_of(row) for row in rows)

    async def next_execution(self, scope: Scope, device_id: int) -> Execution | None:
        """Return what an accepted device is to do next, as `next_executions` does."""
        return (await self.next_executions(scope, [device_id])).get(device_id)

    async def next_executions(self, scope: Scope, device_ids: Sequence[int]) -> Mapping[int, Execution]:
        """Return what each device is at work on, else the oldest that is queued for it and may start.

        Devices that are not accepted, and those that have nothing to do, are left out.
        What it is at work on is given whatever became of the rollout or the release, so that a cancel can be shown.
        Queued ones count only if their rollout is active and their release published.
        """
        asked = {"tenant_id": scope.tenant_id, "device_ids": device_ids}
        rows = (await self._connection.execute(_NEXT_EXECUTIONS, asked)).all()
        return {row.device_id: execution_of(row) for row in rows}

    async def latest_executions(
        self, scope: Scope, device_ids: Sequence[int], state: ExecutionState, *, without_detail: str
    ) -> Mapping[int, Execution]:
        """Return each device's last changed execution in `state` that lacks a detail; devices without are left out."""
        asked = {"tenant_id": scope.tenant_id, "device_ids": device_ids, "wanted_state": state.value}
        rows = (await self._connection.execute(_latest_executions(without_detail), asked)).all()
        return {row.device_id: execution_of(row) for row in rows}

    async def change_execution(
        self, scope: Scope, execution_id: int, expected_version: int, change: ExecutionChange, *, now: datetime
    ) -> Execution:
        """Return the execution after `change`, if it was still at `expected_version`.

        Raises `NotFound`; `VersionMismatch` if another writer was first; `Conflict` if the state table has no such
        step, the device is at work on another execution, or a start is asked for while the rollout does not run.
        """
        row = await self._row(
            SELECT_EXECUTION.add_columns(rollouts.c.state.label("rollout_state"))
            .join(rollouts, rollouts.c.id == executions.c.rollout_id)
            .where(executions.c.id == execution_id, executions.c.tenant_id == scope.tenant_id)
            .with_for_update(of=executions)
        )
        if row is None:
            raise NotFound("no such execution", found=execution_id)
        before = execution_of(row)
        after = apply_change(before, expected_version, change, now=now)
        starts = before.state is ExecutionState.QUEUED and after.state is ExecutionState.IN_PROGRESS
        if starts and row.rollout_state != RolloutState.ACTIVE.value:
            raise Conflict(f"execution {execution_id} cannot start: its rollout is {row.rollout_state}")
        if starts:
            await self._start(after, expected_version)
        else:
            await self._compare_and_set(after, expected_version)
        await self._record(scope, [(after, change)])
        return after

    async def amend_execution(self, scope: Scope, after: Execution, message: str) -> Execution:
        """Write `after`, the same execution with other details or basis, its version one higher; the state stays.

        Raises `NotFound`; `VersionMismatch` if another writer was first; `Conflict` if the state is another one.
        """
        before = await self.execution(scope, after.id)
        if before.version == after.version - 1 and before.state is not after.state:
            raise Conflict(f"execution {after.id} is {before.state}", expected=str(after.state))
        await self._compare_and_set(after, after.version - 1)
        await self._record(scope, [(after, ExecutionChange(after.state, basis=after.basis, message=message))])
        return after

    async def execution_events(self, scope: Scope, execution_id: int) -> Sequence[ExecutionEvent]:
        """Return every change of the execution, its creation first; raises `NotFound`."""
        await self.execution(scope, execution_id)
        rows = await self._rows(
            sa.select(execution_events)
            .where(execution_events.c.execution_id == execution_id)
            .order_by(execution_events.c.version)
        )
        return tuple(
            ExecutionEvent(row.version, row.at, ExecutionState(row.state), row.message, row.details, row.actor)
            for row in rows
        )

    async def stop_executions(
        self, scope: Scope, condition: sa.ColumnElement[bool], *, reason: str, now: datetime
    ) -> None:
        """Cancel what is queued and ask who is at work to stop, for the executions that fulfil `condition`."""

        def stop(execution: Execution) -> ExecutionChange | None:
            if execution.state is ExecutionState.QUEUED:
                return ExecutionChange(ExecutionState.CANCELED, basis=Basis.OPERATOR, message=reason)
            if execution.cancel_requested_at is not None:
                return None
            return ExecutionChange(ExecutionState.IN_PROGRESS, message=f"asked to stop: {reason}", request_cancel=True)

        await self.change_open_executions(scope, condition, stop, now=now)

    async def change_open_executions(
        self,
        scope: Scope,
        condition: sa.ColumnElement[bool],
        decide: Callable[[Execution], ExecutionChange | None],
        *,
        now: datetime,
    ) -> None:
        """Change every open execution that fulfils `condition` as `decide` says (None leaves it), in one batch."""
        rows = await self._rows(
            SELECT_EXECUTION.where(
                executions.c.tenant_id == scope.tenant_id, executions.c.state.in_(sorted(OPEN_STATES)), condition
            )
            .order_by(executions.c.id)
            .with_for_update(of=executions)
        )
        changes: list[tuple[Execution, ExecutionChange]] = []
        for execution in map(execution_of, rows):
            change = decide(execution)
            if change is not None:
                changes.append((apply_change(execution, execution.version, change, now=now), change))
        if not changes:
            return
        statement = (
            sa.update(executions)
            .where(executions.c.id == sa.bindparam("changed_id"))
            .values({name: sa.bindparam(f"new_{name}") for name in _WRITTEN})
        )
        await self._connection.execute(
            statement,
            [
                {"changed_id": after.id, **{f"new_{name}": value for name, value in _written(after).items()}}
                for after, _ in changes
            ],
            execution_options=concerning(Changes.of_work(*(after.device_id for after, _ in changes))),
        )
        await self._record(scope, changes)

    async def insert_executions(
        self,
        scope: Scope,
        chosen: sa.Subquery,
        device_ids: Sequence[int],
        fixed: Mapping[str, int],
        *,
        now: datetime,
    ) -> tuple[int, ...]:
        """Make a QUEUED execution for each device in `chosen` (a column `id`), in its order; returns their ids.

        `device_ids` are the same devices; `fixed` gives rollout_id, release_id and wave. The database copies from table
        to table: row by row, ten thousand would take it seconds. The caller holds the rollout's row.
        """
        of_rollout = executions.c.rollout_id == fixed["rollout_id"]
        before = (
            await self._connection.execute(
                sa.select(sa.func.coalesce(sa.func.max(executions.c.id), 0)).where(of_rollout)
            )
        ).scalar_one()
        values: dict[str, object] = {
            "tenant_id": scope.tenant_id,
            **fixed,
            "state": ExecutionState.QUEUED.value,
            "version": 1,
            "details": {},
            "created_at": now,
            "changed_at": now,
        }
        told = [sa.literal(value, executions.c[name].type) for name, value in values.items()]
        await self._connection.execute(
            sa.insert(executions).from_select(["device_id", *values], sa.select(chosen.c.id, *told)),
            execution_options=concerning(Changes.of_work(*device_ids)),
        )
        made = of_rollout & (executions.c.id > before)
        event: dict[str, object] = {
            "version": 1,
            "at": now,
            "state": ExecutionState.QUEUED.value,
            "message": "",
            "details": {},
            "actor": scope.actor,
        }
        told = [sa.literal(value, execution_events.c[name].type) for name, value in event.items()]
        await self._connection.execute(
            sa.insert(execution_events).from_select(
                ["execution_id", *event], sa.select(executions.c.id, *told).where(made)
            )
        )
        rows = await self._rows(sa.select(executions.c.id).where(made).order_by(executions.c.id))
        return tuple(row.id for row in rows)

    async def waiting_for(self, condition: sa.ColumnElement[bool]) -> Changes:
        """Return the change of what is to be done by devices that have open executions fulfilling `condition`."""
        open_ones = executions.c.state.in_(sorted(OPEN_STATES))
        rows = await self._rows(sa.select(executions.c.device_id).where(open_ones, condition))
        return Changes.of_work(*(row.device_id for row in rows))

    async def _start(self, after: Execution, expected_version: int) -> None:
        """Compare-and-set to IN_PROGRESS; the partial unique index refuses a second one of the same device."""
        try:
            async with self._connection.begin_nested():
                await self._compare_and_set(after, expected_version)
        except IntegrityError as error:
            if not is_unique_violation(error):
                raise
            raise Conflict(
                f"device {after.device_name} is at work on another execution", found=f"execution {after.id}"
            ) from error

    async def _compare_and_set(self, after: Execution, expected_version: int) -> None:
        result = await self._connection.execute(
            sa.update(executions)
            .where(executions.c.id == after.id, executions.c.version == expected_version)
            .values(**_written(after)),
            execution_options=concerning(Changes.of_work(after.device_id)),
        )
        if result.rowcount != 1:
            raise VersionMismatch(f"execution {after.id} has moved on", expected=f"version {expected_version}")

    async def _record(self, scope: Scope, changes: Sequence[tuple[Execution, ExecutionChange]]) -> None:
        """Append the changes to the executions' histories and to the audit trail."""
        events: list[dict[str, object]] = []
        for after, change in changes:
            events.append(
                {
                    "execution_id": after.id,
                    "version": after.version,
                    "at": after.changed_at,
                    "state": after.state.value,
                    "message": change.message,
                    "details": dict(after.details),
                    "actor": scope.actor,
                }
            )
            facts: dict[str, object] = {
                "rollout": after.rollout_id,
                "release": after.release_id,
                "device": after.device_name,
                "wave": after.wave,
                "state": after.state.value,
                "version": after.version,
                "message": change.message,
                "details": dict(after.details),
            }
            if after.basis is not None:
                facts["basis"] = after.basis.value
            if after.cancel_requested_at is not None:
                facts["cancel_requested"] = True
            self._audit(scope, "execution.changed", f"execution:{after.id}", facts, now=after.changed_at)
        await self._connection.execute(sa.insert(execution_events), events)


def _written(execution: Execution) -> dict[str, object]:
    values: dict[str, object] = {name: getattr(execution, name) for name in _WRITTEN}
    values["state"] = execution.state.value
    values["basis"] = None if execution.basis is None else execution.basis.value
    values["details"] = dict(execution.details)
    return values


def execution_of(row: sa.Row[Any]) -> Execution:
    """Return the execution in a row that begins with `EXECUTION_COLUMNS`."""
    values = list(row[: len(EXECUTION_COLUMNS)])
    values[_STATE] = ExecutionState(values[_STATE])
    if values[_BASIS] is not None:
        values[_BASIS] = Basis(values[_BASIS])
    return Execution(*values)
