"""Whoever ends `flota demo`, and however: neither its server nor its gateway is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.conftest import wait_until

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(150)]

ENDED_WITHIN_S = 30


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "flota", "demo", "--data", str(tmp_path / "demo")]
    with (
        (tmp_path / "demo.log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        yield process
        process.kill()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_servers_and_gateways_of_a_demo_end_with_it(demo: subprocess.Popen[bytes], how: signal.Signals) -> None:
    wait_until(lambda: len(children_of(demo.pid)) >= 2, within_s=60, what="server and gateway run")
    children = children_of(demo.pid)
    demo.send_signal(how)
    status = demo.wait(60)
    assert status == (128 + how if how is signal.SIGTERM else -how)
    wait_until(lambda: not any(map(is_running, children)), within_s=ENDED_WITHIN_S, what="they have ended")


def children_of(process: int) -> list[int]:
    """The processes that a process has started, of all its threads."""
    found: list[int] = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        found += map(int, (thread / "children").read_text().split())
    return found


def is_running(process: int) -> bool:
    """Whether a process is there and has not ended: one that nobody has waited for yet is no longer running."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
