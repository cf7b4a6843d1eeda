"""Releases: what ships. What does not fit the type is refused, what is not signed is not published."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from flota.boards.fit import fit_check
from flota.boards.model import Unfit
from flota.errors import Conflict, InvalidInput, NotFound, Refused
from flota.fleet.devices import DeviceType
from flota.fleet.releases import Artifact, Release, ReleaseSignature, ReleaseState
from flota.fleet.storage import NewRelease
from flota.fleet.things import parse_device_text
from flota.images.model import Finding, Inspection
from flota.server.artifact_intake import inspect_file, parse_filename, recorded_artifact
from flota.server.code_signatures import refuse_without_code_signature
from flota.server.device_registry import device_type_or_builtin, profile_of
from flota.server.sboms import SbomFile, read_sbom
from flota.trust.manifest import Manifest, ManifestComponent, pack_manifest
from flota.trust.signatures import Signature, check_signature, verify_manifest
from flota.versions import parse_version

if TYPE_CHECKING:
    from flota.fleet.scope import Scope
    from flota.fleet.storage import Transaction
    from flota.server.context import ServerContext

COMPONENT_NAME: Final = "app"
"""Name of a release's only component in its manifest."""

SIGNATURE_MAX_BYTES: Final = 1024


class DoesNotFit(Refused):
    """The image does not suit the device type's board. `reasons` has them all; the error's facts are the first's."""

    code = "does-not-fit"

    def __init__(self, type_name: str, reasons: Sequence[Unfit]) -> None:
        first = reasons[0]
        message = f"the image does not fit type {type_name}: " + "; ".join(reason.text for reason in reasons)
        super().__init__(message, offset=first.offset, expected=first.expected, found=first.found, hint=first.hint)
        self.reasons = tuple(reasons)

    def as_dict(self) -> dict[str, object]:
        """Return the error as plain data, with all `reasons`."""
        return {**super().as_dict(), "reasons": [_plain_reason(reason) for reason in self.reasons]}


@dataclass(frozen=True, slots=True)
class ReleaseDraft:
    """What a new release is made of. `artifact` is the SHA-256 of stored bytes.

    `filename` is what devices are told the file is called; None takes the name of the bytes' first upload.
    """

    type_name: str
    version: str
    artifact: str
    notes: str = ""
    expires_at: datetime | None = None
    filename: str | None = None
    sbom: SbomFile | None = None
    certfile: str | None = None
    filepath: str | None = None


async def create_release(context: ServerContext, scope: Scope, draft: ReleaseDraft) -> Release:
    """Check an artifact against a type's board, build the manifest, record the draft.

    Raises `DoesNotFit` with all reasons, `Conflict` if the type has this version already, `NotFound`.
    """
    now = context.now()
    version = parse_version(draft.version)
    filename = None if draft.filename is None else parse_filename(draft.filename)
    if draft.expires_at is not None and draft.expires_at <= now:
        raise InvalidInput("the release would have expired already", found=draft.expires_at.isoformat())
    certfile = None if draft.certfile is None else parse_device_text("certfile", draft.certfile)
    filepath = None if draft.filepath is None else parse_device_text("filepath", draft.filepath)
    sbom = None if draft.sbom is None else await read_sbom(context, scope, draft.sbom)
    async with context.storage.reading() as transaction:
        artifact = await recorded_artifact(transaction, scope, draft.artifact)
    inspection = await asyncio.to_thread(
        inspect_file, context.artifacts.path(artifact.digests.sha256), artifact.filename
    )
    async with context.storage.transaction() as transaction:
        device_type = await device_type_or_builtin(transaction, scope, draft.type_name, now)
        unfit = fit_check(
            profile_of(device_type),
            inspection,
            file_size=artifact.digests.size,
            version=version,
            filename=filename or artifact.filename,
        )
        blocking = [reason for reason in unfit if reason.blocking]
        if blocking:
            raise DoesNotFit(device_type.name, blocking)
        await _refuse_second_release(transaction, scope, device_type.name, version)
        sequence = await transaction.next_sequence(scope, device_type.name)
        new = NewRelease(
            type_name=device_type.name,
            version=version,
            sequence=sequence,
            artifact_sha256=artifact.digests.sha256,
            manifest=pack_manifest(_manifest(device_type, artifact, version, sequence, draft.expires_at, now)),
            expires_at=draft.expires_at,
            notes=draft.notes,
            warnings=_warnings(unfit, inspection),
            filename=filename,
            sbom=sbom,
            certfile=certfile,
            filepath=filepath,
        )
        return await transaction.add_release(scope, new, now=now)


