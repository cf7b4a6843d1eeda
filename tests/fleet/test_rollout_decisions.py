from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flota.fleet.executions import (
    FINAL_STATES,
    UNSUCCESSFUL_STATES,
    Basis,
    Execution,
    ExecutionChange,
    ExecutionState,
    apply_change,
)
from flota.fleet.rollout_decisions import ChangeExecution, EndWave, OpenWave, SetRolloutState, counts_as_failure, decide
from flota.fleet.rollouts import (
    OPEN_ROLLOUT_STATES,
    ROLLOUT_TRANSITIONS,
    STOPPED_ROLLOUT_STATES,
    WAVE_TRANSITIONS,
    Rollout,
    RolloutPolicy,
    RolloutState,
    Wave,
    WaveState,
)

S, R, W = ExecutionState, RolloutState, WaveState
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def an_execution(number: int, state: S, *, wave: int = 1, basis: Basis | None = None) -> Execution:
    return Execution(number, 1, number, f"pump-{number}", 1, wave, state, 2, NOW, NOW, basis=basis)


def a_rollout(*waves: Wave, state: R = R.ACTIVE, policy: RolloutPolicy | None = None) -> Rollout:
    return Rollout(1, "spring", 1, "pump", "2.0", state, policy or RolloutPolicy(), waves, "all", NOW, NOW)


def decided(
    rollout: Rollout,
    *executions: Execution,
    seconds: float = 0,
    seen: dict[int, datetime] | None = None,
    expires_at: datetime | None = None,
) -> list[object]:
    return list(decide(rollout, executions, now=later(seconds), last_seen=seen or {}, release_expires_at=expires_at))


def test_the_first_wave_opens_at_once() -> None:
    assert decided(a_rollout(Wave(1, W.WAITING, 2), Wave(2, W.WAITING, 2))) == [OpenWave(1)]


def test_nothing_opens_while_paused() -> None:
    assert decided(a_rollout(Wave(1, W.WAITING, 2), state=R.PAUSED)) == []


@pytest.mark.parametrize("counts", [{S.QUEUED: 1, S.SUCCEEDED: 1}, {S.IN_PROGRESS: 1, S.SUCCEEDED: 1}])
def test_a_wave_is_waited_for_to_the_last_device(counts: dict[S, int]) -> None:
    working = [an_execution(1, S.IN_PROGRESS)] if S.IN_PROGRESS in counts else []
    assert decided(a_rollout(Wave(1, W.OPEN, 2, counts), Wave(2, W.WAITING, 2)), *working) == []


def test_the_next_wave_opens_when_the_last_has_succeeded() -> None:
    rollout = a_rollout(Wave(1, W.OPEN, 2, {S.SUCCEEDED: 2}), Wave(2, W.WAITING, 2))
    assert decided(rollout) == [EndWave(1, W.SUCCEEDED), OpenWave(2)]


def test_a_tolerated_failure_does_not_hold_the_next_wave_up() -> None:
    policy = RolloutPolicy(abort_after_failures=2)
    rollout = a_rollout(Wave(1, W.OPEN, 2, {S.SUCCEEDED: 1, S.FAILED: 1}), Wave(2, W.WAITING, 2), policy=policy)
    assert decided(rollout, an_execution(1, S.FAILED)) == [EndWave(1, W.SUCCEEDED), OpenWave(2)]


@pytest.mark.parametrize("counts", [{}, {S.CANCELED: 1, S.REMOVED: 1}])
def test_a_wave_without_a_success_pauses_the_rollout_until_somebody_resumes_it(counts: dict[S, int]) -> None:
    rollout = a_rollout(Wave(1, W.OPEN, 2, counts), Wave(2, W.WAITING, 2))
    assert decided(rollout) == [
        EndWave(1, W.FAILED),
        SetRolloutState(R.PAUSED, "wave 1 ended without a single success"),
    ]
    resumed = a_rollout(Wave(1, W.FAILED, 2, counts), Wave(2, W.WAITING, 2))
    assert decided(resumed) == [OpenWave(2)]


