"""`generic-linux`: a trial that is not confirmed falls back, and the record is never half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flota.errors import InvalidInput
from flota.virtual.boot.two_files import SLOT_A, SLOT_B, BootRecord, SlotFile, decide
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.slots import SlotState
from flota.virtual.two_files import TwoFileMachine, TwoFileSlots
from tests.virtual.benches import fast_pace


def machine(directory: Path) -> TwoFileMachine:
    return TwoFileMachine(directory, NonVolatileStore(), fast_pace(), capacity=4096)


def slots_of(each: TwoFileMachine) -> TwoFileSlots:
    slots = each.boot().slots
    assert isinstance(slots, TwoFileSlots)
    return slots


async def install(slots: TwoFileSlots, data: bytes) -> None:
    writer = await slots.begin(slots.next_slot(), len(data))
    await writer.write(data)
    await writer.finish()
    slots.set_boot(writer.slot)


async def test_a_new_file_boots_on_trial_and_stays_once_confirmed(tmp_path: Path) -> None:
    each = machine(tmp_path)
    each.flash(b"one")
    await install(slots_of(each), b"two")
    slots = slots_of(each)
    assert slots.running.awaits_confirmation
    slots.confirm()
    assert slots_of(each).running.slot == SLOT_B
    assert each.image_in(SLOT_B) == b"two"


async def test_a_trial_that_is_not_confirmed_falls_back(tmp_path: Path) -> None:
    each = machine(tmp_path)
    each.flash(b"one")
    await install(slots_of(each), b"two")
    slots_of(each)
    slots = slots_of(each)
    assert slots.running.slot == SLOT_A
    assert slots.state_of(SLOT_B) is SlotState.ABORTED


async def test_a_damaged_file_is_refused_at_boot(tmp_path: Path) -> None:
    each = machine(tmp_path)
    each.flash(b"one")
    await install(slots_of(each), b"two")
    each.path(SLOT_B).write_bytes(b"twx")
    report = each.boot()
    assert report.app is not None
    assert report.app.slot == SLOT_A
    assert "not what the record says" in report.refused[0]


async def test_a_download_goes_on_in_the_file(tmp_path: Path) -> None:
    each = machine(tmp_path)
    each.flash(b"one")
    slots = slots_of(each)
    writer = await slots.begin(SLOT_B, 6)
    await writer.write(b"abc")
    again = await slots.resume(SLOT_B, 6, writer.durable)
    await again.write(b"def")
    await again.finish()
    slots.set_boot(SLOT_B)
    assert slots_of(each).running.size == 6


def test_a_rejected_file_is_the_last_resort() -> None:
    good = SlotFile(SlotState.VALID, 1, "00")
    bad = SlotFile(SlotState.ABORTED, 1, "00")
    assert decide(BootRecord(SLOT_B, {SLOT_A: good, SLOT_B: bad})).order == (SLOT_A, SLOT_B)
    assert decide(BootRecord(SLOT_B, {SLOT_B: bad})).order == (SLOT_B,)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"boot":"c","slots":{}}', '{"boot":"a","slots":{"a":{}}}'])
def test_a_record_of_another_make_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "boot.json").write_text(text)
    with pytest.raises(InvalidInput, match="not a boot record"):
        machine(tmp_path).boot()


def test_the_record_is_replaced_in_one_step(tmp_path: Path) -> None:
    each = machine(tmp_path)
    each.flash(b"one")
    assert json.loads((tmp_path / "boot.json").read_text())["boot"] == SLOT_A
    assert not list(tmp_path.glob("*.new"))
