"""Updates of Blynk devices: what a report of theirs, or a request for their file, does to their executions.

`fleet.firmware_reports` says what it means; here it is written down, compare-and-set. What is remembered stands in the
execution's details, so that it outlives the process: `told-at`, `requests`, `delivery` (under-way, interrupted,
handed-over), `delivery-began-at`, `delivered-at`, `previous-version`, `previous-build`, `shipment-status`.
Source: docs/reference/blynk.md, "Cloud link".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import structlog

from flota.errors import Conflict, NotFound, VersionMismatch
from flota.fleet.devices import DeviceState
from flota.fleet.executions import Basis, Execution, ExecutionChange, ExecutionState
from flota.fleet.firmware_reports import (
    HANDED_OVER,
    INTERRUPTED,
    UNDER_WAY,
    Firmware,
    delivery_record,
    judge_report,
    rollback_after_end,
)
from flota.fleet.releases import Artifact
from flota.fleet.scope import Scope
from flota.fleet.shipments import (
    NO_CONDITIONS,
    STATUS_DETAIL,
    DeviceStatus,
    ShipmentConditions,
    attempts_limit,
)
from flota.fleet.storage import DeviceSighting
from flota.fleet.update_rules import Handling, Stage
from flota.protocols.blynk.cloud import FirmwareInfo, UpdateAnnouncement, parse_build_moment
from flota.server.blynk_links import FileGrant, NoSuchLink, expiry, make_link
from flota.server.updates import (
    QUEUE_STEPS_MAX,
    Assignment,
    close_expired,
    current_assignment,
    installed_execution,
    sight,
    with_retries,
)

if TYPE_CHECKING:
    from flota.fleet.devices import Device
    from flota.fleet.releases import Release
    from flota.fleet.storage import Transaction
    from flota.server.context import ServerContext

BLYNK_ROUTE: Final = "blynk"
"""How `Device.last_route` names this dialect."""

_TAG_KEYS: Final = ("mcu", "ncp")

_log = structlog.get_logger(__name__)


class LinkOver(NotFound):
    """The link's execution has ended, or was called off: 410."""

    code = "link-over"


@dataclass(frozen=True, slots=True)
class Report:
    """What a device said it runs, and when."""

    running: Firmware
    at: datetime


@dataclass(frozen=True, slots=True)
class Decision:
    """What to send to a device that reported, if anything, and when to decide again if nothing else happens."""

    announcement: UpdateAnnouncement | None = None
    look_at: datetime | None = None


NOTHING: Final = Decision()


@dataclass(frozen=True, slots=True)
class FileDelivery:
    """One answer with the file. `number` counts the execution's requests for its first byte."""

    artifact: Artifact
    firmware: Firmware
    scope: Scope
    execution_id: int
    number: int


def firmware_of_info(info: FirmwareInfo) -> Firmware:
    """Return what a device says it runs; a firmware without a type of its own is of its template's."""
    return Firmware(info.version, info.build, info.fw_type or info.template, parse_build_moment(info.build))


def firmware_of(release: Release) -> Firmware:
    """Return what a device will say that runs a release: its file's tag, else the release's version."""
    tag = release.artifact.inspection.get("firmware_tag")
    said: Mapping[str, object] = tag if isinstance(tag, dict) else {}
    version = next((str(said[key]) for key in _TAG_KEYS if said.get(key)), release.version)
    build = str(said.get("build") or "")
    return Firmware(version, build, str(said.get("fw-type") or ""), parse_build_moment(build))


