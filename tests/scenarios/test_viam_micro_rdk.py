"""micro-RDK from end to end: a server, its command line, and a virtual ESP32 that only knows its configuration."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flota.client.management import ManagementClient
from flota.client.schemas import Execution
from flota.lab.local_server import LocalServer
from flota.lab.running_fleet import FleetDevice, RunningFleet
from flota.lab.sample_firmware import sample_app
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners
from tests.scenarios.conftest import wait_until
from tests.scenarios.releases import publish
from tests.virtual.images import app_image

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]

QUIET_S = 4.0
"""Short, so that nobody waits; longer than a device at speed 20 takes to erase, verify and ask again."""

ROVER = "rover-1"

NEARLY_A_SLOT = 3_600_000
"""So long that a quarter of it and the device's window of 2 MiB are not the whole: there is something left to lose."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "flota.toml").write_text(f"viam_quiet_s = {QUIET_S}\n")
    server = LocalServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def flota(server: LocalServer, *arguments: object) -> str:
    address = ["--server", server.address.http, "--token", server.address.token]
    command = [sys.executable, "-m", "flota", *map(str, arguments), *address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lab(*arguments: object) -> None:
    command = [sys.executable, "-m", "flota", "lab", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=50, capture_output=True)


@contextlib.contextmanager
def rover_process(
    state: Path, config: Path, *, speed: float, cacert: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "flota", "lab", "run", "esp32", "--name", ROVER, "--state", state]
    command += ["--viam-config", config, "--speed", speed, "--json"]
    command += ["--cacert", cacert] if cacert is not None else []
    with (state.parent / f"{state.name}.jsonl").open("w") as log:
        process = subprocess.Popen([*map(str, command)], stdout=log, text=True)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)


def events(state: Path, kind: str) -> list[str]:
    lines = (state.parent / f"{state.name}.jsonl").read_text().splitlines()
    return [event["text"] for event in map(json.loads, lines) if event["event"] == kind]


def offered(client: ManagementClient, key: PrivateKey, image: bytes, version: str = "2.0.0") -> int:
    """Publish an image for micro-RDKs and roll it out to the one there is; returns the rollout."""
    client.add_type("rover", "esp32", signers=[key.public_pem])
    publish(client, key, "rover", version, image)
    client.add_device(ROVER, "rover")
    rollout = client.create_rollout(f"rover@{version}", devices=[ROVER]).id
    wait_until(lambda: client.executions(rollout), within_s=10, what="the execution is open")
    return rollout


def the_execution(client: ManagementClient, rollout: int) -> Execution:
    [execution] = client.executions(rollout)
    return execution


def test_the_printed_configuration_updates_a_device_and_its_silence_is_taken_for_success(
    tmp_path: Path, server: LocalServer, client: ManagementClient, key: PrivateKey
) -> None:
    image = sample_app("2.0.0", chip="esp32")
    rollout = offered(client, key, image)
    config, state = tmp_path / "rover.json", tmp_path / "rover"
    config.write_text(flota(server, "viam", "config", "rover@2.0.0", "--device", ROVER))
    with rover_process(state, config, speed=20):
        wait_until(lambda: not the_execution(client, rollout).is_open, within_s=60, what="an outcome")
        wait_until(lambda: len(events(state, "boot")) == 2, within_s=20, what="the restart")
    execution = the_execution(client, rollout)
    assert (execution.state, execution.basis) == ("SUCCEEDED", "inferred")
    assert execution.details["gets"] == "1"
    lab("read-slot", "--state", state, "--slot", "running", "-o", tmp_path / "running.bin")
    assert (tmp_path / "running.bin").read_bytes() == image


def test_an_image_that_the_device_refuses_after_writing_it_is_asked_for_again_flagged_and_never_a_success(
    tmp_path: Path, client: ManagementClient, key: PrivateKey
) -> None:
    too_new = app_image("2.0.0", chip="esp32", min_chip_revision=399, size=300_000)
    rollout = offered(client, key, too_new)
    config, state = tmp_path / "rover.json", tmp_path / "rover"
    [link] = client.viam_links(rollout=rollout).items
    config.write_text(json.dumps(link.service))
    states = set()

    def has_ended() -> bool:
        states.add(the_execution(client, rollout).state)
        return not the_execution(client, rollout).is_open

    with rover_process(state, config, speed=400):
        wait_until(has_ended, within_s=60, what="an outcome")
    execution = the_execution(client, rollout)
    assert (execution.state, execution.basis) == ("FAILED", "inferred")
    assert "SUCCEEDED" not in states
    assert int(execution.details["gets"]) > 2
    assert "again and again" in execution.details["flag"]
    assert events(state, "installed") == []
    assert len(events(state, "update-failed")) > 2
    assert events(state, "boot") == [events(state, "boot")[0]]


def test_over_tls_only_a_firmware_that_knows_our_authority_gets_the_image(
    tmp_path: Path, server: LocalServer, client: ManagementClient, key: PrivateKey
) -> None:
    rollout = offered(client, key, sample_app("2.0.0", chip="esp32", size=512 * 1024))
    config = tmp_path / "rover.json"
    made = client.viam_links(rollout=rollout, base_url=server.address.https)
    assert made.warnings, "a link that no device in the field can use has to be given with a warning"
    config.write_text(json.dumps(made.items[0].service))
    with rover_process(tmp_path / "as-shipped", config, speed=50):
        wait_until(lambda: events(tmp_path / "as-shipped", "update-failed"), within_s=60, what="the run has failed")
    assert "certificate" in events(tmp_path / "as-shipped", "break")[0]
    assert the_execution(client, rollout).state == "QUEUED"
    with rover_process(tmp_path / "own", config, speed=50, cacert=server.data / "ca" / "root.crt"):
        wait_until(lambda: not the_execution(client, rollout).is_open, within_s=60, what="an outcome")
        wait_until(lambda: len(events(tmp_path / "own", "boot")) == 2, within_s=20, what="the restart")
    execution = the_execution(client, rollout)
    assert (execution.state, execution.basis) == ("SUCCEEDED", "inferred")


def test_a_server_that_dies_in_the_middle_costs_a_download_from_zero_and_nothing_else(
    tmp_path: Path, server: LocalServer, key: PrivateKey
) -> None:
    with server.client() as client:
        rollout = offered(client, key, sample_app("2.0.0", chip="esp32", size=NEARLY_A_SLOT))
        [link] = client.viam_links(rollout=rollout).items
        address, signers = server.address.http, TrustedSigners.of([key.public_pem])
        fleet = RunningFleet(tmp_path / "devices", address, signers, speed=8.0, poll_interval_s=10.0)
        device = FleetDevice(ROVER, "esp32", "rover", "viam", "02:00:00:00:00:01")
        fleet.add(device, image=sample_app("1.0.0", chip="esp32"), version="1.0.0", token="")
        fleet.configure(ROVER, link.service)
        with fleet:
            wait_until(lambda: fleet.snapshots()[0].progress_percent >= 25, within_s=40, what="the middle of the body")
            server.kill()
            wait_until(lambda: "ended before" in fleet.snapshots()[0].doing, within_s=20, what="the break")
            server.start()
            with server.client() as after:
                wait_until(lambda: not the_execution(after, rollout).is_open, within_s=60, what="an outcome")
                execution = the_execution(after, rollout)
            assert (execution.state, execution.basis) == ("SUCCEEDED", "inferred")
            assert int(execution.details["gets"]) >= 2
            assert fleet.snapshots()[0].running_version == "2.0.0"
