"""What the vendor's Cloner, executed, made of descriptors: our reader and our count of pages agree with it."""

from __future__ import annotations

from typing import Any

import pytest

from flota.images.nuvoton import (
    Descriptor,
    ImageFlag,
    cloned_pages,
    has_magic,
    parse_descriptor,
)
from flota.images.nuvoton.flash_map import DESCRIPTOR_ADDR, DESCRIPTOR_LIMIT, PAGE_SIZE
from tests.golden.vendor_data import vendor_json

pytestmark = pytest.mark.golden


def runs() -> list[dict[str, Any]]:
    return list(vendor_json("boot-vectors/nuvoton.json")["cloner"])


def test_every_descriptor_that_the_cloner_was_given_is_read_and_written_back() -> None:
    given = [bytes.fromhex(run["in"]["desc"]) for run in runs()]
    sound = [data for data in given if has_magic(data)]
    assert 0 < len(sound) < len(given)
    assert all(parse_descriptor(data).pack() == data for data in sound)


def test_the_cloner_erases_as_many_pages_as_we_count() -> None:
    """The range over which it asks for a checksum is what it copied."""
    counted = 0
    for run in runs():
        ranges = [operation for operation in run["ops"] if operation[0] == "CRC"]
        if not ranges:
            continue
        found = parse_descriptor(bytes.fromhex(run["in"]["desc"]))
        assert found.flag == ImageFlag.NEW
        pages = cloned_pages(found.start, found.end)
        assert ranges == [["CRC", 0, pages * PAGE_SIZE]], run["id"]
        counted += 1
    assert counted > 40


def test_the_cloner_marks_what_it_copied_as_on_its_self_test_and_keeps_the_rest() -> None:
    marked = 0
    for run in runs():
        rewritten = ["P", DESCRIPTOR_ADDR, PAGE_SIZE] in run["ops"]
        if not rewritten:
            continue
        before = parse_descriptor(bytes.fromhex(run["in"]["desc"]))
        after = parse_descriptor(bytes.fromhex(run["after"]["desc32"]))
        fields = {name: getattr(before, name) for name in Descriptor.__slots__ if name != "flag"}
        assert after == Descriptor(flag=ImageFlag.PENDING_COMMIT, **fields), run["id"]
        marked += 1
    assert marked > 40


def test_the_cloner_takes_images_that_reach_beyond_the_application() -> None:
    limit = next(run for run in runs() if run["id"] == "copy_size_70000")
    above = next(run for run in runs() if run["id"] == "copy_size_70001")
    assert parse_descriptor(bytes.fromhex(limit["in"]["desc"])).end == DESCRIPTOR_LIMIT - 1
    assert any(operation[0] == "CRC" for operation in limit["ops"])
    assert not any(operation[0] == "CRC" for operation in above["ops"])
