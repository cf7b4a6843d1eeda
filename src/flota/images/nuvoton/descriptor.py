"""The OTA descriptor and trailer of the M487: what the loader, the Cloner and the application leave for one another.

Little-endian. Descriptor: 32 bytes at APROM 0x70000, and before the backup in the SPI flash. Trailer: 292 or 420 bytes
at APROM 0x71000, written after the signature check and read by nobody.
Source: docs/reference/nuvoton.md, "Descriptor and trailer"; OpenNuvoton/mbed-client-for-aws:mbed/COMPONENT_AWSIOT_OTA/
COMPONENT_AWSIOT_OTA_PAL_NVTBL/ota_pal_mbed.cpp.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import Final

from flota.images.model import ImageError, TruncatedImage
from flota.images.nuvoton.flash_map import BACKUP_ADDR

Buffer = bytes | memoryview

MAGIC: Final = b"@AFRTOS"
MAGIC_SIZE: Final = len(MAGIC)
"""The loader compares these bytes and no more; the flag follows."""
FLAG_OFFSET: Final = 7
DESCRIPTOR_SIZE: Final = 32

SIGNATURE_TYPE: Final = "sig-sha256-ecdsa"
SIGNATURE_TYPE_SIZE: Final = 32
SIGNATURE_ROOM: Final = 256
"""Size of the signature's array in OTA libraries up to 3.3; since 3.4 it is `SIGNATURE_ROOM_SINCE_3_4`."""
SIGNATURE_ROOM_SINCE_3_4: Final = 384
SIGNATURE_ROOMS: Final = (SIGNATURE_ROOM, SIGNATURE_ROOM_SINCE_3_4)

_DESCRIPTOR: Final = struct.Struct("<7sB6I")
assert _DESCRIPTOR.size == DESCRIPTOR_SIZE
_TRAILER: Final = struct.Struct("<32sI")
assert _TRAILER.size == SIGNATURE_TYPE_SIZE + 4
TRAILER_SIZES: Final = tuple(_TRAILER.size + room for room in SIGNATURE_ROOMS)
assert TRAILER_SIZES == (292, 420)


class MissingDescriptor(ImageError):
    """The bytes do not begin with `@AFRTOS`: no update was ever tried here, or a power cut left the page blank."""

    code = "nuvoton-descriptor"


class BadTrailer(ImageError):
    """The bytes are no trailer: no signature type, or a signature longer than its room."""

    code = "nuvoton-trailer"


class ImageFlag(enum.IntEnum):
    """State of the image. Each value only clears bits of the one before; the code rewrites the page all the same."""

    NEW = 0xFF
    """Verified, waits in the SPI flash for the Cloner."""
    PENDING_COMMIT = 0xFE
    """Copied, on its self-test."""
    VALID = 0xFC
    INVALID = 0xF8
    """Being downloaded, rejected or aborted."""


