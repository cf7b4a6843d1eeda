"""Small app images for virtual devices: real headers, checksum and hash, a few kilobytes."""

from __future__ import annotations

import functools
import hashlib

from flota.images.esp_app import EspAppImage, EspImageHeader, EspSegment, pack_app
from flota.images.esp_chips import chip_named
from flota.images.esp_desc import EspAppDesc, pack_app_desc
from flota.images.markers import pack_marker


@functools.cache
def app_image(
    version: str = "1.0.0",
    *,
    behaviour: str | None = None,
    size: int = 20_000,
    chip: str = "esp32-c3",
    secure_version: int = 0,
    min_chip_revision: int = 0,
) -> bytes:
    """Return an app image of about `size` bytes."""
    described = pack_app_desc(EspAppDesc(version=version, project="test-app", secure_version=secure_version))
    marker = pack_marker({"behaviour": behaviour}) if behaviour else b""
    filling = hashlib.shake_256(f"{version}{behaviour}".encode()).digest(size)
    data = (described + marker + filling)[: size // 4 * 4]
    kind = chip_named(chip)
    header = EspImageHeader(chip_id=kind.chip_id, entry=kind.code_map.start + 0x20, min_chip_revision=min_chip_revision)
    return pack_app(EspAppImage(header, (EspSegment(kind.data_map.start + 0x20, data),)))
