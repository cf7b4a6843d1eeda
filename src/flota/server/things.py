"""Things: whom a client certificate lets in, and how certificates are issued, registered, revoked and rotated.

ca/devices.crt  signs things' certificates; ca/devices.key, 0600. Made when it is first needed. A certificate counts
because the database knows its fingerprint, not because of who signed it: revoking one is forgetting it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from cryptography import x509

from flota.durable_files import PRIVATE_FILE_MODE, write_durably
from flota.errors import Conflict, FlotaError, InvalidInput
from flota.fleet.scope import Scope
from flota.fleet.things import (
    CertificateHolder,
    CertificatePurpose,
    CertificateStatus,
    NewCertificate,
    ThingCertificate,
    parse_template_name,
    parse_thing_name,
)
from flota.server.gathered import Gathered
from flota.server.waiting import wait_for_any
from flota.trust.certificates import Issuer, new_key, pack_certificates, pack_key, parse_certificates, parse_key
from flota.trust.thing_certificates import (
    CertificateFacts,
    facts_of,
    fingerprint_of,
    make_thing_authority,
    make_thing_certificate,
    parse_foreign_certificate,
    parse_request,
)

if TYPE_CHECKING:
    from flota.fleet.changes import Changes
    from flota.fleet.storage import Storage, Transaction

REMEMBERED_MAX: Final = 50_000
"""Holders kept in memory, some 1.5 KiB each: a device that comes back soon is not looked up again."""

ROTATION_OVERLAP_MAX: Final = timedelta(days=365)
CERTIFICATES_PER_DEVICE_MAX: Final = 10
"""Certificates of one device that are active at a time."""

CLAIMS_PER_TEMPLATE_MAX: Final = 100
"""Claim certificates of a template that work at a time; one for each production run is usual."""

_log = structlog.get_logger(__name__)

_ANYBODY: Final = Scope(0, "certificate")
"""A look-up by fingerprint is what tells the tenant."""


@dataclass(frozen=True, slots=True)
class ThingAuthority:
    """The files of the authority that signs things' certificates."""

    directory: Path

    @property
    def certificate(self) -> Path:
        """What a TLS listener checks things' certificates with."""
        return self.directory / "devices.crt"

    @property
    def key(self) -> Path:
        """Its key, needed by the running server."""
        return self.directory / "devices.key"

    def ensure(self, *, now: datetime) -> Issuer:
        """Return the authority, made now if there is none. Raises `InvalidInput` if its files are damaged."""
        if not self.certificate.exists():
            key = new_key()
            made = make_thing_authority(key, serial=x509.random_serial_number(), now=now)
            write_durably(self.key, pack_key(key), mode=PRIVATE_FILE_MODE)  # first: no authority that nobody can use
            write_durably(self.certificate, pack_certificates(made))
            return Issuer(made, key)
        try:
            certificate, key = parse_certificates(self.certificate.read_bytes())[0], parse_key(self.key.read_bytes())
        except OSError as error:
            raise InvalidInput(f"{error.filename} cannot be read", found=error.strerror) from error
        if certificate.public_key() != key.public_key():
            raise InvalidInput(f"{self.key} is not the key of {self.certificate}", hint="Restore both from a backup.")
        return Issuer(certificate, key)


