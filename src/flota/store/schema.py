"""Bringing a database's tables up to date. Alembic is imported only if there is something to do: it costs memory."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from flota.errors import Conflict
from flota.store.connections import open_sqlite_at_once

SCHEMA_HEAD: Final = "0010"
"""The newest revision in `migrations/versions`; a test compares."""

MIGRATIONS: Final = Path(__file__).parent / "migrations"

_UPGRADE_LOCK: Final = 0x666C6F74
"""Key of the PostgreSQL advisory lock that lets one process upgrade at a time ("flot" in ASCII)."""


async def bring_to_head(writers: AsyncEngine) -> None:
    """Run the missing migrations in one transaction. Raises `Conflict` if the database is of a newer Flota."""
    async with writers.begin() as connection:
        if writers.dialect.name == "postgresql":
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        await connection.run_sync(_upgrade_if_needed)


def upgrade_apart(url: str) -> None:
    """Run the missing migrations of a SQLite database in a child process, which takes alembic's 10 MiB with it.

    For a server's start, before it has threads. Whatever does not succeed here is left for `bring_to_head`, which says
    why; other databases are always left to it. Raises `InvalidInput` for another kind of URL.
    """
    engines = open_sqlite_at_once(url)
    if engines is None or not hasattr(os, "fork") or threading.active_count() > 1:
        return
    writer, _reader = engines  # neither has connected yet
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            with writer.begin() as connection:
                _upgrade_if_needed(connection)
            writer.dispose()
        os._exit(0)
    os.waitpid(child, 0)


def _upgrade_if_needed(connection: sa.Connection) -> None:
    present = _present_revision(connection)
    if present == SCHEMA_HEAD:
        return
    if present is not None and not any((MIGRATIONS / "versions").glob(f"{present}_*.py")):
        raise Conflict(
            "the database belongs to another version of Flota",
            expected=f"revision {SCHEMA_HEAD} or older",
            found=f"revision {present}",
            hint="Start the newer Flota, or restore a backup.",
        )
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _present_revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
