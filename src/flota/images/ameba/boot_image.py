"""AmebaD boot images (`km0_boot_all.bin`, `km4_boot_all.bin`): only read, never made or shipped over the air.

Source: docs/reference/ameba-images.md, "Boot images"; ambiot/ambd_sdk: rtl8721d_bootcfg.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from flota.images.ameba.image2 import KM0, KM4
from flota.images.ameba.segment import (
    BOOT_SIGNATURE,
    MissingSignature,
    Segment,
    WrongSegmentAddress,
    parse_segment_header,
    take_segment,
)

Buffer = bytes | memoryview

BOOT_XIP_ADDRESS: Final = {KM0: 0x0800_0020, KM4: 0x0800_4020}
BOOT_RAM_ADDRESS: Final = {KM0: 0x0008_2000, KM4: 0x1007_D000}

FLASH_BASE: Final = 0x0800_0000
FLASH_LIMIT: Final = 0x0900_0000
"""The largest flash that a slot address may point into: 16 MB."""

DEFAULT_SLOT_TABLE: Final = struct.pack("<II", 0x0800_6000, 0x0810_6000)
"""OTA_Region of stock boot images: OTA1, OTA2."""


@dataclass(frozen=True, slots=True)
class BootImage:
    """A boot image. `slot_addresses` are OTA1's and OTA2's flash addresses, None where none were found."""

    core: str
    segments: tuple[Segment, ...]
    slot_addresses: tuple[int, int] | None

    @property
    def end(self) -> int:
        """First offset after the last segment."""
        return self.segments[-1].end


def parse_boot_image(data: Buffer) -> BootImage:
    """Return what a boot image holds. Raises `MissingSignature`, `WrongSegmentAddress` and their like."""
    header = parse_segment_header(data)
    if header.signature != BOOT_SIGNATURE:
        raise MissingSignature(
            "no AmebaD boot image", offset=0, expected=BOOT_SIGNATURE.hex(" "), found=header.signature.hex(" ")
        )
    core = next((name for name, address in BOOT_XIP_ADDRESS.items() if address == header.address), None)
    if core is None:
        raise WrongSegmentAddress(
            "the boot image is linked for another address",
            offset=12,
            expected=" or ".join(f"{address:#010x}" for address in BOOT_XIP_ADDRESS.values()),
            found=f"{header.address:#010x}",
        )
    xip = take_segment(data, 0, f"{core} boot XIP", signature=BOOT_SIGNATURE, address=BOOT_XIP_ADDRESS[core])
    ram = take_segment(data, xip.end, f"{core} boot RAM", signature=BOOT_SIGNATURE, address=BOOT_RAM_ADDRESS[core])
    slots = find_slot_addresses(data) if core == KM0 else None
    return BootImage(core, (xip, ram), slots)


def find_slot_addresses(data: Buffer) -> tuple[int, int] | None:
    """Return OTA1's and OTA2's flash addresses out of a KM0 boot image, None where no such table can be told.

    Stock images have the default pair. Else: the only two neighbouring words that are rising sector addresses in flash.
    """
    raw = bytes(data)
    if DEFAULT_SLOT_TABLE in raw:
        first, second = struct.unpack("<II", DEFAULT_SLOT_TABLE)
        return first, second
    words = struct.unpack_from(f"<{len(raw) // 4}I", raw)
    pairs = {
        (first, second)
        for first, second in pairwise(words)
        if _is_slot_address(first) and _is_slot_address(second) and first < second
    }
    return pairs.pop() if len(pairs) == 1 else None


def _is_slot_address(word: int) -> bool:
    return FLASH_BASE + 0x6000 <= word < FLASH_LIMIT and word & 0xFFF == 0
