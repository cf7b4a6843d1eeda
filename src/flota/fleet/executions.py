"""Executions: one device's part in one rollout. States are those of AWS IoT Jobs: the best documented ones."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from flota.errors import Conflict, InvalidInput, VersionMismatch


class ExecutionState(enum.StrEnum):
    """QUEUED and IN_PROGRESS are open; all others are final."""

    QUEUED = "QUEUED"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    REJECTED = "REJECTED"
    REMOVED = "REMOVED"
    CANCELED = "CANCELED"


_S = ExecutionState

EXECUTION_TRANSITIONS: Final[Mapping[ExecutionState, frozenset[ExecutionState]]] = {
    _S.QUEUED: frozenset({_S.IN_PROGRESS, _S.SUCCEEDED, _S.FAILED, _S.REJECTED, _S.REMOVED, _S.CANCELED, _S.TIMED_OUT}),
    _S.IN_PROGRESS: frozenset(
        {_S.IN_PROGRESS, _S.SUCCEEDED, _S.FAILED, _S.TIMED_OUT, _S.REJECTED, _S.REMOVED, _S.CANCELED}
    ),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.TIMED_OUT: frozenset(),
    _S.REJECTED: frozenset(),
    _S.REMOVED: frozenset(),
    _S.CANCELED: frozenset(),
}
"""Absent pair = not allowed. IN_PROGRESS -> IN_PROGRESS is a progress report. QUEUED -> SUCCEEDED is a device that
already runs the release when it first asks, QUEUED -> FAILED one that has not even begun to work on it."""

OPEN_STATES: Final = frozenset({_S.QUEUED, _S.IN_PROGRESS})
FINAL_STATES: Final = frozenset(ExecutionState) - OPEN_STATES
UNSUCCESSFUL_STATES: Final = frozenset({_S.FAILED, _S.TIMED_OUT, _S.REJECTED})
"""What counts against a rollout's abort threshold."""


class Basis(enum.StrEnum):
    """How an outcome is known: the device said so, or we concluded it from evidence that its spec allows."""

    REPORTED = "reported"
    INFERRED = "inferred"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Execution:
    """One device's part in one rollout. `version` rises by one on every change, starting at 1.

    `id` fits a signed 32-bit integer: it is the action id of hawkBit clients (docs/reference/hawkbit-ddi.md).
    `details` are AWS-like status details: short strings by name, replaced key by key (limits below;
    docs/reference/executions.md).
    `cancel_requested_at` is set while a device that is already working has been asked to stop.
    `step_expires_at` is when the time is over that the device gave itself for its present step, if it did.
    """

    id: int
    rollout_id: int
    device_id: int
    device_name: str
    release_id: int
    wave: int
    state: ExecutionState
    version: int
    created_at: datetime
    changed_at: datetime
    basis: Basis | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    step_expires_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether the execution can still change."""
        return self.state in OPEN_STATES


@dataclass(frozen=True, slots=True)
class StepTimer:
    """What to do with an execution's step timer: let it end at `expires_at`, or (None) discard it."""

    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class ExecutionChange:
    """What to write: a new state and, by key, new details (None removes the key)."""

    state: ExecutionState
    details: Mapping[str, str | None] = field(default_factory=dict)
    basis: Basis | None = None
    message: str = ""
    """One line for the journal and the action history, cleaned."""
    request_cancel: bool = False
    step_timer: StepTimer | None = None
    """None leaves a running timer as it is; only what is IN_PROGRESS has one."""


DETAILS_MAX: Final = 32
"""Most status details one execution keeps."""
DETAIL_NAME_MAX_CHARS: Final = 128
DETAIL_VALUE_MAX_CHARS: Final = 1024
"""AWS IoT Jobs allows 128 characters for a name and 1,024 for a value (docs/reference/executions.md)."""


def apply_change(execution: Execution, expected_version: int, change: ExecutionChange, *, now: datetime) -> Execution:
    """Return `execution` after `change`, its version one higher.

    Raises `VersionMismatch` if it is no longer at `expected_version` (with the present state as `found`), `Conflict` if
    `EXECUTION_TRANSITIONS` does not allow the step, `InvalidInput` if the details grow past their limits.
    """
    if execution.version != expected_version:
        raise VersionMismatch(
            f"execution {execution.id} has moved on",
            expected=f"version {expected_version}",
            found=f"version {execution.version}, {execution.state}",
            hint="Read it again and decide again.",
        )
    check_transition(execution, change.state)
    is_final = change.state in FINAL_STATES
    is_at_work = change.state is ExecutionState.IN_PROGRESS
    wants_cancel = change.request_cancel and is_at_work
    step_expires_at = execution.step_expires_at if change.step_timer is None else change.step_timer.expires_at
    return replace(
        execution,
        state=change.state,
        version=execution.version + 1,
        changed_at=now,
        basis=change.basis if is_final else None,
        details=merge_details(execution.details, change.details),
        started_at=execution.started_at or (now if is_at_work else None),
        finished_at=now if is_final else None,
        cancel_requested_at=execution.cancel_requested_at or (now if wants_cancel else None),
        step_expires_at=step_expires_at if is_at_work else None,
    )


def check_transition(execution: Execution, to: ExecutionState) -> None:
    """Raise `Conflict` if `EXECUTION_TRANSITIONS` has no step from the execution's state to `to`."""
    allowed = EXECUTION_TRANSITIONS[execution.state]
    if to not in allowed:
        raise Conflict(
            f"execution {execution.id} is {execution.state} and cannot become {to}",
            expected=" or ".join(sorted(allowed)) or "no further change",
            found=to,
        )


def merge_details(old: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return `old` with `changes` laid over it, key by key; None removes one. Raises `InvalidInput` over the limits."""
    merged = dict(old)
    for name, value in changes.items():
        if value is None:
            merged.pop(name, None)
            continue
        if not 1 <= len(name) <= DETAIL_NAME_MAX_CHARS:
            raise InvalidInput(
                "a status detail's name has a wrong length",
                expected=f"1 to {DETAIL_NAME_MAX_CHARS} characters",
                found=f"{len(name)}",
            )
        if len(value) > DETAIL_VALUE_MAX_CHARS:
            raise InvalidInput(
                f"the status detail {name!r} is too long",
                expected=f"at most {DETAIL_VALUE_MAX_CHARS} characters",
                found=f"{len(value)}",
            )
        merged[name] = value
    if len(merged) > DETAILS_MAX:
        raise InvalidInput("too many status details", expected=f"at most {DETAILS_MAX}", found=f"{len(merged)}")
    return merged


def moment_in_detail(text: str | None) -> datetime | None:
    """Return the moment in a detail (ISO 8601); what cannot be read, or has no zone, counts as absent.

    Details can be a device's own words.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
