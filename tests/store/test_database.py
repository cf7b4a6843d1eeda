from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from flota.errors import Conflict, InvalidInput, NotFound, StorageFull
from flota.store.connections import open_engines
from flota.store.database import Database
from flota.store.schema import MIGRATIONS, SCHEMA_HEAD, upgrade_apart
from flota.store.tables import metadata
from tests.store.fleets import START, a_tenant


async def test_migrations_make_exactly_the_declared_tables(empty_database_url: str) -> None:
    await (await Database.open(empty_database_url)).close()

    def differences(connection: sa.Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    engine = create_async_engine(empty_database_url)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


def test_the_packaged_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA_HEAD]


async def test_several_processes_may_open_a_new_database_at_once(empty_database_url: str) -> None:
    opened = await asyncio.gather(*(Database.open(empty_database_url) for _ in range(3)))
    await a_tenant(opened[0])
    for database in opened:
        assert [tenant.name for tenant in await database.list_tenants()] == ["DEFAULT"]
        await database.close()


async def test_a_database_of_a_newer_flota_is_refused(database_url: str) -> None:
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    await engine.dispose()
    with pytest.raises(Conflict, match="another version of Flota"):
        await Database.open(database_url)


def test_alembic_is_not_imported_when_the_tables_are_up_to_date(tmp_path: Path) -> None:
    program = """
import asyncio, json, sys
from flota.store.connections import open_engines
from flota.store.database import Database
async def main():
    await (await Database.open(sys.argv[1])).close()
    print(json.dumps("alembic" in sys.modules))
asyncio.run(main())
"""
    url = f"sqlite+aiosqlite:///{tmp_path}/flota.db"
    outputs = [
        json.loads(subprocess.run([sys.executable, "-c", program, url], check=True, capture_output=True).stdout)
        for _ in range(2)
    ]
    assert outputs == [True, False]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "sqlite+aiosqlite://",
        "sqlite:///",
        "sqlite+aiosqlite:///:memory:",
        "mysql://root:secret@localhost/flota",
        "postgresql://flota:secret@localhost:port/flota",
    ],
)
async def test_other_databases_are_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await Database.open(url)
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidInput):
        upgrade_apart(url)


async def test_a_url_needs_no_drivers_name(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite:///{tmp_path}/flota.db"):
        assert (tmp_path / "flota.db").exists()
    writers, readers = open_engines("postgres://flota@localhost/flota?sslmode=disable")
    assert writers.url == readers.url == sa.make_url("postgresql+asyncpg://flota@localhost/flota?ssl=disable")


async def test_a_database_that_cannot_be_opened_is_told_with_its_url_and_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "other.db").write_bytes(b"not a database" * 500)
    with pytest.raises(InvalidInput, match="file is not a database"):
        await Database.open(f"sqlite:///{tmp_path}/other.db")
    for options in ("", "&wrong=1"):
        with pytest.raises(InvalidInput) as caught:
            await Database.open(f"postgresql://flota:secret@/flota?host={tmp_path}{options}")
        assert "secret" not in str(caught.value)


async def test_sqlite_is_set_up_for_one_writer_and_many_readers(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite+aiosqlite:///{tmp_path}/new directory/flota.db") as database:
        for engine in (database._writers, database._readers):
            async with engine.connect() as connection:
                values = [
                    (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
                    for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
                ]
            assert values == ["wal", 1, 30_000, 1]


async def test_a_reader_sees_one_committed_state_and_never_waits_for_a_writer(database: Database) -> None:
    await a_tenant(database)
    async with database.transaction() as writing:
        await writing.add_tenant("SECOND", now=START)
        async with asyncio.timeout(20), database.reading() as reading:  # less than a writer's turn may take
            with pytest.raises(NotFound):
                await reading.tenant_by_name("SECOND")
    async with database.reading() as reading:
        await reading.tenant_by_name("SECOND")
        async with database.transaction() as writing:
            await writing.add_tenant("THIRD", now=START)
        with pytest.raises(NotFound):
            await reading.tenant_by_name("THIRD")


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(DBAPIError, match=r"readonly database|read-only transaction"):
        async with database.reading() as reading:
            await reading.add_tenant("SNEAKY", now=START)
    assert await database.list_tenants() == ()


async def test_a_failed_block_leaves_no_trace(database: Database) -> None:
    with pytest.raises(RuntimeError):
        async with database.transaction() as tx:
            await tx.add_tenant("HALF", now=START)
            raise RuntimeError
    assert await database.list_tenants() == ()


async def test_a_canceled_block_leaves_no_trace_and_the_writer_free(database: Database) -> None:
    entered = asyncio.Event()

    async def write() -> None:
        async with database.transaction() as tx:
            await tx.add_tenant("HALF", now=START)
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await a_tenant(database)
    assert [tenant.name for tenant in await database.list_tenants()] == ["DEFAULT"]


async def test_followers_hear_of_a_commit_and_of_nothing_else(database: Database) -> None:
    heard: list[frozenset[int]] = []

    def broken(_: frozenset[int]) -> None:
        raise RuntimeError("a follower's own defect")

    database.on_commit(broken)
    database.on_commit(heard.append)
    scope = await a_tenant(database)
    with pytest.raises(RuntimeError):
        async with database.transaction() as tx:
            await tx.append_audit(scope, "demo.lost", "demo:1", {}, now=START)
            raise RuntimeError
    async with database.transaction() as tx:
        await tx.list_device_types(scope)
    async with database.transaction() as tx:
        await tx.append_audit(scope, "demo.kept", "demo:2", {}, now=START)
        assert len(heard) == 1
    assert heard == [frozenset({scope.tenant_id})] * 2


async def test_a_full_disk_is_a_typed_error_and_nothing_is_half_stored(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite+aiosqlite:///{tmp_path}/flota.db") as database:
        scope = await a_tenant(database)
        async with database._writers.connect() as connection:
            pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
            await connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        with pytest.raises(StorageFull):
            async with database.transaction() as tx:
                for number in range(200):
                    await tx.append_audit(scope, "demo.written", f"demo:{number}", {"text": "x" * 4096}, now=START)
        async with database.reading() as tx:
            assert await tx.last_audit_sequence(scope) == 1


async def test_naive_times_are_refused(database: Database) -> None:
    with pytest.raises(sa.exc.StatementError, match="naive"):
        async with database.transaction() as tx:
            await tx.add_tenant("DEFAULT", now=START.replace(tzinfo=None))
