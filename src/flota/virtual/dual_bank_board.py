"""The board `dual-mcu-ab`: a primary MCU with two banks, a boot record in two copies, and a trial for new images.

Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flota.boards.model import BOOT_DUAL_BANK, Board, Slot
from flota.errors import InvalidInput
from flota.images.markers import find_markers
from flota.virtual.boot.dual_bank import (
    BANKS,
    RECORD_SIZE,
    TRIAL_BOOTS,
    BankEntry,
    BankState,
    DualBankRecord,
    decide,
    other_bank,
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

FLASH_NAME: Final = "flash.bin"
_STATES: Final = {
    BankState.VALID: SlotState.VALID,
    BankState.TRIAL: SlotState.PENDING_VERIFY,
    BankState.FAILED: SlotState.ABORTED,
}


class DualBankHardware:
    """The MCU under power; `nvs` holds the versions that installers knew of images without a tag."""

    def __init__(self, board: Board, flash: NorFlash, *, nvs: NonVolatileStore) -> None:
        if board.boot != BOOT_DUAL_BANK or tuple(slot.name for slot in board.slots) != BANKS:
            raise InvalidInput(f"{board.name} has no two banks")
        self.board = board
        self.flash = flash
        self.time = FlashTime()
        self.trial_boots = TRIAL_BOOTS
        self._slots = {slot.name: slot for slot in board.slots}
        self._notes = ImageNotes(nvs)
        flash.listener = self.time

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
        """Boot once: count a trial, verify, start."""
        record = self.record
        decision = decide(record)
        writes: tuple[str, ...] = ()
        if decision.record is not record:
            self.write_record(decision.record)
            writes = (f"boot record {decision.record.boot}, {decision.record.boots_left} boots left",)
        refused: list[str] = []
        for name in decision.order:
            entry = decision.record.banks[name]
            if sha256_of(self.read_slot(name, entry.size)) == entry.sha256:
                app = self._app(name, entry)
                return BootReport(app, DualBankSlots(self, app), tuple(refused), writes)
            refused.append(f"{name}: the image is not what the record says")
        return BootReport(None, None, tuple(refused), writes)

    # --- the boot record ----------------------------------------------------------------------------------------------

    @property
    def record(self) -> DualBankRecord:
        """The boot record that counts; an empty one on a blank board."""
        return newest_record(self.flash, RECORD_SIZE, parse_record)[1] or DualBankRecord()

    def write_record(self, record: DualBankRecord) -> None:
        """Write a record; its number is the next one."""
        place, current = newest_record(self.flash, RECORD_SIZE, parse_record)
        number = 0 if current is None else current.number
        numbered = DualBankRecord(record.boot, record.banks, record.boots_left, number + 1)
        write_record(self.flash, place, pack_record(numbered))

    # --- what a programmer does, and looking --------------------------------------------------------------------------

    @property
    def blank(self) -> bool:
        """Whether there is no boot record."""
        return not self.record.banks

    def write_flash(self, address: int, data: bytes) -> None:
        """Erase the sectors that `data` touches, program it at `address`. Raises `InvalidInput` outside the flash."""
        write_at(self.flash, address, data)

    def erase_chip(self) -> None:
        """Set the whole flash to FF."""
        self.flash.erase(0, self.flash.size)

    def flash_app(self, data: bytes, slot: str = BANKS[0]) -> str:
        """Put an image into a bank, confirmed and chosen, as a programmer would. Raises `InvalidInput`."""
        write_region(self.flash, self.slot(slot), data)
        entry = BankEntry(BankState.VALID, len(data), sha256_of(data))
        self.write_record(DualBankRecord(slot, {**self.record.banks, slot: entry}))
        return slot

    def slot(self, name: str) -> Slot:
        """Return a bank by its name. Raises `InvalidInput` with the names there are."""
        if name not in self._slots:
            raise InvalidInput("no such slot", expected=" or ".join(BANKS), found=repr(name))
        return self._slots[name]

    def running_slot(self) -> str | None:
        """Return the bank that the record boots, None on a blank board."""
        record = self.record
        return record.boot if record.boot in record.banks else None

    def image_in(self, slot: str) -> bytes:
        """Return the image in a bank, of the length that the record says. Raises `InvalidInput` if there is none."""
        entry = self.record.banks.get(self.slot(slot).name)
        if entry is None:
            raise InvalidInput(f"there is no image in {slot}")
        return self.read_slot(slot, entry.size)

    def read_slot(self, slot: str, length: int) -> bytes:
        """Return the first `length` bytes of a bank."""
        place = self.slot(slot)
        return self.flash.read(offset_of(place), min(length, place.size))

    def _app(self, bank: str, entry: BankEntry) -> RunningApp:
        data = self.read_slot(bank, entry.size)
        info = firmware_info_of(data, self._notes.version_of(entry.sha256))
        return RunningApp(
            slot=bank,
            version=info.version or "unknown",
            size=entry.size,
            sha256=entry.sha256,
            md5=md5_of(data).hex(),
            awaits_confirmation=entry.state is BankState.TRIAL,
            markers=find_markers(data),
        )


class DualBankSlots:
    """The banks as the running app sees them."""

    rolls_back = True

    def __init__(self, hardware: DualBankHardware, running: RunningApp) -> None:
        self.hardware = hardware
        self._running = running

    @property
    def running(self) -> RunningApp:
        """The app that runs."""
        return self._running

    def next_slot(self) -> str:
        """Return the bank that is not running."""
        return other_bank(self._running.slot)

    def capacity(self, slot: str) -> int:
        """Return the bank's size (bytes)."""
        return self.hardware.slot(slot).size

    def open_stream(self, size: int) -> StreamWriter:
        """Make the other bank not bootable; return a writer into it. Raises `BadImage` if it does not fit."""
        bank = self.next_slot()
        if not 0 < size <= self.capacity(bank):
            raise BadImage("the image does not fit the bank", expected=f"1 to {self.capacity(bank)} bytes", found=size)
        record = self.hardware.record
        if bank in record.banks or record.boot != self._running.slot:
            self.hardware.write_record(DualBankRecord(self._running.slot, record.without(bank).banks))
        return StreamWriter(self.hardware.flash, offset_of(self.hardware.slot(bank)), size)

    def try_image(self, writer: StreamWriter) -> None:
        """Put the image that was written on trial."""
        digest = sha256_of(writer.content())
        record = self.hardware.record.trying(self.next_slot(), writer.size, digest, boots=self.hardware.trial_boots)
        self.hardware.write_record(record)

    async def begin(self, slot: str, size: int) -> SlotWriter:
        """Raise: this board's firmware writes a stream (`open_stream`)."""
        raise BadImage("this board is written by its NCP", found=slot)

    async def resume(self, slot: str, size: int, written: int) -> SlotWriter:
        """Raise: a stream always starts at its first byte."""
        raise BadImage("this board is written by its NCP", found=slot)

    def read(self, slot: str, length: int) -> bytes:
        """Return the first bytes of a bank."""
        return self.hardware.read_slot(slot, length)

    def chosen(self) -> str | None:
        """Return the bank that the record names."""
        return self.hardware.record.boot

    def set_boot(self, slot: str) -> None:
        """Make the bank the next boot's choice. Raises `BadImage` if it holds nothing bootable."""
        record = self.hardware.record
        if slot not in record.banks:
            raise BadImage(f"there is no image in {slot}")
        if record.boot != slot:
            self.hardware.write_record(DualBankRecord(slot, record.banks, record.boots_left))

    def confirm(self) -> None:
        """Mark the running image good."""
        record = self.hardware.record
        if record.banks[self._running.slot].state is not BankState.VALID:
            self.hardware.write_record(record.with_state(self._running.slot, BankState.VALID))

    def reject(self) -> None:
        """Mark the running image bad and choose the other one. Raises `BadImage` if there is none."""
        record = self.hardware.record
        fallback = other_bank(self._running.slot)
        if fallback not in record.banks:
            raise BadImage("there is no other image to fall back to")
        self.hardware.write_record(
            DualBankRecord(fallback, record.with_state(self._running.slot, BankState.FAILED).banks)
        )

    def state_of(self, slot: str) -> SlotState | None:
        """Return what the record says of a bank."""
        entry = self.hardware.record.banks.get(slot)
        return None if entry is None else _STATES[entry.state]


def open_flash(directory: Path, board: Board) -> NorFlash:
    """Return the flash kept in `directory`, made blank if it is new."""
    return NorFlash.open(
        directory / FLASH_NAME,
        board.flash_size,
        sector_size=board.sector_size,
        write_alignment=board.write_alignment,
    )
