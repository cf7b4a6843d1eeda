"""ESP8266 images: they begin with 0xE9 too, but have no extended header, no chip id and no hash.

Source: docs/reference/esp-image.md; espressif/esptool:esptool/bin_image.py (`ESP8266ROMFirmwareImage`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

Buffer = bytes | memoryview

IMAGE_MAGIC: Final = 0xE9
HEADER_SIZE: Final = 8
SEGMENT_HEADER_SIZE: Final = 8
SEGMENTS_MAX: Final = 16
SEGMENT_SIZE_LIMIT: Final = 0x10_0000
APP_OFFSET: Final = 0x1000
"""The Arduino core puts its boot loader (eboot) first and the app here."""

_ADDRESSES: Final = (range(0x3FFE_8000, 0x4000_0000), range(0x4010_0000, 0x4011_0000), range(0x4020_0000, 0x4030_0000))


@dataclass(frozen=True, slots=True)
class Esp8266Segment:
    """Where a segment lies in the file (bytes), and at which address it is wanted."""

    address: int
    offset: int
    size: int


def find_esp8266_segments(data: Buffer, start: int = 0) -> tuple[Esp8266Segment, ...] | None:
    """Return the segments of the ESP8266 image at offset `start`, None if its headers do not describe one."""
    view = memoryview(data)
    if len(view) < start + HEADER_SIZE or view[start] != IMAGE_MAGIC or not 1 <= view[start + 1] <= SEGMENTS_MAX:
        return None
    (entry,) = struct.unpack_from("<I", view, start + 4)
    if not any(entry in addresses for addresses in _ADDRESSES):
        return None
    segments: list[Esp8266Segment] = []
    position = start + HEADER_SIZE
    for _ in range(view[start + 1]):
        if position + SEGMENT_HEADER_SIZE > len(view):
            return None
        address, size = struct.unpack_from("<II", view, position)
        position += SEGMENT_HEADER_SIZE
        plausible = any(address in addresses for addresses in _ADDRESSES) and size < SEGMENT_SIZE_LIMIT
        if not plausible or position + size > len(view):
            return None
        segments.append(Esp8266Segment(address, position, size))
        position += size
    return tuple(segments)
