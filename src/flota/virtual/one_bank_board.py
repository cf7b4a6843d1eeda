"""The board `dual-mcu-ncp`: a primary MCU with one bank, which its boot loader fills from the NCP.

Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from flota.boards.model import BOOT_NCP_ASSISTED, Board, Slot
from flota.errors import InvalidInput
from flota.images.markers import find_markers
from flota.virtual.boot.ncp_assisted import (
    RECORD_SIZE,
    AppEntry,
    BootWay,
    FetchRecord,
    FetchState,
    decide,
    fits_the_record,
    pack_record,
    parse_record,
)
from flota.virtual.dual_mcu_flash import (
    FlashTime,
    StreamWriter,
    firmware_info_of,
    md5_of,
    newest_record,
    offset_of,
    sha256_of,
    write_at,
    write_record,
    write_region,
)
from flota.virtual.flash import NorFlash
from flota.virtual.hardware import BootReport, ImageNotes
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.slots import BadImage, RunningApp, SlotState, SlotWriter

APP_SLOT: Final = "app"


class OneBankHardware:
    """The MCU under power. `crashes` is in retained memory: it outlives a reset, not the power."""

    def __init__(self, board: Board, flash: NorFlash, *, nvs: NonVolatileStore) -> None:
        if board.boot != BOOT_NCP_ASSISTED or tuple(slot.name for slot in board.slots) != (APP_SLOT,):
            raise InvalidInput(f"{board.name} has no boot loader that fetches from an NCP")
        self.board = board
        self.flash = flash
        self.time = FlashTime()
        self.crashes = 0
        self._slot = board.slots[0]
        self._notes = ImageNotes(nvs)
        flash.listener = self.time

    # --- power and boot -----------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Give power to the flash."""
        self.flash.power_on()

    def power_off(self) -> None:
        """Take the power away; retained memory is lost."""
        self.flash.cut_power()
        self.crashes = 0

    def close(self) -> None:
        """Let go of the flash file."""
        self.flash.close()

    def boot(self) -> BootReport:
        """Decide once: start the app, or stay in the boot loader (no app in the report, but slots)."""
        record = self.record
        app = record.app
        sound = app is not None and self._is_sound(app)
        way = decide(record, app_is_sound=sound, crashes=self.crashes)
        if way is BootWay.APP:
            assert app is not None
            self.crashes += 1
            running = self._app(app)
            return BootReport(running, OneBankSlots(self, running))
        refused = (f"{APP_SLOT}: the image is not what the record says",) if app is not None and not sound else ()
        return BootReport(None, OneBankSlots(self, None, way), refused, console=(f"boot loader: {_WORDS[way]}",))

    def app_lives(self) -> None:
        """Take note that the app reached its NCP."""
        self.crashes = 0

    # --- the boot record ----------------------------------------------------------------------------------------------

    @property
    def record(self) -> FetchRecord:
        """The boot record that counts; an empty one on a blank board."""
        return newest_record(self.flash, RECORD_SIZE, parse_record)[1] or FetchRecord()

    def write_record(self, record: FetchRecord) -> None:
        """Write a record; its number is the next one. Raises `InvalidInput` for texts that have no room in it."""
        place, current = newest_record(self.flash, RECORD_SIZE, parse_record)
        number = 0 if current is None else current.number
        write_record(self.flash, place, pack_record(replace(record, number=number + 1)))

    # --- what a programmer does, and looking --------------------------------------------------------------------------

    @property
    def blank(self) -> bool:
        """Whether there is no boot record."""
        return self.record.number == 0

    def write_flash(self, address: int, data: bytes) -> None:
        """Erase the sectors that `data` touches, program it at `address`. Raises `InvalidInput` outside the flash."""
        write_at(self.flash, address, data)

    def erase_chip(self) -> None:
        """Set the whole flash to FF."""
        self.flash.erase(0, self.flash.size)

    def flash_app(self, data: bytes) -> str:
        """Put an image into the bank, as a programmer would. Raises `InvalidInput`."""
        write_region(self.flash, self._slot, data)
        entry = AppEntry(len(data), bytes.fromhex(sha256_of(data)))
        fw_type = firmware_info_of(data).fw_type
        self.write_record(FetchRecord(FetchState.DONE, entry, fw_type=fw_type if fits_the_record(fw_type) else ""))
        return APP_SLOT

    def slot(self, name: str) -> Slot:
        """Return the bank. Raises `InvalidInput` for another name."""
        if name != APP_SLOT:
            raise InvalidInput("no such slot", expected=APP_SLOT, found=repr(name))
        return self._slot

    def running_slot(self) -> str | None:
        """Return the bank's name if it holds a sound app."""
        app = self.record.app
        return APP_SLOT if app is not None and self._is_sound(app) else None

    def image_in(self, slot: str) -> bytes:
        """Return the image in the bank, of the length that the record says. Raises `InvalidInput` if there is none."""
        self.slot(slot)
        app = self.record.app
        if app is None:
            raise InvalidInput(f"there is no image in {slot}")
        return self.read_slot(slot, app.size)

    def read_slot(self, slot: str, length: int) -> bytes:
        """Return the first `length` bytes of the bank."""
        place = self.slot(slot)
        return self.flash.read(offset_of(place), min(length, place.size))

    def _is_sound(self, app: AppEntry) -> bool:
        return sha256_of(self.read_slot(APP_SLOT, app.size)) == app.sha256.hex()

    def _app(self, app: AppEntry) -> RunningApp:
        data = self.read_slot(APP_SLOT, app.size)
        info = firmware_info_of(data, self._notes.version_of(app.sha256.hex()))
        return RunningApp(
            slot=APP_SLOT,
            version=info.version or "unknown",
            size=app.size,
            sha256=app.sha256.hex(),
            md5=md5_of(data).hex(),
            markers=find_markers(data),
        )


