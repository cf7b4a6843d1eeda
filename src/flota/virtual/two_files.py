"""The board `generic-linux`: two files as slots and a boot record that is replaced in one step.

Source: docs/reference/virtual-devices.md, "generic-linux".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flota.errors import InvalidInput
from flota.images.markers import find_markers
from flota.virtual.boot.two_files import SLOT_A, SLOTS, BootRecord, SlotFile, decide, other_slot
from flota.virtual.hardware import BootReport, ImageNotes
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.pace import Pace
from flota.virtual.slots import BadImage, RunningApp, SlotState, SlotWriter

DEFAULT_CAPACITY_BYTES: Final = 64 * 1024 * 1024
WRITE_S_PER_KIB: Final = 0.000_05
"""About 20 MB/s: an SD card."""

RECORD_NAME: Final = "boot.json"


class TwoFileMachine:
    """The hardware: files `slot_a.bin` and `slot_b.bin` and the record `boot.json` in `directory`."""

    def __init__(
        self, directory: Path, nvs: NonVolatileStore, pace: Pace, *, capacity: int = DEFAULT_CAPACITY_BYTES
    ) -> None:
        self._directory = directory
        self._notes = ImageNotes(nvs)
        self._pace = pace
        self._capacity = capacity
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def record(self) -> BootRecord:
        """The boot record on disk."""
        path = self._directory / RECORD_NAME
        if not path.exists():
            return BootRecord()
        return _parse_record(path.read_text("utf-8"))

    def power_on(self) -> None:
        """Give power (files have none to lose)."""

    def power_off(self) -> None:
        """Take power."""

    def close(self) -> None:
        """Let go of files (none is kept open)."""

    def path(self, slot: str) -> Path:
        """Return the file of a slot. Raises `InvalidInput`."""
        if slot not in SLOTS:
            raise InvalidInput("no such slot", expected=" or ".join(SLOTS), found=repr(slot))
        return self._directory / f"slot_{slot}.bin"

    def flash(self, data: bytes, slot: str | None = None) -> str:
        """Put `data` into a slot as a programmer would, confirmed and chosen; returns the slot."""
        if len(data) > self._capacity:
            raise InvalidInput("the file is larger than the slot", expected=self._capacity, found=len(data))
        target = slot or SLOT_A
        partial = self.path(target).with_suffix(".new")
        partial.write_bytes(data)
        partial.replace(self.path(target))
        entry = SlotFile(SlotState.VALID, len(data), hashlib.sha256(data).hexdigest())
        self.write_record(BootRecord(target, {**self.record.files, target: entry}))
        return target

    def image_in(self, slot: str) -> bytes:
        """Return the file in a slot, of the length that the record says. Raises `InvalidInput` if there is none."""
        entry = self.record.files.get(slot)
        if entry is None or not self.path(slot).exists():
            raise InvalidInput(f"there is no image in {slot}")
        return self.path(slot).read_bytes()[: entry.size]

    def slot_names(self) -> tuple[str, ...]:
        """Return the slots' names."""
        return SLOTS

    def running_slot(self) -> str:
        """Return the slot that the record boots."""
        return self.record.boot

    def boot(self) -> BootReport:
        """Boot once: choose, verify, note the choice."""
        record = self.record
        decision = decide(record)
        if decision.record is not record:
            self.write_record(decision.record)
        refused: list[str] = []
        for slot in decision.order:
            entry = decision.record.files[slot]
            reason = self._why_bad(slot, entry)
            if reason is None:
                app = self._app(slot, entry)
                return BootReport(app, TwoFileSlots(self, app, self._pace), tuple(refused))
            refused.append(f"{slot}: {reason}")
        return BootReport(None, None, tuple(refused))

    def write_record(self, record: BootRecord) -> None:
        """Replace the boot record in one step."""
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._directory / f"{RECORD_NAME}.new"
        partial.write_text(_pack_record(record), "utf-8")
        partial.replace(self._directory / RECORD_NAME)

    def capacity(self) -> int:
        """Return the most bytes a slot takes."""
        return self._capacity

    def _why_bad(self, slot: str, entry: SlotFile) -> str | None:
        path = self.path(slot)
        if not path.exists():
            return "the file is missing"
        data = path.read_bytes()[: entry.size]
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            return "the file is not what the record says"
        return None

    def _app(self, slot: str, entry: SlotFile) -> RunningApp:
        data = self.path(slot).read_bytes()[: entry.size]
        markers = find_markers(data)
        version = markers.get("version") or self._notes.version_of(entry.sha256) or "unknown"
        return RunningApp(
            slot=slot,
            version=version,
            size=entry.size,
            sha256=entry.sha256,
            md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
            awaits_confirmation=entry.state is SlotState.PENDING_VERIFY,
            markers=markers,
        )


