"""When devices come back: near their interval, spread, and steady for an hour."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from flota.fleet.poll_times import JITTER_PERCENT_MAX, JITTER_PERIOD_S, jittered

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
intervals = st.integers(1, 86_399)
moments = st.integers(0, 10**8).map(lambda seconds: NOW + timedelta(seconds=seconds))


@given(intervals, st.integers(1, 2**31), st.integers(0, JITTER_PERCENT_MAX), moments)
def test_it_is_never_further_from_the_interval_than_said(
    interval_s: int, device_id: int, percent: int, now: datetime
) -> None:
    seconds, until = jittered(interval_s, device_id=device_id, percent=percent, now=now)
    assert abs(seconds - interval_s) <= interval_s * percent / 100
    assert seconds >= 1
    assert until is None or now < until <= now + timedelta(seconds=JITTER_PERIOD_S)


@given(intervals, st.integers(1, 2**31), moments)
def test_it_stays_the_same_until_the_moment_that_is_told(interval_s: int, device_id: int, now: datetime) -> None:
    seconds, until = jittered(interval_s, device_id=device_id, percent=10, now=now)
    last = now if until is None else until - timedelta(microseconds=1)
    assert jittered(interval_s, device_id=device_id, percent=10, now=last) == (seconds, until)


def test_without_jitter_it_is_the_interval_for_good() -> None:
    assert jittered(300, device_id=1, percent=0, now=NOW) == (300, None)


def test_devices_spread_over_the_whole_range_and_keep_the_interval_on_average() -> None:
    told = [jittered(300, device_id=number, percent=10, now=NOW)[0] for number in range(5000)]
    assert set(told) == set(range(270, 331))
    assert abs(sum(told) / len(told) - 300) < 1


def test_the_hours_of_devices_begin_at_different_minutes() -> None:
    ends = {jittered(300, device_id=number, percent=10, now=NOW)[1] for number in range(1000)}
    assert len(ends) > 500
