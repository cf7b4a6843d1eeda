"""Intel HEX and plain memory: strict in, exact out."""

from __future__ import annotations

import io
import tracemalloc

import pytest
from intelhex import IntelHex  # type: ignore[import-untyped]

from flota.images.intel_hex import HexError, looks_like_hex, pack_hex, parse_hex
from flota.images.memory_map import (
    MemoryBlock,
    MemoryMap,
    OverlappingMemory,
    TooFarApart,
    flatten,
    memory_map,
)
from flota.images.model import ImageError, TruncatedImage

END = ":00000001FF\n"
GOLDEN = """\
:020000040800F2
:10FFF800000102030405060708090A0B0C0D0E0F81
:0400000508000101ED
:00000001FF
"""


def record(kind: int, address: int, data: bytes) -> str:
    body = bytes([len(data), address >> 8, address & 0xFF, kind]) + data
    return f":{(body + bytes([-sum(body) & 0xFF])).hex().upper()}\n"


def hex_of(*records: str) -> bytes:
    return ("".join(records) + END).encode()


def test_known_records_are_read_and_written_byte_for_byte() -> None:
    held = memory_map([MemoryBlock(0x0800_0000, b"\x01\x02\x03\x04")], entry=0x0800_0101)
    text = b":020000040800F2\n:0400000001020304F2\n:0400000508000101ED\n:00000001FF\n"
    assert pack_hex(held) == text
    assert parse_hex(text) == held


def test_data_across_a_64_kib_border_is_split_when_written_and_joined_when_read() -> None:
    held = memory_map([MemoryBlock(0x0800_FFF8, bytes(range(16)))], entry=0x0800_0101)
    text = pack_hex(held)
    assert [line[7:9] for line in text.split()] == [b"04", b"00", b"04", b"00", b"05", b"01"]
    assert parse_hex(text) == held
    assert parse_hex(GOLDEN.encode()) == held  # a single record may cross it where addresses are linear


def test_the_reference_library_reads_what_is_written_and_its_files_are_read() -> None:
    held = memory_map([MemoryBlock(0x0800_FFF0, bytes(range(200))), MemoryBlock(0x2000_0001, b"x")], entry=0x0800_0131)
    theirs = IntelHex(io.StringIO(pack_hex(held).decode()))
    assert theirs.segments() == [(block.address, block.end) for block in held.blocks]
    assert theirs.tobinstr(held.start, held.blocks[0].end - 1) == held.blocks[0].data
    assert theirs.start_addr == {"EIP": held.entry}
    written = io.StringIO()
    theirs.write_hex_file(written)
    assert parse_hex(written.getvalue().encode()) == held


def test_blank_lines_carriage_returns_and_lower_case_are_read() -> None:
    text = b"\r\n" + hex_of(record(0, 0x10, b"\xab\xcd")).lower().replace(b"\n", b" \r\n") + b"\n\n"
    assert parse_hex(text) == MemoryMap((MemoryBlock(0x10, b"\xab\xcd"),))


def test_segment_addresses_and_starts_are_understood() -> None:
    held = parse_hex(hex_of(record(2, 0, b"\x12\x34"), record(0, 0xFFFE, b"ab"), record(3, 0, b"\x12\x34\x00\x05")))
    assert (held.start, held.entry) == (0x12340 + 0xFFFE, 0x12345)