def _manifest(
    device_type: DeviceType, artifact: Artifact, version: str, sequence: int, expires_at: datetime | None, now: datetime
) -> Manifest:
    component = ManifestComponent(
        name=COMPONENT_NAME, format=artifact.format, size=artifact.digests.size, sha256=artifact.digests.sha256
    )
    return Manifest(
        device_type=device_type.name,
        board=device_type.board,
        hardware_revision=device_type.hardware_revision,
        version=version,
        sequence=sequence,
        expires_at=expires_at,
        components=(component,),
        issued_at=now,
    )


async def _refuse_second_release(transaction: Transaction, scope: Scope, type_name: str, version: str) -> None:
    other = await transaction.find_release(scope, type_name, version)
    if other is not None and other.state is not ReleaseState.WITHDRAWN:
        raise Conflict(
            f"type {type_name} has a release {version} already",
            found=f"release {other.id}, {other.state}, file {other.filename}",
            hint=f"Use it, choose another version, or withdraw it first: flota release withdraw {other.id}.",
        )


async def find_release(transaction: Transaction, scope: Scope, reference: str) -> Release:
    """Return the release with this number, or the one named `TYPE@VERSION`. Raises `NotFound`."""
    if reference.isascii() and reference.isdecimal() and len(reference) <= 9:
        return await transaction.release(scope, int(reference))
    type_name, separator, version = reference.partition("@")
    found = await transaction.find_release(scope, type_name, version) if separator else None
    if found is None:
        raise NotFound(
            "there is no such release",
            expected="a number or TYPE@VERSION",
            found=repr(reference[:200]),
            hint="See them with `flota release list`.",
        )
    return found


async def add_signature(
    context: ServerContext, scope: Scope, reference: str, given: ReleaseSignature
) -> tuple[Release, DeviceType]:
    """Check one signature against the type's signers and keep it; the release is SIGNED once it has enough.

    A second signature of the same key changes nothing. Raises `Refused` for a key that is not trusted or a signature
    that is not of these bytes, `Conflict` for a release that is published or withdrawn.
    """
    now = context.now()
    async with context.storage.transaction() as transaction:
        release = await find_release(transaction, scope, reference)
        device_type = await transaction.device_type(scope, release.type_name)
        if release.state not in (ReleaseState.DRAFT, ReleaseState.SIGNED):
            raise _wrong_state(release, "signed", "a draft")
        signer = next((one for one in device_type.signers if one.key_id == given.key_id), None)
        if signer is None:
            raise Refused(
                f"key {given.key_id} is not trusted for type {device_type.name}",
                expected="one of " + ", ".join(s.key_id for s in device_type.signers)
                if device_type.signers
                else "a trusted key; the type has none yet",
                found=given.key_id,
                hint="If it should be, an administrator says so once: "
                f"flota type trust {device_type.name} --key PUB.pem (or --trust-key when signing).",
            )
        check_signature(release.manifest, _parse_signature(given), signer.public_key)
        return await transaction.add_signature(scope, release.id, given, now=now), device_type


async def set_sbom(
    context: ServerContext, scope: Scope, reference: str, wanted: SbomFile
) -> tuple[Release, DeviceType]:
    """Give a draft an SBOM, or another one than it had. Raises as `read_sbom`, and `Conflict` for what is no draft."""
    sbom = await read_sbom(context, scope, wanted)
    async with context.storage.transaction() as transaction:
        release = await find_release(transaction, scope, reference)
        changed = await transaction.set_release_sbom(scope, release.id, sbom, now=context.now())
        return changed, await transaction.device_type(scope, changed.type_name)


