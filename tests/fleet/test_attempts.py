"""How often a device may ask for its file, and when it is counted anew."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.fleet.attempts import AttemptLimit, Attempts, attempts_in, limit_of
from flota.fleet.executions import Execution, ExecutionState, merge_details
from flota.fleet.firmware_reports import HANDED_OVER, INTERRUPTED, Firmware, judge_report
from flota.fleet.rollout_decisions import decide
from flota.fleet.rollouts import Rollout, RolloutPolicy, RolloutState, Wave, WaveState
from flota.fleet.shipments import (
    NO_CONDITIONS,
    RETRY_DETAIL,
    STATUS_DETAIL,
    DeviceStatus,
    ShipmentConditions,
    device_status,
    rests_until,
)

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
LIMIT = AttemptLimit(3, DAY)
OLD, NEW = Firmware("1.2.3"), Firmware("1.2.4")


def after(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def asked(*hours: float, limit: AttemptLimit = LIMIT) -> dict[str, str]:
    """Return the details after requests at these hours."""
    details: dict[str, str] = {}
    for hour in hours:
        details = merge_details(details, attempts_in(details).request(limit, now=after(hour)))
    return details


def an_execution(details: dict[str, str], state: ExecutionState = ExecutionState.IN_PROGRESS) -> Execution:
    return Execution(7, 1, 2, "mill-1", 3, 1, state, 4, START, START, details=details)


@pytest.mark.parametrize(
    ("requests", "now", "used"),
    [((), 0, 0), ((0,), 1, 1), ((0, 1, 2), 23.9, 3), ((0, 1, 2), 24, 0), ((0, 20, 25), 26, 1), ((0, 20, 25), 49, 0)],
)
def test_a_round_begins_with_its_first_request_and_lasts_for_the_period(
    requests: tuple[float, ...], now: float, used: int
) -> None:
    assert attempts_in(asked(*requests)).used(LIMIT, now=after(now)) == used


def test_without_a_period_requests_count_for_ever() -> None:
    limit = AttemptLimit(3)
    attempts = attempts_in(asked(0, 1, 500, limit=limit))
    assert (attempts.used(limit, now=after(9999)), attempts.round_ends_at(limit)) == (3, None)
    assert attempts.rest(limit, now=after(9999)) is None, "nobody rests who is never asked again"


def test_who_has_asked_as_often_as_it_may_rests_until_the_round_is_over() -> None:
    attempts = attempts_in(asked(0, 1, 2))
    assert attempts.rest(LIMIT, now=after(3)) == (
        {STATUS_DETAIL: DeviceStatus.LIMIT_REACHED, RETRY_DETAIL: after(24).isoformat()},
        after(24),
    )
    assert attempts_in(asked(0, 1)).rest(LIMIT, now=after(3)) is None
    assert attempts.rest(LIMIT, now=after(24)) is None


@pytest.mark.parametrize(
    "details",
    [
        {"requests": "x", "round-began-at": "y", "round-base": "z", "retry-at": "w"},
        {"requests": "-1", "round-base": "1e3", "round-began-at": "2026-03-01T12:00:00", "retry-at": ""},
        {"requests": "9" * 40},
    ],
)
def test_details_that_cannot_be_read_count_as_absent(details: dict[str, str]) -> None:
    assert attempts_in(details) == Attempts()


def test_a_base_above_all_requests_leaves_none_below_zero() -> None:
    told = attempts_in({"requests": "2", "round-base": "5", "round-began-at": START.isoformat()})
    assert told.used(LIMIT, now=after(1)) == 0


@given(
    st.lists(st.integers(0, 400), max_size=30).map(sorted),
    st.integers(1, 5),
    st.integers(1, 60),
)
def test_never_more_requests_than_the_limit_are_granted_within_one_round(
    hours: list[int], count: int, period_hours: int
) -> None:
    limit = AttemptLimit(count, timedelta(hours=period_hours))
    details: dict[str, str] = {}
    granted: dict[datetime, int] = {}
    for hour in hours:
        attempts = attempts_in(details)
        if attempts.used(limit, now=after(hour)) < count:
            details = merge_details(details, attempts.request(limit, now=after(hour)))
            began = attempts_in(details).round_began_at
            assert began is not None
            assert began <= after(hour) < began + timedelta(hours=period_hours)
            granted[began] = granted.get(began, 0) + 1
    assert all(number <= count for number in granted.values())
    rounds = sorted(granted)
    assert all(later - earlier >= timedelta(hours=period_hours) for earlier, later in itertools.pairwise(rounds))
    assert attempts_in(details).requests == sum(granted.values())


def test_r12_at_the_limit_a_device_rests_and_is_offered_the_file_once_its_period_is_over() -> None:
    conditions = ShipmentConditions(attempts=3, attempt_period_s=86_400)
    told = {**asked(0, 1, 2), "told-at": START.isoformat(), "delivery": INTERRUPTED}
    limit = limit_of(conditions, 3)

    def judge(details: dict[str, str], hours: float) -> object:
        return judge_report(
            an_execution(details),
            OLD,
            NEW,
            conditions=conditions,
            limit=limit,
            reported_at=START,
            since=START,
            now=after(hours),
        )

    resting = judge(told, 3)
    assert resting.end is None  # type: ignore[attr-defined]
    assert resting.look_at == after(24)  # type: ignore[attr-defined]
    noted = merge_details(told, resting.note.details)  # type: ignore[attr-defined]
    assert device_status(an_execution(noted)) is DeviceStatus.LIMIT_REACHED
    again = judge(noted, 4)
    assert (again.note, again.look_at, again.offer) == (None, after(24), False)  # type: ignore[attr-defined]
    due = judge(noted, 24)
    assert (due.offer, due.is_anew) == (True, True), "although it has reported nothing since"  # type: ignore[attr-defined]


def test_r12_without_a_period_the_limit_is_the_end() -> None:
    limit = limit_of(NO_CONDITIONS, 3)
    details = {**asked(0, 1, 2, limit=limit), "told-at": START.isoformat(), "delivery": HANDED_OVER}
    judgement = judge_report(
        an_execution({**details, "delivered-at": after(2).isoformat()}),
        OLD,
        NEW,
        conditions=NO_CONDITIONS,
        limit=limit,
        reported_at=after(3),
        since=START,
        now=after(3),
    )
    assert judgement.end is not None
    assert judgement.end.state is ExecutionState.FAILED
    assert judgement.end.details[STATUS_DETAIL] == DeviceStatus.LIMIT_REACHED


def test_who_rests_is_not_silent_and_is_once_it_might_ask_again() -> None:
    policy = RolloutPolicy(silence_limit_s=3600)
    wave = Wave(1, WaveState.OPEN, 1, {ExecutionState.IN_PROGRESS: 1})
    rollout = Rollout(3, "spring", 1, "mill", "1.2.4", RolloutState.ACTIVE, policy, (wave,), "", START, START)
    resting = an_execution({RETRY_DETAIL: after(24).isoformat()})
    assert rests_until(resting) == after(24)
    assert rests_until(an_execution({RETRY_DETAIL: after(24).isoformat()}, ExecutionState.FAILED)) is None
    assert decide(rollout, [resting], now=after(24.9), last_seen={}) == []
    (ended,) = decide(rollout, [resting], now=after(25), last_seen={})[:1]
    assert ended.change.state is ExecutionState.TIMED_OUT  # type: ignore[union-attr]
