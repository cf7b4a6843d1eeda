"""`flota lab` as processes: run, kill -9 in the middle of an update, run again, read what is there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.virtual.images import app_image
from tests.virtual.small_ddi import SmallDdi
from tests.virtual.small_server import small_server

OLD, NEW = app_image("1.0.0"), app_image("2.0.0", size=400_000)

pytestmark = pytest.mark.scenario


def flota(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flota", "lab", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flota", "lab", "run", *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def read_until(process: subprocess.Popen[str], word: str, *, within_s: float = 30) -> str:
    assert process.stdout is not None
    deadline, seen = time.monotonic() + within_s, ""
    for line in process.stdout:
        seen += line
        if word in line:
            return line
        assert time.monotonic() < deadline, seen
    raise AssertionError(f"ended without {word!r}: {seen}")


def test_flash_then_read_slot_gives_the_file_back(tmp_path: Path) -> None:
    (tmp_path / "app.bin").write_bytes(NEW)
    assert flota("flash", "esp32-c3", tmp_path / "app.bin", "--state", tmp_path / "unit").returncode == 0
    done = flota("read-slot", "--state", tmp_path / "unit", "--slot", "running", "-o", tmp_path / "out.bin")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.bin").read_bytes() == NEW


def test_wrong_use_exits_2_and_a_failure_1_with_a_reason(tmp_path: Path) -> None:
    assert flota("flash", "esp32-c3").returncode == 2
    assert flota("run", "esp32-c3", "--state", tmp_path / "a", "--dialect", "smoke-signals").returncode == 2
    failed = flota("read-slot", "--state", tmp_path / "none", "--slot", "ota_0", "-o", tmp_path / "x")
    assert failed.returncode == 1
    assert "there is no virtual device" in failed.stderr
    assert flota("power-cut", "--state", tmp_path / "none").returncode == 1
    assert "no such board" in flota("run", "teapot", "--state", tmp_path / "b").stderr


def test_boards_are_listed_as_data() -> None:
    names = [row["name"] for row in json.loads(flota("boards", "--json").stdout)]
    assert {"esp32-c3", "generic-linux"} <= set(names)


def test_reset_reboots_power_cut_kills_and_a_stop_is_clean(tmp_path: Path) -> None:
    (tmp_path / "old.bin").write_bytes(OLD)
    unit = ("esp32-c3", "--state", tmp_path / "unit", "--speed", 100, "--firmware", tmp_path / "old.bin", "--json")
    process = start(*unit)
    try:
        assert json.loads(read_until(process, '"boot"'))["version"] == "1.0.0"
        assert flota("reset", "--state", tmp_path / "unit").returncode == 0
        assert "reset-button" in read_until(process, '"boot"')
        assert flota("power-cut", "--state", tmp_path / "unit").returncode == 0
        assert process.wait(30) == -signal.SIGKILL
        assert flota("power-cut", "--state", tmp_path / "unit").returncode == 1
    finally:
        process.kill()
        process.communicate()
    process = start(*unit)
    try:
        assert "power-on" in read_until(process, '"boot"')
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


async def test_kill_9_in_the_middle_of_a_download_and_again_in_the_installation_converges(tmp_path: Path) -> None:
    import asyncio

    (tmp_path / "old.bin").write_bytes(OLD)
    ddi = SmallDdi(NEW)
    async with small_server(ddi.handle) as server:
        ddi.server = server
        unit = (
            *("esp32-c3", "--name", "unit-1", "--state", tmp_path / "unit", "--firmware", tmp_path / "old.bin"),
            *("--server", server.url, "--dialect", "ddi", "--speed", 20, "--poll-interval", 2, "--json"),
        )
        for word in ('"progress"', '"progress"', '"installed"'):
            process = start(*unit)
            await asyncio.to_thread(read_until, process, word)
            process.kill()
            await asyncio.to_thread(process.communicate)
        process = start(*unit)
        try:
            line = json.loads(await asyncio.to_thread(read_until, process, '"reported"'))
        finally:
            process.kill()
            await asyncio.to_thread(process.communicate)
    assert "success" in line["text"]
    assert any("range" in request.headers for request in ddi.downloads)
    done = flota("read-slot", "--state", tmp_path / "unit", "--slot", "running", "-o", tmp_path / "out.bin")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.bin").read_bytes() == NEW
