"""What `inspect()` says of Nuvoton files: a program for APROM, a loader, a descriptor or trailer read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from flota.images.esp_inspection import finding_of
from flota.images.markers import find_markers
from flota.images.model import Finding, ImageError, ImageFormat, Inspection, Property, Region
from flota.images.nuvoton.aprom import (
    VECTORS_SIZE,
    ApromProgram,
    Place,
    looks_like_program,
    loses_last_byte,
    parse_program,
)
from flota.images.nuvoton.descriptor import (
    DESCRIPTOR_SIZE,
    SIGNATURE_TYPE,
    has_magic,
    parse_descriptor,
    parse_trailer,
)
from flota.images.nuvoton.flash_map import (
    APP_SIZE,
    APROM_AREAS,
    APROM_SIZE,
    CLONER_ADDR,
    DESCRIPTOR_ADDR,
    LDROM_ADDR,
    PAGE_SIZE,
)
from flota.images.nuvoton.version import AppVersion

Buffer = bytes | memoryview

_TRAILER_START: Final = SIGNATURE_TYPE.encode("ascii") + b"\0"
_PAD_HINT: Final = "Pad it: `flota image pack m487 FILE -o OUT`."
_WHERE: Final = {
    Place.CLONER: f"a programmer writes it to APROM {CLONER_ADDR:#x}",
    Place.LOADER: f"a programmer writes it to LDROM, {LDROM_ADDR:#x}",
}


def looks_like_nuvoton(data: Buffer) -> bool:
    """Say whether `data` begins as one of these files does."""
    return has_magic(data) or bytes(data[: len(_TRAILER_START)]) == _TRAILER_START or looks_like_program(data)


def inspect_nuvoton(data: Buffer) -> Inspection:
    """Return what such a file says; a broken one has error findings. Never raises."""
    if has_magic(data):
        return _inspect_descriptor(data)
    if bytes(data[: len(_TRAILER_START)]) == _TRAILER_START:
        return _inspect_trailer(data)
    try:
        program = parse_program(data)
    except ImageError as error:
        return _inspection(data, ImageFormat.NUVOTON_APROM, findings=(finding_of(error),))
    return _inspect_program(data, program)


def version_inside(markers: dict[str, str]) -> str | None:
    """Return the version that our own marker in a program says, None without one.

    The vendor's programs have it compiled in as three numbers, which nothing marks.
    """
    try:
        return str(AppVersion.parse(markers.get("version", "")))
    except ImageError:
        return None


def _inspect_program(data: Buffer, program: ApromProgram) -> Inspection:
    rows = [
        Property("linked for", str(program.place)),
        Property("stack", f"from {program.initial_stack:#010x} down"),
        Property("entry", f"{program.entry:#x}"),
    ]
    if program.place is not Place.APP:
        note = Finding("note", "loader", f"the {program.place}: {_WHERE[program.place]}, never an update")
        return _inspection(data, ImageFormat.NUVOTON_BOOT, rows, _program_regions(data, program), (note,))
    findings: list[Finding] = []
    markers = find_markers(data)
    version = version_inside(markers)
    regions = _program_regions(data, program)
    if version is None:
        text = "no header, no version inside: the release says it"
        findings.append(Finding("note", "no-version", text))
    else:
        rows.append(Property("version inside", version))
    if len(data) == APROM_SIZE and has_magic(memoryview(data)[DESCRIPTOR_ADDR:]):
        rows += _descriptor_rows(memoryview(data)[DESCRIPTOR_ADDR:])
        regions = [Region(area.name, area.offset, area.size, area.kind, area.offset) for area in APROM_AREAS]
        findings.append(
            Finding(
                "warning",
                "whole-aprom",
                "the whole flash of a device, its key and certificates with it",
                APP_SIZE,
                hint="Ship the application as the build made it, and keep this file to yourself.",
            )
        )
    elif loses_last_byte(len(data)):
        findings.append(
            Finding(
                "warning",
                "clone-drops-last-byte",
                "the Cloner leaves out the last byte of a file of this length",
                len(data) - 1,
                "any length but k x 4096 + 1",
                f"{len(data)} bytes",
                _PAD_HINT,
            )
        )
    return _inspection(data, ImageFormat.NUVOTON_APROM, rows, regions, findings, version=version, markers=markers)


def _program_regions(data: Buffer, program: ApromProgram) -> list[Region]:
    start = {Place.APP: 0, Place.CLONER: CLONER_ADDR, Place.LOADER: LDROM_ADDR}[program.place]
    body = len(bytes(data).rstrip(b"\xff")) if len(data) % PAGE_SIZE == 0 else len(data)
    body = max(body, VECTORS_SIZE)
    regions = [
        Region("vectors", 0, VECTORS_SIZE, "header", start),
        Region("program", VECTORS_SIZE, body - VECTORS_SIZE, "app", start + VECTORS_SIZE),
        Region("padding", body, len(data) - body, "padding", start + body),
    ]
    return [region for region in regions if region.size]


def _inspect_descriptor(data: Buffer) -> Inspection:
    try:
        rows = tuple(_descriptor_rows(data))
    except ImageError as error:
        return _inspection(data, ImageFormat.NUVOTON_DESCRIPTOR, findings=(finding_of(error),))
    note = Finding("note", "descriptor", "what a device keeps about its update: read back, never shipped")
    region = Region("descriptor", 0, DESCRIPTOR_SIZE, "otadata", DESCRIPTOR_ADDR)
    return _inspection(data, ImageFormat.NUVOTON_DESCRIPTOR, rows, (region,), (note,))


def _descriptor_rows(data: Buffer) -> Iterator[Property]:
    found = parse_descriptor(data)
    yield Property("flag", found.flag_name)
    yield Property("image", f"{found.start:#x} to {found.end:#x}, starts at {found.execute:#x}")
    yield Property("backup", f"at {found.reserved:#x} in the SPI flash" if found.reserved else "none")


def _inspect_trailer(data: Buffer) -> Inspection:
    try:
        found = parse_trailer(data)
    except ImageError as error:
        return _inspection(data, ImageFormat.NUVOTON_TRAILER, findings=(finding_of(error),))
    rows = (
        Property("signature type", found.signature_type),
        Property("signature", f"{len(found.signature)} bytes of {found.room}"),
    )
    note = Finding("note", "trailer", "the signature of a device's last update: read back, never shipped")
    return _inspection(data, ImageFormat.NUVOTON_TRAILER, rows, findings=(note,))


def _inspection(
    data: Buffer,
    image_format: ImageFormat,
    rows: Iterable[Property] = (),
    regions: Iterable[Region] = (),
    findings: Iterable[Finding] = (),
    *,
    version: str | None = None,
    markers: dict[str, str] | None = None,
) -> Inspection:
    size = len(data)
    return Inspection(
        format=image_format,
        file_size=size,
        image_size=size,
        version=version,
        properties=tuple(rows),
        regions=tuple(regions) or ((Region("content", 0, size, "raw"),) if size else ()),
        findings=tuple(findings),
        markers=find_markers(data) if markers is None else markers,
    )
