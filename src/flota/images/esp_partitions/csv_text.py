"""The partition table as people write it: CSV text with automatic placement.

Source: docs/reference/esp-partitions.md; espressif/esp-idf:components/partition_table/gen_esp32part.py.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flota.images.esp_partitions.checks import require_valid
from flota.images.esp_partitions.errors import (
    BadCsvRow,
    CsvNotText,
    EmptyTable,
    MissingSystemOffset,
    NameNotForCsv,
    NoRoomForPartition,
    PartitionsOverlap,
    PartitionTableError,
    TooManyPartitions,
    UnknownVariable,
)
from flota.images.esp_partitions.table import (
    DEFAULT_TABLE_OFFSET,
    FLAGS,
    LABEL_MAX_BYTES,
    SUBTYPE_DATA_UNDEFINED,
    SUBTYPE_PRIMARY,
    SUBTYPE_RECOVERY,
    SUBTYPES,
    TABLE_SECTOR_SIZE,
    TYPE_APP,
    TYPE_BOOTLOADER,
    TYPE_PARTITION_TABLE,
    TYPES,
    Partition,
    PartitionTable,
    alignment_of,
    subtype_name,
    type_name,
)

CSV_MAX_CHARS: Final = 256 * 1024
CSV_ROWS_MAX: Final = 95
"""Without an MD5 row; the binary has no room for more."""
CSV_HEAD: Final = "# ESP-IDF Partition Table\n# Name, Type, SubType, Offset, Size, Flags\n"

_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SUFFIXES: Final = MappingProxyType({"k": 1024, "m": 1024 * 1024})
_NUMBER = re.compile(r"-?(?:0x[0-9a-f]{1,16}|0b[01]{1,64}|0o[0-7]{1,22}|[1-9][0-9]{0,19}|0+)", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the file; `offset` None = automatic, a negative `size` ends at that absolute offset."""

    line: int
    label: str
    type: int
    subtype: int
    offset: int | None
    size: int
    flags: int

    @property
    def is_fixed(self) -> bool:
        """Whether its place follows from the chip (primary boot loader, primary table)."""
        return self.type in (TYPE_BOOTLOADER, TYPE_PARTITION_TABLE) and self.subtype == SUBTYPE_PRIMARY


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the things lie that a CSV does not say. Offsets in bytes."""

    table_offset: int
    bootloader_offset: int | None
    recovery_bootloader_offset: int | None


def parse_csv(
    text: str | bytes,
    *,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    bootloader_offset: int | None = None,
    recovery_bootloader_offset: int | None = None,
    flash_size: int | None = None,
    secure_boot_v1: bool = False,
    variables: Mapping[str, str] = MappingProxyType({}),
    faulty_layout: bool = False,
) -> PartitionTable:
    """Return the table that the CSV describes, placed and checked.

    Offsets and sizes in bytes. `bootloader_offset` is needed for `bootloader` rows, `recovery_bootloader_offset` for
    the recovery one. `variables` replaces `$NAME` and `${NAME}`. Bytes may carry a UTF-8, UTF-16 or UTF-32 byte-order
    mark. Raises `BadCsvRow` or one of its kind with the line, `CsvNotText`, `EmptyTable`, `PartitionsOverlap` when
    rows do not stand in rising order, or the error of the first thing that `check_table` finds. With `faulty_layout` a
    table that is only laid out wrongly comes back too, to be shown: partitions that overlap, lie askew, ….
    """
    places = _Places(table_offset, bootloader_offset, recovery_bootloader_offset)
    rows = [
        row
        for number, line in enumerate(_decoded(text).splitlines(), start=1)
        if (row := _parse_line(number, line, places, variables)) is not None
    ]
    if not rows:
        raise EmptyTable("the CSV has no partitions", expected="name, type, subtype, offset, size, flags")
    if len(rows) > CSV_ROWS_MAX:
        raise TooManyPartitions("too many partitions", expected=f"at most {CSV_ROWS_MAX}", found=len(rows))
    table = PartitionTable(tuple(_placed(rows, places, overlaps_allowed=faulty_layout)))
    if faulty_layout:
        return table
    return require_valid(table, table_offset=table_offset, flash_size=flash_size, secure_boot_v1=secure_boot_v1)


def csv_of(table: PartitionTable) -> str:
    """Return `table` as the reference tool writes it; `parse_csv` reads it back (given the same offsets).

    Rows in the table's order; unknown flag bits are lost. Raises `NameNotForCsv` for a name that would read as
    something else.
    """
    return CSV_HEAD + "".join(_csv_row(row) + "\n" for row in table.partitions)


def _csv_row(row: Partition) -> str:
    label = row.label
    if not label or label != label.strip() or "," in label or label.startswith("#") or _VARIABLE.search(label):
        raise NameNotForCsv(
            "the partition name cannot stand in a CSV", offset=row.offset, expected="a plain name", found=repr(label)
        )
    flags = ":".join(name for name, bit in FLAGS.items() if row.flags & bit)
    names = (type_name(row.type), subtype_name(row.type, row.subtype))
    return ",".join((row.label, *names, f"{row.offset:#x}", _size_text(row.size), flags))


def _size_text(size: int) -> str:
    for suffix, unit in (("M", 1024 * 1024), ("K", 1024)):
        if size and size % unit == 0:
            return f"{size // unit}{suffix}"
    return f"{size:#x}"


def _decoded(text: str | bytes) -> str:
    if isinstance(text, bytes):
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS if text.startswith(mark)), "utf-8")
        try:
            text = text.decode(encoding)
        except UnicodeDecodeError as error:
            raise CsvNotText("the CSV is not text", offset=error.start, expected=encoding) from error
    if len(text) > CSV_MAX_CHARS:
        raise CsvNotText("the CSV is too long", expected=f"at most {CSV_MAX_CHARS} characters", found=len(text))
    return text.removeprefix("\ufeff")


def _parse_line(number: int, line: str, places: _Places, variables: Mapping[str, str]) -> _Row | None:
    line = _expanded(number, line, variables).strip()
    if not line or line.startswith("#"):
        return None
    fields = [field.strip() for field in line.split(",")] + [""] * 5
    label, type_text, subtype_text, offset_text, size_text, flags_text = fields[:6]
    if not label or not label.isprintable():
        raise _line_error(number, "bad partition name", expected="printable text", found=label)
    if len(label.encode("utf-8", "replace")) > LABEL_MAX_BYTES:
        raise _line_error(number, "the partition name is too long", expected=f"{LABEL_MAX_BYTES} bytes", found=label)
    kind = _code(number, "type", type_text, dict(TYPES))
    subtype = _subtype(number, kind, subtype_text)
    if kind in (TYPE_BOOTLOADER, TYPE_PARTITION_TABLE):
        offset, size = _system_place(number, kind, subtype, offset_text, places)
    else:
        offset, size = _offset(number, offset_text), _size(number, size_text)
    return _Row(number, label, kind, subtype, offset, size, _flags(number, flags_text))


def _subtype(number: int, kind: int, text: str) -> int:
    if not text:
        if kind == TYPE_APP:
            raise _line_error(number, "an app partition needs a subtype", expected="factory, ota_0, …", found="nothing")
        return SUBTYPE_DATA_UNDEFINED
    return _code(number, "subtype", text, SUBTYPES.get(kind, {}))


def _code(number: int, what: str, text: str, keywords: Mapping[str, int]) -> int:
    if not text:
        raise _line_error(number, f"the {what} is missing", expected=", ".join(keywords), found="nothing")
    code = keywords.get(text.lower())
    if code is None:
        code = _number(number, what, text, ", ".join(keywords) or "a number")
    if not 0 <= code <= 0xFF:
        raise _line_error(number, f"the {what} does not fit", expected="0 to 0xff", found=text)
    return code


def _system_place(number: int, kind: int, subtype: int, offset_text: str, places: _Places) -> tuple[int | None, int]:
    """Return offset and size of a `bootloader` or `partition_table` row, whose columns say nothing."""
    if places.bootloader_offset is None:
        raise _line_error(
            number,
            "a boot loader or partition table row needs the chip's boot loader offset",
            expected="a chip",
            found="none given",
            hint="Name the chip (--chip esp32-c3) or the offset (--primary-bootloader-offset).",
            kind=MissingSystemOffset,
        )
    if kind == TYPE_PARTITION_TABLE:
        offset = places.table_offset if subtype == SUBTYPE_PRIMARY else _offset(number, offset_text)
        return offset, TABLE_SECTOR_SIZE
    size = places.table_offset - places.bootloader_offset
    if subtype == SUBTYPE_PRIMARY:
        return places.bootloader_offset, size
    if subtype == SUBTYPE_RECOVERY:
        if places.recovery_bootloader_offset is None:
            raise _line_error(
                number,
                "a recovery boot loader row needs its offset",
                expected="an offset",
                found="none given",
                hint="Give it (--recovery-bootloader-offset).",
                kind=MissingSystemOffset,
            )
        return places.recovery_bootloader_offset, size
    return _offset(number, offset_text), size


def _offset(number: int, text: str) -> int | None:
    if not text:
        return None
    offset = _number(number, "offset", text, "a number")
    if not 0 <= offset <= 0xFFFF_FFFF:
        raise _line_error(number, "the offset does not fit", expected="0 to 0xffffffff", found=text)
    return offset


def _size(number: int, text: str) -> int:
    if not text:
        raise _line_error(number, "the size is missing", expected="a number such as 0x6000, 24K or 1M", found="nothing")
    size = _number(number, "size", text, "a number such as 0x6000, 24K or 1M")
    if not -0xFFFF_FFFF <= size <= 0xFFFF_FFFF:
        raise _line_error(number, "the size does not fit", expected="32 bits", found=text)
    return size


def _flags(number: int, text: str) -> int:
    flags = 0
    for name in filter(None, (part.strip() for part in text.split(":"))):
        if name not in FLAGS:
            raise _line_error(number, "unknown flag", expected=", ".join(FLAGS), found=name)
        flags |= FLAGS[name]
    return flags


def _number(number: int, what: str, text: str, expected: str) -> int:
    unit = _SUFFIXES.get(text[-1:].lower(), 1)
    digits = text[:-1] if unit > 1 else text
    if not _NUMBER.fullmatch(digits):
        raise _line_error(number, f"bad {what}", expected=expected, found=text)
    return int(digits, 0) * unit


def _placed(rows: list[_Row], places: _Places, *, overlaps_allowed: bool = False) -> list[Partition]:
    """Give every row its offset and size: in file order, each after the one before."""
    last_end = places.table_offset + TABLE_SECTOR_SIZE
    partitions: list[Partition] = []
    for row in rows:
        offset = row.offset
        if offset is None:
            alignment = alignment_of(row.type)
            offset = -(-last_end // alignment) * alignment
        elif offset < last_end and not row.is_fixed and not overlaps_allowed:
            raise _line_error(
                row.line,
                f"partition {row.label!r} overlaps what comes before it",
                expected=f"{last_end:#x} or above (rows must be in rising order)",
                found=f"{offset:#x}",
                kind=PartitionsOverlap,
            )
        size = row.size if row.size >= 0 else -row.size - offset
        if size < 0 or offset + size > 0xFFFF_FFFF:
            raise _line_error(
                row.line,
                f"partition {row.label!r} has no room",
                expected="an end above its offset",
                found=f"{offset + size:#x}",
                kind=NoRoomForPartition,
            )
        partitions.append(Partition(row.label, row.type, row.subtype, offset, size, row.flags))
        if not row.is_fixed:
            last_end = offset + size
    return partitions


def _expanded(number: int, line: str, variables: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2)
        if name not in variables:
            raise _line_error(
                number, "unknown variable", expected="a defined variable", found=f"${name}", kind=UnknownVariable
            )
        return variables[name]

    return line if line.lstrip().startswith("#") else _VARIABLE.sub(value, line)


def _line_error(
    line: int,
    what: str,
    *,
    expected: str,
    found: str,
    hint: str | None = None,
    kind: type[PartitionTableError] = BadCsvRow,
) -> PartitionTableError:
    shown = found if found.isprintable() else repr(found)
    return kind(f"line {line}: {what}", expected=expected, found=shown[:64], hint=hint)
