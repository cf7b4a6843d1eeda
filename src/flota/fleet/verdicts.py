"""Verdicts on devices that report nothing but what they run: HTTPUpdate clients.

The device's next request says which image runs. Together with what is known about the deliveries so far that decides
what becomes of its execution, in one table.

Source: docs/reference/http-update.md, "Verdicts".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from flota.fleet.executions import Basis, ExecutionState


class RunningImage(enum.Enum):
    """What the device runs, seen from one execution."""

    OFFERED = "the offered image"
    PREVIOUS = "the image from before the update"
    UNKNOWN = "an image that is neither the old nor the new one"
    UNTOLD = "an image that it says nothing about"


class DeliveryStage(enum.Enum):
    """How far the latest delivery came, as far as a server can know.

    CUT: the body was interrupted, or the server process that sent it is gone, or the device asks anew while it still
    runs. WHOLE: handed over to the last byte, more attempts are left. USED_UP: the same, and no attempt is left.
    """

    NONE = "none"
    CUT = "cut"
    WHOLE = "whole"
    USED_UP = "used-up"


class Verdict(enum.Enum):
    """What to do with an execution when the device asks for an update."""

    OFFER = "offer"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    INFER = "infer"
    """The device does not say what it runs: conclude from its sketch size, or from time."""


_R, _D, _V = RunningImage, DeliveryStage, Verdict

VERDICTS: Final[Mapping[tuple[RunningImage, DeliveryStage], Verdict]] = {
    (_R.OFFERED, _D.NONE): _V.SUCCEED,
    (_R.OFFERED, _D.CUT): _V.SUCCEED,
    (_R.OFFERED, _D.WHOLE): _V.SUCCEED,
    (_R.OFFERED, _D.USED_UP): _V.SUCCEED,
    (_R.PREVIOUS, _D.NONE): _V.OFFER,
    (_R.PREVIOUS, _D.CUT): _V.OFFER,
    (_R.PREVIOUS, _D.WHOLE): _V.OFFER,
    (_R.PREVIOUS, _D.USED_UP): _V.FAIL,
    (_R.UNKNOWN, _D.NONE): _V.OFFER,
    (_R.UNKNOWN, _D.CUT): _V.OFFER,
    (_R.UNKNOWN, _D.WHOLE): _V.OFFER,
    (_R.UNKNOWN, _D.USED_UP): _V.FAIL,
    (_R.UNTOLD, _D.NONE): _V.OFFER,
    (_R.UNTOLD, _D.CUT): _V.OFFER,
    (_R.UNTOLD, _D.WHOLE): _V.OFFER,
    (_R.UNTOLD, _D.USED_UP): _V.INFER,
}
"""Every pair is here. A cut delivery costs no attempt; an update loop ends because whole deliveries are counted."""


@dataclass(frozen=True, slots=True)
class ImageIdentity:
    """What tells an image: hashes that may be reported for it, its MD5, its size in bytes; lower-case hex."""

    hashes: frozenset[str] = frozenset()
    md5: str | None = None
    size: int | None = None

    @property
    def is_told(self) -> bool:
        """Whether there is a digest to compare."""
        return bool(self.hashes) or self.md5 is not None

    def is_same(self, other: ImageIdentity) -> bool:
        """Whether any digest of the one is one of the other's."""
        return bool(self.hashes & other.hashes) or (self.md5 is not None and self.md5 == other.md5)


