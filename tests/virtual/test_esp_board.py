"""An ESP32 board boots what its boot loader would boot, and refuses what its verifier would refuse."""

from __future__ import annotations

import pytest

from flota.errors import InvalidInput
from flota.images.esp_otadata import OtaEntry, OtaState
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.esp_ota import EspError, EspOtaFailure, OtaData
from flota.virtual.esp_slots import EspSlots
from tests.virtual.benches import TABLE_WITH_FACTORY, EspBench
from tests.virtual.images import app_image

OLD, NEW = app_image("1.0.0"), app_image("2.0.0")


def test_the_first_boot_of_blank_otadata_starts_ota_0_and_writes_it_down() -> None:
    bench = EspBench(OLD)
    report = bench.hardware().boot()
    assert report.app is not None
    assert (report.app.slot, report.app.version, report.app.project) == ("ota_0", "1.0.0", "test-app")
    assert report.writes == ("otadata 0: seq 1 VALID",)
    assert bench.hardware().boot().writes == ()


def test_the_reported_hash_is_the_appended_one_not_the_files() -> None:
    app = EspBench(OLD).hardware().boot().app
    assert app is not None
    assert app.validation_hash == OLD[-32:].hex()
    assert app.validation_hash != app.sha256


def test_a_factory_app_boots_first_and_nothing_is_written() -> None:
    bench = EspBench(OLD, table=TABLE_WITH_FACTORY)
    report = bench.hardware().boot()
    assert report.app is not None
    assert report.app.slot == "factory"
    assert report.writes == ()


def test_a_blank_flash_boots_nothing_and_says_why() -> None:
    bench = EspBench()
    bench.hardware().erase_chip()
    report = bench.hardware().boot()
    assert report.app is None
    assert "partition table" in report.refused[0]


def damaged(image: bytes, offset: int) -> bytes:
    return image[:offset] + bytes((image[offset] ^ 0x55,)) + image[offset + 1 :]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (damaged(NEW, 0), "not an ESP image"),
        (damaged(NEW, 1000), "checksum"),
        (damaged(NEW, len(NEW) - 1), "SHA-256"),
        (damaged(NEW, 1), "segment"),
        (app_image("2.0.0", chip="esp32-s3"), "another chip"),
        (app_image("2.0.0", min_chip_revision=9900), "too old"),
        (b"\xff" * 100, "not an ESP image"),
    ],
)
def test_a_bad_image_is_refused_and_the_old_one_boots(image: bytes, reason: str) -> None:
    bench = EspBench(OLD)
    hardware = bench.hardware()
    hardware.boot()
    row = hardware.table().find("ota_1")
    assert row is not None
    hardware.write_flash(row.offset, image)
    OtaData(bench.flash, 0xD000).rewrite(1, OtaEntry.for_seq(2, OtaState.VALID))
    report = hardware.boot()
    assert report.app is not None
    assert report.app.slot == "ota_0"
    assert reason in report.refused[0]


def test_a_damaged_new_image_costs_two_boots_and_then_nothing() -> None:
    bench = EspBench(OLD)
    hardware = bench.hardware()
    hardware.boot()
    OtaData(bench.flash, 0xD000).rewrite(1, OtaEntry.for_seq(2, OtaState.NEW))
    assert [hardware.boot().writes for _ in range(3)] == [
        ("otadata 1: PENDING_VERIFY",),
        ("otadata 1: ABORTED",),
        (),
    ]


def slots_after(bench: EspBench) -> EspSlots:
    slots = bench.hardware().boot().slots
    assert isinstance(slots, EspSlots)
    return slots


async def install(bench: EspBench, image: bytes) -> EspSlots:
    slots = slots_after(bench)
    writer = await slots.begin(slots.next_slot(), len(image))
    await writer.write(image)
    await writer.finish()
    slots.set_boot(writer.slot)
    return slots


async def test_an_unconfirmed_app_may_not_begin_an_update() -> None:
    bench = EspBench(OLD)
    await install(bench, NEW)
    slots = slots_after(bench)
    assert slots.running.awaits_confirmation
    with pytest.raises(EspOtaFailure) as failure:
        await slots.begin("ota_0", 1)
    assert failure.value.error is EspError.OTA_ROLLBACK_INVALID_STATE


async def test_an_app_that_is_reset_before_it_confirms_is_rolled_back() -> None:
    bench = EspBench(OLD)
    await install(bench, NEW)
    assert slots_after(bench).running.version == "2.0.0"
    slots = slots_after(bench)
    assert slots.running.version == "1.0.0"
    assert slots.last_rejected() == "ota_1"


async def test_without_rollback_the_new_app_stays_whatever_happens() -> None:
    bench = EspBench(OLD, build=BootBuild.PLAIN)
    await install(bench, NEW)
    assert [slots_after(bench).running.version for _ in range(3)] == ["2.0.0"] * 3


async def test_the_running_slot_and_a_second_handle_are_refused() -> None:
    slots = slots_after(EspBench(OLD))
    with pytest.raises(EspOtaFailure, match="0x1501"):
        await slots.begin("ota_0", 1)
    await slots.begin("ota_1", 1)
    with pytest.raises(EspOtaFailure, match="0x1507"):
        await slots.begin("ota_1", 1)


async def test_anti_rollback_burns_after_confirmation_and_then_refuses_older_apps() -> None:
    bench = EspBench(app_image("1.0.0", secure_version=1), build=BootBuild.ANTI_ROLLBACK)
    slots_after(bench)
    assert bench.fuses.get("secure_version") == 1
    await install(bench, app_image("2.0.0", secure_version=3))
    slots = slots_after(bench)
    assert bench.fuses.get("secure_version") == 1
    slots.confirm()
    assert bench.fuses.get("secure_version") == 3
    slots = slots_after(bench)
    old = app_image("1.1.0", secure_version=2)
    writer = await slots.begin("ota_0", len(old))
    await writer.write(old)
    await writer.finish()
    with pytest.raises(EspOtaFailure, match="0x1504"):
        slots.set_boot("ota_0")
    assert slots.read("ota_0", 64) == b"\xff" * 64


async def test_read_slot_gives_back_the_installed_file_after_a_longer_one_was_there() -> None:
    longer = app_image("2.0.0", size=50_000)
    bench = EspBench(OLD)
    await install(bench, longer)
    slots_after(bench).confirm()
    await install(bench, NEW)
    slots_after(bench).confirm()
    assert bench.hardware().image_in("ota_0") == NEW
    assert bench.hardware().image_in("ota_1") == longer


def test_a_programmer_may_not_write_outside_or_across_sectors() -> None:
    hardware = EspBench().hardware()
    for address in (1, hardware.flash.size, -4096):
        with pytest.raises(InvalidInput, match="cannot flash there"):
            hardware.write_flash(address, b"abcd")
    with pytest.raises(InvalidInput, match="does not fit"):
        hardware.flash_app(bytes(0x10001))
