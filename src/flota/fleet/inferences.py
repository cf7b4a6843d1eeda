"""Verdicts on devices that say nothing at all: Viam's micro-RDK, which only fetches its image.

All that a server can see is that the image was asked for, that it was asked for again, and that it was not. What was
seen stands in the execution's details (`SilentDelivery`), so that it outlives the process and the engine can conclude
from silence without any request. Every outcome here has the basis `inferred`.

Source: docs/reference/viam.md, "What is concluded from what".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from flota.errors import Conflict
from flota.fleet.executions import Basis, Execution, ExecutionChange, ExecutionState, moment_in_detail

DEFAULT_QUIET_S: Final = 180
"""No further request for so long after the whole image was handed over means success: 120 s in which a device may be
erasing, writing and verifying what was on its way, and one minute in which a failed one would have asked six times."""

QUICK_REPEAT_S: Final = 60
"""A request so soon after the one before: that attempt ended before the image can have been written and verified."""

QUICK_REPEATS_MAX: Final = 12
"""Two minutes of a device that refuses what it is offered and comes back every ten seconds."""

FLAG_FROM_GETS: Final = 3
"""From so many requests on a device is shown as one that asks again and again."""

ROUTE_DETAIL: Final = "route"
FLAG_DETAIL: Final = "flag"
AFTER_END_DETAIL: Final = "asked-after-end"

UNDER_WAY: Final = "under-way"
INTERRUPTED: Final = "interrupted"
HANDED_OVER: Final = "handed-over"


class Attempt(enum.Enum):
    """How far the latest delivery came, as far as a server can know.

    CUT: interrupted, or the process that sent it is gone. QUICK: handed over, but asked for again within a minute.
    """

    NONE = "none"
    UNDER_WAY = "under-way"
    CUT = "cut"
    QUICK = "quick"
    WHOLE = "whole"


class Sign(enum.Enum):
    """What happened: the device asks, or it has been quiet for the whole quiet time."""

    ASKED = "asked"
    QUIET = "quiet"


class Inference(enum.Enum):
    """What that means."""

    DELIVER = "deliver"
    QUICK_FAILURE = "the latest attempt failed early: count it, deliver again"
    WHOLE_FAILURE = "the latest attempt failed after it was handed over whole: count it, deliver again"
    SUCCEED = "succeed"
    WAIT = "wait"


_S, _A, _I = Sign, Attempt, Inference

INFERENCES: Final[Mapping[tuple[Sign, Attempt], Inference]] = {
    (_S.ASKED, _A.NONE): _I.DELIVER,
    (_S.ASKED, _A.UNDER_WAY): _I.QUICK_FAILURE,
    (_S.ASKED, _A.CUT): _I.QUICK_FAILURE,
    (_S.ASKED, _A.QUICK): _I.QUICK_FAILURE,
    (_S.ASKED, _A.WHOLE): _I.WHOLE_FAILURE,
    (_S.QUIET, _A.NONE): _I.WAIT,
    (_S.QUIET, _A.UNDER_WAY): _I.WAIT,
    (_S.QUIET, _A.CUT): _I.WAIT,
    (_S.QUIET, _A.QUICK): _I.SUCCEED,
    (_S.QUIET, _A.WHOLE): _I.SUCCEED,
}
"""Every pair is here. A device that asks while a delivery is under way has given that one up: it has one connection."""


@dataclass(frozen=True, slots=True)
class SilentDelivery:
    """What was seen of one execution's deliveries; kept in its details.

    `gets` counts requests, `quick_failures` and `whole_failures` the attempts that a later request showed to have
    failed. `state` is `under-way`, `interrupted` or `handed-over`.
    """

    gets: int = 0
    quick_failures: int = 0
    whole_failures: int = 0
    state: str | None = None
    began_at: datetime | None = None
    ended_at: datetime | None = None
    quiet_s: float = DEFAULT_QUIET_S

    def as_details(self) -> dict[str, str | None]:
        """Return it as status details."""
        return {
            "gets": str(self.gets),
            "failed-early": str(self.quick_failures) if self.quick_failures else None,
            "failed-whole": str(self.whole_failures) if self.whole_failures else None,
            "delivery": self.state,
            "delivery-began-at": None if self.began_at is None else self.began_at.isoformat(),
            "delivered-at": None if self.ended_at is None else self.ended_at.isoformat(),
            "quiet-s": f"{self.quiet_s:g}",
            FLAG_DETAIL: self.flag,
        }

    @property
    def flag(self) -> str | None:
        """What an operator should know: that the device asks again and again."""
        return f"asks again and again: {self.gets} requests" if self.gets >= FLAG_FROM_GETS else None


def silent_delivery(details: Mapping[str, str]) -> SilentDelivery:
    """Return what an execution's details say; unreadable ones count as absent."""
    return SilentDelivery(
        gets=_count(details.get("gets")),
        quick_failures=_count(details.get("failed-early")),
        whole_failures=_count(details.get("failed-whole")),
        state=details.get("delivery"),
        began_at=moment_in_detail(details.get("delivery-began-at")),
        ended_at=moment_in_detail(details.get("delivered-at")),
        quiet_s=_seconds(details.get("quiet-s")),
    )


