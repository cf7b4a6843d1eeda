"""Nuvoton files: what the loaders and the application read and write, and what tells a program from other bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.images.flash_area import FlashArea
from flota.images.inspection import inspect
from flota.images.markers import pack_marker
from flota.images.model import ImageError, ImageFormat, TruncatedImage
from flota.images.nuvoton import (
    AppVersion,
    BadTrailer,
    Descriptor,
    EntryBeyondImage,
    ImageFlag,
    MissingDescriptor,
    NotAProgram,
    NotTheApplication,
    Place,
    TooLongForAprom,
    Trailer,
    cloned_pages,
    looks_like_program,
    loses_last_byte,
    pack_app,
    pad_to_page,
    parse_descriptor,
    parse_program,
    parse_trailer,
    version_in_name,
)
from flota.images.nuvoton.flash_map import APP_SIZE, APROM_AREAS, M2354_AREAS, SD_AREAS, spi_areas
from flota.images.nuvoton.inspection import version_inside
from tests.images.nuvoton_samples import HANDLER, program

U8, U16, U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF)

LOGGED = "40414652544f53ff1500000000000000ff2f00000000000000000000d8110020"
"""A descriptor as the vendor's published log shows it: sequence number 21, garbage of the stack in the last word."""

descriptors = st.builds(
    Descriptor,
    flag=U8,
    end=U32,
    start=U32,
    execute=U32,
    sequence=U32,
    hardware_id=U32,
    reserved=U32,
)


@st.composite
def trailers(draw: st.DrawFn) -> Trailer:
    room = draw(st.sampled_from([256, 384]))
    signature = draw(st.binary(max_size=80)) * draw(st.integers(0, 3))
    name = draw(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=31))
    return Trailer(signature, name, room, bytes((draw(U8),)) * (room - len(signature)))


# --- descriptor and trailer -------------------------------------------------------------------------------------------


def test_a_descriptor_as_devices_have_it() -> None:
    found = parse_descriptor(bytes.fromhex(LOGGED))
    assert found == Descriptor(ImageFlag.NEW, 0x2FFF, sequence=21, reserved=0x2000_11D8)
    assert found.pack().hex() == LOGGED
    assert found.flag_name == "0xff, new, to be copied"
    assert not found.has_backup


@given(descriptors)
def test_a_descriptor_is_read_as_it_was_written(descriptor: Descriptor) -> None:
    packed = descriptor.pack()
    assert len(packed) == 32
    assert parse_descriptor(packed) == descriptor
    assert parse_descriptor(packed + b"\xff" * 4064) == descriptor


@given(st.binary(min_size=25, max_size=40))
def test_any_bytes_behind_the_magic_are_a_descriptor_and_nothing_is_lost(data: bytes) -> None:
    assert parse_descriptor(b"@AFRTOS" + data).pack() == b"@AFRTOS" + data[:25]


def test_flags_only_ever_clear_bits() -> None:
    order = [ImageFlag.NEW, ImageFlag.PENDING_COMMIT, ImageFlag.VALID, ImageFlag.INVALID]
    assert all(later & ~earlier == 0 for earlier, later in pairwise(order))


@pytest.mark.parametrize("place", range(7))
def test_the_loader_wants_all_seven_bytes_of_the_magic(place: int) -> None:
    damaged = bytearray(bytes.fromhex(LOGGED))
    damaged[place] ^= 1
    with pytest.raises(MissingDescriptor) as caught:
        parse_descriptor(bytes(damaged))
    assert caught.value.offset == 0


def test_a_blank_page_and_a_short_one_have_no_descriptor() -> None:
    with pytest.raises(MissingDescriptor):
        parse_descriptor(b"\xff" * 4096)
    with pytest.raises(TruncatedImage):
        parse_descriptor(bytes.fromhex(LOGGED)[:31])


def test_a_number_that_fits_no_field_is_an_error_of_ours() -> None:
    with pytest.raises(ImageError):
        Descriptor(0x100, 0).pack()
    with pytest.raises(ImageError):
        Descriptor(0xFF, 1 << 32).pack()


