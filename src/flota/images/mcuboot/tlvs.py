"""The type-length-value areas behind an MCUboot image's payload: one that is signed, and one that is not.

The protected area (magic 0x6908) is covered by hash and signature; the other one (0x6907) holds hash, key and signature
themselves, and whatever else is in it was written by anybody.
Source: docs/reference/mcuboot.md; mcu-tools/mcuboot:boot/bootutil/include/bootutil/image.h, boot/bootutil/src/tlv.c.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from flota.images.mcuboot.header import ImageVersion
from flota.images.model import ImageError, TruncatedImage

Buffer = bytes | memoryview

UNPROTECTED_MAGIC: Final = 0x6907
PROTECTED_MAGIC: Final = 0x6908
AREA_HEADER_SIZE: Final = 4
TLV_HEADER_SIZE: Final = 4
AREA_SIZE_MAX: Final = 0xFFFF
"""Bytes of one area with its header: the count is a u16."""
SECURITY_COUNTER_SIZE: Final = 4
DEPENDENCY_SIZE: Final = 12

_AREA: Final = struct.Struct("<HH")
assert _AREA.size == AREA_HEADER_SIZE
_TLV: Final = struct.Struct("<HH")
assert _TLV.size == TLV_HEADER_SIZE


class TlvError(ImageError):
    """A TLV area does not hold together."""

    code = "bad-tlv"


class TlvType(enum.IntEnum):
    """Types as the boot loader's own header has them.

    mcu-tools/mcuboot:docs/design.md gives 0x80 and 0x81 for the two UUIDs; image.h and scripts/imgtool/image.py say
    0x74 and 0x75. What runs on the device wins.
    """

    KEYHASH = 0x01
    PUBKEY = 0x02
    SHA256 = 0x10
    SHA384 = 0x11
    SHA512 = 0x12
    RSA2048_PSS = 0x20
    ECDSA224 = 0x21
    ECDSA_SIG = 0x22
    RSA3072_PSS = 0x23
    ED25519 = 0x24
    SIG_PURE = 0x25
    ENC_RSA2048 = 0x30
    ENC_KW = 0x31
    ENC_EC256 = 0x32
    ENC_X25519 = 0x33
    ENC_X25519_SHA512 = 0x34
    DEPENDENCY = 0x40
    SEC_CNT = 0x50
    BOOT_RECORD = 0x60
    DECOMP_SIZE = 0x70
    DECOMP_SHA = 0x71
    DECOMP_SIGNATURE = 0x72
    COMP_DEC_SIZE = 0x73
    UUID_VID = 0x74
    UUID_CID = 0x75


HASH_NAMES: Final = {TlvType.SHA256: "sha256", TlvType.SHA384: "sha384", TlvType.SHA512: "sha512"}
"""Hash TLV -> name for `hashlib`."""
SIGNATURE_TYPES: Final = frozenset(
    {TlvType.RSA2048_PSS, TlvType.RSA3072_PSS, TlvType.ECDSA224, TlvType.ECDSA_SIG, TlvType.ED25519}
)
UNPROTECTED_TYPES: Final = frozenset(
    {
        *HASH_NAMES,
        *SIGNATURE_TYPES,
        TlvType.KEYHASH,
        TlvType.PUBKEY,
        TlvType.SIG_PURE,
        TlvType.ENC_RSA2048,
        TlvType.ENC_KW,
        TlvType.ENC_EC256,
        TlvType.ENC_X25519,
        TlvType.ENC_X25519_SHA512,
    }
)
"""What a boot loader with an allow list takes from the unprotected area (boot/bootutil/src/image_validate.c)."""
_VENDOR_LOW_BYTE: Final = 0xA0


@dataclass(frozen=True, slots=True)
class Tlv:
    """One entry; `kind` is its u16 type, `value` at most 65527 bytes."""

    kind: int
    value: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The type's name for people, also for vendor types and unknown ones."""
        try:
            return TlvType(self.kind).name
        except ValueError:
            vendor = (self.kind & 0xFF) >= _VENDOR_LOW_BYTE and self.kind != 0xFFFF
            return f"{'vendor' if vendor else 'unknown'} {self.kind:#06x}"


