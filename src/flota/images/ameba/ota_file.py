"""`OTA_All.bin`: what is pushed to or pulled by an AmebaD device, and the 12 bytes that go before it on the wire.

A file header of 8 bytes, one sub-header of 24, then `km0_km4_image2.bin`. Little-endian; checksums are sums of bytes.
Source: docs/reference/ameba-images.md, "OTA_All.bin"; ambiot/ambd_sdk: rtl8721d_ota.h.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from flota.images.ameba.image2 import parse_image2
from flota.images.ameba.segment import IMAGE2_SIGNATURE
from flota.images.model import ImageError, TruncatedImage

Buffer = bytes | memoryview

FILE_HEADER_SIZE: Final = 8
SUB_HEADER_SIZE: Final = 24
IMAGE_OFFSET: Final = FILE_HEADER_SIZE + SUB_HEADER_SIZE
ANY_VERSION: Final = 0xFFFF_FFFF
"""What the vendor's build writes as version and as flash address; devices read neither."""

IMAGE_ID: Final = b"OTA1"
DEVICE_ID_PREFIX: Final = b"OTA"
"""Devices compare only these three bytes of the id."""

SUB_HEADERS_MAX: Final = 16
"""More are not even shown; a device has room for two."""

FILE_INFO_SIZE: Final = 12

_SUMMED_AT_ONCE: Final = 256
assert 1 + 255 * _SUMMED_AT_ONCE < 65521

_FILE_HEADER: Final = struct.Struct("<II")
_SUB_HEADER: Final = struct.Struct("<4sIIIII")
_FILE_INFO: Final = struct.Struct("<III")
assert _FILE_HEADER.size == FILE_HEADER_SIZE
assert _SUB_HEADER.size == SUB_HEADER_SIZE
assert _FILE_INFO.size == FILE_INFO_SIZE


class NotAnOtaFile(ImageError):
    """The file does not begin with the headers of an `OTA_All.bin`."""

    code = "ameba-ota-header"


class SeveralImages(ImageError):
    """The file holds more than one image: devices write both to the same place."""

    code = "ameba-several-images"


class WrongOtaLayout(ImageError):
    """Header length, offset or length do not describe one image that fills the file."""

    code = "ameba-ota-layout"


class WrongOtaChecksum(ImageError):
    """The sum of the image's bytes is not what the header says: a device would erase its slot, then give up."""

    code = "ameba-checksum"


@dataclass(frozen=True, slots=True)
class OtaSubHeader:
    """What the file says of one image. `length` and `offset` in bytes; `flash_address` is read by no device."""

    image_id: bytes
    header_length: int
    checksum: int
    length: int
    offset: int
    flash_address: int = ANY_VERSION

    def pack(self) -> bytes:
        """Return the 24 bytes."""
        return _SUB_HEADER.pack(
            self.image_id, self.header_length, self.checksum, self.length, self.offset, self.flash_address
        )


@dataclass(frozen=True, slots=True)
class OtaHeaders:
    """All headers of a file; `version` is a plain number for people."""

    version: int
    images: tuple[OtaSubHeader, ...]


@dataclass(frozen=True, slots=True)
class OtaFile:
    """A file that a device would take: its headers and its one image."""

    version: int
    header: OtaSubHeader
    image: bytes


def byte_sum(data: Buffer) -> int:
    """Return the sum of all bytes modulo 2**32: the only checksum on this route."""
    view = memoryview(data)
    # The lower half of Adler-32 is 1 + the sum of the bytes modulo 65521: exact for so few, and five times faster.
    starts = range(0, len(view), _SUMMED_AT_ONCE)
    total = sum(zlib.adler32(view[start : start + _SUMMED_AT_ONCE]) & 0xFFFF for start in starts) - len(starts)
    return total & 0xFFFF_FFFF


def file_info(size: int, checksum: int) -> bytes:
    """Return the 12 bytes that go before the file: sum of its bytes, zero, its size (bytes)."""
    return _FILE_INFO.pack(checksum, 0, size)


