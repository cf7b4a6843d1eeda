"""The demo: a server, a fleet of virtual devices, a good release for all of them, and a bad one that is stopped.

Everything runs on this machine: `flota up` as a process of its own, the devices as tasks of this one. What the devices
run at the end is read from their flash, not from what the server believes; the two must agree.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from flota.client.management import ManagementClient
from flota.client.schemas import Execution, Rollout
from flota.errors import FlotaError, PeerError
from flota.images.ameba import pack_ota_file
from flota.images.mcuboot import ImageKeyKind
from flota.lab.aws_agents import AwsOptions
from flota.lab.demo_meters import Meters
from flota.lab.local_gateway import GatewayOptions, local_gateway
from flota.lab.local_ncp import NcpOptions, local_ncp
from flota.lab.local_server import LocalServer
from flota.lab.running_fleet import DeviceSnapshot, FleetDevice, RunningFleet, has_loopback_addresses
from flota.lab.sample_firmware import (
    sample_ameba,
    sample_app,
    sample_linux_file,
    sample_m487,
    sample_m2354,
    sample_versioned_file,
)
from flota.lab.sample_mcu import sample_mcu
from flota.trust.image_keys import ImagePrivateKey
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners, pack_trust_file

GOOD_VERSION: Final = "2.0.0"
BAD_VERSION: Final = "3.0.0"
FIRST_VERSION: Final = "1.0.0"
SENSOR: Final = "sensor"
EDGE_BOX: Final = "edge-box"
ROVER: Final = "rover"
LAMP: Final = "lamp"
METER: Final = "meter"
PUMP: Final = "pump"
VALVE: Final = "valve"
DOOR: Final = "door"
HEATER: Final = "heater"
FAN: Final = "fan"
TYPES: Final = {
    SENSOR: "esp32-c3",
    EDGE_BOX: "generic-linux",
    ROVER: "esp32",
    LAMP: "amebad",
    METER: "aws-reference",
    PUMP: "m487",
    VALVE: "pfm-m487",
    DOOR: "m2354",
    HEATER: "dual-mcu-ab",
    FAN: "dual-mcu-ncp",
}
"""Device type -> board."""
AWS_TYPES: Final = frozenset({METER, PUMP, VALVE, DOOR})
"""Types whose devices speak AWS IoT."""
BEHIND_NCP: Final = frozenset({HEATER, FAN})
"""Types whose devices are primary MCUs, each with a network co-processor of its own."""
NCP_SETTLE_S: Final = 1.0
"""How long an MCU's new version has to stay: in the demo it has confirmed itself when it reports."""
LAMP_IMAGE_BYTES: Final = 512 * 1024
"""A slot of theirs has less than 1 MiB."""

GATEWAY_EVIDENCE_S: Final = 60.0
"""How long the gateway waits for a lamp's announcement after a push: they restart in a second or two."""

IMAGE_BYTES: Final = 1 << 20
"""At least 1 MiB, so that there is a middle to interrupt."""

GOOD_WITHIN_S: Final = 90.0
BAD_WITHIN_S: Final = 90.0
LOOK_EVERY_S: Final = 0.25
SPEED: Final = 10.0
"""How much faster than real hardware the devices erase, program, reboot and test themselves."""

POLL_INTERVAL_S: Final = 10.0
"""Device time; with `SPEED` that is one look a second."""

QUIET_S: Final = 8.0
"""How long a micro-RDK must not ask again before its update counts as a success: at `SPEED` it erases, writes and
starts in about five seconds, and a failed one asks again a second later."""

SHORTEST_QUIET_S: Final = 4.0
"""However fast the devices are: this machine may be slow."""

