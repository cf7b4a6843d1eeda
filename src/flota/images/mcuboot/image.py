"""Whole MCUboot images: bytes <-> `McubootImage`, the hash, and what the signed part says.

Layout: header, padding up to its `header_size`, payload, protected TLVs (perhaps), unprotected TLVs; behind that, in a
slot, erased flash and the trailer. Hash and signature cover everything before the unprotected TLVs.
Source: docs/reference/mcuboot.md; mcu-tools/mcuboot:boot/bootutil/src/image_validate.c and tlv.c.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from flota.images.mcuboot.header import (
    COMPRESSED,
    ENCRYPTED,
    HEADER_SIZE,
    NO_FLAGS,
    ImageFlag,
    ImageVersion,
    McubootHeader,
    pack_header,
    parse_header,
)
from flota.images.mcuboot.tlvs import (
    HASH_NAMES,
    PROTECTED_MAGIC,
    SECURITY_COUNTER_SIZE,
    UNPROTECTED_MAGIC,
    Dependency,
    Tlv,
    TlvArea,
    TlvError,
    TlvSpan,
    TlvType,
    pack_area,
    walk_area,
)
from flota.images.model import ImageError, TruncatedImage

Buffer = bytes | memoryview

IMAGE_SIZE_MAX: Final = 0xFFFF_FFFF
"""Header, payload and protected TLVs together (bytes): the boot loader adds them up in a u32."""


class HashMismatch(ImageError):
    """The hash TLV is not that of the image."""

    code = "bad-hash"


class NoHash(ImageError):
    """The image carries no hash that we know, and is not signed without one either."""

    code = "no-hash"


@dataclass(frozen=True, slots=True)
class McubootLayout:
    """Where everything lies, read without looking at the payload. `image_size` is that of the file without padding."""

    header: McubootHeader
    protected: TlvArea | None
    unprotected: TlvArea

    @property
    def image_size(self) -> int:
        """Bytes from the header to the end of the unprotected TLVs."""
        return self.unprotected.end


@dataclass(frozen=True, slots=True)
class SignedFacts:
    """What decisions may rest on once the signature is checked: header and protected TLVs, nothing else."""

    version: ImageVersion
    flags: ImageFlag
    load_address: int
    security_counter: int | None
    dependencies: tuple[Dependency, ...]
    boot_record: bytes | None
    vendor_id: bytes | None
    class_id: bytes | None


@dataclass(frozen=True, slots=True)
class McubootImage:
    """A well-formed image; sizes follow from the contents. Whether hash and signature are right is another question.

    `header_padding` is what lies between the 32 bytes of the header and the payload. `protected` is None without such
    an area (an empty one has a header that is hashed). `trailer` is what follows: padding and the trailer of a slot.
    """

    version: ImageVersion
    payload: bytes = field(repr=False)
    header_padding: bytes = field(default=b"", repr=False)
    load_address: int = 0
    flags: ImageFlag = NO_FLAGS
    reserved: int = 0
    protected: tuple[Tlv, ...] | None = None
    unprotected: tuple[Tlv, ...] = ()
    trailer: bytes = field(default=b"", repr=False)


def walk_image(data: Buffer) -> McubootLayout:
    """Return where header, payload and TLVs lie. Bytes after the image are ignored.

    Raises `TruncatedImage` when the file ends before what its headers announce, `TlvError` or `ImageError` for what no
    boot loader reads.
    """
    header = parse_header(data)
    if header.hashed_end > IMAGE_SIZE_MAX:
        raise ImageError(
            "the sizes in the header add up to more than 4 GiB",
            offset=8,
            expected=IMAGE_SIZE_MAX,
            found=header.hashed_end,
        )
    if header.payload_end > len(data):
        raise TruncatedImage(
            "the file ends inside the firmware", offset=12, expected=f"{header.payload_end} bytes", found=len(data)
        )
    protected = None
    if header.protected_size:
        protected = walk_area(data, header.payload_end, PROTECTED_MAGIC)
        if protected.size != header.protected_size:
            raise TlvError(
                "header and protected TLV area disagree about its size",
                offset=protected.offset + 2,
                expected=header.protected_size,
                found=protected.size,
            )
    return McubootLayout(header, protected, walk_area(data, header.hashed_end, UNPROTECTED_MAGIC))


def parse_image(data: Buffer) -> McubootImage:
    """Return the image at the start of `data`, and what follows it as its trailer.

    Raises as `walk_image` does. Hash and signature are not looked at: `check_hash`, `trust.mcuboot_signatures`.
    """
    layout = walk_image(data)
    header, view = layout.header, memoryview(data)
    return McubootImage(
        version=header.version,
        payload=bytes(view[header.header_size : header.payload_end]),
        header_padding=bytes(view[HEADER_SIZE : header.header_size]),
        load_address=header.load_address,
        flags=header.flags,
        reserved=header.reserved,
        protected=None if layout.protected is None else _entries(view, layout.protected),
        unprotected=_entries(view, layout.unprotected),
        trailer=bytes(view[layout.image_size :]),
    )


def pack_signed_part(image: McubootImage) -> bytes:
    """Return what hash and signature cover: header, padding, payload, protected TLVs. Raises `ImageError`."""
    protected = b"" if image.protected is None else pack_area(PROTECTED_MAGIC, image.protected)
    header = McubootHeader(
        version=image.version,
        header_size=HEADER_SIZE + len(image.header_padding),
        image_size=len(image.payload),
        protected_size=len(protected),
        load_address=image.load_address,
        flags=image.flags,
        reserved=image.reserved,
    )
    return b"".join((pack_header(header), image.header_padding, image.payload, protected))


def pack_image(image: McubootImage) -> bytes:
    """Return the bytes of `image` exactly as it says: no hash is computed. Raises `ImageError`."""
    return pack_signed_part(image) + pack_area(UNPROTECTED_MAGIC, image.unprotected) + image.trailer


def check_hash(data: Buffer, layout: McubootLayout) -> bytes | None:
    """Return the digest that the hash TLV (the first of several) and the bytes agree on.

    None means that it cannot be said: the image is encrypted (the hash is that of the plain text) or signed without a
    hash (`SIG_PURE`). Raises `HashMismatch`, or `NoHash`.
    """
    stored = [span for span in layout.unprotected.entries if span.kind in HASH_NAMES]
    if not stored:
        if any(span.kind == TlvType.SIG_PURE for span in layout.unprotected.entries):
            return None
        raise NoHash("the image has no hash, so no boot loader takes it", offset=layout.unprotected.offset)
    agreed: bytes | None = None
    for span in stored:
        digest = digest_of(data, layout, TlvType(span.kind))
        found = bytes(memoryview(data)[span.offset : span.end])
        if found != digest:
            if layout.header.flags & ENCRYPTED:
                return None
            raise HashMismatch(
                "the hash in the TLVs is not that of the image",
                offset=span.offset,
                expected=digest.hex(),
                found=found[:64].hex() or "nothing",
            )
        agreed = agreed or digest
    return agreed


def digest_of(data: Buffer, layout: McubootLayout, kind: TlvType = TlvType.SHA256) -> bytes:
    """Return the digest of the signed part by the algorithm of the hash TLV `kind`."""
    return hashlib.new(HASH_NAMES[kind], memoryview(data)[: layout.header.hashed_end]).digest()


def signed_facts(image: McubootImage) -> SignedFacts:
    """Return what the signed part of `image` says; the same fields in the unprotected TLVs are not looked at.

    Raises `TlvError` for a field of the wrong length or one that must be there once and is there twice.
    """
    entries = image.protected or ()
    counter = _only(entries, TlvType.SEC_CNT, SECURITY_COUNTER_SIZE)
    return SignedFacts(
        version=image.version,
        flags=image.flags,
        load_address=image.load_address,
        security_counter=None if counter is None else int.from_bytes(counter, "little"),
        dependencies=tuple(Dependency.unpack(entry.value) for entry in entries if entry.kind == TlvType.DEPENDENCY),
        boot_record=_only(entries, TlvType.BOOT_RECORD),
        vendor_id=_only(entries, TlvType.UUID_VID, 16),
        class_id=_only(entries, TlvType.UUID_CID, 16),
    )


def is_plain(header: McubootHeader) -> bool:
    """Say whether the payload is the firmware as it runs: neither encrypted nor compressed."""
    return not header.flags & (ENCRYPTED | COMPRESSED)


def _entries(view: memoryview, area: TlvArea) -> tuple[Tlv, ...]:
    return tuple(Tlv(span.kind, bytes(view[span.offset : span.end])) for span in area.entries)


def value_of(data: Buffer, span: TlvSpan) -> bytes:
    """Return the bytes of one entry."""
    return bytes(memoryview(data)[span.offset : span.end])


def _only(entries: tuple[Tlv, ...], kind: TlvType, size: int | None = None) -> bytes | None:
    values = [entry.value for entry in entries if entry.kind == kind]
    if not values:
        return None
    if len(values) > 1:
        raise TlvError(f"{kind.name} is there more than once", expected="once", found=len(values))
    if size is not None and len(values[0]) != size:
        raise TlvError(f"bad length of {kind.name}", expected=f"{size} bytes", found=len(values[0]))
    return values[0]
