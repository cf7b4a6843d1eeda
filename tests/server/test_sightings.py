"""Sightings: batched, merged, and never in anyone's way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from flota.fleet.devices import Device, DeviceState
from flota.fleet.scope import Scope
from flota.fleet.storage import DeviceSighting, NewDevice, NewDeviceType, Transaction
from flota.server import sightings as sightings_module
from flota.server.context import ServerContext
from flota.server.sightings import merge_sightings
from tests.server.serving import a_context, a_scope


@pytest.fixture
async def context(tmp_path: Path) -> AsyncIterator[ServerContext]:
    async with a_context(tmp_path) as made:
        yield made


@pytest.fixture
async def scope(context: ServerContext) -> Scope:
    return await a_scope(context)


@pytest.fixture
async def device(context: ServerContext, scope: Scope) -> Device:
    async with context.storage.transaction() as transaction:
        await transaction.add_device_type(scope, NewDeviceType("pump", "esp32-c3"), now=context.now())
        return await transaction.add_device(scope, NewDevice("a", "pump", DeviceState.ACCEPTED), now=context.now())


def a_sighting(context: ServerContext, device_id: int, version: str | None = None) -> DeviceSighting:
    return DeviceSighting(device_id, context.now(), "ddi", running_version=version)


async def a_failing_write(_work: Callable[[Transaction], Awaitable[None]]) -> None:
    raise OSError("the database is away")


@contextlib.asynccontextmanager
async def writing(context: ServerContext) -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    task = asyncio.create_task(context.sightings.run(stop))
    yield stop
    stop.set()
    await task


async def stored(context: ServerContext, scope: Scope) -> Device:
    async with context.storage.reading() as transaction:
        return await transaction.device(scope, "a")


async def test_what_was_recorded_is_durable_a_moment_later(
    context: ServerContext, scope: Scope, device: Device
) -> None:
    async with writing(context):
        context.sightings.record(scope, a_sighting(context, device.id, "2.0.0"))
        while (await stored(context, scope)).running_version != "2.0.0":  # noqa: ASYNC110 - another thread is at work
            await asyncio.sleep(0.01)


async def test_stopping_writes_the_rest(context: ServerContext, scope: Scope, device: Device) -> None:
    async with writing(context) as stop:
        stop.set()
        context.sightings.record(scope, a_sighting(context, device.id, "3.0.0"))
    assert (await stored(context, scope)).running_version == "3.0.0"
    assert context.sightings.waiting == 0


async def test_a_thousand_sightings_of_one_device_become_one_row(
    context: ServerContext, scope: Scope, device: Device
) -> None:
    for number in range(1000):
        context.sightings.record(scope, a_sighting(context, device.id, f"{number}"))
    assert context.sightings.waiting == 1
    await context.sightings.flush()
    assert (await stored(context, scope)).running_version == "999"


async def test_a_sighting_of_a_removed_device_does_not_hold_up_the_others(
    context: ServerContext, scope: Scope, device: Device
) -> None:
    for device_id in (device.id + 1000, device.id, device.id + 2000):
        context.sightings.record(scope, a_sighting(context, device_id, "4.0.0"))
    await context.sightings.flush()
    assert (await stored(context, scope)).running_version == "4.0.0"


async def test_what_a_failing_database_did_not_take_is_tried_again(
    context: ServerContext, scope: Scope, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sightings_module, "RETRY_PAUSE_S", 0.02)
    write_at_once, failures = context.storage.write_at_once, 2

    async def failing_at_first(work: Callable[[Transaction], Awaitable[None]]) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError("the database is away")
        await write_at_once(work)

    monkeypatch.setattr(context.storage, "write_at_once", failing_at_first)
    async with writing(context):
        context.sightings.record(scope, a_sighting(context, device.id, "5.0.0"))
        while (await stored(context, scope)).running_version != "5.0.0":  # noqa: ASYNC110 - another thread is at work
            await asyncio.sleep(0.01)
    assert failures < 0


async def test_a_database_that_stays_away_costs_bounded_memory(
    context: ServerContext, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sightings_module, "WAITING_MAX", 10)
    for device_id in range(100):
        context.sightings.record(scope, a_sighting(context, device_id))
    assert context.sightings.waiting == 10


def test_merging_keeps_what_only_the_earlier_one_told(context: ServerContext) -> None:
    earlier = dataclasses.replace(a_sighting(context, 1, "1.0"), running_md5="aa", address="192.0.2.1")
    later = dataclasses.replace(a_sighting(context, 1), running_hash="bb", address="192.0.2.2")
    merged = merge_sightings(earlier, later)
    assert merged.at == later.at
    assert (merged.running_version, merged.running_md5, merged.running_hash) == ("1.0", "aa", "bb")
    assert merged.address == "192.0.2.2"


async def test_a_device_that_was_only_seen_is_written_with_others_and_waits_for_a_failing_database(
    context: ServerContext, scope: Scope, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = context.now().replace(microsecond=0)
    context.sightings.record(scope, a_sighting(context, device.id, "5.0.0"))
    context.sightings.record_seen(scope, device.id, "ddi", at=at)
    with monkeypatch.context() as patch:
        patch.setattr(context.storage, "write_at_once", a_failing_write)
        with pytest.raises(OSError, match="away"):
            await context.sightings.flush()
    later = at + timedelta(seconds=1)
    context.sightings.record_seen(scope, device.id, "ddi", at=later)
    assert context.sightings.waiting == 3
    await context.sightings.flush()
    assert context.sightings.waiting == 0
    seen = await stored(context, scope)
    assert seen.running_version == "5.0.0"
    context.sightings.record_seen(scope, device.id, "ddi", at=later)
    await context.sightings.flush()
    assert (await stored(context, scope)).last_seen_at == later


async def test_devices_only_seen_are_kept_waiting_up_to_a_bound(context: ServerContext, scope: Scope) -> None:
    at = context.now()
    for number in range(sightings_module.WAITING_MAX + 1):
        context.sightings.record_seen(scope, number, "ddi", at=at + timedelta(seconds=number % 4))
    assert context.sightings.waiting <= sightings_module.WAITING_MAX
