"""Sample firmware for primary MCUs behind a Blynk NCP: a script, generated filling, and a firmware tag at the end."""

from __future__ import annotations

from typing import Final

from flota.images.blynk_tag import pack_tag, written_pairs
from flota.lab.sample_firmware import sample_versioned_file
from flota.protocols.blynk.catalogue import INTERFACE_VERSION

SAMPLE_FW_TYPE: Final = "TMPLflotademo"
SAMPLE_MCU_BYTES: Final = 128 * 1024
_BUILD: Final = "Nov 16 2026 12:00:00"


def sample_mcu(
    version: str,
    *,
    fw_type: str = SAMPLE_FW_TYPE,
    size: int = SAMPLE_MCU_BYTES,
    behaviour: str = "healthy",
) -> bytes:
    """Return an image of exactly `size` bytes with this version in its tag; the same each time.

    `behaviour` as with `sample_versioned_file`. Raises `NotFound` for an unknown one, `BadTag` for texts that a tag
    cannot carry, `ImageError` if `size` is too small.
    """
    tag = pack_tag(written_pairs(mcu=version, fw_type=fw_type, build=_BUILD, library=INTERFACE_VERSION))
    return sample_versioned_file(version, size=size - len(tag), behaviour=behaviour) + tag