class ThingCertificates:
    """Whom certificates let in, as one server process knows it."""

    def __init__(
        self,
        storage: Storage,
        directory: Path,
        *,
        now: Callable[[], datetime],
        max_age_s: float | None = None,
        remembered_max: int = REMEMBERED_MAX,
    ) -> None:
        self._storage = storage
        self._authority = ThingAuthority(directory)
        self._now = now
        self._max_age = None if max_age_s is None else timedelta(seconds=max_age_s)
        self._remembered_max = remembered_max
        self._remembered: OrderedDict[str, tuple[CertificateHolder, datetime]] = OrderedDict()
        self._of_device: dict[int, set[str]] = {}
        self._changes = 0
        self._looked_up: Gathered[str, CertificateHolder] = Gathered(storage.read_at_once, _holders)
        self._authorities = b""
        self._changed = asyncio.Event()
        self._reread_s = max_age_s
        self._lock = asyncio.Lock()
        storage.on_change(self._forget)

    async def thing_of_certificate(self, der: bytes) -> CertificateHolder | None:
        """Return whom a certificate stands for that a TLS handshake has proven; None if it lets nobody in."""
        return await self.thing_of_fingerprint(fingerprint_of(der))

    async def thing_of_fingerprint(self, fingerprint: str) -> CertificateHolder | None:
        """Return the same for the certificate's fingerprint (hex SHA-256 of its DER form).

        Nobody is let in by one that is unknown, revoked, waiting for its thing, over or replaced, or whose device is
        removed. Whether the device is accepted is the caller's to judge. The first use of a rotated certificate revokes
        those before it.
        """
        now = self._now()
        holder = self._remembered_holder(fingerprint, now)
        if holder is None:
            changes = self._changes
            holder = await self._looked_up.get(_ANYBODY, fingerprint)
            if holder is None:
                return None
            if changes == self._changes:  # else it may be of before: it is good for this once
                self._remember(fingerprint, holder, now)
        if not holder.certificate.is_good(now=now):
            return None
        if holder.ends_others and holder.device is not None:
            async with self._storage.transaction() as transaction:
                own = Scope(holder.tenant_id, f"device:{holder.device.name}")
                await transaction.revoke_replaced_certificates(own, holder.device.id, now=now)
        return holder

    async def begin(self) -> None:
        """Make the authority if there is none, and read what `client_authorities` gives."""
        issuer = await self.issuer()
        async with self._storage.reading() as transaction:
            foreign = await transaction.foreign_certificates()
        self._authorities = pack_certificates(issuer.certificate) + "".join(foreign).encode("ascii")

    def client_authorities(self) -> bytes:
        """Return, in PEM, what client certificates are checked with; nothing before `begin`.

        That is our authority, and each certificate of another one that was registered: a listener has to accept partial
        chains, so that it can stand for itself.
        """
        return self._authorities

    async def run(self, stop: asyncio.Event) -> None:
        """Read the authorities again whenever they may be others, until `stop`."""
        while not stop.is_set():
            await wait_for_any(stop, self._changed, timeout_s=self._reread_s)
            if stop.is_set():
                return
            self._changed.clear()
            try:
                await self.begin()
            except FlotaError as error:
                _log.error("things.authorities_not_read", error=str(error))

    async def issuer(self) -> Issuer:
        """Return the authority that signs things' certificates, made now if there is none."""
        async with self._lock:
            return await asyncio.to_thread(self._authority.ensure, now=self._now())

    async def sign_request(self, csr: str, common_name: str, *, lifetime: timedelta | None = None) -> CertificateFacts:
        """Return a certificate for the key of a request; nobody knows it yet. Raises `BadCertificateRequest`."""
        key = await asyncio.to_thread(parse_request, csr)
        issuer = await self.issuer()
        serial = x509.random_serial_number()
        made = make_thing_certificate(issuer, key, common_name, serial=serial, now=self._now(), lifetime=lifetime)
        return facts_of(made)

    async def signed(self, device_name: str, csr: str, *, lifetime: timedelta | None = None) -> NewCertificate:
        """Return a certificate for a device and the key of a request (PEM), to be kept by `keep_certificate`.

        Raises `InvalidInput` for a name that no thing can have, `BadCertificateRequest`.
        """
        facts = await self.sign_request(csr, parse_thing_name(device_name), lifetime=lifetime)
        return replace(_known_as(facts, CertificatePurpose.THING, issued_here=True), device_name=device_name)

    async def foreign(self, device_name: str, pem: str) -> NewCertificate:
        """Return a certificate that another authority issued and that is to be believed for itself, to be kept.

        Raises `InvalidInput` for a name that no thing can have, `BadThingCertificate`.
        """
        parse_thing_name(device_name)
        facts = await asyncio.to_thread(parse_foreign_certificate, pem, now=self._now())
        return replace(_known_as(facts, CertificatePurpose.THING, issued_here=False), device_name=device_name)

    async def issue_claim(
        self, scope: Scope, template_name: str, csr: str, *, lifetime: timedelta | None = None
    ) -> ThingCertificate:
        """Return a new claim certificate that leads to a template, for the key of a request (PEM).

        Raises `NotFound` for the template, `BadCertificateRequest`, `Conflict` when there are too many.
        """
        now = self._now()
        facts = await self.sign_request(csr, f"claim {template_name}", lifetime=lifetime)
        new = replace(
            _known_as(facts, CertificatePurpose.CLAIM, issued_here=True),
            template_name=parse_template_name(template_name),
        )
        async with self._storage.transaction() as transaction:
            claims = await transaction.list_certificates(scope, purpose=CertificatePurpose.CLAIM)
            good = [one for one in claims if one.template_name == template_name and one.is_good(now=now)]
            if len(good) >= CLAIMS_PER_TEMPLATE_MAX:
                raise Conflict(
                    f"template {template_name} has {len(good)} claim certificates already",
                    expected=f"at most {CLAIMS_PER_TEMPLATE_MAX}",
                    hint="Revoke those that are not used any more: flota device claim list.",
                )
            return await transaction.add_certificate(scope, new, now=now)

    def _remembered_holder(self, fingerprint: str, now: datetime) -> CertificateHolder | None:
        known = self._remembered.get(fingerprint)
        if known is None or (self._max_age is not None and now - known[1] > self._max_age):
            return None
        self._remembered.move_to_end(fingerprint)
        return known[0]

    def _remember(self, fingerprint: str, holder: CertificateHolder, now: datetime) -> None:
        self._remembered[fingerprint] = (holder, now)
        if holder.device is not None:
            self._of_device.setdefault(holder.device.id, set()).add(fingerprint)
        if len(self._remembered) > self._remembered_max:
            self._drop(next(iter(self._remembered)))

    def _drop(self, fingerprint: str) -> None:
        holder, _ = self._remembered.pop(fingerprint)
        if holder.device is not None:
            of_device = self._of_device[holder.device.id]
            of_device.discard(fingerprint)
            if not of_device:
                del self._of_device[holder.device.id]

    def _forget(self, changes: Changes) -> None:
        if not (changes.identity or changes.tenants or changes.everything):
            return
        self._changes += 1
        if changes.everything:
            self._remembered.clear()
            self._of_device.clear()
        for device_id in changes.identity:
            for fingerprint in tuple(self._of_device.get(device_id, ())):
                self._drop(fingerprint)
        if changes.tenants:
            for fingerprint in [
                key for key, (holder, _) in self._remembered.items() if holder.tenant_id in changes.tenants
            ]:
                self._drop(fingerprint)
        self._changed.set()