DEVICES: Final = (
    *(
        FleetDevice(f"sensor-http-{i}", "esp32-c3", SENSOR, "http-update", f"02:F1:07:00:01:{i:02X}")
        for i in range(1, 5)
    ),
    *(FleetDevice(f"sensor-ddi-{i}", "esp32-c3", SENSOR, "ddi", f"02:F1:07:00:02:{i:02X}") for i in range(1, 5)),
    *(FleetDevice(f"edge-box-{i}", "generic-linux", EDGE_BOX, "ddi", f"02:F1:07:00:03:{i:02X}") for i in range(1, 3)),
    *(FleetDevice(f"rover-{i}", "esp32", ROVER, "viam", f"02:F1:07:00:04:{i:02X}") for i in range(1, 5)),
    *(FleetDevice(f"lamp-{i}", "amebad", LAMP, "ameba-push", f"02:F1:07:00:05:{i:02X}") for i in range(1, 5)),
    *(FleetDevice(f"meter-{i}", "aws-reference", METER, "aws-iot", f"02:F1:07:00:06:{i:02X}") for i in range(1, 3)),
    FleetDevice("pump-1", "m487", PUMP, "aws-iot", "02:F1:07:00:07:01"),
    FleetDevice("valve-1", "pfm-m487", VALVE, "aws-iot", "02:F1:07:00:07:02"),
    FleetDevice("door-1", "m2354", DOOR, "aws-iot", "02:F1:07:00:07:03"),
    FleetDevice("heater-1", "dual-mcu-ab", HEATER, "blynk-ncp", "02:F1:07:00:08:01"),
    FleetDevice("fan-1", "dual-mcu-ncp", FAN, "blynk-ncp", "02:F1:07:00:08:02"),
)
WITH_CERTIFICATE: Final = frozenset({"meter-1"})
"""Devices that show a client certificate; the others have tokens."""

FIRST_WAVE: Final = ("sensor-http-1", "sensor-ddi-1")
"""The two devices that try version 3: one of each route."""


def devices_here() -> tuple[FleetDevice, ...]:
    """Return the devices; without those that are pushed to where loopback has one address only (macOS)."""
    lamps = sum(device.type_name == LAMP for device in DEVICES)
    enough = has_loopback_addresses(lamps)
    return tuple(device for device in DEVICES if enough or device.type_name != LAMP)


class DemoFailed(FlotaError):
    """The demo did not end as it should."""

    code = "demo-failed"


@dataclass(frozen=True, slots=True)
class FleetView:
    """What the screen shows: each device as it is, with its update as the server sees it."""

    devices: Sequence[DeviceSnapshot]
    executions: dict[str, Execution]


