"""The partition table as it lies in flash: 32-byte rows, an MD5 row, an end row, 0xFF up to 0xC00 bytes.

Source: docs/reference/esp-partitions.md; espressif/esp-idf:components/bootloader_support/src/flash_partitions.c.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from flota.images.esp_partitions.errors import (
    BadTableRow,
    BeyondFlash,
    EmptyTable,
    FieldTooLong,
    NoEndRow,
    TooManyPartitions,
    WrongTableMd5,
)
from flota.images.esp_partitions.table import ENTRY_SIZE, LABEL_MAX_BYTES, TABLE_SIZE, Partition, PartitionTable
from flota.images.text import cleaned_text

Buffer = bytes | memoryview

ENTRY_MAGIC: Final = b"\xaa\x50"
MD5_ROW_START: Final = b"\xeb\xeb" + b"\xff" * 14
END_ROW: Final = b"\xff" * ENTRY_SIZE
ROWS_MAX: Final = TABLE_SIZE // ENTRY_SIZE
"""Rows of any kind that fit: 96. The last one must be the end row."""

_ENTRY: Final = struct.Struct("<2sBBII16sI")
assert _ENTRY.size == ENTRY_SIZE


def parse_table(data: Buffer, *, flash_size: int | None = None) -> PartitionTable:
    """Return the table at the start of `data`; what follows the end row (a signature, other flash) is ignored.

    `flash_size` (bytes) limits offsets and sizes as the boot loader does. Raises `BadTableRow` for a wrong magic or a
    row behind the MD5 row, `NoEndRow`, `EmptyTable`, `WrongTableMd5` for a wrong or second MD5, `BeyondFlash`.
    """
    view = memoryview(data)[:TABLE_SIZE]
    rows: list[Partition] = []
    md5_seen = False
    for offset in range(0, len(view), ENTRY_SIZE):
        row = bytes(view[offset : offset + ENTRY_SIZE])
        if len(row) < ENTRY_SIZE:
            raise BadTableRow("the table ends inside a row", offset=offset, expected=ENTRY_SIZE, found=len(row))
        if row == END_ROW:
            if not rows:
                raise EmptyTable("the table has no partitions", offset=offset)
            return PartitionTable(tuple(rows), md5_seen)
        if row.startswith(MD5_ROW_START):
            if md5_seen:
                raise WrongTableMd5("a second MD5 row", offset=offset)
            _check_md5(view[:offset], row, offset)
            md5_seen = True
        elif md5_seen:
            raise BadTableRow("a row after the MD5 row", offset=offset, expected="the end row", found=row[:2].hex())
        else:
            rows.append(_parse_row(row, offset, flash_size))
    raise NoEndRow("the table has no end row", offset=len(view), expected=f"{ENTRY_SIZE} bytes of 0xff")


def pack_table(table: PartitionTable) -> bytes:
    """Return the 0xC00 bytes of `table`.

    Raises `TooManyPartitions`, or `FieldTooLong` when a name or number does not fit its field. Whether the layout
    makes sense is `check_table`'s question.
    """
    packed = b"".join(_pack_row(row) for row in table.partitions)
    if table.with_md5:
        packed += MD5_ROW_START + hashlib.md5(packed, usedforsecurity=False).digest()
    if len(packed) >= TABLE_SIZE:
        raise TooManyPartitions(
            "too many partitions", expected=f"at most {ROWS_MAX - 1 - table.with_md5}", found=len(table.partitions)
        )
    return packed.ljust(TABLE_SIZE, b"\xff")


def _parse_row(row: bytes, offset: int, flash_size: int | None) -> Partition:
    magic, type_code, subtype, start, size, label, flags = _ENTRY.unpack(row)
    if magic != ENTRY_MAGIC:
        raise BadTableRow("not a partition row", offset=offset, expected=ENTRY_MAGIC.hex(), found=magic.hex())
    if flash_size is not None and start + size > flash_size:
        raise BeyondFlash(
            "the partition ends beyond the flash",
            offset=offset + 4,
            expected=f"at most {flash_size:#x}",
            found=f"{start + size:#x}",
        )
    return Partition(cleaned_text(label), type_code, subtype, start, size, flags)


def _pack_row(row: Partition) -> bytes:
    label = row.label.encode("utf-8", "replace")
    if len(label) > LABEL_MAX_BYTES:
        raise FieldTooLong(
            "the partition name is too long", expected=f"at most {LABEL_MAX_BYTES} bytes", found=repr(row.label[:64])
        )
    try:
        return _ENTRY.pack(ENTRY_MAGIC, row.type, row.subtype, row.offset, row.size, label, row.flags)
    except struct.error as error:
        raise FieldTooLong(f"a number of partition {row.label!r} does not fit its field", found=str(error)) from error


def _check_md5(rows: memoryview, md5_row: bytes, offset: int) -> None:
    computed, stored = hashlib.md5(rows, usedforsecurity=False).digest(), md5_row[len(MD5_ROW_START) :]
    if computed != stored:
        raise WrongTableMd5(
            "the MD5 of the table is wrong", offset=offset + 16, expected=computed.hex(), found=stored.hex()
        )
