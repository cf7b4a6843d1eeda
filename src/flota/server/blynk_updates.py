"""Updates of Blynk devices: what a report of theirs does to their executions, and what they are told.

`fleet.firmware_reports` says what it means; here it is written down, compare-and-set. What is remembered stands in the
execution's details, so that it outlives the process: `told-at`, `delivery` (under-way, interrupted, handed-over),
`delivery-began-at`, `delivered-at`, `previous-version`, `previous-build`, `shipment-status`, and what `fleet.attempts`
counts: `requests`, `round-began-at`, `round-base`, `retry-at`.
Source: docs/reference/blynk.md, "Cloud link".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import structlog

from flota.errors import Conflict, VersionMismatch
from flota.fleet.attempts import limit_of
from flota.fleet.devices import DeviceState
from flota.fleet.executions import Basis, Execution, ExecutionChange, ExecutionState
from flota.fleet.firmware_reports import (
    Firmware,
    delivery_record,
    judge_report,
    rollback_after_end,
)
from flota.fleet.rollouts import RolloutState
from flota.fleet.scope import Scope
from flota.fleet.shipments import (
    NO_CONDITIONS,
    RETRY_DETAIL,
    STATUS_DETAIL,
    DeviceStatus,
    ShipmentConditions,
    attempts_limit,
    rests_until,
)
from flota.fleet.update_rules import Handling, Stage
from flota.protocols.blynk.cloud import FirmwareInfo, UpdateAnnouncement, fitted_announcement, parse_build_moment
from flota.server.blynk_links import FileGrant, expiry, make_link
from flota.server.updates import (
    CONFIRM_DETAIL,
    CONFIRMED,
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

SHORT_NAME: Final = "f.bin"
"""What the file is called for a device that has no room for its name."""

_TAG_KEYS: Final = ("mcu", "ncp")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """What a device said it runs, when, and how many bytes of a message it takes (None: it does not say)."""

    running: Firmware
    at: datetime
    receive_buffer: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to send to a device that reported, if anything, and when to decide again if nothing else happens."""

    announcement: UpdateAnnouncement | None = None
    look_at: datetime | None = None


