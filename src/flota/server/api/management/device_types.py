"""`/types`: products, their boards, partition tables and signers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from flota.boards.catalogue import BOARDS
from flota.client import schemas
from flota.digests import parse_sha256_hex
from flota.errors import NotFound
from flota.fleet.scope import Scope
from flota.server import code_signatures
from flota.server.api.management import answers
from flota.server.api.management.guard import GuardedRoute, caller_of, context_of, needs
from flota.server.api.management.inputs import (
    BootFactsInput,
    CodeCertificatesInput,
    TrustInput,
    TypeInput,
    UnknownDevicesInput,
    UpdateRulesInput,
)
from flota.server.auth import Permission
from flota.server.context import ServerContext
from flota.server.device_registry import (
    add_signers,
    builtin_type,
    declared_type,
    device_type_or_builtin,
    set_boot_facts,
)

router = APIRouter(route_class=GuardedRoute, tags=["types"])
Context = Annotated[ServerContext, Depends(context_of)]
Caller = Annotated[Scope, Depends(caller_of)]


@router.get("/types", responses=answers.describes(schemas.DeviceTypePage))
@needs(Permission.TYPES_READ)
async def list_types(context: Context, caller: Caller) -> Response:
    """List the declared types, then the built-in ones that nobody has used yet."""
    async with context.storage.reading() as transaction:
        used = [answers.device_type(one) for one in await transaction.list_device_types(caller)]
    names = {one.name for one in used}
    unused = [builtin_type(name) for name in BOARDS if name not in names]
    rest = [answers.unused_type(new) for new in unused if new is not None]
    return answers.answer(schemas.DeviceTypePage(items=used + rest))


@router.post("/types", status_code=201, responses=answers.describes(schemas.DeviceType, 201, "Declared."))
@needs(Permission.TYPES_DECLARE)
async def declare_type(wanted: TypeInput, context: Context, caller: Caller) -> Response:
    """Declare a product."""
    new = declared_type(
        name=wanted.name,
        board_name=wanted.board,
        partition_csv=wanted.partition_csv,
        hardware_revision=wanted.hardware_revision,
        version_from=wanted.version_from,
        unknown_devices=wanted.unknown_devices,
        signers=wanted.signers,
        signature_threshold=wanted.signature_threshold,
        poll_interval_s=wanted.poll_interval_s,
        description=wanted.description,
        confirm=wanted.confirm,
        maintenance=wanted.maintenance,
        download_ahead=wanted.download_ahead,
        bootloader_idf_version=wanted.bootloader_idf_version,
        secure_boot_keys=wanted.secure_boot_keys,
    )
    async with context.storage.transaction() as transaction:
        made = await transaction.add_device_type(caller, new, now=context.now())
    return answers.answer(answers.device_type(made), 201, location=f"/api/v1/types/{made.name}")


@router.get("/types/{name}", responses=answers.describes(schemas.DeviceType))
@needs(Permission.TYPES_READ)
async def show_type(name: str, context: Context, caller: Caller) -> Response:
    """Show one type."""
    async with context.storage.reading() as transaction:
        try:
            return answers.answer(answers.device_type(await transaction.device_type(caller, name)))
        except NotFound:
            new = builtin_type(name)
            if new is None:
                raise
            return answers.answer(answers.unused_type(new))


@router.post("/types/{name}/trust", responses=answers.describes(schemas.DeviceType))
@needs(Permission.TYPES_TRUST)
async def trust_keys(name: str, wanted: TrustInput, context: Context, caller: Caller) -> Response:
    """Add public keys to those whose signatures count for the type's releases; perhaps change how many are needed."""
    async with context.storage.transaction() as transaction:
        changed = await add_signers(transaction, caller, name, wanted.public_keys, wanted.threshold, now=context.now())
    return answers.answer(answers.device_type(changed))


@router.post("/types/{name}/code-certificates", responses=answers.describes(schemas.DeviceType))
@needs(Permission.TYPES_TRUST)
async def trust_code_certificates(
    name: str, wanted: CodeCertificatesInput, context: Context, caller: Caller
) -> Response:
    """Say with which certificates the type's devices check files themselves."""
    async with context.storage.transaction() as transaction:
        changed = await code_signatures.trust_code_certificates(
            transaction, caller, name, wanted.certificates, now=context.now(), allow_expired=wanted.allow_expired
        )
    return answers.answer(answers.device_type(changed))


@router.delete("/types/{name}/code-certificates/{fingerprint}", responses=answers.describes(schemas.DeviceType))
@needs(Permission.TYPES_TRUST)
async def distrust_code_certificate(name: str, fingerprint: str, context: Context, caller: Caller) -> Response:
    """Say that the type's devices have a certificate no longer; what is published stays."""
    async with context.storage.transaction() as transaction:
        changed = await code_signatures.distrust_code_certificate(
            transaction, caller, name, parse_sha256_hex(fingerprint), now=context.now()
        )
    return answers.answer(answers.device_type(changed))


@router.post("/types/{name}/boot-facts", responses=answers.describes(schemas.DeviceType))
@needs(Permission.TYPES_DECLARE)
async def change_boot_facts(name: str, wanted: BootFactsInput, context: Context, caller: Caller) -> Response:
    """Say what the type's devices boot with: releases that they would not start are refused from now on."""
    async with context.storage.transaction() as transaction:
        changed = await set_boot_facts(
            transaction, caller, name, wanted.model_dump(include=wanted.model_fields_set), now=context.now()
        )
    return answers.answer(answers.device_type(changed))


@router.post("/types/{name}/unknown-devices", responses=answers.describes(schemas.DeviceType))
@needs(Permission.TYPES_DECLARE)
async def set_unknown_devices(name: str, wanted: UnknownDevicesInput, context: Context, caller: Caller) -> Response:
    """Say what happens to devices of the type that nobody registered."""
    now = context.now()
    async with context.storage.transaction() as transaction:
        its_type = await device_type_or_builtin(transaction, caller, name, now)
        changed = await transaction.set_unknown_devices(caller, its_type.name, wanted.unknown_devices, now=now)
    return answers.answer(answers.device_type(changed))


@router.post("/types/{name}/update-rules", responses=answers.describes(schemas.DeviceType))
@needs(Permission.TYPES_DECLARE)
async def set_update_rules(name: str, wanted: UpdateRulesInput, context: Context, caller: Caller) -> Response:
    """Say how the type's devices take updates; what is not given stays. It counts for rollouts at work too."""
    now = context.now()
    async with context.storage.transaction() as transaction:
        its_type = await device_type_or_builtin(transaction, caller, name, now)
        changed = await transaction.set_update_rules(
            caller,
            its_type.name,
            confirm=wanted.confirm,
            maintenance=wanted.maintenance,
            download_ahead=wanted.download_ahead,
            poll_interval_s=wanted.poll_interval_s,
            now=now,
        )
    return answers.answer(answers.device_type(changed))
