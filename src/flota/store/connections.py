"""Engines: how connections to SQLite and PostgreSQL are made and set up."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from flota.errors import InvalidInput

BUSY_TIMEOUT_MS: Final = 30_000
"""How long SQLite waits for another process; one that makes the tables holds them for seconds on a slow disk."""

WRITER_QUEUE_TIMEOUT_S: Final = 60
"""How long a writer waits for its turn in this process before it fails."""

SQLITE_READERS: Final = 4
POSTGRES_CONNECTIONS: Final = 8
"""Connections of each engine; more would only wait for the same rows."""

SQLITE_SETTINGS: Final = (
    f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}",  # first: to change the journal's mode takes the database for oneself
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",  # a power cut may undo the last commits but never damages the file
    "PRAGMA foreign_keys=ON",
)

OUR_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}
"""Drivers of URLs that name none, as other tools write them."""

_URL_HINT: Final = "Give sqlite:///FILE or postgresql://USER@HOST/NAME."


def decode_json(text: str) -> Any:
    """Return what a JSON column holds. msgspec takes a tenth of the standard library's time, most of it for `{}`."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:  # half of a surrogate pair, which older rows may hold
        return json.loads(text)


def open_engines(url: str) -> tuple[AsyncEngine, AsyncEngine]:
    """Return the writers' and the readers' engine for `url`; nothing connects yet. Raises `InvalidInput`."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engines(parsed)
    try:
        return _postgres_engines(parsed)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "PostgreSQL's driver is not installed", expected=error.name, hint="pip install 'flota[postgres]'"
        ) from error


def _parsed(url: str) -> sa.URL:
    """Return a URL of a database that we can use, with its driver. Raises `InvalidInput`."""
    try:
        parsed = _with_our_driver(sa.make_url(url))
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise InvalidInput("the database URL cannot be read", hint=_URL_HINT) from error
    match parsed.drivername:
        case "sqlite+aiosqlite" if parsed.database not in (None, "", ":memory:"):
            return parsed
        case "postgresql+asyncpg":
            return parsed
    raise InvalidInput(
        "this database is not supported", found=parsed.render_as_string(hide_password=True), hint=_URL_HINT
    )


def _with_our_driver(url: sa.URL) -> sa.URL:
    """Return the URL with the driver that we bring, where it names none; libpq's `sslmode` is asyncpg's `ssl`."""
    named = url.set(drivername=OUR_DRIVERS.get(url.drivername, url.drivername))
    if named.drivername != OUR_DRIVERS["postgresql"] or "sslmode" not in named.query:
        return named
    mode = named.query["sslmode"]
    return named.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})


def _sqlite_engines(url: sa.URL) -> tuple[AsyncEngine, AsyncEngine]:
    assert url.database is not None
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    writers = create_async_engine(
        url, json_deserializer=decode_json, pool_size=1, max_overflow=0, pool_timeout=WRITER_QUEUE_TIMEOUT_S
    )
    readers = create_async_engine(
        url,
        json_deserializer=decode_json,
        pool_size=SQLITE_READERS,
        max_overflow=0,
        pool_timeout=WRITER_QUEUE_TIMEOUT_S,
    )
    _set_up_sqlite(writers.sync_engine, begin="BEGIN IMMEDIATE", settings=SQLITE_SETTINGS)
    _set_up_sqlite(readers.sync_engine, begin="BEGIN", settings=(*SQLITE_SETTINGS, "PRAGMA query_only=ON"))
    return writers, readers


def open_sqlite_at_once(url: str) -> tuple[sa.Engine, sa.Engine] | None:
    """Return a writing and a reading engine of one plain connection each (`flota.store.at_once`); None if no SQLite.

    Raises `InvalidInput` for another kind of URL.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() != "sqlite":
        return None
    writer, reader = (
        sa.create_engine(
            parsed.set(drivername="sqlite+pysqlite"), json_deserializer=decode_json, pool_size=1, max_overflow=0
        )
        for _ in range(2)
    )
    _set_up_sqlite(writer, begin="BEGIN IMMEDIATE", settings=SQLITE_SETTINGS)
    _set_up_sqlite(reader, begin="BEGIN", settings=(*SQLITE_SETTINGS, "PRAGMA query_only=ON"))
    return writer, reader


def _set_up_sqlite(engine: sa.Engine, *, begin: str, settings: tuple[str, ...]) -> None:
    @sa.event.listens_for(engine, "connect")
    def _on_connect(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = (
            None  # we write BEGIN ourselves: the driver's own comes too late and is deferred
        )
        cursor = dbapi_connection.cursor()
        for setting in settings:
            cursor.execute(setting)
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)


def _postgres_engines(url: sa.URL) -> tuple[AsyncEngine, AsyncEngine]:
    writers = create_async_engine(
        url, json_deserializer=decode_json, pool_size=POSTGRES_CONNECTIONS, max_overflow=0, pool_pre_ping=True
    )
    readers = create_async_engine(
        url,
        pool_size=POSTGRES_CONNECTIONS,
        max_overflow=0,
        pool_pre_ping=True,
        isolation_level="REPEATABLE READ",  # one consistent state for all queries of the block, as SQLite gives it
        execution_options={"postgresql_readonly": True},
    )
    return writers, readers


SQLITE_OLDEST: Final = (3, 35, 0)
"""The first with RETURNING."""
assert sqlite3.sqlite_version_info >= SQLITE_OLDEST, sqlite3.sqlite_version
