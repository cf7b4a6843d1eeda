"""What each power cut around otadata leads to, row by row of docs/reference/virtual-devices.md, "Power cuts"."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flota.boards.catalogue import board
from flota.images.esp_otadata import OtaEntry, OtaState
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.esp_ota import EspOta, OtaData
from flota.virtual.esp_slots import EspSlots
from flota.virtual.events import EventKind
from flota.virtual.flash import Cut, CutPhase, FlashOperation, FlashOperationKind, PowerCut, words
from tests.virtual.benches import SMALL_TABLE, TABLE_WITH_FACTORY, EspBench
from tests.virtual.images import app_image
from tests.virtual.small_http2 import H2Answer, small_http2
from tests.virtual.viam_bench import NEW, ViamBench, service

A, B, C = (app_image(f"{number}.0.0", chip="esp32", size=9_000) for number in (1, 2, 3))
NAMES = {hashlib.sha256(image).hexdigest(): name for image, name in ((A, "A"), (B, "B"), (C, "C"))}

BOTH = [BootBuild.PLAIN, BootBuild.ROLLBACK]
BEFORE_WRITE = Cut(CutPhase.BEFORE)
TORN = [Cut(CutPhase.INSIDE, words(mask)) for mask in (1, 63, 127, 128, 192)]
"""The words of an entry that a stream of programming may have finished: rising or falling, never all of them."""
BETWEEN_OR_TORN = [BEFORE_WRITE, *TORN]


def small_esp32(build: BootBuild, image: bytes = A, *, table: str = SMALL_TABLE) -> EspBench:
    return EspBench(image, build=build, table=table, chip_board=replace(board("esp32"), flash_size=0x40000))


def ota_of(bench: EspBench) -> EspOta:
    """Boot, and return the OTA calls of the app that runs."""
    bench.flash.plan = None
    bench.flash.power_on()
    report = bench.hardware().boot()
    assert isinstance(report.slots, EspSlots)
    return report.slots.ota


def runs(bench: EspBench) -> str | None:
    """Boot and return which of the images runs."""
    bench.flash.plan = None
    bench.flash.power_on()
    report = bench.hardware().boot()
    return None if report.app is None else NAMES[report.app.sha256]


def write_next(ota: EspOta, image: bytes) -> int:
    """Write an image into the next slot, verified but not chosen; returns its index."""
    handle = ota.begin(ota.next_update_partition())
    for start in range(0, len(image), 4096):
        ota.write(handle, image[start : start + 4096])
    ota.end(handle)
    return handle.partition.index


def update(bench: EspBench, image: bytes, *, confirm: bool = True) -> None:
    """Install an image, restart, and let the new app confirm itself."""
    ota = ota_of(bench)
    ota.set_boot(write_next(ota, image))
    if confirm:
        ota_of(bench).mark_valid()


def entries(bench: EspBench) -> tuple[OtaEntry, OtaEntry]:
    address = bench.hardware().layout().otadata_address
    assert address is not None
    return OtaData(bench.flash, address).read()


def in_otadata(bench: EspBench, kind: FlashOperationKind, sector: int) -> Callable[[FlashOperation], bool]:
    address = bench.hardware().layout().otadata_address
    assert address is not None
    return lambda operation: operation.kind is kind and operation.address == address + sector * 0x1000


def pull_the_plug(
    bench: EspBench, work: Callable[[], object], at: Callable[[FlashOperation], bool], cut: Cut = BEFORE_WRITE
) -> None:
    """Do `work` until the operation that `at` picks."""
    bench.flash.power_on()
    bench.flash.plan = lambda operation: cut if at(operation) else None
    with pytest.raises(PowerCut):
        work()
    bench.flash.plan = None
    bench.flash.power_on()


PROGRAM, ERASE = FlashOperationKind.PROGRAM, FlashOperationKind.ERASE


@pytest.mark.parametrize("build", BOTH)
def test_cut_while_the_slot_is_erased_or_written_the_old_app_starts(build: BootBuild) -> None:
    total = len(slot_operations(build))
    for number in range(total):
        bench = small_esp32(build)
        update(bench, B)
        ota, before = ota_of(bench), entries(bench)
        pull_the_plug(bench, lambda ota=ota: write_next(ota, C), lambda operation, n=number: operation.number == n)
        unchanged = entries(bench) == before
        inactive_blank = entries(bench) == (OtaEntry(), before[1])
        assert unchanged or (build.rolls_back and inactive_blank)
        assert runs(bench) == "B"


def slot_operations(build: BootBuild) -> list[FlashOperation]:
    bench = small_esp32(build)
    update(bench, B)
    ota, operations = ota_of(bench), []
    bench.flash.power_on()
    bench.flash.listener = operations.append
    write_next(ota, C)
    assert len(operations) >= 16 + 3
    return operations


@pytest.mark.parametrize("build", BOTH)
def test_exception_an_app_that_came_up_by_fallback_may_be_replaced_without_a_boot_choice(build: BootBuild) -> None:
    bench = small_esp32(build)
    update(bench, B)
    row = bench.hardware().table().find("ota_1")
    assert row is not None
    bench.flash.erase_sector(row.offset)  # B is damaged: A comes up, but the active entry still names ota_1
    assert runs(bench) == "A"
    ota = ota_of(bench)
    write_next(ota, C)
    assert runs(bench) == "C"


@pytest.mark.parametrize("cut", BETWEEN_OR_TORN)
@pytest.mark.parametrize("build", BOTH)
def test_cut_in_set_boot_between_erase_and_end_of_write_the_old_app_starts(build: BootBuild, cut: Cut) -> None:
    bench = small_esp32(build)
    update(bench, B)
    ota = ota_of(bench)
    slot = write_next(ota, C)
    pull_the_plug(bench, lambda: ota.set_boot(slot), in_otadata(bench, PROGRAM, 0), cut)
    assert not entries(bench)[0].valid
    assert runs(bench) == "B"


@pytest.mark.parametrize("build", BOTH)
def test_cut_after_set_boot_the_new_app_starts(build: BootBuild) -> None:
    bench = small_esp32(build)
    ota = ota_of(bench)
    slot = write_next(ota, B)
    pull_the_plug(bench, lambda: ota.set_boot(slot), in_otadata(bench, PROGRAM, 1), Cut(CutPhase.AFTER))
    assert runs(bench) == "B"


@pytest.mark.parametrize("cut", BETWEEN_OR_TORN)
@pytest.mark.parametrize("call", ["set_boot", "mark_valid"])
def test_cut_while_the_active_entry_is_rewritten_the_other_app_starts_an_unexpected_downgrade(
    call: str, cut: Cut
) -> None:
    bench = small_esp32(BootBuild.PLAIN)
    update(bench, B, confirm=False)
    ota = ota_of(bench)
    assert entries(bench)[1].state == OtaState.UNDEFINED
    work = (lambda: ota.set_boot(1)) if call == "set_boot" else ota.mark_valid
    pull_the_plug(bench, work, in_otadata(bench, PROGRAM, 1), cut)
    assert runs(bench) == "A"


@pytest.mark.parametrize("table", [SMALL_TABLE, TABLE_WITH_FACTORY], ids=["without factory", "with factory"])
@pytest.mark.parametrize("cut", BETWEEN_OR_TORN)
def test_and_if_the_other_entry_is_not_valid_the_factory_app_or_ota_0(cut: Cut, table: str) -> None:
    bench = small_esp32(BootBuild.PLAIN, table=table)
    if table == TABLE_WITH_FACTORY:
        update(bench, B, confirm=False)  # in ota_0, its entry in sector 0
        assert runs(bench) == "B"
    ota = ota_of(bench)
    pull_the_plug(bench, lambda: ota.set_boot(0), in_otadata(bench, PROGRAM, 0), cut)
    assert not entries(bench)[1].valid
    assert runs(bench) == "A"


@pytest.mark.parametrize("cut", BETWEEN_OR_TORN)
def test_cut_in_mark_invalid_the_rollback_target_starts_all_the_same(cut: Cut) -> None:
    bench = small_esp32(BootBuild.ROLLBACK)
    update(bench, B, confirm=False)
    ota = ota_of(bench)
    pull_the_plug(bench, ota.mark_invalid, in_otadata(bench, PROGRAM, 1), cut)
    assert runs(bench) == "A"


@pytest.mark.parametrize("entry_1_valid", [True, False])
def test_cut_in_set_boot_factory_between_the_sectors_entry_1_decides(entry_1_valid: bool) -> None:
    bench = small_esp32(BootBuild.PLAIN, table=TABLE_WITH_FACTORY)
    update(bench, B)
    if entry_1_valid:
        update(bench, C)
    ota = ota_of(bench)
    pull_the_plug(bench, lambda: ota.set_boot(-1), in_otadata(bench, ERASE, 1))
    assert not entries(bench)[0].valid
    assert runs(bench) == ("C" if entry_1_valid else "A")


@pytest.mark.parametrize("cut", BETWEEN_OR_TORN)
def test_cut_while_new_becomes_pending_the_old_app_comes_back_and_nothing_says_aborted(cut: Cut) -> None:
    bench = small_esp32(BootBuild.ROLLBACK)
    ota = ota_of(bench)
    ota.set_boot(write_next(ota, B))
    pull_the_plug(bench, bench.hardware().boot, in_otadata(bench, PROGRAM, 1), cut)
    assert runs(bench) == "A"
    assert OtaState.ABORTED not in {entry.state for entry in entries(bench) if entry.crc_ok}


@pytest.mark.parametrize("cut", BETWEEN_OR_TORN)
def test_cut_while_pending_becomes_aborted_the_old_app_starts(cut: Cut) -> None:
    bench = small_esp32(BootBuild.ROLLBACK)
    update(bench, B, confirm=False)
    assert entries(bench)[1].state == OtaState.NEW
    assert runs(bench) == "B"
    pull_the_plug(bench, bench.hardware().boot, in_otadata(bench, PROGRAM, 1), cut)
    assert runs(bench) == "A"


@pytest.mark.parametrize("build", BOTH)
def test_cut_after_the_erase_of_the_first_boots_write_ota_0_starts_again_and_the_entry_is_written(
    build: BootBuild,
) -> None:
    bench = small_esp32(build)
    pull_the_plug(bench, bench.hardware().boot, in_otadata(bench, PROGRAM, 0))
    assert entries(bench) == (OtaEntry(), OtaEntry())
    assert runs(bench) == "A"
    assert entries(bench)[0] == OtaEntry.for_seq(1, OtaState.VALID)


@pytest.mark.parametrize("build", BOTH)
def test_torn_first_write_with_a_number_and_no_crc_boots_ota_0_and_is_repaired_by_the_next_set_boot_only(
    build: BootBuild,
) -> None:
    bench = small_esp32(build)
    pull_the_plug(bench, bench.hardware().boot, in_otadata(bench, PROGRAM, 0), Cut(CutPhase.INSIDE, words(1)))
    torn = entries(bench)
    assert (torn[0].seq, torn[0].crc_ok) == (1, False)
    for _ in range(2):
        assert runs(bench) == "A"
        assert entries(bench) == torn
    ota = ota_of(bench)
    ota.set_boot(write_next(ota, B))
    assert entries(bench)[0].seq == 2
    assert entries(bench)[0].crc_ok
    assert runs(bench) == "B"


def test_a_new_app_that_crashes_in_a_plain_build_is_started_for_ever_unless_its_image_is_damaged() -> None:
    bench = small_esp32(BootBuild.PLAIN)
    update(bench, B, confirm=False)
    before = entries(bench)
    assert [runs(bench) for _ in range(3)] == ["B", "B", "B"]
    assert entries(bench) == before
    row = bench.hardware().table().find("ota_1")
    assert row is not None
    bench.flash.program(row.offset + 4000, b"\0" * 4)
    assert [runs(bench) for _ in range(2)] == ["A", "A"]
    assert entries(bench) == before


def test_any_reset_of_a_new_app_before_it_confirms_makes_it_aborted_in_a_rollback_build() -> None:
    bench = small_esp32(BootBuild.ROLLBACK)
    update(bench, B, confirm=False)
    assert [runs(bench) for _ in range(3)] == ["B", "A", "A"]
    assert entries(bench)[1].state == OtaState.ABORTED


async def test_micro_rdk_cut_between_boot_choice_and_tag_downloads_the_same_version_into_the_other_slot(
    tmp_path: Path,
) -> None:
    bench = ViamBench(tmp_path / "machine.json")
    nvs = bench.hardware().table().find("nvs")
    assert nvs is not None
    tag_writes: list[FlashOperation] = []

    def at_the_first_tag_write(operation: FlashOperation) -> Cut | None:
        if tag_writes or not nvs.offset <= operation.address < nvs.offset + nvs.size:
            return None
        tag_writes.append(operation)
        return BEFORE_WRITE

    bench.flash.plan = at_the_first_tag_write
    async with small_http2(lambda request: H2Answer(body=NEW)) as server:
        bench.configure(service(f"{server.url}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.POLL))
    assert len(bench.texts(EventKind.POWER_CUT)) == 1
    boots = [(event.facts["slot"], event.facts["version"]) for event in bench.events if event.kind is EventKind.BOOT]
    assert boots == [("ota_0", "1.0.0"), ("ota_1", "2.0.0"), ("ota_0", "2.0.0")]
    assert len(server.requests) == 2
    assert bench.stored_version == "2.0.0"
