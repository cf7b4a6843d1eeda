"""AmebaD images: what is packed is what devices take, and what they would take but not start is refused."""

from __future__ import annotations

import hashlib

import pytest

from flota.images.ameba import (
    byte_sum,
    file_info,
    flash_map,
    join_cores,
    pack_ota_file,
    parse_boot_image,
    parse_core,
    parse_image2,
    parse_ota_file,
    parse_ota_headers,
)
from flota.images.ameba.boot_image import find_slot_addresses
from flota.images.ameba.flash_map import FLASH_MAPS
from flota.images.ameba.image2 import (
    BadPadding,
    BadSecureBlock,
    MisplacedKm4,
    UnalignedEnd,
    km4_offset_of,
)
from flota.images.ameba.ota_file import NotAnOtaFile, SeveralImages, WrongOtaChecksum, WrongOtaLayout
from flota.images.ameba.segment import (
    BOOT_SIGNATURE,
    MissingRamText,
    MissingSignature,
    SegmentHeader,
    SegmentPastEnd,
    UnalignedSegment,
    WrongSegmentAddress,
)
from flota.images.inspection import inspect
from flota.images.model import ImageError, ImageFormat, TruncatedImage
from tests.images.ameba_samples import KM4_XIP, image2, km0_image, km4_image, padded, ram_payload, segment

MINI_SHA256 = "532a9e25abbef2b625d74497347ef49e5b381f640ade221351e5cba23f6ec427"


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


def resummed(ota: bytes) -> bytes:
    return patched(ota, 16, byte_sum(ota[32:]).to_bytes(4, "little"))


def test_the_worked_example_has_the_vendor_tools_bytes() -> None:
    ota = pack_ota_file(image2())
    assert hashlib.sha256(image2()).hexdigest() == "4410c15d2861a57f8ede90c9d1368445c7da02777bbc5df2fa68599f539959ff"
    assert hashlib.sha256(ota).hexdigest() == MINI_SHA256
    assert ota[:32].hex() == "ffffffff010000004f5441311800000034441f000020000020000000ffffffff"
    assert file_info(len(ota), byte_sum(ota)).hex() == "314e1f000000000020200000"


def test_the_cores_are_joined_as_the_vendor_does() -> None:
    km0, km4 = km0_image(), km4_image()
    assert join_cores(km0.rstrip(b"\xff"), km4.rstrip(b"\xff") + b"\xff" * 12) == km0 + km4
    assert join_cores(km0, km4) == km0 + km4


def test_both_cores_are_found_with_and_without_psram() -> None:
    assert [s.name for s in parse_image2(image2()).km4.segments] == ["km4 XIP", "km4 RAM", "km4 PSRAM"]
    assert len(parse_image2(km0_image() + km4_image(psram=None)).km4.segments) == 2
    assert parse_image2(km0_image() + km4_image(psram=b"\1" * 5000)).km4.segments[2].header.size == 5000


def test_km4_is_where_the_boot_loader_computes_it() -> None:
    """A sum of exactly whole sectors is not rounded up further."""
    assert km4_offset_of(0x1000 - 0x40 - 0x20, 0x20) == 0x1000
    assert km4_offset_of(0x1000 - 0x40 - 0x20 + 4, 0x20) == 0x2000
    exact = km0_image(xip=b"\x11" * (0x1000 - 0x60))
    assert len(exact) == 0x1000
    assert parse_image2(exact + km4_image()).km4.offset == 0x1000


def test_image3_behind_km4_is_told_apart_from_rubbish() -> None:
    image = image2()
    assert parse_image2(image + padded(segment(0x1010_0000, b"trustzone"))).image3_offset == len(image)
    assert parse_image2(image + b"\xff" * 4096).image3_offset is None
    with pytest.raises(BadPadding) as caught:
        parse_image2(image + b"\xff" * 100 + b"\0" * 3996)
    assert caught.value.offset == len(image) + 100


def signed_km4(filler: bytes = b"\xff" * 48, pointer: int | None = None) -> bytes:
    plain = km4_image()
    signed = patched(plain, 16, (0x0E00_0000 + len(plain) if pointer is None else pointer).to_bytes(4, "little"))
    return signed + filler + b"\x5a" * 64


def test_a_secure_image_is_recognised_with_what_its_signature_covers() -> None:
    secure = parse_image2(km0_image() + padded(signed_km4())).km4.secure
    assert secure is not None
    assert (secure.offset, secure.signed_start, secure.signature) == (0x2000, 0x1020, b"\x5a" * 64)
    unpadded = parse_core(signed_km4(), "km4", allow_unpadded=True)
    assert unpadded.secure is not None
    assert unpadded.end == 0x1000 + 112


