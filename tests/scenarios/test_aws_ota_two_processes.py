"""`flota up` in one process, `flota lab run aws-reference` in another: killed in mid-stream, either of them."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flota.client.management import ManagementClient
from flota.client.schemas import Execution
from flota.lab.demo_meters import Meters
from flota.lab.local_server import LocalServer
from flota.lab.sample_firmware import sample_versioned_file
from flota.trust.keys import PrivateKey
from tests.scenarios.conftest import wait_until

pytestmark = pytest.mark.scenario

METER = "meter"
NAME = "meter-1"
SIZE = 512 * 1024
BLOCK = 1024
WITHIN_S = 50.0


class Unit:
    """A virtual device as its own process, and what it told."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "unit"
        self.credentials = directory / "credentials" / NAME
        self._log = directory / "unit.log"

    @contextmanager
    def powered(self, *, mqtts: str) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "flota", "lab", "run", "aws-reference", "--name", NAME, "--json"]
        command += ["--state", str(self.state), "--credentials", str(self.credentials), "--mqtt", mqtts]
        command += ["--speed", "20", "--block-size", str(BLOCK)]
        with self._log.open("ab") as log, subprocess.Popen(command, stdout=log) as process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGINT)

    def events(self, kind: str) -> list[dict[str, object]]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("}")]
        return [event for event in events if event["event"] == kind]


@contextmanager
def prepared(server: LocalServer, directory: Path) -> Iterator[tuple[ManagementClient, Unit]]:
    """A type with its certificates, a device with credentials, and release 1.0.1."""
    meters = Meters(directory / "credentials")
    data = sample_versioned_file("1.0.1", size=SIZE)
    key = PrivateKey.generate("ed25519")
    with server.client() as client:
        client.add_type(METER, "aws-reference", signers=[key.public_pem])
        meters.trust(client, METER)
        meters.with_certificate(client, server.address, NAME, METER, "02:00:00:00:00:01")
        artifact = client.upload_bytes(data, "meter-1.0.1.bin")
        release = client.create_release(METER, "1.0.1", artifact.sha256, filename="meter-1.0.1.bin")
        made = key.sign(client.manifest(release.id))
        client.add_signature(release.id, made.key_id, made.algorithm, base64.b64encode(made.signature).decode())
        meters.sign(client, release.id, data)
        client.publish(release.id)
        yield client, Unit(directory)


def the_execution(client: ManagementClient) -> Execution:
    (execution,) = client.device_executions(NAME)
    return execution


def address_of(server: LocalServer) -> str:
    assert server.address.mqtts is not None
    return server.address.mqtts.removeprefix("mqtts://")


def in_the_middle(unit: Unit) -> bool:
    return any(event.get("done") not in (None, 1) for event in unit.events("progress"))


@pytest.mark.timeout(150)
def test_a_device_killed_in_mid_stream_begins_again_and_succeeds(server: LocalServer, tmp_path: Path) -> None:
    with prepared(server, tmp_path) as (client, unit):
        client.create_rollout(f"{METER}@1.0.1", devices=[NAME], name="meters-one")
        with unit.powered(mqtts=address_of(server)) as process:
            wait_until(lambda: in_the_middle(unit), within_s=WITHIN_S, what="half of the file")
            process.kill()
            process.wait()
        with unit.powered(mqtts=address_of(server)):
            wait_until(lambda: the_execution(client).state == "SUCCEEDED", within_s=WITHIN_S, what="the update")
        assert unit.events("confirmed")[-1]["version"] == "1.0.1"
        assert [event["version"] for event in unit.events("boot")] == ["1.0.0", "1.0.0", "1.0.1"]


@pytest.mark.timeout(150)
def test_a_server_killed_in_mid_stream_comes_back_and_the_device_goes_on(server: LocalServer, tmp_path: Path) -> None:
    with prepared(server, tmp_path) as (client, unit):
        client.create_rollout(f"{METER}@1.0.1", devices=[NAME], name="meters-two")
        with unit.powered(mqtts=address_of(server)):
            wait_until(lambda: in_the_middle(unit), within_s=WITHIN_S, what="a part of the file")
            server.kill()
            server.start()
            with server.client() as again:
                wait_until(lambda: the_execution(again).state == "SUCCEEDED", within_s=WITHIN_S, what="the update")
        assert unit.events("break"), "the connection was lost"
        assert any("goes on" in str(event["text"]) for event in unit.events("serial")), "what was in is kept"
        assert unit.events("confirmed")[-1]["version"] == "1.0.1"
