"""What tests put into a database: an organisation with a product, devices, a published release, a rollout."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from flota.digests import digests_of
from flota.fleet.devices import Device, DeviceState, TrustedSigner
from flota.fleet.executions import Execution
from flota.fleet.releases import Artifact, Release, ReleaseSignature, ReleaseState
from flota.fleet.rollouts import Rollout, RolloutPolicy, split_waves
from flota.fleet.scope import Scope
from flota.fleet.storage import NewDevice, NewDeviceType, NewRelease, NewRollout, Transaction
from flota.store.database import Database

START = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
KEY = TrustedSigner("a1b2", "-----BEGIN PUBLIC KEY-----\n")


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def an_artifact(data: bytes = b"firmware", filename: str = "pump.bin") -> Artifact:
    return Artifact(
        digests=digests_of(data),
        filename=filename,
        format="binary",
        image_version=None,
        validation_hash=None,
        inspection={"format": "binary", "findings": []},
        created_at=START,
    )


async def a_tenant(database: Database, name: str = "DEFAULT") -> Scope:
    async with database.transaction() as tx:
        tenant = await tx.add_tenant(name, now=START)
    return Scope(tenant.id, "token:test")


async def a_release(
    tx: Transaction,
    scope: Scope,
    version: str = "2.0.0",
    *,
    state: ReleaseState = ReleaseState.PUBLISHED,
    expires_at: datetime | None = None,
    type_name: str = "pump",
) -> Release:
    artifact, _ = await tx.add_artifact(scope, an_artifact(version.encode()))
    sequence = await tx.next_sequence(scope, type_name)
    new = NewRelease(type_name, version, sequence, artifact.digests.sha256, b"{}", expires_at)
    release = await tx.add_release(scope, new, now=START)
    if state is ReleaseState.DRAFT:
        return release
    release = await tx.add_signature(scope, release.id, ReleaseSignature(KEY.key_id, "p256", "c2ln"), now=START)
    if state is ReleaseState.SIGNED:
        return release
    return await tx.set_release_state(scope, release.id, state, now=START)


async def a_device(tx: Transaction, scope: Scope, name: str, *, state: DeviceState = DeviceState.ACCEPTED) -> Device:
    return await tx.add_device(scope, NewDevice(name, "pump", state), now=START)


@dataclass
class Fleet:
    scope: Scope
    devices: list[Device]
    release: Release
    rollout: Rollout

    async def opened(self, database: Database, number: int = 1) -> list[Execution]:
        async with database.transaction() as tx:
            made = await tx.open_wave(self.scope, self.rollout.id, number, now=START)
            return [await tx.execution(self.scope, number) for number in made]


async def a_type(tx: Transaction, scope: Scope, name: str = "pump") -> None:
    await tx.add_device_type(scope, NewDeviceType(name, "esp32-c3", signers=(KEY,)), now=START)


async def a_fleet(
    database: Database,
    *,
    tenant: str = "DEFAULT",
    size: int = 3,
    waves: str = "100%",
    policy: RolloutPolicy | None = None,
    expires_at: datetime | None = None,
    selector: str = "type=pump",
) -> Fleet:
    """Return accepted devices `pump-1`…, release 2.0.0 and an active rollout whose waves all wait."""
    scope = await a_tenant(database, tenant)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        devices = [await a_device(tx, scope, f"pump-{number}") for number in range(1, size + 1)]
        release = await a_release(tx, scope, expires_at=expires_at)
        new = NewRollout(
            "spring", release.id, policy or RolloutPolicy(), split_waves([d.id for d in devices], waves), selector
        )
        rollout = await tx.add_rollout(scope, new, now=START)
    return Fleet(scope, devices, release, rollout)
