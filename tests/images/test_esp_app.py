from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest

from flota.errors import NotFound
from flota.images.esp_app import (
    CHIPS,
    BadHashField,
    BadSegmentCount,
    BadSegmentLength,
    ChecksumMismatch,
    EspAppImage,
    EspImageHeader,
    EspSegment,
    HashMismatch,
    NotAnEspImage,
    image_checksum,
    pack_app,
    parse_app,
    walk_image,
    xor_of,
)
from flota.images.esp_chips import chip_named
from flota.images.esp_desc import (
    EspAppDesc,
    EspBootloaderDesc,
    pack_app_desc,
    pack_bootloader_desc,
    parse_app_desc,
    parse_bootloader_desc,
    retag_app_desc,
)
from flota.images.esp_verify import (
    ChipTooNew,
    ChipTooOld,
    FirstSegmentTooShort,
    ImageTooLarge,
    MisalignedSegment,
    NoAppDescriptor,
    NoSuchPageSize,
    SlotTooLarge,
    UnfitForChip,
    WrongChipId,
    verify_app,
)
from flota.images.inspection import inspect
from flota.images.model import ImageError, TruncatedImage
from tests.images.esp_samples import sample_app, sample_image

MINIMAL = EspAppImage(EspImageHeader(chip_id=5, entry=0x4200_0020), (EspSegment(0x4038_0000, b"\1\2\3\4"),))


def test_the_header_lies_as_the_format_says() -> None:
    header = EspImageHeader(
        chip_id=0x1234,
        entry=0xAABBCCDD,
        spi_mode=1,
        flash_size_code=3,
        speed_code=0xF,
        wp_pin=7,
        drive=b"\x21\x43\x65",
        min_chip_revision_legacy=9,
        min_chip_revision=301,
        max_chip_revision=399,
        hash_appended=False,
    )
    packed = pack_app(replace(MINIMAL, header=header))
    assert packed[:24].hex() == "e901013fddccbbaa07214365341209" + "2d01" + "8f01" + "00000000" + "00"


def test_the_checksum_ends_a_block_of_sixteen_and_the_hash_covers_everything_before_it() -> None:
    for words in range(1, 10):
        data = bytes(range(4 * words))
        packed = pack_app(replace(MINIMAL, segments=(EspSegment(0x4038_0000, data),)))
        layout = walk_image(packed)
        assert layout.checksum_offset % 16 == 15
        assert layout.checksum_offset >= layout.segments[0].end
        expected = 0xEF
        for byte in data:
            expected ^= byte
        assert packed[layout.checksum_offset] == expected == image_checksum(packed, layout)
        assert packed[-32:] == hashlib.sha256(packed[:-32]).digest()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 255, 32767, 32768, 32769, 100_001])
def test_the_folded_checksum_is_that_of_the_loop(size: int) -> None:
    data = bytes((index * 7 + index // 256) & 0xFF for index in range(size))
    expected = 0
    for byte in data:
        expected ^= byte
    assert xor_of(memoryview(data)) == expected


def test_an_image_cut_at_any_byte_is_truncated_and_says_where() -> None:
    packed = sample_app()
    for length in (*range(400), *range(400, len(packed), 997), *range(len(packed) - 60, len(packed))):
        with pytest.raises(TruncatedImage) as caught:
            parse_app(packed[:length])
        assert caught.value.offset is not None
        assert caught.value.offset <= length


def test_every_flipped_bit_is_noticed_but_the_one_that_switches_the_hash_off() -> None:
    packed = bytearray(pack_app(replace(MINIMAL, segments=(EspSegment(0x4038_0000, bytes(64)),))))
    for position in range(len(packed)):
        for bit in range(8):
            packed[position] ^= 1 << bit
            if (position, bit) == (23, 0):
                assert {finding.code for finding in inspect(bytes(packed)).findings} >= {"no-hash", "trailing-bytes"}
            else:
                with pytest.raises(ImageError):
                    parse_app(bytes(packed))
            packed[position] ^= 1 << bit


def test_a_damaged_segment_is_a_checksum_error_with_offset_expected_and_found() -> None:
    packed = bytearray(pack_app(MINIMAL))
    packed[32] ^= 0x10
    with pytest.raises(ChecksumMismatch) as caught:
        parse_app(bytes(packed))
    assert (caught.value.offset, caught.value.found) == (47, f"{0xEF ^ 1 ^ 2 ^ 3 ^ 4:#04x}")


def test_damage_that_the_checksum_misses_is_found_by_the_hash() -> None:
    packed = bytearray(pack_app(MINIMAL))
    packed[32:34] = bytes([packed[33], packed[32]])
    with pytest.raises(HashMismatch) as caught:
        parse_app(bytes(packed))
    assert caught.value.offset == 48


@pytest.mark.parametrize("count", [0, 17, 255])
def test_a_hostile_segment_count_is_refused(count: int) -> None:
    packed = bytearray(pack_app(MINIMAL))
    packed[1] = count
    with pytest.raises(ImageError, match="number of segments") as caught:
        parse_app(bytes(packed))
    assert (caught.value.offset, caught.value.found) == (1, count)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16 * 1024 * 1024, 0xFFFF_FFFC, 0xFFFF_FFFF])