@dataclass(frozen=True, slots=True)
class EndState:
    """The end state of one device, and whether it is what it should be."""

    device: DeviceSnapshot
    execution: Execution | None
    offered_version: str
    """What that last update would have brought."""
    good: bool


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo showed; `good` only if every device runs, confirmed, what it should and the bad rollout aborted."""

    devices: Sequence[EndState]
    stopped: Rollout
    first_update_s: float
    total_s: float
    good: bool


class Screen(Protocol):
    """Where the demo speaks."""

    def step(self, text: str) -> None:
        """Say what happens next."""

    def show(self, view: FleetView) -> None:
        """Show the fleet as it is now; called a few times a second."""

    def settle(self) -> None:
        """End the live display before the next step."""


@dataclass(slots=True)
class Demo:
    """The demo with its parts. `directory` is empty or absent before, and everything is kept below it."""

    directory: Path
    screen: Screen
    speed: float = SPEED
    image_bytes: int = IMAGE_BYTES
    devices: Sequence[FleetDevice] = field(default_factory=devices_here)
    _meters: Meters = field(init=False)
    _boot_key: ImagePrivateKey = field(init=False, repr=False)
    """With which the firmware of the M2354 is signed for its boot loader."""

    def __post_init__(self) -> None:
        """Choose where the credentials go."""
        self._meters = Meters(self.directory / "credentials")
        self._boot_key = ImagePrivateKey.generate(ImageKeyKind.RSA_3072)

    @property
    def types(self) -> dict[str, str]:
        """The device types of the demo's devices, with their boards."""
        present = {device.type_name for device in self.devices}
        return {name: board for name, board in TYPES.items() if name in present}

    @contextmanager
    def server(self) -> Iterator[LocalServer]:
        """Run the demo's server."""
        data = self.directory / "server"
        data.mkdir(parents=True, exist_ok=True)
        quiet_s = max(QUIET_S * SPEED / self.speed, SHORTEST_QUIET_S)
        (data / "flota.toml").write_text(f"viam_quiet_s = {quiet_s}\n")
        server = LocalServer(self.directory / "server")
        server.start()
        try:
            yield server
        finally:
            server.stop()

    def run(self, server: LocalServer) -> DemoResult:
        """Go through the whole demo against a running server; raises `DemoFailed` when it gets stuck."""
        started = time.monotonic()
        with server.client() as client:
            key = self._declare_types(client)
            self._publish(client, key)
            with self._fleet(client, server, key) as fleet:
                first_update_s = self._roll_out_good_version(client, fleet, started)
                stopped = self._roll_out_bad_version(client, fleet)
                self.screen.step("The end state of every device, read from its own flash:")
                devices = self._end_states(client, fleet, stopped)
        good = all(each.good for each in devices) and stopped.state == "aborted"
        return DemoResult(devices, stopped, first_update_s, time.monotonic() - started, good)

    def _declare_types(self, client: ManagementClient) -> PrivateKey:
        self.screen.step(
            f"Server is up: {client.base_url}. Making a signing key; the server gets only its public half."
        )
        key = PrivateKey.generate("ed25519")
        (self.directory / "release.pem").touch(mode=0o600)
        (self.directory / "release.pem").write_bytes(key.to_pem())
        signers = [key.public_pem]
        for name, board in self.types.items():
            client.add_type(name, board, signers=signers, poll_interval_s=int(POLL_INTERVAL_S), description="demo")
        for name in AWS_TYPES & set(self.types):
            self._meters.trust(client, name)
        return key

    def _publish(self, client: ManagementClient, key: PrivateKey) -> None:
        self.screen.step("Packing, creating, signing and publishing the releases.")
        for type_name, version in (*((name, GOOD_VERSION) for name in self.types), (SENSOR, BAD_VERSION)):
            filename = f"{type_name}-{version}.bin"
            image = self._image(type_name, version)
            artifact = client.upload_bytes(image, filename)
            release = client.create_release(type_name, version, artifact.sha256, filename=filename)
            signature = key.sign(client.manifest(release.id))
            client.add_signature(
                release.id, signature.key_id, signature.algorithm, base64.b64encode(signature.signature).decode()
            )
            if type_name in AWS_TYPES:
                self._meters.sign(client, release.id, image)
            client.publish(release.id)

    @contextmanager
    def _fleet(self, client: ManagementClient, server: LocalServer, key: PrivateKey) -> Iterator[RunningFleet]:
        counts = ", ".join(f"{sum(d.board == board for d in self.devices)} {board}" for board in self.types.values())
        self.screen.step(f"Flashing version {FIRST_VERSION} and powering on: {counts}.")
        fleet = RunningFleet(
            self.directory / "devices",
            server_url=server.address.http,
            signers=TrustedSigners.of([key.public_pem]),
            speed=self.speed,
            poll_interval_s=POLL_INTERVAL_S,
        )
        images = {name: self._image(name, FIRST_VERSION) for name in self.types}
        tokens: dict[str, str | None] = {}
        for device in self.devices:
            token, aws = self._admit(client, server, device)
            tokens[device.name] = token
            keys = (self._boot_key.public,) if device.type_name == DOOR else ()
            image = images[device.type_name]
            fleet.add(device, image=image, version=FIRST_VERSION, token=token, aws=aws, boot_keys=keys)
        with fleet, self._gateway(client, server, key, fleet), self._ncps(server, key, fleet, tokens):
            yield fleet

    def _admit(
        self, client: ManagementClient, server: LocalServer, device: FleetDevice
    ) -> tuple[str | None, AwsOptions | None]:
        """Register a device; returns its token, None if it shows a certificate, and how it connects over MQTT."""
        if device.name in WITH_CERTIFICATE:
            made = self._meters.with_certificate(client, server.address, device.name, device.type_name, device.mac)
            return None, made
        token = client.add_device(device.name, device.type_name, mac=device.mac).token
        if token is None:
            raise PeerError("the server gave no token for a new device")
        return token, self._meters.with_token(server.address) if device.type_name in AWS_TYPES else None

    @contextmanager
    def _gateway(
        self, client: ManagementClient, server: LocalServer, key: PrivateKey, fleet: RunningFleet
    ) -> Iterator[None]:
        """Run the gateway that carries updates to the boards that cannot fetch for themselves."""
        lamps = [device for device in self.devices if device.type_name == LAMP]
        if not lamps:
            yield
            return
        token = client.create_gateway_token("demo", devices=[device.name for device in lamps]).secret
        if token is None:
            raise PeerError("the server gave no token for the gateway")
        given = GatewayOptions(
            server=server.address.http,
            token=token,
            trust=pack_trust_file(TrustedSigners.of([key.public_pem])),
            devices={
                device.name: f"mac={device.mac},port={fleet.push_port(device.name)},type={LAMP}" for device in lamps
            },
            options=("--poll-s", str(POLL_INTERVAL_S / self.speed), "--evidence-s", str(GATEWAY_EVIDENCE_S)),
        )
        with local_gateway(self.directory / "gateway", given):
            yield

    @contextmanager
    def _ncps(
        self, server: LocalServer, key: PrivateKey, fleet: RunningFleet, tokens: Mapping[str, str | None]
    ) -> Iterator[None]:
        """Run the network co-processor of each primary MCU."""
        with ExitStack() as running:
            for device in self.devices:
                token = tokens[device.name]
                if device.type_name not in BEHIND_NCP or token is None:
                    continue
                given = NcpOptions(
                    server=server.address.http,
                    device=device.name,
                    device_type=device.type_name,
                    board=device.board,
                    serial=fleet.uart_of(device.name),
                    token=token,
                    trust=pack_trust_file(TrustedSigners.of([key.public_pem])),
                    options=("--poll-s", str(POLL_INTERVAL_S / self.speed), "--settle-s", str(NCP_SETTLE_S)),
                )
                running.enter_context(local_ncp(self.directory / f"ncp-{device.name}", given))
            yield

    def _image(self, type_name: str, version: str) -> bytes:
        if type_name == EDGE_BOX:
            return sample_linux_file(version, size=self.image_bytes)
        if type_name == METER:
            return sample_versioned_file(version, size=self.image_bytes)
        if type_name in (PUMP, VALVE):
            return sample_m487(version)
        if type_name in BEHIND_NCP:
            return sample_mcu(version)
        if type_name == DOOR:
            return sample_m2354(version, self._boot_key.signer)
        if type_name == LAMP:
            return pack_ota_file(sample_ameba(version, size=LAMP_IMAGE_BYTES))
        return sample_app(version, chip=TYPES[type_name], size=self.image_bytes)

    def _roll_out_good_version(self, client: ManagementClient, fleet: RunningFleet, started: float) -> float:
        self.screen.step(
            f"Rolling version {GOOD_VERSION} out to all {len(self.devices)} devices, each by its own route."
        )
        rollouts = [
            client.create_rollout(f"{name}@{GOOD_VERSION}", select=f"type={name}", name=_rollout_name(name)).id
            for name in self.types
        ]
        self._configure_rovers(client, fleet, rollouts[list(self.types).index(ROVER)])
        begun = time.monotonic()
        first_update_s = 0.0
        while True:
            view = self._look(client, fleet, rollouts)
            succeeded = sum(each.state == "SUCCEEDED" for each in view.executions.values())
            if succeeded and not first_update_s:
                first_update_s = time.monotonic() - started
            if succeeded == len(self.devices):
                break
            limit_s = GOOD_WITHIN_S * max(1.0, SPEED / self.speed)
            self._give_up_if(time.monotonic() - begun > limit_s, f"version {GOOD_VERSION} did not reach everyone")
            for number in rollouts:
                rollout = client.rollout(number)
                self._give_up_if(rollout.state == "aborted", f"{rollout.name}: {rollout.reason}")
            time.sleep(LOOK_EVERY_S)
        self.screen.settle()
        silent = sum(device.type_name == ROVER for device in self.devices)
        lamps = sum(device.type_name == LAMP for device in self.devices)
        told = (
            f"{len(self.devices) - silent - lamps} devices report that they run {GOOD_VERSION}; {silent} of micro-RDK"
            " never report: it is inferred, because they took the image and did not ask again."
        )
        if lamps:
            told += f" {lamps} AmebaD boards cannot: the gateway pushed, and heard each announce itself anew."
        self.screen.step(told)
        return first_update_s

    def _configure_rovers(self, client: ManagementClient, fleet: RunningFleet, rollout: int) -> None:
        """Give each micro-RDK its link, once the rollout has an execution for it: what `flota viam config` prints."""
        rovers = [device.name for device in self.devices if device.type_name == ROVER]
        begun = time.monotonic()
        while len(client.executions(rollout)) < len(rovers):
            self._give_up_if(time.monotonic() - begun > GOOD_WITHIN_S, "the rollout for micro-RDK did not begin")
            time.sleep(LOOK_EVERY_S)
        for link in client.viam_links(rollout=rollout).items:
            if link.device is not None:
                fleet.configure(link.device, link.service)

    def _roll_out_bad_version(self, client: ManagementClient, fleet: RunningFleet) -> Rollout:
        sensors = [device.name for device in self.devices if device.type_name == SENSOR]
        rest = [name for name in sensors if name not in FIRST_WAVE]
        self.screen.step(
            f"Version {BAD_VERSION} crashes at boot. Rolling it out in two waves: "
            f"{' and '.join(FIRST_WAVE)} first, the other {len(rest)} only if these succeed."
        )
        rollout = client.create_rollout(
            f"{SENSOR}@{BAD_VERSION}",
            devices=[*FIRST_WAVE, *rest],
            name=f"{SENSOR} {BAD_VERSION}",
            waves=f"{len(FIRST_WAVE)},100%",
            abort_after=len(FIRST_WAVE),
        )
        begun = time.monotonic()
        while not self._stopped_and_quiet(rollout, fleet):
            rollout = client.rollout(rollout.id)
            self._look(client, fleet, [rollout.id])
            self._give_up_if(time.monotonic() - begun > BAD_WITHIN_S, f"version {BAD_VERSION} was not stopped")
            time.sleep(LOOK_EVERY_S)
        self.screen.settle()
        self.screen.step(f"Rollout '{rollout.name}' is {rollout.state}: {rollout.reason}")
        return rollout

    def _stopped_and_quiet(self, rollout: Rollout, fleet: RunningFleet) -> bool:
        """Whether the rollout has ended and every device is up and confirmed again."""
        return rollout.is_final and all(each.confirmed for each in fleet.snapshots())

    def _look(self, client: ManagementClient, fleet: RunningFleet, rollouts: Sequence[int]) -> FleetView:
        executions = {each.device: each for number in rollouts for each in client.executions(number)}
        view = FleetView(fleet.snapshots(), executions)
        self.screen.show(view)
        return view

    def _end_states(self, client: ManagementClient, fleet: RunningFleet, stopped: Rollout) -> list[EndState]:
        tried = {each.device: each for each in client.executions(stopped.id)}
        states = []
        for snapshot in fleet.snapshots():
            latest = client.device_executions(snapshot.name)[-1]
            offered = client.release(latest.release).version
            failed_as_told = snapshot.name not in FIRST_WAVE or (
                tried[snapshot.name].state == "FAILED" and tried[snapshot.name].basis == "reported"
            )
            untouched = snapshot.name in FIRST_WAVE or snapshot.name not in tried
            runs = snapshot.running_version == GOOD_VERSION and snapshot.confirmed
            states.append(EndState(snapshot, latest, offered, runs and failed_as_told and untouched))
        return states

    def _give_up_if(self, stuck: bool, why: str) -> None:
        if stuck:
            raise DemoFailed(
                why,
                found=f"data is kept in {self.directory}",
                hint=f"The server's log is {self.directory / 'server.log'}.",
            )


def _rollout_name(type_name: str) -> str:
    """Return the name of the good version's rollout; devices on AWS IoT see it as the id of a job."""
    as_job = f"{type_name}-{GOOD_VERSION.replace('.', '-')}"
    return as_job if type_name in AWS_TYPES else f"{type_name} {GOOD_VERSION}"
