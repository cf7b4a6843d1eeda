"""Every vendor image parses to the values that an independent parser found in it."""

from __future__ import annotations

import hashlib

import pytest

from flota.boards.catalogue import MICRO_RDK_8MB_CSV, board
from flota.boards.fit import fit_check
from flota.boards.model import TypeProfile
from flota.images.esp_app import image_checksum, pack_app, parse_app, walk_image
from flota.images.esp_chips import chip_named
from flota.images.esp_partitions import pack_table, parse_csv
from flota.images.esp_verify import verify_app
from flota.images.inspection import inspect
from flota.images.model import ImageError, ImageFormat
from tests.golden.vendor_data import vendor_bytes, vendor_json, vendor_names
from tests.images.esp_samples import sample_app

pytestmark = pytest.mark.golden

IMAGES = [
    name
    for pattern in ("esp32/images/*.bin", "esp32/bootloaders/*.bin", "esp32/signed/*.bin")
    for name in vendor_names(pattern)
]
BOOTLOADERS = [name for name in IMAGES if "bootloader" in name]
APPS = [name for name in IMAGES if any(word in name for word in ("app_template", "appdesc", "blink", "hello_world_"))]
FIRMWARE = [name for name in vendor_names("firmware/*.bin") if "_esp32" in name and "factory" not in name] or [
    "firmware/*.bin"
]


def expected_of(name: str) -> dict[str, object]:
    vendor_bytes(name)
    parsed: dict[str, dict[str, object]] = vendor_json("esp32/parsed.json")
    return parsed[name.removeprefix("esp32/")]


@pytest.mark.parametrize("name", IMAGES)
def test_header_segments_checksum_and_hash_are_those_of_the_independent_parser(name: str) -> None:
    expected, data = expected_of(name), vendor_bytes(name)
    image, layout = parse_app(data), walk_image(data)
    header = image.header
    assert {
        "segments": [[f"{s.address:#x}", s.size, s.offset] for s in layout.segments],
        "spi_mode": header.spi_mode,
        "spi_speed": header.speed_code,
        "spi_size": header.flash_size_code,
        "entry": f"{header.entry:#x}",
        "wp_pin": header.wp_pin,
        "chip_id": header.chip_id,
        "min_rev": header.min_chip_revision_legacy,
        "min_rev_full": header.min_chip_revision,
        "max_rev_full": header.max_chip_revision,
        "reserved": header.reserved.hex(),
        "hash_appended": int(header.hash_appended),
        "checksum_stored": data[layout.checksum_offset],
        "checksum_calc": image_checksum(data, layout),
        "checksum_offset": layout.checksum_offset,
        "image_len": layout.image_size,
        "file_len": len(data),
    } == {key: expected[key] for key in expected if key not in DESCRIPTORS}


DESCRIPTORS = ("app_desc", "bootloader_desc", "sb_v2", "sha256_stored", "sha256_ok")


@pytest.mark.parametrize("name", IMAGES)
def test_descriptors_and_the_validation_hash_are_those_of_the_independent_parser(name: str) -> None:
    expected, data = expected_of(name), vendor_bytes(name)
    image = parse_app(data)
    app, boot = image.app_desc, image.bootloader_desc
    assert expected.get("app_desc") == (
        app
        and {
            "secure_version": app.secure_version,
            "version": app.version,
            "project_name": app.project,
            "time": app.time,
            "date": app.date,
            "idf_ver": app.idf_version,
            "app_elf_sha256": app.elf_sha256.hex(),
            "min_efuse": app.min_efuse_block_revision,
            "max_efuse": app.max_efuse_block_revision,
            "mmu_page_size": app.page_size_log2,
            "spi_flash_mode": app.spi_flash_mode_check,
        }
    )
    assert expected.get("bootloader_desc") == (
        boot
        and {
            "secure_version": boot.secure_version,
            "version": boot.version,
            "idf_ver": boot.idf_version,
            "date_time": boot.date_time,
        }
    )
    if image.header.hash_appended:
        assert inspect(data).validation_hash == expected["sha256_stored"]


@pytest.mark.parametrize("name", [*IMAGES, *FIRMWARE])
def test_packing_what_was_parsed_gives_the_same_bytes(name: str) -> None:
    data = vendor_bytes(name)
    assert pack_app(parse_app(data)) == data


@pytest.mark.parametrize("name", BOOTLOADERS)
def test_boot_loaders_are_told_apart_from_apps(name: str) -> None:
    assert inspect(vendor_bytes(name)).format is ImageFormat.ESP_BOOTLOADER


@pytest.mark.parametrize("name", [*APPS, *FIRMWARE])
def test_apps_are_sound_and_their_chip_takes_them(name: str) -> None:
    data = vendor_bytes(name)
    found = inspect(data)
    assert (found.format, found.errors) == (ImageFormat.ESP_APP, ())
    assert found.chip is not None
    assert verify_app(data, chip=chip_named(found.chip)).image_size == found.image_size