@given(trailers())
def test_a_trailer_is_read_as_it_was_written(trailer: Trailer) -> None:
    packed = trailer.pack()
    assert len(packed) == {256: 292, 384: 420}[trailer.room]
    assert parse_trailer(packed) == trailer
    assert parse_trailer(packed.ljust(4096, b"\xff"), room=trailer.room) == trailer


def test_a_page_with_a_long_signature_has_the_wider_array() -> None:
    page = Trailer(bytes(300), room=384).pack().ljust(4096, b"\xff")
    assert parse_trailer(page).room == 384
    assert parse_trailer(Trailer(bytes(71)).pack().ljust(4096, b"\xff")).room == 256


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"\xff" * 4096, BadTrailer, id="a blank page"),
        pytest.param(b"sig-sha256-ecdsa".ljust(32, b"\0") + b"\x01\x01\0\0" + bytes(256), BadTrailer, id="257 of 256"),
        pytest.param(b"s" * 32 + bytes(260), BadTrailer, id="no NUL"),
        pytest.param(b"sig\0x".ljust(32, b"\0") + bytes(260), BadTrailer, id="something behind the NUL"),
        pytest.param(b"sig-sha256-ecdsa".ljust(32, b"\0") + bytes(259), TruncatedImage, id="a byte short"),
    ],
)
def test_what_is_no_trailer_is_refused(data: bytes, error: type[ImageError]) -> None:
    with pytest.raises(error):
        parse_trailer(data, room=256)


@pytest.mark.parametrize(
    "trailer",
    [
        Trailer(bytes(257)),
        Trailer(b"", room=300),
        Trailer(b"", signature_type=""),
        Trailer(b"", signature_type="x" * 32),
        Trailer(b"", signature_type="\u00e9"),
        Trailer(b"ab", rest=b"c"),
    ],
)
def test_what_a_trailer_cannot_hold_is_not_written(trailer: Trailer) -> None:
    with pytest.raises(BadTrailer):
        trailer.pack()


# --- programs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "place"), [(0, Place.APP), (0x7_2000, Place.CLONER), (0x10_0000, Place.LOADER)])
def test_a_program_says_for_which_place_it_is_linked(base: int, place: Place) -> None:
    found = parse_program(program(base=base))
    assert (found.place, found.initial_stack, found.entry) == (place, 0x2002_8000, base + HANDLER - 1)


def test_a_long_application_may_start_where_the_cloner_would_lie() -> None:
    assert parse_program(program(0x7_4000, changed={1: 0x7_2101})).place is Place.APP


@pytest.mark.parametrize(
    ("changed", "offset"),
    [
        pytest.param({0: 0x2000_0000}, 0, id="stack at the start of RAM"),
        pytest.param({0: 0x2002_8004}, 0, id="stack behind RAM"),
        pytest.param({0: 0x2000_8002}, 0, id="stack not aligned"),
        pytest.param({1: 0x100}, 4, id="even entry"),
        pytest.param({1: 0x0800_0101}, 4, id="an STM32"),
        pytest.param({1: 0x3F}, 4, id="entry inside the vectors"),
        pytest.param({2: 0}, 8, id="no NMI"),
        pytest.param({3: 0}, 12, id="no HardFault"),
        pytest.param({6: 0x8_0001}, 24, id="behind APROM"),
        pytest.param({7: 1}, 28, id="a sum where nothing belongs"),
        pytest.param({15: 0x102}, 60, id="even SysTick"),
    ],
)
def test_what_this_core_could_not_start_from_is_no_program(changed: dict[int, int], offset: int) -> None:
    data = program(changed=changed)
    with pytest.raises(NotAProgram) as caught:
        parse_program(data)
    assert caught.value.offset == offset
    assert inspect(data).format is ImageFormat.RAW


