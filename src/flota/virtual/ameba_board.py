"""An AmebaD board: its flash, the boot decision of both cores, what a programmer does to it.

The boot images themselves are the vendor's and not part of Flota: their area of the flash stays blank, and their
decision is `flota.virtual.boot.ameba`.
Source: docs/reference/ameba-boot.md, docs/reference/ameba-images.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flota.boards.model import Board
from flota.errors import InvalidInput
from flota.images.ameba.flash_map import AmebaFlashMap, flash_map
from flota.images.ameba.image2 import KM0, KM4, parse_core, parse_image2
from flota.images.ameba.ota_file import is_ota_file, parse_ota_file
from flota.images.ameba.segment import (
    HEADER_SIZE,
    IMAGE2_SIGNATURE,
    SECTOR_SIZE,
    SegmentHeader,
    parse_segment_header,
    rounded_up,
)
from flota.images.markers import find_markers
from flota.images.model import ImageError
from flota.virtual.boot.ameba import BootEnd, Km0Boot, boot_km0, boot_km4
from flota.virtual.flash import ERASED_BYTE, FlashOperation, FlashOperationKind, NorFlash
from flota.virtual.hardware import BootReport, ImageNotes
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.pace import Pace
from flota.virtual.slots import BadImage, RunningApp, SlotState, SlotWriter

FLASH_NAME: Final = "flash.bin"
SLOT_NAMES: Final = ("ota1", "ota2")

SECTOR_ERASE_S: Final = 0.038
"""180 sectors took 6.9 s in the vendor's log."""

BODY_BYTES_PER_S: Final = 150_000.0
"""Network and programming together, same log: 737,280 bytes in 4.8 s."""

_ENDS: Final = {
    BootEnd.NO_IMAGE: "no slot has a valid signature: the ROM's shell",
    BootEnd.BAD_RAM_HEADER: "KM0's RAM segment has no usable header: the ROM's shell",
    BootEnd.BAD_RAM_TEXT: "RTKWin is missing: the ROM's shell",
    BootEnd.HANG: "KM4's part is missing: the boot loader hangs",
    BootEnd.FAULT: "a header is off its alignment: HardFault",
    BootEnd.SECURE_BOOT_FAILED: "KM4's signature does not hold: KM4's boot loader hangs",
    BootEnd.BAD_XIP_SIZE: "KM4's XIP size is none: KM4's boot loader hangs",
}


@dataclass(slots=True)
class AmebaStraps:
    """What is wired on the board: the pin that forces OTA1 at its active level."""

    force_ota1: bool = False


