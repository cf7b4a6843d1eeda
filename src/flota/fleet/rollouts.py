"""Rollouts: a release offered to a snapshot of devices, in ordered waves, with one abort threshold."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from flota.errors import InvalidInput
from flota.fleet.executions import ExecutionState
from flota.fleet.update_rules import Urgency, check_rules


class RolloutState(enum.StrEnum):
    """ACTIVE and PAUSED are open; the others are final."""

    ACTIVE = "active"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FINISHED_WITH_FAILURES = "finished-with-failures"
    ABORTED = "aborted"
    CANCELED = "canceled"


_R = RolloutState

ROLLOUT_TRANSITIONS: Final[Mapping[RolloutState, frozenset[RolloutState]]] = {
    _R.ACTIVE: frozenset({_R.PAUSED, _R.SUCCEEDED, _R.FINISHED_WITH_FAILURES, _R.ABORTED, _R.CANCELED}),
    _R.PAUSED: frozenset({_R.ACTIVE, _R.SUCCEEDED, _R.FINISHED_WITH_FAILURES, _R.ABORTED, _R.CANCELED}),
    _R.SUCCEEDED: frozenset(),
    _R.FINISHED_WITH_FAILURES: frozenset(),
    _R.ABORTED: frozenset(),
    _R.CANCELED: frozenset(),
}
"""Absent pair = not allowed. A paused rollout can still end: pausing opens nothing new, but stops nobody."""

OPEN_ROLLOUT_STATES: Final = frozenset({_R.ACTIVE, _R.PAUSED})
STOPPED_ROLLOUT_STATES: Final = frozenset({_R.ABORTED, _R.CANCELED})
"""Entering one of these cancels what is queued, asks who is at work to stop, and leaves later waves unopened."""


class WaveState(enum.StrEnum):
    """A wave waits, then is open (its executions exist), then has ended: see `WAVE_TRANSITIONS`."""

    WAITING = "waiting"
    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    """The rollout was canceled while this wave was open: nothing has to have failed."""
    NOT_OPENED = "not-opened"
    """The rollout ended before this wave's turn: its devices were never touched."""


_W = WaveState

