"""What holds for every MCUboot image, HEX and ELF file, and for any bytes."""

from __future__ import annotations

import json
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from flota.errors import FlotaError
from flota.images.elf_file import parse_elf
from flota.images.inspection import inspect, inspection_as_dict
from flota.images.intel_hex import looks_like_hex, pack_hex, parse_hex
from flota.images.mcuboot import (
    Dependency,
    ImageFlag,
    ImageVersion,
    McubootHeader,
    McubootImage,
    SlotShape,
    Tlv,
    check_hash,
    fill_slot,
    pack_header,
    pack_image,
    parse_header,
    parse_image,
    read_trailer,
    sign_image,
    signed_facts,
    walk_image,
)
from flota.images.mcuboot.header import IMAGE_MAGIC_BYTES
from flota.images.memory_map import MemoryBlock, MemoryMap, flatten, memory_map
from flota.images.model import ImageError
from flota.trust.mcuboot_signatures import verify_image
from tests.images.mcuboot_samples import image_key, sample_bytes

U8, U16, U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF)

versions = st.builds(ImageVersion, U8, U8, U16, U32)
headers = st.builds(
    McubootHeader,
    version=versions,
    header_size=st.integers(32, 0xFFFF),
    image_size=U32,
    protected_size=U16,
    load_address=U32,
    flags=U32.map(ImageFlag),
    reserved=U32,
)
tlvs = st.lists(
    st.builds(Tlv, st.sampled_from([0x01, 0x10, 0x22, 0x40, 0x50, 0xA0]) | U16, st.binary(max_size=40)), max_size=6
).map(tuple)
images = st.builds(
    McubootImage,
    version=versions,
    payload=st.binary(max_size=200),
    header_padding=st.binary(max_size=40),
    load_address=U32,
    flags=U32.map(ImageFlag),
    reserved=U32,
    protected=st.none() | tlvs,
    unprotected=tlvs,
    trailer=st.binary(max_size=40),
)


@st.composite
def memory_maps(draw: st.DrawFn) -> MemoryMap:
    """Up to a handful of blocks in 32 bits, never touching."""
    blocks: list[MemoryBlock] = []
    position = draw(st.integers(0, 0xFFFE_0000))
    for _ in range(draw(st.integers(1, 5))):
        data = draw(st.binary(min_size=1, max_size=80))
        if position + len(data) > 1 << 32:
            break
        blocks.append(MemoryBlock(position, data))
        position += len(data) + draw(st.integers(1, 0x1_0010))
    return MemoryMap(tuple(blocks), draw(st.none() | U32))


@given(headers)
def test_a_header_packed_is_the_header_parsed(header: McubootHeader) -> None:
    assert parse_header(pack_header(header)) == header


@given(images)
def test_an_image_packed_is_the_image_parsed(image: McubootImage) -> None:
    assert parse_image(pack_image(image)) == image


@given(images)
@settings(deadline=None)
def test_whatever_is_signed_verifies_and_its_hash_is_right(image: McubootImage) -> None:
    packed = pack_image(sign_image(image, image_key().signer))
    assert check_hash(packed, walk_image(packed)) == sign_image(image, None).unprotected[0].value
    try:
        facts = signed_facts(image)
    except ImageError:
        return
    assert verify_image(packed, [image_key().public]).facts == facts


@given(st.builds(Dependency, U8, versions))
def test_a_dependency_packed_is_the_dependency_unpacked(dependency: Dependency) -> None:
    assert Dependency.unpack(dependency.pack()) == dependency
    assert Dependency.parse(f"{dependency.image_id},{dependency.minimum}") == dependency


@given(versions)
def test_a_version_shown_is_the_version_read(version: ImageVersion) -> None:
    assert ImageVersion.parse(str(version)) == version
    assert ImageVersion.unpack(version.pack()) == version


@given(st.binary(max_size=200), st.sampled_from([1, 2, 4, 8, 16, 32]), st.booleans(), st.booleans(), st.booleans())
def test_a_filled_slot_has_its_size_begins_with_the_image_and_says_its_state(
    image: bytes, align: int, overwrite_only: bool, confirmed: bool, zeros: bool
) -> None:
    slot = SlotShape(0x8000, align=align, overwrite_only=overwrite_only, erased=0 if zeros else 0xFF)
    full = fill_slot(image, slot, confirmed=confirmed)
    trailer = read_trailer(full)
    assert (len(full), full[: len(image)]) == (slot.size, image)
    assert trailer is not None
    assert trailer.image_ok is (confirmed and not overwrite_only)


@given(memory_maps(), st.integers(1, 255))
def test_memory_written_as_hex_is_the_memory_read(held: MemoryMap, data_per_record: int) -> None:
    assert parse_hex(pack_hex(held, data_per_record=data_per_record)) == held
    assert looks_like_hex(pack_hex(held))


@given(memory_maps(), st.randoms(use_true_random=False))
def test_pieces_in_any_order_make_the_same_map(held: MemoryMap, rng: object) -> None:
    pieces = [
        MemoryBlock(block.address + index, block.data[index : index + 1])
        for block in held.blocks
        for index in range(len(block.data))
    ]
    rng.shuffle(pieces)  # type: ignore[attr-defined]
    assert memory_map(pieces, entry=held.entry) == held


@given(memory_maps(), U8)
def test_a_plain_file_has_every_byte_at_its_place(held: MemoryMap, fill: int) -> None:
    flat = flatten(held, gap_fill=fill)
    assert len(flat) == held.end - held.start
    for block in held.blocks:
        start = block.address - held.start
        assert flat[start : start + len(block.data)] == block.data


@st.composite
def any_files(draw: st.DrawFn) -> bytes:
    """Bytes that begin like a format, and real files with pieces overwritten or cut off."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(st.sampled_from([IMAGE_MAGIC_BYTES, b"\x7fELF\x01\x01", b"\x7fELF\x02\x02", b":"])) + draw(
            st.binary(max_size=300)
        )
    if kind == 1:
        return draw(st.text("0123456789ABCDEFabcdef:\r\n ", max_size=300)).encode()
    if kind == 2:
        header = struct.pack("<HHIIIIIHHHHHH", 2, 40, 1, 0, 52, draw(st.integers(0, 300)), 0, 52, 32, 2, 40, 3, 0)
        return b"\x7fELF\x01\x01\x01" + bytes(9) + header + draw(st.binary(max_size=400))
    data = bytearray(sample_bytes() if kind == 3 else pack_hex(draw(memory_maps())))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(data) - 1))
        piece = draw(st.binary(min_size=1, max_size=8))
        data[position : position + len(piece)] = piece
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


@given(any_files())
@settings(deadline=None, max_examples=300)
def test_any_bytes_give_a_value_or_an_image_error(data: bytes) -> None:
    for parse in (parse_image, parse_hex, parse_elf):
        text = ""
        try:
            parse(data)  # type: ignore[operator]
        except ImageError as error:
            text = str(error)
        assert text.isprintable()
    text = ""
    try:
        verify_image(data, [image_key().public])
    except FlotaError as error:
        text = str(error)
    assert text.isprintable()


@given(any_files())
@settings(deadline=None)
def test_any_file_can_be_inspected_and_what_is_said_lies_inside_it(data: bytes) -> None:
    found = inspect(data)
    assert inspect(memoryview(data)) == found
    json.dumps(inspection_as_dict(found))
    assert all(row.value.isprintable() for row in found.properties)
    for region in found.regions:
        assert 0 <= region.start <= region.end <= len(data)
