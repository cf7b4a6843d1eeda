"""What a shipment's attempts and time of day do to its devices: over real MQTT and HTTP, with a clock that moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from flota.fleet.executions import Execution, ExecutionState
from flota.fleet.firmware_reports import APPLY_TIME
from flota.fleet.rollouts import RolloutPolicy, RolloutState
from flota.fleet.shipments import DeviceStatus, device_status
from flota.server.agreements import agree
from flota.server.shipment_desk import stop_shipment
from tests.server.blynk_bench import NEW, OLD, PRODUCT, BlynkBench, a_blynk_bench, a_blynk_bench_over
from tests.server.update_fleet import an_update_fleet

SECRET = "mill-1-token"
DAY_S = 86_400
PATIENT = RolloutPolicy(silence_limit_s=DAY_S)
NIGHT = RolloutPolicy(maintenance="daily 00:00 6h local", silence_limit_s=DAY_S)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[BlynkBench]:
    async with a_blynk_bench(tmp_path) as bench:
        yield bench


async def status(bench: BlynkBench, execution: Execution) -> tuple[ExecutionState, DeviceStatus]:
    found = await bench.fleet.execution(execution)
    return found.state, device_status(found)


@pytest.mark.parametrize("board", ["dual-mcu-ab", "dual-mcu-ncp"])
async def test_r12_three_failing_updates_reach_the_limit_and_after_the_period_it_is_tried_again(
    tmp_path: Path, board: str
) -> None:
    async with an_update_fleet(tmp_path, public_url="http://flota.test:8080") as fleet:
        await fleet.add_type(PRODUCT, board=board)
        async with a_blynk_bench_over(fleet) as bench:
            execution = await bench.ship(await bench.device(), attempts=3, attempt_period_s=DAY_S)
            client = await bench.connect(SECRET)
            began = fleet.clock()
            for attempt in range(1, 4):
                await client.report(OLD)
                offer = await client.offer()
                assert (await bench.get(offer.url)).status_code == 200
                assert (await fleet.execution(execution)).details["requests"] == str(attempt)
                fleet.clock.advance(APPLY_TIME.total_seconds())
            refused = await bench.get(offer.url)
            assert refused.status_code == 429
            assert refused.json()["code"] == "download-limit-reached"
            left_s = DAY_S - (fleet.clock() - began).total_seconds()
            assert abs(int(refused.headers["retry-after"]) - left_s) < 5
            await client.report(OLD)
            await client.nothing()
            assert await status(bench, execution) == (ExecutionState.IN_PROGRESS, DeviceStatus.LIMIT_REACHED)
            fleet.clock.advance(int(refused.headers["retry-after"]) - 2)
            await bench.settle()
            await client.nothing()
            fleet.clock.advance(4)
            await bench.settle()
            offer = await client.offer()
            assert await status(bench, execution) == (ExecutionState.IN_PROGRESS, DeviceStatus.REQUEST_SENT)
            assert (await bench.get(offer.url)).status_code == 200
            await client.report(NEW)
            await client.nothing()
            assert await status(bench, execution) == (ExecutionState.SUCCEEDED, DeviceStatus.SUCCESS)


async def test_r12_a_device_that_was_away_when_its_period_ended_is_offered_the_file_when_it_comes(
    bench: BlynkBench,
) -> None:
    execution = await bench.ship(await bench.device(), attempts=1, attempt_period_s=DAY_S)
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await bench.get((await client.offer()).url)
    bench.fleet.clock.advance(APPLY_TIME.total_seconds())
    await client.report(OLD)
    await client.nothing()
    assert await status(bench, execution) == (ExecutionState.IN_PROGRESS, DeviceStatus.LIMIT_REACHED)
    await client.link.close()
    bench.fleet.clock.advance(DAY_S)
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await client.offer()


async def test_r12_a_request_after_the_period_counts_from_one_again_with_the_link_that_it_has(
    bench: BlynkBench,
) -> None:
    execution = await bench.ship(await bench.device(), attempts=2, attempt_period_s=3600)
    client = await bench.connect(SECRET)
    await client.report(OLD)
    url = (await client.offer()).url
    for _ in range(2):
        assert (await bench.get(url)).status_code == 200
    assert (await bench.get(url)).status_code == 429
    bench.fleet.clock.advance(3600)
    for _ in range(2):
        assert (await bench.get(url)).status_code == 200
    assert (await bench.get(url)).status_code == 429
    assert (await bench.fleet.execution(execution)).details["requests"] == "4"


async def test_a_device_at_its_limit_is_not_silent_and_the_shipment_can_still_be_stopped(bench: BlynkBench) -> None:
    execution = await bench.ship(await bench.device(), attempts=1, attempt_period_s=DAY_S)
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await bench.get((await client.offer()).url)
    bench.fleet.clock.advance(APPLY_TIME.total_seconds())
    await client.report(OLD)
    await client.nothing()
    await bench.fleet.context.sightings.flush()
    bench.fleet.clock.advance(2 * RolloutPolicy().silence_limit_s)
    await bench.settle()
    assert await status(bench, execution) == (ExecutionState.IN_PROGRESS, DeviceStatus.LIMIT_REACHED)
    await stop_shipment(bench.fleet.context, bench.fleet.scope, str(execution.rollout_id))
    await bench.settle()
    assert await status(bench, execution) == (ExecutionState.CANCELED, DeviceStatus.CANCELED)


async def test_a_device_that_has_rested_is_told_nothing_while_its_shipment_is_paused(bench: BlynkBench) -> None:
    execution = await bench.ship(await bench.device(), policy=PATIENT, attempts=1, attempt_period_s=3600)
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await bench.get((await client.offer()).url)
    bench.fleet.clock.advance(APPLY_TIME.total_seconds())
    await client.report(OLD)
    await client.nothing()
    await set_state(bench, execution, RolloutState.PAUSED)
    bench.fleet.clock.advance(3600)
    await bench.settle()
    await client.nothing()
    await set_state(bench, execution, RolloutState.ACTIVE)
    await bench.settle()
    await client.offer()


async def set_state(bench: BlynkBench, execution: Execution, state: RolloutState) -> None:
    async with bench.fleet.database.transaction() as transaction:
        await transaction.set_rollout_state(bench.fleet.scope, execution.rollout_id, state, now=bench.fleet.clock())


async def test_a_shipment_for_the_night_waits_for_each_devices_own_night(bench: BlynkBench) -> None:
    east, west = await bench.device("mill-1"), await bench.device("mill-2")
    await label(bench, "mill-1", "Pacific/Auckland")  # where it is night while the clock stands at noon, UTC
    await bench.ship(east, west, policy=NIGHT)
    clients = [await bench.connect(f"{name}-token") for name in ("mill-1", "mill-2")]
    for client in clients:
        await client.report(OLD)
    await bench.settle()
    await clients[0].offer()
    await clients[1].nothing()
    bench.fleet.clock.advance(12 * 3600)
    await bench.settle()
    await clients[1].offer()


async def label(bench: BlynkBench, name: str, zone: str) -> None:
    async with bench.fleet.database.transaction() as transaction:
        await transaction.set_device_labels(bench.fleet.scope, name, {"timezone": zone}, now=bench.fleet.clock())


async def test_a_shipment_for_the_night_is_announced_when_the_night_begins_where_the_device_is(
    bench: BlynkBench,
) -> None:
    device = await bench.device()
    await bench.ship(device, policy=NIGHT)
    client = await bench.connect(SECRET)
    await client.report(OLD)
    now = bench.fleet.clock()
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    bench.fleet.clock.advance((midnight - now).total_seconds() - 60)
    await bench.settle()
    await client.nothing()
    bench.fleet.clock.advance(61)
    await bench.settle()
    await client.offer()


async def test_a_label_that_moves_a_device_into_its_night_has_it_told_at_once(bench: BlynkBench) -> None:
    await bench.ship(await bench.device(), policy=NIGHT)  # the clock stands at noon, UTC
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await bench.settle()
    await client.nothing()
    await label(bench, "mill-1", "Pacific/Auckland")
    await bench.settle()
    await client.offer()


async def test_after_a_rest_it_is_offered_again_only_at_the_shipments_time_of_day(bench: BlynkBench) -> None:
    await bench.ship(
        await bench.device(),
        policy=RolloutPolicy(maintenance="daily 12:00 6h local"),
        attempts=1,
        attempt_period_s=8 * 3600,
    )
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await bench.get((await client.offer()).url)
    bench.fleet.clock.advance(APPLY_TIME.total_seconds())
    await client.report(OLD)
    await client.nothing()
    bench.fleet.clock.advance(8 * 3600)  # the round is over, in the evening
    await bench.settle()
    await client.nothing()
    bench.fleet.clock.advance(16 * 3600)
    await bench.settle()
    await client.offer()


async def test_who_agrees_to_a_shipment_gets_it_at_once_whatever_the_hour(bench: BlynkBench) -> None:
    await bench.ship(await bench.device(), policy=replace(NIGHT, confirm=True), attempts=3)
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await client.nothing()
    await agree(bench.fleet.context, bench.fleet.scope, "mill-1")
    await bench.settle()
    await client.offer()
