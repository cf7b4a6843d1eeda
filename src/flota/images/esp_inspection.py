"""What `inspect()` says about ESP images and merged images: facts, regions for the layout bar, findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal

from flota.images.esp_app import (
    HASH_SIZE,
    HEADER_SIZE,
    EspImageLayout,
    SegmentSpan,
    check_checksum,
    check_hash,
    parse_header,
    walk_image,
)
from flota.images.esp_chips import CHIPS, FLASH_SIZES, SPI_MODES, EspChip, chip_name_of
from flota.images.esp_desc import EspAppDesc, EspBootloaderDesc, parse_bootloader_desc
from flota.images.esp_idf_version import is_older_release
from flota.images.esp_merged import EspMergedImage
from flota.images.esp_partitions import TABLE_SIZE, check_table
from flota.images.esp_secure_boot import SIGNATURE_SECTOR_SIZE, SignatureBlock, find_signature_blocks
from flota.images.esp_verify import app_desc_of, layout_findings
from flota.images.markers import find_markers
from flota.images.model import Finding, ImageError, ImageFormat, Inspection, Property, Region

Buffer = bytes | memoryview

_DATA_KINDS: Final = frozenset({"flash-data", "flash", "ram"})
GENERIC_PROJECT: Final = "arduino-lib-builder"
"""What every image built with the Arduino core is called: espressif/esp32-arduino-lib-builder."""
ONE_SIGNATURE_CHIP: Final = "esp32"
"""It looks at the first signature block only, the others at all three."""
_BOOTLOADER_WORD = b"bootloader"
"""In the log texts of every second-stage boot loader of ESP-IDF; those before 5.1 have no descriptor."""
_BOOTLOADER_MAX_SIZE = 256 * 1024
"""No boot loader is larger: it has to fit between its offset and the partition table (bytes)."""


def finding_of(error: ImageError) -> Finding:
    """Return the error as an error finding with the same offset, expected and found."""
    return Finding(
        "error",
        error.code,
        error.message,
        error.offset,
        None if error.expected is None else str(error.expected),
        None if error.found is None else str(error.found),
        error.hint,
    )


def inspect_esp_image(data: Buffer) -> Inspection:
    """Return what the file `data`, which begins with 0xE9, says as an ESP image; broken ones have error findings."""
    try:
        layout = walk_image(data)
    except ImageError as error:
        return _broken(data, error)
    chip = layout.header.chip
    desc = app_desc_of(data, layout)
    bootloader_desc = None if desc else _bootloader_desc(data, layout)
    image_format = _kind(data, layout, desc, bootloader_desc)
    findings: list[Finding] = []
    validation_hash = _verified(data, layout, findings)
    blocks = find_signature_blocks(data, layout.image_size) if len(data) > layout.image_size else ()
    if chip is None:
        findings.append(_unknown_chip(layout.header.chip_id))
    else:
        findings += layout_findings(layout, desc, chip, is_app=image_format is ImageFormat.ESP_APP)
    findings += _remarks(data, layout, image_format, desc, blocks)
    regions = tuple(_regions(data, layout, blocks))
    return Inspection(
        format=image_format,
        file_size=len(data),
        image_size=layout.image_size,
        chip=chip.name if chip else None,
        version=_product_text(desc, "version"),
        project=_product_text(desc, "project"),
        validation_hash=validation_hash,
        secure_version=desc.secure_version if desc else None,
        min_chip_revision=layout.header.min_chip_revision,
        idf_version=(desc.idf_version if desc else bootloader_desc.idf_version if bootloader_desc else None) or None,
        max_chip_revision=layout.header.effective_max_revision,
        signed_with=_signed_with(chip, blocks),
        properties=tuple(_properties(layout, desc, bootloader_desc, blocks)),
        regions=regions,
        findings=tuple(findings),
        markers=_markers(data, regions),
    )


def inspect_merged(data: Buffer, merged: EspMergedImage) -> Inspection:
    """Return what the merged image says; version, project and hash are those of the app inside."""
    view = memoryview(data)
    app = merged.apps[0] if merged.apps else None
    desc = app_desc_of(view[app.partition.offset :], app.layout) if app else None
    hint = "Ship the app image, not the file for the programmer."
    if app:
        hint = (
            f"Ship the app image instead: it lies in this file at {app.partition.offset:#x}, "
            f"{app.layout.image_size} bytes ({app.partition.label})."
        )
    findings = [
        Finding(
            "note",
            "merged-image",
            "a merged image (boot loader, partition table and app) for a programmer, not for an update",
            merged.table_offset,
            hint=hint,
        )
    ]
    if merged.bootloader_layout is None:
        findings.append(Finding("error", "bad-image", "the boot loader inside is broken", merged.bootloader_offset))
    findings += check_table(merged.table, table_offset=merged.table_offset)
    findings += _newer_bootloader(view[merged.bootloader_offset :], merged, desc)
    properties = [
        Property("chip", merged.chip.title),
        Property("boot loader", f"at {merged.bootloader_offset:#x}"),
        Property("partition table", f"at {merged.table_offset:#x}, {len(merged.table.partitions)} partitions"),
    ]
    properties += [Property(f"app in {one.partition.label}", f"{one.layout.image_size} bytes") for one in merged.apps]
    if desc:
        properties += [Property("version", desc.version), Property("project", desc.project)]
    return Inspection(
        format=ImageFormat.ESP_MERGED,
        file_size=len(data),
        image_size=len(data),
        chip=merged.chip.name,
        version=_product_text(desc, "version"),
        project=_product_text(desc, "project"),
        secure_version=desc.secure_version if desc else None,
        properties=tuple(properties),
        regions=tuple(_merged_regions(len(data), merged)),
        findings=tuple(findings),
        markers=find_markers(data),
    )


def _signed_with(chip: EspChip | None, blocks: tuple[SignatureBlock, ...]) -> tuple[str, ...]:
    looked_at = blocks[:1] if chip and chip.name == ONE_SIGNATURE_CHIP else blocks
    return tuple(block.key_digest for block in looked_at if block.verified and block.key_digest)


def _newer_bootloader(bootloader: memoryview, merged: EspMergedImage, app_desc: EspAppDesc | None) -> Iterator[Finding]:
    """Yield a warning when the app inside was built with an older ESP-IDF than the boot loader in front of it."""
    desc = _bootloader_desc(bootloader, merged.bootloader_layout) if merged.bootloader_layout else None
    if desc and app_desc and is_older_release(app_desc.idf_version, desc.idf_version):
        yield Finding(
            "warning",
            "idf-version",
            "the app was built with an older ESP-IDF than the boot loader, which need not start it",
            merged.bootloader_offset,
            f"{desc.idf_version} or later",
            app_desc.idf_version,
        )


def _product_text(desc: EspAppDesc | None, field: Literal["version", "project"]) -> str | None:
    """Return what the descriptor says about the product; None when it says nothing or speaks of the Arduino core."""
    if desc is None or desc.project == GENERIC_PROJECT:
        return None
    return (desc.version if field == "version" else desc.project) or None


def _broken(data: Buffer, error: ImageError) -> Inspection:
    """Return what can be said of an image whose headers do not hold together."""
    chip: EspChip | None = None
    properties: list[Property] = []
    try:
        header, count = parse_header(data)
    except ImageError:
        pass
    else:
        chip = header.chip
        properties = [Property("chip", chip_name_of(header.chip_id)), Property("segments announced", str(count))]
    return Inspection(
        format=ImageFormat.ESP_APP,
        file_size=len(data),
        image_size=len(data),
        chip=chip.name if chip else None,
        properties=tuple(properties),
        regions=(Region("content", 0, len(data), "raw"),),
        findings=(finding_of(error),),
        markers=find_markers(data),
    )


def _verified(data: Buffer, layout: EspImageLayout, findings: list[Finding]) -> str | None:
    """Check checksum and hash; returns the hash that a device reports, None if it would refuse the image."""
    checks: tuple[Callable[[Buffer, EspImageLayout], bytes | None], ...] = (check_checksum, check_hash)
    result: bytes | None = None
    for check in checks:
        try:
            result = check(data, layout)
        except ImageError as error:
            findings.append(finding_of(error))
            result = None
    return result.hex() if result else None


def _markers(data: Buffer, regions: tuple[Region, ...]) -> dict[str, str]:
    """Return the markers in what the program can read as data: not in code, padding or what follows the image."""
    found: dict[str, str] = {}
    for region in regions:
        if region.kind in _DATA_KINDS:
            found |= find_markers(data, region.start, region.end)
    return found


def _bootloader_desc(data: Buffer, layout: EspImageLayout) -> EspBootloaderDesc | None:
    first = layout.segments[0]
    return parse_bootloader_desc(memoryview(data)[first.offset : first.end])


def _kind(
    data: Buffer, layout: EspImageLayout, desc: EspAppDesc | None, bootloader_desc: EspBootloaderDesc | None
) -> ImageFormat:
    chip = layout.header.chip
    if desc or (chip and any(chip.maps(span.address) for span in layout.segments)):
        return ImageFormat.ESP_APP
    if bootloader_desc or _BOOTLOADER_WORD in bytes(memoryview(data)[: min(layout.image_size, _BOOTLOADER_MAX_SIZE)]):
        return ImageFormat.ESP_BOOTLOADER
    return ImageFormat.ESP_RAM_IMAGE


def _unknown_chip(chip_id: int) -> Finding:
    known = ", ".join(f"{number} {chip.name}" for number, chip in CHIPS.items())
    return Finding("error", "unknown-chip", "the image names a chip that we do not know", 12, known, f"{chip_id:#06x}")


def _remarks(
    data: Buffer,
    layout: EspImageLayout,
    image_format: ImageFormat,
    desc: EspAppDesc | None,
    blocks: tuple[SignatureBlock, ...],
) -> Iterator[Finding]:
    if image_format is ImageFormat.ESP_APP and desc is None:
        yield Finding(
            "warning", "no-descriptor", "no app descriptor: version, project and secure version are unknown", 32
        )
    if desc and desc.project == GENERIC_PROJECT:
        yield Finding(
            "note",
            "generic-descriptor",
            "built with the Arduino core: version and project in the app descriptor are the core's, not the product's",
            48,
        )
    if not any(span.address <= layout.header.entry < span.address + span.size for span in layout.segments):
        found = f"{layout.header.entry:#010x}"
        yield Finding("warning", "entry", "the program starts at an address that no segment holds", 4, None, found)
    if not layout.header.hash_appended:
        yield Finding("warning", "no-hash", "no SHA-256 is appended: damage is found by a one-byte checksum only", 23)
    for number, block in enumerate(blocks, start=1):
        if not block.verified:
            level: Literal["error", "warning"] = "warning" if block.verified is None else "error"
            code = block.fault_code or "secure-boot"
            yield Finding(level, code, f"signature block {number}: {block.fault}", block.offset)
    if len(blocks) > 1 and layout.header.chip and layout.header.chip.name == ONE_SIGNATURE_CHIP:
        yield Finding("note", "signature-blocks", "an ESP32 looks at the first signature block only", blocks[1].offset)
    end = blocks[0].offset + SIGNATURE_SECTOR_SIZE if blocks else layout.image_size
    rest = memoryview(data)[end:]
    if rest:
        text = f"{len(rest)} bytes follow the {'signature' if blocks else 'image'}; no device checks them"
        plain = bytes(rest).strip(b"\xff") == b"" or bytes(rest).strip(b"\0") == b""
        yield Finding("note" if plain else "warning", "trailing-bytes", text, end)


def _properties(
    layout: EspImageLayout,
    desc: EspAppDesc | None,
    bootloader_desc: EspBootloaderDesc | None,
    blocks: tuple[SignatureBlock, ...],
) -> Iterator[Property]:
    header, chip = layout.header, layout.header.chip
    yield Property("chip", chip.title if chip else chip_name_of(header.chip_id))
    if desc:
        yield Property("project", desc.project)
        yield Property("version", desc.version)
        yield Property("secure version", str(desc.secure_version))
        yield Property("built", " ".join(filter(None, (desc.date, desc.time))) or "not said")
        yield Property("ESP-IDF", desc.idf_version or "not said")
        yield Property("ELF SHA-256", desc.elf_sha256.hex() if any(desc.elf_sha256) else "not said")
    if bootloader_desc:
        yield Property("boot loader version", str(bootloader_desc.version))
        yield Property("secure version", str(bootloader_desc.secure_version))
        yield Property("ESP-IDF", bootloader_desc.idf_version)
        yield Property("built", bootloader_desc.date_time or "not said")
    yield Property("chip revisions", _revisions(header.min_chip_revision, header.effective_max_revision))
    if desc and (desc.min_efuse_block_revision or desc.max_efuse_block_revision):
        limit = desc.max_efuse_block_revision
        yield Property(
            "efuse block revisions", _revisions(desc.min_efuse_block_revision, None if limit in (0, 0xFFFF) else limit)
        )
    yield Property("flash", _flash(layout))
    yield Property("entry", f"{header.entry:#010x}")
    yield Property("image size", f"{layout.image_size} bytes")
    yield Property("appended hash", "yes" if header.hash_appended else "no")
    for number, block in enumerate(blocks, start=1):
        verified = {True: "verified", False: "does not hold", None: "not verified"}[block.verified]
        digest = f"key digest {block.key_digest}, " if block.key_digest else ""
        yield Property(f"secure boot v2 block {number}", f"{block.scheme}, {digest}{verified}")


def _revisions(minimum: int, maximum: int | None) -> str:
    low = f"v{minimum // 100}.{minimum % 100}"
    return f"{low} and later" if maximum is None else f"{low} to v{maximum // 100}.{maximum % 100}"


def _flash(layout: EspImageLayout) -> str:
    header, chip = layout.header, layout.header.chip
    mode = next((name for name, code in SPI_MODES.items() if code == header.spi_mode), f"mode {header.spi_mode:#x}")
    size = next(
        (name for name, code in FLASH_SIZES.items() if code == header.flash_size_code),
        f"size {header.flash_size_code:#x}",
    )
    speed = chip.speed_name(header.speed_code) if chip else f"{header.speed_code:#x}"
    return f"{size}, {mode.upper()}, {speed}"


def _regions(data: Buffer, layout: EspImageLayout, blocks: tuple[SignatureBlock, ...]) -> Iterator[Region]:
    yield Region("header", 0, HEADER_SIZE, "header")
    chip = layout.header.chip
    for index, span in enumerate(layout.segments):
        kind, what = _segment_kind(span, chip)
        yield Region(f"segment {index} ({what})", span.offset, span.size, kind, span.address)
    end = layout.segments[-1].end
    yield Region("checksum", end, layout.checksum_offset + 1 - end, "checksum")
    if layout.hash_offset is not None:
        yield Region("SHA-256", layout.hash_offset, HASH_SIZE, "hash")
    rest = layout.image_size
    if blocks:
        start = blocks[0].offset
        if start > rest:
            yield Region("padding", rest, start - rest, "padding")
        rest = min(len(data), start + SIGNATURE_SECTOR_SIZE)
        yield Region("signature", start, rest - start, "signature")
    if rest < len(data):
        yield Region("after the image", rest, len(data) - rest, "trailing")


def _segment_kind(span: SegmentSpan, chip: EspChip | None) -> tuple[str, str]:
    if span.address < 0x1000_0000:
        return "padding", "not loaded"
    if chip and chip.maps(span.address):
        if span.address in chip.data_map and span.address in chip.code_map:
            return "flash", "flash-mapped"
        return ("flash-data", "DROM") if span.address in chip.data_map else ("flash-code", "IROM")
    return "ram", "RAM"


def _merged_regions(size: int, merged: EspMergedImage) -> Iterator[Region]:
    bootloader = merged.bootloader_layout
    length = bootloader.image_size if bootloader else merged.table_offset - merged.bootloader_offset
    yield Region("boot loader", merged.bootloader_offset, length, "bootloader")
    yield Region("partition table", merged.table_offset, min(TABLE_SIZE, size - merged.table_offset), "partition-table")
    apps = {one.partition.offset: one.layout.image_size for one in merged.apps}
    for row in sorted(merged.table.partitions, key=lambda row: row.offset):
        if merged.table_offset < row.offset < size:
            held = min(apps.get(row.offset, row.size), size - row.offset)
            yield Region(row.label, row.offset, held, "app" if row.offset in apps else "data")
