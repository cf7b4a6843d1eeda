"""Merged images of real vendor files are those of the reference tool, byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from flota.images.esp_chips import chip_named
from flota.images.esp_merge import FlashSettings, merge
from flota.images.flash_layout import layout_of_file
from tests.golden.vendor_data import vendor_bytes
from tests.images.esp_samples import sample_app
from tests.images.merge_samples import GUIDE_TABLE, esptool_merge, pieces_of

pytestmark = pytest.mark.golden

UNPADDED = "5c62215bf30124db26869b8b221238e7ff1d7941cf6ed42ce67c97f657b06101"
PADDED = "0f8318c915c8b3bba62fd06b1c6026379c90b33deb8a4651062dd7afa7016f81"


@pytest.mark.parametrize(("pad_to", "size", "sha256"), [(None, 732_880, UNPADDED), (8 << 20, 8 << 20, PADDED)])
def test_the_guide_s_image_has_the_reference_tool_s_digest(pad_to: int | None, size: int, sha256: str) -> None:
    merged = merge(
        chip_named("esp32"),
        vendor_bytes("esp32/bootloaders/espflash_esp32-bootloader.bin"),
        GUIDE_TABLE,
        vendor_bytes("esp32/images/derived_app_template_esp32.bin"),
        pad_to=pad_to,
    )
    assert (len(merged), hashlib.sha256(merged).hexdigest()) == (size, sha256)
    used = {region.name: region.used for region in layout_of_file(merged).regions if region.used}
    assert used == {"boot loader": 26_112, "partition table": 0xC00, "ota_0": 601_808}


@pytest.mark.program
@pytest.mark.parametrize("chip", ["esp32", "esp32-s2", "esp32-s3", "esp32-c3", "esp32-c6"])
def test_esptool_makes_the_same_of_a_real_boot_loader(chip: str, tmp_path: Path) -> None:
    esp = chip_named(chip)
    bootloader = vendor_bytes(f"esp32/bootloaders/espflash_{chip.replace('-', '')}-bootloader.bin")
    app = sample_app(chip)
    options = ("--flash-mode", "dout", "--flash-size", "16MB", "--flash-freq", "20m")
    expected = esptool_merge(tmp_path, chip, pieces_of(esp, bootloader, GUIDE_TABLE, app, 0x20000), *options)
    assert merge(esp, bootloader, GUIDE_TABLE, app, flash=FlashSettings("dout", "16MB", "20m")) == expected
