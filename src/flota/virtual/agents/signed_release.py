"""Whether a signed release is for this device: against what it knows of itself, and what it has confirmed before.

Source: docs/reference/manifest.md.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from flota.trust.policy import refusals, refuse
from flota.trust.signed_release import SignedRelease
from flota.virtual.device import Identity
from flota.virtual.nvs import NonVolatileStore

ACCEPTED_KEY: Final = "accepted_release"


def refuse_unless_for(
    release: SignedRelease,
    identity: Identity,
    nvs: NonVolatileStore,
    *,
    hardware_revision: str | None,
    now: datetime | None,
) -> None:
    """Raise `ReleaseRefused` unless it is for this device, not older than the confirmed one and not expired."""
    accepted = nvs.get_record(ACCEPTED_KEY) or {}
    digest = accepted.get("sha256")
    refuse(
        refusals(
            release.manifest,
            device_type=identity.device_type,
            board=identity.board,
            hardware_revision=hardware_revision,
            accepted_sequence=int(str(accepted.get("sequence", 0))),
            accepted_manifest_sha256=None if digest is None else str(digest),
            now=now,
        )
    )
