from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from flota.images.esp_chips import chip_named
from flota.images.esp_partitions import PartitionTable, parse_csv
from flota.images.flash_layout import (
    FlashLayout,
    FlashRegion,
    Overlap,
    layout_as_dict,
    layout_of_file,
    layout_of_table,
    size_text,
)
from flota.images.flash_layout_svg import layout_svg
from tests.images.esp_samples import merged_image, sample_app
from tests.images.merge_samples import GUIDE_CSV, GUIDE_TABLE

MIB = 1 << 20
OVERLAPPING = "a,data,nvs,0x9000,0x6000\nb,data,fat,0xd000,0x3000\nc,app,ota_0,0x10000,1M\n"


def guide() -> FlashLayout:
    return layout_of_table(parse_csv(GUIDE_CSV), chip=chip_named("esp32"), flash_size=8 * MIB)


def overlapping() -> FlashLayout:
    return layout_of_table(parse_csv(OVERLAPPING, faulty_layout=True), flash_size=MIB)


def test_the_guide_s_table_lies_where_its_users_know_it() -> None:
    places = {region.name: (region.start, region.end) for region in guide().regions}
    assert places["ota_0"] == (0x20000, 0x397000)
    assert places["ota_1"] == (0x3A0000, 0x717000)
    assert guide().claimed_end == 0x717000
    assert [(gap.start, gap.end) for gap in guide().free] == [
        (0x12000, 0x20000),
        (0x397000, 0x3A0000),
        (0x717000, 0x800000),
    ]
    assert guide().overlaps == ()
    assert guide().findings == ()


def test_the_boot_loader_s_room_begins_where_the_chip_has_it() -> None:
    rows = [(region.name, region.start, region.end) for region in guide().regions[:3]]
    assert rows == [("reserved", 0, 0x1000), ("boot loader", 0x1000, 0x8000), ("partition table", 0x8000, 0x9000)]


def test_overlaps_are_named_with_the_bytes_that_both_claim() -> None:
    found = overlapping()
    assert found.overlaps == (Overlap("a", "b", 0xD000, 0xF000),)
    assert [region.name for region in found.regions if found.clashes(region)] == ["a", "b", "c"]  # c: beyond the flash
    assert {finding.code for finding in found.findings if finding.level == "error"} == {"overlap", "flash-size"}


def test_a_region_inside_another_overlaps_it_and_leaves_no_false_gap() -> None:
    found = FlashLayout((FlashRegion("big", "app", 0, 100), FlashRegion("small", "nvs", 10, 5)), 200)
    assert found.overlaps == (Overlap("big", "small", 10, 15),)
    assert [(gap.start, gap.end) for gap in found.free] == [(100, 200)]


def test_a_merged_image_says_what_its_partitions_hold_and_how_large_the_flash_is() -> None:
    found = layout_of_file(merged_image())
    used = {region.name: region.used for region in found.regions if region.used}
    assert used["ota_0"] == len(sample_app())
    assert set(used) == {"boot loader", "partition table", "ota_0"}
    assert found.size == 4 * MIB


def test_a_binary_table_is_laid_out_as_the_flash_that_it_makes() -> None:
    assert layout_of_file(GUIDE_TABLE, flash_size=8 * MIB).claimed_end == 0x717000


def test_a_broken_table_is_a_finding_and_no_exception() -> None:
    found = layout_of_file(GUIDE_TABLE[:100])
    assert (found.regions, [finding.level for finding in found.findings]) == ((), ["error"])


def test_any_other_file_shows_its_own_regions() -> None:
    found = layout_of_file(sample_app())
    assert found.size == len(sample_app())
    assert found.regions[0].name == "header"
    assert found.overlaps == ()


def test_system_rows_of_a_table_are_not_counted_twice() -> None:
    rows = "boot,bootloader,primary,N/A,N/A\ntable,partition_table,primary,N/A,N/A\n" + GUIDE_CSV
    found = layout_of_table(parse_csv(rows, bootloader_offset=0x1000), chip=chip_named("esp32"))
    assert found.overlaps == ()


def test_the_data_form_has_numbers_and_free_space() -> None:
    plain = layout_as_dict(guide())
    assert (plain["size"], plain["end"]) == (8 * MIB, 0x717000)
    regions = plain["regions"]
    assert isinstance(regions, list)
    assert [region["name"] for region in regions].count("free") == 3


@pytest.mark.parametrize(("size", "text"), [(8 * MIB, "8 MiB"), (0x6000, "24 KiB"), (5, "5 B"), (0, "0 B")])
def test_sizes_are_exact(size: int, text: str) -> None:
    assert size_text(size) == text


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_picture_names_every_region_with_its_place() -> None:
    shown = texts(layout_svg(guide(), title="partitions.csv: 8 MiB"))
    for region in guide().rows:
        assert region.name in shown
        assert f"{region.start:#x}" in shown
    assert "0x717000" in shown


def test_the_picture_marks_overlaps_in_red() -> None:
    drawn = layout_svg(overlapping(), title="bad")
    assert "a and b overlap: 0xd000 to 0xf000" in texts(drawn)
    assert "the flash ends at 0x100000, the last region at 0x110000" in texts(drawn)
    assert "#cf222e" in drawn
    assert "#cf222e" not in layout_svg(guide(), title="good")


def test_names_and_titles_cannot_break_out_of_the_picture() -> None:
    hostile = FlashLayout((FlashRegion('"><script>\x00\ud800' + "x" * 100, "app", 0, 8, 4),), 8)
    drawn = layout_svg(hostile, title='<&">' * 50)
    assert "<script>" not in drawn
    assert len(max(texts(drawn), key=len)) <= 80


def test_an_empty_layout_is_drawn_too() -> None:
    assert texts(layout_svg(FlashLayout(()), title="nothing"))
    assert layout_of_table(PartitionTable(())).overlaps == ()
