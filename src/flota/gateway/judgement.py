"""Whether an offer may go to a device: the gateway's own keys, the signed fields, the board. Nobody behind it checks.

Everything that the device does not check is checked here, before a byte is sent. Pure.
Source: docs/reference/gateway.md, "What is checked"; docs/reference/manifest.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from flota.boards.catalogue import board as board_named
from flota.boards.fit import fit_check, slots_of
from flota.boards.model import TypeProfile
from flota.errors import FlotaError, InvalidInput, Refused, TooLarge
from flota.gateway.driver import AdoptedDevice
from flota.gateway.journal import DeviceEntry
from flota.images.inspection import inspect
from flota.protocols.ddi import DdiArtifact, Deployment
from flota.trust.policy import refusals, refuse
from flota.trust.signed_release import SignedRelease, Unsigned, open_release
from flota.trust.trust_file import NotForThisType, TrustedSigners

FILE_HEADERS_MAX_BYTES: Final = 4096
"""How much longer a file may be than the slot that its image goes to: headers that are not written."""


@dataclass(frozen=True, slots=True)
class AcceptedOffer:
    """An offer whose metadata are all right: the one file, the release that signs it, its version label."""

    artifact: DdiArtifact
    release: SignedRelease
    version: str


class DoesNotFit(Refused):
    """The image does not suit the device's board."""

    code = "does-not-fit"


def judge_offer(
    deployment: Deployment,
    device: AdoptedDevice,
    entry: DeviceEntry,
    signers: Sequence[TrustedSigners],
    *,
    now: datetime,
) -> AcceptedOffer:
    """Return the offer's file and release, before anything is fetched.

    Raises `Unsigned`, `SignatureRefused`, `ReleaseRefused` (wrong type, board, revision; rollback; expired), `TooLarge`
    or `InvalidInput`: every one a reason to refuse for good.
    """
    artifacts = [artifact for chunk in deployment.chunks for artifact in chunk.artifacts]
    if len(deployment.chunks) != 1 or len(artifacts) != 1:
        raise InvalidInput(
            "a device behind a gateway takes one file",
            expected="1 chunk, 1 artifact",
            found=f"{len(deployment.chunks)}, {len(artifacts)}",
        )
    artifact = artifacts[0]
    release = open_with_any(deployment.chunks[0].metadata, signers)
    refuse(
        refusals(
            release.manifest,
            device_type=device.device_type,
            board=board_named(device.board).name,
            hardware_revision=device.hardware_revision,
            accepted_sequence=entry.accepted_sequence,
            accepted_manifest_sha256=entry.accepted_manifest_sha256,
            now=now,
        )
    )
    release.refuse_unless_signed(artifact.size, artifact.sha256)
    limit = largest_file(device)
    if artifact.size > limit:
        raise TooLarge(
            f"the file is larger than a slot of {device.board}", expected=f"at most {limit} bytes", found=artifact.size
        )
    return AcceptedOffer(artifact, release, release.manifest.version)


def open_with_any(metadata: Mapping[str, str], signers: Sequence[TrustedSigners]) -> SignedRelease:
    """Return the release if any of the trust files believes it. Raises what the one that fits best says."""
    errors: list[FlotaError] = []
    for one in signers:
        try:
            return open_release(metadata, one)
        except FlotaError as error:
            errors.append(error)
    if not errors:
        raise Unsigned("this gateway trusts no signer", hint="Start it with --trust FILE.")
    raise next((error for error in errors if not isinstance(error, NotForThisType)), errors[0])


def judge_file(data: bytes, device: AdoptedDevice, release: SignedRelease, *, sha256: str) -> tuple[str, ...]:
    """Return warnings about a file whose SHA-256 was checked. Raises `ReleaseRefused`, or `DoesNotFit` with the reason.

    Format against the signed one; then the fit check against the device's own board (docs/reference/ameba-images.md,
    "What nobody checks").
    """
    inspection = inspect(data)
    reasons = fit_check(
        profile_of(device),
        inspection,
        file_size=len(data),
        version=release.manifest.version,
    )
    blocking = [reason for reason in reasons if reason.blocking]
    if blocking:
        first = blocking[0]
        raise DoesNotFit(first.text, offset=first.offset, expected=first.expected, found=first.found, hint=first.hint)
    release.refuse_unless_signed(len(data), sha256, inspection.format.value)
    return tuple(reason.text for reason in reasons)


def largest_file(device: AdoptedDevice) -> int:
    """Return the most bytes that a file for this device can have."""
    return max((slot.size for slot in slots_of(profile_of(device))), default=0) + FILE_HEADERS_MAX_BYTES


def profile_of(device: AdoptedDevice) -> TypeProfile:
    """Return what the fit check needs to know, from the gateway's own configuration."""
    board = board_named(device.board)
    return TypeProfile(board, device.partition_table, hardware_revision=device.hardware_revision)