def test_a_hostile_segment_length_is_refused(length: int) -> None:
    packed = bytearray(pack_app(MINIMAL))
    struct.pack_into("<I", packed, 28, length)
    with pytest.raises(ImageError, match="length of segment 0"):
        parse_app(bytes(packed))


@pytest.mark.parametrize("length", [64, 1024, 16 * 1024 * 1024 - 4])
def test_a_segment_longer_than_the_file_is_truncated(length: int) -> None:
    packed = bytearray(pack_app(MINIMAL))
    struct.pack_into("<I", packed, 28, length)
    with pytest.raises(TruncatedImage):
        parse_app(bytes(packed))


def test_a_hash_field_that_is_neither_0_nor_1_is_refused() -> None:
    packed = bytearray(pack_app(MINIMAL))
    packed[23] = 2
    with pytest.raises(ImageError, match="hash_appended"):
        parse_app(bytes(packed))


def test_what_follows_the_image_is_kept_as_its_trailer() -> None:
    packed = pack_app(MINIMAL) + b"trailer"
    image = parse_app(packed)
    assert image.trailer == b"trailer"
    assert pack_app(image) == packed


def test_numbers_that_do_not_fit_their_field_are_image_errors() -> None:
    for change in ({"entry": 1 << 32}, {"chip_id": -1}, {"flash_size_code": 16}, {"drive": b""}, {"wp_pin": 256}):
        with pytest.raises(ImageError):
            pack_app(replace(MINIMAL, header=replace(MINIMAL.header, **change)))  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        EspSegment(0, b"123")
    with pytest.raises(ImageError):
        EspSegment(1 << 32, b"")
    with pytest.raises(ImageError):
        EspAppImage(MINIMAL.header, ())


def test_every_chip_id_of_the_vendor_is_known_with_its_boot_loader_offset() -> None:
    assert {number: (chip.name, chip.bootloader_offset) for number, chip in CHIPS.items()} == {
        0: ("esp32", 0x1000),
        2: ("esp32-s2", 0x1000),
        5: ("esp32-c3", 0),
        9: ("esp32-s3", 0),
        12: ("esp32-c2", 0),
        13: ("esp32-c6", 0),
        16: ("esp32-h2", 0),
        18: ("esp32-p4", 0x2000),
        20: ("esp32-c61", 0),
        23: ("esp32-c5", 0x2000),
        25: ("esp32-h21", 0),
        28: ("esp32-h4", 0x2000),
        31: ("esp32-e22", 0),
        32: ("esp32-s31", 0x2000),
    }


def test_a_chip_is_found_by_any_of_its_spellings() -> None:
    assert chip_named("ESP32C3") == chip_named("esp32-c3") == chip_named("esp32_c3")
    with pytest.raises(NotFound, match="esp32-c61"):
        chip_named("esp33")


