"""One error class for each thing that can be wrong with a partition table.

The `code` of a class is also the `code` of the finding that `check_table` gives for the same fault.
Source: docs/reference/esp-partitions.md.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from flota.images.model import ImageError


class PartitionTableError(ImageError):
    """The text or the bytes are not a partition table that a device could use."""

    code = "bad-partition-table"


# --- the text ------------------------------------------------------------------------------------------------------


class CsvNotText(PartitionTableError):
    """The CSV is no text in the encoding that it announces, or far too long."""

    code = "csv-not-text"


class BadCsvRow(PartitionTableError):
    """A field of a CSV row is missing, no keyword, no number, or out of its range."""

    code = "csv-row"


class UnknownVariable(BadCsvRow):
    """A CSV row names a variable that the caller did not give."""

    code = "csv-variable"


class MissingSystemOffset(BadCsvRow):
    """A boot loader or partition table row needs an offset that only the chip or the caller can say."""

    code = "csv-system-offset"


class NoRoomForPartition(BadCsvRow):
    """The partition would end before it begins, or beyond 4 GiB."""

    code = "no-room"


class NameNotForCsv(PartitionTableError):
    """A partition name that cannot stand in a CSV: empty, or with a comma, a variable or a leading `#`."""

    code = "name-not-for-csv"


# --- the binary ----------------------------------------------------------------------------------------------------


class BadTableRow(PartitionTableError):
    """A row of the binary has another magic, is cut off, or stands behind the MD5 row."""

    code = "table-row"


class NoEndRow(PartitionTableError):
    """The binary has no row of 32 x 0xFF behind its last entry."""

    code = "no-end-row"


class EmptyTable(PartitionTableError):
    """There is no partition in the table."""

    code = "empty-table"


class WrongTableMd5(PartitionTableError):
    """The MD5 row does not fit the rows before it, or there are two."""

    code = "table-md5"


class FieldTooLong(PartitionTableError):
    """A name or number does not fit its field of the binary."""

    code = "table-field"


# --- the layout ----------------------------------------------------------------------------------------------------


class MisalignedPartition(PartitionTableError):
    """An offset is no multiple of 0x10000 (apps) or 0x1000 (all others)."""

    code = "alignment"


class BadAppSize(PartitionTableError):
    """The size of an app partition is no multiple of 0x1000 (0x10000 with Secure Boot v1)."""

    code = "app-size"


class EmptyPartition(PartitionTableError):
    """A partition has no bytes."""

    code = "empty-partition"


class DuplicateName(PartitionTableError):
    """Two partitions have the same name."""

    code = "duplicate-name"


class PartitionsOverlap(PartitionTableError):
    """A partition begins before the one below it ends."""

    code = "overlap"


class BelowTable(PartitionTableError):
    """A partition other than the primary boot loader and table lies below the end of the table's sector."""

    code = "below-table"


class SeveralOtadata(PartitionTableError):
    """There is more than one otadata (or tee_ota) partition."""

    code = "several-otadata"


class BadOtadataSize(PartitionTableError):
    """The otadata (or tee_ota) partition is not 0x2000 bytes long."""

    code = "otadata-size"


class ReadonlyNotAllowed(PartitionTableError):
    """The readonly flag on a partition that the device must write: otadata or coredump."""

    code = "readonly"


class NvsTooSmall(PartitionTableError):
    """A writable NVS partition of less than 0x3000 bytes."""

    code = "nvs-size"


class BeyondFlash(PartitionTableError):
    """A partition ends beyond the flash chip."""

    code = "flash-size"


class TooManyPartitions(PartitionTableError):
    """More rows than the 0xC00 bytes of the table hold beside the end row."""

    code = "too-many-partitions"


LAYOUT_ERRORS: Final = MappingProxyType(
    {
        kind.code: kind
        for kind in (
            MisalignedPartition,
            BadAppSize,
            EmptyPartition,
            DuplicateName,
            PartitionsOverlap,
            BelowTable,
            SeveralOtadata,
            BadOtadataSize,
            ReadonlyNotAllowed,
            NvsTooSmall,
            BeyondFlash,
            TooManyPartitions,
        )
    }
)
"""The error class of each error finding of `check_table`, by code."""
