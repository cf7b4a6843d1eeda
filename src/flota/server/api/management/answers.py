"""Entities as the JSON that the API answers: one definition of each shape, shared with the client."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from starlette.responses import Response

from flota import __version__
from flota.boards.catalogue import board
from flota.boards.fit import slots_of
from flota.client import schemas, thing_schemas
from flota.fleet.audit import AuditEntry
from flota.fleet.devices import Device, DeviceType, IdentityConflict
from flota.fleet.executions import Execution
from flota.fleet.inferences import FLAG_DETAIL
from flota.fleet.releases import Artifact, Release, ReleaseSbom
from flota.fleet.rollouts import OPEN_ROLLOUT_STATES, Rollout
from flota.fleet.scope import Role, Scope
from flota.fleet.shipments import attempts_limit, rests_until
from flota.fleet.storage import AccessToken, ExecutionEvent, GatewayToken, NewDeviceType
from flota.server.code_signatures import read_code_certificate
from flota.server.device_registry import is_builtin, profile_of
from flota.server.shipment_desk import Shipment
from flota.server.viam_links import ServiceLinks

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
    schemas.GatewayToken,
    schemas.GatewayTokenPage,
    schemas.ImportAnswer,
    schemas.Ping,
    thing_schemas.ProvisioningTemplate,
    thing_schemas.ProvisioningTemplatePage,
    thing_schemas.RegisteredThing,
    schemas.Release,
    schemas.ReleasePage,
    schemas.Rollout,
    schemas.RolloutPage,
    schemas.Shipment,
    thing_schemas.ThingCertificate,
    thing_schemas.ThingCertificatePage,
    thing_schemas.ThingEndpoint,
    schemas.ViamLinks,
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
        confirm=entity.confirm,
        maintenance=entity.maintenance,
        download_ahead=entity.download_ahead,
        bootloader_idf_version=entity.bootloader_idf_version,
        secure_boot_keys=list(entity.secure_boot_keys),
        code_certificates=[code_certificate(pem) for pem in entity.code_certificates],
        code_signatures=[str(name) for name in board(entity.board).code_signatures],
    )


def code_certificate(pem: str) -> schemas.CodeCertificate:
    """Return a certificate that a type's devices have."""
    found = read_code_certificate(pem, now=None)
    return schemas.CodeCertificate(
        fingerprint=found.facts.fingerprint,
        name=str(found.name),
        subject=found.facts.subject,
        not_after=found.facts.not_after,
        certificate=found.facts.pem,
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
        sbom=sbom(entity.sbom) if entity.sbom else None,
        certfile=entity.certfile,
        filepath=entity.filepath,
        file_signatures=[
            schemas.FileSignature(
                name=one.name,
                signature=one.signature,
                certificate_sha256=one.certificate_sha256,
                certificate=one.certificate,
            )
            for one in entity.file_signatures
        ],
        file_signature_needed=[str(name) for name in board(its_type.board).code_signatures],
    )


def sbom(entity: ReleaseSbom) -> schemas.Sbom:
    """Return what is shown of a release's SBOM."""
    return schemas.Sbom(
        format=entity.format,
        spec_version=entity.spec_version,
        component_count=entity.component_count,
        sha256=entity.sha256,
        size=entity.size,
        filename=entity.filename,
    )


def flags_of(executions: Sequence[Execution]) -> list[str]:
    """Return what an operator should look at: the flag of the device's latest execution that began."""
    begun = [one for one in executions if one.started_at is not None]
    flag = begun[-1].details.get(FLAG_DETAIL) if begun else None
    return [f"execution {begun[-1].id}: {flag}"] if flag else []


def device(entity: Device, *, token: str | None = None, flags: Sequence[str] = ()) -> schemas.Device:
    """Return a device; `token` only where it was just made, `flags` where it is asked for alone."""
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
        auto_confirm=entity.auto_confirm is not None,
        identity_conflict=None if entity.identity_conflict is None else _conflict(entity.identity_conflict),
        flags=list(flags),
    )


def _conflict(entity: IdentityConflict) -> schemas.IdentityConflict:
    return schemas.IdentityConflict(trait=entity.trait, seen=list(entity.seen), at=entity.at)


def shipment(one: Shipment) -> schemas.Shipment:
    """Return a rollout as a shipment, as the API shows it."""
    rollout, record, conditions = one.rollout, one.record, one.conditions
    return schemas.Shipment(
        id=rollout.id,
        title=rollout.name,
        type=rollout.type_name,
        version=rollout.version,
        status=str(one.status),
        compare_field=str(conditions.compare),
        skip_type_check=conditions.skip_type_check,
        attempts_limit=attempts_limit(conditions, rollout.policy.attempts),
        attempt_period_s=conditions.attempt_period_s,
        maintenance=rollout.policy.maintenance,
        started_by=record.started_by if record is not None else "",
        started_at=rollout.created_at,
        finished_at=None if rollout.state in OPEN_ROLLOUT_STATES else rollout.changed_at,
        progress=one.progress,
        devices=[
            schemas.ShippedDevice(
                device=device.name,
                status=str(device.status),
                execution=None if device.execution is None else device.execution.id,
                changed_at=None if device.execution is None else device.execution.changed_at,
                reason="" if device.execution is None else _shipment_reason(device.execution),
            )
            for device in one.devices
        ],
    )


def _shipment_reason(entity: Execution) -> str:
    until = rests_until(entity)
    if until is not None:
        return f"it is offered again from {until.isoformat(timespec='seconds')} on"
    return entity.details.get("reason", "")


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
            continuous=policy.continuous,
            urgency=str(policy.urgency),
            forced_at=policy.forced_at,
            confirm=policy.confirm,
            maintenance=policy.maintenance,
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
        job_id=entity.job_id,
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


def viam_links(made: ServiceLinks) -> schemas.ViamLinks:
    """Return service configurations of micro-RDK devices."""
    return schemas.ViamLinks(
        items=[
            schemas.ViamLink(
                device=link.device,
                labels=dict(link.labels or {}),
                execution=link.execution,
                rollout=link.rollout,
                url=link.url,
                version=link.version,
                per_device_status=link.device is not None,
                service=dict(link.service),
            )
            for link in made.links
        ],
        warnings=list(made.warnings),
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
        expires_at=entity.expires_at,
        secret=secret,
    )


def gateway_token(entity: GatewayToken, *, secret: str | None = None) -> schemas.GatewayToken:
    """Return a gateway's token; `secret` only where it was just made."""
    return schemas.GatewayToken(
        id=entity.id,
        name=entity.name,
        device_count=entity.device_count,
        selector=entity.selector,
        all_devices=entity.all_devices,
        type=entity.type_name,
        created_at=entity.created_at,
        expires_at=entity.expires_at,
        revoked_at=entity.revoked_at,
        secret=secret,
    )
