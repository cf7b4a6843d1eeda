"""What `inspect()` says of AmebaD files: an `OTA_All.bin`, image2 of one or both cores, a boot image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from flota.images.ameba.boot_image import parse_boot_image
from flota.images.ameba.image2 import (
    KM0,
    KM4,
    XIP_ADDRESS,
    AmebaImage2,
    CoreImage,
    parse_core,
    parse_image2,
)
from flota.images.ameba.ota_file import (
    ANY_VERSION,
    IMAGE_OFFSET,
    OtaHeaders,
    byte_sum,
    is_ota_file,
    parse_ota_file,
    parse_ota_headers,
)
from flota.images.ameba.segment import BOOT_SIGNATURE, HEADER_SIZE, IMAGE2_SIGNATURE, parse_segment_header
from flota.images.markers import find_markers
from flota.images.model import Finding, ImageError, ImageFormat, Inspection, Property, Region
from flota.images.text import cleaned_text

Buffer = bytes | memoryview

CHIP: Final = "rtl8721d"
"""The chip as the vendor's SDK calls it; modules are sold as RTL8720DN, RTL8722DM and more."""

_SHIP_BOTH_HINT: Final = "Ship both cores: `flota image pack ameba --km0 FILE --km4 FILE -o OTA_All.bin`."
_PACK_HINT: Final = "Pack it first: `flota image pack ameba km0_km4_image2.bin -o OTA_All.bin`."


def looks_like_ameba(data: Buffer) -> bool:
    """Say whether `data` begins as one of the AmebaD files does."""
    start = bytes(data[:8])
    return start in {IMAGE2_SIGNATURE, BOOT_SIGNATURE} or is_ota_file(data)


def inspect_ameba(data: Buffer) -> Inspection:
    """Return what an AmebaD file says; a broken one has error findings. Never raises."""
    start = bytes(data[:8])
    if start == IMAGE2_SIGNATURE:
        return _inspect_image2(data)
    if start == BOOT_SIGNATURE:
        return _inspect_boot(data)
    return _inspect_ota(data)


def _inspect_ota(data: Buffer) -> Inspection:
    rows: list[Property] = []
    regions: list[Region] = []
    findings: list[Finding] = []
    try:
        headers = parse_ota_headers(data)
    except ImageError as error:
        return _inspection(data, ImageFormat.AMEBA_OTA, findings=(_finding(error),))
    regions.append(Region("ota header", 0, min(IMAGE_OFFSET, len(data)), "header"))
    rows += _header_rows(headers)
    try:
        parsed = parse_ota_file(data, opaque=True)
    except ImageError as error:
        return _inspection(data, ImageFormat.AMEBA_OTA, rows, regions, (_finding(error),))
    rows.append(Property("checksum", f"{parsed.header.checksum:#010x}, right"))
    rows.append(Property("sum of the file", f"{byte_sum(data):#010x}"))
    try:
        image = parse_image2(memoryview(data)[IMAGE_OFFSET:])
    except ImageError as error:
        regions.append(Region("image", IMAGE_OFFSET, len(data) - IMAGE_OFFSET, "raw"))
        findings.append(_finding(error, shift=IMAGE_OFFSET))
    else:
        more_rows, more_regions, findings = _image2_facts(image)
        rows += more_rows
        regions += (Region(r.name, r.start + IMAGE_OFFSET, r.size, r.kind, r.address) for r in more_regions)
    return replace(_inspection(data, ImageFormat.AMEBA_OTA, rows, regions, findings), image_size=parsed.header.length)


def _header_rows(headers: OtaHeaders) -> Iterable[Property]:
    version = headers.version
    yield Property("header version", "FFFFFFFF (none)" if version == ANY_VERSION else f"{version:#010x} ({version})")
    for number, header in enumerate(headers.images, 1):
        name = cleaned_text(header.image_id.rstrip(b"\0").decode("latin-1"), max_chars=8)
        address = "none" if header.flash_address == ANY_VERSION else f"{header.flash_address:#010x} (ignored)"
        yield Property(f"image {number}", f"{name}, {header.length} bytes at {header.offset:#x}, address {address}")


def _inspect_image2(data: Buffer) -> Inspection:
    """Return what image2 of both cores, or of one, says."""
    core = _core_of(data)
    try:
        image = parse_image2(data)
    except ImageError as error:
        return _one_core(data, core, error)
    rows, regions, findings = _image2_facts(image)
    findings.append(Finding("note", "not-packed", "devices take it with an OTA header before it", hint=_PACK_HINT))
    return _inspection(data, ImageFormat.AMEBA_IMAGE2, rows, regions, findings)


