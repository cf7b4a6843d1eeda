from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flota.images.esp_app import pack_app, parse_app
from flota.images.esp_chips import CHIP_NAMES, chip_named
from flota.images.esp_desc import EspBootloaderDesc, pack_bootloader_desc
from flota.images.esp_merge import (
    FLASH_MAX,
    AppTooLong,
    BootLoaderTooLong,
    FlashSettings,
    MergeError,
    NoOtadata,
    NoPlaceForApp,
    PadTooShort,
    SignedBootLoader,
    TableTooLong,
    WrongChip,
    WrongPart,
    merge,
    with_flash_settings,
)
from flota.images.esp_merged import find_merged
from flota.images.esp_otadata import boot_app0
from flota.images.esp_partitions.errors import BeyondFlash, WrongTableMd5
from flota.images.inspection import inspect
from flota.images.model import ImageError, ImageFormat
from tests.images.esp_samples import bootloader_of, sample_app, sample_image
from tests.images.merge_samples import GUIDE_TABLE, csv_table, esptool_merge, pieces_of
from tests.images.signed_samples import p256_key, signed

C3 = chip_named("esp32-c3")
TABLE_WITH_FACTORY = csv_table("nvs,data,nvs,0x9000,0x6000", "factory,app,factory,0x10000,1M")
TABLE_WITH_BOTH = csv_table(
    "nvs,data,nvs,0x9000,0x4000", "otadata,data,ota,0xd000,0x2000", "factory,app,factory,0x10000,1M", "a,app,ota_0,,1M"
)
TABLE_WITHOUT_APP = csv_table("nvs,data,nvs,0x9000,0x6000")
TINY_SLOT = csv_table("otadata,data,ota,0x9000,0x2000", "a,app,ota_0,0x10000,0x1000", "b,app,ota_1,0x20000,0x1000")
OTADATA_LAST = csv_table("a,app,ota_0,0x10000,1M", "b,app,ota_1,,1M", "otadata,data,ota,,0x2000")


@pytest.mark.parametrize("chip", CHIP_NAMES)
def test_what_is_merged_is_taken_apart_again_on_every_chip(chip: str) -> None:
    esp, bootloader, app = chip_named(chip), bootloader_of(chip), sample_app(chip)
    merged = merge(esp, bootloader, GUIDE_TABLE, app)
    found = find_merged(merged)
    assert found is not None
    assert (found.chip, found.bootloader_offset, found.table_offset) == (esp, esp.bootloader_offset, 0x8000)
    assert merged[esp.bootloader_offset :].startswith(bootloader)
    assert merged[0x8000 : 0x8000 + len(GUIDE_TABLE)] == GUIDE_TABLE
    assert [(one.partition.label, one.partition.offset) for one in found.apps] == [("ota_0", 0x20000)]
    assert merged[0x20000:] == app
    assert inspect(merged).format is ImageFormat.ESP_MERGED
    assert inspect(merged).version == "1.2.3"


@pytest.mark.program
@pytest.mark.parametrize("chip", ["esp32", "esp32-s2", "esp32-c3", "esp32-c6", "esp32-p4"])
def test_esptool_merges_the_same_pieces_to_the_same_bytes(chip: str, tmp_path: Path) -> None:
    esp, bootloader, app = chip_named(chip), bootloader_of(chip), sample_app(chip)
    speed = next(iter(esp.speeds))
    options = ("--flash-mode", "qio", "--flash-size", "16MB", "--flash-freq", speed, "--pad-to-size", "16MB")
    expected = esptool_merge(tmp_path, chip, pieces_of(esp, bootloader, GUIDE_TABLE, app, 0x20000), *options)
    flash = FlashSettings(mode="qio", size="16MB", speed=speed)
    assert merge(esp, bootloader, GUIDE_TABLE, app, flash=flash, pad_to=16 << 20) == expected


def test_flash_settings_go_into_the_boot_loader_and_its_hash_holds() -> None:
    changed = with_flash_settings(C3, bootloader_of("esp32-c3"), FlashSettings(mode="qio", size="16MB", speed="80m"))
    header = parse_app(changed).header
    assert (header.spi_mode, header.flash_size_code, header.speed_code) == (0, 4, 0xF)
    assert with_flash_settings(C3, changed, FlashSettings()) == changed


def test_the_app_s_header_is_never_touched() -> None:
    app = sample_app()
    merged = merge(C3, bootloader_of("esp32-c3"), GUIDE_TABLE, app, flash=FlashSettings(size="8MB"))
    assert merged[0x20000:] == app


