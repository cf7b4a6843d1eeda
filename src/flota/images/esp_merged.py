"""Merged images: boot loader, partition table and app in one file, as a programmer writes it to flash address 0.

They are not update images, and on chips whose boot loader lies at offset 0 the first byte does not tell them apart.
Source: docs/reference/esp-image.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flota.images.esp_app import IMAGE_MAGIC, EspImageLayout, parse_header, walk_image
from flota.images.esp_chips import CHIPS, EspChip
from flota.images.esp_partitions.binary import ENTRY_MAGIC, parse_table
from flota.images.esp_partitions.errors import PartitionTableError
from flota.images.esp_partitions.table import (
    DEFAULT_TABLE_OFFSET,
    TABLE_SECTOR_SIZE,
    TABLE_SIZE,
    Partition,
    PartitionTable,
)
from flota.images.model import ImageError

Buffer = bytes | memoryview

BOOTLOADER_OFFSETS: Final = tuple(sorted({chip.bootloader_offset for chip in CHIPS.values()}))
TABLE_SEARCH_END: Final = 0x40000
"""Tables are looked for at sector boundaries below this flash offset (bytes); 0x8000 is the usual place."""


@dataclass(frozen=True, slots=True)
class MergedApp:
    """An app inside a merged image: in which partition, and its layout (offsets count from `partition.offset`)."""

    partition: Partition
    layout: EspImageLayout


@dataclass(frozen=True, slots=True)
class EspMergedImage:
    """What lies where in a merged image. Offsets in bytes; `bootloader_layout` is None when that one is broken."""

    chip: EspChip
    bootloader_offset: int
    bootloader_layout: EspImageLayout | None
    table_offset: int
    table: PartitionTable
    apps: tuple[MergedApp, ...]


def find_merged(data: Buffer) -> EspMergedImage | None:
    """Return what the merged image `data` holds, or None when it is not one.

    It is one when a boot loader stands at its chip's boot loader offset and a partition table at a sector boundary
    behind it. A partition table inside the first image (as data of an app) does not count.
    """
    view = memoryview(data)
    for offset in BOOTLOADER_OFFSETS:
        if len(view) <= offset or view[offset] != IMAGE_MAGIC:
            continue
        try:
            header, _ = parse_header(view[offset:])
        except ImageError:
            continue
        chip = header.chip
        if chip is None or chip.bootloader_offset != offset:
            continue
        bootloader = _layout(view[offset:])
        found = _find_table(view, after=offset + (bootloader.image_size if bootloader else 0))
        if found:
            table_offset, table = found
            return EspMergedImage(chip, offset, bootloader, table_offset, table, _apps(view, table))
    return None


def _find_table(view: memoryview, *, after: int) -> tuple[int, PartitionTable] | None:
    places = [DEFAULT_TABLE_OFFSET, *range(TABLE_SECTOR_SIZE, TABLE_SEARCH_END, TABLE_SECTOR_SIZE)]
    for offset in places:
        if offset < after or bytes(view[offset : offset + 2]) != ENTRY_MAGIC:
            continue
        try:
            return offset, parse_table(view[offset : offset + TABLE_SIZE])
        except PartitionTableError:
            continue
    return None


def _apps(view: memoryview, table: PartitionTable) -> tuple[MergedApp, ...]:
    apps: list[MergedApp] = []
    for row in ([table.factory] if table.factory else []) + list(table.ota_slots):
        layout = _layout(view[row.offset : row.end])
        if layout:
            apps.append(MergedApp(row, layout))
    return tuple(apps)


def _layout(view: memoryview) -> EspImageLayout | None:
    try:
        return walk_image(view)
    except ImageError:
        return None