_WORDS: Final = {
    BootWay.FETCH: "asks the NCP for the image that the record names",
    BootWay.LISTEN: "no app that lives; waits for an offer of the NCP",
}


class OneBankSlots:
    """The bank as the running app sees it, or the boot loader (`running` None)."""

    rolls_back = False

    def __init__(self, hardware: OneBankHardware, running: RunningApp | None, way: BootWay = BootWay.APP) -> None:
        self.hardware = hardware
        self.way = way
        self._running = running

    @property
    def running(self) -> RunningApp:
        """The app that runs. Raises `BadImage` in the boot loader."""
        if self._running is None:
            raise BadImage("no app runs")
        return self._running

    def next_slot(self) -> str:
        """Return the only bank."""
        return APP_SLOT

    def capacity(self, slot: str) -> int:
        """Return the bank's size (bytes)."""
        return self.hardware.slot(slot).size

    def open_stream(self, size: int) -> StreamWriter:
        """Return a writer into the bank, for the boot loader. Raises `BadImage` in the app, or if it does not fit."""
        if self._running is not None:
            raise BadImage("the bank is running")
        if not 0 < size <= self.capacity(APP_SLOT):
            raise BadImage("the image does not fit the bank", expected=f"1 to {self.capacity(APP_SLOT)}", found=size)
        return StreamWriter(self.hardware.flash, offset_of(self.hardware.slot(APP_SLOT)), size)

    async def begin(self, slot: str, size: int) -> SlotWriter:
        """Raise: this board's boot loader writes a stream."""
        raise BadImage("this board is written by its boot loader", found=slot)

    async def resume(self, slot: str, size: int, written: int) -> SlotWriter:
        """Raise: a stream always starts at its first byte."""
        raise BadImage("this board is written by its boot loader", found=slot)

    def read(self, slot: str, length: int) -> bytes:
        """Return the first bytes of the bank."""
        return self.hardware.read_slot(slot, length)

    def chosen(self) -> str | None:
        """Return the bank."""
        return APP_SLOT

    def set_boot(self, slot: str) -> None:
        """Do nothing: there is one bank."""
        self.hardware.slot(slot)

    def confirm(self) -> None:
        """Take note that the app lives; nothing is written."""
        self.hardware.app_lives()

    def reject(self) -> None:
        """Raise: there is no other image."""
        raise BadImage("there is no other image to fall back to")

    def state_of(self, slot: str) -> SlotState | None:
        """Return whether there is an app."""
        return None if self.hardware.record.app is None else SlotState.VALID
