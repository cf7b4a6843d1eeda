"""Things that restart for ever are told of: by their connections, since they say nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.server.api.aws_iot.restart_watch import CONNECTIONS_MIN, TOLD_AGAIN_AFTER, WITHIN, RestartWatch
from tests.server.aws_iot_bench import Bench, a_bench, job_id

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ACTION = "device.restarts-again-and-again"


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_the_eighth_connection_within_ten_minutes_is_told_once_an_hour() -> None:
    watch = RestartWatch()
    told = [watch.connected(1, now=at(20 * number)) for number in range(CONNECTIONS_MIN + 5)]
    assert [number for number, span in enumerate(told) if span is not None] == [CONNECTIONS_MIN - 1]
    assert told[CONNECTIONS_MIN - 1] == timedelta(seconds=140)
    later = TOLD_AGAIN_AFTER.total_seconds()
    again = [watch.connected(1, now=at(later + 20 * number)) for number in range(CONNECTIONS_MIN + 5)]
    assert sum(span is not None for span in again) == 1


def test_connections_that_are_far_apart_or_come_to_work_are_nothing() -> None:
    watch = RestartWatch()
    for number in range(50):
        assert watch.connected(1, now=at(number * (WITHIN.total_seconds() / 6))) is None
        assert watch.connected(2, now=at(number * 100)) is None
        watch.at_work(2)
    watch.at_work(3)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 4000)), max_size=60))
def test_what_is_remembered_is_as_many_things_as_were_heard_lately(connections: list[tuple[int, float]]) -> None:
    watch, now = RestartWatch(), 0.0
    heard: dict[int, float] = {}
    for device, after in connections:
        now += after
        heard[device] = now
        span = watch.connected(device, now=at(now))
        assert span is None or span <= WITHIN
        assert len(watch) <= sum(now - last <= TOLD_AGAIN_AFTER.total_seconds() + 1 for last in heard.values())


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with a_bench(tmp_path) as made:
        yield made


async def restart(bench: Bench, times: int) -> None:
    """Connect, ask for the job and be gone without a word, as the agent does that finds its platform pending."""
    for _ in range(times):
        thing = await bench.connect()
        await thing.accepted("$next/get")
        thing.link.abort()
        bench.fleet.clock.advance(20)


async def test_a_thing_that_connects_and_never_comes_to_work_stands_in_the_audit_trail(bench: Bench) -> None:
    pump = await bench.fleet.add_device("pump-1")
    await bench.roll_out(pump)
    await restart(bench, CONNECTIONS_MIN + 2)
    assert await bench.fleet.audited(ACTION) == [{"connections": 8, "within_s": 140, "open_jobs": 1}]


async def test_a_thing_that_reports_in_between_does_not(bench: Bench) -> None:
    pump = await bench.fleet.add_device("pump-1")
    await bench.roll_out(pump)
    await restart(bench, CONNECTIONS_MIN - 1)
    thing = await bench.connect()
    assert len(await bench.fleet.audited(ACTION)) == 1, "the eighth"
    await thing.accepted(f"{job_id(bench)}/update", {"status": "IN_PROGRESS"})
    bench.fleet.clock.advance(7200)
    await restart(bench, CONNECTIONS_MIN - 1)
    assert len(await bench.fleet.audited(ACTION)) == 1
