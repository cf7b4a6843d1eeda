"""Device types and their signers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from flota.boards.model import VersionFrom
from flota.errors import Conflict, InvalidInput, NotFound
from flota.fleet.changes import NO_CHANGES, Changes
from flota.fleet.devices import DeviceType, TrustedSigner, UnknownDevices
from flota.fleet.scope import Scope
from flota.fleet.storage import NewDeviceType
from flota.fleet.update_rules import NO_MAINTENANCE, Urgency, check_rules
from flota.store.change_notes import concerning
from flota.store.queries.base import Queries
from flota.store.tables import device_types


class DeviceTypeQueries(Queries):
    """Products: what board, which signers, what about strangers."""

    async def add_device_type(self, scope: Scope, new: NewDeviceType, *, now: datetime) -> DeviceType:
        """Return the new type; raises `Conflict` if the name is taken, `InvalidInput` for impossible signers."""
        check_signers(new.signers, new.signature_threshold)
        check_rules(urgency=Urgency.FORCED, forced_at=None, maintenance=new.maintenance)
        await self._insert_unique(
            device_types,
            {
                "tenant_id": scope.tenant_id,
                "name": new.name,
                "board": new.board,
                "hardware_revision": new.hardware_revision,
                "partition_table": new.partition_table,
                "partition_csv": new.partition_csv,
                "version_from": new.version_from.value,
                "unknown_devices": new.unknown_devices.value,
                "signers": _signers_as_rows(new.signers),
                "signature_threshold": new.signature_threshold,
                "poll_interval_s": new.poll_interval_s,
                "description": new.description,
                "created_at": now,
                "confirm": new.confirm,
                "maintenance": new.maintenance,
                "download_ahead": new.download_ahead,
                "bootloader_idf_version": new.bootloader_idf_version,
                "secure_boot_keys": list(new.secure_boot_keys),
            },
            Conflict("there is a device type of this name", found=new.name),
        )
        self._audit(
            scope,
            "type.created",
            f"type:{new.name}",
            {
                "board": new.board,
                "hardware_revision": new.hardware_revision,
                "unknown_devices": new.unknown_devices.value,
                "signers": [signer.key_id for signer in new.signers],
                "signature_threshold": new.signature_threshold,
                "bootloader_idf_version": new.bootloader_idf_version,
                "secure_boot_keys": list(new.secure_boot_keys),
            },
            now=now,
        )
        return await self.device_type(scope, new.name)

    async def device_type(self, scope: Scope, name: str) -> DeviceType:
        """Return the type called exactly `name`; raises `NotFound`."""
        return _device_type(await self._device_type_row(scope, name))

    async def list_device_types(self, scope: Scope) -> Sequence[DeviceType]:
        """Return the tenant's types by name."""
        rows = await self._rows(
            sa.select(device_types).where(device_types.c.tenant_id == scope.tenant_id).order_by(device_types.c.name)
        )
        return tuple(_device_type(row) for row in rows)

    async def set_signers(
        self, scope: Scope, type_name: str, signers: Sequence[TrustedSigner], threshold: int, *, now: datetime
    ) -> DeviceType:
        """Return the type with `signers` instead of its old ones; releases already published stay so.

        Raises `NotFound`, or `InvalidInput` if a key is listed twice or `threshold` is below 1.
        """
        check_signers(signers, threshold)
        row = await self._device_type_row(scope, type_name, for_update=True)
        await self._connection.execute(
            sa.update(device_types)
            .where(device_types.c.id == row.id)
            .values(signers=_signers_as_rows(signers), signature_threshold=threshold),
            execution_options=concerning(NO_CHANGES),  # signatures are judged when a release is published
        )
        self._audit(
            scope,
            "type.signers-set",
            f"type:{type_name}",
            {"signers": [signer.key_id for signer in signers], "signature_threshold": threshold},
            now=now,
        )
        return await self.device_type(scope, type_name)

    async def set_unknown_devices(
        self, scope: Scope, type_name: str, policy: UnknownDevices, *, now: datetime
    ) -> DeviceType:
        """Return the type with a new policy for devices that nobody registered; raises `NotFound`."""
        row = await self._device_type_row(scope, type_name, for_update=True)
        if row.unknown_devices != policy.value:
            await self._connection.execute(
                sa.update(device_types).where(device_types.c.id == row.id).values(unknown_devices=policy.value),
                execution_options=concerning(NO_CHANGES),  # no known device is concerned
            )
            self._audit(
                scope, "type.unknown-devices-set", f"type:{type_name}", {"unknown_devices": policy.value}, now=now
            )
        return await self.device_type(scope, type_name)

    async def set_update_rules(
        self,
        scope: Scope,
        type_name: str,
        *,
        confirm: bool | None = None,
        maintenance: str | None = None,
        download_ahead: bool | None = None,
        poll_interval_s: int | None = None,
        now: datetime,
    ) -> DeviceType:
        """Return the type with other rules for its updates; None leaves one as it is, `none` means at any time.

        They count from the next poll on, for rollouts at work too. Raises `NotFound`, `InvalidInput`.
        """
        check_rules(urgency=Urgency.FORCED, forced_at=None, maintenance=maintenance)
        row = await self._device_type_row(scope, type_name, for_update=True)
        wanted = {
            "confirm": confirm,
            "maintenance": maintenance,
            "download_ahead": download_ahead,
            "poll_interval_s": poll_interval_s,
        }
        changes: dict[str, object] = {
            name: None if value == NO_MAINTENANCE else value
            for name, value in wanted.items()
            if value is not None and (None if value == NO_MAINTENANCE else value) != getattr(row, name)
        }
        if changes:
            await self._connection.execute(
                sa.update(device_types).where(device_types.c.id == row.id).values(**changes),
                execution_options=concerning(Changes(tenants=frozenset({scope.tenant_id}))),
            )
            self._audit(scope, "type.update-rules-set", f"type:{type_name}", changes, now=now)
        return await self.device_type(scope, type_name)

    async def set_boot_facts(
        self,
        scope: Scope,
        type_name: str,
        *,
        bootloader_idf_version: str | None,
        secure_boot_keys: tuple[str, ...],
        now: datetime,
    ) -> DeviceType:
        """Return the type with other facts about what its devices boot with; they count for releases made from now on.

        Raises `NotFound`.
        """
        row = await self._device_type_row(scope, type_name, for_update=True)
        facts = {"bootloader_idf_version": bootloader_idf_version, "secure_boot_keys": list(secure_boot_keys)}
        changes = {name: value for name, value in facts.items() if getattr(row, name) != value}
        if changes:
            await self._connection.execute(sa.update(device_types).where(device_types.c.id == row.id).values(**changes))
            self._audit(scope, "type.boot-facts-set", f"type:{type_name}", changes, now=now)
        return await self.device_type(scope, type_name)

    async def set_code_certificates(
        self, scope: Scope, type_name: str, certificates: Mapping[str, str], *, now: datetime
    ) -> DeviceType:
        """Return the type with `certificates` (hex SHA-256 -> PEM) instead of its old ones; releases stay as they are.

        Raises `NotFound`.
        """
        row = await self._device_type_row(scope, type_name, for_update=True)
        wanted = list(certificates.values())
        if row.code_certificates != wanted:
            await self._connection.execute(
                sa.update(device_types).where(device_types.c.id == row.id).values(code_certificates=wanted),
                execution_options=concerning(NO_CHANGES),  # signatures are judged when a release is published
            )
            details = {"certificates": sorted(certificates)}
            self._audit(scope, "type.code-certificates-set", f"type:{type_name}", details, now=now)
        return await self.device_type(scope, type_name)

    async def _device_type_row(self, scope: Scope, name: str, *, for_update: bool = False) -> sa.Row[Any]:
        statement = sa.select(device_types).where(
            device_types.c.tenant_id == scope.tenant_id, device_types.c.name == name
        )
        row = await self._row(statement.with_for_update() if for_update else statement)
        if row is None:
            raise NotFound("no such device type", found=repr(name), hint="`flota type list` shows what there is.")
        return row


