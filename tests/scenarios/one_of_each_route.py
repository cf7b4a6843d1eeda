"""Three ESP32-C3 of one type, one for each route that they can speak, with version 1.0.0 from the factory."""

from pathlib import Path

from flota.client.management import ManagementClient
from flota.lab.running_fleet import FleetDevice, RunningFleet
from flota.lab.sample_firmware import sample_app
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners

ROUTES = ("http-update", "esp-https-ota", "ddi")
"""Also the devices' names."""


def one_of_each_route(
    directory: Path, client: ManagementClient, key: PrivateKey, *, speed: float, poll_interval_s: float
) -> RunningFleet:
    """Declare the type `sensor`, register the devices and return them, still powered off."""
    client.add_type("sensor", "esp32-c3", signers=[key.public_pem], poll_interval_s=30)
    signers = TrustedSigners.of([key.public_pem])
    fleet = RunningFleet(
        directory, server_url=client.base_url, signers=signers, speed=speed, poll_interval_s=poll_interval_s
    )
    for number, route in enumerate(ROUTES):
        device = FleetDevice(route, "esp32-c3", "sensor", route, f"02:00:00:00:00:{number:02X}")
        token = client.add_device(device.name, device.type_name, mac=device.mac).token
        assert token is not None
        fleet.add(device, image=sample_app("1.0.0"), version="1.0.0", token=token)
    return fleet
