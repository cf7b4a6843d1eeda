"""A virtual ESP32-C3 with ArduinoOTA in one process, `flota discover` and `flota push` in others."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flota.lab.sample_firmware import sample_app
from tests.scenarios.conftest import wait_until

pytestmark = pytest.mark.scenario


def flota(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flota", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_an_esp_board_is_discovered_as_such_and_takes_an_update_from_whoever_knows_its_password(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    name = f"sensor-{os.getpid()}"
    app, log = tmp_path / "app.bin", tmp_path / "log"
    app.write_bytes(sample_app("2.0.0", size=128 * 1024))
    command = [sys.executable, "-m", "flota", "lab", "run", "esp32-c3", "--name", name, "--dialect", "espota", "--json"]
    command += ["--state", str(tmp_path / "unit"), "--listen", f"127.0.0.1:{port}", "--password", "s3cret"]
    with log.open("wb") as out, subprocess.Popen([*command, "--speed", "50"], stdout=out) as process:
        try:
            found: list[dict[str, object]] = []

            def look() -> bool:
                result = flota("discover", "--json", "--interface", "127.0.0.1", "--seconds", "1.5")
                found[:] = [board for board in json.loads(result.stdout) if board["instance"] == name]
                return bool(found)

            wait_until(look, within_s=30, what="it is discovered")
            assert (found[0]["kind"], found[0]["upload_port"], found[0]["needs_password"]) == ("espota", port, True)
            assert str(found[0]["mac"]).count(":") == 5
            refused = flota("push", app, "--to", f"127.0.0.1:{port}", "--password", "wrong")
            assert refused.returncode == 1
            assert "the device refused the password" in refused.stderr
            pushed = flota("push", app, "--to", f"127.0.0.1:{port}", "--password", "s3cret", "--json")
            assert pushed.returncode == 0, pushed.stderr
            told = json.loads(pushed.stdout)
            assert (told["outcome"], told["auth"]) == ("taken", "pbkdf2 with sha256")
            wait_until(lambda: "version 2.0.0 confirmed itself" in log.read_text(), within_s=30, what="it runs 2.0.0")
        finally:
            process.send_signal(signal.SIGINT)