@pytest.mark.parametrize("state", sorted(UNSUCCESSFUL_STATES))
def test_the_rollout_aborts_at_the_threshold_and_not_before(state: S) -> None:
    rollout = a_rollout(Wave(1, W.OPEN, 4, {S.QUEUED: 2}), policy=RolloutPolicy(abort_after_failures=2))
    assert decided(rollout, an_execution(1, state)) == []
    [effect] = decided(rollout, an_execution(1, state), an_execution(2, state))
    assert effect == SetRolloutState(R.ABORTED, "2 failed, and the limit is 2: pump-1, pump-2")


def test_a_paused_rollout_still_aborts() -> None:
    rollout = a_rollout(Wave(1, W.OPEN, 4, {S.QUEUED: 2}), state=R.PAUSED)
    [effect] = decided(rollout, an_execution(1, S.FAILED))
    assert isinstance(effect, SetRolloutState)
    assert effect.state is R.ABORTED


def test_inferred_failures_count_only_when_told_to() -> None:
    waves = Wave(1, W.OPEN, 4, {S.QUEUED: 2})
    failed = an_execution(1, S.FAILED, basis=Basis.INFERRED)
    assert decided(a_rollout(waves), failed) == []
    [effect] = decided(a_rollout(waves, policy=RolloutPolicy(count_inferred=True)), failed)
    assert isinstance(effect, SetRolloutState)


def test_a_device_is_timed_out_when_it_was_silent_for_the_limit_and_not_before() -> None:
    policy = RolloutPolicy(silence_limit_s=60, abort_after_failures=2)
    rollout = a_rollout(Wave(1, W.OPEN, 2, {S.IN_PROGRESS: 1, S.SUCCEEDED: 1}), Wave(2, W.WAITING, 1), policy=policy)
    working = an_execution(1, S.IN_PROGRESS)
    assert decided(rollout, working, seconds=59.9) == []
    assert decided(rollout, working, seconds=100, seen={1: later(41)}) == []
    time_out, *rest = decided(rollout, working, seconds=60)
    assert isinstance(time_out, ChangeExecution)
    assert (time_out.execution_id, time_out.expected_version, time_out.change.state) == (1, 2, S.TIMED_OUT)
    assert rest == [EndWave(1, W.SUCCEEDED), OpenWave(2)]


def test_silence_counts_towards_the_threshold_although_nothing_was_reported() -> None:
    rollout = a_rollout(Wave(1, W.OPEN, 1, {S.IN_PROGRESS: 1}), policy=RolloutPolicy(silence_limit_s=60))
    _, abort = decided(rollout, an_execution(1, S.IN_PROGRESS), seconds=60)
    assert isinstance(abort, SetRolloutState)
    assert abort.state is R.ABORTED


def test_a_silent_device_that_was_asked_to_stop_is_canceled_even_after_the_rollout_ended() -> None:
    rollout = a_rollout(Wave(1, W.FAILED, 1, {S.IN_PROGRESS: 1}), state=R.ABORTED)
    stopping = replace(an_execution(1, S.IN_PROGRESS), cancel_requested_at=NOW)
    assert decided(rollout, stopping, seconds=3599) == []
    [effect] = decided(rollout, stopping, seconds=3600)
    assert isinstance(effect, ChangeExecution)
    assert effect.change.state is S.CANCELED


def test_an_expired_release_aborts_what_has_still_to_start_and_lets_the_others_finish() -> None:
    working = an_execution(1, S.IN_PROGRESS)
    for waves in (
        (Wave(1, W.OPEN, 2, {S.IN_PROGRESS: 1, S.QUEUED: 1}),),
        (Wave(1, W.OPEN, 1, {S.IN_PROGRESS: 1}), Wave(2, W.WAITING, 1)),
    ):
        assert decided(a_rollout(*waves), working, seconds=9, expires_at=later(10)) == []
        [effect] = decided(a_rollout(*waves), working, seconds=10, expires_at=later(10))
        assert effect == SetRolloutState(R.ABORTED, "the release expired at 2026-03-01T00:00:10+00:00")
    only_working = a_rollout(Wave(1, W.OPEN, 1, {S.IN_PROGRESS: 1}))
    assert decided(only_working, working, seconds=11, expires_at=later(10)) == []


