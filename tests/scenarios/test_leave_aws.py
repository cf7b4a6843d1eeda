"""The how-to "leave AWS in an afternoon", line by line as it stands there, against a server and a virtual device."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from flota.lab.local_server import LocalServer
from flota.trust.thing_certificates import new_thing_key
from flota.trust.thing_credentials import ThingCredentials, ThingFile, pack_credentials_source
from tests.scenarios.conftest import wait_until

pytestmark = pytest.mark.scenario

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "leave-aws.md"
THING = "MY-IOT-OTA-Device"
WITHIN_S = 60.0


def commands() -> list[list[str]]:
    """Return the commands of the how-to in order, the server's own left out: it runs already."""
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert all(line.startswith("flota ") for line in lines)
    return [words for line in lines if (words := shlex.split(line))[1] != "up"]


def an_old_source() -> str:
    """Return the sources of a device in the field: its certificate is another authority's."""
    name, now, key = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]), datetime.now(UTC), new_thing_key("p256")
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 3)
        .not_valid_before(now - timedelta(days=400))
        .not_valid_after(now + timedelta(days=8000))
        .sign(new_thing_key("p256"), hashes.SHA256())
    )
    certificate = made.public_bytes(serialization.Encoding.PEM).decode()
    return pack_credentials_source(ThingCredentials(ThingFile("meter-17", "meter-17", "x", 8883), certificate))


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str], directory: Path) -> Iterator[None]:
    """Run a command inside the block, as in another terminal."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, env=environment, cwd=directory) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)


@pytest.mark.timeout(180)
def test_every_command_of_the_guide_runs_and_the_device_updates(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "aws_credentials.c").write_text(an_old_source())
    (tmp_path / "app_V1.0.1.bin").write_bytes(os.urandom(60_000))
    plain = {name: value for name, value in os.environ.items() if not name.startswith("FLOTA_")}
    environment = plain | {"FLOTA_DATA": str(tmp_path / "server"), "FLOTA_KEYS": str(tmp_path / "keys")}
    flota = [sys.executable, "-m"]
    *before, last = commands()
    (virtual,) = [words for words in before if words[1:3] == ["lab", "run"]]
    for words in before:
        if words is not virtual:
            subprocess.run([*flota, *words], check=True, env=environment, cwd=tmp_path, timeout=60)
    log = tmp_path / "device.log"
    with running([*flota, *virtual], log, environment, tmp_path):
        wait_until(lambda: "connected" in log.read_text(), within_s=WITHIN_S, what="the device's connection")
        done = subprocess.run(
            [*flota, *last], check=True, env=environment, cwd=tmp_path, timeout=WITHIN_S, capture_output=True, text=True
        )
    assert "succeeded, 1 of 1 devices run 1.0.1" in done.stdout + done.stderr
    with server.client() as client:
        (execution,) = client.device_executions(THING)
        assert execution.details["reason"] == "accepted  v1.0.1"
        assert client.rollout("My-OTA-Job").job_id == "AFR_OTA-My-OTA-Job"
        assert [one.issued_here for one in client.device_certificates("meter-17")] == [False]
        assert [one.template for one in client.certificates(purpose="claim")] == ["meters"]
