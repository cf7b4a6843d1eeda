"""A partition table as a value, and the keywords of its types and subtypes.

Source: docs/reference/esp-partitions.md; espressif/esp-idf:components/partition_table/gen_esp32part.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

DEFAULT_TABLE_OFFSET: Final = 0x8000
TABLE_SECTOR_SIZE: Final = 0x1000
"""What the table occupies in flash (bytes)."""
TABLE_SIZE: Final = 0xC00
"""Length of the binary (bytes)."""
ENTRY_SIZE: Final = 32
LABEL_MAX_BYTES: Final = 16

TYPE_APP: Final = 0x00
TYPE_DATA: Final = 0x01
TYPE_BOOTLOADER: Final = 0x02
TYPE_PARTITION_TABLE: Final = 0x03

SUBTYPE_FACTORY: Final = 0x00
SUBTYPE_OTA_FIRST: Final = 0x10
SUBTYPE_OTA_LAST: Final = 0x1F
SUBTYPE_TEST: Final = 0x20
SUBTYPE_PRIMARY: Final = 0x00
SUBTYPE_RECOVERY: Final = 0x02
SUBTYPE_DATA_OTA: Final = 0x00
SUBTYPE_DATA_NVS: Final = 0x02
SUBTYPE_DATA_COREDUMP: Final = 0x03
SUBTYPE_DATA_UNDEFINED: Final = 0x06
SUBTYPE_DATA_TEE_OTA: Final = 0x90

FLAG_ENCRYPTED: Final = 1
FLAG_READONLY: Final = 2
FLAGS: Final = MappingProxyType({"encrypted": FLAG_ENCRYPTED, "readonly": FLAG_READONLY})

APP_ALIGNMENT: Final = 0x10000
DATA_ALIGNMENT: Final = 0x1000

TYPES: Final = MappingProxyType(
    {"app": TYPE_APP, "data": TYPE_DATA, "bootloader": TYPE_BOOTLOADER, "partition_table": TYPE_PARTITION_TABLE}
)
SUBTYPES: Final[MappingProxyType[int, dict[str, int]]] = MappingProxyType(
    {
        TYPE_APP: {
            "factory": SUBTYPE_FACTORY,
            **{f"ota_{index}": SUBTYPE_OTA_FIRST + index for index in range(16)},
            "test": SUBTYPE_TEST,
            "tee_0": 0x30,
            "tee_1": 0x31,
        },
        TYPE_DATA: {
            "ota": SUBTYPE_DATA_OTA,
            "phy": 0x01,
            "nvs": SUBTYPE_DATA_NVS,
            "coredump": SUBTYPE_DATA_COREDUMP,
            "nvs_keys": 0x04,
            "efuse": 0x05,
            "undefined": SUBTYPE_DATA_UNDEFINED,
            "esphttpd": 0x80,
            "fat": 0x81,
            "spiffs": 0x82,
            "littlefs": 0x83,
            "tee_ota": SUBTYPE_DATA_TEE_OTA,
        },
        TYPE_BOOTLOADER: {"primary": SUBTYPE_PRIMARY, "ota": 0x01, "recovery": SUBTYPE_RECOVERY},
        TYPE_PARTITION_TABLE: {"primary": SUBTYPE_PRIMARY, "ota": 0x01},
    }
)


def type_name(type_code: int) -> str:
    """Return the keyword of a partition type, or the number in hex."""
    return next((name for name, code in TYPES.items() if code == type_code), f"{type_code:#x}")


def subtype_name(type_code: int, subtype: int) -> str:
    """Return the keyword of a subtype of the given type, or the number in hex."""
    names = SUBTYPES.get(type_code, {})
    return next((name for name, code in names.items() if code == subtype), f"{subtype:#x}")


def alignment_of(type_code: int) -> int:
    """Return what the offset of such a partition must be a multiple of (bytes)."""
    return APP_ALIGNMENT if type_code == TYPE_APP else DATA_ALIGNMENT


@dataclass(frozen=True, slots=True)
class Partition:
    """A named region of flash. Offset and size in bytes; `label` is cleaned text of at most 16 bytes."""

    label: str
    type: int
    subtype: int
    offset: int
    size: int
    flags: int = 0

    @property
    def end(self) -> int:
        """First flash offset after it."""
        return self.offset + self.size

    @property
    def encrypted(self) -> bool:
        """Whether flash encryption covers it although its type would not ask for it."""
        return bool(self.flags & FLAG_ENCRYPTED)

    @property
    def readonly(self) -> bool:
        """Whether firmware may only read it."""
        return bool(self.flags & FLAG_READONLY)

    @property
    def is_ota_slot(self) -> bool:
        """Whether it is one of ota_0 to ota_15."""
        return self.type == TYPE_APP and SUBTYPE_OTA_FIRST <= self.subtype <= SUBTYPE_OTA_LAST

    @property
    def kind(self) -> str:
        """Type and subtype in words, e.g. `app/ota_0`."""
        return f"{type_name(self.type)}/{subtype_name(self.type, self.subtype)}"


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """The rows in file order. `with_md5` says whether the binary has the MD5 row (old tables have none)."""

    partitions: tuple[Partition, ...]
    with_md5: bool = True

    @property
    def ota_slots(self) -> tuple[Partition, ...]:
        """The app slots that an update can go to, by subtype: ota_0, ota_1, …."""
        return tuple(sorted((row for row in self.partitions if row.is_ota_slot), key=lambda row: row.subtype))

    @property
    def otadata(self) -> Partition | None:
        """The partition that says which slot boots, if there is one."""
        return self._first(TYPE_DATA, SUBTYPE_DATA_OTA)

    @property
    def factory(self) -> Partition | None:
        """The factory app, if there is one."""
        return self._first(TYPE_APP, SUBTYPE_FACTORY)

    @property
    def test(self) -> Partition | None:
        """The test app, if there is one."""
        return self._first(TYPE_APP, SUBTYPE_TEST)

    @property
    def first_app(self) -> Partition | None:
        """Where a programmer puts the app: factory if there is one, else the first ota slot."""
        return self.factory or next(iter(self.ota_slots), None)

    @property
    def end(self) -> int:
        """First flash offset after the last partition (bytes); 0 for an empty table."""
        return max((row.end for row in self.partitions), default=0)

    def find(self, label: str) -> Partition | None:
        """Return the partition with this label, or None."""
        return next((row for row in self.partitions if row.label == label), None)

    def _first(self, type_code: int, subtype: int) -> Partition | None:
        return next((row for row in self.partitions if (row.type, row.subtype) == (type_code, subtype)), None)
