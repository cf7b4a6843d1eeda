"""Strangers that come together are registered together, and no more of them wait than somebody could decide about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flota.errors import TooManyRequests
from flota.fleet.audit import check_chain
from flota.fleet.devices import Device, DeviceState, UnknownDevices
from flota.server import admissions
from tests.server.update_fleet import UpdateFleet, an_update_fleet


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[UpdateFleet]:
    async with an_update_fleet(tmp_path) as made:
        await made.add_type("pump", unknown=UnknownDevices.HOLD)
        yield made


async def come(fleet: UpdateFleet, *names: str) -> list[Device | BaseException]:
    admit = fleet.context.admissions.admit
    return await asyncio.gather(*(admit(fleet.scope, name, "pump") for name in names), return_exceptions=True)


async def test_all_that_come_together_get_a_device_of_their_own_and_an_audit_entry_each(fleet: UpdateFleet) -> None:
    names = [f"new-{number}" for number in range(300)]
    made = await come(fleet, *names, *names[:10])
    assert [device.name for device in made if isinstance(device, Device)] == [*names, *names[:10]]
    async with fleet.database.reading() as tx:
        entries = await tx.list_audit(fleet.scope, limit=10_000)
    check_chain(entries)
    assert [entry.subject for entry in entries if entry.action == "device.created"] == [f"device:{n}" for n in names]


async def test_beyond_the_limit_strangers_wait_until_somebody_decides(
    fleet: UpdateFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admissions, "PENDING_MAX", 5)
    first = await come(fleet, *(f"new-{number}" for number in range(3)))
    assert all(isinstance(device, Device) for device in first)
    more = await come(fleet, *(f"more-{number}" for number in range(4)))
    assert [isinstance(device, TooManyRequests) for device in more] == [False, False, True, True]
    assert isinstance((await come(fleet, "late"))[0], TooManyRequests)
    async with fleet.database.transaction() as tx:
        await tx.set_device_state(fleet.scope, "new-0", DeviceState.ACCEPTED, now=fleet.clock())
    found = await come(fleet, "late", "later")
    assert [isinstance(device, TooManyRequests) for device in found] == [False, True]


async def test_those_that_wait_are_counted_again_after_so_many(
    fleet: UpdateFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admissions, "PENDING_MAX", 6)
    monkeypatch.setattr(admissions, "RECOUNT_AFTER", 2)
    await come(fleet, "one", "two")
    for number in range(4):  # registered by others
        await fleet.add_device(f"other-{number}", type_name="pump", state=DeviceState.PENDING)
    assert isinstance((await come(fleet, "three"))[0], TooManyRequests)