def latest_attempt(delivery: SilentDelivery, *, since: datetime, now: datetime) -> Attempt:
    """Return how far the latest delivery came. `since` is when this server process began.

    What an earlier process handed over may never have left the machine, so it counts as cut when the device asks.
    """
    if delivery.state is None or delivery.began_at is None:
        return Attempt.NONE
    if delivery.state == INTERRUPTED or delivery.began_at < since:
        return Attempt.CUT
    if delivery.state != HANDED_OVER:
        return Attempt.UNDER_WAY
    return Attempt.QUICK if now - delivery.began_at < timedelta(seconds=QUICK_REPEAT_S) else Attempt.WHOLE


@dataclass(frozen=True, slots=True)
class RequestVerdict:
    """What a request means. `end` is None as long as the image is to be delivered; `delivery` has the new counts."""

    delivery: SilentDelivery
    end: ExecutionChange | None = None


def judge_request(execution: Execution, *, attempts: int, since: datetime, now: datetime) -> RequestVerdict:
    """Return what it means that the device asks for its image now.

    `attempts` is the rollout's limit of complete deliveries. A device that was asked to stop is given nothing.
    """
    seen = silent_delivery(execution.details)
    attempt = latest_attempt(seen, since=since, now=now)
    inference = INFERENCES[Sign.ASKED, attempt]
    counted = replace(
        seen,
        gets=seen.gets + 1,
        quick_failures=seen.quick_failures + (inference is Inference.QUICK_FAILURE),
        whole_failures=seen.whole_failures + (inference is Inference.WHOLE_FAILURE),
    )
    if execution.cancel_requested_at is not None:
        text = "asked again after it was to stop: it does not run the image"
        return RequestVerdict(counted, _end(counted, ExecutionState.CANCELED, text))
    if counted.whole_failures >= attempts:
        times = "it" if attempts == 1 else f"{counted.whole_failures} times it"
        text = (
            f"asked for the image again after {times} was handed over whole: its verification failed, the version was"
            " not stored, or it was reverted"
        )
        return RequestVerdict(counted, _end(counted, ExecutionState.FAILED, text))
    if counted.quick_failures > QUICK_REPEATS_MAX:
        text = f"asked {counted.gets} times without taking the image: too large for its slot, or the link breaks"
        return RequestVerdict(counted, _end(counted, ExecutionState.FAILED, text))
    return RequestVerdict(counted)


def awaits_silence(execution: Execution) -> bool:
    """Whether the execution's outcome is to be concluded from silence: its image was handed over whole."""
    return (
        execution.state is ExecutionState.IN_PROGRESS
        and "quiet-s" in execution.details
        and execution.details.get("delivery") == HANDED_OVER
    )


