"""`inspect()`: tell what a file is, read what it says, and name everything that is wrong with it. Never raises.

Which format it is, is decided by the bytes alone, in this order: an MCUboot image, an AmebaD file, a program or record
of a Nuvoton board, an ESP image (or a merged one, or an ESP8266 one), a partition table, otadata, NVS, the other known
kinds of files, raw bytes.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Final

from flota.images import blynk_tag
from flota.images.ameba.inspection import inspect_ameba, looks_like_ameba
from flota.images.esp8266 import APP_OFFSET, find_esp8266_segments
from flota.images.esp_app import IMAGE_MAGIC, parse_header, walk_image
from flota.images.esp_inspection import finding_of, inspect_esp_image, inspect_merged
from flota.images.esp_merged import BOOTLOADER_OFFSETS, find_merged
from flota.images.esp_nvs import looks_like_nvs
from flota.images.esp_nvs_inspection import inspect_nvs
from flota.images.esp_otadata import ENTRY_OFFSETS, looks_like_otadata, parse_otadata, state_name
from flota.images.esp_partitions import PartitionTableError, check_table, parse_table
from flota.images.esp_partitions.binary import ENTRY_MAGIC
from flota.images.esp_partitions.table import TABLE_SIZE
from flota.images.markers import find_markers
from flota.images.mcuboot.header import is_mcuboot
from flota.images.mcuboot.inspection import inspect_mcuboot
from flota.images.model import Finding, ImageError, ImageFormat, Inspection, Property, Region, TruncatedImage
from flota.images.nuvoton.inspection import inspect_nuvoton, looks_like_nuvoton
from flota.images.other_files import recognise
from flota.images.packed_files import unpacked_members
from flota.images.text import cleaned_text

Buffer = bytes | memoryview

NAME_MAX_CHARS: Final = 128
VALUE_MAX_CHARS: Final = blynk_tag.VALUE_MAX_BYTES


def inspect(data: Buffer, *, name: str = "") -> Inspection:
    """Return what `data` (a whole file) is and says.

    `name` is the file's name, only shown. Any bytes give an answer: a broken image has its format and error findings,
    bytes of no known format are `RAW`.
    """
    found = _with_firmware_tag(_inspect_by_content(data), data)
    if not name:
        return found
    shown = Property("file", cleaned_text(name, max_chars=NAME_MAX_CHARS))
    return replace(found, properties=(shown, *found.properties))


def inspection_as_dict(inspection: Inspection) -> dict[str, object]:
    """Return `inspection` as plain data for JSON: numbers stay numbers, absent facts are null."""
    plain: dict[str, Any] = asdict(inspection)
    plain["format"] = inspection.format.value
    plain["properties"] = {row.name: row.value for row in inspection.properties}
    plain["regions"] = [
        {"name": r.name, "kind": r.kind, "start": r.start, "size": r.size, "address": r.address}
        for r in inspection.regions
    ]
    plain["findings"] = [
        {key: value for key, value in asdict(finding).items() if value is not None} for finding in inspection.findings
    ]
    plain["ok"] = not inspection.errors
    return plain


def _with_firmware_tag(found: Inspection, data: Buffer) -> Inspection:
    """Add what a Blynk firmware tag says: one in the raw bytes, else the first in what is packed in the file."""
    tags: tuple[blynk_tag.FoundTag, ...] = ()
    findings: tuple[Finding, ...] = ()
    where, searched = "", data
    if blynk_tag.may_hold_tag(data):
        tags = blynk_tag.find_tags(data)
        findings = tuple(blynk_tag.tag_findings(data, tags))
    if not tags:
        for name, content in unpacked_members(data):
            tags = blynk_tag.find_tags(content)
            if tags:
                where, searched = f" of {cleaned_text(name)}, packed in the file", content
                break
    if not tags:
        return replace(found, findings=(*found.findings, *findings)) if findings else found
    first = tags[0]
    if where:
        findings = tuple(replace(finding, offset=None) for finding in blynk_tag.tag_findings(searched, tags))
    said = {
        cleaned_text(key): cleaned_text(value, max_chars=VALUE_MAX_CHARS) for key, value in first.tag.as_dict().items()
    }
    rows = [Property("firmware tag", f"{first.size} bytes at {first.offset:#x}{where}")]
    rows += (Property(f"tag {key}", value) for key, value in said.items())
    return replace(
        found,
        version=found.version or said.get(blynk_tag.MCU_KEY) or said.get(blynk_tag.NCP_KEY),
        firmware_tag=said,
        properties=(*found.properties, *rows),
        findings=(*found.findings, *findings),
    )


def _inspect_by_content(data: Buffer) -> Inspection:
    if not data:
        return _other(data, ImageFormat.RAW, findings=(Finding("error", "empty", "the file is empty"),))
    if is_mcuboot(data):
        return inspect_mcuboot(data)
    if looks_like_ameba(data):
        return inspect_ameba(data)
    if looks_like_nuvoton(data):
        return inspect_nuvoton(data)
    if any(len(data) > offset and data[offset] == IMAGE_MAGIC for offset in BOOTLOADER_OFFSETS):
        merged = find_merged(data)
        if merged:
            return inspect_merged(data, merged)
    if data[0] == IMAGE_MAGIC:
        found = _esp_image_or_esp8266(data)
        if found:
            return found
    if bytes(data[:2]) == ENTRY_MAGIC:
        return _partition_table(data)
    if looks_like_otadata(data):
        return _otadata(data)
    if looks_like_nvs(data):
        return inspect_nvs(data)
    other = recognise(data)
    if other:
        note = Finding(
            "note",
            "other-file",
            f"this is no image for a device but a file of the kind {other.format}",
            hint=other.hint,
        )
        return _other(data, other.format, properties=other.properties, findings=(note,))
    return _other(data, ImageFormat.RAW)


def _esp_image_or_esp8266(data: Buffer) -> Inspection | None:
    """Return what a file that begins with 0xE9 is, None when it is neither image (the byte alone says little)."""
    try:
        walk_image(data)
    except ImageError:
        return _esp8266(data) or _broken_esp_image(data)
    return inspect_esp_image(data)


def _broken_esp_image(data: Buffer) -> Inspection | None:
    """Return what can be said of an ESP image that does not hold together, None when its header names no known chip."""
    try:
        header, _ = parse_header(data)
    except TruncatedImage:
        return inspect_esp_image(data)
    except ImageError:
        return None
    return inspect_esp_image(data) if header.chip else None


def _esp8266(data: Buffer) -> Inspection | None:
    segments = find_esp8266_segments(data)
    if segments is None:
        return None
    segments += find_esp8266_segments(data, APP_OFFSET) or ()
    regions = tuple(
        Region(f"segment {index}", s.offset, s.size, "segment", s.address) for index, s in enumerate(segments)
    )
    note = Finding("note", "other-chip", "an image for the ESP8266, which has no extended header and no hash")
    found = _other(data, ImageFormat.ESP8266_APP, findings=(note,))
    return replace(found, chip="esp8266", regions=regions)


def _partition_table(data: Buffer) -> Inspection:
    try:
        table = parse_table(data)
    except PartitionTableError as error:
        return _other(data, ImageFormat.ESP_PARTITION_TABLE, findings=(finding_of(error),))
    rows = tuple(Property(row.label, f"{row.kind} at {row.offset:#x}, {row.size:#x} bytes") for row in table.partitions)
    regions = (Region("rows", 0, 32 * len(table.partitions), "partition-table"),)
    return replace(
        _other(data, ImageFormat.ESP_PARTITION_TABLE, properties=rows, findings=check_table(table)),
        image_size=min(TABLE_SIZE, len(data)),
        regions=regions,
    )


def _otadata(data: Buffer) -> Inspection:
    entries = parse_otadata(data)
    rows = tuple(
        Property(
            f"entry {index}",
            "blank"
            if entry.blank
            else f"seq {entry.seq}, {state_name(entry.state)}, CRC {'right' if entry.crc_ok else 'wrong'}",
        )
        for index, entry in enumerate(entries)
    )
    regions = tuple(Region(f"entry {index}", offset, 32, "otadata") for index, offset in enumerate(ENTRY_OFFSETS))
    return replace(_other(data, ImageFormat.ESP_OTADATA, properties=rows), regions=regions)


def _other(
    data: Buffer,
    image_format: ImageFormat,
    *,
    properties: tuple[Property, ...] = (),
    findings: tuple[Finding, ...] = (),
) -> Inspection:
    size = len(data)
    return Inspection(
        format=image_format,
        file_size=size,
        image_size=size,
        properties=properties,
        regions=(Region("content", 0, size, "raw"),) if size else (),
        findings=findings,
        markers=find_markers(data),
    )
