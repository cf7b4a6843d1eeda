"""Artifacts and releases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from flota.digests import FileDigests
from flota.errors import Conflict, NotFound, Refused
from flota.fleet.releases import RELEASE_TRANSITIONS, Artifact, Release, ReleaseSignature, ReleaseState
from flota.fleet.rollouts import OPEN_ROLLOUT_STATES, STOPPED_ROLLOUT_STATES, RolloutState
from flota.fleet.scope import Scope
from flota.fleet.storage import NewRelease
from flota.store.queries.base import in_batches
from flota.store.queries.device_types import DeviceTypeQueries
from flota.store.queries.rollouts import RolloutQueries
from flota.store.tables import artifacts, device_types, release_signatures, releases, rollouts

_ARTIFACT_COLUMNS: Final = (
    "sha256",
    "size",
    "sha1",
    "md5",
    "filename",
    "format",
    "image_version",
    "validation_hash",
    "inspection",
    "created_at",
)

_SELECT_RELEASE: Final = (
    sa.select(
        releases,
        device_types.c.name.label("type_name"),
        *(artifacts.c[name].label(f"artifact_{name}") for name in _ARTIFACT_COLUMNS),
    )
    .join(device_types, device_types.c.id == releases.c.type_id)
    .join(artifacts, artifacts.c.id == releases.c.artifact_id)
)

_SIGNABLE: Final = frozenset({ReleaseState.DRAFT, ReleaseState.SIGNED})
_IS_NAMED: Final = sa.exists().where(releases.c.artifact_id == artifacts.c.id)
_HOLDS_BACK: Final = sorted(OPEN_ROLLOUT_STATES | STOPPED_ROLLOUT_STATES)
"""States of a rollout that keep its release out of the channel."""

_NEEDS_SIGNATURES: Final = frozenset({ReleaseState.SIGNED, ReleaseState.PUBLISHED})


class ReleaseQueries(DeviceTypeQueries, RolloutQueries):
    """What ships: immutable bytes, and signed statements about them."""

    async def add_artifact(self, scope: Scope, artifact: Artifact) -> tuple[Artifact, bool]:
        """Return the tenant's artifact of these bytes and whether it is new; the first file name is kept.

        For one that is there already, `created_at` counts as its latest upload: `unused_artifacts` asks that.
        """
        digests = artifact.digests
        values = {
            "tenant_id": scope.tenant_id,
            "sha256": digests.sha256,
            "size": digests.size,
            "sha1": digests.sha1,
            "md5": digests.md5,
            "filename": artifact.filename,
            "format": artifact.format,
            "image_version": artifact.image_version,
            "validation_hash": artifact.validation_hash,
            "inspection": dict(artifact.inspection),
            "created_at": artifact.created_at,
            "last_uploaded_at": artifact.created_at,
        }
        known = Conflict("the artifact is stored already", found=digests.sha256)
        try:
            await self._insert_unique(artifacts, values, known)
        except Conflict as conflict:
            if conflict is not known:
                raise
            await self._connection.execute(
                sa.update(artifacts)
                .where(artifacts.c.tenant_id == scope.tenant_id, artifacts.c.sha256 == digests.sha256)
                .values(last_uploaded_at=artifact.created_at)
            )
            return await self.artifact(scope, digests.sha256), False
        details = {"filename": artifact.filename, "size": digests.size, "format": artifact.format}
        self._audit(scope, "artifact.added", f"artifact:{digests.sha256}", details, now=artifact.created_at)
        return await self.artifact(scope, digests.sha256), True

    async def artifact(self, scope: Scope, sha256: str) -> Artifact:
        """Return the tenant's artifact with this lower-case hex SHA-256; raises `NotFound`."""
        row = await self._artifact_row(scope, sha256)
        return _artifact(row._mapping, "")

    async def unused_artifacts(self, scope: Scope, *, before: datetime, limit: int) -> Sequence[str]:
        """Return the SHA-256 of artifacts that no release names and that were last uploaded earlier than `before`."""
        rows = await self._rows(
            sa.select(artifacts.c.sha256)
            .where(artifacts.c.tenant_id == scope.tenant_id, artifacts.c.last_uploaded_at < before, ~_IS_NAMED)
            .order_by(artifacts.c.id)
            .limit(limit)
        )
        return tuple(row.sha256 for row in rows)

    async def remove_unused_artifacts(
        self, scope: Scope, sha256s: Sequence[str], *, before: datetime, now: datetime
    ) -> Sequence[str]:
        """Forget those of the artifacts that are still unused, as `unused_artifacts` means it; returns which."""
        removed: list[str] = []
        for batch in in_batches(sha256s):
            is_old = (
                artifacts.c.tenant_id == scope.tenant_id,
                artifacts.c.sha256.in_(batch),
                artifacts.c.last_uploaded_at < before,
            )
            # On PostgreSQL: whoever adds a release of one of them either has it locked, or waits for us.
            locked = await self._rows(
                sa.select(artifacts.c.id).where(*is_old).order_by(artifacts.c.id).with_for_update(skip_locked=True)
            )
            statement = (
                sa.delete(artifacts)
                .where(artifacts.c.id.in_([row.id for row in locked]), ~_IS_NAMED)
                .returning(artifacts.c.sha256, artifacts.c.filename, artifacts.c.size)
            )
            for row in (await self._connection.execute(statement)).all():
                details = {"filename": row.filename, "size": row.size, "reason": "no release names it"}
                self._audit(scope, "artifact.removed", f"artifact:{row.sha256}", details, now=now)
                removed.append(row.sha256)
        return tuple(removed)

    async def is_artifact_recorded(self, sha256: str) -> bool:
        """Whether any tenant has an artifact of these bytes: the file belongs to all of them."""
        statement = sa.select(sa.exists().where(artifacts.c.sha256 == sha256))
        return bool((await self._connection.execute(statement)).scalar_one())

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
            },
            Conflict(
                f"{new.type_name} has a release {new.version} already",
                hint="Withdraw that one first, or take another version.",
            ),
        )
        details = {
            "type": new.type_name,
            "version": new.version,
            "sequence": new.sequence,
            "sha256": new.artifact_sha256,
            "filename": new.filename or artifact.filename,
            "warnings": list(new.warnings),
        }
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
            sa.update(releases).where(releases.c.id == release_id).values(state=state.value, changed_at=now)
        )
        details = {
            "type": release.type_name,
            "version": release.version,
            "sequence": release.sequence,
            "sha256": release.artifact.digests.sha256,
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

    async def _artifact_row(self, scope: Scope, sha256: str, *, for_naming: bool = False) -> sa.Row[Any]:
        statement = sa.select(artifacts).where(artifacts.c.tenant_id == scope.tenant_id, artifacts.c.sha256 == sha256)
        row = await self._row(statement.with_for_update(read=True, key_share=True) if for_naming else statement)
        if row is None:
            raise NotFound("no such artifact", found=sha256)
        return row

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
        for batch in in_batches([row.id for row in rows]):
            for signed in await self._rows(
                sa.select(release_signatures)
                .where(release_signatures.c.release_id.in_(batch))
                .order_by(release_signatures.c.created_at, release_signatures.c.key_id)
            ):
                signatures[signed.release_id].append(
                    ReleaseSignature(signed.key_id, signed.algorithm, signed.signature)
                )
        return tuple(_release(row, tuple(signatures[row.id])) for row in rows)


def _artifact(row: Any, prefix: str) -> Artifact:
    field = {name: row[f"{prefix}{name}"] for name in _ARTIFACT_COLUMNS}
    return Artifact(
        digests=FileDigests(size=field["size"], sha256=field["sha256"], sha1=field["sha1"], md5=field["md5"]),
        filename=field["filename"],
        format=field["format"],
        image_version=field["image_version"],
        validation_hash=field["validation_hash"],
        inspection=field["inspection"],
        created_at=field["created_at"],
    )


def _release(row: sa.Row[Any], signatures: tuple[ReleaseSignature, ...]) -> Release:
    return Release(
        id=row.id,
        type_name=row.type_name,
        version=row.version,
        sequence=row.sequence,
        state=ReleaseState(row.state),
        artifact=_artifact(row._mapping, "artifact_"),
        filename=row.filename,
        manifest=row.manifest,
        signatures=signatures,
        created_at=row.created_at,
        expires_at=row.expires_at,
        notes=row.notes,
        warnings=tuple(row.warnings),
    )
