"""What a boot program of the M487 has around it: flash controller, SPI flash, reset. Pure: the parts are handed in.

Source: docs/reference/nuvoton.md, "Resets" and "SPI flash".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from flota.images.nuvoton.flash_map import PROGRAM_UNIT

BOOT_FROM_APROM: Final = 0x80
"""Bit 7 of CONFIG0: clear = the chip starts in LDROM."""

WITHOUT_IAP: Final = 0x40
"""Bit 6 of CONFIG0: set = no in-application programming, so that nobody can map vectors or write flash."""

CONFIG0_BLANK: Final = 0xFFFF_FFFF
CONFIG0_LDROM_FIRST: Final = CONFIG0_BLANK & ~(BOOT_FROM_APROM | WITHOUT_IAP)

SPI_RESET_ENABLE: Final = b"\x66"
SPI_RESET: Final = b"\x99"
SPI_WRITE_ENABLE: Final = b"\x06"
SPI_CLEAR_STATUS: Final = b"\x01\x00"
SPI_READ_ID: Final = b"\x9f"
SPI_FAST_READ: Final = 0x0B
SPI_PROGRAM: Final = 0x02
SPI_ERASE_4K: Final = 0x20
SPI_READ_STATUS: Final = b"\x05"
SPI_LEAVE_4_BYTES: Final = b"\xe9"
SPI_READ_SECURITY: Final = b"\x2b"
SPI_READ_BANK: Final = b"\x16"
SPI_WRITE_BANK: Final = 0x17

SPIM_FAILED: Final = "SPIM flash initialize failed!"

_SPANSION: Final = 0x01
_EON: Final = 0x1C
_FOUR_BYTES_FROM: Final[Mapping[int, int]] = MappingProxyType({0xEF: 0x19, 0xC2: 0x19, _EON: 0x19, 0x7F: 0x49})
"""Maker of a JEDEC id -> third byte from which the chip has 4-byte addresses that have to be left."""

_CAPACITY_MIN: Final = 0x10
_CAPACITY_MAX: Final = 0x1A
_CAPACITY_64_MIB: Final = 0x20


class ResetKind(enum.StrEnum):
    """How a processor starts anew. Only `CPU` keeps the vector map; the others read CONFIG0."""

    POWER_ON = "power-on"
    CHIP = "chip"
    CPU = "cpu"


class FlashController(Protocol):
    """The controller of APROM, LDROM and vector map, with in-application programming on."""

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes of APROM."""

    def erase_page(self, address: int) -> bool:
        """Erase the page at `address`; False if the controller says that it failed."""

    def program_unit(self, address: int, data: bytes) -> bool:
        """Program 8 bytes at `address`; False if the controller says that it failed."""

    def crc32(self, address: int, length: int) -> int:
        """Return what the controller gives as the CRC-32 of a range, 0xFFFFFFFF when it fails."""

    def map_vectors(self, address: int) -> None:
        """Make the page at `address` the one that the next CPU reset starts from."""


class SpiBus(Protocol):
    """The SPI flash as its pins see it."""

    def transfer(self, command: bytes, answer_length: int = 0) -> bytes:
        """Send a command and return its answer, `answer_length` bytes; FF where nobody answers."""


@dataclass(frozen=True, slots=True)
class Handover:
    """How a boot program ended: its console lines, the vector map that it left, the reset that it asked for."""

    console: tuple[str, ...]
    vector_map: int
    reset: ResetKind


@dataclass(frozen=True, slots=True)
class SpiStart:
    """What came of starting the SPI flash: its JEDEC id (3 bytes) and the console line."""

    jedec_id: bytes
    line: str

    @property
    def known(self) -> bool:
        """Whether the maker is one that the boot programs know."""
        return self.line != SPIM_FAILED

    @property
    def size(self) -> int:
        """Bytes of the chip as its id tells them, 0 if it does not."""
        code = self.jedec_id[2]
        if code == _CAPACITY_64_MIB:
            return 1 << 26
        return 1 << code if _CAPACITY_MIN <= code <= _CAPACITY_MAX else 0


def start_spi(spi: SpiBus) -> SpiStart:
    """Reset the SPI flash, clear its status register and read its id, as the shipped Cloner does at every run."""
    spi.transfer(SPI_RESET_ENABLE)
    spi.transfer(SPI_RESET)
    spi.transfer(SPI_WRITE_ENABLE)
    spi.transfer(SPI_CLEAR_STATUS)
    jedec_id = spi.transfer(SPI_READ_ID, 3)
    maker, kind, capacity = jedec_id
    if maker == _SPANSION:
        bank = spi.transfer(SPI_READ_BANK, 1)[0]
        spi.transfer(bytes((SPI_WRITE_BANK, bank & 0x7F)))
    elif maker not in _FOUR_BYTES_FROM:
        return SpiStart(jedec_id, SPIM_FAILED)
    elif capacity >= _FOUR_BYTES_FROM[maker]:
        spi.transfer(SPI_LEAVE_4_BYTES)
        if maker == _EON:
            spi.transfer(SPI_READ_SECURITY, 1)
    return SpiStart(jedec_id, f"SPIM get JEDEC ID=0x{maker:02X}, 0x{kind:02X}, 0x{capacity:02X}")


def read_spi(spi: SpiBus, address: int, length: int) -> bytes:
    """Return `length` bytes of SPI flash: command 0B, three address bytes, one dummy byte, one line."""
    return spi.transfer(bytes((SPI_FAST_READ,)) + address.to_bytes(3, "big") + b"\0", length)


def erase_spi_block(spi: SpiBus, address: int) -> None:
    """Erase the 4 KiB at `address`; a part without such blocks ignores it."""
    spi.transfer(SPI_WRITE_ENABLE)
    spi.transfer(bytes((SPI_ERASE_4K,)) + address.to_bytes(3, "big"))
    spi.transfer(SPI_READ_STATUS, 1)


def program_spi(spi: SpiBus, address: int, data: bytes) -> None:
    """Program `data`, which lies within a page of 256 bytes."""
    spi.transfer(SPI_WRITE_ENABLE)
    spi.transfer(bytes((SPI_PROGRAM,)) + address.to_bytes(3, "big") + data)
    spi.transfer(SPI_READ_STATUS, 1)


def program_page(controller: FlashController, address: int, data: bytes) -> None:
    """Program a page or less, unit by unit; nobody asks whether it worked."""
    for start in range(0, len(data), PROGRAM_UNIT):
        controller.program_unit(address + start, data[start : start + PROGRAM_UNIT])
