"""Artifacts: immutable bytes and what is known about them. They stay as long as a release names them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from flota.digests import FileDigests
from flota.errors import Conflict, NotFound
from flota.fleet.releases import Artifact
from flota.fleet.scope import Scope
from flota.store.queries.base import Queries, in_batches
from flota.store.tables import artifacts, release_sboms, releases

ARTIFACT_COLUMNS: Final = (
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

_IS_NAMED: Final = sa.or_(
    sa.exists().where(releases.c.artifact_id == artifacts.c.id),
    sa.exists().where(release_sboms.c.artifact_id == artifacts.c.id),
)
"""A release ships it, or it is a release's SBOM."""


class ArtifactQueries(Queries):
    """Stored bytes of a tenant."""

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
        return artifact_of(row._mapping)

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

    async def _artifact_row(self, scope: Scope, sha256: str, *, for_naming: bool = False) -> sa.Row[Any]:
        statement = sa.select(artifacts).where(artifacts.c.tenant_id == scope.tenant_id, artifacts.c.sha256 == sha256)
        row = await self._row(statement.with_for_update(read=True, key_share=True) if for_naming else statement)
        if row is None:
            raise NotFound("no such artifact", found=sha256)
        return row


def artifact_of(row: Any, prefix: str = "") -> Artifact:
    """Return the artifact in a row's columns, each named with `prefix`."""
    field = {name: row[f"{prefix}{name}"] for name in ARTIFACT_COLUMNS}
    return Artifact(
        digests=FileDigests(size=field["size"], sha256=field["sha256"], sha1=field["sha1"], md5=field["md5"]),
        filename=field["filename"],
        format=field["format"],
        image_version=field["image_version"],
        validation_hash=field["validation_hash"],
        inspection=field["inspection"],
        created_at=field["created_at"],
    )
