"""The board `dual-mcu-ab`: a primary MCU with two banks, a boot record in two copies, and a trial for new images.

Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

from typing import Final

from flota.boards.model import BOOT_DUAL_BANK, Board
from flota.errors import InvalidInput
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
    newest_record,
    sha256_of,
    write_record,
)
from flota.virtual.flash import NorFlash
from flota.virtual.hardware import BootReport, ImageNotes
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.slots import BadImage, RunningApp, SlotState
from flota.virtual.slotted_flash import FixedSlots, SlottedFlash, app_in, offset_of

_STATES: Final = {
    BankState.VALID: SlotState.VALID,
    BankState.TRIAL: SlotState.PENDING_VERIFY,
    BankState.FAILED: SlotState.ABORTED,
}


class DualBankHardware(SlottedFlash):
    """The MCU under power; `nvs` holds the versions that installers knew of images without a tag."""

    def __init__(self, board: Board, flash: NorFlash, *, nvs: NonVolatileStore) -> None:
        if board.boot != BOOT_DUAL_BANK or tuple(slot.name for slot in board.slots) != BANKS:
            raise InvalidInput(f"{board.name} has no two banks")
        super().__init__(board, flash)
        self.time = FlashTime()
        self.trial_boots = TRIAL_BOOTS
        self._notes = ImageNotes(nvs)
        flash.listener = self.time

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

    def flash_app(self, data: bytes, slot: str = BANKS[0]) -> str:
        """Put an image into a bank, confirmed and chosen, as a programmer would. Raises `InvalidInput`."""
        self.fill_slot(slot, data)
        entry = BankEntry(BankState.VALID, len(data), sha256_of(data))
        self.write_record(DualBankRecord(slot, {**self.record.banks, slot: entry}))
        return slot

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

    def _app(self, bank: str, entry: BankEntry) -> RunningApp:
        data = self.read_slot(bank, entry.size)
        info = firmware_info_of(data, self._notes.version_of(entry.sha256))
        awaits = entry.state is BankState.TRIAL
        return app_in(bank, data, version=info.version or "unknown", awaits_confirmation=awaits)


class DualBankSlots(FixedSlots):
    """The banks as the running app sees them."""

    rolls_back = True
    written_by = "by its NCP, as a stream (`open_stream`)"

    def __init__(self, hardware: DualBankHardware, running: RunningApp) -> None:
        super().__init__(hardware, running)
        self.hardware = hardware

    def next_slot(self) -> str:
        """Return the bank that is not running."""
        return other_bank(self.running.slot)

    def open_stream(self, size: int) -> StreamWriter:
        """Make the other bank not bootable; return a writer into it. Raises `BadImage` if it does not fit."""
        bank = self.next_slot()
        if not 0 < size <= self.capacity(bank):
            raise BadImage("the image does not fit the bank", expected=f"1 to {self.capacity(bank)} bytes", found=size)
        record = self.hardware.record
        if bank in record.banks or record.boot != self.running.slot:
            self.hardware.write_record(DualBankRecord(self.running.slot, record.without(bank).banks))
        return StreamWriter(self.hardware.flash, offset_of(self.hardware.slot(bank)), size)

    def try_image(self, writer: StreamWriter) -> None:
        """Put the image that was written on trial."""
        digest = sha256_of(writer.content())
        record = self.hardware.record.trying(self.next_slot(), writer.size, digest, boots=self.hardware.trial_boots)
        self.hardware.write_record(record)

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
        if record.banks[self.running.slot].state is not BankState.VALID:
            self.hardware.write_record(record.with_state(self.running.slot, BankState.VALID))

    def reject(self) -> None:
        """Mark the running image bad and choose the other one. Raises `BadImage` if there is none."""
        record = self.hardware.record
        fallback = other_bank(self.running.slot)
        if fallback not in record.banks:
            raise BadImage("there is no other image to fall back to")
        self.hardware.write_record(
            DualBankRecord(fallback, record.with_state(self.running.slot, BankState.FAILED).banks)
        )

    def state_of(self, slot: str) -> SlotState | None:
        """Return what the record says of a bank."""
        entry = self.hardware.record.banks.get(slot)
        return None if entry is None else _STATES[entry.state]