def _known_as(facts: CertificateFacts, purpose: CertificatePurpose, *, issued_here: bool) -> NewCertificate:
    return NewCertificate(
        fingerprint=facts.fingerprint,
        purpose=purpose,
        status=CertificateStatus.ACTIVE,
        issued_here=issued_here,
        subject=facts.subject,
        pem=facts.pem,
        not_before=facts.not_before,
        not_after=facts.not_after,
    )


async def keep_certificate(
    transaction: Transaction,
    scope: Scope,
    new: NewCertificate,
    *,
    now: datetime,
    others_until: datetime | None = None,
) -> ThingCertificate:
    """Return a device's certificate, which counts from now on.

    With `others_until` those that it has end then, or when this one is first used. Raises `NotFound` for the device,
    `Conflict` for a certificate that is known already, or if the device has as many as one may have.
    """
    present = await transaction.list_certificates(scope, device_name=new.device_name)
    good = [one for one in present if one.is_good(now=now)]
    if len(good) >= CERTIFICATES_PER_DEVICE_MAX:
        raise Conflict(
            f"device {new.device_name} has {len(good)} certificates already",
            expected=f"at most {CERTIFICATES_PER_DEVICE_MAX}",
            hint="Revoke those that it does not use: flota device certificate list NAME.",
        )
    return await transaction.add_certificate(scope, new, now=now, others_until=others_until)


async def _holders(transaction: Transaction, _: Scope, fingerprints: Sequence[str]) -> Mapping[str, CertificateHolder]:
    return await transaction.certificate_holders(fingerprints)
