"""The 32 bytes at the start of an MCUboot image, and its version number. Little-endian.

Source: docs/reference/mcuboot.md; mcu-tools/mcuboot:boot/bootutil/include/bootutil/image.h (`struct image_header`).
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass
from typing import Final

from flota.images.model import ImageError, TruncatedImage

Buffer = bytes | memoryview

IMAGE_MAGIC: Final = 0x96F3B83D
IMAGE_MAGIC_BYTES: Final = IMAGE_MAGIC.to_bytes(4, "little")
IMAGE_MAGIC_V1: Final = 0x96F3B83C
"""The format of 2017, which no boot loader reads any more."""
HEADER_SIZE: Final = 32
HEADER_SIZE_MAX: Final = 0xFFFF
VERSION_TEXT_MAX_CHARS: Final = 32

_HEADER: Final = struct.Struct("<IIHHIIBBHII")
assert _HEADER.size == HEADER_SIZE
_VERSION: Final = struct.Struct("<BBHI")
_VERSION_TEXT = re.compile(
    r"(0|[1-9]\d{0,9})(?:\.(0|[1-9]\d{0,9})(?:\.(0|[1-9]\d{0,9})(?:\+(0|[1-9]\d{0,9}))?)?)?\Z", re.ASCII
)


class ImageFlag(enum.IntFlag):
    """What the header says about the image. Bits that we do not know are kept."""

    PIC = 0x0001
    ENCRYPTED_AES128 = 0x0004
    ENCRYPTED_AES256 = 0x0008
    NON_BOOTABLE = 0x0010
    RAM_LOAD = 0x0020
    ROM_FIXED = 0x0100
    COMPRESSED_LZMA1 = 0x0200
    COMPRESSED_LZMA2 = 0x0400
    COMPRESSED_ARM_THUMB = 0x0800


NO_FLAGS: Final = ImageFlag(0)
ENCRYPTED: Final = ImageFlag.ENCRYPTED_AES128 | ImageFlag.ENCRYPTED_AES256
COMPRESSED: Final = ImageFlag.COMPRESSED_LZMA1 | ImageFlag.COMPRESSED_LZMA2
HAS_ADDRESS: Final = ImageFlag.RAM_LOAD | ImageFlag.ROM_FIXED
"""The load address means something only with one of these."""


@dataclass(frozen=True, slots=True, order=True)
class ImageVersion:
    """`major.minor.revision+build`, in the order in which a boot loader compares; u8, u8, u16, u32."""

    major: int
    minor: int = 0
    revision: int = 0
    build: int = 0

    def __post_init__(self) -> None:
        for name, limit in (("major", 0xFF), ("minor", 0xFF), ("revision", 0xFFFF), ("build", 0xFFFF_FFFF)):
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ImageError(f"the version's {name} number is out of range", expected=f"0 to {limit}", found=value)

    @classmethod
    def parse(cls, text: str) -> ImageVersion:
        """Return the version that `1.2.3+4` says; later parts may be missing and are 0. Raises `ImageError`."""
        match = _VERSION_TEXT.match(text[:64])
        if match is None:
            raise ImageError(
                "not a version of an MCUboot image",
                expected="major.minor.revision+build, such as 1.2.3+4",
                found=ascii(text[:VERSION_TEXT_MAX_CHARS]),
            )
        return cls(*(int(part or 0) for part in match.groups()))

    @classmethod
    def unpack(cls, raw: Buffer) -> ImageVersion:
        """Return the version in the first eight bytes of `raw`. Raises `TruncatedImage` below eight."""
        if len(raw) < _VERSION.size:
            raise TruncatedImage(
                "the version is cut off", offset=len(raw), expected=f"{_VERSION.size} bytes", found=len(raw)
            )
        return cls(*_VERSION.unpack_from(raw))

    def pack(self) -> bytes:
        """Return the eight bytes."""
        return _VERSION.pack(self.major, self.minor, self.revision, self.build)

    @property
    def automatic_security_counter(self) -> int:
        """The security counter that imgtool makes of the version for `auto`: the build number has no part in it."""
        return (self.major << 24) + (self.minor << 16) + self.revision

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.revision}+{self.build}"


@dataclass(frozen=True, slots=True)
class McubootHeader:
    """The header without its magic. Sizes in bytes.

    `header_size` counts the padding before the payload too, `image_size` only the payload, `protected_size` the whole
    protected TLV area (0 = there is none). `load_address` counts only with one of the flags in `HAS_ADDRESS`.
    """

    version: ImageVersion
    header_size: int
    image_size: int
    protected_size: int = 0
    load_address: int = 0
    flags: ImageFlag = NO_FLAGS
    reserved: int = 0

    @property
    def payload_end(self) -> int:
        """Offset of the first byte after the payload: where the TLVs begin."""
        return self.header_size + self.image_size

    @property
    def hashed_end(self) -> int:
        """Offset of the first byte that neither hash nor signature covers."""
        return self.payload_end + self.protected_size


def is_mcuboot(data: Buffer) -> bool:
    """Say whether `data` begins with the magic number of an MCUboot image."""
    return bytes(data[:4]) == IMAGE_MAGIC_BYTES


def parse_header(data: Buffer) -> McubootHeader:
    """Return the header at the start of `data`.

    Raises `TruncatedImage` below 32 bytes, `ImageError` for another magic and a header size below 32.
    """
    if len(data) < HEADER_SIZE:
        raise TruncatedImage(
            "the file ends inside the image header", offset=len(data), expected=f"{HEADER_SIZE} bytes", found=len(data)
        )
    (magic, load_address, header_size, protected_size, image_size, flags, *version, reserved) = _HEADER.unpack_from(
        data
    )
    if magic != IMAGE_MAGIC:
        raise ImageError(
            "not an MCUboot image",
            offset=0,
            expected=f"{IMAGE_MAGIC:#x}",
            found=f"{magic:#010x}",
            hint=_hint_for(magic),
        )
    if header_size < HEADER_SIZE:
        raise ImageError(
            "the header says that it is shorter than it is",
            offset=8,
            expected=f"at least {HEADER_SIZE}",
            found=header_size,
        )
    return McubootHeader(
        version=ImageVersion(*version),
        header_size=header_size,
        image_size=image_size,
        protected_size=protected_size,
        load_address=load_address,
        flags=ImageFlag(flags),
        reserved=reserved,
    )


def pack_header(header: McubootHeader) -> bytes:
    """Return the 32 bytes of the header. Raises `ImageError` when a number does not fit its field."""
    if not HEADER_SIZE <= header.header_size <= HEADER_SIZE_MAX:
        raise ImageError(
            "bad header size", offset=8, expected=f"{HEADER_SIZE} to {HEADER_SIZE_MAX} bytes", found=header.header_size
        )
    version = header.version
    try:
        return _HEADER.pack(
            IMAGE_MAGIC,
            header.load_address,
            header.header_size,
            header.protected_size,
            header.image_size,
            header.flags.value,
            version.major,
            version.minor,
            version.revision,
            version.build,
            header.reserved,
        )
    except struct.error as error:
        raise ImageError("a number does not fit its field of the image header", found=str(error)) from error


def flag_names(flags: ImageFlag) -> str:
    """Return the names of the bits that are set, unknown ones as a number; `none` for no bit."""
    known = [flag for flag in ImageFlag if flag in flags]
    rest = flags.value & ~sum(flag.value for flag in known)
    names = [(flag.name or "").lower().replace("_", "-") for flag in known]
    return ", ".join(names + ([f"{rest:#x}"] if rest else [])) or "none"


def _hint_for(magic: int) -> str | None:
    if magic == IMAGE_MAGIC_V1:
        return "This is the image format of 2017, which no boot loader reads any more."
    if magic == int.from_bytes(IMAGE_MAGIC_BYTES, "big"):
        return "The image is big-endian; only little-endian devices are supported."
    return None
