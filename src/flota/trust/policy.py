"""What a device (or the gateway in front of it) refuses although the signatures are right. Pure; all reasons at once.

Signatures say who made a release. These rules say whether it is for this device, now: the signed fields against what
the device knows of itself, and the bytes against the signed fields. Source: docs/reference/manifest.md.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from flota.errors import Refused
from flota.trust.manifest import Manifest, ManifestComponent, pack_manifest


class RefusalCode(enum.StrEnum):
    """Why a device does not install; stable, for reports and scripts."""

    WRONG_DEVICE_TYPE = "wrong-device-type"
    WRONG_BOARD = "wrong-board"
    WRONG_HARDWARE_REVISION = "wrong-hardware-revision"
    ROLLBACK = "rollback"
    SEQUENCE_REUSED = "sequence-reused"
    EXPIRED = "expired"
    COMPONENT_MISSING = "component-missing"
    COMPONENT_UNSIGNED = "component-unsigned"
    WRONG_SIZE = "wrong-size"
    TRAILING_BYTES = "trailing-bytes"
    WRONG_DIGEST = "wrong-digest"
    WRONG_FORMAT = "wrong-format"
    WRONG_PRECURSOR = "wrong-precursor"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason, with what the manifest or the device expects and what is there."""

    code: RefusalCode
    text: str
    expected: str
    found: str


class ReleaseRefused(Refused):
    """The device refuses the release; `refusals` holds every reason, the message the first."""

    code = "release-refused"

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        first = refusals[0]
        super().__init__(first.text, expected=first.expected, found=first.found)
        self.refusals = tuple(refusals)


@dataclass(frozen=True, slots=True)
class ComponentFacts:
    """What was received for a component, measured from the bytes: size (bytes), SHA-256 (hex), recognised format.

    `format` None: whoever asks does not tell formats apart, so that only size and digest decide.
    """

    name: str
    size: int
    sha256: str
    format: str | None = None


def refusals(
    manifest: Manifest,
    *,
    device_type: str,
    board: str,
    hardware_revision: str | None,
    accepted_sequence: int,
    now: datetime | None,
    components: Sequence[ComponentFacts] | None = None,
    accepted_manifest_sha256: str | None = None,
    running_sha256: str | None = None,
) -> tuple[Refusal, ...]:
    """Return every reason not to install; empty = install.

    `accepted_sequence` is that of the last *confirmed* release, 0 if there was none. The same sequence again is a
    repetition and allowed, unless `accepted_manifest_sha256` (hex) is known and shows another manifest. `now` is the
    device's trusted time, None without one: expiry is not judged then, and the device has to report that it has no
    clock. `components` are the facts of all received components; None before the transfer: only metadata are judged.
    `running_sha256` (hex) is measured from the slot that runs, now; None = it was not, and then nothing that names a
    precursor is taken.
    """
    found = [
        *_wrong_device(manifest, device_type, board, hardware_revision),
        *_old_release(manifest, accepted_sequence, accepted_manifest_sha256),
        *_expired(manifest, now),
        *_wrong_precursor(manifest, running_sha256),
    ]
    if components is not None:
        found += _wrong_components(manifest, components)
    return tuple(found)


def refuse(reasons: Sequence[Refusal]) -> None:
    """Raise `ReleaseRefused` if there is any reason."""
    if reasons:
        raise ReleaseRefused(reasons)


def _wrong_device(manifest: Manifest, device_type: str, board: str, hardware_revision: str | None) -> Sequence[Refusal]:
    found = []
    if manifest.device_type != device_type:
        found.append(
            Refusal(
                RefusalCode.WRONG_DEVICE_TYPE,
                "the release is for another device type",
                expected=device_type,
                found=manifest.device_type,
            )
        )
    if manifest.board != board:
        found.append(
            Refusal(RefusalCode.WRONG_BOARD, "the release is for another board", expected=board, found=manifest.board)
        )
    if manifest.hardware_revision not in (None, hardware_revision):
        found.append(
            Refusal(
                RefusalCode.WRONG_HARDWARE_REVISION,
                "the release is for another hardware revision",
                expected=hardware_revision or "any, as this device does not know its revision",
                found=str(manifest.hardware_revision),
            )
        )
    return found


