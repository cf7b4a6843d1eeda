"""The 32-byte header before every AmebaD segment, and the words at the start of a RAM segment. Little-endian.

Source: docs/reference/ameba-images.md, "Segments"; ambiot/ambd_sdk: rtl8721d.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from flota.images.model import ImageError, TruncatedImage

Buffer = bytes | memoryview

SECTOR_SIZE: Final = 4096
"""Smallest erasable unit of the flash, and what image2 of each core is padded to (bytes)."""

IMAGE2_SIGNATURE: Final = b"81958711"
BOOT_SIGNATURE: Final = bytes.fromhex("999996963fcc66fc")
"""The pattern that the flash controller calibrates itself with: boot images begin with it."""

HEADER_SIZE: Final = 32
NOT_SET: Final = 0xFFFF_FFFF
RESERVED: Final = b"\xff" * 12

RAM_TEXT: Final = b"RTKWin\0"
RAM_TEXT_OFFSET: Final = 12
"""Where in a RAM segment of image2 both boot loaders look for `RAM_TEXT`."""

_HEADER: Final = struct.Struct("<8sIII12s")
assert _HEADER.size == HEADER_SIZE


class MissingSignature(ImageError):
    """A segment does not begin with the signature that its place asks for."""

    code = "ameba-signature"


class WrongSegmentAddress(ImageError):
    """A segment is linked for an address that does not belong where it stands."""

    code = "ameba-address"


class SegmentPastEnd(TruncatedImage):
    """A segment's size reaches beyond the end of the file."""

    code = "ameba-segment-size"


class UnalignedSegment(ImageError):
    """An XIP segment whose size is no multiple of 4: the boot loader's read of the next header is a HardFault."""

    code = "ameba-segment-alignment"


class MissingRamText(ImageError):
    """A RAM segment lacks `RTKWin` where the boot loaders look for it."""

    code = "ameba-ram-text"


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """A segment's header. `size` is that of the payload after it (bytes), `address` where it is linked or loaded.

    `secure_block` is the virtual address of the secure-boot block, `NOT_SET` without one.
    """

    signature: bytes
    size: int
    address: int
    secure_block: int = NOT_SET
    reserved: bytes = RESERVED

    def pack(self) -> bytes:
        """Return the 32 bytes."""
        return _HEADER.pack(self.signature, self.size, self.address, self.secure_block, self.reserved)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment in a file: `offset` is that of its header (bytes)."""

    name: str
    offset: int
    header: SegmentHeader

    @property
    def payload_offset(self) -> int:
        """Where the payload begins."""
        return self.offset + HEADER_SIZE

    @property
    def end(self) -> int:
        """First offset after the payload: the next header, if one follows."""
        return self.payload_offset + self.header.size


def parse_segment_header(data: Buffer, offset: int = 0) -> SegmentHeader:
    """Return the header at `offset`. Raises `TruncatedImage` when the file ends inside it; judges nothing else."""
    if offset + HEADER_SIZE > len(data):
        raise TruncatedImage(
            "the file ends inside a segment header",
            offset=offset,
            expected=f"{HEADER_SIZE} bytes",
            found=f"{max(0, len(data) - offset)} bytes",
        )
    return SegmentHeader(*_HEADER.unpack_from(data, offset))


def take_segment(data: Buffer, offset: int, name: str, *, signature: bytes | None, address: int) -> Segment:
    """Return the segment whose header stands at `offset`, if it is the one that belongs there.

    `signature` None = any: the boot loaders do not look at it there. Raises `MissingSignature`, `WrongSegmentAddress`,
    `SegmentPastEnd` and `TruncatedImage`.
    """
    header = parse_segment_header(data, offset)
    if signature is not None and header.signature != signature:
        raise MissingSignature(
            f"the {name} segment has no signature",
            offset=offset,
            expected=signature.hex(" "),
            found=header.signature.hex(" "),
        )
    if header.address != address:
        raise WrongSegmentAddress(
            f"the {name} segment is linked for another address",
            offset=offset + 12,
            expected=f"{address:#010x}",
            found=f"{header.address:#010x}",
        )
    segment = Segment(name, offset, header)
    if segment.end > len(data):
        raise SegmentPastEnd(
            f"the {name} segment reaches beyond the end of the file",
            offset=offset + 8,
            expected=f"at most {len(data) - segment.payload_offset} bytes",
            found=f"{header.size} bytes",
        )
    return segment


def require_word_size(segment: Segment) -> None:
    """Raise `UnalignedSegment` unless the segment's size is a multiple of 4."""
    if segment.header.size % 4:
        raise UnalignedSegment(
            f"the size of the {segment.name} segment is no multiple of 4: the boot loader would fault",
            offset=segment.offset + 8,
            expected="a multiple of 4",
            found=segment.header.size,
        )


def require_ram_text(data: Buffer, segment: Segment) -> None:
    """Raise `MissingRamText` unless the RAM segment says `RTKWin` 12 bytes after its start."""
    place = segment.payload_offset + RAM_TEXT_OFFSET
    found = bytes(data[place : min(place + len(RAM_TEXT), segment.end)])
    if found != RAM_TEXT:
        raise MissingRamText(
            f"the {segment.name} segment does not say RTKWin: the boot loader would not start it",
            offset=place,
            expected=RAM_TEXT.hex(" "),
            found=found.hex(" ") or "nothing",
        )


def rounded_up(size: int) -> int:
    """Return `size` rounded up to whole sectors (bytes)."""
    return -(-size // SECTOR_SIZE) * SECTOR_SIZE
