"""What lies where in the flash of an AmebaD board. Offsets from the start of the flash; addresses add 0x0800_0000.

Source: docs/reference/ameba-images.md, "Flash maps".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flota.errors import NotFound
from flota.images.flash_area import FlashArea

MIB: Final = 1024 * 1024
FLASH_BASE: Final = 0x0800_0000

KM0_BOOT: Final = 0x0000
BACKUP_SECTOR: Final = 0x2000
SYSTEM_DATA: Final = 0x3000
KM4_BOOT: Final = 0x4000
OTA1: Final = 0x6000
USER_DATA_SIZE: Final = 0x6000


@dataclass(frozen=True, slots=True)
class AmebaFlashMap:
    """A flash map as the KM0 boot image has it compiled in. Sizes and offsets in bytes."""

    name: str
    flash_size: int
    ota1: int
    ota2: int
    slot_size: int
    user_data: int

    @property
    def areas(self) -> tuple[FlashArea, ...]:
        """Every area, by rising offset."""
        return (
            FlashArea("km0_boot", "bootloader", KM0_BOOT, BACKUP_SECTOR - KM0_BOOT),
            FlashArea("backup", "reserved", BACKUP_SECTOR, SYSTEM_DATA - BACKUP_SECTOR),
            FlashArea("system_data", "data", SYSTEM_DATA, KM4_BOOT - SYSTEM_DATA),
            FlashArea("km4_boot", "bootloader", KM4_BOOT, OTA1 - KM4_BOOT),
            FlashArea("ota1", "app", self.ota1, self.slot_size),
            FlashArea("user_data", "data", self.user_data, 0x2000),
            FlashArea("bt_ftl", "data", self.user_data + 0x2000, 0x3000),
            FlashArea("wifi_profile", "data", self.user_data + 0x5000, 0x1000),
            FlashArea("ota2", "app", self.ota2, self.slot_size),
        )

    def slot_offset(self, slot: int) -> int:
        """Return where OTA1 (`slot` 1) or OTA2 (2) begins. Raises `NotFound` for another number."""
        if slot not in (1, 2):
            raise NotFound("no such slot", expected="1 or 2", found=slot)
        return self.ota1 if slot == 1 else self.ota2


FLASH_MAPS: Final[Mapping[str, AmebaFlashMap]] = MappingProxyType(
    {
        "2MB": AmebaFlashMap("2MB", 2 * MIB, OTA1, 0x10_6000, 0xF_A000, 0x10_0000),
        "4MB": AmebaFlashMap("4MB", 4 * MIB, OTA1, 0x20_6000, 0x1F_A000, 0x20_0000),
    }
)
"""`2MB`: what every stock boot image has, whatever the chip's size. `4MB`: boot image and app rebuilt for it."""


def flash_map(name: str) -> AmebaFlashMap:
    """Return the map called `name`, such as `2MB`. Raises `NotFound`."""
    found = FLASH_MAPS.get(name.upper())
    if found is None:
        raise NotFound("no such flash map", expected=", ".join(FLASH_MAPS), found=repr(name[:32]))
    return found
