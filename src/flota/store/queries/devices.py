"""Devices: who they are, what they say about themselves, and whether they take part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from flota.errors import Conflict, NotFound
from flota.fleet.changes import NO_CHANGES, Changes
from flota.fleet.devices import AutoConfirmation, Device, DeviceState, IdentityConflict
from flota.fleet.executions import OPEN_STATES, ExecutionChange, ExecutionState
from flota.fleet.scope import Scope
from flota.fleet.selectors import check_labels
from flota.fleet.storage import DeviceCredentials, DeviceFilter, DeviceSighting, KnownDevice, NewDevice, TokenHolder
from flota.store.change_notes import concerning
from flota.store.failures import is_unique_violation
from flota.store.queries.base import filled, in_batches
from flota.store.queries.device_types import DeviceTypeQueries
from flota.store.queries.executions import ExecutionQueries
from flota.store.tables import device_types, devices, executions, rollout_devices

DEVICE_COLUMNS: Final[tuple[sa.ColumnElement[Any], ...]] = (
    devices.c.id,
    devices.c.name,
    device_types.c.name.label("type_name"),
    devices.c.state,
    devices.c.mac,
    devices.c.running_version,
    devices.c.running_hash,
    devices.c.running_md5,
    devices.c.attributes,
    devices.c.labels,
    devices.c.last_seen_at,
    devices.c.last_route,
    devices.c.address,
    devices.c.created_at,
    devices.c.attributes_requested,
    devices.c.auto_confirm,
    devices.c.identity_conflict,
)
"""The fields of `Device`, in their order: a row is taken apart by position, at a fraction of the cost of names."""
_NAMES: Final = [column.key for column in DEVICE_COLUMNS]
_STATE: Final = _NAMES.index("state")
_AUTO_CONFIRM: Final = _NAMES.index("auto_confirm")
_CONFLICT: Final = _NAMES.index("identity_conflict")

_SELECT_DEVICE: Final[sa.Select[Any]] = sa.select(
    *DEVICE_COLUMNS,
    devices.c.token_sha256,
    devices.c.previous_token_sha256,
    devices.c.previous_token_until,
    devices.c.tenant_id,
).join(device_types, device_types.c.id == devices.c.type_id)

_KNOWN: Final = _SELECT_DEVICE.where(
    devices.c.tenant_id == sa.bindparam("tenant_id"),
    devices.c.removed_at.is_(None),
    devices.c.name.in_(sa.bindparam("names", expanding=True)),
)
"""Built once: to build such a statement costs as much as to run it."""

_REPORTED: Final = ("address", "running_version", "running_hash", "running_md5")
"""Columns that a sighting replaces only if it knows better."""

_SIGHTED: Final = (
    sa.update(devices)
    .where(
        devices.c.id == sa.bindparam("sighted_id"),
        devices.c.tenant_id + 0 == sa.bindparam("sighted_tenant"),  # found by id
        devices.c.removed_at.is_(None),
    )
    .values(
        last_seen_at=sa.bindparam("seen_at"),
        last_route=sa.bindparam("seen_route"),
        **{name: sa.func.coalesce(sa.bindparam(f"new_{name}"), devices.c[name]) for name in _REPORTED},
    )
)
_SEEN: Final = (
    sa.update(devices)
    .where(
        devices.c.id.in_(sa.bindparam("seen_ids", expanding=True)),
        devices.c.tenant_id + 0 == sa.bindparam("seen_tenant"),
        devices.c.removed_at.is_(None),
    )
    .values(last_seen_at=sa.bindparam("seen_at"), last_route=sa.bindparam("seen_route"))
)

_IDENTITY: Final = frozenset(devices.c.keys()) - {
    "running_version",
    "running_hash",
    "running_md5",
    "attributes",
    "attributes_requested",
    "auto_confirm",
    "last_seen_at",
    "last_route",
    "address",
    "identity_conflict",
}
"""Columns that decide whether a request is let in as the device's; labels do when a gateway speaks for it."""


