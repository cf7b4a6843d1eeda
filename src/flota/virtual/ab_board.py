"""The board `aws-reference`: two slots in NOR flash and a boot record that survives a power cut at any moment.

Source: docs/reference/virtual-devices.md, "aws-reference".
"""

from __future__ import annotations

import hashlib
from typing import Final

from flota.boards.model import BOOT_AB_RECORD, Board
from flota.errors import InvalidInput
from flota.images.markers import find_markers
from flota.virtual.boot.ab_record import RECORD_SECTORS, RECORD_SIZE, NumberedRecord, newest, pack_record, parse_record
from flota.virtual.boot.two_files import SLOT_A, SLOTS, BootRecord, SlotFile, decide, other_slot
from flota.virtual.flash import FlashOperation, FlashOperationKind, NorFlash
from flota.virtual.hardware import BootReport, ImageNotes
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.pace import SECTOR_ERASE_S, Pace, program_time_s
from flota.virtual.slots import BadImage, RunningApp, SlotState
from flota.virtual.slotted_flash import FixedSlots, SlottedFlash, app_in, offset_of

PAYMENT_BYTES: Final = 64 * 1024
"""How much is erased between two looks at the clock."""


class AbHardware(SlottedFlash):
    """The board under power; `nvs` holds the versions that installers knew."""

    def __init__(self, board: Board, flash: NorFlash, *, nvs: NonVolatileStore, pace: Pace) -> None:
        if board.boot != BOOT_AB_RECORD or tuple(slot.name for slot in board.slots) != SLOTS:
            raise InvalidInput(f"{board.name} is no A/B board")
        super().__init__(board, flash)
        self.pace = pace
        self._notes = ImageNotes(nvs)
        flash.listener = self._spend_time

    def boot(self) -> BootReport:
        """Boot once: choose, note a trial, verify, start."""
        record = self.record
        decision = decide(record)
        writes: tuple[str, ...] = ()
        if decision.record is not record:
            self.write_record(decision.record)
            writes = (f"boot record {decision.record.boot}",)
        refused: list[str] = []
        for name in decision.order:
            reason = self._why_bad(name, decision.record.files[name])
            if reason is None:
                app = self._app(name, decision.record.files[name])
                return BootReport(app, AbSlots(self, app), tuple(refused), writes)
            refused.append(f"{name}: {reason}")
        return BootReport(None, None, tuple(refused), writes)

    # --- the boot record ----------------------------------------------------------------------------------------------

    @property
    def record(self) -> BootRecord:
        """The boot record that counts; an empty one on a blank board."""
        return newest(self._records())[1].record

    def write_record(self, record: BootRecord) -> None:
        """Write a record into the sector of the older one; until it stands, the other one counts."""
        index, current = newest(self._records())
        place = 0 if index is None else (index + 1) % RECORD_SECTORS * self.flash.sector_size
        self.flash.erase(place, self.flash.sector_size)
        self.flash.program(place, pack_record(NumberedRecord(current.number + 1, record)))

    def _records(self) -> tuple[NumberedRecord | None, ...]:
        return tuple(
            parse_record(self.flash.read(index * self.flash.sector_size, RECORD_SIZE))
            for index in range(RECORD_SECTORS)
        )

    # --- what a programmer does, and looking --------------------------------------------------------------------------

    @property
    def blank(self) -> bool:
        """Whether there is no boot record."""
        return not self.record.files

    def flash_app(self, data: bytes, slot: str = SLOT_A) -> str:
        """Put an image into a slot confirmed and chosen, as a programmer would. Raises `InvalidInput`."""
        self.fill_slot(slot, data)
        entry = SlotFile(SlotState.VALID, len(data), hashlib.sha256(data).hexdigest())
        self.write_record(BootRecord(slot, {**self.record.files, slot: entry}))
        return slot

    def running_slot(self) -> str | None:
        """Return the slot that the record boots, None on a blank board."""
        record = self.record
        return record.boot if record.boot in record.files else None

    def image_in(self, slot: str) -> bytes:
        """Return the image in a slot, of the length that the record says. Raises `InvalidInput` if there is none."""
        entry = self.record.files.get(self.slot(slot).name)
        if entry is None:
            raise InvalidInput(f"there is no image in {slot}")
        return self.read_slot(slot, entry.size)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _why_bad(self, slot: str, entry: SlotFile) -> str | None:
        found = hashlib.sha256(self.read_slot(slot, entry.size)).hexdigest()
        return None if found == entry.sha256 else "the image is not what the record says"

    def _app(self, slot: str, entry: SlotFile) -> RunningApp:
        data = self.read_slot(slot, entry.size)
        version = find_markers(data).get("version") or self._notes.version_of(entry.sha256) or "unknown"
        return app_in(slot, data, version=version, awaits_confirmation=entry.state is SlotState.PENDING_VERIFY)

    def _spend_time(self, operation: FlashOperation) -> None:
        if operation.kind is FlashOperationKind.ERASE:
            self.pace.owe(SECTOR_ERASE_S)
        else:
            self.pace.owe(program_time_s(operation.length))