@pytest.mark.parametrize(
    ("image", "error", "offset"),
    [
        pytest.param(b"", TruncatedImage, 0, id="empty"),
        pytest.param(km0_image(), TruncatedImage, 4096, id="KM0 alone"),
        pytest.param(km0_image() + b"\xff" * 4096, MisplacedKm4, 4096, id="KM4 blank"),
        pytest.param(km0_image() + b"\xff" * 4096 + km4_image(), MisplacedKm4, 4096, id="KM4 a sector late"),
        pytest.param(patched(image2(), 0, b"81958710"), MissingSignature, 0, id="first signature"),
        pytest.param(patched(image2(), 0x30, b"\0"), MissingSignature, 0x30, id="KM0 RAM signature"),
        pytest.param(patched(image2(), 12, b"\0"), WrongSegmentAddress, 12, id="KM0 XIP address"),
        pytest.param(patched(image2(), 0x103C, b"\0\0\0\0"), WrongSegmentAddress, 0x103C, id="KM4 RAM address"),
        pytest.param(patched(image2(), 8, b"\xff\xff\xff\xff"), SegmentPastEnd, 8, id="size FFFFFFFF"),
        pytest.param(patched(image2(), 0x5C, b"rtkwin"), MissingRamText, 0x5C, id="KM0 RTKWin"),
        pytest.param(patched(image2(), 0x105C, b"RTKWin1"), MissingRamText, 0x105C, id="KM4 RTKWin without its NUL"),
        pytest.param(image2()[:-1], UnalignedEnd, 8191, id="one byte short"),
        pytest.param(image2() + b"\xff", UnalignedEnd, 8193, id="one byte more"),
        pytest.param(patched(image2(), 0x200, b"\0"), BadPadding, 0x200, id="rubbish in the padding"),
        pytest.param(
            padded(segment(0x0C00_0020, b"\x11" * 15) + segment(0x0008_3000, ram_payload(1))) + km4_image(),
            UnalignedSegment,
            8,
            id="XIP of 15 bytes",
        ),
        pytest.param(km0_image() + padded(signed_km4(pointer=0)), BadSecureBlock, 0x1010, id="block below its image"),
        pytest.param(km0_image() + signed_km4(pointer=0x0E01_0000), BadSecureBlock, 0x1010, id="block beyond the file"),
        pytest.param(km0_image() + padded(signed_km4(b"\0" * 48)), BadPadding, 0x2000, id="filler is not FF"),
    ],
)
def test_what_a_device_would_take_and_not_start_is_refused(image: bytes, error: type[ImageError], offset: int) -> None:
    for refuse in (parse_image2, pack_ota_file):
        if refuse is pack_ota_file and not image:
            continue
        with pytest.raises(error) as caught:
            refuse(image)
        assert type(caught.value) is error
        assert caught.value.offset == offset


OTA = pack_ota_file(image2())


@pytest.mark.parametrize(
    ("data", "error", "offset"),
    [
        pytest.param(b"", TruncatedImage, 0, id="empty"),
        pytest.param(OTA[:31], TruncatedImage, 31, id="within the headers"),
        pytest.param(OTA[:32], WrongOtaLayout, 20, id="headers alone"),
        pytest.param(patched(OTA, 4, b"\0"), NotAnOtaFile, 4, id="no image"),
        pytest.param(patched(OTA, 4, b"\xff\xff\xff\xff"), NotAnOtaFile, 4, id="four billion images"),
        pytest.param(patched(OTA, 8, b"RDP\0"), NotAnOtaFile, 8, id="an id that devices refuse"),
        pytest.param(patched(OTA, 12, b"\x17"), NotAnOtaFile, 12, id="sub-header too short"),
        pytest.param(patched(OTA, 12, b"\x1c"), WrongOtaLayout, 12, id="sub-header too long"),
        pytest.param(patched(OTA, 16, b"\0"), WrongOtaChecksum, 16, id="sum"),
        pytest.param(patched(OTA, 20, b"\1"), WrongOtaLayout, 20, id="length"),
        pytest.param(patched(OTA, 24, b"\x21"), WrongOtaLayout, 24, id="offset"),
        pytest.param(OTA + b"\xff", WrongOtaLayout, 20, id="trailing byte"),
        pytest.param(OTA[:-1], WrongOtaLayout, 20, id="a byte short"),
        pytest.param(resummed(patched(OTA, 32, b"00000000")), MissingSignature, 32, id="image without signature"),
    ],
)
def test_a_file_that_no_device_should_get_is_refused(data: bytes, error: type[ImageError], offset: int) -> None:
    with pytest.raises(error) as caught:
        parse_ota_file(data)
    assert type(caught.value) is error
    assert caught.value.offset == offset


