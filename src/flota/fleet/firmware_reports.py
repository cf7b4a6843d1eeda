"""Verdicts on devices that say which firmware they run whenever they connect: Blynk's. Pure: no clock.

A report, and how far the delivery came that the device was offered, decide in one table. The basis is always what the
device said itself; that a file was downloaded proves nothing.
Source: docs/reference/blynk.md, "Cloud link".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from flota.fleet.attempts import NO_ATTEMPTS, AttemptLimit, Attempts, attempts_in
from flota.fleet.executions import Basis, Execution, ExecutionChange, ExecutionState, moment_in_detail
from flota.fleet.shipments import STATUS_DETAIL, CompareField, DeviceStatus, ShipmentConditions
from flota.versions import version_order

APPLY_TIME: Final = timedelta(minutes=10)
"""How long after a whole delivery the old firmware may still be reported: meanwhile the primary MCU is flashed."""

BuildMoment = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Firmware:
    """A firmware as it names itself; empty text is what it does not say. `built_at` is `build` as what compares."""

    version: str
    build: str = ""
    fw_type: str = ""
    built_at: BuildMoment | None = None

    def is_same(self, offered: Firmware) -> bool:
        """Whether this, as a device reports it, is `offered`: the same version, and the same build if both say one."""
        if self.version != offered.version:
            return False
        if not self.build or not offered.build:
            return True
        if self.built_at is not None and offered.built_at is not None:
            return self.built_at == offered.built_at
        return self.build == offered.build


class Delivery(enum.Enum):
    """How far the delivery came, as far as a server can know."""

    UNTOLD = "the device does not know of it"
    TOLD = "it was sent the address"
    UNDER_WAY = "it is asking for the file at the moment"
    ASKED = "it asked for the file, and did not get all of it"
    FETCHED = "the file was handed over whole, and has had no time to be installed"
    SETTLED = "the file was handed over whole, and had time to be installed"
    USED_UP = "it asked as often as it may"


class Verdict(enum.Enum):
    """What a report means for the execution."""

    OFFER = "offer"
    SUCCEED = "succeed"
    WAIT = "wait"
    LIMIT = "limit"


_D, _V = Delivery, Verdict

REPORTS: Final[Mapping[tuple[bool, Delivery], Verdict]] = {
    (True, _D.UNTOLD): _V.SUCCEED,
    (True, _D.TOLD): _V.SUCCEED,
    (True, _D.UNDER_WAY): _V.SUCCEED,
    (True, _D.ASKED): _V.SUCCEED,
    (True, _D.FETCHED): _V.SUCCEED,
    (True, _D.SETTLED): _V.SUCCEED,
    (True, _D.USED_UP): _V.SUCCEED,
    (False, _D.UNTOLD): _V.OFFER,
    (False, _D.TOLD): _V.OFFER,
    (False, _D.UNDER_WAY): _V.WAIT,
    (False, _D.ASKED): _V.OFFER,
    (False, _D.FETCHED): _V.WAIT,
    (False, _D.SETTLED): _V.OFFER,
    (False, _D.USED_UP): _V.LIMIT,
}
"""(it reports the offered firmware, delivery) -> verdict."""


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """What an execution's details say about its delivery. `attempts` are requests for the file from its first byte."""

    told_at: datetime | None = None
    attempts: Attempts = NO_ATTEMPTS
    state: str | None = None
    began_at: datetime | None = None
    delivered_at: datetime | None = None
    previous_version: str = ""
    previous_build: str = ""

    @property
    def requests(self) -> int:
        """How often it has asked, in all."""
        return self.attempts.requests


UNDER_WAY: Final = "under-way"
INTERRUPTED: Final = "interrupted"
HANDED_OVER: Final = "handed-over"


def delivery_record(details: Mapping[str, str]) -> DeliveryRecord:
    """Return the record in an execution's details; what cannot be read counts as absent."""
    return DeliveryRecord(
        told_at=moment_in_detail(details.get("told-at")),
        attempts=attempts_in(details),
        state=details.get("delivery"),
        began_at=moment_in_detail(details.get("delivery-began-at")),
        delivered_at=moment_in_detail(details.get("delivered-at")),
        previous_version=details.get("previous-version", ""),
        previous_build=details.get("previous-build", ""),
    )