class BlynkUpdates:
    """Decisions and deliveries of one server process."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def decide(self, scope: Scope, device: Device, report: Report) -> Decision:
        """Judge what the device runs, end executions that this decides, and return what to tell it now."""
        for _ in range(QUEUE_STEPS_MAX):
            async with self._context.storage.reading() as transaction:
                device = await transaction.device_by_id(scope, device.id)
                assignment = await current_assignment(transaction, scope, device, now=self._context.now())
                conditions = await _conditions(transaction, scope, assignment)
            if assignment is None or device.state is not DeviceState.ACCEPTED:
                return NOTHING
            if assignment.expired:
                await close_expired(self._context, scope, device)
                continue
            decision = await self._judge(scope, assignment, conditions, report)
            if decision is not None:
                return decision
        return NOTHING

    async def note_rollback(self, scope: Scope, device: Device, report: Report) -> None:
        """Mark the device's last update if this report says that it went back to what it ran before."""

        async def mark(transaction: Transaction) -> None:
            installed = await installed_execution(transaction, scope, device)
            if installed is None or STATUS_DETAIL not in installed.details:
                return
            release = await transaction.release(scope, installed.release_id)
            marked = rollback_after_end(installed, report.running, firmware_of(release), now=self._context.now())
            if marked is not None:
                await transaction.amend_execution(scope, *marked)

        async with self._context.storage.reading() as transaction:
            installed = await installed_execution(transaction, scope, device)
        if installed is not None and installed.details.get(STATUS_DETAIL) == DeviceStatus.SUCCESS.value:
            await with_retries(self._context, mark)

    def note_seen(self, scope: Scope, device: Device, report: Report, address: str | None) -> None:
        """Note that the device was heard, and what it runs."""
        running = {"version": report.running.version or None}
        sight(self._context, scope, device, route=BLYNK_ROUTE, address=address, running=running)

    async def _judge(
        self, scope: Scope, assignment: Assignment, conditions: ShipmentConditions, report: Report
    ) -> Decision | None:
        """Return what to tell the device; None if an execution ended, so that the next one is looked at."""
        execution, offered = assignment.execution, firmware_of(assignment.release)
        judgement = judge_report(
            execution,
            report.running,
            offered,
            conditions=conditions,
            attempts=attempts_limit(conditions, assignment.policy.attempts),
            reported_at=report.at,
            since=self._context.started_at,
            now=self._context.now(),
        )
        if judgement.end is not None:
            await self._write(scope, execution, judgement.end)
            return None
        look_at = min(filter(None, (judgement.look_at, assignment.showing.valid_until)), default=None)
        if not judgement.offer:
            return Decision(look_at=look_at)
        showing = assignment.showing
        told = showing.stage is Stage.TELL and showing.update is not Handling.SKIP  # what it fetches it installs
        if not told and execution.state is ExecutionState.QUEUED:
            if showing.stage is Stage.ASK:
                _log.info("blynk.awaits_agreement", device=execution.device_name, execution=execution.id)
            return Decision(look_at=look_at)
        return await self._offer(scope, assignment, offered, report, look_at)

    async def _offer(
        self, scope: Scope, assignment: Assignment, offered: Firmware, report: Report, look_at: datetime | None
    ) -> Decision | None:
        base_url = self._context.device_base_url()
        if base_url is None:
            _log.warning("blynk.no_url", hint="Give --public-url: devices cannot be told where the file is.")
            return Decision(look_at=look_at)
        execution, now = assignment.execution, self._context.now()
        record = delivery_record(execution.details)
        running = report.running
        details: dict[str, str | None] = {"told-at": now.isoformat(), STATUS_DETAIL: DeviceStatus.REQUEST_SENT.value}
        if record.told_at is None:
            details |= {"previous-version": running.version or None, "previous-build": running.build or None}
        change = ExecutionChange(ExecutionState.IN_PROGRESS, details=details, message="the device was told of the file")
        if not await self._write(scope, execution, change):
            return None
        grant = FileGrant(scope.tenant_id, execution.id, execution.device_id, expiry(now))
        release = assignment.release
        announcement = UpdateAnnouncement(
            url=make_link(self._context, base_url, grant, release.filename),
            size=release.artifact.digests.size,
            fw_type=offered.fw_type or None,
            version=offered.version if _has_tag(release) else None,
            build=offered.build or None,
        )
        return Decision(announcement, look_at)

    async def _write(self, scope: Scope, execution: Execution, change: ExecutionChange) -> bool:
        """Write what was decided; returns False if something else has happened meanwhile: the caller decides again."""
        now = self._context.now()
        try:
            async with self._context.storage.transaction() as transaction:
                await transaction.change_execution(scope, execution.id, execution.version, change, now=now)
        except VersionMismatch:
            return False
        except Conflict as conflict:  # paused since it was read, or at work on another execution
            _log.info("blynk.not_now", execution=execution.id, reason=conflict.message)
            return False
        return True

    # --- files --------------------------------------------------------------------------------------------------------

    async def look(self, grant: FileGrant) -> FileDelivery:
        """Return what a request at a link would get; nothing is counted. Raises `NoSuchLink` or `LinkOver`."""
        async with self._context.storage.reading() as transaction:
            return await self._delivery(transaction, grant, await self._open_execution(transaction, grant))

    async def begin(self, grant: FileGrant, address: str | None) -> FileDelivery:
        """Count a request for a file from its first byte, and return it. Raises `NoSuchLink` or `LinkOver`.

        One that asks more often than its rollout allows has FAILED.
        """
        now = self._context.now()

        async def begin(transaction: Transaction) -> FileDelivery | None:
            execution = await self._open_execution(transaction, grant)
            delivery = await self._delivery(transaction, grant, execution)
            conditions = await _conditions_of(transaction, delivery.scope, execution.rollout_id)
            policy = await transaction.rollout_policy(delivery.scope, execution.rollout_id)
            if delivery.number >= attempts_limit(conditions, policy.attempts):
                end = _limit_reached(delivery.number)
                await transaction.change_execution(delivery.scope, execution.id, execution.version, end, now=now)
                return None
            number = delivery.number + 1
            details: dict[str, str | None] = {
                "requests": str(number),
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


def _limit_reached(requests: int) -> ExecutionChange:
    text = f"asked for the file {requests} times and asks again: the limit is reached"
    details: dict[str, str | None] = {STATUS_DETAIL: DeviceStatus.LIMIT_REACHED.value, "reason": text}
    return ExecutionChange(ExecutionState.FAILED, details=details, basis=Basis.REPORTED, message=text)


def _has_tag(release: Release) -> bool:
    return bool(release.artifact.inspection.get("firmware_tag"))


async def _conditions(transaction: Transaction, scope: Scope, assignment: Assignment | None) -> ShipmentConditions:
    if assignment is None:
        return NO_CONDITIONS
    return await _conditions_of(transaction, scope, assignment.execution.rollout_id)


async def _conditions_of(transaction: Transaction, scope: Scope, rollout_id: int) -> ShipmentConditions:
    record = (await transaction.shipment_records(scope, [rollout_id])).get(rollout_id)
    return NO_CONDITIONS if record is None else record.conditions
