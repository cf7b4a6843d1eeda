"""Releases, their signatures and their SBOMs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from flota.errors import Conflict, NotFound, Refused
from flota.fleet.releases import (
    RELEASE_TRANSITIONS,
    FileSignature,
    Release,
    ReleaseSbom,
    ReleaseSignature,
    ReleaseState,
)
from flota.fleet.rollouts import OPEN_ROLLOUT_STATES, STOPPED_ROLLOUT_STATES, RolloutState
from flota.fleet.scope import Scope
from flota.fleet.storage import NewRelease
from flota.store.change_notes import concerning
from flota.store.queries.artifacts import ARTIFACT_COLUMNS, ArtifactQueries, artifact_of
from flota.store.queries.base import in_batches
from flota.store.queries.device_types import DeviceTypeQueries
from flota.store.queries.rollouts import RolloutQueries
from flota.store.tables import (
    artifacts,
    device_types,
    executions,
    release_file_signatures,
    release_sboms,
    release_signatures,
    releases,
    rollouts,
)

_SBOM_COLUMNS: Final = ("filename", "format", "spec_version", "component_count")

_sbom_bytes: Final = artifacts.alias("sbom_artifacts")
_SELECT_RELEASE: Final = (
    sa.select(
        releases,
        device_types.c.name.label("type_name"),
        *(artifacts.c[name].label(f"artifact_{name}") for name in ARTIFACT_COLUMNS),
        _sbom_bytes.c.sha256.label("sbom_sha256"),
        _sbom_bytes.c.size.label("sbom_size"),
        *(release_sboms.c[name].label(f"sbom_{name}") for name in _SBOM_COLUMNS),
    )
    .join(device_types, device_types.c.id == releases.c.type_id)
    .join(artifacts, artifacts.c.id == releases.c.artifact_id)
    .outerjoin(release_sboms, release_sboms.c.release_id == releases.c.id)
    .outerjoin(_sbom_bytes, _sbom_bytes.c.id == release_sboms.c.artifact_id)
)

_SIGNABLE: Final = frozenset({ReleaseState.DRAFT, ReleaseState.SIGNED})
_HOLDS_BACK: Final = sorted(OPEN_ROLLOUT_STATES | STOPPED_ROLLOUT_STATES)
"""States of a rollout that keep its release out of the channel."""

_NEEDS_SIGNATURES: Final = frozenset({ReleaseState.SIGNED, ReleaseState.PUBLISHED})


class ReleaseQueries(ArtifactQueries, DeviceTypeQueries, RolloutQueries):
    """What ships: signed statements about artifacts."""

    async def next_sequence(self, scope: Scope, type_name: str) -> int:
        """Return the sequence number for the type's next release, from 1; other writers wait until the commit."""
        row = await self._device_type_row(scope, type_name, for_update=True)
        statement = sa.select(sa.func.max(releases.c.sequence)).where(releases.c.type_id == row.id)
        return ((await self._connection.execute(statement)).scalar_one() or 0) + 1

    async def add_release(self, scope: Scope, new: NewRelease, *, now: datetime) -> Release:
        """Return the new draft.

        Raises `NotFound` for its type or artifact, `Conflict` if the type has a release of this version that is not
        withdrawn, or if the sequence number is taken.
        """
        device_type = await self.device_type(scope, new.type_name)
        artifact = await self._artifact_row(scope, new.artifact_sha256, for_naming=True)
        release_id = await self._insert_unique(
            releases,
            {
                "tenant_id": scope.tenant_id,
                "type_id": device_type.id,
                "version": new.version,
                "sequence": new.sequence,
                "state": ReleaseState.DRAFT.value,
                "artifact_id": artifact.id,
                "filename": new.filename or artifact.filename,
                "manifest": new.manifest,
                "expires_at": new.expires_at,
                "notes": new.notes,
                "warnings": list(new.warnings),
                "created_at": now,
                "changed_at": now,
                "certfile": new.certfile,
                "filepath": new.filepath,
            },
            Conflict(
                f"{new.type_name} has a release {new.version} already",
                hint="Withdraw that one first, or take another version.",
            ),
        )
        if new.sbom is not None:
            await self._insert_sbom(scope, release_id, new.sbom, now=now)
        details = {
            "type": new.type_name,
            "version": new.version,
            "sequence": new.sequence,
            "sha256": new.artifact_sha256,
            "filename": new.filename or artifact.filename,
            "warnings": list(new.warnings),
            "sbom_sha256": new.sbom.sha256 if new.sbom else None,
        }
        if new.certfile is not None or new.filepath is not None:
            details |= {"certfile": new.certfile, "filepath": new.filepath}
        self._audit(scope, "release.created", f"release:{release_id}", details, now=now)
        return await self.release(scope, release_id)

    async def release(self, scope: Scope, release_id: int) -> Release:
        """Return the release with its signatures; raises `NotFound`."""
        found = await self._releases(scope, releases.c.id == release_id)
        if not found:
            raise NotFound("no such release", found=release_id)
        return found[0]

    async def find_release(self, scope: Scope, type_name: str, version: str) -> Release | None:
        """Return the type's release of exactly this version, or None; a withdrawn one only if there is no other."""
        found = await self._releases(scope, device_types.c.name == type_name, releases.c.version == version)
        return min(found, key=lambda release: (release.state is ReleaseState.WITHDRAWN, -release.id), default=None)

    async def list_releases(
        self, scope: Scope, *, type_name: str | None = None, state: ReleaseState | None = None
    ) -> Sequence[Release]:
        """Return the releases that fulfil all given conditions, oldest first."""
        conditions: list[sa.ColumnElement[bool]] = []
        if type_name is not None:
            conditions.append(device_types.c.name == type_name)
        if state is not None:
            conditions.append(releases.c.state == state.value)
        return await self._releases(scope, *conditions)

    async def current_release(self, scope: Scope, type_name: str) -> Release | None:
        """Return the release that anybody may have: the published one with the highest sequence number, or None.

        One with a rollout that is open, or that was aborted or canceled, is passed over. Expired or not is not asked.
        """
        held_back = sa.exists().where(rollouts.c.release_id == releases.c.id, rollouts.c.state.in_(_HOLDS_BACK))
        row = await self._row(
            sa.select(releases.c.id)
            .join(device_types, device_types.c.id == releases.c.type_id)
            .where(
                releases.c.tenant_id == scope.tenant_id,
                device_types.c.name == type_name,
                releases.c.state == ReleaseState.PUBLISHED.value,
                ~held_back,
            )
            .order_by(releases.c.sequence.desc())
            .limit(1)
        )
        return None if row is None else await self.release(scope, row.id)

    async def add_signature(
        self, scope: Scope, release_id: int, signature: ReleaseSignature, *, now: datetime
    ) -> Release:
        """Return the release with one more signature, SIGNED once enough of its type's signers have signed.

        The caller has verified it. A second one by the same key changes nothing.
        Raises `NotFound`, or `Conflict` if the release is published or withdrawn.
        """
        release = await self._lock_release(scope, release_id)
        if any(signature.key_id == present.key_id for present in release.signatures):
            return release
        if release.state not in _SIGNABLE:
            raise Conflict(f"release {release_id} is {release.state} and takes no more signatures")
        await self._connection.execute(
            sa.insert(release_signatures).values(
                release_id=release_id,
                key_id=signature.key_id,
                algorithm=signature.algorithm,
                signature=signature.signature,
                created_at=now,
            )
        )
        details = {"key_id": signature.key_id, "algorithm": signature.algorithm}
        self._audit(scope, "release.signature-added", f"release:{release_id}", details, now=now)
        release = await self.release(scope, release_id)
        present, needed = await self._signature_count(scope, release)
        if release.state is ReleaseState.DRAFT and present >= needed:
            return await self.set_release_state(scope, release_id, ReleaseState.SIGNED, now=now)
        return release

    async def add_file_signature(
        self, scope: Scope, release_id: int, signature: FileSignature, *, now: datetime
    ) -> Release:
        """Return the release with a signature over its file, in the place of one of the same name.

        The caller has verified it; the same again changes nothing. Raises `NotFound`, or `Conflict` if the release is
        published or withdrawn.
        """
        release = await self._lock_release(scope, release_id)
        if signature in release.file_signatures:
            return release
        if release.state not in _SIGNABLE:
            raise Conflict(f"release {release_id} is {release.state} and takes no more signatures")
        replaced = next((one for one in release.file_signatures if one.name == signature.name), None)
        await self._connection.execute(
            sa.delete(release_file_signatures).where(
                release_file_signatures.c.release_id == release_id, release_file_signatures.c.name == signature.name
            )
        )
        await self._connection.execute(
            sa.insert(release_file_signatures).values(
                release_id=release_id,
                name=signature.name,
                signature=signature.signature,
                certificate=signature.certificate,
                certificate_sha256=signature.certificate_sha256,
                created_at=now,
            )
        )
        details = {
            "name": signature.name,
            "certificate": signature.certificate_sha256,
            "sha256": release.artifact.digests.sha256,
            "replaced": replaced.certificate_sha256 if replaced else None,
        }
        self._audit(scope, "release.file-signature-added", f"release:{release_id}", details, now=now)
        return await self.release(scope, release_id)

    async def set_release_sbom(self, scope: Scope, release_id: int, sbom: ReleaseSbom, *, now: datetime) -> Release:
        """Return the draft with `sbom` in the place of any it had; the same again changes nothing.

        Raises `NotFound` for the release or for stored bytes with that SHA-256, `Conflict` unless it is a draft.
        """
        release = await self._lock_release(scope, release_id)
        if release.sbom == sbom:
            return release
        if release.state is not ReleaseState.DRAFT:
            raise Conflict(
                f"release {release_id} is {release.state}: its SBOM does not change any more",
                expected="a draft",
                found=release.state,
                hint="Withdraw the release and make another one with the right SBOM.",
            )
        await self._connection.execute(sa.delete(release_sboms).where(release_sboms.c.release_id == release_id))
        await self._insert_sbom(scope, release_id, sbom, now=now)
        details = {
            "sha256": sbom.sha256,
            "filename": sbom.filename,
            "format": f"{sbom.format} {sbom.spec_version}",
            "replaced": release.sbom.sha256 if release.sbom else None,
        }
        self._audit(scope, "release.sbom-set", f"release:{release_id}", details, now=now)
        return await self.release(scope, release_id)

    async def _insert_sbom(self, scope: Scope, release_id: int, sbom: ReleaseSbom, *, now: datetime) -> None:
        artifact = await self._artifact_row(scope, sbom.sha256, for_naming=True)
        await self._connection.execute(
            sa.insert(release_sboms).values(
                release_id=release_id,
                artifact_id=artifact.id,
                format=sbom.format,
                spec_version=sbom.spec_version,
                component_count=sbom.component_count,
                filename=sbom.filename,
                created_at=now,
            )
        )

    async def set_release_state(
        self, scope: Scope, release_id: int, state: ReleaseState, *, now: datetime, reason: str = ""
    ) -> Release:
        """Return the release in its new state; setting the state it has changes nothing.

        Withdrawing it cancels its open rollouts, and with them what is queued. Raises `NotFound`, `Conflict` if
        `RELEASE_TRANSITIONS` has no such step, `Refused` if signatures of the type's signers are missing.
        """
        release = await self._lock_release(scope, release_id)
        if release.state is state:
            return release
        if state not in RELEASE_TRANSITIONS[release.state]:
            raise Conflict(
                f"release {release_id} is {release.state} and cannot become {state}",
                expected=" or ".join(sorted(RELEASE_TRANSITIONS[release.state])) or "no further change",
                found=state,
            )
        if state in _NEEDS_SIGNATURES:
            present, needed = await self._signature_count(scope, release)
            if present < needed:
                raise Refused(
                    f"release {release_id} lacks signatures of its type's signers", expected=needed, found=present
                )
        await self._connection.execute(
            sa.update(releases).where(releases.c.id == release_id).values(state=state.value, changed_at=now),
            execution_options=concerning(await self.waiting_for(executions.c.release_id == release_id)),
        )
        details = {
            "type": release.type_name,
            "version": release.version,
            "sequence": release.sequence,
            "sha256": release.artifact.digests.sha256,
            "sbom_sha256": release.sbom.sha256 if release.sbom else None,
            "reason": reason,
        }
        self._audit(scope, f"release.{state.value}", f"release:{release_id}", details, now=now)
        if state is ReleaseState.WITHDRAWN:
            await self._cancel_rollouts_of(scope, release_id, reason=reason, now=now)
        return await self.release(scope, release_id)

    async def _cancel_rollouts_of(self, scope: Scope, release_id: int, *, reason: str, now: datetime) -> None:
        rows = await self._rows(
            sa.select(rollouts.c.id)
            .where(
                rollouts.c.tenant_id == scope.tenant_id,
                rollouts.c.release_id == release_id,
                rollouts.c.state.in_(sorted(OPEN_ROLLOUT_STATES)),
            )
            .order_by(rollouts.c.id)
        )
        why = "the release was withdrawn" + (f": {reason}" if reason else "")
        for row in rows:
            await self.set_rollout_state(scope, row.id, RolloutState.CANCELED, now=now, reason=why)

    async def _signature_count(self, scope: Scope, release: Release) -> tuple[int, int]:
        """Return how many of the type's present signers have signed, and how many must."""
        device_type = await self.device_type(scope, release.type_name)
        trusted = {signer.key_id for signer in device_type.signers}
        present = sum(signature.key_id in trusted for signature in release.signatures)
        return present, device_type.signature_threshold

    async def _lock_release(self, scope: Scope, release_id: int) -> Release:
        await self._rows(
            sa.select(releases.c.id)
            .where(releases.c.id == release_id, releases.c.tenant_id == scope.tenant_id)
            .with_for_update()
        )
        return await self.release(scope, release_id)

    async def _releases(self, scope: Scope, *conditions: sa.ColumnElement[bool]) -> Sequence[Release]:
        rows = await self._rows(
            _SELECT_RELEASE.where(releases.c.tenant_id == scope.tenant_id, *conditions).order_by(releases.c.id)
        )
        signatures: defaultdict[int, list[ReleaseSignature]] = defaultdict(list)
        file_signatures: defaultdict[int, list[FileSignature]] = defaultdict(list)
        for batch in in_batches([row.id for row in rows]):
            for signed in await self._rows(
                sa.select(release_signatures)
                .where(release_signatures.c.release_id.in_(batch))
                .order_by(release_signatures.c.created_at, release_signatures.c.key_id)
            ):
                signatures[signed.release_id].append(
                    ReleaseSignature(signed.key_id, signed.algorithm, signed.signature)
                )
            for signed in await self._rows(
                sa.select(release_file_signatures)
                .where(release_file_signatures.c.release_id.in_(batch))
                .order_by(release_file_signatures.c.name)
            ):
                file_signatures[signed.release_id].append(
                    FileSignature(signed.name, signed.signature, signed.certificate, signed.certificate_sha256)
                )
        return tuple(_release(row, tuple(signatures[row.id]), tuple(file_signatures[row.id])) for row in rows)


def _release(
    row: sa.Row[Any], signatures: tuple[ReleaseSignature, ...], file_signatures: tuple[FileSignature, ...]
) -> Release:
    return Release(
        id=row.id,
        type_name=row.type_name,
        version=row.version,
        sequence=row.sequence,
        state=ReleaseState(row.state),
        artifact=artifact_of(row._mapping, "artifact_"),
        filename=row.filename,
        manifest=row.manifest,
        signatures=signatures,
        created_at=row.created_at,
        expires_at=row.expires_at,
        notes=row.notes,
        warnings=tuple(row.warnings),
        sbom=_sbom(row),
        certfile=row.certfile,
        filepath=row.filepath,
        file_signatures=file_signatures,
    )


def _sbom(row: sa.Row[Any]) -> ReleaseSbom | None:
    if row.sbom_sha256 is None:
        return None
    return ReleaseSbom(
        sha256=row.sbom_sha256,
        size=row.sbom_size,
        filename=row.sbom_filename,
        format=row.sbom_format,
        spec_version=row.sbom_spec_version,
        component_count=row.sbom_component_count,
    )