NOTHING: Final = Decision()


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
                held = assignment is not None and await _is_held(transaction, scope, assignment.execution)
            if assignment is None or device.state is not DeviceState.ACCEPTED:
                return NOTHING
            if assignment.expired:
                await close_expired(self._context, scope, device)
                continue
            decision = await self._judge(scope, assignment, conditions, report, held=held)
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
        self, scope: Scope, assignment: Assignment, conditions: ShipmentConditions, report: Report, *, held: bool
    ) -> Decision | None:
        """Return what to tell the device; None if an execution ended, so that the next one is looked at.

        `held` is a device that has rested and whose rollout is paused now: nothing new begins.
        """
        execution, offered = assignment.execution, firmware_of(assignment.release)
        judgement = judge_report(
            execution,
            report.running,
            offered,
            conditions=conditions,
            limit=limit_of(conditions, attempts_limit(conditions, assignment.policy.attempts)),
            reported_at=report.at,
            since=self._context.started_at,
            now=self._context.now(),
        )
        if judgement.end is not None:
            await self._write(scope, execution, judgement.end)
            return None
        if judgement.note is not None and not await self._write(scope, execution, judgement.note):
            return None
        look_at = min(filter(None, (judgement.look_at, assignment.showing.valid_until)), default=None)
        if not judgement.offer or held:
            return Decision(look_at=look_at)
        showing = assignment.showing
        told = showing.stage is Stage.TELL and showing.update is not Handling.SKIP  # what it fetches it installs
        is_agreed = execution.details.get(CONFIRM_DETAIL) == CONFIRMED and conditions is not NO_CONDITIONS
        told |= is_agreed and showing.stage is Stage.WAIT  # who agrees to a shipment gets it at once, whatever the hour
        if not told and (execution.state is ExecutionState.QUEUED or judgement.is_anew):
            if showing.stage is Stage.ASK:
                _log.info("blynk.awaits_agreement", device=execution.device_name, execution=execution.id)
            if judgement.is_anew and showing.opens_at is not None:
                await self._rest_on(scope, execution, showing.opens_at)
            return Decision(look_at=look_at)
        return await self._offer(scope, assignment, offered, report, look_at)

    async def _rest_on(self, scope: Scope, execution: Execution, until: datetime) -> None:
        """Let a device that may ask again rest until its window opens: it is not silent meanwhile."""
        if rests_until(execution) == until:
            return
        text = "may ask again, and waits for its maintenance window"
        details: dict[str, str | None] = {RETRY_DETAIL: until.isoformat()}
        await self._write(scope, execution, ExecutionChange(ExecutionState.IN_PROGRESS, details=details, message=text))

    async def _offer(
        self, scope: Scope, assignment: Assignment, offered: Firmware, report: Report, look_at: datetime | None
    ) -> Decision | None:
        base_url = self._context.device_base_url()
        if base_url is None:
            _log.warning("blynk.no_url", hint="Give --public-url: devices cannot be told where the file is.")
            return Decision(look_at=look_at)
        execution, now = assignment.execution, self._context.now()
        announcement = self._announcement(scope, assignment, offered, report, base_url, now)
        if announcement is None:
            await self._write(scope, execution, _takes_no_announcement(report))
            return None
        record = delivery_record(execution.details)
        running = report.running
        details: dict[str, str | None] = {
            "told-at": now.isoformat(),
            STATUS_DETAIL: DeviceStatus.REQUEST_SENT.value,
            RETRY_DETAIL: None,
        }
        if record.told_at is None:
            details |= {"previous-version": running.version or None, "previous-build": running.build or None}
        change = ExecutionChange(ExecutionState.IN_PROGRESS, details=details, message="the device was told of the file")
        if not await self._write(scope, execution, change):
            return None
        return Decision(announcement, look_at)

    def _announcement(
        self, scope: Scope, assignment: Assignment, offered: Firmware, report: Report, base_url: str, now: datetime
    ) -> UpdateAnnouncement | None:
        """Return what the device is told; None if it has no room for it, even with a shorter name of the file."""
        execution, release = assignment.execution, assignment.release
        grant = FileGrant(scope.tenant_id, execution.id, execution.device_id, expiry(now))
        for name in (release.filename, SHORT_NAME):
            whole = UpdateAnnouncement(
                url=make_link(self._context, base_url, grant, name),
                size=release.artifact.digests.size,
                fw_type=offered.fw_type or None,
                version=offered.version if _has_tag(release) else None,
                build=offered.build or None,
            )
            fitted = fitted_announcement(whole, report.receive_buffer)
            if fitted is not None:
                return fitted
        return None

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


def _takes_no_announcement(report: Report) -> ExecutionChange:
    text = f"the device takes messages of {report.receive_buffer} bytes (rxbuff), too few for the address of its file"
    details: dict[str, str | None] = {STATUS_DETAIL: DeviceStatus.UPLOAD_FAILURE.value, "reason": text}
    return ExecutionChange(ExecutionState.REJECTED, details=details, basis=Basis.REPORTED, message=text)


def _has_tag(release: Release) -> bool:
    return bool(release.artifact.inspection.get("firmware_tag"))


async def _conditions(transaction: Transaction, scope: Scope, assignment: Assignment | None) -> ShipmentConditions:
    if assignment is None:
        return NO_CONDITIONS
    return await conditions_of(transaction, scope, assignment.execution.rollout_id)


async def _is_held(transaction: Transaction, scope: Scope, execution: Execution) -> bool:
    """Whether a device that has rested is not to be told again: its rollout is paused."""
    if rests_until(execution) is None:
        return False
    return (await transaction.rollout(scope, execution.rollout_id)).state is not RolloutState.ACTIVE


async def conditions_of(transaction: Transaction, scope: Scope, rollout_id: int) -> ShipmentConditions:
    """Return on which conditions the devices of a rollout take its file; none for one that is no shipment."""
    record = (await transaction.shipment_records(scope, [rollout_id])).get(rollout_id)
    return NO_CONDITIONS if record is None else record.conditions
