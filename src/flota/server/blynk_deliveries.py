"""Deliveries to Blynk devices: what their requests for a file mean, and how each one ended.

How often a device may ask is `fleet.attempts`; what is remembered stands in the execution's details (`blynk_updates`).
Source: docs/reference/blynk.md, "Cloud link".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from flota.errors import NotFound, TooManyRequests
from flota.fleet.attempts import AttemptLimit, attempts_in, limit_of
from flota.fleet.devices import DeviceState
from flota.fleet.executions import Basis, Execution, ExecutionChange, ExecutionState
from flota.fleet.firmware_reports import HANDED_OVER, INTERRUPTED, UNDER_WAY, Firmware, delivery_record
from flota.fleet.releases import Artifact
from flota.fleet.scope import Scope
from flota.fleet.shipments import STATUS_DETAIL, DeviceStatus, attempts_limit
from flota.fleet.storage import DeviceSighting
from flota.server.blynk_links import FileGrant, NoSuchLink
from flota.server.blynk_updates import BLYNK_ROUTE, conditions_of, firmware_of
from flota.server.updates import with_retries

if TYPE_CHECKING:
    from flota.fleet.storage import Transaction
    from flota.server.context import ServerContext


class LinkOver(NotFound):
    """The link's execution has ended, or was called off: 410."""

    code = "link-over"


class AsksTooOften(TooManyRequests):
    """The device has asked as often as its shipment allows for a time: 429, with when it may ask again."""

    code = "download-limit-reached"


@dataclass(frozen=True, slots=True)
class FileDelivery:
    """One answer with the file. `number` counts the execution's requests for its first byte."""

    artifact: Artifact
    firmware: Firmware
    scope: Scope
    execution_id: int
    number: int


class BlynkDeliveries:
    """Deliveries of one server process."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def look(self, grant: FileGrant) -> FileDelivery:
        """Return what a request at a link would get; nothing is counted. Raises `NoSuchLink` or `LinkOver`."""
        async with self._context.storage.reading() as transaction:
            return await self._delivery(transaction, grant, await self._open_execution(transaction, grant))

    async def begin(self, grant: FileGrant, address: str | None) -> FileDelivery:
        """Count a request for a file from its first byte, and return it. Raises `NoSuchLink` or `LinkOver`.

        One that asks more often than its rollout allows has FAILED; with a limit for a time it gets `AsksTooOften`.
        """
        now = self._context.now()

        async def begin(transaction: Transaction) -> FileDelivery | datetime | None:
            execution = await self._open_execution(transaction, grant)
            delivery = await self._delivery(transaction, grant, execution)
            limit = await _limit(transaction, delivery.scope, execution.rollout_id)
            attempts = attempts_in(execution.details)
            if attempts.used(limit, now=now) >= limit.count:
                resting = attempts.rest(limit, now=now)
                if resting is not None:
                    return resting[1]
                end = _limit_reached(delivery.number)
                await transaction.change_execution(delivery.scope, execution.id, execution.version, end, now=now)
                return None
            number = delivery.number + 1
            details: dict[str, str | None] = {
                **attempts.request(limit, now=now),
                "delivery": UNDER_WAY,
                "delivery-began-at": now.isoformat(),
                STATUS_DETAIL: DeviceStatus.FIRMWARE_REQUESTED.value,
            }
            text = "asked for the file" if number == 1 else f"asked for the file again, request {number}"
            change = ExecutionChange(ExecutionState.IN_PROGRESS, details=details, message=text)
            await transaction.change_execution(delivery.scope, execution.id, execution.version, change, now=now)
            return FileDelivery(delivery.artifact, delivery.firmware, delivery.scope, execution.id, number)

        delivery = await with_retries(self._context, begin)
        sighting = DeviceSighting(grant.device_id, now, BLYNK_ROUTE, address)
        self._context.sightings.record(Scope(grant.tenant_id, BLYNK_ROUTE), sighting)
        if delivery is None:
            raise LinkOver("this device has asked for the file as often as it may")
        if isinstance(delivery, datetime):
            raise AsksTooOften(
                "this device has asked for the file as often as it may for now",
                retry_after_s=max(1, math.ceil((delivery - now).total_seconds())),
            )
        return delivery

    async def finish(self, delivery: FileDelivery, *, whole: bool) -> None:
        """Note how a delivery ended, unless the device has asked from the beginning again in the meantime."""
        now = self._context.now()

        async def write(transaction: Transaction) -> None:
            execution = await transaction.execution(delivery.scope, delivery.execution_id)
            record = delivery_record(execution.details)
            if execution.state is not ExecutionState.IN_PROGRESS or record.requests != delivery.number:
                return
            status = DeviceStatus.FIRMWARE_UPLOADED if whole else DeviceStatus.UPLOAD_FAILURE
            details: dict[str, str | None] = {
                "delivery": HANDED_OVER if whole else INTERRUPTED,
                "delivered-at": now.isoformat() if whole else None,
                STATUS_DETAIL: status.value,
            }
            if not whole:
                limit = await _limit(transaction, delivery.scope, execution.rollout_id)
                resting = record.attempts.rest(limit, now=now)
                details |= {} if resting is None else resting[0]
            text = "the file was handed over whole" if whole else "the transfer broke off"
            change = ExecutionChange(ExecutionState.IN_PROGRESS, details=details, message=text)
            await transaction.change_execution(delivery.scope, execution.id, execution.version, change, now=now)

        await with_retries(self._context, write)

    async def _open_execution(self, transaction: Transaction, grant: FileGrant) -> Execution:
        scope = Scope(grant.tenant_id, BLYNK_ROUTE)
        try:
            execution = await transaction.execution(scope, grant.execution_id)
            device = await transaction.device_by_id(scope, grant.device_id)
        except NotFound as error:
            raise NoSuchLink("no such link") from error
        if execution.device_id != device.id:
            raise NoSuchLink("no such link")
        is_open = execution.state is ExecutionState.IN_PROGRESS and execution.cancel_requested_at is None
        if not is_open or device.state is not DeviceState.ACCEPTED:
            raise LinkOver("this update is over")
        return execution

    async def _delivery(self, transaction: Transaction, grant: FileGrant, execution: Execution) -> FileDelivery:
        scope = Scope(grant.tenant_id, f"device:{execution.device_name}")
        release = await transaction.release(scope, execution.release_id)
        number = delivery_record(execution.details).requests
        return FileDelivery(release.artifact, firmware_of(release), scope, execution.id, number)


async def _limit(transaction: Transaction, scope: Scope, rollout_id: int) -> AttemptLimit:
    conditions = await conditions_of(transaction, scope, rollout_id)
    policy = await transaction.rollout_policy(scope, rollout_id)
    return limit_of(conditions, attempts_limit(conditions, policy.attempts))


def _limit_reached(requests: int) -> ExecutionChange:
    text = f"asked for the file {requests} times and asks again: the limit is reached"
    details: dict[str, str | None] = {STATUS_DETAIL: DeviceStatus.LIMIT_REACHED.value, "reason": text}
    return ExecutionChange(ExecutionState.FAILED, details=details, basis=Basis.REPORTED, message=text)
