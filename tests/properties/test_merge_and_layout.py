"""What holds for every merge and every layout."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from hypothesis import given, settings
from hypothesis import strategies as st

from flota.images.esp_chips import CHIP_NAMES, chip_named
from flota.images.esp_merge import FlashSettings, merge
from flota.images.esp_merged import find_merged
from flota.images.esp_partitions import Partition, PartitionTable, pack_table
from flota.images.flash_layout import FlashLayout, FlashRegion, layout_as_dict, layout_of_file, layout_of_table
from flota.images.flash_layout_svg import layout_svg
from flota.images.model import ImageError
from tests.images.esp_samples import bootloader_of, merged_image, sample_app
from tests.images.merge_samples import GUIDE_TABLE

BOOTLOADER, APP, MERGED = bootloader_of("esp32-c3"), sample_app(), merged_image()
C3 = chip_named("esp32-c3")
U32 = st.integers(0, 0xFFFF_FFFF)

regions = st.builds(
    FlashRegion,
    name=st.text(max_size=20),
    kind=st.sampled_from(["app", "data", "nvs", "free", "odd"]),
    start=st.integers(0, 4000),
    size=st.integers(1, 2000),
    used=st.none() | st.integers(0, 2000),
)
layouts = st.builds(
    lambda rows, size: FlashLayout(tuple(sorted(rows, key=lambda row: (row.start, row.end))), size),
    st.lists(regions, max_size=12),
    st.none() | st.integers(1, 8000),
)
partitions = st.builds(
    Partition,
    label=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=15),
    type=st.integers(0, 255),
    subtype=st.integers(0, 255),
    offset=U32,
    size=U32,
)
tables = st.lists(partitions, min_size=1, max_size=6).map(lambda rows: PartitionTable(tuple(rows)))


@given(layouts)
def test_regions_and_free_space_cover_everything_and_only_overlaps_count_twice(layout: FlashLayout) -> None:
    claimed: dict[int, int] = {}
    for row in layout.regions:
        for place in range(row.start, row.end):
            claimed[place] = claimed.get(place, 0) + 1
    free = {place for gap in layout.free for place in range(gap.start, gap.end)}
    end = layout.claimed_end if layout.size is None else max(layout.size, layout.claimed_end)
    assert free == set(range(end)) - set(claimed)
    twice = {place for overlap in layout.overlaps for place in range(overlap.start, overlap.end)}
    assert twice == {place for place, count in claimed.items() if count > 1}


@given(layouts, st.text(max_size=100))
def test_every_layout_is_drawn_as_well_formed_xml(layout: FlashLayout, title: str) -> None:
    ET.fromstring(layout_svg(layout, title=title))


@given(tables, st.none() | st.integers(1, 1 << 28))
def test_every_table_has_a_layout(table: PartitionTable, flash_size: int | None) -> None:
    layout = layout_of_table(table, chip=C3, flash_size=flash_size)
    layout_as_dict(layout)
    ET.fromstring(layout_svg(layout, title="any"))


@given(st.binary(max_size=4096) | st.binary(max_size=64).map(lambda tail: GUIDE_TABLE[: 32 * len(tail)] + tail))
def test_any_bytes_have_a_layout(data: bytes) -> None:
    layout_as_dict(layout_of_file(data))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0x21000), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_merged_image_has_a_layout(changes: list[tuple[int, int]]) -> None:
    data = bytearray(MERGED)
    for place, value in changes:
        data[place % len(data)] = value
    layout_as_dict(layout_of_file(bytes(data)))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["bootloader", "table", "app"]),
    st.lists(st.tuples(st.integers(0, 0x2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 200),
)
def test_damaged_pieces_give_our_errors_or_a_merged_image(what: str, changes: list[tuple[int, int]], cut: int) -> None:
    pieces = {"bootloader": BOOTLOADER, "table": GUIDE_TABLE, "app": APP}
    damaged = bytearray(pieces[what])
    for place, value in changes:
        damaged[place % len(damaged)] = value
    pieces[what] = bytes(damaged[: len(damaged) - cut])
    try:
        merged = merge(C3, pieces["bootloader"], pieces["table"], pieces["app"])
    except ImageError:
        return
    assert merged.endswith(pieces["app"])


@settings(max_examples=60, deadline=None)
@given(tables)
def test_any_table_gives_our_errors_or_a_merged_image(table: PartitionTable) -> None:
    try:
        merged = merge(C3, BOOTLOADER, pack_table(table), APP)
    except ImageError:
        return
    assert len(merged) <= 128 << 20


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CHIP_NAMES),
    st.sampled_from([None, "qio", "qout", "dio", "dout"]),
    st.sampled_from([None, "8MB", "16MB", "128MB"]),
    st.sampled_from(["blank", "boot_app0"]),
    st.sampled_from([None, 1 << 20, 8 << 20]),
)
def test_what_is_merged_is_found_again_with_its_settings(
    chip: str, mode: str | None, size: str | None, otadata: str, pad_to: int | None
) -> None:
    esp, boot, app = chip_named(chip), bootloader_of(chip), sample_app(chip)
    flash = FlashSettings(mode, size)
    merged = merge(esp, boot, GUIDE_TABLE, app, flash=flash, otadata=otadata, pad_to=pad_to)  # type: ignore[arg-type]
    found = find_merged(merged)
    assert found is not None
    assert found.bootloader_layout is not None
    assert (found.chip, len(found.apps)) == (esp, 1)
    if size is not None:
        assert layout_of_file(merged).size == int(size.removesuffix("MB")) << 20
    changed = [index for index, (a, b) in enumerate(zip(boot, merged[esp.bootloader_offset :], strict=False)) if a != b]
    assert all(index in (2, 3) or index >= len(boot) - 32 for index in changed)
