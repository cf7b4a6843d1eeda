"""The board `dual-mcu-ncp`: a primary MCU with one bank, which its boot loader fills from the NCP.

Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from flota.boards.model import BOOT_NCP_ASSISTED, Board
from flota.errors import InvalidInput
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
    newest_record,
    sha256_of,
    write_record,
)
from flota.virtual.flash import NorFlash
from flota.virtual.hardware import BootReport, ImageNotes
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.slots import BadImage, RunningApp, SlotState
from flota.virtual.slotted_flash import FixedSlots, SlottedFlash, app_in, offset_of

APP_SLOT: Final = "app"


class OneBankHardware(SlottedFlash):
    """The MCU under power. `crashes` is in retained memory: it outlives a reset, not the power."""

    def __init__(self, board: Board, flash: NorFlash, *, nvs: NonVolatileStore) -> None:
        if board.boot != BOOT_NCP_ASSISTED or tuple(slot.name for slot in board.slots) != (APP_SLOT,):
            raise InvalidInput(f"{board.name} has no boot loader that fetches from an NCP")
        super().__init__(board, flash)
        self.time = FlashTime()
        self.crashes = 0
        self._notes = ImageNotes(nvs)
        flash.listener = self.time

    # --- power and boot -----------------------------------------------------------------------------------------------

    def power_off(self) -> None:
        """Take the power away; retained memory is lost."""
        super().power_off()
        self.crashes = 0

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

    def flash_app(self, data: bytes) -> str:
        """Put an image into the bank, as a programmer would. Raises `InvalidInput`."""
        self.fill_slot(APP_SLOT, data)
        entry = AppEntry(len(data), bytes.fromhex(sha256_of(data)))
        fw_type = firmware_info_of(data).fw_type
        self.write_record(FetchRecord(FetchState.DONE, entry, fw_type=fw_type if fits_the_record(fw_type) else ""))
        return APP_SLOT

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

    def _is_sound(self, app: AppEntry) -> bool:
        return sha256_of(self.read_slot(APP_SLOT, app.size)) == app.sha256.hex()

    def _app(self, app: AppEntry) -> RunningApp:
        data = self.read_slot(APP_SLOT, app.size)
        info = firmware_info_of(data, self._notes.version_of(app.sha256.hex()))
        return app_in(APP_SLOT, data, version=info.version or "unknown")


_WORDS: Final = {
    BootWay.FETCH: "asks the NCP for the image that the record names",
    BootWay.LISTEN: "no app that lives; waits for an offer of the NCP",
}


class OneBankSlots(FixedSlots):
    """The bank as the running app sees it, or the boot loader (`running` None)."""

    rolls_back = False
    written_by = "by its boot loader"

    def __init__(self, hardware: OneBankHardware, running: RunningApp | None, way: BootWay = BootWay.APP) -> None:
        super().__init__(hardware, running)
        self.hardware = hardware
        self.way = way

    def next_slot(self) -> str:
        """Return the only bank."""
        return APP_SLOT

    def open_stream(self, size: int) -> StreamWriter:
        """Return a writer into the bank, for the boot loader. Raises `BadImage` in the app, or if it does not fit."""
        if self._running is not None:
            raise BadImage("the bank is running")
        if not 0 < size <= self.capacity(APP_SLOT):
            raise BadImage("the image does not fit the bank", expected=f"1 to {self.capacity(APP_SLOT)}", found=size)
        return StreamWriter(self.hardware.flash, offset_of(self.hardware.slot(APP_SLOT)), size)

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
