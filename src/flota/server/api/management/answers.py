"""Entities as the JSON that the API answers: one definition of each shape, shared with the client."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from starlette.responses import Response

from flota import __version__
from flota.boards.catalogue import board
from flota.boards.fit import slots_of
from flota.client import schemas
from flota.fleet.audit import AuditEntry
from flota.fleet.devices import Device, DeviceType
from flota.fleet.executions import Execution
from flota.fleet.releases import Artifact, Release
from flota.fleet.rollouts import Rollout
from flota.fleet.scope import Role, Scope
from flota.fleet.storage import AccessToken, ExecutionEvent, NewDeviceType
from flota.server.device_registry import is_builtin, profile_of

JSON: Final = "application/json"

SCHEMAS: Final = (
    schemas.AccessToken,
    schemas.AccessTokenPage,
    schemas.Artifact,
    schemas.AuditPage,
    schemas.Device,
    schemas.DevicePage,
    schemas.DeviceType,
    schemas.DeviceTypePage,
    schemas.Execution,
    schemas.ExecutionEventPage,
    schemas.ExecutionPage,
    schemas.ImportAnswer,
    schemas.Release,
    schemas.ReleasePage,
    schemas.Rollout,
    schemas.RolloutPage,
    schemas.WhoAmI,
)
"""What the OpenAPI document describes; the types these refer to come along."""


def answer(value: schemas.Answer, status: int = 200, *, location: str | None = None) -> Response:
    """Return `value` as JSON. Nothing here may be kept by caches: it is one caller's view of now."""
    headers = {"cache-control": "no-store"}
    if location is not None:
        headers["location"] = location
    return Response(msgspec.json.encode(value), status_code=status, media_type=JSON, headers=headers)


def describes(kind: type[schemas.Answer], status: int = 200, text: str = "Done.") -> dict[int | str, dict[str, Any]]:
    """Return the `responses` entry of a route that answers with `kind`."""
    return {status: {"description": text, "content": {JSON: {"schema": {"$ref": _ref(kind.__name__)}}}}}


def schema_components() -> Mapping[str, Any]:
    """Return the OpenAPI schemas of everything that the API answers."""
    _, components = msgspec.json.schema_components(SCHEMAS, ref_template=_ref("{name}"))
    return components


def _ref(name: str) -> str:
    return f"#/components/schemas/{name}"


def whoami(scope: Scope, role: Role, tenant: str) -> schemas.WhoAmI:
    """Return whose token asked."""
    return schemas.WhoAmI(tenant=tenant, actor=scope.actor, role=str(role), server_version=__version__)


def device_type(entity: DeviceType) -> schemas.DeviceType:
    """Return a declared type, or a built-in one that has been used."""
    return schemas.DeviceType(
        id=entity.id,
        name=entity.name,
        board=entity.board,
        hardware_revision=entity.hardware_revision,
        version_from=str(entity.version_from),
        unknown_devices=str(entity.unknown_devices),
        signers=[schemas.Signer(key_id=one.key_id, public_key=one.public_key) for one in entity.signers],
        signature_threshold=entity.signature_threshold,
        poll_interval_s=entity.poll_interval_s,
        description=entity.description,
        partition_csv=entity.partition_csv or board(entity.board).partition_csv,
        slots=[schemas.Slot(name=s.name, offset=s.offset, size=s.size) for s in slots_of(profile_of(entity))],
        builtin=is_builtin(entity),
    )


def unused_type(new: NewDeviceType) -> schemas.DeviceType:
    """Return a built-in type that nobody has used yet: it has no number."""
    entity = DeviceType(
        id=0,
        name=new.name,
        board=new.board,
        version_from=new.version_from,
        unknown_devices=new.unknown_devices,
        signers=new.signers,
        signature_threshold=new.signature_threshold,
        poll_interval_s=new.poll_interval_s,
        description=new.description,
    )
    return msgspec.structs.replace(device_type(entity), id=None)


def artifact(entity: Artifact, *, already_stored: bool = False, with_inspection: bool = True) -> schemas.Artifact:
    """Return stored bytes; a release shows its artifact without the inspection."""
    return schemas.Artifact(
        sha256=entity.digests.sha256,
        sha1=entity.digests.sha1,
        md5=entity.digests.md5,
        size=entity.digests.size,
        filename=entity.filename,
        format=entity.format,
        image_version=entity.image_version,
        validation_hash=entity.validation_hash,
        created_at=entity.created_at,
        already_stored=already_stored,
        inspection=dict(entity.inspection) if with_inspection else {},
    )


