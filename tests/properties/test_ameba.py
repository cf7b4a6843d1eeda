"""AmebaD images: what is packed parses to itself, and any bytes give a value or our error."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flota.images.ameba import (
    IMAGE2_SIGNATURE,
    join_cores,
    pack_ota_file,
    parse_boot_image,
    parse_core,
    parse_image2,
    parse_ota_file,
    parse_ota_headers,
)
from flota.images.ameba.image2 import km4_offset_of
from flota.images.ameba.segment import BOOT_SIGNATURE
from flota.images.inspection import inspect
from flota.images.model import ImageError
from tests.images.ameba_samples import image2, km0_image, km4_image

words = st.binary(max_size=1200).map(lambda data: data[: len(data) // 4 * 4])


@given(words, st.binary(max_size=500), words, st.binary(max_size=500), st.none() | st.binary(max_size=300))
def test_joined_cores_come_apart_again(
    km0_xip: bytes, km0_ram: bytes, km4_xip: bytes, km4_ram: bytes, psram: bytes | None
) -> None:
    km0, km4 = km0_image(km0_xip, km0_ram), km4_image(km4_xip, km4_ram, psram=psram)
    joined = join_cores(km0, km4)
    image = parse_image2(joined)
    sizes = [segment.header.size for segment in image.km0.segments]
    assert image.km4.offset == km4_offset_of(sizes[0], sizes[1]) == len(km0)
    assert joined == km0 + km4
    assert not inspect(joined).errors


@given(words, st.integers(0, 0xFFFF_FFFF))
def test_a_packed_file_parses_to_its_image(xip: bytes, version: int) -> None:
    image = image2(xip=xip)
    parsed = parse_ota_file(pack_ota_file(image, version=version))
    assert (parsed.version, parsed.image) == (version, image)


anything = st.binary(max_size=300) | st.builds(
    lambda start, rest: start + rest,
    st.sampled_from(
        [IMAGE2_SIGNATURE, BOOT_SIGNATURE, pack_ota_file(image2())[:32], image2()[:0x60], image2()[:0x1060]]
    ),
    st.binary(max_size=300),
)


@given(anything)
def test_any_bytes_give_a_value_or_our_error(data: bytes) -> None:
    for parse in (parse_image2, parse_ota_file, parse_ota_headers, parse_boot_image):
        try:
            parse(data)
        except ImageError:
            continue
    for core in ("km0", "km4"):
        try:
            parse_core(data, core)
        except ImageError:
            continue
    assert inspect(data).file_size == len(data)


@given(st.integers(0, 8191), st.integers(1, 255))
def test_no_flipped_byte_of_a_packed_file_goes_unnoticed(position: int, flip: int) -> None:
    packed = bytearray(pack_ota_file(image2()))
    packed[32 + position] ^= flip
    try:
        parse_ota_file(bytes(packed))
    except ImageError:
        return
    raise AssertionError("a changed image was taken")