class AbBlockWriter:
    """An image that comes in blocks, in any order, none twice. The slot is not bootable meanwhile."""

    def __init__(self, hardware: AbHardware, slot: str, size: int) -> None:
        self._hardware = hardware
        self.slot = slot
        self.size = size

    async def write_at(self, offset: int, data: bytes) -> None:
        """Program a block at its place; the last one may end anywhere. Raises `BadImage` outside the image."""
        if offset < 0 or offset + len(data) > self.size or not data:
            raise BadImage("the block is outside the image", offset=offset, expected=f"within {self.size} bytes")
        flash = self._hardware.flash
        place = offset_of(self._hardware.slot(self.slot)) + offset
        if place % flash.write_alignment:
            raise BadImage("the block does not begin at a unit of the flash", offset=offset)
        sector = flash.sector_size
        padded = data + b"\xff" * (-len(data) % flash.write_alignment)
        for start in range(0, len(padded), sector):
            flash.program(place + start, padded[start : start + sector])
            await self._hardware.pace.pay()

    def content(self) -> bytes:
        """Return what stands in the slot, as long as the image."""
        return self._hardware.read_slot(self.slot, self.size)


class AbSlots(FixedSlots):
    """The slots as the running app sees them."""

    rolls_back = True
    written_by = "in blocks, in any order (`begin_blocks`)"

    def __init__(self, hardware: AbHardware, running: RunningApp) -> None:
        super().__init__(hardware, running)
        self.hardware = hardware

    def next_slot(self) -> str:
        """Return the slot that is not running."""
        return other_slot(self.running.slot)

    async def begin_blocks(self, slot: str, size: int) -> AbBlockWriter:
        """Take the slot's entry out of the record, erase what an image of `size` bytes needs. Raises `BadImage`."""
        place = self.hardware.slot(slot)
        if slot == self.running.slot:
            raise BadImage(f"{slot} is running")
        if not 0 < size <= place.size:
            raise BadImage("the image does not fit the slot", expected=f"1 to {place.size} bytes", found=size)
        record = self.hardware.record
        if slot in record.files:
            self.hardware.write_record(BootRecord(self.running.slot, record.without(slot).files))
        sector = self.hardware.flash.sector_size
        end = -(-size // sector) * sector
        for start in range(0, end, PAYMENT_BYTES):
            self.hardware.flash.erase(offset_of(place) + start, min(PAYMENT_BYTES, end - start))
            await self.hardware.pace.pay()
        return AbBlockWriter(self.hardware, slot, size)

    def chosen(self) -> str | None:
        """Return the slot that the record names."""
        return self.hardware.record.boot

    def set_boot(self, slot: str) -> None:
        """Make the slot the next boot's choice. Raises `BadImage`: an image is put on trial with `try_image`."""
        record = self.hardware.record
        if slot not in record.files:
            raise BadImage(f"there is no image in {slot}")
        if record.boot != slot:
            self.hardware.write_record(BootRecord(slot, record.files))

    def try_image(self, writer: AbBlockWriter) -> None:
        """Put the image that was written on trial: it boots next, and once."""
        digest = hashlib.sha256(writer.content()).hexdigest()
        entry = SlotFile(SlotState.NEW, writer.size, digest)
        self.hardware.write_record(BootRecord(writer.slot, {**self.hardware.record.files, writer.slot: entry}))

    def confirm(self) -> None:
        """Mark the running image good."""
        record = self.hardware.record
        if record.files[self.running.slot].state is not SlotState.VALID:
            self.hardware.write_record(record.with_state(self.running.slot, SlotState.VALID))

    def reject(self) -> None:
        """Mark the running image bad and choose the other one. Raises `BadImage` if there is none."""
        record = self.hardware.record
        fallback = other_slot(self.running.slot)
        if fallback not in record.files:
            raise BadImage("there is no other image to fall back to")
        files = record.with_state(self.running.slot, SlotState.INVALID).files
        self.hardware.write_record(BootRecord(fallback, files))

    def forget(self, slot: str) -> None:
        """Take a slot that does not run out of the record: what is in it never boots."""
        record = self.hardware.record
        if slot != self.running.slot and slot in record.files:
            self.hardware.write_record(BootRecord(self.running.slot, record.without(slot).files))

    def state_of(self, slot: str) -> SlotState | None:
        """Return what the record says of a slot."""
        entry = self.hardware.record.files.get(slot)
        return None if entry is None else entry.state
