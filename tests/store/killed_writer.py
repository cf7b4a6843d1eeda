"""Run by test_kill_safety: uploads and commits for ever, printing each promise once it is kept."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from flota.fleet.executions import ExecutionChange, ExecutionState
from flota.store.artifacts import ArtifactStore
from flota.store.database import Database
from tests.store.fleets import a_fleet, at


def promise(kind: str, value: object) -> None:
    sys.stdout.write(f"{kind} {value}\n")
    sys.stdout.flush()


def upload(store: ArtifactStore) -> str:
    data = os.urandom(300_000)
    with store.upload(len(data)) as sink:
        for start in range(0, len(data), 4096):
            sink.write(data[start : start + 4096])
        return sink.finish().sha256


async def upload_for_ever(store: ArtifactStore) -> None:
    while True:
        promise("stored", await asyncio.to_thread(upload, store))


async def main(directory: Path) -> None:
    store = ArtifactStore(directory / "artifacts")
    database = await Database.open(f"sqlite+aiosqlite:///{directory}/flota.db")
    fleet = await a_fleet(database, size=1)
    execution = (await fleet.opened(database))[0]
    uploads = [asyncio.create_task(upload_for_ever(store)) for _ in range(3)]
    while uploads:
        async with database.transaction() as tx:
            change = ExecutionChange(ExecutionState.IN_PROGRESS, details={"progress": str(execution.version)})
            execution = await tx.change_execution(
                fleet.scope, execution.id, execution.version, change, now=at(execution.version)
            )
        promise("version", execution.version)


asyncio.run(main(Path(sys.argv[1])))
