"""A virtual AmebaD board in one process, `flota discover` and `flota push` in others: the vendor's guide, all of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flota.images.ameba import pack_ota_file
from flota.lab.sample_firmware import sample_ameba
from tests.scenarios.conftest import wait_until

pytestmark = pytest.mark.scenario

SIZE = 128 * 1024
GUIDES_LINES = (
    "[beginOTA] Listening on port {port}.",
    "[beginOTA] Waiting for client ...",
    "[ota_accept_socket] [INFO] Accept connection successfully",
    "[beginOTA] Receive file_info done",
    "[beginOTA] Get OTA header done",
    "[beginOTA] Download new firmware done",
    "OTA image({address}) checksum ok!!!",
    "[change_ota_signature] Update OTA success!",
    "[beginOTA] Ready to reboot",
    "[beginOTA] Update task exit",
)


def flota(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flota", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


class Board:
    """A `flota lab run amebad` and what came out of it."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "unit"
        self.name = f"lamp-{os.getpid()}-{directory.name[-12:]}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._log = directory / "serial.log"

    @contextmanager
    def powered(self) -> Iterator[None]:
        command = [sys.executable, "-m", "flota", "lab", "run", "amebad", "--name", self.name, "--json"]
        command += ["--state", str(self.state), "--listen", f"127.0.0.1:{self.port}", "--speed", "200"]
        with self._log.open("ab") as log, subprocess.Popen(command, stdout=log) as process:
            try:
                yield
            finally:
                process.send_signal(signal.SIGINT)

    def said(self, kind: str) -> list[str]:
        """What it told of one kind of event, in order."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("}")]
        return [event["text"] for event in events if event["event"] == kind]

    def wait_for_boot(self, number: int, slot: str, version: str) -> None:
        wait_until(lambda: len(self.said("boot")) >= number, within_s=30, what=f"boot {number}")
        assert f": {slot}, version {version}" in self.said("boot")[number - 1]

    def discovered(self) -> dict[str, object]:
        """What `flota discover` finds of it, once it has announced itself."""
        found: list[dict[str, object]] = []

        def look() -> bool:
            result = flota("discover", "--json", "--interface", "127.0.0.1", "--seconds", "2")
            assert result.returncode == 0, result.stderr
            found[:] = [board for board in json.loads(result.stdout) if board["instance"] == self.name]
            return bool(found)

        wait_until(look, within_s=30, what=f"{self.name} is discovered")
        return found[0]


def image_file(directory: Path, version: str) -> Path:
    path = directory / f"km0_km4_image2-{version}.bin"
    path.write_bytes(sample_ameba(version, size=SIZE))
    return path


def test_a_board_is_discovered_pushed_to_and_boots_ota2_and_at_the_next_update_ota1(tmp_path: Path) -> None:
    board = Board(tmp_path)
    with board.powered():
        board.wait_for_boot(1, "ota1", "1.0.0")
        found = board.discovered()
        assert (found["board"], found["kind"]) == ("ameba_rtl8721d", "ameba")
        assert (found["upload_port"], found["upload_port_from"]) == (board.port, "announced")
        target = f"{found['address']}:{found['upload_port']}"

        first = tmp_path / "OTA_All.bin"
        first.write_bytes(pack_ota_file(sample_ameba("2.0.0", size=SIZE)))
        pushed = flota("push", first, "--to", target, "--json")
        assert pushed.returncode == 0, pushed.stderr
        assert json.loads(pushed.stdout)["outcome"] == "delivered"
        board.wait_for_boot(2, "ota2", "2.0.0")
        lines = [line.format(port=board.port, address="08106000") for line in GUIDES_LINES]
        serial = iter(board.said("serial"))
        assert all(line in serial for line in lines), "the guide's lines, in its order"

        pushed = flota("push", image_file(tmp_path, "7.1.0"), "--to", target)
        assert pushed.returncode == 0, pushed.stderr
        assert "is packed" in pushed.stdout
        board.wait_for_boot(3, "ota1", "7.1.0")
        assert "OTA image(08006000) checksum ok!!!" in board.said("serial")
    out = tmp_path / "running.bin"
    read = flota("lab", "read-slot", "--state", board.state, "--slot", "running", "-o", out)
    assert read.returncode == 0, read.stderr
    assert out.read_bytes() == sample_ameba("7.1.0", size=SIZE)


def test_serial_upload_shows_no_effect_while_ota2_is_valid_unless_the_flash_is_erased(tmp_path: Path) -> None:
    board = Board(tmp_path)
    with board.powered():
        board.wait_for_boot(1, "ota1", "1.0.0")
        wait_until(lambda: board.said("serial"), within_s=20, what="it listens")
        pushed = flota("push", image_file(tmp_path, "2.0.0"), "--to", f"127.0.0.1:{board.port}")
        assert pushed.returncode == 0, pushed.stderr
        board.wait_for_boot(2, "ota2", "2.0.0")
    sketch = image_file(tmp_path, "9.0.0")
    told = flota("lab", "flash", "amebad", sketch, "--state", board.state)
    assert told.returncode == 0, told.stderr
    assert "ota2 is still valid and is what boots: erase the flash first (--erase)" in told.stdout
    with board.powered():
        board.wait_for_boot(3, "ota2", "2.0.0")
    told = flota("lab", "flash", "amebad", sketch, "--state", board.state, "--erase")
    assert "ota2" not in told.stdout
    with board.powered():
        board.wait_for_boot(4, "ota1", "9.0.0")


def test_a_crashing_update_is_not_rolled_back_because_the_chip_has_no_way_back(tmp_path: Path) -> None:
    board = Board(tmp_path)
    with board.powered():
        board.wait_for_boot(1, "ota1", "1.0.0")
        wait_until(lambda: board.said("serial"), within_s=20, what="it listens")
        assert flota("push", image_file(tmp_path, "3.0.0"), "--to", f"127.0.0.1:{board.port}").returncode == 0
        wait_until(lambda: len(board.said("panic")) >= 2, within_s=30, what="it panics again and again")
        assert all("ota2, version 3.0.0" in boot for boot in board.said("boot")[1:])
