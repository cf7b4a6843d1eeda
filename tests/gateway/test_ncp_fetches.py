"""How often an NCP tries to fetch the file of one update."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from flota.gateway.ncp_fetches import FETCH_PERIOD, FETCHES, FailedFetches, after_failure, counted

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def failures(count: int, *, began: datetime = NOW) -> FailedFetches:
    kept = None
    for number in range(count):
        kept = after_failure(kept, 7, now=began + timedelta(minutes=number))
    assert kept is not None
    return kept


def test_r12_after_three_failures_no_further_download_is_made_in_the_period() -> None:
    assert not failures(2).is_at_limit
    assert failures(3).is_at_limit
    assert counted(failures(3), 7, now=NOW + FETCH_PERIOD - timedelta(seconds=1)) == failures(3)
    assert failures(3).words == "download limit reached: 3 downloads failed; the next one after 2026-11-22 12:00 UTC"


def test_r12_after_the_period_they_are_counted_anew() -> None:
    later = NOW + FETCH_PERIOD
    assert counted(failures(3), 7, now=later) is None
    assert after_failure(failures(3), 7, now=later).count == 1


def test_another_update_has_a_count_of_its_own() -> None:
    assert counted(failures(3), 8, now=NOW) is None
    assert after_failure(failures(3), 8, now=NOW) == FailedFetches(8, 1, int(NOW.timestamp()))


@given(st.integers(-(2**31), 2**33), st.integers(0, 2**33))
def test_nobody_waits_longer_than_one_period_however_the_clock_is_set(set_to: int, first_at: int) -> None:
    kept = FailedFetches(7, FETCHES, first_at)
    now = datetime.fromtimestamp(set_to, UTC)
    if counted(kept, 7, now=now) is not None:
        assert timedelta(0) < kept.again_at - now <= FETCH_PERIOD