def conclude_from_silence(execution: Execution, *, since: datetime, now: datetime) -> ExecutionChange | None:
    """Return the end of an execution whose device stayed quiet long enough, None as long as it did not.

    The quiet time runs from the end of the delivery, or from `since`, the start of the process that watches, if that
    was later: nobody could ask while no server ran.
    """
    seen = silent_delivery(execution.details)
    attempt = latest_attempt(replace(seen, began_at=max(seen.began_at or since, since)), since=since, now=now)
    if not awaits_silence(execution) or INFERENCES[Sign.QUIET, attempt] is not Inference.SUCCEED:
        return None
    if seen.ended_at is None or now - max(seen.ended_at, since) < timedelta(seconds=seen.quiet_s):
        return None
    text = f"took the image and did not ask again for {seen.quiet_s:g} s"
    return ExecutionChange(ExecutionState.SUCCEEDED, basis=Basis.INFERRED, message=text)


def confirm_outcome(
    execution: Execution, *, last_online_at: datetime, source: str, now: datetime
) -> tuple[Execution, str]:
    """Return an execution that SUCCEEDED by inference as one that was reported, and one line that says why.

    `last_online_at` is when somebody else (`source`) last heard of the device. Raises `Conflict` if the outcome was
    not inferred, or the device was not heard of after it had been concluded.
    """
    if execution.state is not ExecutionState.SUCCEEDED or execution.basis is not Basis.INFERRED:
        found = f"{execution.state}, {execution.basis or 'open'}"
        raise Conflict(f"execution {execution.id} needs no evidence", expected="SUCCEEDED, inferred", found=found)
    concluded_at = execution.finished_at or execution.changed_at
    if last_online_at <= concluded_at:
        raise Conflict(
            f"device {execution.device_name} was not heard of since its outcome was inferred",
            expected=f"after {concluded_at.isoformat(timespec='seconds')}",
            found=last_online_at.isoformat(timespec="seconds"),
            hint="Ask again when the device is online.",
        )
    details = {**execution.details, "evidence": f"{source}: online at {last_online_at.isoformat(timespec='seconds')}"}
    confirmed = replace(execution, basis=Basis.REPORTED, version=execution.version + 1, changed_at=now, details=details)
    return confirmed, f"{source} heard of the device after its update"


def flag_after_end(execution: Execution, *, now: datetime) -> tuple[Execution, str] | None:
    """Return a finished execution marked as one whose device still asks, and one line; None if it is marked already.

    The state stays: it is final. But for one that SUCCEEDED by inference it says that the inference was wrong.
    """
    if execution.is_open or AFTER_END_DETAIL in execution.details:
        return None
    was_inferred = execution.state is ExecutionState.SUCCEEDED and execution.basis is Basis.INFERRED
    doubt = ", so it does not run the image or lost its version" if was_inferred else ""
    text = f"still asks for the image after it ended {execution.state}{doubt}"
    details = {**execution.details, AFTER_END_DETAIL: now.isoformat(timespec="seconds"), FLAG_DETAIL: text}
    return replace(execution, version=execution.version + 1, changed_at=now, details=details), text


def _end(delivery: SilentDelivery, state: ExecutionState, text: str) -> ExecutionChange:
    details = delivery.as_details()
    if state is not ExecutionState.CANCELED:
        details["reason"] = text
    basis = Basis.OPERATOR if state is ExecutionState.CANCELED else Basis.INFERRED
    return ExecutionChange(state, details=details, basis=basis, message=text)


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) <= 9 else 0


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text) if text is not None else float(DEFAULT_QUIET_S)
    except ValueError:
        return float(DEFAULT_QUIET_S)
    return seconds if 0 < seconds < float("inf") else float(DEFAULT_QUIET_S)