def release(entity: Release, its_type: DeviceType) -> schemas.Release:
    """Return a release; how many signatures it needs is its type's affair."""
    return schemas.Release(
        id=entity.id,
        type=entity.type_name,
        version=entity.version,
        sequence=entity.sequence,
        state=str(entity.state),
        artifact=artifact(entity.artifact, with_inspection=False),
        filename=entity.filename,
        manifest_sha256=hashlib.sha256(entity.manifest).hexdigest(),
        signatures=[
            schemas.Signature(key_id=one.key_id, algorithm=one.algorithm, signature=one.signature)
            for one in entity.signatures
        ],
        signatures_needed=its_type.signature_threshold,
        created_at=entity.created_at,
        expires_at=entity.expires_at,
        notes=entity.notes,
        warnings=list(entity.warnings),
    )


def device(entity: Device, *, token: str | None = None) -> schemas.Device:
    """Return a device; `token` only where it was just made."""
    return schemas.Device(
        id=entity.id,
        name=entity.name,
        type=entity.type_name,
        state=str(entity.state),
        mac=entity.mac,
        running_version=entity.running_version,
        running_hash=entity.running_hash,
        running_md5=entity.running_md5,
        attributes=dict(entity.attributes),
        labels=dict(entity.labels),
        last_seen_at=entity.last_seen_at,
        last_route=entity.last_route,
        address=entity.address,
        created_at=entity.created_at,
        token=token,
    )


def rollout(entity: Rollout) -> schemas.Rollout:
    """Return a rollout with its waves and their counts."""
    policy = entity.policy
    return schemas.Rollout(
        id=entity.id,
        name=entity.name,
        release=entity.release_id,
        type=entity.type_name,
        version=entity.version,
        state=str(entity.state),
        policy=schemas.RolloutPolicy(
            abort_after_failures=policy.abort_after_failures,
            silence_limit_s=policy.silence_limit_s,
            attempts=policy.attempts,
            count_inferred=policy.count_inferred,
        ),
        waves=[
            schemas.Wave(
                number=wave.number,
                state=str(wave.state),
                size=wave.size,
                counts={str(state): count for state, count in wave.counts.items()},
            )
            for wave in entity.waves
        ],
        selector=entity.selector,
        created_at=entity.created_at,
        changed_at=entity.changed_at,
        reason=entity.reason,
    )


def execution(entity: Execution) -> schemas.Execution:
    """Return one device's part in a rollout."""
    return schemas.Execution(
        id=entity.id,
        rollout=entity.rollout_id,
        device=entity.device_name,
        release=entity.release_id,
        wave=entity.wave,
        state=str(entity.state),
        version=entity.version,
        basis=str(entity.basis) if entity.basis is not None else None,
        details=dict(entity.details),
        created_at=entity.created_at,
        changed_at=entity.changed_at,
        started_at=entity.started_at,
        finished_at=entity.finished_at,
        cancel_requested_at=entity.cancel_requested_at,
    )


def execution_event(entity: ExecutionEvent) -> schemas.ExecutionEvent:
    """Return one change of an execution."""
    return schemas.ExecutionEvent(
        version=entity.version,
        at=entity.at,
        state=str(entity.state),
        message=entity.message,
        details=dict(entity.details),
        actor=entity.actor,
    )


def audit_entry(entity: AuditEntry) -> schemas.AuditEntry:
    """Return one audit entry."""
    return schemas.AuditEntry(
        sequence=entity.sequence,
        at=entity.at,
        actor=entity.actor,
        action=entity.action,
        subject=entity.subject,
        details=dict(entity.details),
        digest=entity.digest,
    )


def access_token(entity: AccessToken, *, secret: str | None = None) -> schemas.AccessToken:
    """Return a management token; `secret` only where it was just made."""
    return schemas.AccessToken(
        id=entity.id,
        name=entity.name,
        role=str(entity.role),
        created_at=entity.created_at,
        revoked_at=entity.revoked_at,
        secret=secret,
    )
