"""What `inspect()` says about an MCUboot image: facts, regions for the layout bar, findings. Never raises."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import Final

from flota.images.esp_inspection import finding_of
from flota.images.markers import find_markers
from flota.images.mcuboot.header import (
    COMPRESSED,
    ENCRYPTED,
    HAS_ADDRESS,
    HEADER_SIZE,
    NO_FLAGS,
    ImageFlag,
    McubootHeader,
    flag_names,
    parse_header,
)
from flota.images.mcuboot.image import (
    McubootLayout,
    SignedFacts,
    check_hash,
    parse_image,
    signed_facts,
    value_of,
    walk_image,
)
from flota.images.mcuboot.tlvs import (
    HASH_NAMES,
    SIGNATURE_TYPES,
    UNPROTECTED_TYPES,
    Tlv,
    TlvType,
)
from flota.images.mcuboot.trailer import MAGIC_SIZE, read_trailer
from flota.images.model import Finding, ImageError, ImageFormat, Inspection, McubootFacts, Property, Region

Buffer = bytes | memoryview

TLVS_SHOWN: Final = 64
"""An area may hold 16,000 empty entries; nobody reads more rows than this."""
DEPENDENCIES_SHOWN: Final = 8

_VECTORS: Final = struct.Struct("<II")
assert _VECTORS.size == 8
_RAM_START: Final = 0x2000_0000
_RAM_END: Final = 0x4000_0000
"""Where Cortex-M cores have their RAM, the non-secure alias 0x3000_0000 of some chips included."""

_WEAK: Final = frozenset({TlvType.ECDSA224})
_SCHEMES: Final = {
    TlvType.RSA2048_PSS: "RSA-2048 PSS",
    TlvType.RSA3072_PSS: "RSA-3072 PSS",
    TlvType.ECDSA224: "ECDSA P-224",
    TlvType.ECDSA_SIG: "ECDSA",
    TlvType.ED25519: "Ed25519",
}


def inspect_mcuboot(data: Buffer) -> Inspection:
    """Return what the file `data`, which begins with the magic of an MCUboot image, says; damage is in the findings."""
    try:
        layout = walk_image(data)
    except ImageError as error:
        return _broken(data, error)
    findings: list[Finding] = []
    digest = _checked(data, layout, findings)
    facts: SignedFacts | None = None
    try:
        facts = signed_facts(parse_image(data))
    except ImageError as error:
        findings.append(finding_of(error))
    findings += _remarks(data, layout)
    return Inspection(
        format=ImageFormat.MCUBOOT,
        file_size=len(data),
        image_size=layout.image_size,
        version=str(layout.header.version),
        validation_hash=digest.hex() if digest else None,
        secure_version=facts.security_counter if facts else None,
        mcuboot=_boot_facts(data, layout),
        properties=(
            *_header_rows(layout.header),
            *_signed_rows(facts),
            *_tlv_rows(data, layout),
            *_trailer_rows(data, layout),
        ),
        regions=tuple(_regions(data, layout)),
        findings=tuple(findings),
        markers=find_markers(data),
    )


def _boot_facts(data: Buffer, layout: McubootLayout) -> McubootFacts:
    header = layout.header
    kinds = (span.kind for span in layout.unprotected.entries[:TLVS_SHOWN])
    schemes = dict.fromkeys(Tlv(kind, b"").name for kind in kinds if kind in SIGNATURE_TYPES)
    flags = () if header.flags == NO_FLAGS else tuple(flag_names(header.flags).split(", "))
    return McubootFacts(header.header_size, tuple(schemes), flags, _entry(data, header))


def _entry(data: Buffer, header: McubootHeader) -> int | None:
    """Return where the firmware starts if it begins as a Cortex-M program does: a stack in RAM, an odd address."""
    if header.image_size < _VECTORS.size:
        return None
    stack, reset = _VECTORS.unpack_from(data, header.header_size)
    return reset - 1 if _RAM_START <= stack <= _RAM_END and stack % 4 == 0 and reset % 2 == 1 else None


def _broken(data: Buffer, error: ImageError) -> Inspection:
    rows: tuple[Property, ...] = ()
    version: str | None = None
    try:
        header = parse_header(data)
    except ImageError:
        pass
    else:
        rows, version = tuple(_header_rows(header)), str(header.version)
    return Inspection(
        format=ImageFormat.MCUBOOT,
        file_size=len(data),
        image_size=len(data),
        version=version,
        properties=rows,
        regions=(Region("content", 0, len(data), "raw"),),
        findings=(finding_of(error),),
        markers=find_markers(data),
    )


def _checked(data: Buffer, layout: McubootLayout, findings: list[Finding]) -> bytes | None:
    """Check the hash; returns the one that a device reports, None if it cannot be said or the image is damaged."""
    try:
        digest = check_hash(data, layout)
    except ImageError as error:
        findings.append(finding_of(error))
        return None
    if digest is None:
        text = "signed whole instead of by its hash (SIG_PURE): no hash is stored"
        if layout.header.flags & ENCRYPTED:
            text = "encrypted: the hash is that of the plain text and cannot be checked here"
        findings.append(Finding("note", "hash-not-checked", text, layout.unprotected.offset))
    return digest


def _remarks(data: Buffer, layout: McubootLayout) -> Iterator[Finding]:
    header, entries = layout.header, layout.unprotected.entries
    kinds = [span.kind for span in entries]
    signatures = [span for span in entries if span.kind in SIGNATURE_TYPES]
    if not signatures:
        yield Finding(
            "warning",
            "not-signed",
            "no signature: only a boot loader without keys takes this image",
            layout.unprotected.offset,
            hint="Sign it: flota image pack mcuboot FILE --key KEY …",
        )
    elif TlvType.KEYHASH not in kinds and TlvType.PUBKEY not in kinds:
        yield Finding(
            "warning", "no-key", "the signature names no key; only boot loaders with one built-in key take it",
            signatures[0].offset,
        )  # fmt: skip
    for span in entries[:TLVS_SHOWN]:
        if span.kind in _WEAK:
            yield Finding("error", "weak-signature", "a signature that no boot loader supports any more", span.offset)
        if span.kind not in UNPROTECTED_TYPES:
            yield Finding(
                "warning",
                "unprotected-field",
                f"{Tlv(span.kind, b'').name} stands in the unprotected TLVs, where anybody could have put it",
                span.offset,
                hint="It counts for nothing here; it belongs into the protected TLVs.",
            )
    if header.flags & ENCRYPTED == ENCRYPTED or header.flags & COMPRESSED == COMPRESSED:
        yield Finding(
            "error", "contradictory-flags", "flags that exclude each other", 16, None, flag_names(header.flags)
        )
    if header.flags & ImageFlag.NON_BOOTABLE:
        yield Finding("note", "non-bootable", "no program of its own: the boot loader does not start it", 16)
    if not header.image_size:
        yield Finding("error", "no-firmware", "the image holds no firmware", 12)
    yield from _behind(data, layout)


def _behind(data: Buffer, layout: McubootLayout) -> Iterator[Finding]:
    rest = memoryview(data)[layout.image_size :]
    if not rest:
        return
    if read_trailer(data) is None:
        plain = bytes(rest).strip(b"\xff") == b"" or bytes(rest).strip(b"\0") == b""
        text = f"{len(rest)} bytes follow the image; no device checks them"
        yield Finding("note" if plain else "warning", "trailing-bytes", text, layout.image_size)
    else:
        yield Finding(
            "note",
            "filled-slot",
            "padded to a whole slot with its trailer, for a programmer",
            layout.image_size,
            hint=f"Over the air the first {layout.image_size} bytes are enough; the device writes the trailer.",
        )


def _header_rows(header: McubootHeader) -> Iterator[Property]:
    yield Property("version", str(header.version))
    yield Property("header size", f"{header.header_size:#x}")
    yield Property("firmware", f"{header.image_size} bytes")
    yield Property("flags", flag_names(header.flags))
    if header.flags & HAS_ADDRESS or header.load_address:
        what = "loaded to RAM at" if header.flags & ImageFlag.RAM_LOAD else "built for flash at"
        yield Property(
            what if header.flags & HAS_ADDRESS else "load address (not used)", f"{header.load_address:#010x}"
        )


def _signed_rows(facts: SignedFacts | None) -> Iterator[Property]:
    if facts is None:
        return
    if facts.security_counter is not None:
        yield Property("security counter", str(facts.security_counter))
    for one in facts.dependencies[:DEPENDENCIES_SHOWN]:
        yield Property(f"needs image {one.image_id}", f"at least {one.minimum}")
    if facts.boot_record is not None:
        yield Property("boot record", f"{len(facts.boot_record)} bytes")
    for name, value in (("vendor id", facts.vendor_id), ("class id", facts.class_id)):
        if value is not None:
            yield Property(name, value.hex())


def _tlv_rows(data: Buffer, layout: McubootLayout) -> Iterator[Property]:
    for area in (layout.protected, layout.unprotected):
        if area is None:
            continue
        title = "protected TLV" if area is layout.protected else "TLV"
        seen: Counter[int] = Counter()
        for span in area.entries[:TLVS_SHOWN]:
            seen[span.kind] += 1
            again = f" ({seen[span.kind]})" if seen[span.kind] > 1 else ""
            yield Property(f"{title} {Tlv(span.kind, b'').name}{again}", _shown(span.kind, value_of(data, span)))
        if len(area.entries) > TLVS_SHOWN:
            yield Property(f"{title}s not shown", str(len(area.entries) - TLVS_SHOWN))


def _shown(kind: int, value: bytes) -> str:
    if kind in HASH_NAMES or kind == TlvType.KEYHASH:
        return value[:64].hex()
    if kind in SIGNATURE_TYPES:
        return f"{_SCHEMES[TlvType(kind)]}, {len(value)} bytes"
    return f"{len(value)} bytes"


def _trailer_rows(data: Buffer, layout: McubootLayout) -> Iterator[Property]:
    trailer = read_trailer(data) if len(data) >= layout.image_size + MAGIC_SIZE else None
    if trailer:
        state = "confirmed" if trailer.image_ok else "to be tried once, then confirmed or reverted"
        yield Property("trailer", f"{state} (cells of {trailer.cell} bytes)")


def _regions(data: Buffer, layout: McubootLayout) -> Iterator[Region]:
    header = layout.header
    yield Region("header", 0, HEADER_SIZE, "header")
    if header.header_size > HEADER_SIZE:
        yield Region("header padding", HEADER_SIZE, header.header_size - HEADER_SIZE, "padding")
    address = header.load_address + header.header_size if header.flags & HAS_ADDRESS else None
    yield Region("firmware", header.header_size, header.image_size, "app", address)
    if layout.protected is not None:
        yield Region("protected TLVs", layout.protected.offset, layout.protected.size, "tlv")
    yield Region("TLVs", layout.unprotected.offset, layout.unprotected.size, "signature")
    rest = len(data) - layout.image_size
    if rest and read_trailer(data) is not None and rest >= MAGIC_SIZE:
        yield Region("padding", layout.image_size, rest - MAGIC_SIZE, "padding")
        yield Region("trailer magic", len(data) - MAGIC_SIZE, MAGIC_SIZE, "trailer")
    elif rest:
        yield Region("after the image", layout.image_size, rest, "trailing")
