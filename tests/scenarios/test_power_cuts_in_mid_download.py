"""A device that loses power in the middle of a download is no failure: it updates all the same, on every route."""

from pathlib import Path

import pytest

from flota.client.management import ManagementClient
from flota.lab.sample_firmware import sample_app
from flota.trust.keys import PrivateKey
from tests.scenarios.conftest import wait_until
from tests.scenarios.one_of_each_route import ROUTES, one_of_each_route
from tests.scenarios.releases import publish

SLOW_SPEED = 4.0
"""Erasing and programming 1 MiB takes a few seconds at this speed."""

IMAGE_BYTES = 1_500_000


@pytest.mark.scenario
@pytest.mark.timeout(150)
def test_a_power_cut_in_the_middle_of_a_download_costs_nothing(
    tmp_path: Path, client: ManagementClient, key: PrivateKey
) -> None:
    fleet = one_of_each_route(tmp_path / "devices", client, key, speed=SLOW_SPEED, poll_interval_s=4.0)
    publish(client, key, "sensor", "2.0.0", sample_app("2.0.0", size=IMAGE_BYTES))
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