@dataclass(slots=True)
class TwoFileWriter:
    """Appends to a slot's file; what was written is there after a kill."""

    machine: TwoFileMachine
    slot: str
    size: int
    pace: Pace
    written: int = 0

    @property
    def durable(self) -> int:
        """Bytes in the file."""
        return self.written

    async def write(self, data: bytes) -> None:
        """Append to the file."""
        if self.written + len(data) > self.machine.capacity():
            raise BadImage("the file is larger than the slot", expected=self.machine.capacity())
        with self.machine.path(self.slot).open("r+b") as file:
            file.seek(self.written)
            file.write(data)
        self.written += len(data)
        self.pace.owe(len(data) / 1024 * WRITE_S_PER_KIB)
        await self.pace.pay()

    async def finish(self) -> None:
        """Cut the file to its length and note its digest as not bootable yet."""
        if not self.written:
            raise BadImage("nothing was written")
        with self.machine.path(self.slot).open("r+b") as file:
            file.truncate(self.written)

    def abandon(self) -> None:
        """Leave the file; the record does not name it."""


class TwoFileSlots:
    """The slots as the running app sees them."""

    rolls_back = True

    def __init__(self, machine: TwoFileMachine, running: RunningApp, pace: Pace) -> None:
        self._machine = machine
        self.running = running
        self._pace = pace

    def next_slot(self) -> str:
        """Return the slot that is not running."""
        return other_slot(self.running.slot)

    def capacity(self, slot: str) -> int:
        """Return the most bytes a slot takes."""
        return self._machine.capacity()

    async def begin(self, slot: str, size: int) -> SlotWriter:
        """Empty the slot: first its entry in the record, then the file."""
        self._refuse_running(slot)
        self._machine.write_record(self._machine.record.without(slot))
        self._machine.path(slot).write_bytes(b"")
        return TwoFileWriter(self._machine, slot, size, self._pace)

    async def resume(self, slot: str, size: int, written: int) -> SlotWriter:
        """Go on at `written` bytes."""
        self._refuse_running(slot)
        path = self._machine.path(slot)
        if not path.exists() or path.stat().st_size < written:
            raise BadImage(f"{slot} holds less than {written} bytes")
        return TwoFileWriter(self._machine, slot, size, self._pace, written)

    def read(self, slot: str, length: int) -> bytes:
        """Return the first bytes of a slot."""
        path = self._machine.path(slot)
        with path.open("rb") as file:
            return file.read(length)

    def chosen(self) -> str | None:
        """Return the slot that the record names."""
        return self._machine.record.boot

    def set_boot(self, slot: str) -> None:
        """Put the slot on trial; the running slot needs none."""
        if slot == self.running.slot:
            self._machine.write_record(BootRecord(slot, self._machine.record.files))
            return
        data = self._machine.path(slot).read_bytes()
        entry = SlotFile(SlotState.NEW, len(data), hashlib.sha256(data).hexdigest())
        record = self._machine.record
        self._machine.write_record(BootRecord(slot, {**record.files, slot: entry}))

    def confirm(self) -> None:
        """Mark the running slot good."""
        self._machine.write_record(self._machine.record.with_state(self.running.slot, SlotState.VALID))

    def reject(self) -> None:
        """Mark the running slot bad and choose the other one."""
        slot = self.running.slot
        record = self._machine.record
        fallback = other_slot(slot)
        if fallback not in record.files:
            raise BadImage("there is no other image to fall back to")
        self._machine.write_record(BootRecord(fallback, record.with_state(slot, SlotState.INVALID).files))

    def state_of(self, slot: str) -> SlotState | None:
        """Return what the record says of a slot."""
        entry = self._machine.record.files.get(slot)
        return None if entry is None else entry.state

    def _refuse_running(self, slot: str) -> None:
        if slot == self.running.slot:
            raise BadImage(f"{slot} is running")


def _pack_record(record: BootRecord) -> str:
    files = {
        name: {"state": file.state.value, "size": file.size, "sha256": file.sha256}
        for name, file in record.files.items()
    }
    return json.dumps({"boot": record.boot, "slots": files}, indent=1)


def _parse_record(text: str) -> BootRecord:
    try:
        values = json.loads(text)
        files = {
            name: SlotFile(SlotState(file["state"]), int(file["size"]), str(file["sha256"]))
            for name, file in values["slots"].items()
            if name in SLOTS
        }
        boot = values["boot"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput("not a boot record", found=str(error)) from error
    if boot not in SLOTS:
        raise InvalidInput("not a boot record", expected=" or ".join(SLOTS), found=repr(boot))
    return BootRecord(boot, files)
