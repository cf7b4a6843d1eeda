"""Fleet provisioning: what a device may get that shows a claim certificate, and nothing else.

It gets a certificate that waits, and a token good for an hour; with the token it becomes a thing by the claim's own
template, no other. A claim is in many devices, so whoever has it is not trusted far: it cannot take over a device that
was ever seen, nor fill the database with certificates that nobody uses.
Source: docs/reference/aws-iot.md, "Fleet provisioning".
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog

from flota.errors import FlotaError, InvalidInput, NotFound
from flota.fleet.devices import Device, DeviceState, UnknownDevices
from flota.fleet.scope import Scope
from flota.fleet.storage import NewDevice
from flota.fleet.things import (
    CertificateHolder,
    CertificatePurpose,
    CertificateStatus,
    NewCertificate,
    ProvisioningTemplate,
    thing_name_of,
)
from flota.protocols.aws_provisioning import (
    CertificateMade,
    PayloadFormat,
    Provisioned,
    ProvisioningOperation,
    ProvisioningRejected,
    ProvisioningRejection,
    ProvisioningTopic,
    pack_certificate_made,
    pack_provisioned,
    pack_rejection,
    parse_csr_request,
    parse_keys_request,
    parse_provision_request,
    parse_provisioning_topic,
)
from flota.server.auth import digest_of_secret
from flota.trust.thing_certificates import BadCertificateRequest, make_request, new_thing_key, pack_thing_key

if TYPE_CHECKING:
    from flota.fleet.storage import Transaction
    from flota.server.context import ServerContext

TOKEN_LIFETIME: Final = timedelta(hours=1)
"""How long a certificate waits for its thing (docs/reference/aws-iot.md)."""

TOKEN_BYTES: Final = 32
WAITING_MAX: Final = 10_000
"""Certificates of a tenant that wait at a time; a claim that was stolen cannot make more."""

WAITING_NAME: Final = "waiting for its thing"
CERTIFICATE_ID_PARAMETER: Final = "AWS::IoT::Certificate::Id"
"""A parameter that every request has: the fingerprint of the new certificate."""

_log = structlog.get_logger(__name__)
_R = ProvisioningRejection


@dataclass(frozen=True, slots=True)
class ProvisioningAnswer:
    """What goes back to the device that asked."""

    topic: str
    payload: bytes


class Provisioning:
    """Answers devices with claims, of one server process."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def answer(self, holder: CertificateHolder, topic: str, payload: bytes) -> ProvisioningAnswer | None:
        """Return the answer to what a device with a claim published; None if the topic is no request at all.

        Every fault of the device becomes a rejection, every fault of ours one without details.
        """
        asked = parse_provisioning_topic(topic)
        if asked is None:
            return None
        try:
            return ProvisioningAnswer(asked.accepted, await self._answer(holder, asked, payload))
        except ProvisioningRejected as rejected:
            return ProvisioningAnswer(asked.rejected, pack_rejection(rejected, asked.format))
        except NotFound as error:
            gone = ProvisioningRejected(_R.NOT_FOUND, error.message)
            return ProvisioningAnswer(asked.rejected, pack_rejection(gone, asked.format))
        except FlotaError as error:
            _log.error("provisioning.failed", topic=topic, error=str(error))
            failed = ProvisioningRejected(_R.INTERNAL, "the server could not do it now")
            return ProvisioningAnswer(asked.rejected, pack_rejection(failed, asked.format))

    async def _answer(self, holder: CertificateHolder, asked: ProvisioningTopic, payload: bytes) -> bytes:
        if holder.certificate.purpose is not CertificatePurpose.CLAIM or holder.certificate.template_name is None:
            raise ProvisioningRejected(_R.FORBIDDEN, "only a claim certificate may ask for this")
        form = asked.format
        if asked.operation is ProvisioningOperation.PROVISION:
            if asked.template != holder.certificate.template_name:
                raise ProvisioningRejected(_R.FORBIDDEN, "the claim is for another template")
            return await self._provision(holder, asked.template, payload, form)
        if asked.operation is ProvisioningOperation.CREATE_FROM_CSR:
            made = await self._certificate(holder, parse_csr_request(payload, form))
            return pack_certificate_made(made, form)
        parse_keys_request(payload, form)
        key = await asyncio.to_thread(new_thing_key, "rsa-2048")  # what AWS makes, and every agent reads
        made = await self._certificate(holder, make_request(key, WAITING_NAME), private_key=pack_thing_key(key))
        return pack_certificate_made(made, form)

    async def _certificate(
        self, holder: CertificateHolder, csr: str, *, private_key: str | None = None
    ) -> CertificateMade:
        now = self._context.now()
        scope = _scope(holder)
        try:
            facts = await self._context.things.sign_request(csr, WAITING_NAME)
        except BadCertificateRequest as error:
            raise ProvisioningRejected(_R.INVALID_CSR, str(error)) from error
        token = secrets.token_urlsafe(TOKEN_BYTES)
        new = NewCertificate(
            fingerprint=facts.fingerprint,
            purpose=CertificatePurpose.THING,
            status=CertificateStatus.PENDING_ACTIVATION,
            issued_here=True,
            subject=facts.subject,
            pem=facts.pem,
            not_before=facts.not_before,
            not_after=facts.not_after,
            template_name=holder.certificate.template_name,
            ownership_token_sha256=digest_of_secret(token),
            ownership_until=now + TOKEN_LIFETIME,
        )
        async with self._context.storage.transaction() as transaction:
            await transaction.remove_waiting_certificates(scope, before=now)
            if await transaction.count_waiting_certificates(scope) >= WAITING_MAX:
                raise ProvisioningRejected(_R.THROTTLED, "too many certificates wait for their things")
            await transaction.add_certificate(scope, new, now=now)
        return CertificateMade(facts.fingerprint, facts.pem, token, private_key)

    async def _provision(
        self, holder: CertificateHolder, template_name: str, payload: bytes, form: PayloadFormat
    ) -> bytes:
        request = parse_provision_request(payload, form)
        now = self._context.now()
        scope = _scope(holder)
        async with self._context.storage.transaction() as transaction:
            template = await transaction.template(scope, template_name)
            waiting = await transaction.certificate_waiting(scope, digest_of_secret(request.ownership_token))
            expired = waiting is None or waiting.ownership_until is None or now >= waiting.ownership_until
            if waiting is None or expired or waiting.template_name != template.name:
                raise ProvisioningRejected(_R.FORBIDDEN, "the ownership token is not valid, or not any more")
            name = _thing_name(template, {**request.parameters, CERTIFICATE_ID_PARAMETER: waiting.fingerprint})
            device = await transaction.find_device(scope, name)
            if device is None:
                await transaction.add_device(scope, _new_device(template, name), now=now)
            else:
                await _refuse_taken(transaction, scope, template, device)
            await transaction.give_certificate(scope, waiting.fingerprint, name, now=now)
        return pack_provisioned(Provisioned(name), form)


