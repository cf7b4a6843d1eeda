"""A device that loses power in the middle of a download is no failure: it updates all the same, on every route."""

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

SLOW_SPEED = 4.0
"""Erasing and programming 1 MiB takes a few seconds at this speed."""

IMAGE_BYTES = 1_500_000
ROUTES = ("http-update", "esp-https-ota", "ddi")


@pytest.mark.scenario
@pytest.mark.timeout(150)
def test_a_power_cut_in_the_middle_of_a_download_costs_nothing(
    tmp_path: Path, server: LocalServer, client: ManagementClient, key: PrivateKey
) -> None:
    client.add_type("sensor", "esp32-c3", signers=[key.public_pem], poll_interval_s=30)
    publish(client, key, "sensor", "2.0.0", sample_app("2.0.0", size=IMAGE_BYTES))
    fleet = RunningFleet(
        tmp_path / "devices",
        server_url=server.address.http,
        signers=TrustedSigners.of([key.public_pem]),
        speed=SLOW_SPEED,
        poll_interval_s=4.0,
    )
    for number, route in enumerate(ROUTES):
        device = FleetDevice(route, "esp32-c3", "sensor", route, f"02:00:00:00:00:{number:02X}")
        token = client.add_device(device.name, device.type_name, mac=device.mac).token
        assert token is not None
        fleet.add(device, image=sample_app("1.0.0"), version="1.0.0", token=token)
    with fleet:
        rollout = client.create_rollout("sensor@2.0.0", select="type=sensor", abort_after=1).id
        still_to_cut = set(ROUTES)

        def everyone_was_cut() -> bool:
            for device in fleet.snapshots():
                if device.name in still_to_cut and 25 <= device.progress_percent < 60:
                    fleet.cut_power(device.name)
                    still_to_cut.remove(device.name)
            return not still_to_cut

        wait_until(everyone_was_cut, within_s=60, what="each device in the middle of its download")
        wait_until(lambda: client.rollout(rollout).is_final, within_s=90, what="the rollout ended")
        outcome = {each.device: (each.state, each.basis) for each in client.executions(rollout)}
        assert outcome == dict.fromkeys(ROUTES, ("SUCCEEDED", "reported"))
        assert {each.running_version for each in fleet.snapshots()} == {"2.0.0"}
