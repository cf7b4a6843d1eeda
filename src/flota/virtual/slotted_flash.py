"""A board with one NOR flash and slots at fixed places in it: power, programmer, and what stands in the slots.

Boards with a boot record of their own derive from `SlottedFlash`, and what their apps see from `FixedSlots`.
Source: docs/reference/virtual-devices.md, "aws-reference"; docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, Protocol

from flota.boards.model import Board, Slot
from flota.errors import InvalidInput
from flota.images.markers import find_markers
from flota.virtual.flash import NorFlash
from flota.virtual.slots import BadImage, RunningApp, SlotWriter

FLASH_NAME: Final = "flash.bin"


class SlottedFlash:
    """The board under power."""

    def __init__(self, board: Board, flash: NorFlash) -> None:
        self.board = board
        self.flash = flash
        self._slots = {slot.name: slot for slot in board.slots}

    def power_on(self) -> None:
        """Give power to the flash."""
        self.flash.power_on()

    def power_off(self) -> None:
        """Take the power away."""
        self.flash.cut_power()

    def close(self) -> None:
        """Let go of the flash file."""
        self.flash.close()

    # --- what a programmer does ---------------------------------------------------------------------------------------

    def write_flash(self, address: int, data: bytes) -> None:
        """Erase the sectors that `data` touches, program it at `address`. Raises `InvalidInput` outside the flash."""
        write_at(self.flash, address, data)

    def erase_chip(self) -> None:
        """Set the whole flash to FF."""
        self.flash.erase(0, self.flash.size)

    def fill_slot(self, slot: str, data: bytes) -> None:
        """Write a whole image to a slot's start. Raises `InvalidInput` if it does not fit."""
        place = self.slot(slot)
        if not data or len(data) > place.size:
            raise InvalidInput("the image does not fit the slot", expected=f"1 to {place.size} bytes", found=len(data))
        write_at(self.flash, offset_of(place), data)

    # --- slots --------------------------------------------------------------------------------------------------------

    def slot(self, name: str) -> Slot:
        """Return a slot by its name. Raises `InvalidInput` with the names there are."""
        if name not in self._slots:
            raise InvalidInput("no such slot", expected=" or ".join(self._slots), found=repr(name))
        return self._slots[name]

    def slot_names(self) -> tuple[str, ...]:
        """Return the slots' names."""
        return tuple(self._slots)

    def read_slot(self, slot: str, length: int) -> bytes:
        """Return the first `length` bytes of a slot."""
        place = self.slot(slot)
        return self.flash.read(offset_of(place), min(length, place.size))


class SlotReader(Protocol):
    """The part of a board that `FixedSlots` needs."""

    def slot(self, name: str) -> Slot:
        """Return a slot by its name."""

    def read_slot(self, slot: str, length: int) -> bytes:
        """Return the first bytes of a slot."""


class FixedSlots:
    """Slots as a running app sees them, on a board that nobody writes from the first byte to the last and resumes."""

    written_by: str
    """How its slots are written instead."""

    def __init__(self, reader: SlotReader, running: RunningApp | None) -> None:
        self._reader = reader
        self._running = running

    @property
    def running(self) -> RunningApp:
        """The app that runs. Raises `BadImage` in a boot loader."""
        if self._running is None:
            raise BadImage("no app runs")
        return self._running

    def capacity(self, slot: str) -> int:
        """Return the slot's size (bytes)."""
        return self._reader.slot(slot).size

    def read(self, slot: str, length: int) -> bytes:
        """Return the first bytes of a slot."""
        return self._reader.read_slot(slot, length)

    async def begin(self, slot: str, size: int) -> SlotWriter:
        """Raise `BadImage`: this board is written another way."""
        raise BadImage(f"this board is written {self.written_by}", found=slot)

    async def resume(self, slot: str, size: int, written: int) -> SlotWriter:
        """Raise `BadImage`: this board is written another way."""
        raise BadImage(f"this board is written {self.written_by}", found=slot)


def app_in(slot: str, image: bytes, *, version: str, awaits_confirmation: bool = False) -> RunningApp:
    """Return what is known of an app that starts from `slot`: its digests and its markers."""
    return RunningApp(
        slot=slot,
        version=version,
        size=len(image),
        sha256=hashlib.sha256(image).hexdigest(),
        md5=hashlib.md5(image, usedforsecurity=False).hexdigest(),
        awaits_confirmation=awaits_confirmation,
        markers=find_markers(image),
    )


def write_at(flash: NorFlash, address: int, data: bytes) -> None:
    """Erase the sectors that `data` touches, program it at `address`. Raises `InvalidInput` outside the flash."""
    sector = flash.sector_size
    length = -(-len(data) // sector) * sector
    if address % sector or address < 0 or address + length > flash.size or not data:
        raise InvalidInput(
            "cannot flash there",
            offset=address,
            expected=f"a multiple of {sector:#x}, ending at most at {flash.size:#x}",
            found=f"{len(data)} bytes",
        )
    flash.erase(address, length)
    padded = data + b"\xff" * (-len(data) % flash.write_alignment)
    for start in range(0, len(padded), sector):
        flash.program(address + start, padded[start : start + sector])


def offset_of(slot: Slot) -> int:
    """Return where a slot of such a board begins."""
    assert slot.offset is not None
    return slot.offset


def open_flash(directory: Path, board: Board) -> NorFlash:
    """Return the flash kept in `directory`, made blank if it is new."""
    return NorFlash.open(
        directory / FLASH_NAME,
        board.flash_size,
        sector_size=board.sector_size,
        write_alignment=board.write_alignment,
    )
