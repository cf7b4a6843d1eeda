"""NVS and signature blocks: round trips, and any bytes give a value or our error."""

from __future__ import annotations

import json
import struct
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from flota.images.esp_nvs import looks_like_nvs, parse_nvs, read_string
from flota.images.esp_nvs_format import ENTRIES_OFFSET, NvsFull
from flota.images.esp_nvs_writing import (
    ErasePage,
    Program,
    apply_operations,
    create_nvs,
    plan_string_write,
    write_string,
)
from flota.images.esp_secure_boot import BLOCK_SIZE, find_signature_blocks, parse_block, require_signed
from flota.images.inspection import inspect, inspection_as_dict
from flota.images.model import ImageError
from tests.images.esp_samples import sample_app

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=15)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=400)
SAMPLE = create_nvs(0x3000, {"VIAM_NS": {"OTA_VERSION": "v1", "ROBOT_ID": "r" * 90}, "n": {"k": ""}})
APP = sample_app()
UNSIGNED = APP.ljust(-(-len(APP) // 4096) * 4096, b"\xff")


@given(st.lists(st.tuples(NAMES, NAMES, VALUES), max_size=40))
@settings(max_examples=40, deadline=None)
def test_what_was_written_last_is_what_is_read(writes: list[tuple[str, str, str]]) -> None:
    data, expected = create_nvs(0x5000), {}
    for namespace, key, value in writes:
        try:
            data = write_string(data, namespace, key, value)
        except NvsFull:
            continue
        expected[namespace, key] = value
    assert {(n, k): read_string(data, n, k) for n, k in expected} == expected
    assert not any(page.damaged for page in parse_nvs(data).pages)
    assert looks_like_nvs(data) or not expected


CUT_WRITES = st.tuples(
    st.sampled_from(["k", "l", "m", "n"]),
    st.sampled_from([0, 1, 31, 32, 100, 400, 900]),
    st.none() | st.floats(0, 1),
    st.none() | st.integers(0, 2**64 - 1),
)
"""Key, length of the value, where the power goes (a part of the operations), which bits of the last one were made."""


@given(st.lists(CUT_WRITES, min_size=20, max_size=80), st.sampled_from([0x3000, 0x4000]))
@settings(max_examples=25, deadline=None)
def test_power_cuts_anywhere_never_lose_or_revive_a_value(
    writes: list[tuple[str, int, float | None, int | None]], size: int
) -> None:
    data, expected = create_nvs(size), dict.fromkeys("klmn", "")
    for key in expected:
        data = write_string(data, "n", key, "")
    for number, (key, length, cut, bits) in enumerate(writes):
        value = f"{number:03}"[:length].ljust(length, "x")
        operations = plan_string_write(data, "n", key, value)
        end = len(operations) if cut is None else int(cut * len(operations))
        after = apply_operations(data, operations[:end])
        if end < len(operations) and bits is not None and isinstance(torn := operations[end], Program):
            mask = bits.to_bytes(8, "little") * (len(torn.data) // 8 + 1)
            made = bytes(byte | unmade for byte, unmade in zip(torn.data, mask, strict=False))
            after = apply_operations(after, [Program(torn.offset, made)])
        now = read_string(after, "n", key)
        assert now == value if end == len(operations) else now in (value, expected[key])
        data, expected[key] = after, now
        assert {key: read_string(data, "n", key) for key in expected} == expected


@st.composite
def bent_partitions(draw: st.DrawFn) -> bytes:
    """A partition with bytes overwritten; often with the CRC of an entry or page header put right afterwards."""
    data = bytearray(SAMPLE)
    for _ in range(draw(st.integers(1, 5))):
        position = draw(st.integers(0, 0x200) | st.integers(0, len(data) - 1))
        piece = draw(st.binary(min_size=1, max_size=6))[: len(data) - position]
        data[position : position + len(piece)] = piece
    if draw(st.booleans()):
        data[28:32] = struct.pack("<I", zlib.crc32(data[4:28], 0xFFFF_FFFF))
        for entry in range(8):
            start = ENTRIES_OFFSET + entry * 32
            crc = zlib.crc32(data[start + 8 : start + 32], zlib.crc32(data[start : start + 4], 0xFFFF_FFFF))
            data[start + 4 : start + 8] = struct.pack("<I", crc)
    return bytes(data)


@given(st.binary(max_size=64) | bent_partitions() | st.binary(max_size=300).map(lambda head: head.ljust(0x3000, b"\0")))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_an_nvs_partition_or_an_image_error(data: bytes) -> None:
    looks_like_nvs(data)
    for read in (parse_nvs, lambda d: read_string(d, "n", "k"), lambda d: write_string(d, "n", "k", "v" * 60)):
        text, result = "", None
        try:
            result = read(data)
        except ImageError as error:
            text = str(error)
        assert text.isprintable()
        if isinstance(result, bytes):
            assert read_string(result, "n", "k") == "v" * 60


@given(bent_partitions())
@settings(max_examples=100, deadline=None)
def test_any_nvs_partition_can_be_inspected_and_shows_printable_text(data: bytes) -> None:
    found = inspect(data)
    json.dumps(inspection_as_dict(found))
    assert all(row.value.isprintable() and row.name.isprintable() for row in found.properties)
    assert "r" * 30 not in repr(found)


@given(bent_partitions())
@settings(max_examples=100, deadline=None)
def test_a_write_stays_inside_the_partition_whatever_it_finds_there(data: bytes) -> None:
    try:
        operations = plan_string_write(data, "n", "new", "value")
    except ImageError:
        return
    for operation in operations:
        size = 0x1000 if isinstance(operation, ErasePage) else len(operation.data)
        assert 0 <= operation.offset <= operation.offset + size <= len(data)
        assert operation.offset // 0x1000 == (operation.offset + size - 1) // 0x1000


@st.composite
def signature_blocks(draw: st.DrawFn) -> bytes:
    """Bytes that begin like a signature block, mostly with the right CRC."""
    start = bytes([0xE7, draw(st.sampled_from([2, 3, 3, 7])), draw(st.integers(0, 2)), 0])
    body = bytearray((start + draw(st.binary(max_size=900))).ljust(BLOCK_SIZE, draw(st.sampled_from([b"\0", b"\xff"]))))
    body[36 if body[2] == 0 else 52] = draw(st.integers(0, 4))
    if draw(st.booleans()):
        body[1196:1200] = struct.pack("<I", zlib.crc32(body[:1196]))
    return bytes(body[: draw(st.integers(0, BLOCK_SIZE))]) if draw(st.integers(0, 4)) == 0 else bytes(body)


@given(st.binary(max_size=64) | signature_blocks())
@settings(deadline=None)
def test_any_bytes_are_a_signature_block_or_an_image_error(data: bytes) -> None:
    for check in (parse_block, lambda d: require_signed(UNSIGNED + d, len(APP))):
        text = ""
        try:
            check(data)
        except ImageError as error:
            text = str(error)
        assert text.isprintable()


@given(st.lists(signature_blocks(), max_size=4), st.integers(0, 2 * len(UNSIGNED)))
@settings(deadline=None)
def test_blocks_that_nobody_signed_never_verify(blocks: list[bytes], image_size: int) -> None:
    for block in find_signature_blocks(UNSIGNED + b"".join(blocks), image_size):
        assert block.verified is False
        assert block.fault
        assert block.fault.isprintable()
