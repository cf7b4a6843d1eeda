"""The ESP image format: apps, second-stage boot loaders and RAM images share it. Bytes <-> `EspAppImage`.

Layout: 24-byte header; segments of (u32 load address, u32 length, data); zeros so that the next byte ends a block of
16; one checksum byte; with `hash_appended` the SHA-256 of everything before it. Little-endian.
Source: docs/reference/esp-image.md; espressif/esp-idf:components/bootloader_support/include/esp_app_format.h and
src/esp_image_format.c.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Final

from bitarray import bitarray

from flota.images.esp_chips import CHIPS, EspChip
from flota.images.esp_desc import (
    EspAppDesc,
    EspBootloaderDesc,
    has_app_desc,
    parse_app_desc,
    parse_bootloader_desc,
)
from flota.images.model import ImageError, TruncatedImage

__all__ = [
    "CHIPS",
    "ChecksumMismatch",
    "EspAppDesc",
    "EspAppImage",
    "EspImageHeader",
    "EspImageLayout",
    "EspSegment",
    "HashMismatch",
    "SegmentSpan",
    "image_checksum",
    "pack_app",
    "parse_app",
    "parse_header",
    "walk_image",
    "xor_of",
]

Buffer = bytes | memoryview

IMAGE_MAGIC: Final = 0xE9
HEADER_SIZE: Final = 24
SEGMENT_HEADER_SIZE: Final = 8
SEGMENTS_MAX: Final = 16
SEGMENT_SIZE_LIMIT: Final = 16 * 1024 * 1024
"""A segment must be shorter than this (bytes)."""
IMAGE_SIZE_MAX: Final = 16 * 1024 * 1024
"""The verifier refuses a partition that is larger (bytes)."""
CHECKSUM_SEED: Final = 0xEF
CHECKSUM_BLOCK: Final = 16
HASH_SIZE: Final = 32
MINIMUM_APP_SIZE: Final = 288
"""Header, first segment header and app descriptor: what a client reads before it decides (bytes)."""
WP_PIN_DISABLED: Final = 0xEE
NO_MAXIMUM_REVISION: Final = 0xFFFF

_HEADER: Final = struct.Struct("<BBBBIB3sHBHH4sB")
assert _HEADER.size == HEADER_SIZE
_SEGMENT: Final = struct.Struct("<II")
assert _SEGMENT.size == SEGMENT_HEADER_SIZE

_XOR_CHUNK_BYTES: Final = 1 << 15
"""A power of two."""


class NotAnEspImage(ImageError):
    """The first byte is not that of an ESP image."""

    code = "not-an-esp-image"


class BadHashField(ImageError):
    """The header says neither that a hash is appended nor that none is."""

    code = "hash-field"


class BadSegmentCount(ImageError):
    """No segment, or more than boot loaders read."""

    code = "segment-count"


class BadSegmentLength(ImageError):
    """A segment's length that no boot loader takes."""

    code = "segment-length"


class ChecksumMismatch(ImageError):
    """The XOR checksum of the segments is not the one that the image carries."""

    code = "bad-checksum"


class HashMismatch(ImageError):
    """The SHA-256 appended to the image is not that of its bytes."""

    code = "bad-hash"


@dataclass(frozen=True, slots=True)
class EspImageHeader:
    """The 24 bytes at the start, without magic and segment count.

    `entry` is an address. Revisions are major x 100 + minor (`min_chip_revision_legacy` is the old byte, which today's
    verifier ignores); a maximum of 0 or 0xFFFF means none. `drive` holds the three bytes of pin drive nibbles.
    """

    chip_id: int
    entry: int
    spi_mode: int = 2
    flash_size_code: int = 2
    speed_code: int = 0
    wp_pin: int = WP_PIN_DISABLED
    drive: bytes = bytes(3)
    min_chip_revision_legacy: int = 0
    min_chip_revision: int = 0
    max_chip_revision: int = NO_MAXIMUM_REVISION
    reserved: bytes = bytes(4)
    hash_appended: bool = True

    @property
    def chip(self) -> EspChip | None:
        """The chip that the id stands for, if it is a known one."""
        return CHIPS.get(self.chip_id)

    @property
    def effective_max_revision(self) -> int | None:
        """Highest chip revision that may run it, major x 100 + minor; None = no limit."""
        return None if self.max_chip_revision in (0, NO_MAXIMUM_REVISION) else self.max_chip_revision


