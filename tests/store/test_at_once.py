"""Transactions in one go: the same promises as of the usual ones, on both databases."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flota.errors import Conflict
from flota.fleet.changes import Changes
from flota.fleet.devices import Device, DeviceState
from flota.fleet.scope import Scope
from flota.fleet.storage import NewDevice, Transaction
from flota.store.database import Database
from tests.store.fleets import START, a_device, a_tenant, a_type


async def a_scope(database: Database) -> Scope:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
    return scope


async def names(database: Database, scope: Scope) -> set[str]:
    async def read(tx: Transaction) -> set[str]:
        return set(await tx.known_devices(scope, ["one", "two"]))

    return await database.read_at_once(read)


async def test_what_is_written_is_there_and_audited_and_told(database: Database) -> None:
    scope = await a_scope(database)
    told: list[Changes] = []
    tenants: list[frozenset[int]] = []
    database.on_change(told.append)
    database.on_commit(tenants.append)

    async def write(tx: Transaction) -> Device:
        device = await a_device(tx, scope, "one")
        await tx.set_device_state(scope, "one", DeviceState.REFUSED, now=START)
        return device

    made = await database.write_at_once(write)
    assert await names(database, scope) == {"one"}
    assert [made.id in changes.identity for changes in told] == [True]
    assert tenants == [frozenset({scope.tenant_id})]
    async with database.reading() as tx:
        actions = [entry.action for entry in await tx.list_audit(scope)]
    assert actions[-2:] == ["device.created", "device.refused"]


async def test_an_error_leaves_no_trace_and_comes_to_whom_it_belongs(database: Database) -> None:
    scope = await a_scope(database)

    async def write(tx: Transaction) -> None:
        await a_device(tx, scope, "one")
        await a_device(tx, scope, "one")

    with pytest.raises(Conflict):
        await database.write_at_once(write)
    assert await names(database, scope) == set()


async def test_a_refused_batch_leaves_the_transaction_usable(database: Database) -> None:
    scope = await a_scope(database)

    async def write(tx: Transaction) -> None:
        await a_device(tx, scope, "one")
        new = [NewDevice(name, "pump", DeviceState.PENDING) for name in ("two", "one")]
        with pytest.raises(Conflict):
            await tx.add_devices(scope, new, now=START)

    await database.write_at_once(write)
    assert await names(database, scope) == {"one"}


async def test_writers_of_both_kinds_take_turns(database: Database) -> None:
    scope = await a_scope(database)

    async def usual(number: int) -> None:
        async with database.transaction() as tx:
            await a_device(tx, scope, f"usual-{number}")
            await asyncio.sleep(0)

    async def at_once(number: int) -> None:
        await database.write_at_once(lambda tx: a_device(tx, scope, f"at-once-{number}"))

    await asyncio.gather(*(way(number) for number in range(20) for way in (usual, at_once)))
    async with database.reading() as tx:
        created = [entry for entry in await tx.list_audit(scope) if entry.action == "device.created"]
    assert len({entry.subject for entry in created}) == 40


async def test_who_goes_away_leaves_a_whole_transaction(database: Database) -> None:
    scope = await a_scope(database)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def write(tx: Transaction) -> None:
        loop.call_soon_threadsafe(begun.set)
        await a_device(tx, scope, "one")
        await a_device(tx, scope, "two")

    writing = asyncio.create_task(database.write_at_once(write))
    await begun.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await names(database, scope) in (set(), {"one", "two"})


async def test_work_that_waits_for_something_else_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite+aiosqlite:///{tmp_path}/flota.sqlite3") as database:
        scope = await a_scope(database)

        async def write(tx: Transaction) -> None:
            await a_device(tx, scope, "one")
            await asyncio.sleep(0)

        with pytest.raises(RuntimeError, match="something else"):
            await database.write_at_once(write)
        assert await names(database, scope) == set()
