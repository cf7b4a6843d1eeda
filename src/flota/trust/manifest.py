"""The release manifest: the one statement that is signed. Frozen value <-> canonical bytes; no IO, no clock.

A device believes nothing that stands beside the manifest: what decides whether it installs is in here.
Source: docs/reference/manifest.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from flota.digests import SHA256_HEX_LEN
from flota.errors import InvalidInput
from flota.trust.canonical_json import BadJson, Members, NotCanonical, pack_canonical, parse_strict
from flota.versions import parse_version

MANIFEST_KIND: Final = "flota-release"
"""Says what is signed, so that a signature can never be taken for one of another kind of document."""
MANIFEST_SCHEMA: Final = 1

MANIFEST_MAX_BYTES: Final = 16 * 1024
MANIFEST_MAX_DEPTH: Final = 3
"""The manifest, its list of components, and a component."""
COMPONENTS_MAX: Final = 16
NAME_MAX_BYTES: Final = 128
SEQUENCE_MAX: Final = 2**53 - 1
COMPONENT_MAX_BYTES: Final = 2**40
"""1 TiB: far above any flash, far below where arithmetic on offsets gets interesting."""

_FORMAT = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")
_SHA256 = re.compile(rf"[0-9a-f]{{{SHA256_HEX_LEN}}}\Z")
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z")


class BadManifest(InvalidInput):
    """A manifest's field is out of its range, or fields contradict each other."""

    code = "bad-manifest"


@dataclass(frozen=True, slots=True)
class ManifestComponent:
    """One file of the release: which part it is, what it is, how long (bytes), and its digest (64 hex digits).

    `name` is the part's role (`app`), never an address: where it goes is looked up in the board's own table.
    `precursor_sha256` (64 hex digits): the file is of use only where a file with this digest runs; None = everywhere.
    Raises `BadManifest` when a value is out of range.
    """

    name: str
    format: str
    size: int
    sha256: str
    precursor_sha256: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name, "name of a component")
        if not _FORMAT.match(self.format):
            raise BadManifest("not an image format", expected="a name such as esp-app", found=ascii(self.format[:64]))
        _check_range(self.size, 1, COMPONENT_MAX_BYTES, "size of a component")
        if not _SHA256.match(self.sha256):
            raise BadManifest("not a SHA-256", expected="64 lower-case hex digits", found=ascii(self.sha256[:72]))
        if self.precursor_sha256 is not None and not _SHA256.match(self.precursor_sha256):
            raise BadManifest(
                "the precursor is not a SHA-256",
                expected="64 lower-case hex digits",
                found=ascii(self.precursor_sha256[:72]),
            )


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a signer states: these components are `version` for this type, board and hardware, until `expires_at`.

    `sequence` (1 to 2^53 - 1) rises with every release of a type and alone decides about rollback. `hardware_revision`
    None means every revision; `expires_at` None means never. Times have to be aware; they are kept in UTC and in whole
    seconds, as the manifest carries them. Raises `BadManifest` or (for `version`) `InvalidInput`.
    """

    device_type: str
    board: str
    hardware_revision: str | None
    version: str
    sequence: int
    expires_at: datetime | None
    components: tuple[ManifestComponent, ...]
    issued_at: datetime

    def __post_init__(self) -> None:
        _check_name(self.device_type, "device type")
        _check_name(self.board, "board")
        if self.hardware_revision is not None:
            _check_name(self.hardware_revision, "hardware revision")
        if parse_version(self.version) != self.version:
            raise BadManifest("the version has white space around it", found=ascii(self.version))
        _check_name(self.version, "version")
        _check_range(self.sequence, 1, SEQUENCE_MAX, "sequence number")
        _check_range(len(self.components), 1, COMPONENTS_MAX, "number of components")
        names = [component.name for component in self.components]
        if len(set(names)) != len(names):
            raise BadManifest("two components have the same name", found=ascii(max(names, key=names.count)))
        object.__setattr__(self, "issued_at", _whole_seconds_utc(self.issued_at, "issued_at"))
        if self.expires_at is not None:
            object.__setattr__(self, "expires_at", _whole_seconds_utc(self.expires_at, "expires_at"))
            if self.expires_at <= self.issued_at:
                raise BadManifest(
                    "the manifest expires before it is issued",
                    expected=f"after {_pack_time(self.issued_at)}",
                    found=_pack_time(self.expires_at),
                )

    def component(self, name: str) -> ManifestComponent | None:
        """Return the component of that name, or None."""
        return next((component for component in self.components if component.name == name), None)


def pack_manifest(manifest: Manifest) -> bytes:
    """Return the bytes that are signed: canonical JSON, at most 16 KiB."""
    packed = pack_canonical(
        {
            "kind": MANIFEST_KIND,
            "schema": MANIFEST_SCHEMA,
            "device_type": manifest.device_type,
            "board": manifest.board,
            "hardware_revision": manifest.hardware_revision,
            "version": manifest.version,
            "sequence": manifest.sequence,
            "issued_at": _pack_time(manifest.issued_at),
            "expires_at": _pack_time(manifest.expires_at) if manifest.expires_at else None,
            "components": [_component_members(part) for part in manifest.components],
        }
    )
    if len(packed) > MANIFEST_MAX_BYTES:  # 16 components with the longest names still fit: see the test
        raise BadManifest(
            "the manifest is too large", expected=f"at most {MANIFEST_MAX_BYTES} bytes", found=f"{len(packed)} bytes"
        )
    return packed


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest in `data`. Checks no signature: for that, `trust.signatures.verify_manifest`.

    Strict: every field has to be there, no other field, none twice, numbers in range, at most 16 KiB and three levels,
    and the bytes must be exactly what `pack_manifest` gives for the value. Raises `BadJson` (its subclasses say what),
    `BadManifest`, or `InvalidInput` for the version; never anything else.
    """
    members = Members(
        parse_strict(data, max_bytes=MANIFEST_MAX_BYTES, max_depth=MANIFEST_MAX_DEPTH, what="the manifest"),
        "the manifest",
    )
    kind, schema = members.take("kind", str), members.take("schema", int)
    if (kind, schema) != (MANIFEST_KIND, MANIFEST_SCHEMA):
        raise BadManifest(
            "not a release manifest that this version reads",
            expected=f"{MANIFEST_KIND} {MANIFEST_SCHEMA}",
            found=f"{kind[:64]!a} {schema}",
        )
    expires_at = members.take_optional("expires_at", str)
    manifest = Manifest(
        device_type=members.take("device_type", str),
        board=members.take("board", str),
        hardware_revision=members.take_optional("hardware_revision", str),
        version=members.take("version", str),
        sequence=members.take("sequence", int),
        issued_at=_parse_time(members.take("issued_at", str), "issued_at"),
        expires_at=_parse_time(expires_at, "expires_at") if expires_at is not None else None,
        components=tuple(_parse_component(part) for part in members.take("components", list)),
    )
    members.finish()
    if pack_manifest(manifest) != data:
        raise NotCanonical("the manifest is not in its canonical spelling")
    return manifest


