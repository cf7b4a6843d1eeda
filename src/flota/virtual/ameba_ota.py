"""How the vendor's library writes an update on AmebaD: the order of its flash operations, weaknesses included.

Erase the target slot; write the image from its ninth byte on; add everything up; only if the sum is right, write the
signature in two words; then break the old slot's signature. There is no other record, and no way back.
Source: docs/reference/ameba-boot.md, "What an update writes"; ambiot/ambd_sdk: rtl8721d_ota.c, rtl8721d_flash_ram.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flota.images.ameba.flash_map import AmebaFlashMap
from flota.images.ameba.ota_file import byte_sum
from flota.images.ameba.segment import IMAGE2_SIGNATURE, SECTOR_SIZE, rounded_up
from flota.virtual.flash import NorFlash
from flota.virtual.pace import Pace

PROGRAM_MAX_BYTES: Final = 12
"""The SDK gives the flash at most so many bytes with one command, inside a page of 256."""

PAGE_SIZE: Final = 256
SIGNATURE_WORD_SIZE: Final = 4
CLEARED_WORD: Final = bytes(SIGNATURE_WORD_SIZE)
"""What goes over the old signature's first word: one byte 0 and whatever lies behind it in memory; 0 here."""

READ_BYTES_PER_S: Final = 1_500_000.0
"""How fast the library reads back and adds up: 737,280 bytes took 0.5 s in the vendor's log."""


@dataclass(frozen=True, slots=True)
class SumCheck:
    """The sum of what is in the slot and the signature in memory, and the sum that the file's header says."""

    calculated: int
    expected: int

    @property
    def holds(self) -> bool:
        """Whether the update goes on."""
        return self.calculated == self.expected


class AmebaUpdate:
    """One update of a device that runs slot `running` (1 or 2).

    `legacy_target_bug`: cores before March 2024 always chose OTA2, even when it ran. Addresses beyond the chip's end
    wrap around to its start, as the chip's address lines do.
    """

    def __init__(
        self, flash: NorFlash, layout: AmebaFlashMap, running: int, pace: Pace, *, legacy_target_bug: bool = False
    ) -> None:
        self._flash = flash
        self._layout = layout
        self._pace = pace
        self.running = running
        self.target = 2 if legacy_target_bug else 3 - running

    @property
    def target_address(self) -> int:
        """Where the target slot begins, as an offset in flash."""
        return self._layout.slot_offset(self.target)

    async def erase(self, length: int) -> None:
        """Erase what an image of `length` bytes needs, sector by sector from the slot's start; no limit is checked."""
        for offset in range(0, rounded_up(length), SECTOR_SIZE):
            self._flash.erase_sector(self._wrapped(self.target_address + offset))
            await self._pace.pay()

    async def erase_sector(self, offset: int) -> None:
        """Erase the sector that begins at `offset` bytes from the slot's start: a pull does so before each write."""
        self._flash.erase_sector(self._wrapped(self.target_address + offset))
        await self._pace.pay()

    async def write(self, offset: int, data: bytes) -> None:
        """Program `data` at `offset` bytes from the slot's start."""
        self._program(self.target_address + offset, data)
        await self._pace.pay()

    async def add_up(self, length: int, signature: bytes, expected: int) -> SumCheck:
        """Read back `length` bytes but for the first 8, add them and the signature kept in memory."""
        await self._pace.spend(length / READ_BYTES_PER_S)
        start, size = self.target_address + len(IMAGE2_SIGNATURE), max(0, length - len(IMAGE2_SIGNATURE))
        inside = min(size, self._flash.size - start)
        content = self._flash.read(start, inside)
        if inside < size:
            content += self._flash.read(0, size - inside)
        return SumCheck(byte_sum(content) + byte_sum(signature) & 0xFFFF_FFFF, expected)

    async def switch(self, signature: bytes) -> None:
        """Write the signature, low word first, then break the running slot's."""
        self._flash.program(self.target_address, signature[:SIGNATURE_WORD_SIZE])
        self._flash.program(self.target_address + SIGNATURE_WORD_SIZE, signature[SIGNATURE_WORD_SIZE:])
        self._flash.program(self._layout.slot_offset(self.running), CLEARED_WORD)
        await self._pace.pay()

    def _program(self, address: int, data: bytes) -> None:
        position = 0
        while position < len(data):
            place = address + position
            room = PAGE_SIZE - place % PAGE_SIZE
            piece = data[position : position + min(PROGRAM_MAX_BYTES, room)]
            self._flash.program(self._wrapped(place), piece)
            position += len(piece)

    def _wrapped(self, address: int) -> int:
        return address % self._flash.size