async def publish_release(context: ServerContext, scope: Scope, reference: str) -> tuple[Release, DeviceType]:
    """Publish a release whose manifest verifies against the type's signers of today; nothing else can be rolled out."""
    now = context.now()
    async with context.storage.transaction() as transaction:
        release = await find_release(transaction, scope, reference)
        device_type = await transaction.device_type(scope, release.type_name)
        if release.state is ReleaseState.PUBLISHED:
            return release, device_type
        if release.state is ReleaseState.WITHDRAWN:
            raise _wrong_state(release, "published", "signed")
        _refuse_unsigned(release, device_type)
        if release.expires_at is not None and release.expires_at <= now:
            raise Refused("the release has expired", found=release.expires_at.isoformat(), hint="Create a new one.")
        signatures = [_parse_signature(one) for one in release.signatures]
        trusted = {one.key_id: one.public_key for one in device_type.signers}
        verify_manifest(
            release.manifest,
            [one for one in signatures if one.key_id in trusted],
            trusted,
            device_type.signature_threshold,
        )
        refuse_without_code_signature(release, device_type)
        if release.state is ReleaseState.DRAFT:
            await transaction.set_release_state(scope, release.id, ReleaseState.SIGNED, now=now)
        release = await transaction.set_release_state(scope, release.id, ReleaseState.PUBLISHED, now=now)
        return release, device_type


async def withdraw_release(
    context: ServerContext, scope: Scope, reference: str, reason: str
) -> tuple[Release, DeviceType]:
    """Withdraw a release for ever; the rollouts that still offer it are canceled with it."""
    async with context.storage.transaction() as transaction:
        release = await find_release(transaction, scope, reference)
        device_type = await transaction.device_type(scope, release.type_name)
        withdrawn = await transaction.set_release_state(
            scope, release.id, ReleaseState.WITHDRAWN, now=context.now(), reason=reason
        )
        return withdrawn, device_type


def _refuse_unsigned(release: Release, device_type: DeviceType) -> None:
    counted = _counted(release, device_type)
    if counted >= device_type.signature_threshold:
        return
    raise Refused(
        f"release {release.type_name}@{release.version} lacks signatures",
        expected=f"{device_type.signature_threshold} of the type's {len(device_type.signers)} signers",
        found=f"{counted} signatures",
        hint=f"flota release sign {release.id} --key KEY.pem",
    )


def _counted(release: Release, device_type: DeviceType) -> int:
    trusted = {one.key_id for one in device_type.signers}
    return len({one.key_id for one in release.signatures} & trusted)


def _parse_signature(given: ReleaseSignature) -> Signature:
    try:
        raw = base64.b64decode(given.signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("the signature is not base64", found=str(error)) from error
    if not 0 < len(raw) <= SIGNATURE_MAX_BYTES:
        raise InvalidInput("the signature's length", expected=f"1 to {SIGNATURE_MAX_BYTES} bytes", found=len(raw))
    return Signature(key_id=given.key_id, algorithm=given.algorithm, signature=raw)


def _wrong_state(release: Release, done: str, needed: str) -> Conflict:
    return Conflict(
        f"release {release.type_name}@{release.version} cannot be {done}", expected=needed, found=str(release.state)
    )


def _warnings(unfit: Sequence[Unfit], inspection: Inspection) -> tuple[str, ...]:
    """Return what is worth knowing about an image that fits: of the board's check, then of the image itself."""
    found: list[Unfit | Finding] = [*unfit]
    found += [finding for finding in inspection.findings if finding.level == "warning"]
    return tuple(dict.fromkeys(_one_line(one) for one in found))


def _one_line(reason: Unfit | Finding) -> str:
    facts = [
        f"{name} {value}"
        for name, value in (("expected", reason.expected), ("found", reason.found))
        if value is not None
    ]
    return ", ".join([reason.text, *facts])


def _plain_reason(reason: Unfit) -> Mapping[str, object]:
    facts = {
        "code": reason.code,
        "text": reason.text,
        "offset": reason.offset,
        "expected": reason.expected,
        "found": reason.found,
        "hint": reason.hint,
    }
    return {name: value for name, value in facts.items() if value is not None}