class DeviceQueries(DeviceTypeQueries, ExecutionQueries):
    """One row a unit. Removed devices are invisible here; their executions stay as history."""

    async def add_device(self, scope: Scope, new: NewDevice, *, now: datetime) -> Device:
        """Return the new device; raises `NotFound` for its type, `Conflict` if its name or MAC address is taken."""
        check_labels(new.labels or {})
        device_type = await self.device_type(scope, new.type_name)
        device_id = await self._insert_unique(
            devices,
            _new_row(scope, new, device_type.id, now),
            Conflict("there is a device of this name or MAC address", found=new.name),
        )
        self._audit_creation(scope, new, now)
        return Device(
            id=device_id,
            name=new.name,
            type_name=new.type_name,
            state=new.state,
            mac=new.mac,
            labels=dict(new.labels or {}),
            created_at=now,
        )

    async def add_devices(self, scope: Scope, new: Sequence[NewDevice], *, now: datetime) -> None:
        """Store many devices in one statement, all or none; raises as `add_device` does, without naming the device.

        The transaction stays usable after a refusal.
        """
        for one in new:
            check_labels(one.labels or {})
        types = {name: (await self.device_type(scope, name)).id for name in dict.fromkeys(one.type_name for one in new)}
        if not new:
            return
        try:
            async with self._connection.begin_nested():
                rows = [_new_row(scope, one, types[one.type_name], now) for one in new]
                await self._connection.execute(sa.insert(devices), rows)
        except IntegrityError as error:
            if not is_unique_violation(error):
                raise
            raise Conflict("there is a device of one of these names or MAC addresses") from error
        for one in new:
            self._audit_creation(scope, one, now)

    async def device(self, scope: Scope, name: str) -> Device:
        """Return the device called exactly `name`; raises `NotFound`."""
        found = await self.find_device(scope, name)
        if found is None:
            raise NotFound("no such device", found=repr(name))
        return found

    async def find_device(self, scope: Scope, name: str) -> Device | None:
        """Return the device called exactly `name`, or None."""
        return await self._find_device(scope, devices.c.name == name)

    async def find_device_by_mac(self, scope: Scope, mac: str) -> Device | None:
        """Return the device with exactly this MAC address, or None."""
        return await self._find_device(scope, devices.c.mac == mac)

    async def device_by_id(self, scope: Scope, device_id: int) -> Device:
        """Return the device; raises `NotFound`."""
        found = await self._find_device(scope, devices.c.id == device_id)
        if found is None:
            raise NotFound("no such device", found=device_id)
        return found

    async def device_token_sha256(self, scope: Scope, name: str) -> str | None:
        """Return the hex SHA-256 of the device's token; None if it has none, or if there is no such device."""
        row = await self._row(sa.select(devices.c.token_sha256).where(*_visible(scope), devices.c.name == name))
        return None if row is None else row.token_sha256

    async def device_credentials(self, scope: Scope, name: str) -> DeviceCredentials:
        """Return what the device may show; nothing counts for one that does not exist."""
        row = await self._row(
            sa.select(devices.c.token_sha256, devices.c.previous_token_sha256, devices.c.previous_token_until).where(
                *_visible(scope), devices.c.name == name
            )
        )
        if row is None:
            return DeviceCredentials(None)
        return DeviceCredentials(row.token_sha256, row.previous_token_sha256, row.previous_token_until)

    async def known_devices(self, scope: Scope, names: Sequence[str]) -> Mapping[str, KnownDevice]:
        """Return the devices of these names and what they may show; those that do not exist are left out."""
        asked = {"tenant_id": scope.tenant_id, "names": filled(names)}
        rows = (await self._connection.execute(_KNOWN, asked)).all()
        return {row.name: _known_device(row) for row in rows}

    async def token_holders(self, token_sha256: str) -> Sequence[TokenHolder]:
        """Return whose present or previous token has this hex SHA-256, of whichever tenants; normally one, or none.

        What a previous token is still good for is the caller's to judge. More than two are not told apart from two.
        """
        held = sa.or_(devices.c.token_sha256 == token_sha256, devices.c.previous_token_sha256 == token_sha256)
        rows = await self._rows(_SELECT_DEVICE.where(held, devices.c.removed_at.is_(None)).limit(2))
        return tuple(TokenHolder(row.tenant_id, _known_device(row)) for row in rows)

    async def list_devices(
        self, scope: Scope, condition: DeviceFilter, *, after_id: int = 0, limit: int = 1000
    ) -> Sequence[Device]:
        """Return at most `limit` devices with an id above `after_id` that fulfil `condition`, in order of id."""
        found: list[Device] = []
        for clause in _clauses(condition):
            rows = await self._rows(
                _SELECT_DEVICE.where(*_visible(scope), *clause, devices.c.id > after_id)
                .order_by(devices.c.id)
                .limit(limit)
            )
            found.extend(_device(row) for row in rows)
        return tuple(sorted(found, key=lambda device: device.id)[:limit])

    async def device_ids(self, scope: Scope, condition: DeviceFilter, *, limit: int) -> Sequence[int]:
        """Return the ids of at most `limit` devices that fulfil `condition`, in order: for snapshots of many."""
        found: list[int] = []
        for clause in _clauses(condition):
            statement = (
                sa.select(devices.c.id)
                .join(device_types, device_types.c.id == devices.c.type_id)
                .where(*_visible(scope), *clause)
            )
            found.extend(row.id for row in await self._rows(statement.order_by(devices.c.id).limit(limit)))
        return tuple(sorted(found)[:limit])

    async def count_devices(self, scope: Scope, condition: DeviceFilter) -> int:
        """Return how many devices fulfil `condition`."""
        total = 0
        for clause in _clauses(condition):
            statement = (
                sa.select(sa.func.count())
                .select_from(devices.join(device_types, device_types.c.id == devices.c.type_id))
                .where(*_visible(scope), *clause)
            )
            total += int((await self._connection.execute(statement)).scalar_one())
        return total

    async def set_device_state(self, scope: Scope, name: str, state: DeviceState, *, now: datetime) -> Device:
        """Return the device in its new state; raises `NotFound`.

        A device that is not accepted any more takes part in nothing: what is queued for it is canceled, and if it is at
        work it is asked to stop.
        """
        device = await self._lock_device(scope, name)
        if device.state is state:
            return device
        await self._update_device(device.id, {"state": state.value})
        self._audit(scope, f"device.{state.value}", f"device:{name}", {"from": device.state.value}, now=now)
        if state is not DeviceState.ACCEPTED:
            await self.stop_executions(
                scope, executions.c.device_id == device.id, reason=f"the device was set to {state.value}", now=now
            )
        return await self.device(scope, name)

    async def set_device_token(
        self, scope: Scope, name: str, token_sha256: str, *, now: datetime, previous_until: datetime | None = None
    ) -> None:
        """Replace the device's token by the one with this hex SHA-256; the old one is useless at once.

        With `previous_until` the old one works too until then, or until the new one is used. A conflict about the
        device's identity counts as settled: only one device is going to have the new token. Raises `NotFound`.
        """
        device = await self._lock_device(scope, name)
        present = (await self.device_credentials(scope, name)).token_sha256
        keep = previous_until is not None and present is not None and present != token_sha256
        await self._update_device(
            device.id,
            {
                "token_sha256": token_sha256,
                "previous_token_sha256": present if keep else None,
                "previous_token_until": previous_until if keep else None,
                "identity_conflict": None,
            },
        )
        details = {"previous_until": previous_until.isoformat()} if keep and previous_until is not None else {}
        self._audit(scope, "device.token-set", f"device:{name}", details, now=now)

    async def forget_previous_token(self, scope: Scope, name: str, *, now: datetime) -> None:
        """Make the token before the present one useless; without one nothing changes. Raises `NotFound`."""
        device = await self._lock_device(scope, name)
        if (await self.device_credentials(scope, name)).previous_sha256 is None:
            return
        await self._update_device(device.id, {"previous_token_sha256": None, "previous_token_until": None})
        self._audit(scope, "device.token-rotated", f"device:{name}", {}, now=now)

    async def set_auto_confirm(
        self, scope: Scope, device_id: int, activation: AutoConfirmation | None, *, now: datetime
    ) -> None:
        """Let the device agree to every update by itself, or ask it again (None). Raises `NotFound`.

        Raises `Conflict` if it does so already.
        """
        device = await self.device_by_id(scope, device_id)
        if activation is not None and device.auto_confirm is not None:
            raise Conflict("the device confirms by itself already", found=device.auto_confirm.activated_at.isoformat())
        if activation is None and device.auto_confirm is None:
            return
        await self._update_device(device_id, {"auto_confirm": None if activation is None else _as_json(activation)})
        details: dict[str, object] = {"active": activation is not None}
        if activation is not None:
            details |= {"initiator": activation.initiator, "remark": activation.remark}
        self._audit(scope, "device.auto-confirm-set", f"device:{device.name}", details, now=now)

    async def note_identity_conflict(self, scope: Scope, device_id: int, conflict: IdentityConflict) -> None:
        """Mark the device as one whose identity two devices seem to use. Raises `NotFound`."""
        device = await self.device_by_id(scope, device_id)
        at = conflict.at.isoformat()
        stored = {"trait": conflict.trait, "seen": list(conflict.seen), "at": at}
        await self._update_device(device_id, {"identity_conflict": stored})
        details = {"trait": conflict.trait, "seen": list(conflict.seen)}
        self._audit(scope, "device.identity-conflict", f"device:{device.name}", details, now=conflict.at)

    async def set_device_labels(self, scope: Scope, name: str, labels: Mapping[str, str], *, now: datetime) -> Device:
        """Return the device with `labels` instead of its old ones; raises `NotFound`, `InvalidInput`."""
        check_labels(labels)
        device = await self._lock_device(scope, name)
        if dict(device.labels) != dict(labels):
            await self._update_device(device.id, {"labels": dict(labels)})
            self._audit(scope, "device.labels-set", f"device:{name}", {"labels": dict(labels)}, now=now)
        return await self.device(scope, name)

    async def remove_device(self, scope: Scope, name: str, *, now: datetime) -> None:
        """Forget the device: its token, name and MAC address are free again, its open executions become REMOVED."""
        device = await self._lock_device(scope, name)
        await self._update_device(device.id, {"removed_at": now, "token_sha256": None, "previous_token_sha256": None})
        self._audit(scope, "device.removed", f"device:{name}", {"type": device.type_name}, now=now)
        await self.change_open_executions(
            scope,
            executions.c.device_id == device.id,
            lambda _: ExecutionChange(ExecutionState.REMOVED, message="the device was removed"),
            now=now,
        )

    async def record_sightings(self, scope: Scope, sightings: Sequence[DeviceSighting]) -> None:
        """Store when and how devices were last heard; devices that are gone are passed over.

        Not audited: hearing from a device is no decision.
        """
        names = ("sighted_tenant", "sighted_id", "seen_at", "seen_route", *(f"new_{name}" for name in _REPORTED))
        rows = [
            (scope.tenant_id, one.device_id, one.at, one.route, *(getattr(one, name) for name in _REPORTED))
            for one in sorted(sightings, key=lambda one: one.at)  # of a device the latest counts
        ]
        if rows:
            told = [dict(zip(names, row, strict=True)) for row in rows]
            await self._connection.execute(_SIGHTED, told, execution_options=concerning(NO_CHANGES))

    async def record_seen(self, scope: Scope, device_ids: Sequence[int], route: str, *, at: datetime) -> None:
        """Store for many devices that they were heard at that time, in one statement; those gone are passed over."""
        for batch in in_batches(device_ids):
            row = {"seen_tenant": scope.tenant_id, "seen_ids": batch, "seen_at": at, "seen_route": route}
            await self._connection.execute(_SEEN, row, execution_options=concerning(NO_CHANGES))

    async def set_device_attributes(
        self, scope: Scope, device_id: int, attributes: Mapping[str, str], *, requested: bool, now: datetime
    ) -> None:
        """Replace what the device says about itself; `requested` = whether it is to be asked again."""
        device = await self.device_by_id(scope, device_id)
        if dict(device.attributes) == dict(attributes) and device.attributes_requested == requested:
            return
        await self._update_device(device_id, {"attributes": dict(attributes), "attributes_requested": requested})
        details = {"attributes": dict(attributes), "requested": requested}
        self._audit(scope, "device.attributes-set", f"device:{device.name}", details, now=now)

    async def last_seen(self, scope: Scope, device_ids: Sequence[int]) -> Mapping[int, datetime]:
        """Return when each of these devices was last heard; those never heard are left out."""
        seen: dict[int, datetime] = {}
        for batch in in_batches(device_ids):
            rows = await self._rows(
                sa.select(devices.c.id, devices.c.last_seen_at).where(
                    devices.c.tenant_id == scope.tenant_id,
                    devices.c.id.in_(batch),
                    devices.c.last_seen_at.is_not(None),
                )
            )
            seen.update((row.id, row.last_seen_at) for row in rows)
        return seen

    def _audit_creation(self, scope: Scope, new: NewDevice, now: datetime) -> None:
        details = {"type": new.type_name, "state": new.state.value, "mac": new.mac, "labels": dict(new.labels or {})}
        self._audit(scope, "device.created", f"device:{new.name}", details, now=now)

    async def _find_device(self, scope: Scope, condition: sa.ColumnElement[bool]) -> Device | None:
        row = await self._row(_SELECT_DEVICE.where(*_visible(scope), condition))
        return None if row is None else _device(row)

    async def _live_devices(self, device_ids: Sequence[int]) -> Mapping[int, Device]:
        """Return devices by id, of whichever tenants; those that were removed are left out."""
        found: dict[int, Device] = {}
        for batch in in_batches(device_ids):
            rows = await self._rows(
                _SELECT_DEVICE.where(devices.c.id.in_(filled(batch)), devices.c.removed_at.is_(None))
            )
            found |= {row.id: _device(row) for row in rows}
        return found

    async def _lock_device(self, scope: Scope, name: str) -> Device:
        row = await self._row(
            _SELECT_DEVICE.where(*_visible(scope), devices.c.name == name).with_for_update(of=devices)
        )
        if row is None:
            raise NotFound("no such device", found=repr(name))
        return _device(row)

    async def _update_device(self, device_id: int, values: Mapping[str, object]) -> None:
        one = frozenset({device_id})
        concerns = Changes(identity=one) if _IDENTITY & values.keys() else Changes(work=one)
        await self._connection.execute(
            sa.update(devices).where(devices.c.id == device_id).values(**values), execution_options=concerning(concerns)
        )