@dataclass(frozen=True, slots=True)
class Deliveries:
    """What is known about an execution's deliveries. `whole` counts those handed over to the last byte.

    `previous` is what the device ran when the first of them began; `last_whole_at` is when the latest whole one ended.
    """

    stage: DeliveryStage = DeliveryStage.NONE
    whole: int = 0
    previous: ImageIdentity = ImageIdentity()
    last_whole_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict with the state it leads to and one line saying why; OFFER leads to IN_PROGRESS.

    With `state` None nothing changes and nothing is offered: evidence is still being waited for.
    """

    state: ExecutionState | None
    image: RunningImage
    basis: Basis | None = None
    reason: str = ""

    @property
    def is_offer(self) -> bool:
        """Whether the image is to be offered now."""
        return self.state is ExecutionState.IN_PROGRESS


def running_image(running: ImageIdentity, offered: ImageIdentity, previous: ImageIdentity) -> RunningImage:
    """Return which image runs. Before anything was delivered, whatever runs is the previous image."""
    if not running.is_told:
        return RunningImage.UNTOLD
    if running.is_same(offered):
        return RunningImage.OFFERED
    if not previous.is_told or running.is_same(previous):
        return RunningImage.PREVIOUS
    return RunningImage.UNKNOWN


def judge_running_image(
    running: ImageIdentity,
    offered: ImageIdentity,
    deliveries: Deliveries,
    *,
    cancel_requested: bool,
    silence_limit_s: int,
    now: datetime,
) -> Judgement:
    """Return what the device's request means for its execution.

    A cancelled execution is offered no more: it ends CANCELED when no delivery was whole, else as what runs shows.
    """
    image = running_image(running, offered, deliveries.previous)
    stage = deliveries.stage
    if cancel_requested and stage is DeliveryStage.WHOLE:
        stage = DeliveryStage.USED_UP
    verdict = VERDICTS[image, stage]
    if verdict is Verdict.OFFER and cancel_requested:
        verdict = Verdict.CANCEL
    if verdict is Verdict.INFER:
        return _infer(running, offered, deliveries, silence_limit_s=silence_limit_s, now=now)
    state, basis = _OUTCOMES[verdict]
    return Judgement(state, image, basis, _reason(verdict, image, deliveries))


_OUTCOMES: Final[Mapping[Verdict, tuple[ExecutionState, Basis | None]]] = {
    Verdict.OFFER: (ExecutionState.IN_PROGRESS, None),
    Verdict.SUCCEED: (ExecutionState.SUCCEEDED, Basis.REPORTED),
    Verdict.FAIL: (ExecutionState.FAILED, Basis.REPORTED),
    Verdict.CANCEL: (ExecutionState.CANCELED, Basis.OPERATOR),
}


def _reason(verdict: Verdict, image: RunningImage, deliveries: Deliveries) -> str:
    if verdict is Verdict.SUCCEED and deliveries.stage is DeliveryStage.NONE:
        return "the device runs the offered image already"
    if verdict is Verdict.SUCCEED:
        return "the device runs the offered image"
    if verdict is Verdict.CANCEL:
        return "stopped before a delivery was complete"
    if verdict is Verdict.FAIL and image is RunningImage.PREVIOUS:
        times = "a complete delivery" if deliveries.whole == 1 else f"{deliveries.whole} complete deliveries"
        return f"still runs the old image after {times}: it was reverted, or its verification failed"
    if verdict is Verdict.FAIL:
        return "runs an image that is neither the old nor the offered one"
    return ""


def _infer(
    running: ImageIdentity, offered: ImageIdentity, deliveries: Deliveries, *, silence_limit_s: int, now: datetime
) -> Judgement:
    """Conclude what a device runs that tells no digest; the basis says that it is a conclusion."""
    untold = RunningImage.UNTOLD
    if running.size is not None and running.size == offered.size and running.size != deliveries.previous.size:
        reason = "the size of the running image changed to that of the offered one"
        return Judgement(ExecutionState.SUCCEEDED, untold, Basis.INFERRED, reason)
    limit = timedelta(seconds=silence_limit_s)
    if deliveries.last_whole_at is not None and now - deliveries.last_whole_at > limit:
        reason = "fetched the image completely and never said what it runs"
        return Judgement(ExecutionState.TIMED_OUT, untold, Basis.INFERRED, reason)
    return Judgement(None, untold)
