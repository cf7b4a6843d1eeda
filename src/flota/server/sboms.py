"""SBOMs of releases: stored bytes like any other artifact, read once to see that they are one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flota.errors import TooLarge
from flota.fleet.releases import ReleaseSbom
from flota.images.sbom import SBOM_MAX_BYTES, Sbom, parse_sbom
from flota.server.artifact_intake import parse_filename, recorded_artifact

if TYPE_CHECKING:
    from flota.fleet.scope import Scope
    from flota.server.context import ServerContext


@dataclass(frozen=True, slots=True)
class SbomFile:
    """Stored bytes that are said to be an SBOM. `filename` None takes the name of the bytes' first upload."""

    artifact: str
    filename: str | None = None


async def read_sbom(context: ServerContext, scope: Scope, wanted: SbomFile) -> ReleaseSbom:
    """Return what is kept of the SBOM in stored bytes.

    Raises `NotFound` for bytes that are not stored, `TooLarge`, and as `images.sbom.parse_sbom` for what is no SBOM.
    """
    filename = None if wanted.filename is None else parse_filename(wanted.filename)
    async with context.storage.reading() as transaction:
        artifact = await recorded_artifact(transaction, scope, wanted.artifact)
    size, sha256 = artifact.digests.size, artifact.digests.sha256
    if size > SBOM_MAX_BYTES:
        raise TooLarge("the SBOM is too large", expected=f"at most {SBOM_MAX_BYTES} bytes", found=f"{size} bytes")
    sbom = await asyncio.to_thread(_read, context, sha256)
    return ReleaseSbom(
        sha256=sha256,
        size=size,
        filename=filename or artifact.filename,
        format=sbom.format.value,
        spec_version=sbom.spec_version,
        component_count=sbom.component_count,
    )


def _read(context: ServerContext, sha256: str) -> Sbom:
    return parse_sbom(context.artifacts.read(sha256))
