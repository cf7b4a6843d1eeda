"""NOR flash keeps its rules, and the plug can be pulled at any operation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from flota.virtual.flash import (
    TEARS,
    Cut,
    CutPhase,
    FlashOperationKind,
    FlashViolation,
    NorFlash,
    PowerCut,
    random_bits,
    words,
)

SIZE = 4 * 4096


def test_an_erase_sets_exactly_one_sector_to_ff() -> None:
    flash = NorFlash(bytearray(SIZE))
    flash.erase_sector(4096)
    assert flash.read(0, SIZE) == bytes(4096) + b"\xff" * 4096 + bytes(8192)


def test_a_program_clears_bits_and_may_clear_more_later() -> None:
    flash = NorFlash.blank(SIZE)
    flash.program(0, b"\xf0\xff\xff\xff")
    flash.program(0, b"\x80\x00\xff\xff")
    assert flash.read(0, 4) == b"\x80\x00\xff\xff"


@pytest.mark.parametrize(
    ("work", "rule"),
    [
        (lambda flash: (flash.program(0, b"\0\0\0\0"), flash.program(0, b"\1\0\0\0")), "already cleared"),
        (lambda flash: flash.program(2, b"\0\0\0\0"), "not aligned"),
        (lambda flash: flash.program(0, b"\0\0\0"), "not aligned"),
        (lambda flash: flash.erase_sector(100), "inside a sector"),
        (lambda flash: flash.erase(0, 100), "inside a sector"),
        (lambda flash: flash.read(SIZE - 4, 8), "outside"),
        (lambda flash: flash.program(SIZE, b"\0\0\0\0"), "outside"),
        (lambda flash: flash.erase_sector(SIZE), "outside"),
        (lambda flash: flash.read(-4, 4), "outside"),
    ],
)
def test_a_broken_rule_is_a_loud_failure_that_no_handler_of_exceptions_catches(work, rule: str) -> None:  # type: ignore[no-untyped-def]
    flash = NorFlash.blank(SIZE)
    with pytest.raises(FlashViolation, match=rule):
        try:
            work(flash)
        except Exception:  # noqa: BLE001
            pytest.fail("an except Exception survived it")


@pytest.mark.parametrize("phase", list(CutPhase))
def test_a_cut_leaves_before_torn_or_after_and_then_nothing_works_until_power_returns(phase: CutPhase) -> None:
    flash = NorFlash.blank(SIZE)
    flash.plan = lambda operation: Cut(phase) if operation.number == 1 else None
    flash.program(0, bytes(4))
    with pytest.raises(PowerCut):
        flash.program(8, bytes(8))
    for work in (lambda: flash.read(0, 4), lambda: flash.erase_sector(0), lambda: flash.program(64, bytes(4))):
        with pytest.raises(PowerCut):
            work()
    flash.plan = None
    flash.power_on()
    left = {CutPhase.BEFORE: b"\xff" * 8, CutPhase.INSIDE: bytes(4) + b"\xff" * 4, CutPhase.AFTER: bytes(8)}
    assert flash.read(8, 8) == left[phase]


@pytest.mark.parametrize("name", list(TEARS))
def test_every_tear_leaves_only_bits_of_before_and_after(name: str) -> None:
    before, after = b"\xff" * 64, bytes(range(64))
    torn = TEARS[name](before, after)
    assert len(torn) == 64
    assert all(found in (old, new) for found, old, new in zip(torn, before, after, strict=True))
    assert torn != after


def test_torn_words_are_those_of_the_mask() -> None:
    assert words(0b101)(bytes(12), b"\xff" * 12) == b"\xff" * 4 + bytes(4) + b"\xff" * 4


def test_torn_bits_are_each_old_or_new() -> None:
    rng = random.Random(1)
    before, after = b"\xf0" * 32, b"\x0f" * 32
    torn = random_bits(rng)(before, after)
    assert torn not in (before, after)
    assert random_bits(rng)(before, before) == before


def test_operations_and_wear_are_counted() -> None:
    flash = NorFlash.blank(SIZE)
    seen: list[FlashOperationKind] = []
    flash.listener = lambda operation: seen.append(operation.kind)
    flash.erase(0, 8192)
    flash.erase_sector(0)
    flash.program(0, bytes(16))
    assert (flash.counters.erases, flash.counters.programs, flash.counters.programmed_bytes) == (3, 1, 16)
    assert flash.erase_counts == {0: 2, 4096: 1}
    assert len(seen) == 4


def test_what_was_written_is_in_the_file_for_the_next_process(tmp_path: Path) -> None:
    flash = NorFlash.open(tmp_path / "flash.bin", SIZE)
    flash.program(4096, b"abcd")
    again = NorFlash.open(tmp_path / "flash.bin", SIZE)  # without closing the first: as after a kill
    assert again.read(4096, 8) == b"abcd\xff\xff\xff\xff"
    with pytest.raises(ValueError, match="expected"):
        NorFlash.open(tmp_path / "flash.bin", SIZE * 2)
    flash.close()
    again.close()