def test_optional_exceptions_may_be_missing() -> None:
    assert parse_program(program(changed={4: 0, 5: 0, 6: 0, 11: 0, 12: 0, 14: 0, 15: 0})).place is Place.APP


@pytest.mark.parametrize("number", [1, 2, 3, 15])
def test_a_program_that_is_cut_off_before_where_a_vector_leads_is_a_broken_one(number: int) -> None:
    assert parse_program(program(4096, changed={number: 0xFFF})).size == 4096
    data = program(4096, changed={number: 0x1001})
    with pytest.raises(EntryBeyondImage) as caught:
        parse_program(data)
    assert caught.value.offset == 4 * number
    assert looks_like_program(data)
    found = inspect(data)
    assert (found.format, [finding.code for finding in found.errors]) == (ImageFormat.NUVOTON_APROM, ["nuvoton-entry"])
    with pytest.raises(TruncatedImage):
        parse_program(data[:63])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_program_or_an_error_of_ours(data: bytes) -> None:
    if looks_like_program(data) and inspect(data).errors == ():
        assert parse_program(data).size == len(data)
    else:
        with pytest.raises(ImageError):
            parse_program(data)


# --- padding ----------------------------------------------------------------------------------------------------------


@given(st.integers(64, APP_SIZE))
def test_packed_files_are_whole_pages_and_the_cloner_copies_every_byte(size: int) -> None:
    packed = pack_app(program(max(size, HANDLER + 2)))
    assert len(packed) % 4096 == 0
    assert packed.startswith(program(max(size, HANDLER + 2)))
    assert cloned_pages(0, len(packed) - 1) * 4096 == len(packed)
    assert pack_app(packed) == packed


@given(st.integers(1, 0x7_0000))
def test_the_cloner_loses_a_byte_of_one_length_in_4096(size: int) -> None:
    copied = cloned_pages(0, size - 1) * 4096
    assert loses_last_byte(size) == (copied < size)
    assert copied >= size - 1


@pytest.mark.parametrize(
    ("size", "pages"), [(1, 0), (2, 1), (4096, 1), (4097, 1), (4098, 2), (8192, 2), (8193, 2), (0x6_8000, 0x68)]
)
def test_the_cloners_count(size: int, pages: int) -> None:
    assert cloned_pages(0, size - 1) == pages


def test_what_no_board_takes_is_not_packed() -> None:
    assert len(pack_app(program(APP_SIZE))) == APP_SIZE
    with pytest.raises(TooLongForAprom) as caught:
        pack_app(program(APP_SIZE + 1))
    assert (caught.value.offset, caught.value.found) == (APP_SIZE, f"{APP_SIZE + 1} bytes")
    with pytest.raises(NotTheApplication):
        pack_app(program(base=0x7_2000))
    with pytest.raises(NotAProgram):
        pack_app(bytes(4096))
    assert pad_to_page(b"") == b""


# --- versions ---------------------------------------------------------------------------------------------------------


@given(st.builds(AppVersion, U8, U8, U16))
def test_a_version_is_three_numbers_a_word_and_a_suffix(version: AppVersion) -> None:
    assert AppVersion.parse(str(version)) == version
    assert AppVersion.from_word(version.word) == version
    assert version_in_name(f"app_V{version}.bin") == version_in_name(f"app_update_v{version}") == str(version)


@given(st.builds(AppVersion, U8, U8, U16), st.builds(AppVersion, U8, U8, U16))
def test_versions_compare_as_their_words_do(one: AppVersion, other: AppVersion) -> None:
    assert (one < other) == (one.word < other.word)


def test_the_words_of_the_guide() -> None:
    assert AppVersion(1, 0, 0).word == 0x0100_0000
    assert AppVersion(1, 0, 1).word == 0x0100_0001


@pytest.mark.parametrize(
    "name",
    ["", "app.bin", "app_V1.0.bin", "app_V1.0.1-rc1.bin", "app_V256.0.1.bin", "app_V1.0.65536.bin", "V1.0.1.bin"],
)
def test_other_names_say_no_version(name: str) -> None:
    assert version_in_name(name) is None


