"""The signed manifest as it arrives beside a file: out of DDI chunk metadata, judged by keys of the reader's own.

Source: docs/reference/manifest.md and docs/reference/hawkbit-ddi.md for the metadata keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flota.errors import Refused
from flota.trust.manifest import Manifest
from flota.trust.policy import ComponentFacts, refusals, refuse
from flota.trust.signatures import parse_signatures
from flota.trust.trust_file import TrustedSigners

MANIFEST_METADATA: Final = "flota.manifest"
SIGNATURES_METADATA: Final = "flota.signatures"


class Unsigned(Refused):
    """The offer carries no signed manifest, and whoever judges it takes no other."""

    code = "unsigned"


@dataclass(frozen=True, slots=True)
class SignedRelease:
    """A manifest whose signatures are good; `sha256` (hex) is that of its bytes."""

    manifest: Manifest
    sha256: str

    def refuse_unless_signed(self, size: int, sha256: str, image_format: str | None = None) -> None:
        """Raise `ReleaseRefused` unless the manifest signs exactly a file of this size (bytes) and SHA-256.

        `image_format` is what was recognised in the bytes, None = whoever asks does not tell formats apart.
        """
        components = self.manifest.components
        if len(components) != 1:
            raise Unsigned("only releases of one component are taken here", expected=1, found=len(components))
        refuse(
            refusals(
                self.manifest,
                device_type=self.manifest.device_type,
                board=self.manifest.board,
                hardware_revision=self.manifest.hardware_revision,
                accepted_sequence=0,
                now=None,
                components=[ComponentFacts(components[0].name, size, sha256, image_format)],
            )
        )


def open_release(metadata: Mapping[str, str], signers: TrustedSigners) -> SignedRelease:
    """Return the release in the metadata of a chunk. Raises `Unsigned`, or what signatures and manifest raise."""
    packed, signatures = metadata.get(MANIFEST_METADATA), metadata.get(SIGNATURES_METADATA)
    if packed is None or signatures is None:
        raise Unsigned(
            "the release is not signed",
            expected=f"{MANIFEST_METADATA} and {SIGNATURES_METADATA} in the metadata",
            hint="Whoever installs it was started with --trust.",
        )
    try:
        manifest = base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unsigned("the manifest is not base64", found=repr(packed[:40])) from error
    return SignedRelease(signers.verify(manifest, parse_signatures(signatures)), hashlib.sha256(manifest).hexdigest())
