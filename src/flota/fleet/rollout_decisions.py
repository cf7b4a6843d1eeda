"""What a rollout does next, as a value: no IO, no clock. `server.engine` carries the effects out.

The rules, in the order in which they are asked:

0. A silent device whose quiet time is over has SUCCEEDED by inference (`inferences`); the rest is decided afterwards.
1. A device at work that is silent for `silence_limit_s` has TIMED_OUT; one that was asked to stop is CANCELED instead.
   One that rests because it has reached the limit of its attempts (`shipments`) is not silent meanwhile.
   So is one whose own step timer has run out. One that can only be stopped by being told so is CANCELED at once
   (`job_executions`).
2. A rollout that has ended decides nothing more.
3. At `abort_after_failures` failures the rollout is ABORTED.
4. If the release expires while devices are still to start, the rollout is ABORTED.
5. A wave ends when none of its executions is open: well if one succeeded, else badly.
6. After a wave that ended badly the rollout is PAUSED: no evidence is no reason to go on.
   Resuming it opens the next wave.
7. Otherwise the next wave opens, unless the rollout is paused.
   The last wave of a continuous rollout never ends: devices that are selected later join it.
8. After the last wave the rollout has SUCCEEDED, or FINISHED_WITH_FAILURES if any execution failed or none succeeded.

Source: docs/reference/executions.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from flota.fleet.executions import (
    UNSUCCESSFUL_STATES,
    Basis,
    Execution,
    ExecutionChange,
    ExecutionState,
    apply_change,
)
from flota.fleet.inferences import awaits_silence, conclude_from_silence
from flota.fleet.job_executions import end_of_time, is_job
from flota.fleet.rollouts import OPEN_ROLLOUT_STATES, Rollout, RolloutPolicy, RolloutState, Wave, WaveState
from flota.fleet.shipments import rests_until


@dataclass(frozen=True, slots=True)
class OpenWave:
    """Make a QUEUED execution for each device of the wave that is still accepted."""

    number: int


@dataclass(frozen=True, slots=True)
class EndWave:
    """Record how the wave ended: SUCCEEDED or FAILED."""

    number: int
    state: WaveState


@dataclass(frozen=True, slots=True)
class SetRolloutState:
    """Put the rollout into `state`; the store cancels what is queued if that stops it."""

    state: RolloutState
    reason: str


@dataclass(frozen=True, slots=True)
class ChangeExecution:
    """Change one execution, provided that it is still at `expected_version`."""

    execution_id: int
    expected_version: int
    change: ExecutionChange


Effect = OpenWave | EndWave | SetRolloutState | ChangeExecution


def decide(
    rollout: Rollout,
    executions: Sequence[Execution],
    *,
    now: datetime,
    last_seen: Mapping[int, datetime],
    release_expires_at: datetime | None = None,
    watching_since: datetime | None = None,
) -> list[Effect]:
    """Return what to do now, in order; nothing if there is nothing to do.

    `watching_since` is when the asking process began: silence counts from then on.

    `executions` must hold the rollout's IN_PROGRESS and unsuccessful ones; how many are QUEUED or SUCCEEDED is read
    from the waves' counts. `last_seen` is by device id; a device that is missing was never heard.
    """
    conclusions = _conclusions(executions, now=now, watching_since=watching_since or rollout.created_at)
    if conclusions:
        return list(conclusions)  # the waves' counts are those from before
    time_outs = _time_outs(rollout.policy, executions, now=now, last_seen=last_seen)
    effects: list[Effect] = list(time_outs)
    if rollout.state not in OPEN_ROLLOUT_STATES:
        return effects
    changes = {effect.execution_id: effect for effect in time_outs}
    present = [_after(execution, changes.get(execution.id), now=now) for execution in executions]

    stop = _reason_to_abort(rollout, present, now=now, release_expires_at=release_expires_at)
    if stop:
        return [*effects, SetRolloutState(RolloutState.ABORTED, stop)]
    return [*effects, *_advance(rollout, present)]


def change_on_leaving(execution: Execution) -> ExecutionChange | None:
    """Return what becomes of an open execution whose device a continuous rollout selects no more; None: nothing new.

    What is queued is REMOVED, as is what AWS IoT Jobs is at work on. Any other device at work is asked to stop.
    """
    message = "the device is no longer selected"
    if execution.state is ExecutionState.QUEUED or is_job(execution):
        return ExecutionChange(ExecutionState.REMOVED, message=message)
    if execution.cancel_requested_at is not None:
        return None
    return ExecutionChange(execution.state, message=message, request_cancel=True)


def counts_as_failure(execution: Execution, policy: RolloutPolicy) -> bool:
    """Whether the execution counts towards `abort_after_failures`.

    An inferred outcome counts only if the policy says so. A silent device's TIMED_OUT has no basis and always counts:
    it is a fact about our own limit, not a guess about the device.
    """
    return execution.state in UNSUCCESSFUL_STATES and (policy.count_inferred or execution.basis is not Basis.INFERRED)


def _conclusions(executions: Sequence[Execution], *, now: datetime, watching_since: datetime) -> list[ChangeExecution]:
    ends = ((one, conclude_from_silence(one, since=watching_since, now=now)) for one in executions)
    return [ChangeExecution(one.id, one.version, end) for one, end in ends if end is not None]


def _time_outs(
    policy: RolloutPolicy, executions: Sequence[Execution], *, now: datetime, last_seen: Mapping[int, datetime]
) -> list[ChangeExecution]:
    limit = timedelta(seconds=policy.silence_limit_s)
    effects = []
    for execution in executions:
        end = end_of_time(execution, now=now)
        if end is not None:
            effects.append(ChangeExecution(execution.id, execution.version, end))
            continue
        if execution.state is not ExecutionState.IN_PROGRESS or awaits_silence(execution):
            continue
        last_sign = max(
            execution.changed_at,
            last_seen.get(execution.device_id, execution.changed_at),
            rests_until(execution) or execution.changed_at,
        )
        if now - last_sign >= limit:
            effects.append(ChangeExecution(execution.id, execution.version, _time_out(execution, policy)))
    return effects


def _time_out(execution: Execution, policy: RolloutPolicy) -> ExecutionChange:
    silence = f"no sign of the device for {policy.silence_limit_s} s"
    if execution.cancel_requested_at is not None:
        return ExecutionChange(ExecutionState.CANCELED, message=f"{silence} after it was asked to stop")
    return ExecutionChange(ExecutionState.TIMED_OUT, details={"reason": silence}, message=silence)


def _after(execution: Execution, effect: ChangeExecution | None, *, now: datetime) -> Execution:
    if effect is None:
        return execution
    return apply_change(execution, effect.expected_version, effect.change, now=now)


def _reason_to_abort(
    rollout: Rollout, executions: Sequence[Execution], *, now: datetime, release_expires_at: datetime | None
) -> str:
    failed = sorted(execution.device_name for execution in executions if counts_as_failure(execution, rollout.policy))
    limit = rollout.policy.abort_after_failures
    if len(failed) >= limit:
        return f"{len(failed)} failed, and the limit is {limit}: {_some(failed)}"
    if release_expires_at is not None and now >= release_expires_at and _has_to_start(rollout):
        return f"the release expired at {release_expires_at.isoformat(timespec='seconds')}"
    return ""


NAMES_SHOWN = 5
"""Device names in a reason; the executions have them all."""


def _some(names: Sequence[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _has_to_start(rollout: Rollout) -> bool:
    queued = any(wave.state is WaveState.WAITING or wave.counts.get(ExecutionState.QUEUED, 0) for wave in rollout.waves)
    return queued or rollout.policy.continuous


def _advance(rollout: Rollout, executions: Sequence[Execution]) -> list[Effect]:
    effects: list[Effect] = []
    ended_badly = None
    for wave in rollout.waves:
        if wave.state is not WaveState.OPEN:
            continue
        if _is_at_work(wave, executions) or (rollout.policy.continuous and wave.number == len(rollout.waves)):
            return effects
        succeeded = wave.counts.get(ExecutionState.SUCCEEDED, 0) > 0
        effects.append(EndWave(wave.number, WaveState.SUCCEEDED if succeeded else WaveState.FAILED))
        ended_badly = None if succeeded else wave.number
    waiting = next((wave.number for wave in rollout.waves if wave.state is WaveState.WAITING), None)
    if waiting is None:
        effects.append(_ending(rollout, executions))
    elif ended_badly is not None:
        if rollout.state is RolloutState.ACTIVE:
            reason = f"wave {ended_badly} ended without a single success"
            effects.append(SetRolloutState(RolloutState.PAUSED, reason))
    elif rollout.state is RolloutState.ACTIVE:
        effects.append(OpenWave(waiting))
    return effects


def _is_at_work(wave: Wave, executions: Sequence[Execution]) -> bool:
    return wave.counts.get(ExecutionState.QUEUED, 0) > 0 or any(
        execution.wave == wave.number and execution.state is ExecutionState.IN_PROGRESS for execution in executions
    )


def _ending(rollout: Rollout, executions: Sequence[Execution]) -> SetRolloutState:
    succeeded = sum(wave.counts.get(ExecutionState.SUCCEEDED, 0) for wave in rollout.waves)
    failed = sum(execution.state in UNSUCCESSFUL_STATES for execution in executions)
    if failed:
        return SetRolloutState(RolloutState.FINISHED_WITH_FAILURES, f"{succeeded} succeeded, {failed} failed")
    if not succeeded:
        return SetRolloutState(RolloutState.FINISHED_WITH_FAILURES, "no device was updated")
    return SetRolloutState(RolloutState.SUCCEEDED, f"{succeeded} succeeded")
