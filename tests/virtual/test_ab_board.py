"""The A/B board: its boot record through power cuts and rot, its slots, its boots."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.boards.catalogue import board as board_named
from flota.errors import InvalidInput
from flota.lab.at_once import TimelessPace
from flota.virtual.ab_board import AbHardware, AbSlots
from flota.virtual.boot.ab_record import NUMBER_MAX, RECORD_SIZE, NumberedRecord, newest, pack_record, parse_record
from flota.virtual.boot.two_files import BootRecord, SlotFile
from flota.virtual.flash import FlashViolation, NorFlash
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.slots import BadImage, SlotState
from tests.virtual.aws_ota_bench import image

STATES = [state for state in SlotState if state is not SlotState.UNDEFINED]
ENTRIES = st.builds(
    SlotFile, st.sampled_from(STATES), st.integers(0, 0xFFFF_FFFF), st.binary(min_size=32, max_size=32).map(bytes.hex)
)
RECORDS = st.builds(
    NumberedRecord,
    st.integers(0, NUMBER_MAX),
    st.builds(
        BootRecord, st.sampled_from(["a", "b"]), st.dictionaries(st.sampled_from(["a", "b"]), ENTRIES, max_size=2)
    ),
)


@given(RECORDS)
def test_a_record_reads_back_as_it_was_written(record: NumberedRecord) -> None:
    packed = pack_record(record)
    assert len(packed) == RECORD_SIZE
    assert parse_record(packed + b"\xff" * 100) == record


@given(RECORDS, st.integers(0, 8 * RECORD_SIZE - 1))
def test_a_record_with_one_bit_wrong_is_none(record: NumberedRecord, bit: int) -> None:
    packed = bytearray(pack_record(record))
    packed[bit // 8] ^= 1 << bit % 8
    assert parse_record(bytes(packed)) is None


@given(st.binary(max_size=RECORD_SIZE + 8))
def test_anything_else_is_no_record(data: bytes) -> None:
    assert parse_record(data) is None or data[:4] == b"FLAB"


def test_the_record_with_the_higher_number_counts() -> None:
    old, new = (NumberedRecord(number, BootRecord("a")) for number in (7, 8))
    assert newest((new, old)) == (0, new)
    assert newest((old, new)) == (1, new)
    assert newest((None, old)) == (1, old)
    assert newest((None, None)) == (None, NumberedRecord(0, BootRecord()))


def made(data: bytes | None = None) -> AbHardware:
    board = board_named("aws-reference")
    flash = NorFlash.blank(board.flash_size)
    hardware = AbHardware(board, flash, nvs=NonVolatileStore(), pace=TimelessPace())
    if data is not None:
        hardware.flash_app(data)
    return hardware


def booted(hardware: AbHardware) -> AbSlots:
    report = hardware.boot()
    assert isinstance(report.slots, AbSlots)
    return report.slots


def test_a_blank_board_boots_nothing() -> None:
    hardware = made()
    assert hardware.blank
    assert hardware.boot().app is None
    assert hardware.running_slot() is None


def test_a_programmed_board_boots_slot_a_confirmed() -> None:
    slots = booted(made(image("1.0.0")))
    assert (slots.running.slot, slots.running.version) == ("a", "1.0.0")
    assert not slots.running.awaits_confirmation
    assert slots.running.sha256 == hashlib.sha256(image("1.0.0")).hexdigest()


async def test_an_image_on_trial_boots_once_unless_it_is_confirmed() -> None:
    hardware = made(image("1.0.0"))
    slots = booted(hardware)
    writer = await slots.begin_blocks("b", len(image("1.0.1")))
    for start in range(0, writer.size, 4096):
        await writer.write_at(start, image("1.0.1")[start : start + 4096])
    slots.try_image(writer)
    trial = booted(hardware)
    assert (trial.running.version, trial.running.awaits_confirmation) == ("1.0.1", True)
    after = booted(hardware)
    assert (after.running.version, after.state_of("b")) == ("1.0.0", SlotState.ABORTED)


async def test_a_slot_that_is_being_written_is_in_no_record() -> None:
    hardware = made(image("1.0.0"))
    hardware.flash_app(image("1.0.1"), "b")
    slots = booted(hardware)
    assert slots.running.slot == "b"
    await slots.begin_blocks("a", 5000)
    assert hardware.record.files.keys() == {"b"}
    assert hardware.flash.read(0x01_0000, 8192) == b"\xff" * 8192


async def test_an_image_that_rots_is_refused_and_the_other_one_boots() -> None:
    hardware = made(image("1.0.0"))
    hardware.flash_app(image("1.0.1"), "b")
    place = hardware.slot("b").offset
    assert place is not None
    hardware.flash.program(place, b"\0" * 4)
    report = hardware.boot()
    assert report.app is not None
    assert (report.app.slot, report.refused) == ("a", ("b: the image is not what the record says",))


async def test_writes_outside_the_image_or_twice_are_not_possible() -> None:
    slots = booted(made(image("1.0.0")))
    writer = await slots.begin_blocks("b", 8000)
    for offset in (-4096, 8192, 4096):
        with pytest.raises(BadImage):
            await writer.write_at(offset, b"x" * 4096)
    with pytest.raises(BadImage):
        await writer.write_at(2, b"x" * 16)
    await writer.write_at(0, b"\x0f" * 4096)
    with pytest.raises(FlashViolation):
        await writer.write_at(0, b"\xf0" * 4096)


async def test_the_running_slot_and_sizes_that_do_not_fit_are_refused() -> None:
    slots = booted(made(image("1.0.0")))
    for slot, size in (("a", 100), ("b", 0), ("b", 3 * 1024 * 1024 + 1)):
        with pytest.raises(BadImage):
            await slots.begin_blocks(slot, size)
    with pytest.raises(InvalidInput):
        slots.hardware.slot("c")
    with pytest.raises(BadImage):
        slots.set_boot("b")
    with pytest.raises(BadImage):
        slots.reject()


def test_a_programmer_may_write_anywhere_inside_the_flash() -> None:
    hardware = made(image("1.0.0"))
    hardware.write_flash(0x01_0000, b"abc")
    assert hardware.flash.read(0x01_0000, 4) == b"abc\xff"
    for address in (1, hardware.flash.size, -4096):
        with pytest.raises(InvalidInput):
            hardware.write_flash(address, b"abc")
    hardware.erase_chip()
    assert hardware.blank


def test_only_ab_boards_are_ab_boards() -> None:
    with pytest.raises(InvalidInput):
        AbHardware(board_named("amebad"), NorFlash.blank(8192), nvs=NonVolatileStore(), pace=TimelessPace())