def _component_members(part: ManifestComponent) -> dict[str, object]:
    """Return the members of a component; without a precursor there is no member for it."""
    members: dict[str, object] = {"name": part.name, "format": part.format, "size": part.size, "sha256": part.sha256}
    if part.precursor_sha256 is not None:
        members["precursor_sha256"] = part.precursor_sha256
    return members


def _parse_component(value: object) -> ManifestComponent:
    members = Members(value, "a component")
    component = ManifestComponent(
        name=members.take("name", str),
        format=members.take("format", str),
        size=members.take("size", int),
        sha256=members.take("sha256", str),
        precursor_sha256=members.take_absent("precursor_sha256", str),
    )
    members.finish()
    return component


def _check_name(text: str, what: str) -> None:
    if not text or text != text.strip() or not text.isprintable():
        raise BadManifest(f"the {what} is empty or not plain text", found=ascii(text[:NAME_MAX_BYTES]))
    length = len(text.encode("utf-8", "replace"))
    if length > NAME_MAX_BYTES:
        raise BadManifest(
            f"the {what} is too long", expected=f"at most {NAME_MAX_BYTES} bytes", found=f"{length} bytes"
        )


def _check_range(value: int, lowest: int, highest: int, what: str) -> None:
    if not lowest <= value <= highest:
        raise BadManifest(f"the {what} is out of range", expected=f"{lowest} to {highest}", found=str(value)[:24])


def _whole_seconds_utc(moment: datetime, what: str) -> datetime:
    if moment.tzinfo is None:
        raise BadManifest(f"`{what}` has no time zone", found=moment.isoformat())
    try:
        return moment.astimezone(UTC).replace(microsecond=0)
    except OverflowError as error:
        raise BadManifest(f"`{what}` is out of range", found=moment.isoformat()) from error


def _pack_time(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _parse_time(text: str, what: str) -> datetime:
    if not _TIMESTAMP.match(text):
        raise BadManifest(f"`{what}` is not a time", expected="YYYY-MM-DDTHH:MM:SSZ", found=ascii(text[:32]))
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise BadManifest(f"`{what}` is not a time", expected="YYYY-MM-DDTHH:MM:SSZ", found=ascii(text)) from error


__all__ = [
    "BadJson",
    "BadManifest",
    "Manifest",
    "ManifestComponent",
    "pack_manifest",
    "parse_manifest",
]
