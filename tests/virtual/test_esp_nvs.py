"""A string in NVS on virtual flash: read back, kept over resets, and never lost to a power cut."""

from __future__ import annotations

import itertools

import pytest

from flota.images.esp_nvs_format import NvsError
from flota.virtual.esp_nvs import FlashNvs
from flota.virtual.flash import TEARS, Cut, CutPhase, FlashOperation, NorFlash, PowerCut

SPACE, KEY = "VIAM_NS", "OTA_VERSION"
SIZE = 0x4000
CUTS = [Cut(CutPhase.BEFORE), *(Cut(CutPhase.INSIDE, tear) for tear in TEARS.values()), Cut(CutPhase.AFTER)]


def nvs_on(flash: NorFlash) -> FlashNvs:
    return FlashNvs(flash, 0x1000, SIZE)


def blank() -> NorFlash:
    return NorFlash.blank(0x8000)


def test_an_empty_partition_has_no_string_and_takes_one() -> None:
    nvs = nvs_on(blank())
    assert nvs.get_string(SPACE, KEY) is None
    nvs.set_string(SPACE, KEY, "v1.2.3-rc4")
    assert nvs.get_string(SPACE, KEY) == "v1.2.3-rc4"


def test_a_string_that_is_there_costs_no_flash_operation() -> None:
    flash = blank()
    nvs_on(flash).set_string(SPACE, KEY, "1")
    before = (flash.counters.erases, flash.counters.programs)
    nvs_on(flash).set_string(SPACE, KEY, "1")
    assert (flash.counters.erases, flash.counters.programs) == before


def test_any_number_of_versions_fits_because_pages_are_compacted() -> None:
    flash = blank()
    nvs = nvs_on(flash)
    for number in range(160):
        nvs.set_string(SPACE, KEY, f"version {number} " + "x" * 100)
        assert nvs.get_string(SPACE, KEY) == f"version {number} " + "x" * 100
    assert flash.counters.erases >= 3
    assert all(0x1000 <= address < 0x1000 + SIZE for address in flash.erase_counts)


@pytest.mark.parametrize("version", ["a\0b", "\ud800", "x" * 4000])
def test_what_nvs_cannot_hold_is_refused_before_any_operation(version: str) -> None:
    flash = blank()
    with pytest.raises(NvsError):
        nvs_on(flash).set_string(SPACE, KEY, version)
    assert flash.read(0, flash.size) == b"\xff" * flash.size


@pytest.mark.parametrize("updates_before", [0, 1, 25, 75], ids=["first", "second", "new page", "compaction"])
def test_a_power_cut_at_any_moment_leaves_the_old_string_or_the_new_one_and_the_next_write_works(
    updates_before: int,
) -> None:
    start = blank()
    for number in range(updates_before):
        nvs_on(start).set_string(SPACE, KEY, f"old {number} " + "y" * 120)
    old = f"old {updates_before - 1} " + "y" * 120 if updates_before else None
    content = start.read(0, start.size)
    operations: list[FlashOperation] = []
    start.listener = operations.append
    nvs_on(start).set_string(SPACE, KEY, "new")
    assert operations
    for number, cut in itertools.product(range(len(operations)), CUTS):
        flash = NorFlash(bytearray(content))
        flash.plan = lambda operation, number=number, cut=cut: cut if operation.number == number else None
        with pytest.raises(PowerCut):
            nvs_on(flash).set_string(SPACE, KEY, "new")
        flash.plan = None
        flash.power_on()
        assert nvs_on(flash).get_string(SPACE, KEY) in (old, "new"), (number, cut)
        nvs_on(flash).set_string(SPACE, KEY, "after")
        assert nvs_on(flash).get_string(SPACE, KEY) == "after", (number, cut)
