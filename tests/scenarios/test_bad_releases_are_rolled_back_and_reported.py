"""Whatever a bad release does, each device is back on the good one and its update has FAILED with a reason, on every
route: not because somebody inferred it, but because the device said what it runs.
"""

from pathlib import Path

import pytest

from flota.client.management import ManagementClient
from flota.lab.local_server import LocalServer
from flota.lab.running_fleet import FleetDevice, RunningFleet
from flota.lab.sample_firmware import sample_app
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners
from tests.scenarios.conftest import wait_until
from tests.scenarios.releases import publish

ROUTES = ("http-update", "esp-https-ota", "ddi")
SPEED = 20.0


@pytest.fixture
def fleet(tmp_path: Path, server: LocalServer, client: ManagementClient, key: PrivateKey) -> RunningFleet:
    client.add_type("sensor", "esp32-c3", signers=[key.public_pem], poll_interval_s=30)
    fleet = RunningFleet(
        tmp_path / "devices",
        server_url=server.address.http,
        signers=TrustedSigners.of([key.public_pem]),
        speed=SPEED,
        poll_interval_s=5.0,
    )
    for number, route in enumerate(ROUTES):
        device = FleetDevice(route, "esp32-c3", "sensor", route, f"02:00:00:00:00:{number:02X}")
        token = client.add_device(device.name, device.type_name, mac=device.mac).token
        assert token is not None
        fleet.add(device, image=sample_app("1.0.0"), version="1.0.0", token=token)
    return fleet


def roll_out(client: ManagementClient, version: str) -> dict[str, tuple[str, str | None, str]]:
    """Roll a version out to all and return (state, basis, reason) by device once the rollout has ended."""
    rollout = client.create_rollout(f"sensor@{version}", select="type=sensor", abort_after=len(ROUTES)).id
    wait_until(lambda: client.rollout(rollout).is_final, within_s=60, what=f"the rollout of {version} ended")
    return {
        each.device: (each.state, each.basis, each.details.get("reason", "")) for each in client.executions(rollout)
    }


@pytest.mark.scenario
@pytest.mark.timeout(150)
@pytest.mark.parametrize("bad_version", ["3.0.0", "4.0.0", "5.0.0"], ids=["crashes", "never-confirms", "loses-network"])
def test_a_bad_release_fails_with_a_reason_on_every_route(
    fleet: RunningFleet, client: ManagementClient, key: PrivateKey, bad_version: str
) -> None:
    for version in ("2.0.0", bad_version):
        publish(client, key, "sensor", version, sample_app(version))
    with fleet:
        good = roll_out(client, "2.0.0")
        assert good == dict.fromkeys(ROUTES, ("SUCCEEDED", "reported", ""))
        bad = roll_out(client, bad_version)
        for route in ROUTES:
            state, basis, reason = bad[route]
            assert (state, basis) == ("FAILED", "reported"), route
            assert reason, route
        wait_until(
            lambda: all(each.running_version == "2.0.0" and each.confirmed for each in fleet.snapshots()),
            within_s=30,
            what="every device back on 2.0.0",
        )