def test_an_empty_record_changes_nothing_and_records_may_come_in_any_order() -> None:
    held = parse_hex(hex_of(record(0, 4, b"cd"), record(0, 99, b""), record(0, 2, b"ab")))
    assert held == MemoryMap((MemoryBlock(2, b"abcd"),))


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (b"", TruncatedImage, "no end record"),
        (record(0, 0, b"x").encode(), TruncatedImage, "no end record"),
        (hex_of(record(0, 0, b"x")) + record(0, 1, b"y").encode(), HexError, "line 3: a record after the end"),
        (END.encode(), ImageError, "no data"),
        (b"0400000001020304F2\n", HexError, "line 1 is no record"),
        (b":0400000001020304F\n", HexError, "line 1 is no record"),
        (b":00000001\n", HexError, "line 1 is no record"),
        (b":0400000001020304G2\n", HexError, "line 1 is no record"),
        (hex_of(":0400000001020304F3\n"), HexError, "line 1: the checksum is wrong, .* expected F2, found F3"),
        (hex_of(record(0, 0, b"x"), ":05000000010203F5\n"), HexError, "line 2: the record's length is wrong"),
        (hex_of(record(6, 0, b"")), HexError, "line 1: unknown type"),
        (hex_of(record(4, 0, b"\0")), HexError, "bad length of a LINEAR"),
        (hex_of(record(1, 0, b"\0")), HexError, "bad length of a END"),
        (hex_of(record(5, 0, bytes(4)), record(5, 0, bytes(4))), HexError, "line 2: a second start"),
        (hex_of(record(2, 0, b"\0\0"), record(0, 0xFFFF, b"ab")), HexError, "leaves its segment"),
        (hex_of(record(4, 0, b"\xff\xff"), record(0, 0xFFFF, b"ab")), HexError, "leaves the 32 bits"),
        (hex_of(record(0, 0, b"abc"), record(0, 2, b"c")), OverlappingMemory, "overlap"),
        (hex_of(record(0, 5, b"abc"), record(0, 4, b"ab")), OverlappingMemory, "overlap"),
        (b"\x1b[31m:", HexError, "line 1 is no record"),
    ],
)  # fmt: skip
def test_everything_else_is_an_error_that_says_where(text: bytes, kind: type[ImageError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        parse_hex(text)
    assert str(caught.value).isprintable()


def test_a_file_cut_at_any_byte_is_an_error() -> None:
    whole = GOLDEN.encode().rstrip()
    for length in range(len(whole)):
        with pytest.raises(ImageError):
            parse_hex(whole[:length])


def test_addresses_far_apart_cost_no_memory_and_are_refused_as_a_plain_file() -> None:
    text = hex_of(record(0, 0, b"x"), record(4, 0, b"\xff\xff"), record(0, 0xFFFF, b"y"))
    tracemalloc.start()
    held = parse_hex(text)
    with pytest.raises(TooFarApart) as caught:
        flatten(held)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    assert "4294967296 bytes for 2 of data: 0x0 to 0x1, 0xffffffff to 0x100000000" in str(caught.value)
    assert parse_hex(pack_hex(held)) == held


def test_jumping_to_and_fro_has_a_limit() -> None:
    text = hex_of(*(record(0, address * 2 & 0xFFFF, b"x") for address in range(70_000)))
    with pytest.raises(HexError, match="to and fro"):
        parse_hex(text)


def test_a_plain_file_begins_where_asked_and_gaps_are_filled() -> None:
    held = memory_map([MemoryBlock(0x14, b"cd"), MemoryBlock(0x10, b"ab")])
    assert flatten(held) == b"ab\xff\xffcd"
    assert flatten(held, at=0xE, gap_fill=0) == b"\0\0ab\0\0cd"
    with pytest.raises(ImageError, match="before the address"):
        flatten(held, at=0x11)
    with pytest.raises(ImageError, match="fill byte"):
        flatten(held, gap_fill=256)
    assert len(flatten(held, size_max=6)) == 6
    with pytest.raises(TooFarApart):
        flatten(held, size_max=5)


def test_what_has_no_hex_address_is_refused() -> None:
    for held in (MemoryMap((MemoryBlock(0xFFFF_FFFF, b"ab"),)), MemoryMap((MemoryBlock(0, b"a"),), entry=1 << 32)):
        with pytest.raises(HexError, match="32 bits"):
            pack_hex(held)
    with pytest.raises(HexError):
        pack_hex(MemoryMap((MemoryBlock(0, b"a"),)), data_per_record=256)
    with pytest.raises(ImageError):
        MemoryBlock(0, b"")


def test_a_file_is_told_by_its_first_record() -> None:
    assert looks_like_hex(GOLDEN.encode())
    assert not looks_like_hex(b":hello")
    assert not looks_like_hex(GOLDEN.replace("F2", "F3").encode())
    assert not looks_like_hex(b"")