def _one_core(data: Buffer, core: str | None, why: ImageError) -> Inspection:
    if core is not None:
        try:
            image = parse_core(data, core, allow_unpadded=True)
        except ImageError as error:
            why = error if core == KM4 else why
        else:
            if image.padded_end >= len(data):
                note = Finding("note", "one-core", f"the image of {core} alone", hint=_SHIP_BOTH_HINT)
                rows, regions = list(_core_rows(image)), list(_core_regions(image, padded=image.end < len(data)))
                return _inspection(data, ImageFormat.AMEBA_CORE_IMAGE, rows, regions, (note,))
    return _inspection(data, ImageFormat.AMEBA_IMAGE2, findings=(_finding(why),))


def _core_of(data: Buffer) -> str | None:
    if len(data) < HEADER_SIZE:
        return None
    address = parse_segment_header(data).address
    return next((core for core, wanted in XIP_ADDRESS.items() if wanted == address), None)


def _image2_facts(image: AmebaImage2) -> tuple[list[Property], list[Region], list[Finding]]:
    rows = [*_core_rows(image.km0), *_core_rows(image.km4)]
    regions = [*_core_regions(image.km0), *_core_regions(image.km4)]
    findings = []
    if image.image3_offset is not None:
        rows.append(Property("image3", f"{image.size - image.image3_offset} bytes at {image.image3_offset:#x}"))
        regions.append(Region("image3", image.image3_offset, image.size - image.image3_offset, "image"))
    if image.km4.secure:
        text = "KM4's part is signed for secure boot; only a device with that key in its eFuses checks it"
        findings.append(Finding("note", "secure-boot", text, image.km4.secure.offset))
    return rows, regions, findings


def _core_rows(image: CoreImage) -> Iterable[Property]:
    sizes = ", ".join(f"{segment.name.split()[-1]} {segment.header.size}" for segment in image.segments)
    yield Property(image.core, f"at {image.offset:#x}, {sizes} bytes")
    if image.secure:
        yield Property(f"{image.core} secure boot", f"Ed25519 signature at {image.secure.offset + 48:#x}")


def _core_regions(image: CoreImage, *, padded: bool = True) -> Iterable[Region]:
    for segment in image.segments:
        yield Region(f"{segment.name} header", segment.offset, HEADER_SIZE, "header")
        if segment.header.size:
            yield Region(segment.name, segment.payload_offset, segment.header.size, "segment", segment.header.address)
    if image.secure:
        yield Region("secure boot", image.secure.offset, image.secure.end - image.secure.offset, "signature")
    if padded and image.padded_end > image.end:
        yield Region(f"{image.core} padding", image.end, image.padded_end - image.end, "padding")


def _inspect_boot(data: Buffer) -> Inspection:
    try:
        image = parse_boot_image(data)
    except ImageError as error:
        return _inspection(data, ImageFormat.AMEBA_BOOT, findings=(_finding(error),))
    rows = [Property("core", KM0 if image.core == KM0 else KM4)]
    if image.slot_addresses:
        first, second = image.slot_addresses
        rows.append(Property("slots", f"OTA1 at {first:#010x}, OTA2 at {second:#010x}"))
    regions = []
    for segment in image.segments:
        regions.append(Region(f"{segment.name} header", segment.offset, HEADER_SIZE, "header"))
        if segment.header.size:
            regions.append(
                Region(segment.name, segment.payload_offset, segment.header.size, "segment", segment.header.address)
            )
    note = Finding("note", "boot-image", "a boot image: written by a programmer, never over the air")
    return _inspection(data, ImageFormat.AMEBA_BOOT, rows, regions, (note,))


def _finding(error: ImageError, *, shift: int = 0) -> Finding:
    return Finding(
        "error",
        error.code,
        error.message,
        None if error.offset is None else error.offset + shift,
        None if error.expected is None else str(error.expected),
        None if error.found is None else str(error.found),
        error.hint,
    )


def _inspection(
    data: Buffer,
    image_format: ImageFormat,
    rows: Iterable[Property] = (),
    regions: Iterable[Region] = (),
    findings: Iterable[Finding] = (),
) -> Inspection:
    size = len(data)
    return Inspection(
        format=image_format,
        file_size=size,
        image_size=size,
        chip=CHIP,
        properties=tuple(rows),
        regions=tuple(regions) or ((Region("content", 0, size, "raw"),) if size else ()),
        findings=tuple(findings),
        markers=find_markers(data),
    )