@dataclass(frozen=True, slots=True)
class SegmentSpan:
    """Where a segment's data lies in the file (`offset`, `size` in bytes), and at which `address` it is wanted."""

    address: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """File offset of the first byte after the data."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class EspImageLayout:
    """Where everything in an image lies, read without looking at the data. Offsets and sizes in bytes."""

    header: EspImageHeader
    segments: tuple[SegmentSpan, ...]
    checksum_offset: int
    image_size: int

    @property
    def hash_offset(self) -> int | None:
        """Offset of the appended SHA-256, None if there is none."""
        return self.checksum_offset + 1 if self.header.hash_appended else None


@dataclass(frozen=True, slots=True)
class EspSegment:
    """Bytes for one load address. `len(data)` is a multiple of 4 and below 16 MiB."""

    address: int
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.data) % 4 or len(self.data) >= SEGMENT_SIZE_LIMIT:
            raise BadSegmentLength("bad segment length", expected="a multiple of 4 below 16 MiB", found=len(self.data))
        if not 0 <= self.address <= 0xFFFF_FFFF:
            raise ImageError("bad load address", expected="32 bits", found=hex(self.address))


@dataclass(frozen=True, slots=True)
class EspAppImage:
    """A well-formed image: its checksum and its appended hash (if any) are right, because `pack_app` computes them.

    `trailer` is what follows the image in the file: a signature sector, padding; nothing of it is hashed.
    """

    header: EspImageHeader
    segments: tuple[EspSegment, ...]
    trailer: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.segments) <= SEGMENTS_MAX:
            raise BadSegmentCount(
                "bad number of segments", offset=1, expected=f"1 to {SEGMENTS_MAX}", found=len(self.segments)
            )

    @property
    def chip(self) -> EspChip | None:
        """The chip that it is for, if known."""
        return self.header.chip

    @property
    def app_desc(self) -> EspAppDesc | None:
        """The app descriptor at the start of the first segment, if there is one."""
        return parse_app_desc(self.segments[0].data) if has_app_desc(self.segments[0].data) else None

    @property
    def bootloader_desc(self) -> EspBootloaderDesc | None:
        """The boot loader descriptor at the start of the first segment, if there is one."""
        return parse_bootloader_desc(self.segments[0].data)


def parse_header(data: Buffer) -> tuple[EspImageHeader, int]:
    """Return the header and the segment count of the image at the start of `data`.

    Raises `TruncatedImage` below 24 bytes, `NotAnEspImage` for another magic, `BadHashField` for a `hash_appended`
    that is not 0 or 1.
    """
    if len(data) < HEADER_SIZE:
        raise TruncatedImage(
            "the file ends inside the image header", offset=len(data), expected=f"{HEADER_SIZE} bytes", found=len(data)
        )
    (magic, count, mode, size_speed, entry, wp_pin, drive, chip_id, legacy, minimum, maximum, reserved, appended) = (
        _HEADER.unpack_from(data)
    )
    if magic != IMAGE_MAGIC:
        raise NotAnEspImage("not an ESP image", offset=0, expected=f"{IMAGE_MAGIC:#04x}", found=f"{magic:#04x}")
    if appended not in (0, 1):
        raise BadHashField("bad hash_appended field", offset=HEADER_SIZE - 1, expected="0 or 1", found=appended)
    header = EspImageHeader(
        chip_id=chip_id,
        entry=entry,
        spi_mode=mode,
        flash_size_code=size_speed >> 4,
        speed_code=size_speed & 0xF,
        wp_pin=wp_pin,
        drive=drive,
        min_chip_revision_legacy=legacy,
        min_chip_revision=minimum,
        max_chip_revision=maximum,
        reserved=reserved,
        hash_appended=bool(appended),
    )
    return header, count


def walk_image(data: Buffer) -> EspImageLayout:
    """Return where header, segments, checksum and hash lie, without computing either of the last two.

    Raises `TruncatedImage` when the file ends before what the headers announce, `BadSegmentCount` and
    `BadSegmentLength` for what no image may have, and what `parse_header` raises. Bytes after the image are ignored.
    """
    header, count = parse_header(data)
    if not 1 <= count <= SEGMENTS_MAX:
        raise BadSegmentCount("bad number of segments", offset=1, expected=f"1 to {SEGMENTS_MAX}", found=count)
    spans: list[SegmentSpan] = []
    position = HEADER_SIZE
    for index in range(count):
        if position + SEGMENT_HEADER_SIZE > len(data):
            raise TruncatedImage(
                f"the file ends inside the header of segment {index}",
                offset=position,
                expected=f"{position + SEGMENT_HEADER_SIZE} bytes",
                found=len(data),
            )
        address, size = _SEGMENT.unpack_from(data, position)
        if size % 4 or size >= SEGMENT_SIZE_LIMIT:
            raise BadSegmentLength(
                f"bad length of segment {index}",
                offset=position + 4,
                expected="a multiple of 4 below 16 MiB",
                found=size,
            )
        span = SegmentSpan(address, position + SEGMENT_HEADER_SIZE, size)
        if span.end > len(data):
            raise TruncatedImage(
                f"the file ends inside segment {index}", offset=position, expected=f"{span.end} bytes", found=len(data)
            )
        spans.append(span)
        position = span.end
    checksum_offset = _checksum_offset(position)
    image_size = checksum_offset + 1 + (HASH_SIZE if header.hash_appended else 0)
    if image_size > len(data):
        what = "the checksum" if checksum_offset >= len(data) else "the appended hash"
        raise TruncatedImage(
            f"the file ends before {what}", offset=position, expected=f"{image_size} bytes", found=len(data)
        )
    return EspImageLayout(header, tuple(spans), checksum_offset, image_size)


def image_checksum(data: Buffer, layout: EspImageLayout) -> int:
    """Return the XOR checksum that the image should carry: 0xEF XOR every byte of segment data."""
    view = memoryview(data)
    checksum = CHECKSUM_SEED
    for span in layout.segments:
        checksum ^= xor_of(view[span.offset : span.end])
    return checksum


def check_checksum(data: Buffer, layout: EspImageLayout) -> None:
    """Raise `ChecksumMismatch` unless the stored checksum is that of the segments."""
    computed, stored = image_checksum(data, layout), data[layout.checksum_offset]
    if computed != stored:
        raise ChecksumMismatch(
            "the checksum is wrong", offset=layout.checksum_offset, expected=f"{computed:#04x}", found=f"{stored:#04x}"
        )


def check_hash(data: Buffer, layout: EspImageLayout) -> bytes:
    """Return the SHA-256 that a device reports for the image; raises `HashMismatch` if the appended one is wrong.

    With an appended hash that is the appended one, else the hash of the whole image.
    Source: espressif/esp-idf:components/bootloader_support/include/bootloader_common.h.
    """
    view = memoryview(data)
    computed = hashlib.sha256(view[: layout.checksum_offset + 1]).digest()
    if layout.hash_offset is None:
        return computed
    stored = bytes(view[layout.hash_offset : layout.hash_offset + HASH_SIZE])
    if computed != stored:
        raise HashMismatch(
            "the appended SHA-256 is wrong", offset=layout.hash_offset, expected=computed.hex(), found=stored.hex()
        )
    return stored


def parse_app(data: Buffer) -> EspAppImage:
    """Return the image at the start of `data`, with checksum and appended hash verified.

    Raises `TruncatedImage`, `ChecksumMismatch`, `HashMismatch`, or `ImageError` for anything else that is not well
    formed. Whether a chip would run it is another question: `images.esp_verify`.
    """
    layout = walk_image(data)
    check_checksum(data, layout)
    check_hash(data, layout)
    view = memoryview(data)
    return EspAppImage(
        header=layout.header,
        segments=tuple(EspSegment(span.address, bytes(view[span.offset : span.end])) for span in layout.segments),
        trailer=bytes(view[layout.image_size :]),
    )


def pack_app(image: EspAppImage) -> bytes:
    """Return the bytes of `image`: checksum and appended hash computed, trailer added.

    Raises `ImageError` when a number does not fit its field.
    """
    packed = bytearray(_pack_header(image.header, len(image.segments)))
    for segment in image.segments:
        packed += _SEGMENT.pack(segment.address, len(segment.data))
        packed += segment.data
    checksum = CHECKSUM_SEED
    for segment in image.segments:
        checksum ^= xor_of(memoryview(segment.data))
    packed += bytes(_checksum_offset(len(packed)) - len(packed))
    packed.append(checksum)
    if image.header.hash_appended:
        packed += hashlib.sha256(packed).digest()
    return bytes(packed + image.trailer)


def xor_of(data: memoryview) -> int:
    """Return all bytes of `data` XORed together.

    Pieces that fit the cache are XORed by words and the result is folded by halves: integers of Python would take ten
    times as long, most of it to become integers (docs/adr/0018-checksums-by-bitarray.md).
    """
    sums = bitarray(_XOR_CHUNK_BYTES * 8)
    whole = len(data) - len(data) % _XOR_CHUNK_BYTES
    for start in range(0, whole, _XOR_CHUNK_BYTES):
        sums ^= bitarray(buffer=data[start : start + _XOR_CHUNK_BYTES])
    accumulated = int.from_bytes(sums.tobytes(), "little") ^ int.from_bytes(data[whole:], "little")
    bits = _XOR_CHUNK_BYTES * 8
    while bits > 8:
        bits //= 2
        accumulated = (accumulated >> bits) ^ (accumulated & ((1 << bits) - 1))
    return accumulated


def _checksum_offset(segments_end: int) -> int:
    return ((segments_end + CHECKSUM_BLOCK) // CHECKSUM_BLOCK) * CHECKSUM_BLOCK - 1


def _pack_header(header: EspImageHeader, segment_count: int) -> bytes:
    if len(header.drive) != 3 or len(header.reserved) != 4:
        raise ImageError("bad header field", expected="3 drive bytes and 4 reserved bytes")
    if not (0 <= header.flash_size_code <= 0xF and 0 <= header.speed_code <= 0xF):
        raise ImageError("flash size and speed are one nibble each", offset=3)
    try:
        return _HEADER.pack(
            IMAGE_MAGIC,
            segment_count,
            header.spi_mode,
            header.flash_size_code << 4 | header.speed_code,
            header.entry,
            header.wp_pin,
            header.drive,
            header.chip_id,
            header.min_chip_revision_legacy,
            header.min_chip_revision,
            header.max_chip_revision,
            header.reserved,
            int(header.hash_appended),
        )
    except struct.error as error:
        raise ImageError("a number does not fit its field of the image header", found=str(error)) from error
