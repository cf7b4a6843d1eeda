"""The ESP32 partition table: which region of flash is what. CSV text, binary rows, placement and checks.

`parse_csv` and `parse_table` give the same value, `pack_table` and `csv_of` turn it back.
Source: docs/reference/esp-partitions.md; espressif/esp-idf:components/partition_table/gen_esp32part.py.
"""

from flota.images.esp_partitions.binary import pack_table, parse_table
from flota.images.esp_partitions.checks import check_table, require_valid
from flota.images.esp_partitions.csv_text import csv_of, parse_csv
from flota.images.esp_partitions.errors import PartitionTableError
from flota.images.esp_partitions.table import (
    DEFAULT_TABLE_OFFSET,
    TABLE_SECTOR_SIZE,
    TABLE_SIZE,
    Partition,
    PartitionTable,
    subtype_name,
    type_name,
)

__all__ = [
    "DEFAULT_TABLE_OFFSET",
    "TABLE_SECTOR_SIZE",
    "TABLE_SIZE",
    "Partition",
    "PartitionTable",
    "PartitionTableError",
    "check_table",
    "csv_of",
    "pack_table",
    "parse_csv",
    "parse_table",
    "require_valid",
    "subtype_name",
    "type_name",
]
