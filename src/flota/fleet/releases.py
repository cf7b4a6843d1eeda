"""Artifacts and releases."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from flota.digests import FileDigests


class ReleaseState(enum.StrEnum):
    """A draft is signed, then published; a published release can be withdrawn. See `RELEASE_TRANSITIONS`."""

    DRAFT = "draft"
    SIGNED = "signed"
    PUBLISHED = "published"
    WITHDRAWN = "withdrawn"


RELEASE_TRANSITIONS: Mapping[ReleaseState, frozenset[ReleaseState]] = {
    ReleaseState.DRAFT: frozenset({ReleaseState.SIGNED, ReleaseState.WITHDRAWN}),
    ReleaseState.SIGNED: frozenset({ReleaseState.PUBLISHED, ReleaseState.WITHDRAWN}),
    ReleaseState.PUBLISHED: frozenset({ReleaseState.WITHDRAWN}),
    ReleaseState.WITHDRAWN: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Artifact:
    """Immutable bytes named by their SHA-256, plus what `images` read out of them.

    `format`, `image_version` and `validation_hash` are as in `images.model.Inspection`; `inspection` is its JSON form.
    """

    digests: FileDigests
    filename: str
    """The name of its first upload, a label only: the stored path is made from the digest."""
    format: str
    image_version: str | None
    validation_hash: str | None
    inspection: Mapping[str, object]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ReleaseSignature:
    """One signature over the exact manifest bytes. `signature` is base64."""

    key_id: str
    algorithm: str
    signature: str


@dataclass(frozen=True, slots=True)
class FileSignature:
    """A signature over the whole file, for devices that check it themselves (docs/reference/code-signing.md).

    `name` is how they find it: a `boards.model.CodeSignature`. `signature` is base64, `certificate` (PEM) the signer's,
    `certificate_sha256` the hex SHA-256 of its DER form.
    """

    name: str
    signature: str
    certificate: str
    certificate_sha256: str


@dataclass(frozen=True, slots=True)
class ReleaseSbom:
    """A release's software bill of materials: stored bytes of their own, and what they say about themselves.

    `format` and `spec_version` are as in `images.sbom.Sbom`. It is not part of what is signed.
    """

    sha256: str
    size: int
    filename: str
    format: str
    spec_version: str
    component_count: int


@dataclass(frozen=True, slots=True)
class Release:
    """A statement: this artifact, this version, this device type, this sequence number, until this date.

    `manifest` is the exact bytes that are signed (docs/reference/manifest.md). `sequence` rises per device type.
    """

    id: int
    type_name: str
    version: str
    sequence: int
    state: ReleaseState
    artifact: Artifact
    filename: str
    """What devices are told the file is called: some decide by its extension what to do with it."""
    manifest: bytes
    signatures: tuple[ReleaseSignature, ...]
    created_at: datetime
    expires_at: datetime | None
    notes: str = ""
    warnings: tuple[str, ...] = ()
    sbom: ReleaseSbom | None = None
    certfile: str | None = None
    """What the device calls the certificate that it checks the file with (AWS IoT's `certfile`)."""
    filepath: str | None = None
    """Where the device keeps the file (AWS IoT's `filepath`); None: `filename`."""
    file_signatures: tuple[FileSignature, ...] = ()

    def as_running(self) -> dict[str, str]:
        """Return `version`, `hash` and `md5` of a device that runs this release, as a sighting has them."""
        artifact = self.artifact
        return {
            "version": self.version,
            "hash": artifact.validation_hash or artifact.digests.sha256,
            "md5": artifact.digests.md5,
        }
