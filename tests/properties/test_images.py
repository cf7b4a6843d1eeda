"""What holds for every image and for any bytes."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from flota.boards.catalogue import BOARDS
from flota.boards.fit import fit_check
from flota.boards.model import TypeProfile
from flota.images.esp_app import EspAppImage, EspImageHeader, EspSegment, pack_app, parse_app
from flota.images.esp_chips import CHIPS, chip_named
from flota.images.esp_desc import (
    EspAppDesc,
    EspBootloaderDesc,
    pack_app_desc,
    pack_bootloader_desc,
    parse_app_desc,
    parse_bootloader_desc,
)
from flota.images.esp_elf import parse_elf
from flota.images.esp_layout import AppIdentity, MemoryPiece, build_app
from flota.images.esp_otadata import OtaEntry, pack_entry, parse_entry
from flota.images.esp_partitions import (
    Partition,
    PartitionTable,
    check_table,
    csv_of,
    pack_table,
    parse_csv,
    parse_table,
)
from flota.images.esp_verify import verify_app
from flota.images.inspection import inspect, inspection_as_dict
from flota.images.markers import find_markers, pack_marker
from flota.images.model import ImageError
from flota.images.text import cleaned_text
from tests.images.esp_samples import merged_image, sample_app

U8, U16, U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF)
TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=15)

headers = st.builds(
    EspImageHeader,
    chip_id=U16,
    entry=U32,
    spi_mode=U8,
    flash_size_code=st.integers(0, 15),
    speed_code=st.integers(0, 15),
    wp_pin=U8,
    drive=st.binary(min_size=3, max_size=3),
    min_chip_revision_legacy=U8,
    min_chip_revision=U16,
    max_chip_revision=U16,
    reserved=st.binary(min_size=4, max_size=4),
    hash_appended=st.booleans(),
)
segments = st.builds(EspSegment, address=U32, data=st.binary(max_size=300).map(lambda data: data[: len(data) // 4 * 4]))
images = st.builds(
    EspAppImage,
    header=headers,
    segments=st.lists(segments, min_size=1, max_size=16).map(tuple),
    trailer=st.binary(max_size=40),
)
descriptors = st.builds(
    EspAppDesc,
    version=TEXT,
    project=TEXT,
    secure_version=U32,
    time=TEXT,
    date=TEXT,
    idf_version=TEXT,
    elf_sha256=st.binary(min_size=32, max_size=32),
    min_efuse_block_revision=U16,
    max_efuse_block_revision=U16,
    page_size_log2=U8,
    spi_flash_mode_check=U8,
)
entries = st.builds(OtaEntry, seq=U32, state=U32, crc=U32, label=st.binary(min_size=20, max_size=20))


@st.composite
def tables(draw: st.DrawFn) -> PartitionTable:
    """Tables that the checks find nothing wrong with."""
    rows: list[Partition] = []
    position = 0x9000
    for index in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from([0, 1, 0x40]))
        alignment = 0x10000 if kind == 0 else 0x1000
        offset = -(-position // alignment) * alignment + alignment * draw(st.integers(0, 2))
        size = 0x1000 * draw(st.integers(3, 64)) + (0 if kind == 0 else draw(st.integers(0, 9)))
        subtype = 0x10 + index if kind == 0 else draw(st.integers(4, 0xFE).filter(lambda code: code != 0x90))
        rows.append(Partition(f"p{index}", kind, subtype, offset, size, draw(st.integers(0, 3))))
        position = offset + size
    return PartitionTable(tuple(rows), draw(st.booleans()))


@given(images)
def test_an_image_packed_is_the_image_parsed(image: EspAppImage) -> None:
    assert parse_app(pack_app(image)) == image


@given(descriptors)
def test_an_app_descriptor_packed_is_the_descriptor_parsed(desc: EspAppDesc) -> None:
    assert parse_app_desc(pack_app_desc(desc)) == desc


@given(U8, U32, TEXT, TEXT)
def test_a_boot_loader_descriptor_packed_is_the_descriptor_parsed(
    secure_version: int, version: int, idf_version: str, date_time: str
) -> None:
    desc = EspBootloaderDesc(secure_version, version, idf_version, date_time)
    assert parse_bootloader_desc(pack_bootloader_desc(desc)) == desc


@given(entries)
def test_an_otadata_entry_packed_is_the_entry_parsed(entry: OtaEntry) -> None:
    assert parse_entry(pack_entry(entry)) == entry


@given(tables())
def test_a_sound_partition_table_survives_binary_and_csv(table: PartitionTable) -> None:
    assert not [finding for finding in check_table(table) if finding.level == "error"]
    assert parse_table(pack_table(table)) == table
    assert parse_csv(csv_of(table)).partitions == table.partitions


@given(
    st.sampled_from(sorted(chip.name for chip in CHIPS.values())),
    st.integers(0, 300_000),
    st.integers(1, 300_000),
    st.integers(0, 200_000),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_sizes_what_is_packed_is_taken_by_its_chip(name: str, data: int, code: int, ram: int) -> None:
    chip = chip_named(name)
    apart = 0x20_0000 if chip.code_map.start == chip.data_map.start else 0
    pieces = [
        MemoryPiece(chip.data_map.start + 0x120, b"d" * data),
        MemoryPiece(chip.code_map.start + apart + 0x20, b"c" * code),
        MemoryPiece(0x2F00_0000, b"r" * ram),
    ]
    image = build_app(pieces, chip=chip, entry=chip.code_map.start, identity=AppIdentity("1", "p"))
    layout = verify_app(pack_app(image), chip=chip)
    held = {span.address: span.size for span in layout.segments}
    assert sum(size for address, size in held.items() if address >= 0x1000_0000) >= data + code + ram


MARKER_KEYS = st.from_regex(r"[a-z-]{1,9}", fullmatch=True)
MARKER_VALUES = st.from_regex(r"[A-Za-z0-9._-]{1,9}", fullmatch=True)


@given(st.dictionaries(MARKER_KEYS, MARKER_VALUES, min_size=1, max_size=5))
def test_markers_packed_are_the_markers_found(values: dict[str, str]) -> None:
    assert find_markers(b"x" + pack_marker(values) + b"y") == values


BENT = st.sampled_from([sample_app(), merged_image()[:0x21000]])
BEGINNINGS = st.sampled_from(
    [
        b"",
        b"\xe9",
        b"\xe9\x01\x02\x20",
        b"\xaa\x50",
        b"\x7fELF\x01\x01\x01",
        b"UF2\n\x57\x51\x5d\x9e",
        b":10",
        b"\x10\xde\xcd\xfc",
    ]
)


@st.composite
def any_files(draw: st.DrawFn) -> bytes:
    """Any bytes, bytes that begin like a format, and real images with pieces overwritten or cut off."""
    if draw(st.booleans()):
        return draw(BEGINNINGS) + draw(st.binary(max_size=400))
    data = bytearray(draw(BENT))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, 400) | st.integers(0, len(data) - 1))
        piece = draw(st.binary(min_size=1, max_size=8))
        data[position : position + len(piece)] = piece
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


@given(any_files())
@settings(deadline=None)
def test_any_bytes_give_a_value_or_an_image_error(data: bytes) -> None:
    for parse in (parse_app, parse_table, parse_app_desc, parse_entry, parse_elf, parse_csv):
        text = ""
        try:
            parse(data)  # type: ignore[operator]
        except ImageError as error:
            text = str(error)
        assert text.isprintable()


@given(any_files())
@settings(deadline=None)
def test_any_file_can_be_inspected_and_checked_and_all_its_text_is_printable(data: bytes) -> None:
    found = inspect(data)
    assert inspect(memoryview(data)) == found
    json.dumps(inspection_as_dict(found))
    texts = [row.value for row in found.properties] + [f.text for f in found.findings] + [found.version or ""]
    assert all(text.isprintable() for text in texts)
    for region in found.regions:
        assert 0 <= region.start <= region.end <= len(data)
    for board in (BOARDS["esp32-c3"], BOARDS["generic-linux"]):
        for reason in fit_check(TypeProfile(board), found, file_size=len(data), version="1"):
            assert reason.text.isprintable()


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_cleaned_text_is_printable_and_capped(raw: bytes | str) -> None:
    text = cleaned_text(raw)
    assert text.isprintable()
    assert len(text) <= 64