def _new_row(scope: Scope, new: NewDevice, type_id: int, now: datetime) -> dict[str, object]:
    return {
        "tenant_id": scope.tenant_id,
        "name": new.name,
        "type_id": type_id,
        "state": new.state.value,
        "token_sha256": new.token_sha256,
        "mac": new.mac,
        "labels": dict(new.labels or {}),
        "attributes": {},
        "attributes_requested": True,
        "created_at": now,
    }


def _visible(scope: Scope) -> tuple[sa.ColumnElement[bool], ...]:
    return (devices.c.tenant_id == scope.tenant_id, devices.c.removed_at.is_(None))


def _clauses(condition: DeviceFilter) -> list[list[sa.ColumnElement[bool]]]:
    """Return disjoint conditions, one a query: a long list of names is asked for in parts."""
    shared: list[sa.ColumnElement[bool]] = []
    if condition.type_name is not None:
        shared.append(device_types.c.name == condition.type_name)
    if condition.state is not None:
        shared.append(devices.c.state == condition.state.value)
    if condition.text:
        shared.append(devices.c.name.icontains(condition.text, autoescape=True))
    if condition.outside_rollout is not None:
        shared.append(
            ~sa.exists().where(
                rollout_devices.c.rollout_id == condition.outside_rollout, rollout_devices.c.device_id == devices.c.id
            )
        )
    if condition.open_in_rollout is not None:
        shared.append(
            sa.exists().where(
                executions.c.rollout_id == condition.open_in_rollout,
                executions.c.device_id == devices.c.id,
                executions.c.state.in_(sorted(OPEN_STATES)),
            )
        )
    check_labels(condition.labels or {})
    for name, value in (condition.labels or {}).items():
        shared.append(devices.c.labels[name].as_string() == value)
    if condition.names is None:
        return [shared]
    return [[*shared, devices.c.name.in_(batch)] for batch in in_batches(sorted(set(condition.names)))]


