"""What makes a partition table usable on a device, and what is worth a warning.

Source: docs/reference/esp-partitions.md; espressif/esp-idf:components/partition_table/gen_esp32part.py (`verify`).
The warnings about OTA slots are ours: they name what a fleet stumbles over.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from flota.images.esp_partitions.errors import (
    LAYOUT_ERRORS,
    BadAppSize,
    BadOtadataSize,
    BelowTable,
    BeyondFlash,
    DuplicateName,
    EmptyPartition,
    MisalignedPartition,
    NvsTooSmall,
    PartitionsOverlap,
    PartitionTableError,
    ReadonlyNotAllowed,
    SeveralOtadata,
    TooManyPartitions,
)
from flota.images.esp_partitions.table import (
    APP_ALIGNMENT,
    DATA_ALIGNMENT,
    DEFAULT_TABLE_OFFSET,
    ENTRY_SIZE,
    FLAG_ENCRYPTED,
    FLAG_READONLY,
    LABEL_MAX_BYTES,
    SUBTYPE_DATA_COREDUMP,
    SUBTYPE_DATA_NVS,
    SUBTYPE_DATA_OTA,
    SUBTYPE_DATA_TEE_OTA,
    SUBTYPE_OTA_FIRST,
    SUBTYPE_PRIMARY,
    SUBTYPES,
    TABLE_SECTOR_SIZE,
    TABLE_SIZE,
    TYPE_APP,
    TYPE_BOOTLOADER,
    TYPE_DATA,
    TYPE_PARTITION_TABLE,
    TYPES,
    Partition,
    PartitionTable,
    alignment_of,
)
from flota.images.model import Finding

OTADATA_SIZE: Final = 0x2000
NVS_MIN_SIZE: Final = 0x3000
SLOT_MAX_SIZE: Final = 16 * 1024 * 1024
"""The image verifier refuses larger app partitions (bytes)."""


def check_table(
    table: PartitionTable,
    *,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    flash_size: int | None = None,
    secure_boot_v1: bool = False,
) -> tuple[Finding, ...]:
    """Return everything wrong (errors) or doubtful (warnings) with a table that lies at `table_offset` (bytes).

    With `flash_size` (bytes) the partitions must fit it. `secure_boot_v1` asks for app sizes that it can sign. The
    `code` of an error is that of its class in `esp_partitions.errors`.
    """
    app_granule = APP_ALIGNMENT if secure_boot_v1 else DATA_ALIGNMENT
    findings = list(_length(table))
    findings += [finding for row in table.partitions for finding in _row_findings(row, table_offset, app_granule)]
    findings += _overlaps(table)
    findings += _names(table)
    findings += _otadata(table)
    findings += _slots(table)
    if flash_size is not None and table.end > flash_size:
        last = max(table.partitions, key=lambda row: row.end)
        text = f"partition {last.label!r} ends beyond the flash"
        findings.append(_error(BeyondFlash, text, last.offset, hex(flash_size), hex(last.end)))
    return tuple(findings)


def require_valid(
    table: PartitionTable,
    *,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    flash_size: int | None = None,
    secure_boot_v1: bool = False,
) -> PartitionTable:
    """Return `table` if `check_table` finds no error in it; else raise the error class of the first one."""
    findings = check_table(table, table_offset=table_offset, flash_size=flash_size, secure_boot_v1=secure_boot_v1)
    for finding in findings:
        if finding.level == "error":
            raise LAYOUT_ERRORS[finding.code](
                finding.text, offset=finding.offset, expected=finding.expected, found=finding.found, hint=finding.hint
            )
    return table


def _error(kind: type[PartitionTableError], text: str, offset: int | None, expected: str, found: str) -> Finding:
    return Finding("error", kind.code, text, offset, expected, found)


def _length(table: PartitionTable) -> Iterator[Finding]:
    """Yield an error when the binary has no room for the rows: the end row needs a place too, and the MD5 row."""
    limit = TABLE_SIZE // ENTRY_SIZE - 1 - table.with_md5
    if len(table.partitions) > limit:
        yield _error(TooManyPartitions, "too many partitions", None, f"at most {limit}", str(len(table.partitions)))


def _row_findings(row: Partition, table_offset: int, app_granule: int) -> Iterator[Finding]:
    alignment = alignment_of(row.type)
    if row.offset % alignment:
        yield _error(
            MisalignedPartition,
            f"partition {row.label!r} is not aligned",
            row.offset,
            f"a multiple of {alignment:#x}",
            hex(row.offset),
        )
    if row.type == TYPE_APP and row.size % app_granule:
        yield _error(
            BadAppSize,
            f"app partition {row.label!r} has an odd size",
            row.offset,
            f"a multiple of {app_granule:#x}",
            hex(row.size),
        )
    if row.size == 0:
        yield _error(EmptyPartition, f"partition {row.label!r} is empty", row.offset, "a size above 0", "0")
    primary = row.type in (TYPE_BOOTLOADER, TYPE_PARTITION_TABLE) and row.subtype == SUBTYPE_PRIMARY
    if row.offset < table_offset + TABLE_SECTOR_SIZE and not primary:
        yield _error(
            BelowTable,
            f"partition {row.label!r} lies below the end of the partition table",
            row.offset,
            f"{table_offset + TABLE_SECTOR_SIZE:#x} or above",
            hex(row.offset),
        )
    if row.readonly and row.type == TYPE_DATA and row.subtype in (SUBTYPE_DATA_OTA, SUBTYPE_DATA_COREDUMP):
        yield _error(
            ReadonlyNotAllowed, f"partition {row.label!r} must be writable", row.offset, "no readonly flag", "readonly"
        )
    if row.type == TYPE_DATA and row.subtype == SUBTYPE_DATA_NVS and row.size < NVS_MIN_SIZE and not row.readonly:
        yield _error(
            NvsTooSmall,
            f"NVS partition {row.label!r} is too small",
            row.offset,
            f"{NVS_MIN_SIZE:#x} or readonly",
            hex(row.size),
        )
    if row.flags & ~(FLAG_ENCRYPTED | FLAG_READONLY):
        yield Finding(
            "warning", "flags", f"partition {row.label!r} has unknown flags", row.offset, None, hex(row.flags)
        )


def _overlaps(table: PartitionTable) -> Iterator[Finding]:
    rows = sorted(table.partitions, key=lambda row: row.offset)
    for before, row in itertools.pairwise(rows):
        if row.offset < before.end:
            yield _error(
                PartitionsOverlap,
                f"partition {row.label!r} overlaps {before.label!r}",
                row.offset,
                f"{before.end:#x} or above",
                hex(row.offset),
            )


def _names(table: PartitionTable) -> Iterator[Finding]:
    seen: set[str] = set()
    for row in table.partitions:
        if row.label in seen:
            yield _error(
                DuplicateName, f"two partitions are called {row.label!r}", row.offset, "unique names", repr(row.label)
            )
        seen.add(row.label)
        if len(row.label.encode("utf-8", "replace")) >= LABEL_MAX_BYTES:
            yield Finding(
                "warning", "name", f"the name {row.label!r} fills its field: no room for a terminating zero", row.offset
            )
        if _named_like_something_else(row):
            yield Finding(
                "warning", "name", f"partition {row.label!r} is named like a keyword but is {row.kind}", row.offset
            )


def _named_like_something_else(row: Partition) -> bool:
    """Whether the label is a type or subtype keyword that does not match the row."""
    label = row.label.lower()
    meanings = [(kind, code) for kind, names in SUBTYPES.items() for name, code in names.items() if name == label]
    if label in TYPES:
        meanings.append((TYPES[label], row.subtype))
    return bool(meanings) and (row.type, row.subtype) not in meanings


def _otadata(table: PartitionTable) -> Iterator[Finding]:
    for subtype, name in ((SUBTYPE_DATA_OTA, "otadata"), (SUBTYPE_DATA_TEE_OTA, "tee_ota")):
        rows = [row for row in table.partitions if (row.type, row.subtype) == (TYPE_DATA, subtype)]
        for row in rows[1:]:
            yield _error(SeveralOtadata, f"more than one {name} partition", row.offset, "1", str(len(rows)))
        for row in rows[:1]:
            if row.size != OTADATA_SIZE:
                yield _error(
                    BadOtadataSize,
                    f"the {name} partition has a wrong size",
                    row.offset,
                    hex(OTADATA_SIZE),
                    hex(row.size),
                )


def _slots(table: PartitionTable) -> Iterator[Finding]:
    slots = table.ota_slots
    if slots and table.otadata is None:
        yield Finding("warning", "otadata", "there are ota slots but no otadata partition: nothing can select them")
    if table.otadata is not None and not slots:
        yield Finding("warning", "otadata", "there is an otadata partition but no ota slot", table.otadata.offset)
    subtypes = [row.subtype for row in slots]
    if subtypes != list(range(SUBTYPE_OTA_FIRST, SUBTYPE_OTA_FIRST + len(slots))):
        yield Finding(
            "warning",
            "slots",
            "the ota slots are not ota_0, ota_1, … without gaps: the boot loader counts them and misses the last",
        )
    if len({row.size for row in slots}) > 1:
        yield Finding("warning", "slots", "the ota slots differ in size: the smallest one is the limit for every image")
    for row in slots:
        if row.size > SLOT_MAX_SIZE:
            yield Finding(
                "warning",
                "slots",
                f"slot {row.label!r} is above 16 MiB: the verifier refuses it",
                row.offset,
                None,
                hex(row.size),
            )
