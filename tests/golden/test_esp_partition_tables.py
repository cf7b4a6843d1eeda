"""Partition tables and otadata of vendors: our placement and bytes are those of the reference tool."""

from __future__ import annotations

import pytest

from flota.images.esp_otadata import OtaEntry, blank_otadata, boot_app0, looks_like_otadata, pack_otadata, parse_otadata
from flota.images.esp_partitions import (
    check_table,
    csv_of,
    pack_table,
    parse_csv,
    parse_table,
)
from flota.images.esp_partitions.errors import MissingSystemOffset, NoEndRow
from flota.images.inspection import inspect
from flota.images.model import ImageFormat
from tests.golden.vendor_data import vendor_bytes, vendor_file, vendor_json, vendor_names

pytestmark = pytest.mark.golden

TABLES = [name for name in vendor_names("esp32/partitions/*.bin") if "singleapp.bin" not in name or "idf" in name]
CSVS = [name for name in vendor_names("esp32/partitions/*.csv") if "ota_3" not in name]


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_those_of_the_independent_parser_and_pack_to_the_same_bytes(name: str) -> None:
    data = vendor_bytes(name)
    rows = [row for row in vendor_json("esp32/parsed.json")[name.removeprefix("esp32/")] if isinstance(row, list)]
    table = parse_table(data)
    assert [[r.type, r.subtype, hex(r.offset), hex(r.size), r.flags] for r in table.partitions] == [
        row[1:] for row in rows if row[0] != "MD5"
    ]
    assert not [finding for finding in check_table(table) if finding.level == "error"]
    if "utf8_bom.bin" not in name:  # made by an old tool that kept the byte-order mark in a name
        assert [r.label for r in table.partitions] == [row[0] for row in rows if row[0] != "MD5"]
        assert pack_table(table) == data


@pytest.mark.parametrize("name", CSVS)
def test_csv_gives_the_bytes_of_the_reference_tool(name: str) -> None:
    table = parse_csv(vendor_bytes(name))
    assert pack_table(table) == vendor_bytes(name.replace(".csv", ".expected.bin"))
    assert parse_csv(csv_of(table)) == table


def test_boot_loader_rows_need_the_chip_and_then_match_the_reference_tool() -> None:
    text = vendor_bytes("esp32/partitions/idf_partitions_ota_3.csv")
    with pytest.raises(MissingSystemOffset, match="boot loader offset"):
        parse_csv(text)
    with pytest.raises(MissingSystemOffset, match="recovery"):
        parse_csv(text, bootloader_offset=0x1000)
    table = parse_csv(text, bootloader_offset=0x1000, recovery_bootloader_offset=0x3F0000)
    expected = vendor_bytes("esp32/partitions/idf_partitions_ota_3.bl1000_rec3f0000.expected.bin")
    assert pack_table(table) == expected


BINARIES = vendor_names("esp32/partitions/*.expected.bin")


@pytest.mark.parametrize("name", BINARIES)
def test_every_binary_of_the_reference_tool_comes_back_through_csv(name: str) -> None:
    data = vendor_bytes(name)
    text = csv_of(parse_table(data))
    assert pack_table(parse_csv(text, bootloader_offset=0x1000, recovery_bootloader_offset=0x3F0000)) == data


def test_a_table_without_end_row_is_refused() -> None:
    with pytest.raises(NoEndRow):
        parse_table(vendor_bytes("esp32/partitions/esptool_partitions_singleapp.bin"))


@pytest.mark.parametrize("name", vendor_names("esp32/otadata/*.bin"))
def test_otadata_is_recognised_and_its_entries_are_those_of_the_independent_parser(name: str) -> None:
    data = vendor_bytes(name)
    expected = vendor_json("esp32/parsed.json")[name.removeprefix("esp32/")]
    entries = parse_otadata(data)
    assert [
        {"seq": hex(e.seq), "state": hex(e.state), "crc": hex(e.crc), "crc_ok": e.crc_ok} for e in entries
    ] == expected
    assert looks_like_otadata(data)
    assert inspect(data).format is ImageFormat.ESP_OTADATA
    assert pack_otadata(*entries) == data


def test_the_initial_otadata_of_the_arduino_core_is_two_entries() -> None:
    vendor_file("esp32/otadata/arduino_boot_app0.bin")
    assert boot_app0() == vendor_bytes("esp32/otadata/arduino_boot_app0.bin")
    assert parse_otadata(boot_app0()) == (OtaEntry.for_seq(1), OtaEntry.for_seq(0))
    assert blank_otadata() == vendor_bytes("esp32/otadata/idf_ota_data_initial.bin")
