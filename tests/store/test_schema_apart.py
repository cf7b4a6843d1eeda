"""A server's first start makes its tables in a child process, and does not carry alembic from then on."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from flota.store.schema import upgrade_apart

START = """
import asyncio, sys
from flota.store.schema import upgrade_apart
upgrade_apart(sys.argv[1])
from flota.store.database import Database
async def main():
    async with await Database.open(sys.argv[1]):
        pass
asyncio.run(main())
print("alembic" in sys.modules)
"""


def run_start(url: str) -> str:
    command = [sys.executable, "-c", START, url]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_a_new_database_is_made_without_loading_alembic(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new/flota.sqlite3"
    (tmp_path / "new").mkdir()
    assert run_start(url) == "False"
    assert run_start(url) == "False"


def test_what_cannot_be_upgraded_apart_is_left_to_the_ordinary_way(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new/flota.sqlite3"  # the directory is missing
    assert run_start(url) == "True"


def test_a_process_with_threads_is_not_forked(tmp_path: Path) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    upgrade_apart(f"sqlite+aiosqlite:///{tmp_path}/flota.sqlite3")
    done.set()
    thread.join()
    assert not (tmp_path / "flota.sqlite3").exists()
