"""AmebaD files of the vendor: our parser reads them, our packer makes them byte for byte."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flota.images.ameba import (
    byte_sum,
    file_info,
    join_cores,
    pack_ota_file,
    parse_boot_image,
    parse_core,
    parse_image2,
    parse_ota_file,
)
from flota.images.inspection import inspect
from flota.images.model import ImageFormat
from tests.golden.vendor_data import vendor_bytes, vendor_names
from tests.images.ameba_samples import image2

pytestmark = pytest.mark.golden

SAMPLE_KEY = bytes.fromhex("37313468df98b5b6cec9d5f6b347fdcf1cd2f06c4f5887edf6d3f8c7a88745e4")
"""Public half of the sample key in the vendor's SDK."""


def segments_of(image: object) -> list[tuple[int, int, int]]:
    return [(s.offset, s.header.size, s.header.address) for s in image.segments]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "segments", "end", "slots"),
    [
        (
            "sdk_km0_boot_all.bin",
            [(0x0, 0x964, 0x0800_0020), (0x984, 0x5A4, 0x0008_2000)],
            0xF48,
            (0x0800_6000, 0x0810_6000),
        ),
        (
            "arduino_km0_boot_all.bin",
            [(0x0, 0x7F0, 0x0800_0020), (0x810, 0x964, 0x0008_2000)],
            0x1194,
            (0x0800_6000, 0x0810_6000),
        ),
        ("sdk_km4_boot_all.bin", [(0x0, 0, 0x0800_4020), (0x20, 0xF2C, 0x1007_D000)], 0xF6C, None),
        ("arduino_km4_boot_all.bin", [(0x0, 0, 0x0800_4020), (0x20, 0x1128, 0x1007_D000)], 0x1168, None),
    ],
)
def test_boot_images(name: str, segments: list[tuple[int, int, int]], end: int, slots: tuple[int, int] | None) -> None:
    data = vendor_bytes(f"ameba/{name}")
    image = parse_boot_image(data)
    assert segments_of(image) == segments
    assert image.end == end == len(data)
    assert image.slot_addresses == slots


@pytest.mark.parametrize(
    ("name", "core", "segments", "end", "size"),
    [
        (
            "sdk_km0_image2_all.bin",
            "km0",
            [(0x0, 0x1479C, 0x0C00_0020), (0x147BC, 0xF7C, 0x0008_3000)],
            0x15758,
            0x16000,
        ),
        (
            "arduino_km0_image2_all.bin",
            "km0",
            [(0x0, 0x17A00, 0x0C00_0020), (0x17A20, 0x2790, 0x0008_3000)],
            0x1A1D0,
            0x1B000,
        ),
        (
            "sdk_km4_image2_all.bin",
            "km4",
            [(0x0, 0x55938, 0x0E00_0020), (0x55958, 0x161A0, 0x1000_5000)],
            0x6BB18,
            0x6C000,
        ),
    ],
)
def test_image2_of_one_core(name: str, core: str, segments: list[tuple[int, int, int]], end: int, size: int) -> None:
    data = vendor_bytes(f"ameba/{name}")
    image = parse_core(data, core)
    assert segments_of(image) == segments
    assert (image.end, image.padded_end, len(data)) == (end, size, size)


def test_a_real_sketch_of_both_cores() -> None:
    image = parse_image2(vendor_bytes("ameba/anchorota_km0_km4_image2.bin"))
    assert segments_of(image.km0) == [(0x0, 0x17720, 0x0C00_0020), (0x17740, 0x2330, 0x0008_3000)]
    assert (image.km0.end, image.km4.offset) == (0x19A90, 0x1A000)
    assert segments_of(image.km4) == [
        (0x1A000, 0xE234, 0x0E00_0020),
        (0x1A000 + 0xE254, 0x511C, 0x1000_5000),
        (0x1A000 + 0x13390, 0, 0x0200_0020),
    ]
    assert (image.km4.end, image.size, image.image3_offset) == (0x1A000 + 0x133B0, 188416, None)


@pytest.mark.parametrize(
    ("name", "checksum", "length", "km4"),
    [
        ("anchorota_OTA_All.bin", 0x0128_8A44, 0x2E000, 0x1A000),
        ("sdk_OTA_All.bin", 0x0322_3039, 0x82000, 0x16000),
        ("mini_OTA_All.bin", 0x001F_4434, 0x2000, 0x1000),
    ],
)
def test_ota_files_parse_and_pack_to_the_same_bytes(name: str, checksum: int, length: int, km4: int) -> None:
    data = vendor_bytes(f"ameba/{name}")
    parsed = parse_ota_file(data)
    assert (parsed.version, parsed.header.image_id, parsed.header.checksum, parsed.header.length) == (
        0xFFFF_FFFF,
        b"OTA1",
        checksum,
        length,
    )
    assert parse_image2(parsed.image).km4.offset == km4
    assert pack_ota_file(parsed.image) == data


def test_what_the_vendors_tool_made_is_what_ours_makes() -> None:
    km0, km4 = vendor_bytes("ameba/sdk_km0_image2_all.bin"), vendor_bytes("ameba/sdk_km4_image2_all.bin")
    assert pack_ota_file(join_cores(km0, km4)) == vendor_bytes("ameba/sdk_OTA_All.bin")
    sketch = vendor_bytes("ameba/anchorota_km0_km4_image2.bin")
    assert pack_ota_file(sketch) == vendor_bytes("ameba/anchorota_OTA_All.bin")
    assert pack_ota_file(image2()) == vendor_bytes("ameba/mini_OTA_All.bin")


def test_the_first_96_bytes_on_the_wire() -> None:
    data = vendor_bytes("ameba/anchorota_OTA_All.bin")
    assert byte_sum(data) == 0x0128_9563
    assert (file_info(len(data), byte_sum(data)) + data)[:96] == vendor_bytes("ameba/push_first96.bin")


def test_the_secure_image_is_signed_over_what_we_say() -> None:
    data = vendor_bytes("ameba/sdk_km4_image2_sboot.bin")
    secure = parse_core(data, "km4", allow_unpadded=True).secure
    assert secure is not None
    assert secure.offset == 0x6C000
    assert secure.signature.hex().startswith("b0c92473")
    assert secure.signature.hex().endswith("ab2c0b")
    key = Ed25519PublicKey.from_public_bytes(SAMPLE_KEY)
    key.verify(secure.signature, data[secure.signed_start : secure.offset])
    with pytest.raises(InvalidSignature):
        key.verify(secure.signature, data[: secure.offset])


@pytest.mark.parametrize("name", [name for name in vendor_names("ameba/*.bin") if "first96" not in name])
def test_inspect_finds_no_fault_in_a_vendor_file(name: str) -> None:
    found = inspect(vendor_bytes(name))
    assert found.format in {
        ImageFormat.AMEBA_OTA,
        ImageFormat.AMEBA_IMAGE2,
        ImageFormat.AMEBA_CORE_IMAGE,
        ImageFormat.AMEBA_BOOT,
    }
    assert not found.errors
