"""What lies where in a flash: regions, free space, overlaps, for a file, a partition table or a board's default table.

Source: docs/reference/esp-merged-image.md, "What lies where".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from flota.images.esp_chips import FLASH_SIZES, MIB, EspChip
from flota.images.esp_inspection import finding_of
from flota.images.esp_merged import EspMergedImage, find_merged
from flota.images.esp_partitions import (
    DEFAULT_TABLE_OFFSET,
    TABLE_SECTOR_SIZE,
    TABLE_SIZE,
    Partition,
    PartitionTable,
    check_table,
    parse_table,
)
from flota.images.esp_partitions.table import (
    SUBTYPE_DATA_NVS,
    TYPE_APP,
    TYPE_BOOTLOADER,
    TYPE_DATA,
    TYPE_PARTITION_TABLE,
)
from flota.images.flash_area import FlashArea
from flota.images.inspection import inspect
from flota.images.model import Finding, ImageError, ImageFormat

Buffer = bytes | memoryview

FREE: Final = "free"
"""The kind of a region that nothing claims."""


@dataclass(frozen=True, slots=True)
class FlashRegion:
    """The half-open range `[start, start + size)` of a flash (or of a file), in bytes.

    `used` is how many of its bytes hold something (the length of the image in a slot), None when that is not known.
    """

    name: str
    kind: str
    start: int
    size: int
    used: int | None = None

    @property
    def end(self) -> int:
        """First offset after the region."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Overlap:
    """Bytes `[start, end)` that two regions both claim."""

    first: str
    second: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FlashLayout:
    """Everything in a flash or a file.

    `regions` by rising start, without free space; `size` is that of the flash in bytes, None when nobody said it.
    """

    regions: tuple[FlashRegion, ...]
    size: int | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def claimed_end(self) -> int:
        """First offset after the last region."""
        return max((region.end for region in self.regions), default=0)

    @property
    def extent(self) -> int:
        """How much there is to draw (bytes): the flash, or more when something lies beyond it."""
        return max(self.size or 0, self.claimed_end, 1)

    @property
    def free(self) -> tuple[FlashRegion, ...]:
        """The gaps between regions, and what is left of the flash after the last one."""
        gaps: list[FlashRegion] = []
        position = 0
        for region in self.regions:
            if region.start > position:
                gaps.append(FlashRegion(FREE, FREE, position, region.start - position))
            position = max(position, region.end)
        if self.size is not None and self.size > position:
            gaps.append(FlashRegion(FREE, FREE, position, self.size - position))
        return tuple(gaps)

    @property
    def overlaps(self) -> tuple[Overlap, ...]:
        """Every pair of regions that share bytes, by rising place."""
        found: list[Overlap] = []
        for index, first in enumerate(self.regions):
            for second in self.regions[index + 1 :]:
                if second.start >= first.end:
                    break
                found.append(Overlap(first.name, second.name, second.start, min(first.end, second.end)))
        return tuple(sorted(found, key=lambda overlap: (overlap.start, overlap.end)))

    @property
    def rows(self) -> tuple[FlashRegion, ...]:
        """Regions and free space together, by rising start: what a table of the flash shows."""
        return tuple(sorted((*self.regions, *self.free), key=lambda region: (region.start, region.end)))

    def clashes(self, region: FlashRegion) -> bool:
        """Whether the region shares bytes with another, or reaches beyond the flash."""
        if region.kind == FREE:
            return False
        beyond = self.size is not None and region.end > self.size
        return beyond or any(one.start < region.end and region.start < one.end for one in self.overlaps)


def flash_bytes(code: int) -> int:
    """Return the flash size (bytes) that the high nibble of byte 3 of an image stands for."""
    return (1 << code) * MIB


def layout_of_table(
    table: PartitionTable,
    *,
    chip: EspChip | None = None,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    flash_size: int | None = None,
) -> FlashLayout:
    """Return what the table makes of a flash of `flash_size` bytes, with the table itself and the boot loader's room.

    Without `chip` it is not known where below the table the boot loader begins: all of it counts as its room.
    Findings are those of `check_table`.
    """
    start = chip.bootloader_offset if chip and chip.bootloader_offset < table_offset else 0
    regions = [FlashRegion("partition table", "partition-table", table_offset, TABLE_SECTOR_SIZE)]
    regions.append(FlashRegion("boot loader", "bootloader", start, table_offset - start))
    if start:
        regions.append(FlashRegion("reserved", "padding", 0, start))
    regions += [
        FlashRegion(row.label, _kind(row), row.offset, row.size)
        for row in table.partitions
        if not _is_system(row, regions)
    ]
    return FlashLayout(
        _sorted(regions), flash_size, check_table(table, table_offset=table_offset, flash_size=flash_size)
    )


