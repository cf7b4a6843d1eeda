"""Shipments over rollouts: how a rollout looks as one, and what is done to it by the shipment API.

A shipment is a rollout of its own name; besides it has conditions (`fleet.shipments`). Every rollout can be looked at
as one. Source: docs/reference/blynk.md, "Shipments".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from flota.errors import Conflict, InvalidInput, NotFound, Refused
from flota.fleet.executions import Execution, ExecutionState
from flota.fleet.releases import Release, ReleaseState
from flota.fleet.rollouts import OPEN_ROLLOUT_STATES, Rollout, RolloutPolicy, RolloutState
from flota.fleet.shipments import (
    SHIPMENT_STATUS,
    DeviceStatus,
    ShipmentConditions,
    ShipmentRecord,
    ShipmentStatus,
    device_status,
    progress,
)
from flota.server import catalogue
from flota.server.rollout_desk import RolloutRequest, control_rollout, create_rollout, find_rollout
from flota.server.updates import CONFIRM_DETAIL

if TYPE_CHECKING:
    from flota.fleet.devices import DeviceType
    from flota.fleet.scope import Scope
    from flota.fleet.storage import Transaction
    from flota.server.context import ServerContext

TITLE_MAX_LEN: Final = 40
"""Characters, as in the vendor's console."""

EXECUTIONS_READ_MAX: Final = 1_000_000

SILENCE_LIMIT_S: Final = 3600
"""How long a device that was told may be gone before its update has failed; at least the period of its attempts."""


@dataclass(frozen=True, slots=True)
class ShippedDevice:
    """A device of a shipment. `execution` is None until its wave is open."""

    id: int
    name: str
    status: DeviceStatus
    execution: Execution | None = None


@dataclass(frozen=True, slots=True)
class Shipment:
    """A rollout as Blynk's console shows it. `record` is None for one that was not made as a shipment."""

    rollout: Rollout
    release: Release
    device_type: DeviceType
    record: ShipmentRecord | None
    devices: tuple[ShippedDevice, ...]

    @property
    def status(self) -> ShipmentStatus:
        """Running, paused, finished or canceled."""
        return SHIPMENT_STATUS[self.rollout.state]

    @property
    def progress(self) -> dict[str, int]:
        """The vendor's counters."""
        return progress(device.status for device in self.devices)

    @property
    def conditions(self) -> ShipmentConditions:
        """On which conditions its devices take the firmware."""
        return ShipmentConditions() if self.record is None else self.record.conditions


@dataclass(frozen=True, slots=True)
class NewShipment:
    """What somebody wants shipped: stored bytes to devices of a type. `device_ids` empty: all, and who joins later."""

    title: str
    type_id: int
    sha256: str
    file_name: str
    device_ids: tuple[int, ...]
    conditions: ShipmentConditions
    maintenance: str | None = None
    """When devices are told of it (`flota.fleet.maintenance_windows`); None: as their type says."""
    is_critical: bool = False


async def read_shipment(transaction: Transaction, scope: Scope, rollout: Rollout) -> Shipment:
    """Return a rollout as a shipment."""
    records = await transaction.shipment_records(scope, [rollout.id])
    release = await transaction.release(scope, rollout.release_id)
    device_type = await transaction.device_type(scope, rollout.type_name)
    executions = await transaction.list_executions(scope, rollout_id=rollout.id, limit=EXECUTIONS_READ_MAX)
    by_device = {execution.device_id: execution for execution in executions}
    asks = device_type.confirm if rollout.policy.confirm is None else rollout.policy.confirm
    devices = tuple(
        _shipped(device_id, name, by_device.get(device_id), asks=asks, is_open=rollout.state in OPEN_ROLLOUT_STATES)
        for device_id, name, _ in await transaction.rollout_devices(scope, rollout.id)
    )
    return Shipment(rollout, release, device_type, records.get(rollout.id), devices)


def _shipped(device_id: int, name: str, execution: Execution | None, *, asks: bool, is_open: bool) -> ShippedDevice:
    if execution is None:
        return ShippedDevice(device_id, name, DeviceStatus.WAITING if is_open else DeviceStatus.CANCELED)
    status = device_status(execution)
    if asks and execution.state is ExecutionState.QUEUED and CONFIRM_DETAIL not in execution.details:
        status = DeviceStatus.AWAITING_USER
    return ShippedDevice(device_id, name, status, execution)


async def find_shipment(context: ServerContext, scope: Scope, reference: str) -> Shipment:
    """Return a shipment by its number or title. Raises `NotFound`, also for one that was deleted."""
    async with context.storage.reading() as transaction:
        shipment = await read_shipment(transaction, scope, await find_rollout(transaction, scope, reference))
    if shipment.record is not None and shipment.record.deleted_at is not None:
        raise NotFound("no such shipment", found=reference)
    return shipment


async def list_shipments(context: ServerContext, scope: Scope) -> Sequence[Shipment]:
    """Return all shipments, oldest first; deleted ones are left out."""
    async with context.storage.reading() as transaction:
        found = [await read_shipment(transaction, scope, rollout) for rollout in await transaction.list_rollouts(scope)]
    return [one for one in found if one.record is None or one.record.deleted_at is None]


async def starters(context: ServerContext, scope: Scope) -> Mapping[str, int]:
    """Return the numbers of the tenant's access tokens by how they stand in records: who may have started something."""
    async with context.storage.reading() as transaction:
        return {f"token:{one.name}": one.id for one in await transaction.list_access_tokens(scope)}