WAVE_TRANSITIONS: Final[Mapping[WaveState, frozenset[WaveState]]] = {
    _W.WAITING: frozenset({_W.OPEN, _W.NOT_OPENED}),
    _W.OPEN: frozenset({_W.SUCCEEDED, _W.FAILED, _W.CANCELED}),
    _W.SUCCEEDED: frozenset(),
    _W.FAILED: frozenset(),
    _W.CANCELED: frozenset(),
    _W.NOT_OPENED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    """Limits of a rollout, and how its devices are to take it.

    `abort_after_failures`: the rollout aborts when this many executions ended FAILED, TIMED_OUT or REJECTED.
    `silence_limit_s`: an IN_PROGRESS execution without a sign of its device for this many seconds is TIMED_OUT.
    `attempts`: complete deliveries to one device before "still runs the old image" means FAILED (routes without
    reports).
    `count_inferred`: whether outcomes with basis `inferred` count towards thresholds.
    `continuous`: devices that the selector picks later join, and it has no end of its own.
    `urgency`, `forced_at`: `flota.fleet.update_rules`. `confirm`, `maintenance`: None takes the type's; `none` as
    `maintenance` means at any time.
    """

    abort_after_failures: int = 1
    silence_limit_s: int = 3600
    attempts: int = 1
    count_inferred: bool = False
    continuous: bool = False
    urgency: Urgency = Urgency.FORCED
    forced_at: datetime | None = None
    confirm: bool | None = None
    maintenance: str | None = None

    def __post_init__(self) -> None:
        """Raise `InvalidInput` for a limit below 1: a rollout that aborts before it starts, or never waits.

        And for an urgency without its time, or a maintenance window that cannot be read.
        """
        check_rules(urgency=self.urgency, forced_at=self.forced_at, maintenance=self.maintenance)
        for name in ("abort_after_failures", "silence_limit_s", "attempts"):
            if getattr(self, name) < 1:
                raise InvalidInput(
                    f"the rollout's {name} is too small", expected="at least 1", found=getattr(self, name)
                )


@dataclass(frozen=True, slots=True)
class Wave:
    """An ordered part of a rollout. `number` starts at 1. `counts` has the executions by state once it is open."""

    number: int
    state: WaveState
    size: int
    counts: Mapping[ExecutionState, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A release offered to a set of devices under a policy. `selector` is how the snapshot was taken, for display."""

    id: int
    name: str
    release_id: int
    type_name: str
    version: str
    state: RolloutState
    policy: RolloutPolicy
    waves: tuple[Wave, ...]
    selector: str
    created_at: datetime
    changed_at: datetime
    reason: str = ""
    """Why it was aborted, paused or canceled."""
    job_id: str | None = None
    """What things know it as (`flota.fleet.things.job_id_of`); None if it was made before things were known."""


ALL_AT_ONCE: Final = "100%"
WAVES_MAX: Final = 100
"""Most waves of one rollout; more would be a rate limit, which is another thing."""

_WAVE_STEP = re.compile(r"(\d{1,9})(%?)\Z")
_WAVES_HINT = "Give rising totals that end with 100%, for example 2,50%,100%."


def split_waves(device_ids: Sequence[int], waves: str = ALL_AT_ONCE) -> tuple[tuple[int, ...], ...]:
    """Return `device_ids` cut into ordered waves.

    `waves` lists, for each wave, how many devices are reached when it is through: a count or a percentage of all,
    rounded up. `2,50%,100%` of ten devices is 2, then 3 more, then 5 more. A step that adds nobody (50% of two, after
    2) is left out.

    Raises `InvalidInput` if there is no device or one twice, a step cannot be read or falls, or the last is not
    everybody.
    """
    if not device_ids:
        raise InvalidInput("no device is selected", hint="List devices, or check the selector.")
    if len(set(device_ids)) != len(device_ids):
        raise InvalidInput("a device is selected twice")
    cut: list[tuple[int, ...]] = []
    reached = 0
    for step in _steps(waves):
        total = _devices_reached(step, len(device_ids))
        if total < reached:
            raise InvalidInput("the waves fall", expected=f"at least {reached} devices", found=step, hint=_WAVES_HINT)
        if total > reached:
            cut.append(tuple(device_ids[reached:total]))
        reached = total
    if reached != len(device_ids):
        raise InvalidInput(
            "the waves leave devices out",
            expected=f"{len(device_ids)} devices",
            found=f"{reached} devices",
            hint=_WAVES_HINT,
        )
    return tuple(cut)


def check_waves(waves: str) -> None:
    """Raise `InvalidInput` if a step cannot be read, or shares fall: what is wrong for every number of devices."""
    steps = _steps(waves)
    for step in steps:
        _devices_reached(step, 1)
    shares = [_devices_reached(step, 100) for step in steps if step.endswith("%")]
    if shares != sorted(shares):
        raise InvalidInput("the waves fall", found=repr(waves[:200]), hint=_WAVES_HINT)


def _steps(waves: str) -> list[str]:
    steps = [step.strip() for step in waves.split(",")]
    if len(steps) > WAVES_MAX:
        raise InvalidInput("too many waves", expected=f"at most {WAVES_MAX}", found=len(steps))
    return steps


def _devices_reached(step: str, device_count: int) -> int:
    match = _WAVE_STEP.match(step)
    number = int(match.group(1)) if match else 0
    is_percentage = bool(match and match.group(2))
    if not number or (is_percentage and number > 100):
        raise InvalidInput("a wave cannot be read", found=repr(step[:20]), hint=_WAVES_HINT)
    return -(-device_count * number // 100) if is_percentage else min(number, device_count)