def _known_device(row: sa.Row[Any]) -> KnownDevice:
    start = len(DEVICE_COLUMNS)
    return KnownDevice(_device(row), DeviceCredentials(*row[start : start + 3]))


def _device(row: sa.Row[Any]) -> Device:
    values = list(row[: len(DEVICE_COLUMNS)])
    values[_STATE] = DeviceState(values[_STATE])
    if values[_AUTO_CONFIRM] is not None:
        values[_AUTO_CONFIRM] = _auto_confirmation(values[_AUTO_CONFIRM])
    if values[_CONFLICT] is not None:
        values[_CONFLICT] = _identity_conflict(values[_CONFLICT])
    return Device(*values)


def _as_json(activation: AutoConfirmation) -> dict[str, str]:
    return {
        "activated_at": activation.activated_at.isoformat(),
        "initiator": activation.initiator,
        "remark": activation.remark,
    }


def _auto_confirmation(stored: Mapping[str, str]) -> AutoConfirmation:
    at = datetime.fromisoformat(stored["activated_at"])
    return AutoConfirmation(at, stored["initiator"], stored["remark"])


def _identity_conflict(stored: Mapping[str, Any]) -> IdentityConflict:
    return IdentityConflict(stored["trait"], tuple(stored["seen"]), datetime.fromisoformat(stored["at"]))
