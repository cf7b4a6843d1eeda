"""How often one address may connect."""

from __future__ import annotations

from flota.protocols.mqtt.connect_rates import ConnectRates


def test_a_burst_then_the_rate() -> None:
    rates = ConnectRates(per_s=2, burst=3)
    assert [rates.take("a", now=0) for _ in range(4)] == [True, True, True, False]
    assert rates.take("b", now=0)
    assert [rates.take("a", now=1) for _ in range(3)] == [True, True, False]
    assert [rates.take("a", now=1000) for _ in range(4)] == [True, True, True, False]


def test_memory_is_bounded_and_the_one_used_longest_ago_gives_way() -> None:
    rates = ConnectRates(per_s=1, burst=1, addresses_max=2)
    assert rates.take("a", now=0)
    assert rates.take("b", now=0)
    assert rates.take("c", now=0)
    assert len(rates._buckets) == 2
    assert not rates.take("c", now=0)
    assert rates.take("a", now=0), "its bucket is a new one"


def test_a_clock_that_goes_back_gives_nothing() -> None:
    rates = ConnectRates(per_s=1, burst=1)
    assert rates.take("a", now=100)
    assert not rates.take("a", now=0)