async def create_shipment(context: ServerContext, scope: Scope, wanted: NewShipment) -> Shipment:
    """Start a shipment of a published release that has these bytes.

    Raises `Refused`, with what to do, when there is none: the server signs nothing. Raises `InvalidInput` for a title,
    `Conflict` if it is taken, `NotFound` for the type or a device.
    """
    title = wanted.title.strip()
    if not 1 <= len(title) <= TITLE_MAX_LEN or not title.isprintable():
        expected = f"1 to {TITLE_MAX_LEN} printable characters"
        raise InvalidInput("the title cannot be", expected=expected, found=f"{len(title)} characters")
    async with context.storage.reading() as transaction:
        device_type = await _type_by_id(transaction, scope, wanted.type_id)
        release = await _release_of(transaction, scope, device_type, wanted)
        names = [(await transaction.device_by_id(scope, device_id)).name for device_id in wanted.device_ids]
    policy = RolloutPolicy(
        abort_after_failures=max(1, len(names)) + 1 if names else 1_000_000,  # a shipment goes on whoever fails
        silence_limit_s=max(SILENCE_LIMIT_S, wanted.conditions.attempt_period_s or 0),
        attempts=wanted.conditions.attempts or 1,
        confirm=False if wanted.is_critical else None,
        continuous=not names,
        maintenance=wanted.maintenance,
    )
    request = RolloutRequest(
        release=str(release.id),
        devices=tuple(names) or None,
        select=None if names else f"type={device_type.name}",
        name=title,
        policy=policy,
        shipment=ShipmentRecord(0, wanted.conditions, started_by=scope.actor, file_name=wanted.file_name),
    )
    rollout = await create_rollout(context, scope, request)
    async with context.storage.reading() as transaction:
        return await read_shipment(transaction, scope, await transaction.rollout(scope, rollout.id))


async def stop_shipment(context: ServerContext, scope: Scope, reference: str) -> Shipment:
    """Cancel a shipment that runs or is paused. Raises `Conflict` for one that has ended."""
    shipment = await find_shipment(context, scope, reference)
    if shipment.rollout.state not in OPEN_ROLLOUT_STATES:
        raise Conflict(f"shipment {shipment.rollout.name} has ended", expected="RUN or PAUSE", found=shipment.status)
    reason = "the shipment was stopped"
    changed = await control_rollout(context, scope, str(shipment.rollout.id), RolloutState.CANCELED, reason)
    return replace(await find_shipment(context, scope, str(changed.id)), rollout=changed)


async def delete_shipment(context: ServerContext, scope: Scope, reference: str) -> None:
    """Leave a shipment that has ended out of the listings; its rollout stays. Raises `Conflict` while it runs."""
    shipment = await find_shipment(context, scope, reference)
    if shipment.rollout.state in OPEN_ROLLOUT_STATES:
        name = shipment.rollout.name
        raise Conflict(f"shipment {name} runs", expected="FINISH or CANCEL", found=shipment.status, hint="Stop it.")
    async with context.storage.transaction() as transaction:
        await transaction.delete_shipment(scope, shipment.rollout.id, now=context.now())


async def _type_by_id(transaction: Transaction, scope: Scope, type_id: int) -> DeviceType:
    for device_type in await transaction.list_device_types(scope):
        if device_type.id == type_id:
            return device_type
    raise NotFound("there is no such product", found=type_id, hint="Its number is the id in `flota type list --json`.")


async def _release_of(transaction: Transaction, scope: Scope, device_type: DeviceType, wanted: NewShipment) -> Release:
    """Return the type's published release of these bytes; raises `Refused` with what is to be done first."""
    releases = [
        one
        for one in await transaction.list_releases(scope, type_name=device_type.name)
        if one.artifact.digests.sha256 == wanted.sha256 and one.state is not ReleaseState.WITHDRAWN
    ]
    published = [one for one in releases if one.state is ReleaseState.PUBLISHED]
    if published:
        return published[-1]
    if not releases:
        await transaction.artifact(scope, wanted.sha256)  # raises `NotFound` if it was never uploaded
        raise Refused(
            "there is no release of this file",
            expected=f"a published release for {device_type.name}",
            found="none",
            hint=f"flota release create FILE --type {device_type.name} --version V; then sign and publish it.",
        )
    release = releases[-1]
    hints = {
        ReleaseState.DRAFT: f"flota release sign {release.id} --key KEY.pem && flota release publish {release.id}",
        ReleaseState.SIGNED: f"flota release publish {release.id}",
    }
    name = f"release {release.type_name}@{release.version}"
    raise Refused(
        f"{name} of this file is not published, and this server holds no signing key",
        expected=str(ReleaseState.PUBLISHED),
        found=str(release.state),
        hint=f"Where the key is: {hints[release.state]}",
    )


async def draft_of_upload(
    context: ServerContext, scope: Scope, sha256: str, *, version: str, fw_type: str
) -> tuple[Release | None, str]:
    """Return the release of uploaded bytes for the type that their tag names, drafted if there was none; and a reason.

    Without a type of that name, or a version, there is none: the reason says so. Raises `DoesNotFit`.
    """
    async with context.storage.reading() as transaction:
        types = {one.name: one for one in await transaction.list_device_types(scope)}
        if not fw_type or not version:
            return None, "the file's tag names no type and version: make a release of it by hand"
        if fw_type not in types:
            return None, f"there is no device type {fw_type}: make a release of the file for another one by hand"
        same = [
            one
            for one in await transaction.list_releases(scope, type_name=fw_type)
            if one.version == version and one.state is not ReleaseState.WITHDRAWN
        ]
    if same and same[0].artifact.digests.sha256 == sha256:
        return same[0], ""
    if same:
        return None, f"{fw_type} has another file as version {version} already"
    made = await catalogue.create_release(context, scope, catalogue.ReleaseDraft(fw_type, version, sha256))
    return made, ""
