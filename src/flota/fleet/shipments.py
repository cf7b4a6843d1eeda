"""Shipments: how Blynk's console shows a rollout, and on which conditions its devices take the firmware. Pure.

`DEVICE_STATUS` is the one table from executions to a device's status. Every device is counted once, at the status that
it has now.
Source: docs/reference/blynk.md, "Shipments".
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from flota.fleet.executions import Execution, ExecutionState, moment_in_detail
from flota.fleet.rollouts import RolloutState

ATTEMPTS_DEFAULT: Final = 3
"""Requests for the file by one device, as the vendor's console has it."""

STATUS_DETAIL: Final = "shipment-status"
"""What the Blynk dialect found out about an execution: the value of a `DeviceStatus`."""


RETRY_DETAIL: Final = "retry-at"
"""Set while a device at its limit rests: from this moment on (ISO 8601) it is offered the file again."""


class ShipmentStatus(enum.StrEnum):
    """A shipment's status."""

    RUN = "RUN"
    PAUSE = "PAUSE"
    FINISH = "FINISH"
    CANCEL = "CANCEL"


class DeviceStatus(enum.StrEnum):
    """A device's status in a shipment; the values are the vendor's names of the counters where it has one."""

    WAITING = "waiting"
    """Its wave is not open yet, or it waits its turn (ours: the vendor has no waves)."""
    STARTED = "started"
    AWAITING_USER = "awaitingUserAction"
    REQUEST_SENT = "requestSent"
    FIRMWARE_REQUESTED = "firmwareRequested"
    FIRMWARE_UPLOADED = "firmwareUploaded"
    SUCCESS = "success"
    UPLOAD_FAILURE = "uploadFailure"
    LIMIT_REACHED = "downloadLimitReached"
    ROLLBACK = "rollback"
    TYPE_MISMATCH = "firmwareTypeMismatch"
    VERSION_MISMATCH = "firmwareVersionMismatch"
    CANCELED = "canceled"
    """Its update was called off (ours: the vendor has no counter of it)."""


class CompareField(enum.StrEnum):
    """On which condition a device takes the firmware."""

    LATEST_FIRMWARE_VERSION = "LATEST_FIRMWARE_VERSION"
    BUILD_DATE_DIFFERS = "BUILD_DATE_DIFFERS"
    EARLIER_BUILD_DATE = "EARLIER_BUILD_DATE"
    LATEST_BLYNK_VERSION = "LATEST_BLYNK_VERSION"
    NO_CONDITION = "NO_CONDITION"


@dataclass(frozen=True, slots=True)
class ShipmentConditions:
    """What a shipment asks of its devices. The default is that of a rollout which is none: the operator said it all."""

    compare: CompareField = CompareField.NO_CONDITION
    skip_type_check: bool = False
    attempts: int | None = None
    """Requests for the file; None takes `attempts_limit` of the rollout's own."""
    attempt_period_s: int | None = None
    """Seconds from the first of them, after which they are counted anew; None: never."""


NO_CONDITIONS: Final = ShipmentConditions()


@dataclass(frozen=True, slots=True)
class ShipmentRecord:
    """What is remembered about a shipment besides its rollout. `started_by` is who created it."""

    rollout_id: int
    conditions: ShipmentConditions
    started_by: str
    file_name: str
    deleted_at: datetime | None = None


_E, _D = ExecutionState, DeviceStatus

DEVICE_STATUS: Final[Mapping[ExecutionState, DeviceStatus]] = {
    _E.QUEUED: _D.STARTED,
    _E.IN_PROGRESS: _D.REQUEST_SENT,
    _E.SUCCEEDED: _D.SUCCESS,
    _E.FAILED: _D.UPLOAD_FAILURE,
    _E.TIMED_OUT: _D.UPLOAD_FAILURE,
    _E.REJECTED: _D.VERSION_MISMATCH,
    _E.REMOVED: _D.CANCELED,
    _E.CANCELED: _D.CANCELED,
}
"""What a state is without `shipment-status`: devices of other dialects have none."""

ALLOWED_DETAILS: Final[Mapping[ExecutionState, frozenset[DeviceStatus]]] = {
    _E.QUEUED: frozenset({_D.AWAITING_USER}),
    _E.IN_PROGRESS: frozenset(
        {_D.REQUEST_SENT, _D.FIRMWARE_REQUESTED, _D.FIRMWARE_UPLOADED, _D.UPLOAD_FAILURE, _D.LIMIT_REACHED}
    ),
    _E.SUCCEEDED: frozenset({_D.ROLLBACK}),
    _E.FAILED: frozenset({_D.UPLOAD_FAILURE, _D.LIMIT_REACHED, _D.ROLLBACK}),
    _E.TIMED_OUT: frozenset(),
    _E.REJECTED: frozenset({_D.TYPE_MISMATCH, _D.VERSION_MISMATCH, _D.UPLOAD_FAILURE}),
    _E.REMOVED: frozenset(),
    _E.CANCELED: frozenset(),
}
"""Which `shipment-status` refines a state: one left over from an earlier state counts no more."""

SHIPMENT_STATUS: Final[Mapping[RolloutState, ShipmentStatus]] = {
    RolloutState.ACTIVE: ShipmentStatus.RUN,
    RolloutState.PAUSED: ShipmentStatus.PAUSE,
    RolloutState.SUCCEEDED: ShipmentStatus.FINISH,
    RolloutState.FINISHED_WITH_FAILURES: ShipmentStatus.FINISH,
    RolloutState.ABORTED: ShipmentStatus.CANCEL,
    RolloutState.CANCELED: ShipmentStatus.CANCEL,
}

COUNTERS: Final = (
    "started",
    "requestSent",
    "firmwareRequested",
    "firmwareUploaded",
    "firmwareUploadedToMobile",
    "success",
    "uploadFailure",
    "firmwareTypeMismatch",
    "downloadLimitReached",
    "rollback",
    "firmwareVersionMismatch",
)
"""The vendor's counters. Nothing is relayed by a phone here: that one is 0."""


def device_status(execution: Execution) -> DeviceStatus:
    """Return the status of a device whose execution exists."""
    told = execution.details.get(STATUS_DETAIL)
    refined = next((one for one in ALLOWED_DETAILS[execution.state] if one.value == told), None)
    if refined is not None:
        return refined
    delivery = execution.details.get("delivery")
    if execution.state is ExecutionState.IN_PROGRESS and delivery is not None:  # another dialect's details
        return DeviceStatus.FIRMWARE_UPLOADED if delivery == "handed-over" else DeviceStatus.FIRMWARE_REQUESTED
    return DEVICE_STATUS[execution.state]


def progress(statuses: Iterable[DeviceStatus]) -> dict[str, int]:
    """Return the vendor's counters over its devices' statuses; statuses of ours have no counter."""
    counts = dict.fromkeys(COUNTERS, 0)
    for status in statuses:
        if status.value in counts:
            counts[status.value] += 1
    return counts


def rests_until(execution: Execution) -> datetime | None:
    """Return until when a device that has reached its limit is left alone; None if it does not rest."""
    told = execution.details.get(RETRY_DETAIL)
    return None if told is None or execution.state is not ExecutionState.IN_PROGRESS else moment_in_detail(told)


def attempts_limit(conditions: ShipmentConditions, of_rollout: int) -> int:
    """Return how often one device may ask for the file from its beginning.

    A rollout's own limit counts complete deliveries; broken ones count here too, so it is at least the vendor's three.
    """
    return conditions.attempts if conditions.attempts is not None else max(of_rollout, ATTEMPTS_DEFAULT)
