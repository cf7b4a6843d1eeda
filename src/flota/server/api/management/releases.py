"""`/artifacts` and `/releases`: what ships."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import FileResponse, Response

from flota.client import schemas
from flota.digests import parse_sha256_hex
from flota.errors import InvalidInput, NotFound
from flota.fleet.devices import DeviceType
from flota.fleet.releases import Release, ReleaseSignature
from flota.fleet.scope import Scope
from flota.images.sbom import SbomFormat
from flota.server import artifact_intake, catalogue, code_signatures
from flota.server.api.management import answers
from flota.server.api.management.guard import (
    STREAMED,
    GuardedRoute,
    announced_size,
    body_pieces,
    caller_of,
    context_of,
    needs,
)
from flota.server.api.management.inputs import (
    EmptyInput,
    FileSignatureInput,
    ReasonInput,
    ReleaseInput,
    ReleaseQuery,
    SbomInput,
    SignatureInput,
)
from flota.server.auth import Permission
from flota.server.context import ServerContext
from flota.server.sboms import SbomFile

router = APIRouter(route_class=GuardedRoute, tags=["releases"])
Context = Annotated[ServerContext, Depends(context_of)]
Caller = Annotated[Scope, Depends(caller_of)]

_RAW_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/artifacts",
    status_code=201,
    openapi_extra=_RAW_BODY,
    responses={
        **answers.describes(schemas.Artifact, 201, "Stored."),
        **answers.describes(schemas.Artifact, 200, "These bytes were stored already."),
    },
)
@needs(Permission.ARTIFACTS_UPLOAD, body_max_bytes=STREAMED)
async def upload_artifact(
    request: Request,
    context: Context,
    caller: Caller,
    x_filename: Annotated[str, Header(description="A label for the bytes: UTF-8, percent-encoded.")] = "firmware.bin",
) -> Response:
    """Store the body as it is, then look into what was stored."""
    stored, is_new = await artifact_intake.store_artifact(
        context,
        caller,
        body_pieces(request),
        filename=artifact_intake.parse_filename(_decoded(x_filename)),
        announced_size=announced_size(request),
    )
    return answers.answer(answers.artifact(stored, already_stored=not is_new), 201 if is_new else 200)


@router.get("/artifacts/{sha256}", responses=answers.describes(schemas.Artifact))
@needs(Permission.ARTIFACTS_READ)
async def show_artifact(sha256: str, context: Context, caller: Caller) -> Response:
    """Show what is known about stored bytes; the bytes themselves are at `/artifacts/{sha256}` of the server."""
    async with context.storage.reading() as transaction:
        return answers.answer(answers.artifact(await transaction.artifact(caller, parse_sha256_hex(sha256))))


@router.get("/releases", responses=answers.describes(schemas.ReleasePage))
@needs(Permission.RELEASES_READ)
async def list_releases(query: Annotated[ReleaseQuery, Query()], context: Context, caller: Caller) -> Response:
    """List releases, oldest first."""
    async with context.storage.reading() as transaction:
        found = await transaction.list_releases(caller, type_name=query.type, state=query.state)
        types = {one.name: one for one in await transaction.list_device_types(caller)}
    return answers.answer(schemas.ReleasePage(items=[answers.release(one, types[one.type_name]) for one in found]))


@router.post("/releases", status_code=201, responses=answers.describes(schemas.Release, 201, "Drafted."))
@needs(Permission.RELEASES_CREATE)
async def create_release(wanted: ReleaseInput, context: Context, caller: Caller) -> Response:
    """Check stored bytes against a type's board, and draft a release of them."""
    draft = catalogue.ReleaseDraft(
        type_name=wanted.type,
        version=wanted.version,
        artifact=wanted.artifact,
        notes=wanted.notes,
        expires_at=wanted.expires_at,
        filename=wanted.filename,
        sbom=_sbom_file(wanted.sbom) if wanted.sbom else None,
        certfile=wanted.certfile,
        filepath=wanted.filepath,
    )
    made = await catalogue.create_release(context, caller, draft)
    async with context.storage.reading() as transaction:
        its_type = await transaction.device_type(caller, made.type_name)
    return answers.answer(answers.release(made, its_type), 201, location=f"/api/v1/releases/{made.id}")


@router.get("/releases/{reference}", responses=answers.describes(schemas.Release))
@needs(Permission.RELEASES_READ)
async def show_release(reference: str, context: Context, caller: Caller) -> Response:
    """Show one release, by number or `TYPE@VERSION`."""
    async with context.storage.reading() as transaction:
        found = await catalogue.find_release(transaction, caller, reference)
        its_type = await transaction.device_type(caller, found.type_name)
    return answers.answer(answers.release(found, its_type))