def _scope(holder: CertificateHolder) -> Scope:
    return Scope(holder.tenant_id, f"claim:{holder.certificate.fingerprint[:16]}")


def _thing_name(template: ProvisioningTemplate, parameters: Mapping[str, str]) -> str:
    try:
        return thing_name_of(template.thing_name, parameters)
    except InvalidInput as error:
        raise ProvisioningRejected(_R.INVALID_PARAMETERS, str(error)) from error


def _new_device(template: ProvisioningTemplate, name: str) -> NewDevice:
    if template.unknown_devices is UnknownDevices.REFUSE:
        raise ProvisioningRejected(_R.FORBIDDEN, "no device of this name is expected")
    accepted = template.unknown_devices is UnknownDevices.ACCEPT
    return NewDevice(
        name=name, type_name=template.type_name, state=DeviceState.ACCEPTED if accepted else DeviceState.PENDING
    )


async def _refuse_taken(transaction: Transaction, scope: Scope, template: ProvisioningTemplate, device: Device) -> None:
    """Raise a rejection unless the device was registered for this: of the template's type, and never seen so far.

    A claim's key is in many devices: one that was broken into must not become another, nor come back once revoked.
    """
    had_one = await transaction.list_certificates(scope, device_name=device.name, limit=1)
    is_fresh = not had_one and device.last_seen_at is None and device.state is not DeviceState.REFUSED
    if not is_fresh or device.type_name != template.type_name:
        _log.warning("provisioning.device_taken", device=device.name, template=template.name)
        raise ProvisioningRejected(_R.FORBIDDEN, "a device of this name is not expected")
