"""Executions as AWS IoT Jobs has them: what a device may report, its status details, step timers, stopping. Pure.

The states are Jobs' own; here stand the rules that only this dialect has. What Flota itself keeps in an execution's
details stays out of a device's sight, and a device cannot write there, whatever names it uses.
Source: docs/reference/aws-iot.md, "Jobs".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from flota.fleet.executions import Execution, ExecutionChange, ExecutionState, StepTimer
from flota.fleet.inferences import ROUTE_DETAIL
from flota.fleet.rollouts import RolloutPolicy
from flota.fleet.things import JOB_ID_PREFIX

AWS_IOT_ROUTE: Final = "aws-iot"
"""Value of the detail `route` of an execution that is worked on over AWS IoT Jobs."""

SELF_TEST_DETAIL: Final = "self_test"
"""What the OTA agent sets once the new image is in its place: from then on nothing stops it."""

_S = ExecutionState

DEVICE_STEPS: Final[Mapping[ExecutionState, frozenset[ExecutionState]]] = {
    _S.QUEUED: frozenset({_S.IN_PROGRESS, _S.SUCCEEDED, _S.FAILED, _S.REJECTED}),
    _S.IN_PROGRESS: frozenset({_S.IN_PROGRESS, _S.SUCCEEDED, _S.FAILED}),
}
"""What a device may report from which state; an absent pair is an invalid transition. REJECTED is for what was never
begun: the authors of the C agent have found the service refuse it later, and send FAILED."""

LENIENT_STEPS: Final[Mapping[ExecutionState, frozenset[ExecutionState]]] = {
    **DEVICE_STEPS,
    _S.IN_PROGRESS: DEVICE_STEPS[_S.IN_PROGRESS] | {_S.REJECTED},
}
"""The same for a server that was told to be lenient about REJECTED."""

SERVER_DETAILS: Final = frozenset(
    {
        "asked-after-end",
        "cancel",
        "confirmation",
        "delivered-at",
        "deliveries",
        "deliveries-whole",
        "delivery",
        "delivery-began-at",
        "failed-early",
        "failed-whole",
        "flag",
        "gets",
        "only-downloaded",
        "previous-hash",
        "previous-md5",
        "previous-size",
        "quiet-s",
        ROUTE_DETAIL,
        "running-unknown",
    }
)
"""Names under which Flota keeps something of its own in an execution's details."""

_ESCAPE: Final = "device:"


@dataclass(frozen=True, slots=True)
class JobExecution:
    """An execution under the id of its job. A rollout is a job; it offers a device one execution.

    `may_start`: its rollout is active and its release published. `type_name`, `labels` and `confirms_itself` are the
    device's: what of it decides whether it is shown the job.
    """

    execution: Execution
    job_id: str
    policy: RolloutPolicy
    may_start: bool
    type_name: str
    labels: Mapping[str, str]
    confirms_itself: bool


EXECUTION_NUMBER: Final = 1
"""A device has one execution in a job."""


def unnamed_job_id(rollout_id: int) -> str:
    """Return the job id of a rollout from before jobs had one. No rollout is called by a number, so it is free."""
    return f"{JOB_ID_PREFIX}{rollout_id}"


def visible_details(details: Mapping[str, str]) -> dict[str, str]:
    """Return the status details that the device itself has set, exactly as it set them."""
    return {name.removeprefix(_ESCAPE): text for name, text in details.items() if name not in SERVER_DETAILS}


def replacing_details(stored: Mapping[str, str], given: Mapping[str, str] | None) -> dict[str, str | None]:
    """Return the change of details by which exactly `given` replaces what the device had set; None leaves it."""
    if given is None:
        return {}
    changes: dict[str, str | None] = dict.fromkeys(name for name in stored if name not in SERVER_DETAILS)
    changes |= {_stored_name(name): text for name, text in given.items()}
    return changes


def _stored_name(name: str) -> str:
    return f"{_ESCAPE}{name}" if name in SERVER_DETAILS or name.startswith(_ESCAPE) else name


def step_timer(minutes: int | None, *, now: datetime) -> StepTimer | None:
    """Return what a request's `stepTimeoutInMinutes` does: it starts a timer, -1 discards one, None leaves it."""
    if minutes is None:
        return None
    return StepTimer(None if minutes < 0 else now + timedelta(minutes=minutes))


def seconds_left(execution: Execution, *, now: datetime) -> int | None:
    """Return the whole seconds until the step timer runs out, None where none runs."""
    if execution.step_expires_at is None:
        return None
    return max(0, int((execution.step_expires_at - now).total_seconds()))


def end_of_time(execution: Execution, *, now: datetime) -> ExecutionChange | None:
    """Return how a device's execution ends by what its server knows alone, None if it goes on.

    Its step timer has run out; or it is to be stopped: a device of this dialect is not asked, it is told that another
    execution is the next one. One that is in its self-test runs the new image already: its own report is waited for.
    """
    if execution.state is not ExecutionState.IN_PROGRESS:
        return None
    if execution.cancel_requested_at is not None and _can_be_stopped(execution):
        return ExecutionChange(ExecutionState.CANCELED, message="stopped before the image was in its place")
    if execution.step_expires_at is not None and now >= execution.step_expires_at:
        text = "the step's time limit has passed"
        if execution.cancel_requested_at is not None:
            return ExecutionChange(ExecutionState.CANCELED, message=f"{text} after it was asked to stop")
        return ExecutionChange(ExecutionState.TIMED_OUT, details={"reason": text}, message=text)
    return None


def is_job(execution: Execution) -> bool:
    """Whether the device at work on this speaks AWS IoT Jobs."""
    return execution.details.get(ROUTE_DETAIL) == AWS_IOT_ROUTE


def _can_be_stopped(execution: Execution) -> bool:
    return is_job(execution) and SELF_TEST_DETAIL not in execution.details
