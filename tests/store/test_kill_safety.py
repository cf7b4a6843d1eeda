"""The process dies by SIGKILL in the middle of uploads and transactions; what it leaves must be whole."""

from __future__ import annotations

import hashlib
import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flota.fleet.audit import check_chain
from flota.fleet.executions import ExecutionState
from flota.fleet.scope import Scope
from flota.store.artifacts import ArtifactStore
from flota.store.database import Database

CHILD = Path(__file__).parent / "killed_writer.py"


def promises_until_killed(directory: Path, steps: int) -> list[list[str]]:
    with subprocess.Popen([sys.executable, str(CHILD), str(directory)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        promised = [line.split() for line in itertools.islice(child.stdout, steps)]
        child.send_signal(signal.SIGKILL)
        promised += [line.split() for line in child.stdout if line.endswith("\n")]
    assert child.returncode == -signal.SIGKILL
    assert len(promised) >= steps
    return promised


@pytest.mark.parametrize("kill_after_steps", [3, 10, 31, 64])
async def test_after_kill_minus_nine_everything_promised_is_there_and_nothing_is_half(
    tmp_path: Path, kill_after_steps: int
) -> None:
    promised = promises_until_killed(tmp_path, kill_after_steps)
    store = ArtifactStore(tmp_path / "artifacts")
    store.clean_partial_uploads()
    for path in (tmp_path / "artifacts").rglob("*"):
        if path.is_file():
            assert path.parent.parent.parent.name == "objects"
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name

    async with await Database.open(f"sqlite+aiosqlite:///{tmp_path}/flota.db") as database:
        [tenant] = await database.list_tenants()
        scope = Scope(tenant.id, "test")
        async with database.transaction() as tx:
            entries = await tx.list_audit(scope, limit=100_000)
            assert check_chain(entries)[0] == await tx.last_audit_sequence(scope) == len(entries)
            [execution] = await tx.list_executions(scope)
            events = await tx.execution_events(scope, execution.id)
            assert [event.version for event in events] == list(range(1, execution.version + 1))
            audited = [e.details["version"] for e in entries if e.action == "execution.changed"]
            assert audited == list(range(2, execution.version + 1))
            for kind, value in promised:
                if kind == "stored":
                    assert store.contains(value)
                else:
                    assert execution.version >= int(value)
            assert execution.state is ExecutionState.IN_PROGRESS or execution.version == 1
            await tx.append_audit(scope, "demo.reopened", "demo:1", {}, now=entries[-1].at)