# --- descriptors --------------------------------------------------------------------------------------------


def test_the_app_descriptor_lies_as_the_format_says() -> None:
    desc = EspAppDesc("1.0", "pump", 7, "15:36:45", "Jan  8 2026", "v6.0", bytes(range(32)), 1, 99, 16, 3)
    packed = pack_app_desc(desc)
    assert len(packed) == 256
    assert packed[:8] == bytes.fromhex("3254cdab07000000")
    for offset, text in (
        (16, b"1.0\0"),
        (48, b"pump\0"),
        (80, b"15:36:45\0"),
        (96, b"Jan  8 2026\0"),
        (112, b"v6.0\0"),
    ):
        assert packed[offset : offset + len(text)] == text
    assert packed[144:182] == bytes(range(32)) + struct.pack("<HHBB", 1, 99, 16, 3)
    assert parse_app_desc(packed) == desc


def test_text_in_a_descriptor_is_cleaned() -> None:
    packed = bytearray(pack_app_desc(EspAppDesc("1.0", "pump")))
    packed[16:48] = b"\x1b[31mred\xff\xfe \x07".ljust(32, b"\0")
    version = parse_app_desc(bytes(packed)).version
    assert version.isprintable()
    assert "red" in version


def test_retagging_changes_only_what_is_asked_for() -> None:
    packed = pack_app_desc(EspAppDesc("1.0", "pump", 1, "t", "d", "i", bytes(range(32)), 1, 2, 3, 4))
    edited = retag_app_desc(packed, version="2.0")
    assert edited[:16] + edited[48:] == packed[:16] + packed[48:]
    assert parse_app_desc(edited).version == "2.0"
    with pytest.raises(ImageError):
        retag_app_desc(packed, version="v" * 32)
    with pytest.raises(ImageError):
        retag_app_desc(bytes(256), version="1")


def test_the_boot_loader_descriptor_packs_and_parses() -> None:
    desc = EspBootloaderDesc(0, 1, "v6.1", "Apr 25 2023 00:13:32")
    assert parse_bootloader_desc(pack_bootloader_desc(desc)) == desc
    assert parse_bootloader_desc(b"\x50" * 80) is None
    assert parse_bootloader_desc(b"\x50") is None


# --- what a device checks -----------------------------------------------------------------------------------


def test_a_device_takes_an_image_for_its_chip() -> None:
    packed = sample_app()
    layout = verify_app(packed + b"\xff" * 5000, chip=CHIPS[5], chip_revision=4, slot_size=len(packed))
    assert layout.image_size == len(packed)


@pytest.mark.parametrize(
    ("chip", "revision", "slot_size", "what"),
    [
        ("esp32-s3", None, None, "another chip"),
        ("esp32-c3", 99, None, "too old"),
        ("esp32-c3", 200, None, "too new"),
        ("esp32-c3", 150, 1000, "larger than its slot"),
        ("esp32-c3", 150, 17 * 1024 * 1024, "above 16 MiB"),
    ],
)
def test_a_device_refuses_what_its_verifier_refuses(
    chip: str, revision: int | None, slot_size: int | None, what: str
) -> None:
    image = sample_image()
    packed = pack_app(replace(image, header=replace(image.header, min_chip_revision=100, max_chip_revision=199)))
    with pytest.raises(UnfitForChip, match=what):
        verify_app(packed, chip=chip_named(chip), chip_revision=revision, slot_size=slot_size)


def test_a_mapped_segment_in_the_wrong_place_of_its_page_is_refused() -> None:
    image = sample_image()
    first = image.segments[0]
    moved = replace(image, segments=(replace(first, address=first.address + 4), *image.segments[1:]))
    with pytest.raises(UnfitForChip, match="does not match its address"):
        verify_app(pack_app(moved), chip=CHIPS[5])