class AmebaHardware:
    """The board under power. `notes` keep what installers knew of files; `straps` may be changed between boots."""

    def __init__(self, board: Board, flash: NorFlash, *, nvs: NonVolatileStore, pace: Pace) -> None:
        self.board = board
        self.layout = map_of(board)
        self.flash = flash
        self.pace = pace
        self.straps = AmebaStraps()
        self._notes = ImageNotes(nvs)
        flash.listener = self._spend_time

    # --- power and boot -----------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Give power to the flash."""
        self.flash.power_on()

    def power_off(self) -> None:
        """Take the power away."""
        self.flash.cut_power()

    def close(self) -> None:
        """Let go of the flash file."""
        self.flash.close()

    def boot(self) -> BootReport:
        """Run both boot loaders once; they write nothing."""
        decision = self.decision()
        if not decision.started or decision.slot is None or decision.km4_place is None:
            where = "" if decision.slot is None else f"OTA{decision.slot}: "
            return BootReport(None, None, (f"{where}{_ENDS[decision.end]}",))
        km4 = boot_km4(self.read, decision.km4_place)
        if km4.end is not BootEnd.STARTED:
            return BootReport(None, None, (f"OTA{decision.slot}: KM4: {_ENDS[km4.end]}",))
        app = self._app(decision.slot)
        return BootReport(app, AmebaSlots(self, app))

    def decision(self) -> Km0Boot:
        """Return what KM0's boot loader would do now."""
        return boot_km0(self.read, self.layout, force_ota1=self.straps.force_ota1)

    # --- what a programmer does ---------------------------------------------------------------------------------------

    @property
    def blank(self) -> bool:
        """Whether neither slot begins with a signature."""
        places = (self.layout.ota1, self.layout.ota2)
        return all(self.read(place, len(IMAGE2_SIGNATURE)) != IMAGE2_SIGNATURE for place in places)

    def write_flash(self, address: int, data: bytes) -> None:
        """Erase the sectors that `data` touches, program it at `address`. Raises `InvalidInput` outside the flash."""
        length = -(-len(data) // SECTOR_SIZE) * SECTOR_SIZE
        if address % SECTOR_SIZE or address < 0 or address + length > self.flash.size:
            raise InvalidInput(
                "cannot flash there",
                offset=address,
                expected=f"a multiple of {SECTOR_SIZE:#x}, ending at most at {self.flash.size:#x}",
                found=f"{len(data)} bytes",
            )
        self.flash.erase(address, length)
        for start in range(0, len(data), SECTOR_SIZE):
            self.flash.program(address + start, data[start : start + SECTOR_SIZE])

    def erase_chip(self) -> None:
        """Set the whole flash to FF, as the IDE's "Erase Flash" does."""
        self.flash.erase(0, self.flash.size)

    def flash_app(self, data: bytes) -> str:
        """Put `km0_km4_image2.bin` (or the image out of an `OTA_All.bin`) into OTA1, as serial upload does.

        OTA2 stays as it is: while its signature is good the board goes on booting it. Raises an `ImageError`.
        """
        image = parse_ota_file(data).image if is_ota_file(data) else data
        parse_image2(image)
        if len(image) > self.layout.slot_size:
            raise InvalidInput("the image is larger than OTA1", expected=self.layout.slot_size, found=len(image))
        self.write_flash(self.layout.ota1, image)
        return SLOT_NAMES[0]

    # --- looking ------------------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """Return flash content; beyond the chip's end FF."""
        if offset >= self.flash.size:
            return bytes([ERASED_BYTE]) * length
        inside = min(length, self.flash.size - offset)
        return self.flash.read(offset, inside) + bytes([ERASED_BYTE]) * (length - inside)

    def slot_names(self) -> tuple[str, ...]:
        """Return the slots' names."""
        return SLOT_NAMES

    def running_slot(self) -> str | None:
        """Return the slot that a boot would start now, None if nothing boots."""
        decision = self.decision()
        return SLOT_NAMES[decision.slot - 1] if decision.started and decision.slot else None

    def slot_content(self, slot: str) -> bytes:
        """Return the whole slot. Raises `InvalidInput` with the names there are."""
        return self.flash.read(self.layout.slot_offset(slot_number(slot)), self.layout.slot_size)

    def image_in(self, slot: str) -> bytes:
        """Return exactly the image in a slot; one whose signature was cleared is given as it was written.

        Raises `ImageError` if there is none.
        """
        content = IMAGE2_SIGNATURE + self.slot_content(slot)[len(IMAGE2_SIGNATURE) :]
        return content[: image_length(content)]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _app(self, number: int) -> RunningApp:
        base, size = self.layout.slot_offset(number), self.layout.slot_size
        content = self.flash.read(base, min(self._told_length(base), size))
        try:
            image = content[: image_length(content)]
        except ImageError:
            image = self.flash.read(base, size)  # it starts all the same: no boot loader looks further
        digest = hashlib.sha256(image).hexdigest()
        markers = find_markers(image)
        return RunningApp(
            slot=SLOT_NAMES[number - 1],
            version=markers.get("version") or self._notes.version_of(digest) or "unknown",
            size=len(image),
            sha256=digest,
            md5=hashlib.md5(image, usedforsecurity=False).hexdigest(),
            markers=markers,
        )

    def _told_length(self, base: int) -> int:
        """Return how far the headers of the image at `base` say that it reaches, a secure-boot block included (bytes).

        Reading no more than that makes a boot cheap; whether the headers are right is `image_length`'s to say.
        """
        end = base
        for core in (KM0, KM4):
            for _ in ("XIP", "RAM"):
                end += HEADER_SIZE + self._header_at(end).size
            psram = self._header_at(end)
            if core == KM4 and psram.signature == IMAGE2_SIGNATURE:
                end += HEADER_SIZE + psram.size
            end = base + rounded_up(end - base)
        return end - base + SECTOR_SIZE

    def _header_at(self, place: int) -> SegmentHeader:
        return parse_segment_header(self.read(place, HEADER_SIZE))

    def _spend_time(self, operation: FlashOperation) -> None:
        if operation.kind is FlashOperationKind.ERASE:
            self.pace.owe(SECTOR_ERASE_S)
        else:
            self.pace.owe(operation.length / BODY_BYTES_PER_S)


class AmebaSlots:
    """What an app sees of its board; there is nothing to confirm and nothing to go back to."""

    def __init__(self, hardware: AmebaHardware, app: RunningApp) -> None:
        self.hardware = hardware
        self._app = app

    @property
    def running(self) -> RunningApp:
        """The app that runs."""
        return self._app

    @property
    def rolls_back(self) -> bool:
        """Never."""
        return False

    def next_slot(self) -> str:
        """Return the slot that does not run."""
        return SLOT_NAMES[2 - slot_number(self._app.slot)]

    def capacity(self, slot: str) -> int:
        """Return the slot's size (bytes); no device checks it."""
        slot_number(slot)
        return self.hardware.layout.slot_size

    async def begin(self, slot: str, size: int) -> SlotWriter:
        """Raise: an AmebaD update is written by `AmebaUpdate` only."""
        raise BadImage("an AmebaD slot is written by the vendor's update code", found=slot)

    async def resume(self, slot: str, size: int, written: int) -> SlotWriter:
        """Raise: nothing can be resumed on this route."""
        raise BadImage("an AmebaD update cannot be resumed", found=slot)

    def read(self, slot: str, length: int) -> bytes:
        """Return the first `length` bytes of the slot."""
        return self.hardware.slot_content(slot)[:length]

    def chosen(self) -> str | None:
        """Return the slot that the next boot starts."""
        return self.hardware.running_slot()

    def set_boot(self, slot: str) -> None:
        """Raise: the signatures decide, and only an update writes them."""
        raise BadImage("an AmebaD board has no boot record", found=slot)

    def confirm(self) -> None:
        """Nothing is to be confirmed."""

    def reject(self) -> None:
        """Raise: there is no way back."""
        raise BadImage("an AmebaD board cannot roll back", found=self._app.slot)

    def state_of(self, slot: str) -> SlotState | None:
        """Return valid for a slot with a signature, None else."""
        return SlotState.VALID if self.read(slot, len(IMAGE2_SIGNATURE)) == IMAGE2_SIGNATURE else None


def map_of(board: Board) -> AmebaFlashMap:
    """Return the flash map of a board. Raises `InvalidInput` when it is none of AmebaD's."""
    if board.boot != "ameba-signature":
        raise InvalidInput(f"{board.name} is no AmebaD board")
    return flash_map(f"{board.flash_size // (1024 * 1024)}MB")


def slot_number(slot: str) -> int:
    """Return 1 for `ota1`, 2 for `ota2`. Raises `InvalidInput` with the names there are."""
    if slot not in SLOT_NAMES:
        raise InvalidInput("no such slot", expected=" or ".join(SLOT_NAMES), found=repr(slot))
    return SLOT_NAMES.index(slot) + 1


def image_length(content: bytes) -> int:
    """Return the length of the image at the start of `content` (bytes), whole sectors. Raises an `ImageError`."""
    km0 = parse_core(content, KM0)
    return parse_core(content, KM4, km0.padded_end).padded_end


def open_flash(directory: Path, board: Board) -> NorFlash:
    """Return the flash kept in `directory`, made blank if it is new; single bytes can be programmed."""
    return NorFlash.open(directory / FLASH_NAME, board.flash_size, sector_size=SECTOR_SIZE, write_alignment=1)
