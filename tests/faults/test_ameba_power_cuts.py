"""Power cuts in the vendor's order of writing on AmebaD: row by row as docs/reference/ameba-boot.md has it.

Every flash operation of one update, every cut moment, both directions, several kinds of old content in the target.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass

import pytest

from flota.boards.catalogue import board as board_named
from flota.images.ameba import IMAGE2_SIGNATURE, SECTOR_SIZE, byte_sum, flash_map
from flota.lab.ameba_sweep_device import ameba_image
from flota.lab.at_once import TimelessPace
from flota.lab.cut_moments import cut_of, moments_of
from flota.lab.esp_sweep_device import SweepAgent
from flota.lab.oracle import Promise
from flota.lab.sweep import Effort, Part, Pass, _reference, live_uninterrupted, run_part
from flota.lab.sweep_subjects import SweepSubject
from flota.lab.swept_flash import SweptFlash
from flota.virtual.ameba_board import AmebaHardware
from flota.virtual.ameba_ota import CLEARED_WORD, AmebaUpdate
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.flash import FlashOperation, FlashOperationKind
from flota.virtual.nvs import NonVolatileStore

LAYOUT = flash_map("2MB")
SIZE = 4 * SECTOR_SIZE
OLD, NEW, OLDER = (ameba_image(version, SIZE) for version in ("1.0.0", "2.0.0", "0.9.0"))
FIRST_WORD = int.from_bytes(IMAGE2_SIGNATURE[:4], "little")
RETIRED = CLEARED_WORD + OLDER[len(CLEARED_WORD) :]


@dataclass(frozen=True)
class Row:
    """A row of the table: which step is cut, and what the next boot may start."""

    step: str
    starts: frozenset[str]


def rows(target: int) -> dict[str, Row]:
    """The table. Between 4 and 5 both slots are valid, and OTA2 wins whichever is the new one."""
    both_valid = "new" if target == 2 else "old"
    return {
        "erase": Row("1", frozenset({"old"})),
        "write": Row("2", frozenset({"old"})),
        "first word": Row("4, first word", frozenset({"old"})),
        "second word": Row("4, second word", frozenset({"old", both_valid})),
        "clear": Row("5", frozenset({both_valid, "new"})),
    }


class Device:
    """A board in the middle of its life: OLD runs, the target holds what it holds."""

    def __init__(self, target: int, before: bytes) -> None:
        self.flash = SweptFlash(LAYOUT.flash_size, write_alignment=1)
        self.hardware = AmebaHardware(board_named("amebad"), self.flash, nvs=NonVolatileStore(), pace=TimelessPace())
        self.target = target
        self.flash.listener = None
        self.hardware.write_flash(LAYOUT.slot_offset(3 - target), OLD)
        if before:
            self.hardware.write_flash(LAYOUT.slot_offset(target), before)

    def boot(self) -> str | None:
        """Which image the next boot starts."""
        self.flash.power_on()
        app = self.hardware.boot().app
        return None if app is None else {"1.0.0": "old", "2.0.0": "new"}.get(app.version, app.version)

    def update(self) -> None:
        """One update in the vendor's order."""
        asyncio.run(self._update())

    async def _update(self) -> None:
        update = AmebaUpdate(self.flash, LAYOUT, 3 - self.target, TimelessPace())
        await update.erase(len(NEW))
        for start in range(8, len(NEW), 512):
            await update.write(start, NEW[start : min(start + 512, len(NEW))])
        assert (await update.add_up(len(NEW), NEW[:8], byte_sum(NEW))).holds
        await update.switch(NEW[:8])

    def row_of(self, operation: FlashOperation) -> str:
        """The row that an operation belongs to."""
        offset = operation.address - LAYOUT.slot_offset(self.target)
        if operation.address == LAYOUT.slot_offset(3 - self.target):
            return "clear"
        if operation.kind is FlashOperationKind.ERASE:
            return "erase"
        return {0: "first word", 4: "second word"}.get(offset, "write")


def recorded(device: Device) -> list[tuple[FlashOperation, object]]:
    """Every operation of an update, with the flash before it."""
    moments: list[tuple[FlashOperation, object]] = []

    def note(operation: FlashOperation) -> None:
        moments.append((operation, device.flash.save()))

    device.flash.power_on()
    device.flash.plan = note  # type: ignore[assignment]  # a plan that never cuts
    device.update()
    device.flash.plan = None
    return moments


BEFORE = {"blank": b"", "an image retired before": RETIRED, "half an image without signature": b"\xff" * 8 + OLDER[8:]}


@pytest.mark.parametrize(
    ("target", "old_content"),
    [*itertools.product([1, 2], BEFORE), (1, "a valid image that lost to OTA2")],
)
def test_every_cut_of_an_update_ends_in_the_row_of_the_table_and_never_without_a_bootable_slot(
    target: int, old_content: str
) -> None:
    device = Device(target, BEFORE.get(old_content, OLDER))
    assert device.boot() == "old"
    seen: Counter[tuple[str, str | None]] = Counter()
    moments = recorded(device)
    for number, (operation, snapshot) in enumerate(moments):
        row = device.row_of(operation)
        if row == "write" and number % 7 and number > 20:
            continue  # body writes are all alike: the sweep of the lab does every one
        for moment in moments_of(operation, number=number + 1, harsh=True):
            device.flash.load(snapshot)
            device.flash.leave(operation, cut_of(moment, operation.kind))
            started = device.boot()
            seen[row, started] += 1
            assert started in rows(target)[row].starts, f"{moment} of {row} (operation {number})"
            if row == "clear" and moment == "before":
                assert started == ("new" if target == 2 else "old"), "both are valid: OTA2 wins"
    assert {row for row, _ in seen} == set(rows(target))
    device.flash.load(moments[-1][1])
    device.flash.leave(moments[-1][0], cut_of("after", moments[-1][0].kind))
    assert device.boot() == "new", "after step 5"