FLAG_NAMES: Final = {
    ImageFlag.NEW: "new, to be copied",
    ImageFlag.PENDING_COMMIT: "self-test",
    ImageFlag.VALID: "valid",
    ImageFlag.INVALID: "invalid, or being downloaded",
}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What stands behind the magic. Addresses in bytes; `flag` may be a value that no code writes.

    `end` is the address of the last byte. `reserved` is 0 while downloading, the address of the backup bank (0x80000)
    after a backup, and in the backup's own header the address of the saved image. `sequence` and `hardware_id` are
    never set by the vendor's code: they are whatever was on its stack.
    """

    flag: int
    end: int
    start: int = 0
    execute: int = 0
    sequence: int = 0
    hardware_id: int = 0
    reserved: int = 0

    def pack(self) -> bytes:
        """Return the 32 bytes. Raises `ImageError` when a number does not fit its field."""
        try:
            return _DESCRIPTOR.pack(
                MAGIC,
                self.flag,
                self.sequence,
                self.start,
                self.end,
                self.execute,
                self.hardware_id,
                self.reserved,
            )
        except struct.error as error:
            raise ImageError("a number does not fit its field of the descriptor", found=str(error)) from error

    @property
    def flag_name(self) -> str:
        """The flag and what it means, for people."""
        known = next((name for flag, name in FLAG_NAMES.items() if flag == self.flag), "unknown")
        return f"{self.flag:#04x}, {known}"

    @property
    def has_backup(self) -> bool:
        """Whether it says that the old application was saved to the backup bank."""
        return self.reserved == BACKUP_ADDR


@dataclass(frozen=True, slots=True)
class Trailer:
    """The signature of the staged file as the application checked it.

    `room` is the size of the signature's array in bytes, 256 or 384; `rest` what lies in it behind the signature
    (never set by the vendor's code; None = zeros).
    """

    signature: bytes
    signature_type: str = SIGNATURE_TYPE
    room: int = SIGNATURE_ROOM
    rest: bytes | None = field(default=None, repr=False)

    def pack(self) -> bytes:
        """Return the 292 or 420 bytes. Raises `BadTrailer` when they cannot hold it."""
        name = self.signature_type.encode("utf-8", "replace")
        if self.room not in SIGNATURE_ROOMS:
            raise BadTrailer("not a size of the signature's array", expected="256 or 384 bytes", found=self.room)
        if not 0 < len(name) < SIGNATURE_TYPE_SIZE or not _is_plain(name):
            raise BadTrailer(
                "the signature type does not fit", expected="1 to 31 ASCII characters", found=ascii(self.signature_type)
            )
        if len(self.signature) > self.room:
            raise BadTrailer(
                "the signature is too long", expected=f"at most {self.room} bytes", found=f"{len(self.signature)} bytes"
            )
        rest = bytes(self.room - len(self.signature)) if self.rest is None else self.rest
        if len(rest) != self.room - len(self.signature):
            raise BadTrailer(
                "the array is not filled", expected=f"{self.room} bytes", found=len(self.signature) + len(rest)
            )
        return _TRAILER.pack(name, len(self.signature)) + self.signature + rest


def has_magic(data: Buffer) -> bool:
    """Say whether `data` begins with the seven bytes that the loader looks for."""
    return bytes(data[:MAGIC_SIZE]) == MAGIC


def parse_descriptor(data: Buffer) -> Descriptor:
    """Return the descriptor at the start of `data` (32 bytes or the whole page).

    Raises `TruncatedImage` below 32 bytes, `MissingDescriptor` for another magic. Nothing else is checked: what the
    numbers have to be, decides the Cloner.
    """
    if len(data) < DESCRIPTOR_SIZE:
        raise TruncatedImage(
            "the descriptor is cut off", offset=len(data), expected=f"{DESCRIPTOR_SIZE} bytes", found=len(data)
        )
    magic, flag, sequence, start, end, execute, hardware_id, reserved = _DESCRIPTOR.unpack_from(data)
    if magic != MAGIC:
        raise MissingDescriptor("no OTA descriptor", offset=0, expected=ascii(MAGIC), found=ascii(magic))
    return Descriptor(flag, end, start, execute, sequence, hardware_id, reserved)


def parse_trailer(data: Buffer, *, room: int | None = None) -> Trailer:
    """Return the trailer at the start of `data`: 292 or 420 bytes, or the whole page.

    A page does not say how large the array is: then `room` (bytes) does, else 256 unless the signature is longer.
    Raises `TruncatedImage` and `BadTrailer`.
    """
    if len(data) < TRAILER_SIZES[0]:
        raise TruncatedImage(
            "the trailer is cut off", offset=len(data), expected=f"{TRAILER_SIZES[0]} bytes", found=len(data)
        )
    name, length = _TRAILER.unpack_from(data)
    text, _, padding = name.partition(b"\0")
    if not text or any(padding) or not _is_plain(text) or len(text) == SIGNATURE_TYPE_SIZE:
        raise BadTrailer(
            "no signature type", offset=0, expected=f"{SIGNATURE_TYPE!r}, NUL padded", found=ascii(bytes(name[:32]))
        )
    if room is None:
        wide = len(data) == TRAILER_SIZES[1] or length > SIGNATURE_ROOM
        room = SIGNATURE_ROOM_SINCE_3_4 if wide else SIGNATURE_ROOM
    if room not in SIGNATURE_ROOMS:
        raise BadTrailer("not a size of the signature's array", expected="256 or 384 bytes", found=room)
    if length > room:
        raise BadTrailer(
            "the signature is longer than its array",
            offset=SIGNATURE_TYPE_SIZE,
            expected=f"at most {room} bytes",
            found=f"{length} bytes",
        )
    if len(data) < _TRAILER.size + room:
        raise TruncatedImage(
            "the trailer is cut off", offset=len(data), expected=f"{_TRAILER.size + room} bytes", found=len(data)
        )
    array = bytes(data[_TRAILER.size : _TRAILER.size + room])
    return Trailer(array[:length], text.decode("ascii"), room, array[length:])


def _is_plain(text: bytes) -> bool:
    return all(0x20 < byte < 0x7F for byte in text)
