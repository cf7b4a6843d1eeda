from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from flota.errors import Conflict
from flota.fleet.audit import check_chain
from flota.fleet.executions import ExecutionChange, ExecutionState
from flota.fleet.scope import Scope
from flota.store.database import Database
from tests.store.fleets import START, a_fleet, a_tenant, at


async def trail(database: Database, scope: Scope) -> list[str]:
    async with database.reading() as tx:
        entries = await tx.list_audit(scope)
        last = await tx.last_audit_sequence(scope)
    assert check_chain(entries)[0] == last == len(entries)
    return [entry.action for entry in entries]


async def test_every_change_of_state_leaves_an_entry_in_the_same_transaction(database: Database) -> None:
    fleet = await a_fleet(database, size=1)
    execution = (await fleet.opened(database))[0]
    async with database.transaction() as tx:
        change = ExecutionChange(ExecutionState.SUCCEEDED, message="runs it already")
        await tx.change_execution(fleet.scope, execution.id, 1, change, now=at(1))
    assert await trail(database, fleet.scope) == [
        "tenant.created",
        "type.created",
        "device.created",
        "artifact.added",
        "release.created",
        "release.signature-added",
        "release.signed",
        "release.published",
        "rollout.created",
        "wave.open",
        "execution.changed",
    ]
    async with database.reading() as tx:
        [entry] = await tx.list_audit(fleet.scope, after=10)
    assert (entry.actor, entry.subject, entry.at) == ("token:test", "execution:1", at(1))
    assert entry.details["state"] == "SUCCEEDED"
    assert entry.details["device"] == "pump-1"
    assert entry.details["message"] == "runs it already"


async def test_a_transaction_that_fails_leaves_no_entry_and_no_gap(database: Database) -> None:
    scope = await a_tenant(database)
    with pytest.raises(RuntimeError):
        async with database.transaction() as tx:
            await tx.append_audit(scope, "demo.begun", "demo:1", {}, now=START)
            raise RuntimeError
    async with database.transaction() as tx:
        entry = await tx.append_audit(scope, "demo.begun", "demo:2", {"é": [1, 2.5, None]}, now=at(1))
    assert entry.sequence == 2
    assert entry.details == {"é": [1, 2.5, None]}
    assert await trail(database, scope) == ["tenant.created", "demo.begun"]


async def test_concurrent_writers_of_a_tenant_share_one_sequence_without_a_gap(database: Database) -> None:
    scope = await a_tenant(database)
    other = await a_tenant(database, "OTHER")

    async def write(number: int) -> None:
        async with database.transaction() as tx:
            for whose in (scope, other) if number % 2 else (other, scope):
                await tx.append_audit(whose, "demo.written", f"demo:{number}", {}, now=at(number))

    results = await asyncio.gather(*(write(number) for number in range(24)), return_exceptions=True)
    lost = [error for error in results if error is not None]
    assert all(isinstance(error, Conflict) for error in lost)  # PostgreSQL may break a deadlock that we provoke here
    for whose in (scope, other):
        assert len(await trail(database, whose)) == 1 + 24 - len(lost)


@pytest.mark.parametrize("table", ["audit", "execution_events"])
@pytest.mark.parametrize("change", ["UPDATE {} SET actor = 'nobody'", "DELETE FROM {}"])
async def test_the_database_refuses_to_change_history(
    database: Database, database_url: str, table: str, change: str
) -> None:
    fleet = await a_fleet(database, size=1)
    await fleet.opened(database)
    engine = create_async_engine(database_url)
    with pytest.raises(DBAPIError, match=f"{table} is append-only"):
        async with engine.begin() as connection:
            await connection.execute(sa.text(change.format(table)))
    await engine.dispose()


async def test_a_changed_entry_breaks_the_chain(database: Database, database_url: str) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        for number in range(3):
            await tx.append_audit(scope, "demo.written", f"demo:{number}", {"number": number}, now=START)
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            await connection.execute(sa.text("DROP TRIGGER audit_refuses_update"))
        else:
            await connection.execute(sa.text("ALTER TABLE audit DISABLE TRIGGER ALL"))
        await connection.execute(sa.text("UPDATE audit SET actor = 'somebody else' WHERE sequence = 3"))
    await engine.dispose()
    async with database.reading() as tx:
        entries = await tx.list_audit(scope)
    with pytest.raises(Conflict, match="audit entry 3 was changed"):
        check_chain(entries)
    with pytest.raises(Conflict, match="gap"):
        check_chain([entries[0], entries[2]])


async def test_the_journal_can_be_read_in_pieces(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        for number in range(5):
            await tx.append_audit(scope, "demo.written", f"demo:{number}", {}, now=START)
    async with database.reading() as tx:
        first = await tx.list_audit(scope, after=0, limit=4)
        rest = await tx.list_audit(scope, after=first[-1].sequence, limit=4)
    assert [entry.sequence for entry in (*first, *rest)] == [1, 2, 3, 4, 5, 6]
    sequence, digest = check_chain(first)
    assert check_chain(rest, after=sequence, previous_digest=digest)[0] == 6