@pytest.mark.parametrize("target", [1, 2])
def test_a_signature_that_is_torn_anywhere_does_not_count(target: int) -> None:
    device = Device(target, b"")
    moments = {device.row_of(operation): (operation, snapshot) for operation, snapshot in recorded(device)}
    for row, length in itertools.product(("first word", "second word"), range(4)):
        operation, snapshot = moments[row]
        device.flash.load(snapshot)
        device.flash.power_on()
        device.flash.program(operation.address, operation.after[:length])
        assert device.boot() == "old", f"{length} bytes of the {row}"
    operation, snapshot = moments["second word"]
    for bit in range(32):
        device.flash.load(snapshot)
        device.flash.power_on()
        almost = bytearray(operation.after)
        almost[bit // 8] |= 1 << bit % 8  # one bit not programmed yet
        device.flash.program(operation.address, bytes(almost))
        complete = bytes(almost) == operation.after
        assert device.boot() == ("new" if complete and target == 2 else "old"), f"bit {bit}"


@pytest.mark.parametrize("target", [1, 2])
@pytest.mark.parametrize("bit", [bit for bit in range(32) if FIRST_WORD >> bit & 1])
def test_any_cleared_bit_of_the_old_signature_retires_it(target: int, bit: int) -> None:
    device = Device(target, b"")
    operation, snapshot = recorded(device)[-1]
    device.flash.load(snapshot)
    device.flash.power_on()
    device.flash.program(operation.address, (FIRST_WORD & ~(1 << bit)).to_bytes(4, "little"))
    assert device.boot() == "new"


def test_a_cut_between_4_and_5_with_ota1_as_target_silently_keeps_the_old_image_and_the_next_update_works() -> None:
    device = Device(1, RETIRED)
    operation, snapshot = recorded(device)[-1]
    device.flash.load(snapshot)
    device.flash.leave(operation, cut_of("before", operation.kind))
    assert device.boot() == "old"
    assert device.hardware.read(LAYOUT.ota1, 8) == IMAGE2_SIGNATURE
    device.update()
    assert device.boot() == "new"


def test_the_forced_pin_shows_what_a_half_written_ota1_would_do() -> None:
    """A limit of the board: with the pin that forces OTA1 a cut leaves nothing to boot while OTA1 is being written."""
    device = Device(1, RETIRED)
    device.hardware.straps.force_ota1 = True
    for operation, snapshot in recorded(device)[:6]:
        device.flash.load(snapshot)
        device.flash.leave(operation, cut_of("after", operation.kind))
        assert device.boot() is None


def test_a_cut_in_an_update_by_an_old_core_that_writes_the_running_slot_leaves_nothing_to_boot() -> None:
    """A limit of cores before March 2024: with OTA2 running they erase OTA2."""
    device = Device(1, RETIRED)
    update = AmebaUpdate(device.flash, LAYOUT, 2, TimelessPace(), legacy_target_bug=True)
    device.flash.power_on()
    asyncio.run(update.erase(SECTOR_SIZE))
    assert device.boot() is None


SUBJECT = SweepSubject("amebad", SweepAgent.AMEBA_PUSH, BootBuild.PLAIN, SIZE, "two-updates")


def deciding_moments() -> range:
    """The last operations of the first update, its switch among them, and the first ones of the next."""
    moments = live_uninterrupted(SUBJECT).moments
    second = next(number for number, moment in enumerate(moments) if moment.position.stage == 1)
    return range(second - 12, second + 8)


def test_the_sweep_of_the_lab_takes_the_board_through_every_cut_around_the_switch() -> None:
    result = run_part(Part(SUBJECT, Effort(), Pass.ONCE, deciding_moments()))
    assert result.failures == []
    assert result.failed == 0
    assert result.cases > 100
    assert result.outcomes["new"] > 50


def test_the_sweep_notices_an_update_that_retires_the_old_image_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wrong_order(self: AmebaUpdate, signature: bytes) -> None:
        self._flash.program(self._layout.slot_offset(self.running), CLEARED_WORD)
        self._flash.program(self.target_address, signature)

    monkeypatch.setattr(AmebaUpdate, "switch", wrong_order)
    _reference.cache_clear()
    try:
        result = run_part(Part(SUBJECT, Effort(), Pass.ONCE, deciding_moments()))
    finally:
        _reference.cache_clear()
    assert result.failed > 0
    assert {failure.broken.promise for failure in result.failures} == {Promise.BOOTS}


def test_the_sweep_notices_an_update_that_touches_more_of_the_running_slot_than_its_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = AmebaUpdate.switch

    async def greedy(self: AmebaUpdate, signature: bytes) -> None:
        await right(self, signature)
        self._flash.program(self._layout.slot_offset(self.running) + 4, CLEARED_WORD)

    monkeypatch.setattr(AmebaUpdate, "switch", greedy)
    verdict = live_uninterrupted(SUBJECT).verdict
    assert [broken.promise for broken in verdict.broken] == [Promise.UNTOUCHED]
