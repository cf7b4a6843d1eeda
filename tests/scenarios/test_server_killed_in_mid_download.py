"""Kill -9 the server in the middle of ten downloads: after a restart everything converges and nothing is lost."""

import time
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

SLOW_SPEED = 3.0
"""A 1 MiB image takes about five seconds to program at this speed: long enough to be in the middle."""

DEVICES = [
    *(FleetDevice(f"http-{i}", "esp32-c3", "sensor", "http-update", f"02:00:00:00:01:{i:02X}") for i in range(5)),
    *(FleetDevice(f"ddi-{i}", "esp32-c3", "sensor", "ddi", f"02:00:00:00:02:{i:02X}") for i in range(5)),
]


@pytest.mark.scenario
@pytest.mark.timeout(180)
def test_a_server_killed_in_the_middle_of_ten_downloads_loses_nothing(
    tmp_path: Path, server: LocalServer, key: PrivateKey
) -> None:
    with server.client() as client:
        client.add_type("sensor", "esp32-c3", signers=[key.public_pem], poll_interval_s=30)
        publish(client, key, "sensor", "2.0.0", sample_app("2.0.0"))
        fleet = _fleet(tmp_path, server, client, key)
        with fleet:
            rollout = client.create_rollout("sensor@2.0.0", select="type=sensor", name="all", abort_after=1).id
            wait_until(
                lambda: sum(25 <= each.progress_percent < 90 for each in fleet.snapshots()) == len(DEVICES),
                within_s=60,
                what="ten downloads under way at once",
            )
            before = client.last_audit_sequence()
            server.kill()
            time.sleep(1.0)
            server.start()
            with server.client() as after:
                assert after.last_audit_sequence() >= before
                wait_until(lambda: after.rollout(rollout).is_final, within_s=120, what="the rollout ended")
                _check_outcome(after, fleet, rollout)


def _fleet(tmp_path: Path, server: LocalServer, client: ManagementClient, key: PrivateKey) -> RunningFleet:
    fleet = RunningFleet(
        tmp_path / "devices",
        server_url=server.address.http,
        signers=TrustedSigners.of([key.public_pem]),
        speed=SLOW_SPEED,
        poll_interval_s=3.0,
    )
    factory_image = sample_app("1.0.0")
    for device in DEVICES:
        token = client.add_device(device.name, device.type_name, mac=device.mac).token
        assert token is not None
        fleet.add(device, image=factory_image, version="1.0.0", token=token)
    return fleet


def _check_outcome(client: ManagementClient, fleet: RunningFleet, rollout: int) -> None:
    executions = client.executions(rollout)
    assert sorted(each.device for each in executions) == sorted(device.name for device in DEVICES), "lost or doubled"
    assert {each.state for each in executions} == {"SUCCEEDED"}
    assert {each.basis for each in executions} == {"reported"}
    for snapshot in fleet.snapshots():
        assert snapshot.running_version == "2.0.0"
    trail = _whole_trail(client)
    assert [each.sequence for each in trail] == list(range(1, len(trail) + 1)), "the audit trail has a gap"
    for execution in executions:
        _check_history(client, execution)


def _check_history(client: ManagementClient, execution: Execution) -> None:
    versions = [event.version for event in client.execution_events(execution.id)]
    assert versions == list(range(1, execution.version + 1)), f"{execution.device}: history has a gap"


def _whole_trail(client: ManagementClient) -> list[object]:
    trail: list[object] = []
    while page := client.audit(after=len(trail)):
        trail.extend(page)
    return trail
