"""A small fleet behind the device APIs: real database, real artifact store, real routes, a clock that tests move."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from flota.fleet.devices import Device, DeviceState, TrustedSigner, UnknownDevices
from flota.fleet.executions import Execution, ExecutionState
from flota.fleet.releases import Artifact, Release, ReleaseSignature, ReleaseState
from flota.fleet.rollouts import Rollout, RolloutPolicy
from flota.fleet.scope import Scope
from flota.fleet.storage import NewDevice, NewDeviceType, NewRelease, NewRollout, Transaction
from flota.server.api import ddi, http_update
from flota.server.auth import digest_of_secret
from flota.server.context import ServerContext, make_context
from flota.server.settings import DataDirectory, ServerSettings
from flota.store.artifacts import ArtifactStore
from flota.store.database import Database
from flota.trust.keys import PrivateKey
from flota.trust.manifest import Manifest, ManifestComponent, pack_manifest
from flota.trust.signatures import signatures_as_json
from tests.empty_database import make_empty_database
from tests.server.serving import app_of

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
TOKEN = "a-device-token"
KEY = PrivateKey.generate("ed25519")
SIGNER = TrustedSigner(KEY.key_id, KEY.public_pem)


@dataclass
class Clock:
    """The server's clock."""

    time: datetime = START

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


def image(version: str, size: int = 5000) -> bytes:
    """Return bytes that start like an ESP app image and differ by version."""
    return (b"\xe9" + version.encode() + b"\0" * size)[:size]


@dataclass
class UpdateFleet:
    """Everything of one test. `scope` is an operator's."""

    context: ServerContext
    database: Database
    scope: Scope
    clock: Clock
    client: httpx.AsyncClient
    rollouts: list[Rollout] = field(default_factory=list)

    async def add_type(
        self,
        name: str = "pump",
        *,
        board: str = "esp32-c3",
        unknown: UnknownDevices = UnknownDevices.HOLD,
        poll_interval_s: int = 300,
    ) -> None:
        async with self.database.transaction() as tx:
            new = NewDeviceType(
                name, board, unknown_devices=unknown, signers=(SIGNER,), poll_interval_s=poll_interval_s
            )
            await tx.add_device_type(self.scope, new, now=self.clock())

    async def add_device(
        self,
        name: str,
        *,
        type_name: str = "pump",
        mac: str | None = None,
        token: str | None = TOKEN,
        state: DeviceState = DeviceState.ACCEPTED,
    ) -> Device:
        digest = None if token is None else digest_of_secret(token)
        async with self.database.transaction() as tx:
            return await tx.add_device(self.scope, NewDevice(name, type_name, state, digest, mac), now=self.clock())

    async def add_release(
        self,
        version: str,
        *,
        data: bytes | None = None,
        type_name: str = "pump",
        filename: str = "pump.bin",
        validation_hash: str | None = None,
        image_format: str = "esp-app",
        expires_at: datetime | None = None,
        inspection: Mapping[str, object] | None = None,
        board: str = "esp32-c3",
    ) -> Release:
        with self.context.artifacts.upload() as upload:
            upload.write(image(version) if data is None else data)
            digests = upload.finish()
        artifact = Artifact(digests, filename, image_format, version, validation_hash, inspection or {}, self.clock())

        async def write(tx: Transaction) -> Release:
            await tx.add_artifact(self.scope, artifact)
            sequence = await tx.next_sequence(self.scope, type_name)
            component = ManifestComponent("app", image_format, digests.size, digests.sha256)
            manifest = pack_manifest(
                Manifest(type_name, board, None, version, sequence, expires_at, (component,), issued_at=self.clock())
            )
            new = NewRelease(type_name, version, sequence, digests.sha256, manifest, expires_at, filename=filename)
            release = await tx.add_release(self.scope, new, now=self.clock())
            signature = signatures_as_json([KEY.sign(manifest)])
            signed = ReleaseSignature(KEY.key_id, "ed25519", signature.split('"signature":"')[1].split('"')[0])
            await tx.add_signature(self.scope, release.id, signed, now=self.clock())
            await tx.set_release_state(self.scope, release.id, ReleaseState.SIGNED, now=self.clock())
            return await tx.set_release_state(self.scope, release.id, ReleaseState.PUBLISHED, now=self.clock())

        return await self.database.write_at_once(write)

    async def roll_out(
        self, release: Release, *devices: Device, policy: RolloutPolicy | None = None
    ) -> list[Execution]:
        """Return the queued executions of a rollout to `devices`, in one open wave."""
        waves = (tuple(device.id for device in devices),)
        name = f"rollout-{len(self.rollouts) + 1}"

        async def write(tx: Transaction) -> tuple[Rollout, list[Execution]]:
            rollout = await tx.add_rollout(
                self.scope,
                NewRollout(name, release.id, policy or RolloutPolicy(), waves, "all"),
                now=self.clock(),
            )
            made = await tx.open_wave(self.scope, rollout.id, 1, now=self.clock())
            return rollout, [await tx.execution(self.scope, number) for number in made]

        rollout, executions = await self.database.write_at_once(write)
        self.rollouts.append(rollout)
        return executions

    async def execution(self, execution: Execution) -> Execution:
        async with self.database.reading() as tx:
            return await tx.execution(self.scope, execution.id)

    async def state(self, execution: Execution) -> ExecutionState:
        return (await self.execution(execution)).state

    async def device(self, name: str) -> Device:
        await self.context.sightings.flush()
        async with self.database.reading() as tx:
            return await tx.device(self.scope, name)

    async def audited(self, action: str) -> list[Mapping[str, object]]:
        async with self.database.reading() as tx:
            entries = await tx.list_audit(self.scope, limit=10_000)
        return [entry.details for entry in entries if entry.action == action]

    def read(self, release: Release) -> bytes:
        return self.context.artifacts.read(release.artifact.digests.sha256)

    def restarted(self) -> UpdateFleet:
        """Return the same fleet behind a new server process."""
        context = make_context(
            self.context.settings, self.database, self.context.artifacts, download_key=bytes(32), now=self.clock
        )
        return UpdateFleet(context, self.database, self.scope, self.clock, client_of(context), self.rollouts)


def client_of(context: ServerContext) -> httpx.AsyncClient:
    """Return a client of the two device APIs."""
    app = app_of(context, [*http_update.routes(context), *ddi.routes(context)])
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://flota.test:8080", headers={"accept": "*/*"}
    )


@contextlib.asynccontextmanager
async def an_update_fleet(directory: Path, *, public_url: str | None = None) -> AsyncIterator[UpdateFleet]:
    """Give a fleet on SQLite with the tenant DEFAULT and no type yet."""
    data = DataDirectory(directory)
    make_empty_database(data.database)
    settings = ServerSettings(data=data, public_url=public_url, poll_jitter_percent=0)
    opened = await Database.open(settings.effective_database_url)
    async with opened as database, a_fleet_over(database, settings) as fleet:
        yield fleet


@contextlib.asynccontextmanager
async def a_fleet_over(database: Database, settings: ServerSettings) -> AsyncIterator[UpdateFleet]:
    """Give a fleet on an empty database."""
    clock = Clock()
    settings.data.artifacts.mkdir(exist_ok=True)
    store = ArtifactStore(settings.data.artifacts)
    context = make_context(settings, database, store, download_key=bytes(32), now=clock)
    async with database.transaction() as tx:
        tenant = await tx.add_tenant("DEFAULT", now=clock())
    fleet = UpdateFleet(context, database, Scope(tenant.id, "token:test"), clock, client_of(context))
    async with fleet.client:
        yield fleet