def delivery_of(record: DeliveryRecord, *, limit: AttemptLimit, since: datetime, now: datetime) -> Delivery:
    """Return how far the delivery came. What began before `since`, the start of the server process, was cut."""
    if record.told_at is None:
        return Delivery.UNTOLD
    if record.requests == 0:
        return Delivery.TOLD
    if record.state == UNDER_WAY and record.began_at is not None and record.began_at >= since:
        return Delivery.UNDER_WAY
    if record.state == HANDED_OVER and record.delivered_at is not None and now - record.delivered_at < APPLY_TIME:
        return Delivery.FETCHED
    if record.attempts.used(limit, now=now) >= limit.count:
        return Delivery.USED_UP
    return Delivery.SETTLED if record.state == HANDED_OVER else Delivery.ASKED


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is to be done: write `end`, or `note`; or offer; or none of them, and look again at `look_at`."""

    end: ExecutionChange | None = None
    offer: bool = False
    look_at: datetime | None = None
    note: ExecutionChange | None = None
    """To be written of an execution that goes on."""
    is_anew: bool = False
    """The offer comes after a rest: it begins a new round of attempts."""


def judge_report(
    execution: Execution,
    running: Firmware,
    offered: Firmware,
    *,
    conditions: ShipmentConditions,
    limit: AttemptLimit,
    reported_at: datetime,
    since: datetime,
    now: datetime,
) -> Judgement:
    """Return what it means that the device, since `reported_at`, runs `running` while `offered` is its execution's.

    `limit` is how often it may ask for the file, `since` when this server process began.
    """
    record = delivery_record(execution.details)
    delivery = delivery_of(record, limit=limit, since=since, now=now)
    verdict = REPORTS[running.is_same(offered), delivery]
    if verdict is Verdict.SUCCEED:
        already = delivery is Delivery.UNTOLD
        text = "the device runs the offered firmware already" if already else "the device reports the offered firmware"
        return Judgement(_end(ExecutionState.SUCCEEDED, None, text))
    if execution.cancel_requested_at is not None:
        if verdict is Verdict.WAIT:
            return Judgement(look_at=_settles_at(record))
        if record.state == HANDED_OVER and _is_stale(record, reported_at):
            return Judgement()
        return Judgement(ExecutionChange(ExecutionState.CANCELED, basis=Basis.OPERATOR, message="stopped as asked"))
    if delivery is Delivery.UNTOLD:
        refusal = unmet_condition(running, offered, conditions)
        if refusal is not None:
            status, text = refusal
            return Judgement(_end(ExecutionState.REJECTED, status, text))
    if verdict is Verdict.WAIT:
        return Judgement(look_at=_settles_at(record))
    if verdict is Verdict.LIMIT and limit.period is not None:
        return _rest(record, limit, now)
    is_anew = record.attempts.retry_at is not None  # whatever it reported before it rested: it is told again
    if _is_stale(record, reported_at) and not is_anew:
        return Judgement()  # it said so before it was told, or had the file: only what it says afterwards is judged
    if verdict is Verdict.LIMIT:
        times = "once" if record.requests == 1 else f"{record.requests} times"
        text = f"asked for the file {times} and still reports {running.version or 'no version'}"
        return Judgement(_end(ExecutionState.FAILED, DeviceStatus.LIMIT_REACHED, text))
    return Judgement(offer=True, is_anew=is_anew)


def _rest(record: DeliveryRecord, limit: AttemptLimit, now: datetime) -> Judgement:
    resting = record.attempts.rest(limit, now=now)
    if resting is None:
        return Judgement()
    details, until = resting
    if record.attempts.retry_at == until:
        return Judgement(look_at=until)
    used = record.attempts.used(limit, now=now)
    text = f"asked for the file {used} times: it is offered again from {until.isoformat(timespec='seconds')} on"
    return Judgement(note=ExecutionChange(ExecutionState.IN_PROGRESS, details=details, message=text), look_at=until)


def _is_stale(record: DeliveryRecord, reported_at: datetime) -> bool:
    moments = [moment for moment in (record.told_at, record.delivered_at) if moment is not None]
    return bool(moments) and reported_at <= max(moments)


def unmet_condition(
    running: Firmware, offered: Firmware, conditions: ShipmentConditions
) -> tuple[DeviceStatus, str] | None:
    """Return why the device does not take the firmware: status and one line; None if it does."""
    if not conditions.skip_type_check and running.fw_type and offered.fw_type and running.fw_type != offered.fw_type:
        text = f"the device's firmware is of type {running.fw_type}, the file of type {offered.fw_type}"
        return DeviceStatus.TYPE_MISMATCH, text
    reason = _COMPARISONS[conditions.compare](running, offered)
    return None if reason is None else (DeviceStatus.VERSION_MISMATCH, reason)


def _lower_version(running: Firmware, offered: Firmware) -> str | None:
    if version_order(running.version) < version_order(offered.version):
        return None
    return f"the device runs {running.version}, which is not lower than {offered.version}"


def _other_build(running: Firmware, offered: Firmware) -> str | None:
    same = (running.built_at or running.build) == (offered.built_at or offered.build)
    return f"the device runs the build of {running.build or 'no date'} already" if same else None


def _earlier_build(running: Firmware, offered: Firmware) -> str | None:
    if running.built_at is None or offered.built_at is None:
        return "the build times cannot be compared"
    if running.built_at < offered.built_at:
        return None
    return f"the device's build of {running.build} is not earlier than {offered.build}"


def _never(_running: Firmware, _offered: Firmware) -> str | None:
    return "devices do not say which library they have"


def _always(_running: Firmware, _offered: Firmware) -> str | None:
    return None


_COMPARISONS: Final = {
    CompareField.NO_CONDITION: _always,
    CompareField.LATEST_FIRMWARE_VERSION: _lower_version,
    CompareField.BUILD_DATE_DIFFERS: _other_build,
    CompareField.EARLIER_BUILD_DATE: _earlier_build,
    CompareField.LATEST_BLYNK_VERSION: _never,
}


def rollback_after_end(
    execution: Execution, running: Firmware, offered: Firmware, *, now: datetime
) -> tuple[Execution, str] | None:
    """Return an execution that SUCCEEDED marked as rolled back, and one line; None if the report does not say so.

    It does when the device reports again what it ran before the update: old, new, old. The state stays: it is final.
    """
    record = delivery_record(execution.details)
    previous = Firmware(record.previous_version, record.previous_build)
    is_back = bool(previous.version) and not running.is_same(offered) and running.version == previous.version
    if execution.state is not ExecutionState.SUCCEEDED or STATUS_DETAIL not in execution.details or not is_back:
        return None
    if execution.details[STATUS_DETAIL] == DeviceStatus.ROLLBACK.value:
        return None
    text = f"went back to {running.version} after it had reported {offered.version}"
    details = {**execution.details, STATUS_DETAIL: DeviceStatus.ROLLBACK.value, "flag": text}
    return _amended(execution, details, now), text


def _amended(execution: Execution, details: dict[str, str], now: datetime) -> Execution:
    return replace(execution, version=execution.version + 1, changed_at=now, details=details)


def _end(state: ExecutionState, status: DeviceStatus | None, text: str) -> ExecutionChange:
    shown = DeviceStatus.SUCCESS if status is None else status
    details: dict[str, str | None] = {STATUS_DETAIL: shown.value}
    if state is not ExecutionState.SUCCEEDED:
        details["reason"] = text
    return ExecutionChange(state, details=details, basis=Basis.REPORTED, message=text)


def _settles_at(record: DeliveryRecord) -> datetime | None:
    handed_over = record.state == HANDED_OVER and record.delivered_at is not None
    return record.delivered_at + APPLY_TIME if handed_over and record.delivered_at else None
