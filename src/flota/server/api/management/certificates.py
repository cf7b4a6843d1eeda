"""`/certificates`, `/provisioning-templates`: whom a client certificate lets in, and how new things get theirs."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from flota.client import thing_schemas as schemas
from flota.fleet.scope import Scope
from flota.fleet.things import (
    CertificatePurpose,
    CertificateStatus,
    ProvisioningTemplate,
    ThingCertificate,
    parse_template_name,
    parse_thing_name_template,
)
from flota.server import device_registry, things
from flota.server.api.management import answers
from flota.server.api.management.guard import GuardedRoute, caller_of, context_of, needs
from flota.server.api.management.thing_inputs import (
    CertificateInput,
    CertificateQuery,
    ClaimInput,
    RevocationInput,
    TemplateInput,
    ThingInput,
)
from flota.server.auth import Permission
from flota.server.context import ServerContext
from flota.server.thing_endpoint import thing_endpoint

router = APIRouter(route_class=GuardedRoute, tags=["things"])
Context = Annotated[ServerContext, Depends(context_of)]
Caller = Annotated[Scope, Depends(caller_of)]


@router.get("/thing-endpoint", responses=answers.describes(schemas.ThingEndpoint))
@needs(Permission.DEVICES_READ)
async def show_endpoint(context: Context, caller: Caller) -> Response:
    """Show where things connect, and what they trust the server by."""
    del caller  # the same for everyone who may see devices
    host, port, root_ca = thing_endpoint(context)
    return answers.answer(schemas.ThingEndpoint(host=host, port=port, root_ca=root_ca))


@router.post("/things", status_code=201, responses=answers.describes(schemas.RegisteredThing, 201, "Registered."))
@needs(Permission.DEVICES_REGISTER)
async def add_thing(wanted: ThingInput, context: Context, caller: Caller) -> Response:
    """Register an accepted device with a certificate of its own, for the key of a request. It gets no token."""
    registration = device_registry.Registration(
        name=device_registry.parse_device_name(wanted.name),
        type_name=wanted.type,
        mac=device_registry.parse_mac(wanted.mac) if wanted.mac else None,
        labels=device_registry.parse_labels(wanted.labels),
    )
    now = context.now()
    new = await context.things.signed(registration.name, wanted.csr, lifetime=_days(wanted.days))
    async with context.storage.transaction() as transaction:
        device, _ = await device_registry.register_device(transaction, caller, registration, now=now)
        made = await things.keep_certificate(transaction, caller, new, now=now)
    answer = schemas.RegisteredThing(device=answers.device(device), certificate=certificate_answer(made))
    return answers.answer(answer, 201, location=f"/api/v1/devices/{device.name}")


@router.get("/devices/{name}/certificates", responses=answers.describes(schemas.ThingCertificatePage))
@needs(Permission.DEVICES_READ)
async def list_device_certificates(name: str, context: Context, caller: Caller) -> Response:
    """List a device's certificates, revoked ones too, oldest first."""
    async with context.storage.reading() as transaction:
        found = await transaction.list_certificates(caller, device_name=name)
    return answers.answer(schemas.ThingCertificatePage(items=[certificate_answer(one) for one in found]))


@router.post(
    "/devices/{name}/certificates",
    status_code=201,
    responses=answers.describes(schemas.ThingCertificate, 201, "Made."),
)
@needs(Permission.DEVICES_TOKEN)
async def add_certificate(name: str, wanted: CertificateInput, context: Context, caller: Caller) -> Response:
    """Make a device's certificate for the key of a request, or register one that another authority issued.

    With `overlap_s` the ones it has end so many seconds from now, or when the new one is first used.
    """
    now = context.now()
    until = None if wanted.overlap_s is None else now + timedelta(seconds=wanted.overlap_s)
    if wanted.csr is not None:
        new = await context.things.signed(name, wanted.csr, lifetime=_days(wanted.days))
    else:
        new = await context.things.foreign(name, wanted.certificate or "")
    async with context.storage.transaction() as transaction:
        made = await things.keep_certificate(transaction, caller, new, now=now, others_until=until)
    return answers.answer(certificate_answer(made), 201)


