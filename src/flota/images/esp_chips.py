"""The ESP32 chips: ids, boot loader offsets, flash maps, page sizes and flash settings.

Source: docs/reference/esp-image.md; espressif/esptool:esptool/targets/*.py and
espressif/esp-idf:components/bootloader_support/include/esp_app_format.h for the ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flota.errors import NotFound

KIB: Final = 1024
MIB: Final = 1024 * KIB

DEFAULT_MMU_PAGE_SIZE: Final = 64 * KIB
"""Bytes that one entry of the flash MMU maps, unless the app descriptor says otherwise (configurable chips only)."""

CHIP_ID_INVALID: Final = 0xFFFF

SPI_MODES: Final = MappingProxyType({"qio": 0, "qout": 1, "dio": 2, "dout": 3, "fast-read": 4, "slow-read": 5})
"""Flash mode name -> code in byte 2 of an image."""

FLASH_SIZES: Final = MappingProxyType({f"{1 << code}MB": code for code in range(8)})
"""Flash size name -> code in the high nibble of byte 3 of an image."""

_SPEEDS_80M: Final = {"80m": 0xF, "40m": 0, "26m": 1, "20m": 2}
_SPEEDS_60M: Final = {"60m": 0xF, "30m": 0, "20m": 1, "15m": 2}
_SPEEDS_C6: Final = {"80m": 0, "40m": 0, "20m": 2}
_SPEEDS_C5: Final = {"80m": 0xF, "40m": 0, "20m": 2}
_SPEEDS_48M: Final = {"48m": 0xF, "24m": 0, "16m": 1, "12m": 2}
_SPEEDS_48M_SHORT: Final = {"48m": 0xF, "24m": 0}

_FIXED: Final = (64 * KIB,)
_UP_TO_64K: Final = (8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB)


@dataclass(frozen=True, slots=True)
class EspChip:
    """What an image says about its chip, and what the chip demands of an image.

    `bootloader_offset` is a flash offset in bytes. `data_map` and `code_map` are the addresses at which flash appears
    (DROM and IROM). `page_sizes` are the MMU page sizes in bytes; more than one means that the app descriptor chooses.
    `speeds` maps flash frequencies to the low nibble of byte 3.
    """

    chip_id: int
    name: str
    title: str
    bootloader_offset: int
    data_map: range
    code_map: range
    page_sizes: tuple[int, ...]
    speeds: dict[str, int]

    @property
    def page_size_is_configurable(self) -> bool:
        """Whether the app descriptor names the page size; such chips insist on the descriptor."""
        return len(self.page_sizes) > 1

    def maps(self, address: int) -> bool:
        """Whether flash appears at `address`, so that a segment there is mapped and not copied to RAM."""
        return address in self.data_map or address in self.code_map

    def speed_name(self, code: int) -> str:
        """Return the flash frequency that `code` stands for on this chip, or the code in hex."""
        return next((name for name, value in self.speeds.items() if value == code), f"{code:#x}")


def _chip(
    chip_id: int,
    name: str,
    bootloader_offset: int,
    data_map: tuple[int, int],
    code_map: tuple[int, int],
    page_sizes: tuple[int, ...] = _FIXED,
    speeds: dict[str, int] = _SPEEDS_80M,
) -> EspChip:
    return EspChip(
        chip_id, name, name.upper(), bootloader_offset, range(*data_map), range(*code_map), page_sizes, dict(speeds)
    )


_C3_DATA: Final = (0x3C00_0000, 0x3C80_0000)
_LOW_CODE: Final = (0x4200_0000, 0x4280_0000)
_C6_DATA: Final = (0x4280_0000, 0x4300_0000)
_WIDE: Final = (0x4200_0000, 0x4400_0000)

CHIPS: Final[MappingProxyType[int, EspChip]] = MappingProxyType(
    {
        chip.chip_id: chip
        for chip in (
            _chip(0, "esp32", 0x1000, (0x3F40_0000, 0x3F80_0000), (0x400D_0000, 0x4040_0000)),
            _chip(2, "esp32-s2", 0x1000, (0x3F00_0000, 0x3F3F_0000), (0x4008_0000, 0x40B8_0000)),
            _chip(5, "esp32-c3", 0, _C3_DATA, _LOW_CODE),
            _chip(9, "esp32-s3", 0, (0x3C00_0000, 0x3E00_0000), _WIDE),
            _chip(
                12,
                "esp32-c2",
                0,
                (0x3C00_0000, 0x3C40_0000),
                (0x4200_0000, 0x4240_0000),
                (16 * KIB, 32 * KIB, 64 * KIB),
                _SPEEDS_60M,
            ),
            _chip(13, "esp32-c6", 0, _C6_DATA, _LOW_CODE, _UP_TO_64K, _SPEEDS_C6),
            _chip(16, "esp32-h2", 0, _C6_DATA, _LOW_CODE, _UP_TO_64K, _SPEEDS_48M),
            _chip(18, "esp32-p4", 0x2000, (0x4000_0000, 0x4C00_0000), (0x4000_0000, 0x4C00_0000)),
            _chip(20, "esp32-c61", 0, _C6_DATA, _LOW_CODE, _UP_TO_64K, _SPEEDS_C5),
            _chip(23, "esp32-c5", 0x2000, _WIDE, _WIDE, _FIXED, _SPEEDS_C5),
            _chip(
                25,
                "esp32-h21",
                0,
                (0x4200_0000, 0x4300_0000),
                (0x4200_0000, 0x4300_0000),
                _UP_TO_64K,
                _SPEEDS_48M_SHORT,
            ),
            _chip(28, "esp32-h4", 0x2000, _WIDE, _WIDE, _UP_TO_64K, _SPEEDS_48M_SHORT),
            _chip(31, "esp32-e22", 0, (0x3C00_0000, 0x4000_0000), (0x3C00_0000, 0x4000_0000)),
            _chip(
                32,
                "esp32-s31",
                0x2000,
                (0x4000_0000, 0x5400_0000),
                (0x4000_0000, 0x5400_0000),
                (32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB),
                _SPEEDS_C5,
            ),
        )
    }
)
"""Chip id (u16 at offset 12 of an image) -> chip. Page sizes follow `MMU_PAGE_SIZE_CONF` of esptool's image classes."""

CHIP_NAMES: Final = tuple(chip.name for chip in CHIPS.values())


def chip_named(name: str) -> EspChip:
    """Return the chip called `name`; `esp32c3` and `ESP32-C3` mean the same. Raises `NotFound` with all the names."""
    wanted = name.strip().lower().replace("-", "").replace("_", "")
    for chip in CHIPS.values():
        if chip.name.replace("-", "") == wanted:
            return chip
    raise NotFound("no such ESP chip", found=repr(name[:32]), expected=", ".join(CHIP_NAMES))


def chip_name_of(chip_id: int) -> str:
    """Return the chip's name, or say that the id is unknown; never raises."""
    chip = CHIPS.get(chip_id)
    return chip.name if chip else f"unknown chip id {chip_id:#06x}"