@pytest.mark.parametrize("text", ["1.0", "1.0.1.2", "256.0.0", "1.0.65536", "v1.0.0", "1.0.\u0661"])
def test_other_texts_are_no_version(text: str) -> None:
    with pytest.raises(ImageError):
        AppVersion.parse(text)
    assert version_inside({"version": text}) is None


def test_a_word_of_more_than_32_bits_is_no_version() -> None:
    with pytest.raises(ImageError):
        AppVersion.from_word(1 << 32)


# --- inspect ----------------------------------------------------------------------------------------------------------


def test_a_program_is_told_by_its_vectors_and_says_the_version_of_our_marker() -> None:
    marker = pack_marker({"version": "1.0.1", "behaviour": "crash"})
    data = program(600)[:500].ljust(600, b"\x42") + marker
    found = inspect(pad_to_page(data))
    assert (found.format, found.version, found.chip) == (ImageFormat.NUVOTON_APROM, "1.0.1", None)
    assert [(region.name, region.start, region.size) for region in found.regions] == [
        ("vectors", 0, 64),
        ("program", 64, len(data) - 64),
        ("padding", len(data), 4096 - len(data)),
    ]
    assert found.findings == ()


def test_a_program_without_a_marker_says_no_version_and_why() -> None:
    found = inspect(program())
    assert found.version is None
    assert [(finding.level, finding.code) for finding in found.findings] == [("note", "no-version")]


def test_the_length_that_loses_a_byte_is_warned_of() -> None:
    assert [finding.code for finding in inspect(program(4097)).findings if finding.level == "warning"] == [
        "clone-drops-last-byte"
    ]


@pytest.mark.parametrize("base", [0x7_2000, 0x10_0000])
def test_the_boot_programs_are_no_updates(base: int) -> None:
    found = inspect(program(base=base))
    assert (found.format, [finding.code for finding in found.findings]) == (ImageFormat.NUVOTON_BOOT, ["loader"])


def test_a_whole_flash_is_recognised_and_warned_of() -> None:
    flash = bytearray(program(0x8_0000, fill=0xFF))
    flash[0x7_0000:0x7_0020] = Descriptor(ImageFlag.VALID, 0x2FFF, reserved=0x8_0000).pack()
    found = inspect(bytes(flash))
    assert [finding.code for finding in found.findings] == ["no-version", "whole-aprom"]
    assert [region.name for region in found.regions] == [area.name for area in APROM_AREAS]
    assert ("backup", "at 0x80000 in the SPI flash") in [(row.name, row.value) for row in found.properties]


def test_records_read_back_are_told_apart() -> None:
    descriptor = inspect(Descriptor(ImageFlag.PENDING_COMMIT, 0x2FFF).pack().ljust(4096, b"\xff"))
    assert descriptor.format is ImageFormat.NUVOTON_DESCRIPTOR
    assert ("flag", "0xfe, self-test") in [(row.name, row.value) for row in descriptor.properties]
    trailer = inspect(Trailer(bytes(71)).pack())
    assert trailer.format is ImageFormat.NUVOTON_TRAILER
    assert ("signature", "71 bytes of 256") in [(row.name, row.value) for row in trailer.properties]
    for broken in (b"@AFRTOS\xff", b"sig-sha256-ecdsa\0"):
        assert [finding.code for finding in inspect(broken).errors] == ["truncated-image"]


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "areas",
    [APROM_AREAS, M2354_AREAS, spi_areas(), spi_areas(0x1_0000), SD_AREAS],
    ids=["aprom", "m2354", "spi", "64k", "sd"],
)
def test_no_two_areas_of_a_map_overlap(areas: tuple[FlashArea, ...]) -> None:
    ends = [(area.offset, area.end) for area in areas]
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))


def test_the_backup_begins_one_erase_block_behind_its_header() -> None:
    assert [area.offset for area in spi_areas(0x1_0000)] == [0, 0x8_0000, 0x9_0000]