@router.get("/certificates", responses=answers.describes(schemas.ThingCertificatePage))
@needs(Permission.DEVICES_READ)
async def list_certificates(query: Annotated[CertificateQuery, Query()], context: Context, caller: Caller) -> Response:
    """List certificates, revoked ones too, oldest first."""
    async with context.storage.reading() as transaction:
        found = await transaction.list_certificates(caller, purpose=query.purpose)
    return answers.answer(schemas.ThingCertificatePage(items=[certificate_answer(one) for one in found]))


@router.post("/certificates/{reference}/revoke", responses=answers.describes(schemas.ThingCertificate))
@needs(Permission.DEVICES_TOKEN)
async def revoke_certificate(
    reference: str, context: Context, caller: Caller, given: RevocationInput | None = None
) -> Response:
    """Revoke a certificate for ever, by its fingerprint or the beginning of it."""
    now = context.now()
    async with context.storage.transaction() as transaction:
        found = await transaction.certificate(caller, reference)
        changed = await transaction.set_certificate_status(
            caller, found.fingerprint, CertificateStatus.REVOKED, now=now, reason=given.reason if given else ""
        )
    return answers.answer(certificate_answer(changed))


@router.get("/provisioning-templates", responses=answers.describes(schemas.ProvisioningTemplatePage))
@needs(Permission.DEVICES_READ)
async def list_templates(context: Context, caller: Caller) -> Response:
    """List the templates by which devices with claim certificates become things."""
    async with context.storage.reading() as transaction:
        found = await transaction.list_templates(caller)
    return answers.answer(schemas.ProvisioningTemplatePage(items=[_template(one) for one in found]))


@router.post(
    "/provisioning-templates",
    status_code=201,
    responses=answers.describes(schemas.ProvisioningTemplate, 201, "Made."),
)
@needs(Permission.TOKENS_MANAGE)
async def add_template(wanted: TemplateInput, context: Context, caller: Caller) -> Response:
    """Make a template: which type, which name, and what happens to names that nobody registered."""
    now = context.now()
    async with context.storage.transaction() as transaction:
        its_type = await device_registry.device_type_or_builtin(transaction, caller, wanted.type, now)
        made = await transaction.add_template(
            caller,
            parse_template_name(wanted.name),
            its_type.name,
            thing_name=parse_thing_name_template(wanted.thing_name),
            unknown_devices=wanted.unknown_devices,
            now=now,
        )
    return answers.answer(_template(made), 201)


@router.delete("/provisioning-templates/{name}", status_code=204)
@needs(Permission.TOKENS_MANAGE)
async def remove_template(name: str, context: Context, caller: Caller) -> Response:
    """Remove a template, and revoke the claim certificates that lead to it; its things stay."""
    async with context.storage.transaction() as transaction:
        await transaction.remove_template(caller, name, now=context.now())
    return Response(status_code=204)


@router.post(
    "/provisioning-templates/{name}/claims",
    status_code=201,
    responses=answers.describes(schemas.ThingCertificate, 201, "Made."),
)
@needs(Permission.TOKENS_MANAGE)
async def add_claim(name: str, wanted: ClaimInput, context: Context, caller: Caller) -> Response:
    """Make a claim certificate for the key of a request: what goes into every device of a production run."""
    made = await context.things.issue_claim(caller, name, wanted.csr, lifetime=_days(wanted.days))
    return answers.answer(certificate_answer(made), 201)


def certificate_answer(entity: ThingCertificate) -> schemas.ThingCertificate:
    """Return a certificate as it is shown."""
    return schemas.ThingCertificate(
        fingerprint=entity.fingerprint,
        purpose=str(entity.purpose),
        status=str(entity.status),
        issued_here=entity.issued_here,
        subject=entity.subject,
        not_before=entity.not_before,
        not_after=entity.not_after,
        created_at=entity.created_at,
        certificate=entity.pem,
        device=entity.device_name,
        template=entity.template_name if entity.purpose is CertificatePurpose.CLAIM else None,
        ends_at=entity.ends_at,
    )


def _template(entity: ProvisioningTemplate) -> schemas.ProvisioningTemplate:
    return schemas.ProvisioningTemplate(
        name=entity.name,
        type=entity.type_name,
        thing_name=entity.thing_name,
        unknown_devices=str(entity.unknown_devices),
        created_at=entity.created_at,
    )


def _days(days: int | None) -> timedelta | None:
    return None if days is None else timedelta(days=days)