def test_chips_with_a_choice_of_page_size_insist_on_the_descriptor() -> None:
    for name, taken in (("esp32-c3", True), ("esp32-c6", False)):
        image = sample_image(name)
        first = image.segments[0]
        blank = replace(image, segments=(replace(first, data=bytes(len(first.data))), *image.segments[1:]))
        if taken:
            verify_app(pack_app(blank), chip=chip_named(name))
        else:
            with pytest.raises(UnfitForChip, match="descriptor"):
                verify_app(pack_app(blank), chip=chip_named(name))


def test_a_first_segment_too_short_for_a_descriptor_is_refused() -> None:
    with pytest.raises(UnfitForChip, match="too short"):
        verify_app(pack_app(MINIMAL), chip=CHIPS[5])


# --- each way to be wrong has an error of its own ---------------------------------------------------------------


def with_page_size(log2: int) -> bytes:
    image = sample_image("esp32-c6")
    first = image.segments[0]
    desc = replace(parse_app_desc(first.data), page_size_log2=log2)
    return pack_app(
        replace(image, segments=(replace(first, data=pack_app_desc(desc) + first.data[256:]), *image.segments[1:]))
    )


def bent(position: int, value: int) -> bytes:
    packed = bytearray(sample_app())
    packed[position] = value
    return bytes(packed)


def moved() -> bytes:
    image = sample_image()
    first = image.segments[0]
    return pack_app(replace(image, segments=(replace(first, address=first.address + 4), *image.segments[1:])))


def without_descriptor() -> bytes:
    image = sample_image("esp32-c6")
    first = image.segments[0]
    return pack_app(replace(image, segments=(replace(first, data=bytes(len(first.data))), *image.segments[1:])))


def of_revisions(minimum: int, maximum: int) -> bytes:
    image = sample_image()
    return pack_app(replace(image, header=replace(image.header, min_chip_revision=minimum, max_chip_revision=maximum)))


REFUSALS: list[tuple[type[ImageError], bytes, str, dict[str, int]]] = [
    (NotAnEspImage, bent(0, 0xEA), "esp32-c3", {}),
    (TruncatedImage, sample_app()[:-1], "esp32-c3", {}),
    (BadSegmentCount, bent(1, 17), "esp32-c3", {}),
    (BadSegmentCount, bent(1, 0), "esp32-c3", {}),
    (BadSegmentLength, bent(28, sample_app()[28] | 1), "esp32-c3", {}),
    (BadHashField, bent(23, 2), "esp32-c3", {}),
    (ChecksumMismatch, bent(300, sample_app()[300] ^ 1), "esp32-c3", {}),
    (HashMismatch, sample_app()[:-1] + bytes([sample_app()[-1] ^ 1]), "esp32-c3", {}),
    (WrongChipId, sample_app(), "esp32-s3", {}),
    (ChipTooOld, of_revisions(100, 199), "esp32-c3", {"chip_revision": 99}),
    (ChipTooNew, of_revisions(100, 199), "esp32-c3", {"chip_revision": 200}),
    (MisalignedSegment, moved(), "esp32-c3", {}),
    (NoSuchPageSize, with_page_size(20), "esp32-c6", {}),
    (NoAppDescriptor, without_descriptor(), "esp32-c6", {}),
    (FirstSegmentTooShort, pack_app(MINIMAL), "esp32-c3", {}),
    (ImageTooLarge, sample_app(), "esp32-c3", {"slot_size": 1000}),
    (SlotTooLarge, sample_app(), "esp32-c3", {"slot_size": (16 << 20) + 1}),
]


@pytest.mark.parametrize(("kind", "data", "chip", "limits"), REFUSALS, ids=[kind.code for kind, *_ in REFUSALS])
def test_each_thing_that_a_device_refuses_has_its_own_error(
    kind: type[ImageError], data: bytes, chip: str, limits: dict[str, int]
) -> None:
    with pytest.raises(ImageError) as refused:
        verify_app(data, chip=chip_named(chip), **limits)  # type: ignore[arg-type]
    assert type(refused.value) is kind


def test_no_two_of_these_errors_share_a_code() -> None:
    kinds = {kind for kind, *_ in REFUSALS}
    assert len({kind.code for kind in kinds}) == len(kinds) == 16
