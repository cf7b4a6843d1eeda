"""A server with MQTT and HTTP listeners and a virtual `aws-reference` in one process, all over real sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from flota.fleet.executions import Execution, ExecutionState
from flota.fleet.job_executions import visible_details
from flota.fleet.releases import Artifact, FileSignature, Release, ReleaseSignature, ReleaseState
from flota.fleet.rollouts import RolloutState
from flota.fleet.storage import NewDeviceType, NewRelease
from flota.lab.aws_agents import AwsOptions
from flota.lab.fleet import DeviceSpec, run_fleet
from flota.lab.running_fleet import free_port
from flota.lab.sample_firmware import sample_versioned_file
from flota.protocols.aws_ota import DataProtocol
from flota.protocols.mqtt.packets import Connect
from flota.server.api.aws_iot.files import AwsIotFiles
from flota.server.listeners import Listener
from flota.server.settings import Address, DataDirectory, ServerSettings
from flota.store.database import Database
from flota.transports.mqtt_client import open_mqtt
from flota.trust.code_signing import make_code_signing_certificate
from flota.trust.file_signatures import FilePrivateKey
from flota.trust.image_keys import ImagePublicKey
from flota.trust.keys import PrivateKey
from flota.trust.manifest import Manifest, ManifestComponent, pack_manifest
from flota.trust.signatures import signatures_as_json
from flota.virtual.agents.aws_ota.ports import AgentBuild
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.device import VirtualDevice
from flota.virtual.events import DeviceEvent, EventKind
from tests.empty_database import make_empty_database
from tests.server.aws_iot_bench import Bench, a_bench_over
from tests.server.update_fleet import KEY, SIGNER, TOKEN, UpdateFleet, a_fleet_over

METER = "meter"
NAME = "meter-1"
SPEED = 200.0
SELF_TEST_FLOOR_S = 1.5
IMAGE_BYTES = 150 * 1024 - 77
"""About as many blocks of a kilobyte: there is a middle to interrupt."""

SETTLE_EVERY_S = 0.03
ENGINE_EVERY = 6
"""Turns of the notifications for one of the engine."""

WITHIN_S = 40.0
FINAL = frozenset({ExecutionState.SUCCEEDED, ExecutionState.FAILED, ExecutionState.CANCELED, ExecutionState.REJECTED})
SIGNER_KEY = PrivateKey.generate("p256")
STRANGER_KEY = PrivateKey.generate("p256")


def certificate_of(key: PrivateKey) -> bytes:
    made = make_code_signing_certificate(key, subject="site", serial=1, now=datetime(2026, 1, 1, tzinfo=UTC))
    return made.public_bytes(Encoding.PEM)


CERTIFICATE = certificate_of(SIGNER_KEY)


def image(version: str, behaviour: str = "healthy") -> bytes:
    return sample_versioned_file(version, size=IMAGE_BYTES, behaviour=behaviour)


@dataclass
class Site:
    """Everything of one test: one server, one device."""

    fleet: UpdateFleet
    bench: Bench
    path: DataProtocol
    directory: Path
    board: str = "aws-reference"
    events: list[DeviceEvent] = field(default_factory=list)
    shells: Sequence[VirtualDevice] = ()
    _on_event: list[Callable[[DeviceEvent], None]] = field(default_factory=list)

    # --- the server ---------------------------------------------------------------------------------------------------

    async def release(
        self, label: str, data: bytes, *, key: PrivateKey | None = SIGNER_KEY, name: str = "sig-sha256-ecdsa"
    ) -> Release:
        """Return a published release; `key` None: its file has no signature (the API would refuse it)."""
        fleet = self.fleet
        with fleet.context.artifacts.upload() as upload:
            upload.write(data)
            digests = upload.finish()
        artifact = Artifact(digests, f"{label}.bin", "unknown", label, None, {}, fleet.clock())
        async with fleet.database.transaction() as tx:
            await tx.add_artifact(fleet.scope, artifact)
            sequence = await tx.next_sequence(fleet.scope, METER)
            component = ManifestComponent("app", "unknown", digests.size, digests.sha256)
            manifest = pack_manifest(
                Manifest(METER, self.board, None, label, sequence, None, (component,), issued_at=fleet.clock())
            )
            new = NewRelease(METER, label, sequence, digests.sha256, manifest, None, filename=f"{label}.bin")
            release = await tx.add_release(fleet.scope, new, now=fleet.clock())
            if key is not None:
                await tx.add_file_signature(fleet.scope, release.id, signature_of(data, key, name), now=fleet.clock())
            packed = signatures_as_json([KEY.sign(manifest)])
            signed = ReleaseSignature(KEY.key_id, "ed25519", packed.split('"signature":"')[1].split('"')[0])
            await tx.add_signature(fleet.scope, release.id, signed, now=fleet.clock())
            return await tx.set_release_state(fleet.scope, release.id, ReleaseState.PUBLISHED, now=fleet.clock())

    async def offer(self, release: Release) -> Execution:
        """Return the queued execution of a rollout of the release to the device."""
        async with self.fleet.database.reading() as tx:
            device = await tx.device(self.fleet.scope, NAME)
        return (await self.fleet.roll_out(release, device))[0]

    async def cancel(self, execution: Execution) -> None:
        """Cancel the rollout, executions in progress too."""
        async with self.fleet.database.transaction() as tx:
            await tx.set_rollout_state(
                self.fleet.scope, execution.rollout_id, RolloutState.CANCELED, now=self.fleet.clock(), reason="a test"
            )

    async def take_over(self) -> None:
        """Throw the device off: somebody connects with its client id, and goes again."""
        link = await open_mqtt("127.0.0.1", self.bench.port, Connect(NAME, True, 60, NAME, TOKEN.encode()))
        link.abort()

    # --- looking ------------------------------------------------------------------------------------------------------

    async def ended(self, execution: Execution) -> tuple[ExecutionState, dict[str, str]]:
        """Return how the execution ended, and what the device last said."""
        now: list[Execution] = []

        async def is_final() -> bool:
            now[:] = [await self.fleet.execution(execution)]
            return now[0].state in FINAL

        await self.until(is_final, "the execution ends")
        return now[0].state, visible_details(now[0].details)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Look again and again until `condition` holds."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            held = condition()
            if asyncio.iscoroutine(held):
                held = await held
            if held:
                return
            assert time.monotonic() < deadline, f"not within {WITHIN_S:g} s: {what}; {self.story()}"
            await asyncio.sleep(SETTLE_EVERY_S)

    async def rests_with(self, version: str) -> None:
        """Wait until the device runs this version, confirmed, and has its agent connected again."""
        (shell,) = self.shells
        await self.until(
            lambda: shell.app is not None and shell.app.version == version and shell.confirmed,
            f"{version} runs and is confirmed",
        )

    async def happens(self, kind: EventKind, count: int = 1) -> None:
        """Wait for an event of the device."""
        await self.until(lambda: len(self.told(kind)) >= count, f"{count} times {kind}")

    def told(self, kind: EventKind) -> list[str]:
        return [event.text for event in self.events if event.kind is kind]

    def story(self) -> str:
        return " | ".join(f"{event.kind}: {event.text}" for event in self.events[-25:])

    def hear(self, event: DeviceEvent) -> None:
        self.events.append(event)
        for listener in self._on_event:
            listener(event)


def signature_of(data: bytes, key: PrivateKey, name: str) -> FileSignature:
    signature = FilePrivateKey.from_pem(key.to_pem()).sign(hashlib.sha256(data).digest())
    certificate = certificate_of(key)
    digest = hashlib.sha256(x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER)).hexdigest()
    return FileSignature(name, base64.b64encode(signature).decode("ascii"), certificate.decode("ascii"), digest)


@contextlib.asynccontextmanager
async def a_site(
    directory: Path,
    path: DataProtocol,
    *,
    running: str = "1.0.0",
    board: str = "aws-reference",
    firmware: bytes | None = None,
    boot_build: BootBuild | None = None,
    boot_keys: tuple[ImagePublicKey, ...] = (),
) -> AsyncIterator[Site]:
    """Give a site whose device fetches over `path` and was made with version `running`, or with `firmware`."""
    port = free_port("127.0.0.1")
    data = DataDirectory(directory / "server")
    data.root.mkdir(parents=True)
    make_empty_database(data.database)
    settings = replace(
        ServerSettings(data=data, public_url=f"http://127.0.0.1:{port}", poll_jitter_percent=0),
        aws_iot_data=(DataProtocol.MQTT, DataProtocol.HTTP) if path is DataProtocol.MQTT else (DataProtocol.HTTP,),
    )
    async with (
        await Database.open(settings.effective_database_url) as database,
        a_fleet_over(database, settings) as fleet,
    ):
        async with fleet.database.transaction() as tx:
            new = NewDeviceType(METER, board, signers=(SIGNER,))
            await tx.add_device_type(fleet.scope, new, now=fleet.clock())
        await fleet.add_device(NAME, type_name=METER)
        async with a_bench_over(fleet) as bench, _serving(bench, port):
            site = Site(fleet, bench, path, directory, board)
            made = DeviceSpec(
                name=NAME,
                board=board,
                state=directory / NAME,
                token=TOKEN,
                speed=SPEED,
                firmware=firmware or image(running),
                build=boot_build,
                boot_keys=boot_keys,
                seed=1,
            )
            async with _device(site, made):
                yield site


@contextlib.asynccontextmanager
async def _serving(bench: Bench, port: int) -> AsyncIterator[None]:
    """Serve files over HTTP, and let engine and notifications work."""
    listener = Listener(AwsIotFiles(bench.fleet.context), Address("127.0.0.1", port), None)
    await listener.start()
    stop = asyncio.Event()

    async def settle() -> None:
        turns = 0
        while not stop.is_set():
            if turns % ENGINE_EVERY == 0:
                await bench.settle()
            bench.aws_iot.states.mark_due()
            await bench.aws_iot.states.tell_changes()
            turns += 1
            await asyncio.sleep(SETTLE_EVERY_S)

    work = asyncio.create_task(settle())
    try:
        yield
    finally:
        stop.set()
        await work
        await listener.stop(5)


@contextlib.asynccontextmanager
async def _device(site: Site, made: DeviceSpec) -> AsyncIterator[None]:
    """Run the device, and wait until it has asked for its job."""
    options = AwsOptions(
        host="127.0.0.1",
        port=site.bench.port,
        code_certificate=CERTIFICATE,
        build=AgentBuild(block_size=1024, blocks_per_request=2, request_wait_s=1.0, primary=site.path),
        self_test_floor_s=SELF_TEST_FLOOR_S,
    )
    spec = replace(made, aws=options)
    stop = asyncio.Event()

    def started(shells: Sequence[VirtualDevice]) -> None:
        site.shells = shells

    life = asyncio.create_task(run_fleet([spec], stop, listener=site.hear, on_started=started))
    try:
        await site.until(lambda: site.shells and "connected" in site.told(EventKind.POLL), "the device connects")
        yield
    finally:
        stop.set()
        await life