def test_two_images_in_one_file_are_shown_and_refused() -> None:
    second = OTA[8:32].replace(b"OTA1", b"OTA2")
    both = OTA[:4] + b"\2\0\0\0" + OTA[8:32] + second + OTA[32:] * 2
    assert [header.image_id for header in parse_ota_headers(both).images] == [b"OTA1", b"OTA2"]
    with pytest.raises(SeveralImages):
        parse_ota_file(both)


def test_an_encrypted_image_is_packed_only_when_said_to_be_opaque() -> None:
    cipher = bytes(range(256)) * 16
    with pytest.raises(MissingSignature):
        pack_ota_file(cipher)
    packed = pack_ota_file(cipher, opaque=True)
    assert parse_ota_file(packed, opaque=True).image == cipher


def test_the_version_is_little_endian_and_bounded() -> None:
    assert pack_ota_file(image2(), version=0x0001_0203)[:4] == b"\x03\x02\x01\x00"
    for version in (-1, 1 << 32):
        with pytest.raises(ImageError):
            pack_ota_file(image2(), version=version)


def boot_image(xip: int = 0x0800_0020, ram: int = 0x0008_2000, payload: bytes = b"\0" * 64) -> bytes:
    first = SegmentHeader(BOOT_SIGNATURE, 16, xip).pack() + b"\1" * 16
    return first + SegmentHeader(BOOT_SIGNATURE, len(payload), ram).pack() + payload


def test_a_boot_image_tells_its_core_and_its_slots() -> None:
    stock = parse_boot_image(boot_image(payload=b"\0" * 8 + bytes.fromhex("0060000800601008") + b"\0" * 8))
    assert (stock.core, stock.slot_addresses) == ("km0", (0x0800_6000, 0x0810_6000))
    rebuilt = parse_boot_image(boot_image(payload=b"\0" * 8 + bytes.fromhex("0060000800602008") + b"\0" * 8))
    assert rebuilt.slot_addresses == (0x0800_6000, 0x0820_6000)
    assert parse_boot_image(boot_image(0x0800_4020, 0x1007_D000)).core == "km4"
    assert find_slot_addresses(b"\0" * 64) is None
    for broken in (image2(), boot_image(0x0800_8020), b"\x99" * 20):
        with pytest.raises(ImageError):
            parse_boot_image(broken)


@pytest.mark.parametrize("name", FLASH_MAPS)
def test_the_areas_of_a_flash_map_fill_it_without_overlap(name: str) -> None:
    layout = flash_map(name)
    position = 0
    for area in layout.areas:
        assert area.offset == position
        assert area.offset % 4096 == 0
        position = area.end
    assert position == layout.flash_size
    assert layout.slot_offset(1) == 0x6000
    assert layout.slot_offset(2) == layout.ota2


@pytest.mark.parametrize(
    ("data", "image_format", "fine"),
    [
        pytest.param(OTA, ImageFormat.AMEBA_OTA, True, id="OTA_All"),
        pytest.param(image2(), ImageFormat.AMEBA_IMAGE2, True, id="both cores"),
        pytest.param(km0_image(), ImageFormat.AMEBA_CORE_IMAGE, True, id="KM0"),
        pytest.param(km4_image(), ImageFormat.AMEBA_CORE_IMAGE, True, id="KM4"),
        pytest.param(signed_km4(), ImageFormat.AMEBA_CORE_IMAGE, True, id="KM4 signed, not padded"),
        pytest.param(boot_image(), ImageFormat.AMEBA_BOOT, True, id="boot"),
        pytest.param(patched(OTA, 16, b"\0"), ImageFormat.AMEBA_OTA, False, id="wrong sum"),
        pytest.param(km0_image() + b"\xff" * 4096, ImageFormat.AMEBA_IMAGE2, False, id="KM4 missing"),
        pytest.param(image2()[:-5], ImageFormat.AMEBA_IMAGE2, False, id="truncated"),
        pytest.param(boot_image()[:40], ImageFormat.AMEBA_BOOT, False, id="boot truncated"),
    ],
)
def test_inspect_tells_ameba_files_apart(data: bytes, image_format: ImageFormat, fine: bool) -> None:
    found = inspect(data)
    assert (found.format, found.chip) == (image_format, "rtl8721d")
    assert (not found.errors) is fine
    assert all(region.end <= len(data) for region in found.regions)


def test_an_address_of_another_chip_is_named_with_both_addresses() -> None:
    with pytest.raises(WrongSegmentAddress) as caught:
        parse_core(patched(km4_image(), 12, b"\0\0\0\0"), "km4")
    assert (caught.value.expected, caught.value.found) == (f"{KM4_XIP:#010x}", "0x00000000")
