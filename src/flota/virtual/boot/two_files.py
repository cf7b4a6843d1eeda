"""The boot choice of a machine with two files as slots and one boot record: trial boot, confirm or fall back. Pure.

The record names the slot to boot and a state for each slot, with the words of the ESP boot loader. A trial that was
started (PENDING_VERIFY) and not confirmed before the next boot is ABORTED, and the other slot boots.

Source: docs/reference/virtual-devices.md, "generic-linux". It is the scheme of U-Boot's boot count with a limit of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from flota.virtual.slots import SlotState

SLOT_A: Final = "a"
SLOT_B: Final = "b"
SLOTS: Final = (SLOT_A, SLOT_B)
FAILED_STATES: Final = frozenset({SlotState.ABORTED, SlotState.INVALID})


@dataclass(frozen=True, slots=True)
class SlotFile:
    """What the record knows of a slot's file: state, size in bytes, lower-case hex SHA-256."""

    state: SlotState
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BootRecord:
    """`boot` is the slot to try first; slots without an entry hold nothing bootable."""

    boot: str = SLOT_A
    files: Mapping[str, SlotFile] = field(default_factory=dict)

    def with_state(self, slot: str, state: SlotState) -> BootRecord:
        """Return the record with another state for `slot`."""
        return replace(self, files={**self.files, slot: replace(self.files[slot], state=state)})

    def without(self, slot: str) -> BootRecord:
        """Return the record with nothing bootable in `slot`."""
        return replace(self, files={name: file for name, file in self.files.items() if name != slot})


def other_slot(slot: str) -> str:
    """Return the slot that is not `slot`."""
    return SLOT_B if slot == SLOT_A else SLOT_A


@dataclass(frozen=True, slots=True)
class TwoFileDecision:
    """The record to write before anything is tried (the same object if unchanged), and the order of tries."""

    record: BootRecord
    order: tuple[str, ...]


def decide(record: BootRecord) -> TwoFileDecision:
    """Return what one boot does with the record."""
    first = record.boot
    entry = record.files.get(first)
    if entry is not None and entry.state is SlotState.PENDING_VERIFY:
        record = replace(record.with_state(first, SlotState.ABORTED), boot=other_slot(first))
        first = record.boot
    elif entry is not None and entry.state is SlotState.NEW:
        record = record.with_state(first, SlotState.PENDING_VERIFY)
    order = [slot for slot in (first, other_slot(first)) if slot in record.files]
    # A rejected image is the last resort, and better than nothing.
    order.sort(key=lambda slot: record.files[slot].state in FAILED_STATES)
    return TwoFileDecision(record, tuple(order))