def parse_ota_headers(data: Buffer) -> OtaHeaders:
    """Return the headers, whatever they announce. Raises `NotAnOtaFile` and `TruncatedImage`."""
    if len(data) < IMAGE_OFFSET:
        raise TruncatedImage(
            "the file ends inside its headers",
            offset=len(data),
            expected=f"{IMAGE_OFFSET} bytes or more",
            found=f"{len(data)} bytes",
        )
    version, count = _FILE_HEADER.unpack_from(data)
    if not 1 <= count <= SUB_HEADERS_MAX:
        raise NotAnOtaFile("not the headers of an OTA_All.bin", offset=4, expected="1 image", found=f"{count} images")
    images = []
    position = FILE_HEADER_SIZE
    for number in range(count):
        if position + SUB_HEADER_SIZE > len(data):
            raise TruncatedImage(
                f"the file ends inside sub-header {number + 1}", offset=position, expected=f"{SUB_HEADER_SIZE} bytes"
            )
        header = OtaSubHeader(*_SUB_HEADER.unpack_from(data, position))
        if header.header_length < SUB_HEADER_SIZE:
            raise NotAnOtaFile(
                "a sub-header says that it is shorter than it is",
                offset=position + 4,
                expected=f"{SUB_HEADER_SIZE}",
                found=header.header_length,
            )
        images.append(header)
        position += header.header_length
    return OtaHeaders(version, tuple(images))


def is_ota_file(data: Buffer) -> bool:
    """Say whether `data` looks like an `OTA_All.bin`: a plausible count and an id that a device would take."""
    if len(data) < IMAGE_OFFSET:
        return False
    _, count = _FILE_HEADER.unpack_from(data)
    length = int.from_bytes(bytes(data[12:16]), "little")
    return 1 <= count <= SUB_HEADERS_MAX and bytes(data[8:11]) == DEVICE_ID_PREFIX and length == SUB_HEADER_SIZE


def parse_ota_file(data: Buffer, *, opaque: bool = False) -> OtaFile:
    """Return the one image of a file that a device can take and start.

    `opaque` skips every look into the image (it may be encrypted for the flash). Raises an `ImageError` for each rule
    that the file breaks; most of them no device checks (docs/reference/ameba-images.md, "What nobody checks").
    """
    headers = parse_ota_headers(data)
    header = headers.images[0]
    if len(headers.images) != 1:
        raise SeveralImages(
            "the file holds several images, which a device writes to one place",
            offset=4,
            expected="1 image",
            found=f"{len(headers.images)} images",
            hint="Tick one box only in the vendor's tool, or pack it with `flota image pack ameba`.",
        )
    if header.image_id[:3] != DEVICE_ID_PREFIX:
        raise NotAnOtaFile("a device refuses this id", offset=8, expected="OTA1", found=ascii(header.image_id))
    _require_layout("the sub-header's length", 12, SUB_HEADER_SIZE, header.header_length)
    _require_layout("the image's offset", 24, IMAGE_OFFSET, header.offset)
    _require_layout("the image's length", 20, len(data) - IMAGE_OFFSET, header.length)
    image = bytes(data[IMAGE_OFFSET:])
    if len(image) <= len(IMAGE2_SIGNATURE):
        raise TruncatedImage("the file holds no image", offset=IMAGE_OFFSET, expected="an image", found=f"{len(image)}")
    checksum = byte_sum(image)
    if checksum != header.checksum:
        raise WrongOtaChecksum(
            "the image's bytes do not add up to the sum in the header",
            offset=16,
            expected=f"{header.checksum:#010x}",
            found=f"{checksum:#010x}",
        )
    if not opaque:
        try:
            parse_image2(image)
        except ImageError as error:
            if error.offset is not None:
                error.offset += IMAGE_OFFSET  # tell where it is in this file
            raise
    return OtaFile(headers.version, header, image)


def pack_ota_file(image: bytes, *, version: int = ANY_VERSION, opaque: bool = False) -> bytes:
    """Return the `OTA_All.bin` of a `km0_km4_image2.bin`.

    `version` (u32) is informational. `opaque` takes any bytes as the image: encrypted ones have no signature to check.
    Raises an `ImageError` when the image is one that a device would take and could not start.
    """
    if not 0 <= version <= ANY_VERSION:
        raise ImageError("the version does not fit its field", expected="0 to 0xFFFFFFFF", found=version)
    if len(image) <= len(IMAGE2_SIGNATURE):
        raise TruncatedImage("too short for an image", expected="an image", found=f"{len(image)} bytes")
    if not opaque:
        parse_image2(image)
    header = OtaSubHeader(IMAGE_ID, SUB_HEADER_SIZE, byte_sum(image), len(image), IMAGE_OFFSET)
    return _FILE_HEADER.pack(version, 1) + header.pack() + image


def _require_layout(what: str, offset: int, expected: int, found: int) -> None:
    if expected != found:
        raise WrongOtaLayout(f"{what} is wrong", offset=offset, expected=expected, found=found)
