"""Certificates of things: whom they let in, which wait for their thing, which ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from flota.errors import Conflict, InvalidInput, NotFound
from flota.fleet.changes import Changes
from flota.fleet.scope import Scope
from flota.fleet.things import (
    CERTIFICATE_TRANSITIONS,
    CertificateHolder,
    CertificatePurpose,
    CertificateStatus,
    NewCertificate,
    ThingCertificate,
)
from flota.store.change_notes import concerning
from flota.store.queries.base import filled, in_batches
from flota.store.queries.devices import DeviceQueries
from flota.store.queries.templates import TemplateQueries
from flota.store.tables import devices, provisioning_templates, thing_certificates

REFERENCE_MIN_LEN: Final = 8
"""Hex digits of a fingerprint that are enough to name a certificate, if no other begins so."""

_SELECT: Final = (
    sa.select(
        thing_certificates,
        devices.c.name.label("device_name"),
        provisioning_templates.c.name.label("template_name"),
    )
    .outerjoin(devices, devices.c.id == thing_certificates.c.device_id)
    .outerjoin(provisioning_templates, provisioning_templates.c.id == thing_certificates.c.template_id)
)
_HELD: Final = _SELECT.where(
    thing_certificates.c.fingerprint.in_(sa.bindparam("fingerprints", expanding=True)),
    thing_certificates.c.status == CertificateStatus.ACTIVE.value,
)
"""Built once: to build such a statement costs as much as to run it."""


class CertificateQueries(DeviceQueries, TemplateQueries):
    """Who is let in by a certificate. Fingerprints are known once, whichever tenant's they are."""

    async def add_certificate(
        self, scope: Scope, new: NewCertificate, *, now: datetime, others_until: datetime | None = None
    ) -> ThingCertificate:
        """Return a certificate known from now on; with `others_until` the device's other active ones end then.

        Raises `NotFound` for its device or template, `Conflict` if it is known already.
        """
        device = None if new.device_name is None else await self.device(scope, new.device_name)
        template = None if new.template_name is None else await self.template(scope, new.template_name)
        concerned = _concerned(scope, None if device is None else device.id)
        if device is not None and others_until is not None:
            await self._connection.execute(
                sa.update(thing_certificates)
                .where(
                    thing_certificates.c.device_id == device.id,
                    thing_certificates.c.status == CertificateStatus.ACTIVE.value,
                    sa.or_(thing_certificates.c.ends_at.is_(None), thing_certificates.c.ends_at > others_until),
                )
                .values(ends_at=others_until),
                execution_options=concerning(concerned),
            )
        await self._insert_unique(
            thing_certificates,
            {
                "tenant_id": scope.tenant_id,
                "fingerprint": new.fingerprint,
                "purpose": new.purpose.value,
                "status": new.status.value,
                "device_id": None if device is None else device.id,
                "template_id": None if template is None else template.id,
                "issued_here": new.issued_here,
                "subject": new.subject,
                "pem": new.pem,
                "not_before": new.not_before,
                "not_after": new.not_after,
                "created_at": now,
                "changed_at": now,
                "ownership_token_sha256": new.ownership_token_sha256,
                "ownership_until": new.ownership_until,
            },
            Conflict("this certificate is known already", found=new.fingerprint),
            concerns=None if new.issued_here else concerned,  # those who check foreign ones have to learn of it
        )
        details = {
            "fingerprint": new.fingerprint,
            "purpose": new.purpose.value,
            "status": new.status.value,
            "device": new.device_name,
            "template": new.template_name,
            "issued_here": new.issued_here,
            "not_after": new.not_after.isoformat(),
        }
        self._audit(scope, "certificate.added", f"certificate:{new.fingerprint}", details, now=now)
        return await self.certificate(scope, new.fingerprint)

    async def certificate(self, scope: Scope, reference: str) -> ThingCertificate:
        """Return the certificate whose fingerprint begins with `reference` (8 or more hex digits).

        Raises `NotFound`, `InvalidInput` if several begin so.
        """
        wanted = reference.lower()
        rows: Sequence[sa.Row[Any]] = ()
        if len(wanted) >= REFERENCE_MIN_LEN and wanted.isalnum():
            rows = await self._rows(
                _SELECT.where(
                    thing_certificates.c.tenant_id == scope.tenant_id,
                    thing_certificates.c.fingerprint.startswith(wanted, autoescape=True),
                ).limit(2)
            )
        if not rows:
            raise NotFound(
                "no such certificate",
                expected=f"the first {REFERENCE_MIN_LEN} hex digits of a fingerprint, or more",
                found=repr(reference[:80]),
            )
        if len(rows) > 1:
            raise InvalidInput("several certificates begin so", found=reference, hint="Give more of the fingerprint.")
        return _certificate(rows[0])

    async def list_certificates(
        self,
        scope: Scope,
        *,
        device_name: str | None = None,
        purpose: CertificatePurpose | None = None,
        limit: int = 100_000,
    ) -> Sequence[ThingCertificate]:
        """Return the tenant's certificates that meet the conditions, revoked ones too, oldest first."""
        statement = _SELECT.where(thing_certificates.c.tenant_id == scope.tenant_id)
        if device_name is not None:
            device = await self.device(scope, device_name)
            statement = statement.where(thing_certificates.c.device_id == device.id)
        if purpose is not None:
            statement = statement.where(thing_certificates.c.purpose == purpose.value)
        rows = await self._rows(statement.order_by(thing_certificates.c.id).limit(limit))
        return tuple(_certificate(row) for row in rows)

    async def set_certificate_status(
        self, scope: Scope, fingerprint: str, status: CertificateStatus, *, now: datetime, reason: str = ""
    ) -> ThingCertificate:
        """Return the certificate in its new state; setting the state it has changes nothing.

        Raises `NotFound`, `Conflict` if `CERTIFICATE_TRANSITIONS` has no such step.
        """
        row = await self._lock_certificate(scope, thing_certificates.c.fingerprint == fingerprint)
        if row is None:
            raise NotFound("no such certificate", found=repr(fingerprint[:80]))
        present = CertificateStatus(row.status)
        if present is status:
            return await self.certificate(scope, fingerprint)
        if status not in CERTIFICATE_TRANSITIONS[present]:
            raise Conflict(
                f"a certificate that is {present} does not become {status}",
                found=fingerprint,
                hint="Issue a new one." if present is CertificateStatus.REVOKED else None,
            )
        await self._update_certificate(scope, row, {"status": status.value, "changed_at": now})
        details = {"fingerprint": fingerprint, "reason": reason}
        self._audit(scope, f"certificate.{status.lower()}", f"certificate:{fingerprint}", details, now=now)
        return await self.certificate(scope, fingerprint)

    async def certificate_holders(self, fingerprints: Sequence[str]) -> Mapping[str, CertificateHolder]:
        """Return whom active certificates stand for, of whichever tenant; unknown ones are left out.

        So are those of removed devices. That a device waits to be accepted, or was refused, is the caller's to judge.
        """
        rows: list[sa.Row[Any]] = []
        for batch in in_batches(fingerprints):
            rows += (await self._connection.execute(_HELD, {"fingerprints": filled(list(batch))})).all()
        replaced: set[int] = set()
        ids = [row.device_id for row in rows if row.device_id is not None]
        for ids_batch in in_batches(ids):
            ending = await self._rows(
                sa.select(thing_certificates.c.device_id).where(
                    thing_certificates.c.device_id.in_(filled(ids_batch)),
                    thing_certificates.c.status == CertificateStatus.ACTIVE.value,
                    thing_certificates.c.ends_at.is_not(None),
                )
            )
            replaced |= {one.device_id for one in ending}
        live = await self._live_devices(ids)
        return {
            row.fingerprint: CertificateHolder(
                tenant_id=row.tenant_id,
                certificate=_certificate(row).held,
                device=live.get(row.device_id),
                ends_others=row.device_id in replaced and row.ends_at is None,
            )
            for row in rows
            if row.device_id is None or row.device_id in live
        }

    async def revoke_replaced_certificates(self, scope: Scope, device_id: int, *, now: datetime) -> None:
        """Revoke a device's certificates that were to end: it has used their successor."""
        rows = await self._rows(
            sa.select(thing_certificates)
            .where(
                thing_certificates.c.tenant_id == scope.tenant_id,
                thing_certificates.c.device_id == device_id,
                thing_certificates.c.status == CertificateStatus.ACTIVE.value,
                thing_certificates.c.ends_at.is_not(None),
            )
            .order_by(thing_certificates.c.id)
            .with_for_update()
        )
        for row in rows:
            await self._revoke(scope, row, "its successor was used", now=now)

    async def remove_device(self, scope: Scope, name: str, *, now: datetime) -> None:
        """Forget the device as `DeviceQueries.remove_device` does, and revoke its certificates."""
        device = await self.device(scope, name)
        rows = await self._rows(
            sa.select(thing_certificates)
            .where(
                thing_certificates.c.tenant_id == scope.tenant_id,
                thing_certificates.c.device_id == device.id,
                thing_certificates.c.status != CertificateStatus.REVOKED.value,
            )
            .order_by(thing_certificates.c.id)
            .with_for_update()
        )
        for row in rows:
            await self._revoke(scope, row, "the device was removed", now=now)
        await super().remove_device(scope, name, now=now)

    async def certificate_waiting(self, scope: Scope, ownership_token_sha256: str) -> ThingCertificate | None:
        """Return the certificate that this token (its hex SHA-256) can turn into a thing's own, locked; else None.

        Whether the token's time is over is the caller's to judge.
        """
        row = await self._lock_certificate(scope, thing_certificates.c.ownership_token_sha256 == ownership_token_sha256)
        if row is None or row.status != CertificateStatus.PENDING_ACTIVATION.value:
            return None
        return await self.certificate(scope, row.fingerprint)

    async def give_certificate(
        self, scope: Scope, fingerprint: str, device_name: str, *, now: datetime
    ) -> ThingCertificate:
        """Return the waiting certificate, now active and the device's own; its token works no more.

        Raises `NotFound` for certificate or device, `Conflict` unless it was waiting.
        """
        device = await self.device(scope, device_name)
        row = await self._lock_certificate(scope, thing_certificates.c.fingerprint == fingerprint)
        if row is None:
            raise NotFound("no such certificate", found=repr(fingerprint[:80]))
        if row.status != CertificateStatus.PENDING_ACTIVATION.value:
            raise Conflict("the certificate does not wait for a thing", found=row.status)
        changes = {
            "device_id": device.id,
            "status": CertificateStatus.ACTIVE.value,
            "changed_at": now,
            "ownership_token_sha256": None,
            "ownership_until": None,
        }
        await self._connection.execute(
            sa.update(thing_certificates).where(thing_certificates.c.id == row.id).values(**changes),
            execution_options=concerning(_concerned(scope, device.id)),
        )
        details = {"fingerprint": fingerprint, "device": device_name}
        self._audit(scope, "certificate.active", f"certificate:{fingerprint}", details, now=now)
        return await self.certificate(scope, fingerprint)

    async def remove_waiting_certificates(self, scope: Scope, *, before: datetime, limit: int = 1000) -> int:
        """Forget certificates that waited for a thing until after their token ended; returns how many."""
        waiting = (
            sa.select(thing_certificates.c.id)
            .where(
                thing_certificates.c.tenant_id == scope.tenant_id,
                thing_certificates.c.status == CertificateStatus.PENDING_ACTIVATION.value,
                thing_certificates.c.ownership_until < before,
            )
            .limit(limit)
        )
        result = await self._connection.execute(
            sa.delete(thing_certificates).where(thing_certificates.c.id.in_(waiting)),
            execution_options=concerning(Changes()),
        )
        return int(result.rowcount)

    async def count_waiting_certificates(self, scope: Scope) -> int:
        """Return how many certificates wait for their thing."""
        statement = (
            sa.select(sa.func.count())
            .select_from(thing_certificates)
            .where(
                thing_certificates.c.tenant_id == scope.tenant_id,
                thing_certificates.c.status == CertificateStatus.PENDING_ACTIVATION.value,
            )
        )
        return int((await self._connection.execute(statement)).scalar_one())

    async def foreign_certificates(self) -> Sequence[str]:
        """Return, in PEM, the active certificates of all tenants that other authorities issued."""
        rows = await self._rows(
            sa.select(thing_certificates.c.pem)
            .where(
                thing_certificates.c.issued_here.is_(False),
                thing_certificates.c.status == CertificateStatus.ACTIVE.value,
            )
            .order_by(thing_certificates.c.id)
        )
        return tuple(row.pem for row in rows)

    async def remove_template(self, scope: Scope, name: str, *, now: datetime) -> None:
        """Forget a template and revoke the claim certificates that lead to it. Raises `NotFound`."""
        template = await self.template(scope, name)
        claims = await self._rows(
            sa.select(thing_certificates)
            .where(
                thing_certificates.c.tenant_id == scope.tenant_id,
                thing_certificates.c.template_id == template.id,
                thing_certificates.c.purpose == CertificatePurpose.CLAIM.value,
                thing_certificates.c.status != CertificateStatus.REVOKED.value,
            )
            .order_by(thing_certificates.c.id)
            .with_for_update()
        )
        for row in claims:
            await self._revoke(scope, row, "its template was removed", now=now)
        await self._connection.execute(
            sa.update(provisioning_templates).where(provisioning_templates.c.id == template.id).values(removed_at=now),
            execution_options=concerning(Changes(tenants=frozenset({scope.tenant_id}))),
        )
        self._audit(scope, "template.removed", f"template:{name}", {"type": template.type_name}, now=now)

    # inside

    async def _lock_certificate(self, scope: Scope, condition: sa.ColumnElement[bool]) -> sa.Row[Any] | None:
        return await self._row(
            sa.select(thing_certificates)
            .where(thing_certificates.c.tenant_id == scope.tenant_id, condition)
            .with_for_update()
        )

    async def _revoke(self, scope: Scope, row: sa.Row[Any], reason: str, *, now: datetime) -> None:
        await self._update_certificate(scope, row, {"status": CertificateStatus.REVOKED.value, "changed_at": now})
        details = {"fingerprint": row.fingerprint, "reason": reason}
        self._audit(scope, "certificate.revoked", f"certificate:{row.fingerprint}", details, now=now)

    async def _update_certificate(self, scope: Scope, row: sa.Row[Any], values: Mapping[str, object]) -> None:
        await self._connection.execute(
            sa.update(thing_certificates).where(thing_certificates.c.id == row.id).values(**values),
            execution_options=concerning(_concerned(scope, row.device_id)),
        )


def _concerned(scope: Scope, device_id: int | None) -> Changes:
    if device_id is None:  # a claim's: rare, and everybody who has it must be found again
        return Changes(tenants=frozenset({scope.tenant_id}))
    return Changes(identity=frozenset({device_id}))


def _certificate(row: sa.Row[Any]) -> ThingCertificate:
    return ThingCertificate(
        id=row.id,
        fingerprint=row.fingerprint,
        purpose=CertificatePurpose(row.purpose),
        status=CertificateStatus(row.status),
        issued_here=row.issued_here,
        subject=row.subject,
        pem=row.pem,
        not_before=row.not_before,
        not_after=row.not_after,
        created_at=row.created_at,
        changed_at=row.changed_at,
        device_name=row.device_name,
        template_name=row.template_name,
        ends_at=row.ends_at,
        ownership_until=row.ownership_until,
    )