def _old_release(manifest: Manifest, accepted: int, accepted_manifest_sha256: str | None) -> Sequence[Refusal]:
    if manifest.sequence < accepted:
        return [
            Refusal(
                RefusalCode.ROLLBACK,
                "the release is older than the confirmed one",
                expected=f"sequence {accepted} or higher",
                found=f"sequence {manifest.sequence}",
            )
        ]
    if manifest.sequence == accepted and accepted_manifest_sha256 is not None:
        digest = hashlib.sha256(pack_manifest(manifest)).hexdigest()
        if digest != accepted_manifest_sha256:
            return [
                Refusal(
                    RefusalCode.SEQUENCE_REUSED,
                    "another manifest has the sequence number of the confirmed one",
                    expected=accepted_manifest_sha256,
                    found=digest,
                )
            ]
    return []


def _expired(manifest: Manifest, now: datetime | None) -> Sequence[Refusal]:
    if now is None or manifest.expires_at is None or now < manifest.expires_at:
        return []
    return [
        Refusal(
            RefusalCode.EXPIRED,
            "the release has expired",
            expected=f"before {manifest.expires_at.isoformat()}",
            found=now.isoformat(timespec="seconds"),
        )
    ]


def _wrong_precursor(manifest: Manifest, running_sha256: str | None) -> Sequence[Refusal]:
    return [
        Refusal(
            RefusalCode.WRONG_PRECURSOR,
            f"the component {component.name} is for devices that run another file",
            expected=running_sha256 or "a component of use anywhere, as it was not measured what runs",
            found=component.precursor_sha256,
        )
        for component in manifest.components
        if component.precursor_sha256 is not None and component.precursor_sha256 != running_sha256
    ]


def _wrong_components(manifest: Manifest, received: Sequence[ComponentFacts]) -> list[Refusal]:
    names = [facts.name for facts in received]
    found = [
        Refusal(
            RefusalCode.COMPONENT_MISSING,
            f"the component {component.name} is missing",
            expected=f"{component.size} bytes",
            found="nothing",
        )
        for component in manifest.components
        if component.name not in names
    ]
    for index, facts in enumerate(received):
        signed = manifest.component(facts.name)
        if signed is None or facts.name in names[:index]:
            found.append(
                Refusal(
                    RefusalCode.COMPONENT_UNSIGNED,
                    "a component was received that the manifest does not name",
                    expected=", ".join(component.name for component in manifest.components),
                    found=facts.name,
                )
            )
        else:
            found += _wrong_bytes(signed, facts)
    return found


def _wrong_bytes(signed: ManifestComponent, facts: ComponentFacts) -> list[Refusal]:
    found = []
    if facts.size != signed.size:
        longer = facts.size > signed.size
        found.append(
            Refusal(
                RefusalCode.TRAILING_BYTES if longer else RefusalCode.WRONG_SIZE,
                f"{signed.name} is longer than signed" if longer else f"{signed.name} is shorter than signed",
                expected=f"{signed.size} bytes",
                found=f"{facts.size} bytes",
            )
        )
    if facts.sha256 != signed.sha256:
        found.append(
            Refusal(
                RefusalCode.WRONG_DIGEST,
                f"the bytes of {signed.name} are not the signed ones",
                expected=signed.sha256,
                found=facts.sha256,
            )
        )
    if facts.format is not None and facts.format != signed.format:
        found.append(
            Refusal(
                RefusalCode.WRONG_FORMAT,
                f"the bytes of {signed.name} are not of the signed format",
                expected=signed.format,
                found=facts.format,
            )
        )
    return found