@dataclass(frozen=True, slots=True)
class TlvSpan:
    """Where an entry's value lies in the file."""

    kind: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """File offset of the first byte after the value."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class TlvArea:
    """Where an area lies in the file: `offset` is that of its header, `size` counts the header too (bytes)."""

    magic: int
    offset: int
    size: int
    entries: tuple[TlvSpan, ...]

    @property
    def end(self) -> int:
        """File offset of the first byte after the area."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Dependency:
    """The image needs at least `minimum` of the image numbered `image_id` (from 0)."""

    image_id: int
    minimum: ImageVersion

    @classmethod
    def parse(cls, text: str) -> Dependency:
        """Return what `IMAGE,VERSION` says, e.g. `0,1.2.3+0`. Raises `ImageError`."""
        number, comma, version = text.strip().removeprefix("(").removesuffix(")").partition(",")
        number = number.strip()
        if not comma or not (number.isascii() and number.isdecimal()) or len(number) > 8:
            raise ImageError("not a dependency", expected="IMAGE,VERSION, such as 0,1.2.3+4", found=ascii(text[:48]))
        return cls(int(number), ImageVersion.parse(version.strip()))

    @classmethod
    def unpack(cls, value: bytes) -> Dependency:
        """Return the dependency in a TLV's value. Raises `TlvError` unless it has 12 bytes."""
        if len(value) != DEPENDENCY_SIZE:
            raise TlvError("bad length of a dependency", expected=f"{DEPENDENCY_SIZE} bytes", found=len(value))
        return cls(value[0], ImageVersion.unpack(value[4:]))

    def pack(self) -> bytes:
        """Return the TLV's value. Raises `TlvError` when the image number is no byte."""
        if not 0 <= self.image_id <= 0xFF:
            raise TlvError("the image number is out of range", expected="0 to 255", found=self.image_id)
        return bytes((self.image_id, 0, 0, 0)) + self.minimum.pack()


def walk_area(data: Buffer, offset: int, magic: int) -> TlvArea:
    """Return where the entries of the area at `offset` lie.

    Raises `TruncatedImage` when the area ends outside the file, `TlvError` for another magic, a size below its own
    header and an entry that leaves the area. Nothing is copied, so a hostile length costs nothing.
    """
    if offset + AREA_HEADER_SIZE > len(data):
        raise TruncatedImage(
            "the file ends before its TLVs",
            offset=offset,
            expected=f"{offset + AREA_HEADER_SIZE} bytes",
            found=len(data),
        )
    found, size = _AREA.unpack_from(data, offset)
    if found != magic:
        raise TlvError("bad magic of a TLV area", offset=offset, expected=f"{magic:#x}", found=f"{found:#06x}")
    if size < AREA_HEADER_SIZE:
        raise TlvError(
            "the TLV area says that it is shorter than its header",
            offset=offset + 2,
            expected=f"at least {AREA_HEADER_SIZE}",
            found=size,
        )
    end = offset + size
    if end > len(data):
        raise TruncatedImage(
            "the TLV area ends outside the file", offset=offset, expected=f"{end} bytes", found=len(data)
        )
    entries: list[TlvSpan] = []
    position = offset + AREA_HEADER_SIZE
    while position < end:
        if position + TLV_HEADER_SIZE > end:
            raise TlvError(
                "the TLV area ends inside the header of an entry",
                offset=position,
                expected=f"{TLV_HEADER_SIZE} bytes",
                found=end - position,
            )
        kind, length = _TLV.unpack_from(data, position)
        span = TlvSpan(kind, position + TLV_HEADER_SIZE, length)
        if span.end > end:
            raise TlvError(
                f"an entry of type {kind:#06x} leaves its TLV area",
                offset=position,
                expected=f"at most {end - span.offset} bytes",
                found=length,
            )
        entries.append(span)
        position = span.end
    return TlvArea(magic, offset, size, tuple(entries))


def pack_area(magic: int, entries: Iterable[Tlv]) -> bytes:
    """Return an area with its header. Raises `TlvError` when it gets too long for its u16 size."""
    body = bytearray()
    for entry in entries:
        if not 0 <= entry.kind <= 0xFFFF or len(entry.value) > AREA_SIZE_MAX:
            raise TlvError("a TLV does not fit its fields", expected="a u16 type and length", found=entry.name)
        body += _TLV.pack(entry.kind, len(entry.value))
        body += entry.value
    size = AREA_HEADER_SIZE + len(body)
    if size > AREA_SIZE_MAX:
        raise TlvError("the TLV area is too long", expected=f"at most {AREA_SIZE_MAX} bytes", found=size)
    return _AREA.pack(magic, size) + bytes(body)
