"""What is concluded about devices that say nothing: from requests, from repeated requests, from silence."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import Conflict
from flota.fleet.executions import Basis, Execution, ExecutionState, apply_change
from flota.fleet.inferences import (
    FLAG_FROM_GETS,
    INFERENCES,
    QUICK_REPEATS_MAX,
    Attempt,
    Inference,
    Sign,
    SilentDelivery,
    awaits_silence,
    conclude_from_silence,
    confirm_outcome,
    flag_after_end,
    judge_request,
    latest_attempt,
    silent_delivery,
)
from flota.fleet.rollout_decisions import ChangeExecution, SetRolloutState, decide
from flota.fleet.rollouts import Rollout, RolloutPolicy, RolloutState, Wave, WaveState

S = ExecutionState
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def execution(seen: SilentDelivery | None = None, state: S = S.IN_PROGRESS, **more: object) -> Execution:
    details = {} if seen is None else {name: value for name, value in seen.as_details().items() if value is not None}
    fields = {"details": details, "started_at": START, "created_at": START, "changed_at": START} | more
    return Execution(1, 1, 1, "pump-1", 1, 1, state, 3, **fields)  # type: ignore[arg-type]


def whole(began: float = 0, ended: float = 1, **more: int) -> SilentDelivery:
    given = SilentDelivery(gets=1, state="handed-over", began_at=at(began), ended_at=at(ended))
    return replace(given, **more)  # type: ignore[arg-type]


def test_every_sign_has_a_meaning_for_every_attempt() -> None:
    assert set(INFERENCES) == {(sign, attempt) for sign in Sign for attempt in Attempt}
    assert all(INFERENCES[Sign.ASKED, one] not in (Inference.SUCCEED, Inference.WAIT) for one in Attempt)
    assert all(INFERENCES[Sign.QUIET, one] in (Inference.SUCCEED, Inference.WAIT) for one in Attempt)


@pytest.mark.parametrize(
    ("seen", "now", "attempt"),
    [
        (SilentDelivery(), 5, Attempt.NONE),
        (SilentDelivery(1, state="under-way", began_at=at(0)), 5, Attempt.UNDER_WAY),
        (SilentDelivery(1, state="under-way", began_at=at(-50)), 5, Attempt.CUT),
        (SilentDelivery(1, state="interrupted", began_at=at(0)), 5, Attempt.CUT),
        (whole(), 5, Attempt.QUICK),
        (whole(), 59.9, Attempt.QUICK),
        (whole(), 60, Attempt.WHOLE),
        (whole(began=-30, ended=-10), 5, Attempt.CUT),
    ],
)
def test_how_far_the_latest_delivery_came(seen: SilentDelivery, now: float, attempt: Attempt) -> None:
    assert latest_attempt(seen, since=at(-20), now=at(now)) is attempt


def test_the_first_request_is_delivered_and_counted() -> None:
    verdict = judge_request(execution(state=S.QUEUED), attempts=1, since=START, now=at(3))
    assert verdict.end is None
    assert (verdict.delivery.gets, verdict.delivery.quick_failures, verdict.delivery.whole_failures) == (1, 0, 0)


def test_a_request_after_a_whole_delivery_fails_the_execution_when_the_attempts_are_used_up() -> None:
    verdict = judge_request(execution(whole()), attempts=1, since=START, now=at(100))
    assert verdict.end is not None
    assert (verdict.end.state, verdict.end.basis) == (S.FAILED, Basis.INFERRED)
    assert "verification failed" in verdict.end.message
    assert verdict.end.details["failed-whole"] == "1"
    again = judge_request(execution(whole()), attempts=2, since=START, now=at(100))
    assert (again.end, again.delivery.whole_failures) == (None, 1)


def test_a_device_that_comes_back_within_a_minute_gets_another_twelve_tries_and_is_flagged_on_the_way() -> None:
    seen, now = whole(), 0.0
    flags = []
    for _ in range(100):
        now += 10
        verdict = judge_request(execution(seen), attempts=1, since=START, now=at(now))
        if verdict.end is not None:
            break
        flags.append(verdict.delivery.flag)
        seen = replace(verdict.delivery, state="handed-over", began_at=at(now), ended_at=at(now + 1))
    assert len(flags) == QUICK_REPEATS_MAX
    assert verdict.end is not None
    assert verdict.end.state is S.FAILED
    assert "14 times" in verdict.end.message
    assert flags[0] is None
    assert flags[FLAG_FROM_GETS - 2] == "asks again and again: 3 requests"


def test_an_interrupted_delivery_costs_no_attempt_and_neither_does_one_of_a_server_that_was_restarted() -> None:
    cut = SilentDelivery(1, state="interrupted", began_at=at(0))
    for seen, since in ((cut, START), (whole(), at(60))):
        verdict = judge_request(execution(seen), attempts=1, since=since, now=at(200))
        assert (verdict.end, verdict.delivery.whole_failures, verdict.delivery.quick_failures) == (None, 0, 1)


def test_a_device_that_was_to_stop_and_asks_again_is_canceled() -> None:
    asked = execution(whole(), cancel_requested_at=at(2))
    verdict = judge_request(asked, attempts=1, since=START, now=at(100))
    assert verdict.end is not None
    assert (verdict.end.state, verdict.end.basis) == (S.CANCELED, Basis.OPERATOR)


def test_silence_after_a_whole_delivery_is_success_and_says_that_it_is_inferred() -> None:
    waiting = execution(whole(ended=1))
    assert conclude_from_silence(waiting, since=START, now=at(180.9)) is None
    end = conclude_from_silence(waiting, since=START, now=at(181))
    assert end is not None
    assert (end.state, end.basis) == (S.SUCCEEDED, Basis.INFERRED)
    assert apply_change(waiting, 3, end, now=at(181)).basis is Basis.INFERRED


def test_a_short_quiet_time_counts_too() -> None:
    assert conclude_from_silence(execution(replace(whole(), quiet_s=2.5)), since=START, now=at(3.5)) is not None


def test_silence_is_counted_from_the_start_of_the_server_because_nobody_could_ask_before() -> None:
    waiting = execution(whole(began=-100, ended=-90))
    assert conclude_from_silence(waiting, since=START, now=at(179)) is None
    assert conclude_from_silence(waiting, since=START, now=at(180)) is not None


@pytest.mark.parametrize(
    "waiting",
    [
        execution(SilentDelivery(1, state="interrupted", began_at=at(0))),
        execution(SilentDelivery(1, state="under-way", began_at=at(0))),
        execution(SilentDelivery()),
        execution(None),
        execution(whole(), state=S.SUCCEEDED),
        execution(None, details={"delivery": "handed-over", "delivered-at": at(0).isoformat()}),
    ],
)
def test_silence_of_any_other_execution_means_nothing(waiting: Execution) -> None:
    assert conclude_from_silence(waiting, since=START, now=at(10_000)) is None


_numbers = st.integers(0, 10**6)
_moments = st.none() | st.integers(0, 10**9).map(at)


@given(
    st.builds(
        SilentDelivery,
        gets=_numbers,
        quick_failures=_numbers,
        whole_failures=_numbers,
        state=st.sampled_from([None, "under-way", "interrupted", "handed-over"]),
        began_at=_moments,
        ended_at=_moments,
        quiet_s=st.integers(1, 86400).map(float),
    )
)
def test_details_hold_everything_that_was_seen(seen: SilentDelivery) -> None:
    assert silent_delivery({name: value for name, value in seen.as_details().items() if value is not None}) == seen


@given(st.dictionaries(st.sampled_from([*SilentDelivery(gets=5).as_details()]), st.text(max_size=20)))
def test_details_that_cannot_be_read_count_as_absent(details: dict[str, str]) -> None:
    changed = execution(None, details=details)
    judge_request(changed, attempts=1, since=START, now=at(1))
    conclude_from_silence(changed, since=START, now=at(1))


# evidence, flags


def concluded(state: S = S.SUCCEEDED, basis: Basis | None = Basis.INFERRED) -> Execution:
    return execution(whole(), state=state, basis=basis, finished_at=at(200))


def test_a_device_that_was_online_after_the_conclusion_was_right_and_the_basis_becomes_reported() -> None:
    confirmed, text = confirm_outcome(concluded(), last_online_at=at(201), source="viam", now=at(300))
    assert (confirmed.state, confirmed.basis, confirmed.version) == (S.SUCCEEDED, Basis.REPORTED, 4)
    assert confirmed.details["evidence"].startswith("viam: online at 2026-03-01T12:03:21")
    assert "viam" in text


@pytest.mark.parametrize(
    ("one", "online"),
    [
        (concluded(), 200),
        (concluded(), 100),
        (concluded(basis=Basis.REPORTED), 500),
        (concluded(S.FAILED), 500),
        (execution(whole()), 500),
    ],
)
def test_other_evidence_changes_nothing(one: Execution, online: float) -> None:
    with pytest.raises(Conflict):
        confirm_outcome(one, last_online_at=at(online), source="viam", now=at(600))


def test_a_device_that_still_asks_after_its_end_is_marked_once() -> None:
    marked = flag_after_end(concluded(), now=at(400))
    assert marked is not None
    after, text = marked
    assert "does not run the image" in text
    assert after.details["flag"] == text
    assert (after.state, after.basis, after.version) == (S.SUCCEEDED, Basis.INFERRED, 4)
    assert flag_after_end(after, now=at(410)) is None
    assert flag_after_end(execution(whole()), now=at(410)) is None


# rollouts


def rollout(policy: RolloutPolicy, *executions: Execution) -> Rollout:
    counts = {state: sum(one.state is state for one in executions) for state in S}
    wave = Wave(1, WaveState.OPEN, len(executions), counts)
    return Rollout(1, "r", 1, "esp32", "2", RolloutState.ACTIVE, policy, (wave,), "all", START, START)


def test_the_engine_concludes_before_it_ends_the_wave_whose_counts_are_still_those_from_before() -> None:
    waiting = execution(whole())
    effects = decide(rollout(RolloutPolicy(), waiting), [waiting], now=at(300), last_seen={}, watching_since=START)
    assert [type(one) for one in effects] == [ChangeExecution]
    assert isinstance(effects[0], ChangeExecution)
    assert effects[0].change.state is S.SUCCEEDED


def test_a_device_whose_silence_is_awaited_is_not_timed_out_by_a_shorter_limit() -> None:
    waiting = execution(whole())
    assert awaits_silence(waiting)
    policy = RolloutPolicy(silence_limit_s=10)
    assert decide(rollout(policy, waiting), [waiting], now=at(100), last_seen={}, watching_since=START) == []


@pytest.mark.parametrize(("count_inferred", "aborts"), [(False, False), (True, True)])
def test_inferred_failures_count_towards_the_threshold_only_when_told_to(count_inferred: bool, aborts: bool) -> None:
    failed = execution(whole(), state=S.FAILED, basis=Basis.INFERRED, finished_at=at(5))
    running = replace(execution(None), id=2)
    policy = RolloutPolicy(abort_after_failures=1, count_inferred=count_inferred)
    effects = decide(
        rollout(policy, failed, running), [failed, running], now=at(10), last_seen={}, watching_since=START
    )
    assert any(isinstance(one, SetRolloutState) and one.state is RolloutState.ABORTED for one in effects) is aborts