def test_an_image_without_appended_hash_stays_without() -> None:
    image = parse_app(bootloader_of("esp32-c3"))
    bare = pack_app(replace(image, header=replace(image.header, hash_appended=False)))
    changed = with_flash_settings(C3, bare, FlashSettings(size="8MB"))
    assert len(changed) == len(bare)
    assert [index for index, (a, b) in enumerate(zip(bare, changed, strict=True)) if a != b] == [3]


def test_gaps_are_erased_flash() -> None:
    bootloader = bootloader_of("esp32-c3")
    merged = merge(C3, bootloader, GUIDE_TABLE, sample_app(), pad_to=8 << 20)
    assert len(merged) == 8 << 20
    assert set(merged[len(bootloader) : 0x8000]) == {0xFF}
    assert set(merged[0x8C00:0x20000]) == {0xFF}
    assert set(merged[0x20000 + len(sample_app()) :]) == {0xFF}


def test_the_app_goes_to_factory_where_there_is_one() -> None:
    merged = merge(C3, bootloader_of("esp32-c3"), TABLE_WITH_FACTORY, sample_app())
    assert merged[0x10000:] == sample_app()


def test_arduino_s_otadata_chooses_the_first_slot() -> None:
    merged = merge(C3, bootloader_of("esp32-c3"), GUIDE_TABLE, sample_app(), otadata="boot_app0")
    assert merged[0xF000:0x11000] == boot_app0()


def test_otadata_behind_the_app_is_part_of_the_file_so_that_an_old_choice_is_erased() -> None:
    merged = merge(C3, bootloader_of("esp32-c3"), OTADATA_LAST, sample_app())
    assert len(merged) == 0x210000 + 0x2000


def test_each_thing_that_can_be_wrong_has_its_own_error() -> None:
    boot, app = bootloader_of("esp32-c3"), sample_app()
    signed_boot = signed(boot, p256_key())
    wrong: list[tuple[type[ImageError], dict[str, object]]] = [
        (WrongPart, {"bootloader": app}),
        (WrongChip, {"bootloader": bootloader_of("esp32-s3")}),
        (WrongChip, {"app": sample_app("esp32-s3")}),
        (BootLoaderTooLong, {"bootloader": boot + bytes(0x8000)}),
        (BootLoaderTooLong, {"bootloader": signed_boot, "table_offset": 0x1000, "table": GUIDE_TABLE}),
        (TableTooLong, {"table": GUIDE_TABLE + bytes(0x1000)}),
        (WrongTableMd5, {"table": GUIDE_TABLE.replace(b"ota_1", b"ota_2")}),
        (NoPlaceForApp, {"table": TABLE_WITHOUT_APP}),
        (AppTooLong, {"table": TINY_SLOT, "app": sample_app(size=0x2000)}),
        (NoOtadata, {"table": TABLE_WITH_FACTORY, "otadata": "boot_app0"}),
        (NoOtadata, {"table": TABLE_WITH_BOTH, "otadata": "boot_app0"}),
        (PadTooShort, {"pad_to": 0x20000}),
        (PadTooShort, {"pad_to": FLASH_MAX + 1}),
        (BeyondFlash, {"flash": FlashSettings(size="4MB")}),
        (MergeError, {"flash": FlashSettings(mode="octal")}),
        (MergeError, {"flash": FlashSettings(speed="77m")}),
        (MergeError, {"table_offset": 0x8001}),
        (SignedBootLoader, {"bootloader": signed_boot, "flash": FlashSettings(size="16MB")}),
        (ImageError, {"app": app[:-1]}),
    ]
    for kind, change in wrong:
        given = {"bootloader": boot, "table": GUIDE_TABLE, "app": app, **change}
        with pytest.raises(kind):
            merge(C3, given.pop("bootloader"), given.pop("table"), given.pop("app"), **given)  # type: ignore[arg-type]


def test_a_boot_loader_where_the_app_belongs_is_refused() -> None:
    image = sample_image()
    desc = pack_bootloader_desc(EspBootloaderDesc(0, 1, "v5.4", "Jan  1 2026"))
    first = replace(image.segments[-1], address=0x403C_0000, data=desc)
    with pytest.raises(WrongPart):
        merge(C3, bootloader_of("esp32-c3"), GUIDE_TABLE, pack_app(replace(image, segments=(first,))))


def test_a_signed_boot_loader_is_merged_as_it_is() -> None:
    signed_boot = signed(bootloader_of("esp32-c3"), p256_key())
    assert merge(C3, signed_boot, GUIDE_TABLE, sample_app()).startswith(signed_boot)


def test_a_table_that_reaches_beyond_any_flash_is_refused_before_memory_is_taken() -> None:
    table = csv_table("a,app,ota_0,0x10000,1M", "b,app,ota_1,,1M", "otadata,data,ota,0xfff00000,0x2000")
    with pytest.raises(BeyondFlash):
        merge(C3, bootloader_of("esp32-c3"), table, sample_app())
