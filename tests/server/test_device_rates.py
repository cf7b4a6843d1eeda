"""How often one device may ask."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flota.errors import TooManyRequests
from flota.server.device_rates import DeviceRates

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_a_burst_is_allowed_then_the_rate_and_the_wait_is_told() -> None:
    rates = DeviceRates(burst=3, refill_per_s=0.5)
    for _ in range(3):
        rates.take("a", now=NOW)
    with pytest.raises(TooManyRequests) as caught:
        rates.take("a", now=NOW)
    assert caught.value.retry_after_s == 2
    rates.take("a", now=NOW + timedelta(seconds=2))
    rates.take("b", now=NOW)


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    rates = DeviceRates(burst=1, refill_per_s=1)
    rates.take("a", now=NOW)
    with pytest.raises(TooManyRequests):
        rates.take("a", now=NOW - timedelta(hours=1))


def test_memory_is_bounded_and_the_first_counted_gives_way() -> None:
    rates = DeviceRates(burst=1, refill_per_s=0.001, peers_max=2)
    for key in ("a", "b", "c"):
        rates.take(key, now=NOW)
    with pytest.raises(TooManyRequests):
        rates.take("c", now=NOW)
    rates.take("a", now=NOW)


def test_when_there_are_too_many_those_that_used_up_nothing_go_first() -> None:
    rates = DeviceRates(burst=1, refill_per_s=1, peers_max=2)
    rates.take("busy", now=NOW)
    rates.take("busy", now=NOW + timedelta(seconds=1))
    rates.take("idle", now=NOW)
    rates.take("new", now=NOW + timedelta(seconds=1.5))
    with pytest.raises(TooManyRequests):
        rates.take("busy", now=NOW + timedelta(seconds=1.5))
    rates.take("idle", now=NOW + timedelta(seconds=1.5))
