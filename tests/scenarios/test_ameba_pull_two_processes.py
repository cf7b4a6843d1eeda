"""`flota serve-ameba` in one process, a virtual board that fetches for itself in another: every way that there is."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from flota.images.ameba import pack_ota_file
from flota.lab.running_fleet import free_port
from flota.lab.sample_firmware import sample_ameba
from tests.scenarios.conftest import wait_until

pytestmark = pytest.mark.scenario

SIZE = 128 * 1024
NEW = sample_ameba("2.0.0", size=SIZE)


@contextmanager
def flota(log: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "flota", *map(str, arguments)]
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, text=True) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)


@contextmanager
def board(directory: Path, *options: object) -> Iterator[subprocess.Popen[str]]:
    state = directory / "unit"
    arguments: Sequence[object] = ("lab", "run", "amebad", "--state", state, "--speed", 200, "--json", *options)
    with flota(directory / "board.log", *arguments) as process:
        yield process


def events(directory: Path, kind: str) -> list[str]:
    path = directory / "board.log"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [event["text"] for event in found if event["event"] == kind]


def wait_for(directory: Path, kind: str, text: str) -> None:
    wait_until(
        lambda: any(text in said for said in events(directory, kind)), within_s=30, what=f"the board says {text!r}"
    )


def served(directory: Path) -> str:
    return (directory / "server.log").read_text()


def wait_until_served(directory: Path, text: str) -> None:
    wait_until(lambda: text in served(directory), within_s=30, what=f"the server says {text!r}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "OTA_All.bin"
    path.write_bytes(pack_ota_file(NEW))
    return path


def test_http_update_ota_takes_the_file_and_boots_it(tmp_path: Path, file: Path) -> None:
    port = free_port("127.0.0.1")
    with flota(tmp_path / "server.log", "serve-ameba", file, "--http", f"127.0.0.1:{port}"):
        wait_until_served(tmp_path, f"http://127.0.0.1:{port}/")
        with board(tmp_path, "--dialect", "http-update-ota", "--server", f"http://127.0.0.1:{port}/ota.bin"):
            wait_for(tmp_path, "boot", ": ota2, version 2.0.0")
    assert "127.0.0.1: fetches the file (/ota.bin)" in served(tmp_path)
    assert "[http_update_ota_task] Ready to reboot" in events(tmp_path, "serial")
    read_back(tmp_path)


def test_ota_http_is_started_by_the_server_and_posts_what_it_does(tmp_path: Path, file: Path) -> None:
    port, trigger = free_port("127.0.0.1"), free_port("127.0.0.1")
    options = ("--dialect", "ota-http", "--server", f"http://127.0.0.1:{port}", "--listen", f"127.0.0.1:{trigger}")
    with board(tmp_path, *options, "--no-announce", "--tells-version"):
        wait_for(tmp_path, "boot", ": ota1, version 1.0.0")
        serve = ("serve-ameba", file, "--http", f"127.0.0.1:{port}")
        with flota(tmp_path / "server.log", *serve):
            wait_until_served(tmp_path, "OTA_STATE_IDLE, version 1.0.0")
        with flota(tmp_path / "server.log", *serve, "--start", f"127.0.0.1:{trigger}"):
            wait_until_served(tmp_path, "was told to start")
            wait_for(tmp_path, "boot", ": ota2, version 2.0.0")
            wait_until_served(tmp_path, "OTA_STATE_IDLE, version 2.0.0")
    said = served(tmp_path)
    assert said.index("IN_PROGRESS") < said.index("fetches the file") < said.index("COMPLETED") < said.index("REBOOT")
    read_back(tmp_path)


def test_update_ota_local_is_ordered_on_the_console_and_restarted_by_the_button(tmp_path: Path, file: Path) -> None:
    port = free_port("127.0.0.1")
    with flota(tmp_path / "server.log", "serve-ameba", file, "--tcp", f"127.0.0.1:{port}"):
        wait_until_served(tmp_path, f"Listening on port ({port})")
        with board(tmp_path, "--dialect", "update-ota-local") as process:
            wait_for(tmp_path, "boot", ": ota1, version 1.0.0")
            assert process.stdin is not None
            process.stdin.write(f"ATWO=127.0.0.1[{port}]\n")
            process.stdin.flush()
            wait_for(tmp_path, "serial", "OTA is finished. Please reset device.")
            process.send_signal(signal.SIGHUP)  # what `flota lab reset` sends
            wait_for(tmp_path, "boot", ": ota2, version 2.0.0")
        wait_until_served(tmp_path, "127.0.0.1: Client Disconnected.")
    read_back(tmp_path)


def read_back(directory: Path) -> None:
    """What runs is exactly the image, read from the flash of the board that is switched off."""
    out = directory / "running.bin"
    command = [sys.executable, "-m", "flota", "lab", "read-slot", "--state", str(directory / "unit")]
    subprocess.run([*command, "--slot", "running", "-o", str(out)], check=True, timeout=50, capture_output=True)
    assert out.read_bytes() == NEW
