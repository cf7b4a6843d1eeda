"""A SQLite database with all tables and no row: migrated once a test process, copied as often as it is wanted.

So is the SQL: thousands of databases are opened, and each engine would compile the same fifty statements anew, which is
a third of what a test of the server costs.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from flota.store.database import Database

_dialects: dict[type[sa.Dialect], sa.Dialect] = {}
_compiled: dict[Any, Any] = {}


@sa.event.listens_for(sa.Engine, "engine_connect")
def _compile_once(connection: sa.Connection) -> None:
    """Let all SQLite engines of a driver have one dialect, which compiled statements are kept by."""
    if connection.dialect.name == "sqlite":
        connection.dialect = _dialects.setdefault(type(connection.dialect), connection.dialect)
        connection.execution_options(compiled_cache=_compiled)


def make_empty_database(file: Path) -> None:
    """Put a copy at `file`, whose directory is made if it is absent; raises `FileExistsError` if there is one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as copy, _template().open("rb") as template:
        shutil.copyfileobj(template, copy)


@functools.cache
def _template() -> Path:
    directory = tempfile.TemporaryDirectory(prefix="flota-template-")
    atexit.register(directory.cleanup)
    file = Path(directory.name) / "template.sqlite3"
    migration = threading.Thread(target=asyncio.run, args=(_migrate(file),))  # who asks may have a loop of its own
    migration.start()
    migration.join()
    return file


async def _migrate(file: Path) -> None:
    await (await Database.open(f"sqlite+aiosqlite:///{file}")).close()