def test_signature_blocks_carry_the_key_digests_of_their_owners() -> None:
    for name in vendor_names("esp32/signed/*.bin"):
        blocks = expected_of(name)["sb_v2"]
        assert isinstance(blocks, list)
        rows = inspect(vendor_bytes(name)).properties
        found = [row.value for row in rows if row.name.startswith("secure boot v2 block")]
        assert [value.split(", ")[1:] for value in found] == [
            [f"key digest {block['keydigest']}", "verified"] for block in blocks
        ]
        assert not inspect(vendor_bytes(name)).errors


def test_a_merged_image_is_refused_and_the_app_inside_is_named() -> None:
    merged = vendor_bytes("firmware/nerdminer_1.8.3-11_esp32s3_factory.bin")
    app = vendor_bytes("firmware/nerdminer_1.8.3-11_esp32s3_app.bin")
    found = inspect(merged)
    assert (found.format, found.chip) == (ImageFormat.ESP_MERGED, "esp32-s3")
    profile = TypeProfile(board("esp32-s3"))
    reasons = fit_check(profile, found, file_size=len(merged), version="1")
    assert [reason.code for reason in reasons if reason.blocking] == ["merged-image"]
    assert reasons[0].hint is not None
    assert f"0x10000, {len(app)} bytes" in reasons[0].hint
    assert not [r for r in fit_check(profile, inspect(app), file_size=len(app), version="1") if r.blocking]


def test_the_arduino_core_s_descriptor_is_not_taken_for_the_product_s() -> None:
    found = inspect(vendor_bytes("firmware/nerdminer_1.8.3-14_esp32.bin"))
    assert (found.version, found.project) == (None, None)
    assert "generic-descriptor" in [finding.code for finding in found.findings]


@pytest.mark.parametrize("name", vendor_names("firmware/*esp8266*.bin"))
def test_esp8266_images_are_told_apart(name: str) -> None:
    found = inspect(vendor_bytes(name))
    assert (found.format, found.chip) == (ImageFormat.ESP8266_APP, "esp8266")


def test_an_image_for_another_architecture_is_raw() -> None:
    assert inspect(vendor_bytes("firmware/coldcard_3.1.9_stm32l4.bin")).format is ImageFormat.RAW


def test_a_delta_patch_names_its_base() -> None:
    found = inspect(vendor_bytes("esp32/delta/derived_hello_world_to_v2.patch"))
    base = inspect(vendor_bytes("esp32/images/idf_hello_world_esp32.bin"))
    assert found.format is ImageFormat.ESP_DELTA_PATCH
    assert found.properties[0].value == base.validation_hash


def test_a_pre_encrypted_image_is_told_apart() -> None:
    found = inspect(vendor_bytes("esp32/delta/espdelta_base.bin"))
    assert found.format is ImageFormat.ESP_ENCRYPTED


@pytest.mark.parametrize("name", ["esp32/images/ram_helloworld-esp32.bin", "esp32/images/derived_esp32c6_appdesc.bin"])
def test_a_real_image_cut_anywhere_is_one_typed_error(name: str) -> None:
    data = vendor_bytes(name)
    for length in range(len(data)):
        with pytest.raises(ImageError):
            parse_app(data[:length])
        assert inspect(data[:length]).errors


def merged_with(bootloader: str, offset: int, table: bytes, app: bytes, app_offset: int) -> bytes:
    flash = bytearray(b"\xff" * app_offset)
    for place, content in ((offset, vendor_bytes(bootloader)), (0x8000, table)):
        flash[place : place + len(content)] = content
    return bytes(flash) + app


def test_the_merged_image_of_the_reference_tool_is_recognised_padded_or_not() -> None:
    app = vendor_bytes("esp32/images/derived_app_template_esp32.bin")
    table = pack_table(parse_csv(MICRO_RDK_8MB_CSV))
    merged = merged_with("esp32/bootloaders/espflash_esp32-bootloader.bin", 0x1000, table, app, 0x20000)
    assert hashlib.sha256(merged).hexdigest() == "5c62215bf30124db26869b8b221238e7ff1d7941cf6ed42ce67c97f657b06101"
    for data in (merged, merged.ljust(8 << 20, b"\xff")):
        found = inspect(data)
        assert (found.format, found.chip, found.project) == (ImageFormat.ESP_MERGED, "esp32", "app-template")


@pytest.mark.parametrize("chip", ["esp32-c3", "esp32-c6", "esp32-s3"])
def test_a_real_boot_loader_at_offset_0_makes_a_merged_image_and_no_app(chip: str) -> None:
    name = f"esp32/bootloaders/espflash_{chip.replace('-', '')}-bootloader.bin"
    table = vendor_bytes("esp32/partitions/idf_partitions_two_ota_large.expected.bin")
    merged = merged_with(name, 0, table, sample_app(chip), 0x20000)
    found = inspect(merged)
    assert (found.format, found.chip, found.version) == (ImageFormat.ESP_MERGED, chip, "1.2.3")
    reasons = fit_check(TypeProfile(board(chip)), found, file_size=len(merged), version="1.2.3")
    assert [reason.code for reason in reasons if reason.blocking] == ["merged-image"]