@pytest.mark.parametrize(
    ("counts", "failed", "state", "reason"),
    [
        ({S.SUCCEEDED: 3}, 0, R.SUCCEEDED, "3 succeeded"),
        ({S.SUCCEEDED: 2, S.REMOVED: 1}, 0, R.SUCCEEDED, "2 succeeded"),
        ({S.SUCCEEDED: 2, S.FAILED: 1}, 1, R.FINISHED_WITH_FAILURES, "2 succeeded, 1 failed"),
        ({S.REMOVED: 3}, 0, R.FINISHED_WITH_FAILURES, "no device was updated"),
    ],
)
def test_how_a_rollout_ends(counts: dict[S, int], failed: int, state: R, reason: str) -> None:
    rollout = a_rollout(Wave(1, W.OPEN, 3, counts), policy=RolloutPolicy(abort_after_failures=5))
    effects = decided(rollout, *(an_execution(number, S.FAILED) for number in range(failed)))
    assert effects[-1] == SetRolloutState(state, reason)


class RolloutMachine(RuleBasedStateMachine):
    """A rollout in memory: random devices, an operator, a clock that also stands still, and the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.executions: dict[int, Execution] = {}
        self.seen: dict[int, datetime] = {}
        self.opened: list[int] = []

    @initialize(
        sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
        abort_after=st.integers(1, 4),
        silence=st.integers(1, 100),
        count_inferred=st.booleans(),
    )
    def begin(self, sizes: list[int], abort_after: int, silence: int, count_inferred: bool) -> None:
        self.members: dict[int, list[int]] = {}
        first = 1
        for number, size in enumerate(sizes, 1):
            self.members[number] = list(range(first, first + size))
            first += size
        self.accepted = set(range(1, first))
        self.rollout = a_rollout(
            *(Wave(number, W.WAITING, size) for number, size in enumerate(sizes, 1)),
            policy=RolloutPolicy(abort_after, silence, count_inferred=count_inferred),
        )

    def present(self) -> Rollout:
        counts: dict[int, Counter[S]] = {number: Counter() for number in self.members}
        for execution in self.executions.values():
            counts[execution.wave][execution.state] += 1
        waves = tuple(replace(wave, counts=dict(counts[wave.number])) for wave in self.rollout.waves)
        return replace(self.rollout, waves=waves)

    @rule()
    def tick(self) -> None:
        for _ in range(3 * len(self.members) + 3):
            rollout = self.present()
            judged = [e for e in self.executions.values() if e.state not in (S.QUEUED, S.SUCCEEDED)]
            effects = decide(rollout, judged, now=self.now, last_seen=self.seen)
            for effect in effects:
                self.act(effect)
            if not effects:
                return
        pytest.fail("the engine never comes to rest")

    def act(self, effect: object) -> None:
        match effect:
            case OpenWave(number):
                assert self.rollout.state is R.ACTIVE
                self.set_wave(number, W.OPEN)
                self.opened.append(number)
                for device in self.members[number]:
                    if device in self.accepted:
                        self.executions[device] = replace(
                            an_execution(device, S.QUEUED, wave=number), created_at=self.now, changed_at=self.now
                        )
            case EndWave(number, state):
                self.set_wave(number, state)
            case SetRolloutState(state, _):
                self.set_rollout(state)
            case ChangeExecution(number, version, change):
                self.executions[number] = apply_change(self.executions[number], version, change, now=self.now)

    def set_wave(self, number: int, state: W) -> None:
        waves = list(self.rollout.waves)
        assert state in WAVE_TRANSITIONS[waves[number - 1].state]
        waves[number - 1] = replace(waves[number - 1], state=state)
        self.rollout = replace(self.rollout, waves=tuple(waves))

    def set_rollout(self, state: R) -> None:
        assert state in ROLLOUT_TRANSITIONS[self.rollout.state]
        self.rollout = replace(self.rollout, state=state)
        if state in OPEN_ROLLOUT_STATES:
            return
        for wave in self.rollout.waves:
            if wave.state is W.WAITING:
                self.set_wave(wave.number, W.NOT_OPENED)
            elif wave.state is W.OPEN:
                self.set_wave(wave.number, W.FAILED)
        if state in STOPPED_ROLLOUT_STATES:
            for number, execution in self.executions.items():
                if execution.state is S.QUEUED:
                    change = ExecutionChange(S.CANCELED, basis=Basis.OPERATOR)
                elif execution.state is S.IN_PROGRESS:
                    change = ExecutionChange(S.IN_PROGRESS, request_cancel=True)
                else:
                    continue
                self.executions[number] = apply_change(execution, execution.version, change, now=self.now)

    @precondition(lambda self: any(e.is_open for e in self.executions.values()))
    @rule(data=st.data())
    def device_acts(self, data: st.DataObject) -> None:
        execution = data.draw(st.sampled_from([e for e in self.executions.values() if e.is_open]))
        if execution.state is S.QUEUED:
            if self.rollout.state is not R.ACTIVE:
                return
            to = data.draw(st.sampled_from([S.IN_PROGRESS, S.SUCCEEDED]))
        else:
            to = data.draw(st.sampled_from([S.IN_PROGRESS, S.SUCCEEDED, S.FAILED, S.REJECTED]))
        basis = data.draw(st.sampled_from([Basis.REPORTED, Basis.INFERRED]))
        change = ExecutionChange(to, basis=basis)
        self.executions[execution.id] = apply_change(execution, execution.version, change, now=self.now)
        self.seen[execution.device_id] = self.now

    @rule(seconds=st.integers(0, 60))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(data=st.data())
    def device_is_removed(self, data: st.DataObject) -> None:
        device = data.draw(st.sampled_from(sorted(self.accepted))) if self.accepted else 0
        self.accepted.discard(device)
        execution = self.executions.get(device)
        if execution is not None and execution.is_open:
            change = ExecutionChange(S.REMOVED)
            self.executions[device] = apply_change(execution, execution.version, change, now=self.now)

    @precondition(lambda self: self.rollout.state in OPEN_ROLLOUT_STATES)
    @rule(to=st.sampled_from([R.PAUSED, R.ACTIVE, R.PAUSED, R.ACTIVE, R.CANCELED]))
    def operator_acts(self, to: R) -> None:
        if to is not self.rollout.state:
            self.set_rollout(to)

    @invariant()
    def waves_open_in_order_one_at_a_time(self) -> None:
        assert self.opened == list(range(1, len(self.opened) + 1))
        assert sum(wave.state is W.OPEN for wave in self.rollout.waves) <= 1

    @invariant()
    def only_opened_waves_have_executions(self) -> None:
        assert {execution.wave for execution in self.executions.values()} <= set(self.opened)

    @invariant()
    def totals_add_up(self) -> None:
        for wave in self.present().waves:
            assert sum(wave.counts.values()) <= wave.size
            if wave.state in (W.WAITING, W.NOT_OPENED):
                assert not wave.counts

    @invariant()
    def a_later_wave_opened_only_below_the_threshold(self) -> None:
        policy = self.rollout.policy
        for number in self.opened[:-1]:
            failed = sum(e.wave <= number and counts_as_failure(e, policy) for e in self.executions.values())
            assert failed < policy.abort_after_failures

    @invariant()
    def an_ended_rollout_has_nothing_queued_and_no_open_wave(self) -> None:
        if self.rollout.state in OPEN_ROLLOUT_STATES:
            return
        assert all(e.state is not S.QUEUED for e in self.executions.values())
        assert all(wave.state not in (W.OPEN, W.WAITING) for wave in self.rollout.waves)
        if self.rollout.state is R.SUCCEEDED:
            assert not any(e.state in UNSUCCESSFUL_STATES for e in self.executions.values())

    def teardown(self) -> None:
        """Once every device has been silent for long enough, everything has ended or waits for a person."""
        if not hasattr(self, "members"):
            return
        for execution in list(self.executions.values()):
            if execution.state is S.QUEUED and self.rollout.state is R.ACTIVE:
                change = ExecutionChange(S.IN_PROGRESS)
                self.executions[execution.id] = apply_change(execution, execution.version, change, now=self.now)
        self.now += timedelta(seconds=1000)
        self.tick()
        if self.rollout.state not in OPEN_ROLLOUT_STATES:
            assert all(e.state in FINAL_STATES for e in self.executions.values())
        else:
            assert not any(e.state is S.IN_PROGRESS for e in self.executions.values())


TestRolloutMachine = RolloutMachine.TestCase
TestRolloutMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