def layout_of_file(data: Buffer, *, flash_size: int | None = None) -> FlashLayout:
    """Return what lies where in a file, whatever it is; never raises.

    A merged image or a binary partition table gives the flash that it makes (`flash_size` in bytes; a merged image
    says it itself otherwise), anything else the regions of the file, whose length is then the size.
    """
    merged = find_merged(data)
    if merged is not None:
        return _layout_of_merged(data, merged, flash_size)
    found = inspect(data)
    if found.format is ImageFormat.ESP_PARTITION_TABLE:
        try:
            return layout_of_table(parse_table(data), flash_size=flash_size)
        except ImageError as error:
            return FlashLayout((), flash_size, (finding_of(error),))
    regions = [FlashRegion(one.name, one.kind, one.start, one.size) for one in found.regions]
    return FlashLayout(_sorted(regions), len(data), found.findings)


def layout_of_areas(areas: Iterable[FlashArea], *, flash_size: int) -> FlashLayout:
    """Return a fixed flash map, such as an AmebaD board's, as a layout of `flash_size` bytes."""
    regions = [
        FlashRegion(area.name, "padding" if area.kind == "reserved" else area.kind, area.offset, area.size)
        for area in areas
    ]
    return FlashLayout(_sorted(regions), flash_size)


def layout_as_dict(layout: FlashLayout) -> dict[str, object]:
    """Return the layout as plain data for JSON: offsets and sizes are numbers (bytes)."""
    return {
        "size": layout.size,
        "end": layout.claimed_end,
        "regions": [
            {"name": r.name, "kind": r.kind, "start": r.start, "size": r.size, "end": r.end, "used": r.used}
            for r in layout.rows
        ],
        "overlaps": [{"first": o.first, "second": o.second, "start": o.start, "end": o.end} for o in layout.overlaps],
        "findings": [{"level": f.level, "code": f.code, "text": f.text, "offset": f.offset} for f in layout.findings],
    }


def size_text(size: int) -> str:
    """Return a number of bytes for people, exact: `8 MiB`, `24 KiB`, else bytes."""
    for unit, name in ((MIB, "MiB"), (1024, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def _layout_of_merged(data: Buffer, merged: EspMergedImage, flash_size: int | None) -> FlashLayout:
    header = merged.bootloader_layout.header if merged.bootloader_layout else None
    size = flash_size
    if size is None and header is not None and header.flash_size_code in FLASH_SIZES.values():
        size = flash_bytes(header.flash_size_code)
    layout = layout_of_table(merged.table, chip=merged.chip, table_offset=merged.table_offset, flash_size=size)
    used = {app.partition.offset: app.layout.image_size for app in merged.apps}
    used[merged.table_offset] = min(TABLE_SIZE, len(data) - merged.table_offset)
    if merged.bootloader_layout is not None:
        used[merged.bootloader_offset] = merged.bootloader_layout.image_size
    regions = [replace(region, used=used.get(region.start)) for region in layout.regions]
    return replace(layout, regions=tuple(regions))


def _kind(row: Partition) -> str:
    if row.type == TYPE_APP:
        return "app"
    if row.type == TYPE_BOOTLOADER:
        return "bootloader"
    if row.type == TYPE_PARTITION_TABLE:
        return "partition-table"
    if row.kind in ("data/ota", "data/tee_ota"):
        return "otadata"
    return "nvs" if (row.type, row.subtype) == (TYPE_DATA, SUBTYPE_DATA_NVS) else "data"


def _is_system(row: Partition, known: Sequence[FlashRegion]) -> bool:
    """Whether the row only repeats where the primary boot loader or table lies."""
    return row.type in (TYPE_BOOTLOADER, TYPE_PARTITION_TABLE) and any(one.start == row.offset for one in known)


def _sorted(regions: Iterable[FlashRegion]) -> tuple[FlashRegion, ...]:
    return tuple(sorted((one for one in regions if one.size), key=lambda region: (region.start, region.end)))