@router.get(
    "/releases/{reference}/manifest",
    responses={200: {"description": "The exact bytes that are signed.", "content": {answers.JSON: {}}}},
)
@needs(Permission.RELEASES_READ)
async def show_manifest(reference: str, context: Context, caller: Caller) -> Response:
    """Return the exact bytes that are to be signed."""
    async with context.storage.reading() as transaction:
        found = await catalogue.find_release(transaction, caller, reference)
    return Response(found.manifest, media_type=answers.JSON, headers={"cache-control": "no-store"})


@router.put("/releases/{reference}/sbom", responses=answers.describes(schemas.Release))
@needs(Permission.RELEASES_CREATE)
async def set_sbom(reference: str, given: SbomInput, context: Context, caller: Caller) -> Response:
    """Give a draft an SBOM (CycloneDX or SPDX as JSON) of stored bytes; once it is signed, its SBOM stays."""
    return _released(await catalogue.set_sbom(context, caller, reference, _sbom_file(given)))


@router.get(
    "/releases/{reference}/sbom",
    response_class=FileResponse,
    responses={200: {"description": "The file as it was uploaded.", "content": {answers.JSON: {}}}},
)
@needs(Permission.RELEASES_READ)
async def download_sbom(reference: str, context: Context, caller: Caller) -> Response:
    """Return a release's SBOM, byte for byte."""
    async with context.storage.reading() as transaction:
        found = await catalogue.find_release(transaction, caller, reference)
    if found.sbom is None:
        raise NotFound(
            f"release {found.type_name}@{found.version} has no SBOM",
            hint="Drafts take one: flota release create FILE --sbom FILE, or flota release sbom RELEASE --attach FILE.",
        )
    return FileResponse(
        context.artifacts.path(found.sbom.sha256),
        media_type=SbomFormat(found.sbom.format).media_type(found.sbom.spec_version),
        filename=found.sbom.filename,
        headers={"cache-control": "no-store", "x-content-type-options": "nosniff", "etag": f'"{found.sbom.sha256}"'},
    )


@router.post("/releases/{reference}/signatures", responses=answers.describes(schemas.Release))
@needs(Permission.RELEASES_SIGN)
async def add_signature(reference: str, given: SignatureInput, context: Context, caller: Caller) -> Response:
    """Hand in a signature that was made elsewhere."""
    signature = ReleaseSignature(key_id=given.key_id, algorithm=given.algorithm, signature=given.signature)
    return _released(await catalogue.add_signature(context, caller, reference, signature))


@router.post("/releases/{reference}/file-signatures", responses=answers.describes(schemas.Release))
@needs(Permission.RELEASES_SIGN)
async def add_file_signature(reference: str, given: FileSignatureInput, context: Context, caller: Caller) -> Response:
    """Hand in a signature over the whole file, for devices that check it with a certificate of theirs."""
    async with context.storage.reading() as transaction:
        found = await catalogue.find_release(transaction, caller, reference)
    signature = code_signatures.GivenSignature(given.signature, given.certificate)
    return _released(await code_signatures.add_file_signature(context, caller, found, signature))


@router.post("/releases/{reference}/publish", responses=answers.describes(schemas.Release))
@needs(Permission.RELEASES_PUBLISH)
async def publish(reference: str, context: Context, caller: Caller, _: EmptyInput | None = None) -> Response:
    """Publish a release that has its signatures."""
    return _released(await catalogue.publish_release(context, caller, reference))


@router.post("/releases/{reference}/withdraw", responses=answers.describes(schemas.Release))
@needs(Permission.RELEASES_WITHDRAW)
async def withdraw(reference: str, context: Context, caller: Caller, given: ReasonInput | None = None) -> Response:
    """Withdraw a release for ever; rollouts that still offer it are canceled."""
    return _released(await catalogue.withdraw_release(context, caller, reference, given.reason if given else ""))


def _released(result: tuple[Release, DeviceType]) -> Response:
    release, its_type = result
    return answers.answer(answers.release(release, its_type))


def _sbom_file(given: SbomInput) -> SbomFile:
    return SbomFile(given.artifact, given.filename)


def _decoded(x_filename: str) -> str:
    """Return the file name in the header. HTTP hands over bytes as Latin-1; percent-encoding carries the rest."""
    try:
        return unquote_to_bytes(x_filename.encode("latin-1")).decode("utf-8")
    except UnicodeError as error:
        raise InvalidInput(
            "the file name is not UTF-8", expected="x-filename: percent-encoded UTF-8", found=repr(x_filename[:80])
        ) from error
