"""Whatever a bad release does, each device is back on the good one and its update has FAILED with a reason, on every
route: not because somebody inferred it, but because the device said what it runs.
"""

from pathlib import Path

import pytest

from flota.client.management import ManagementClient
from flota.lab.running_fleet import RunningFleet
from flota.lab.sample_firmware import sample_app
from flota.trust.keys import PrivateKey
from tests.scenarios.conftest import wait_until
from tests.scenarios.one_of_each_route import ROUTES, one_of_each_route
from tests.scenarios.releases import publish

SPEED = 20.0


@pytest.fixture
def fleet(tmp_path: Path, client: ManagementClient, key: PrivateKey) -> RunningFleet:
    return one_of_each_route(tmp_path / "devices", client, key, speed=SPEED, poll_interval_s=5.0)


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