def check_signers(signers: Sequence[TrustedSigner], threshold: int) -> None:
    """Raise `InvalidInput` if a key is listed twice or `threshold` is below 1.

    Fewer signers than the threshold are allowed: the type can then publish nothing until it gets more.
    """
    if threshold < 1:
        raise InvalidInput("the signature threshold is too small", expected="at least 1", found=threshold)
    if len({signer.key_id for signer in signers}) != len(signers):
        raise InvalidInput("a signer is listed twice")


def _signers_as_rows(signers: Sequence[TrustedSigner]) -> list[dict[str, str]]:
    return [{"key_id": signer.key_id, "public_key": signer.public_key} for signer in signers]


def _device_type(row: sa.Row[Any]) -> DeviceType:
    return DeviceType(
        id=row.id,
        name=row.name,
        board=row.board,
        hardware_revision=row.hardware_revision,
        partition_table=row.partition_table,
        partition_csv=row.partition_csv,
        version_from=VersionFrom(row.version_from),
        unknown_devices=UnknownDevices(row.unknown_devices),
        signers=tuple(TrustedSigner(signer["key_id"], signer["public_key"]) for signer in row.signers),
        signature_threshold=row.signature_threshold,
        poll_interval_s=row.poll_interval_s,
        description=row.description,
        confirm=row.confirm,
        maintenance=row.maintenance,
        download_ahead=row.download_ahead,
        bootloader_idf_version=row.bootloader_idf_version,
        secure_boot_keys=tuple(row.secure_boot_keys),
        code_certificates=tuple(row.code_certificates),
    )
