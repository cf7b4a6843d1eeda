from __future__ import annotations

import hashlib

import pytest

from flota.boards.catalogue import MICRO_RDK_8MB_CSV, TWO_OTA_4MB_CSV
from flota.images.esp_partitions import (
    Partition,
    PartitionTable,
    PartitionTableError,
    check_table,
    csv_of,
    pack_table,
    parse_csv,
    parse_table,
)

TWO_SLOTS = parse_csv(TWO_OTA_4MB_CSV)


def errors(table: PartitionTable, **places: int) -> list[str]:
    return [finding.code for finding in check_table(table, **places) if finding.level == "error"]


def warnings(table: PartitionTable) -> list[str]:
    return [finding.code for finding in check_table(table) if finding.level == "warning"]


def table_of(*rows: Partition) -> PartitionTable:
    return PartitionTable(rows)


OTADATA = Partition("otadata", 1, 0, 0xF000, 0x2000)
OTA_0 = Partition("ota_0", 0, 0x10, 0x20000, 0x100000)
OTA_1 = Partition("ota_1", 0, 0x11, 0x120000, 0x100000)


def test_blank_offsets_are_placed_after_the_row_before_apps_at_64_kib() -> None:
    table = parse_csv(MICRO_RDK_8MB_CSV)
    assert [(slot.label, slot.offset, slot.end) for slot in table.ota_slots] == [
        ("ota_0", 0x20000, 0x397000),
        ("ota_1", 0x3A0000, 0x717000),
    ]
    assert table.otadata is not None
    assert table.otadata.offset == 0xF000
    assert hashlib.md5(pack_table(table)[: 5 * 32]).hexdigest() == "8b84080b97d77b6e754fdccd5a0ef5fb"


def test_numbers_may_carry_suffixes_and_bases_and_a_negative_size_is_an_end() -> None:
    table = parse_csv("nvs,data,nvs,36864,24K\napp,app,factory,,1m\nlog,data,0x99,,-0x200000,encrypted:readonly")
    assert [(r.offset, r.size, r.flags) for r in table.partitions] == [
        (0x9000, 0x6000, 0),
        (0x10000, 0x100000, 0),
        (0x110000, 0xF0000, 3),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_selects_the_encoding(encoding: str) -> None:
    text = "# ž\nphy_инит,data,phy,,0x1000\n"
    assert parse_csv(text.encode(encoding)).partitions[0].label == "phy_инит"


def test_variables_are_replaced_by_the_caller_s_values_only() -> None:
    assert parse_csv("nvs,data,nvs,,${SIZE}", variables={"SIZE": "0x4000"}).partitions[0].size == 0x4000
    with pytest.raises(PartitionTableError, match="unknown variable"):
        parse_csv("$HOME,data,nvs,,0x4000")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no partitions"),
        ("# only a comment", "no partitions"),
        ("nvs", "type is missing"),
        ("nvs,data,nvs,0x9000,", "size is missing"),
        ("nvs,date,nvs,0x9000,0x6000", "bad type"),
        ("nvs,data,nvs,010,0x6000", "bad offset"),
        ("nvs,data,nvs,0x9000,lots", "bad size"),
        ("nvs,data,nvs,0x9000,0x6000,shiny", "unknown flag"),
        ("nvs,256,nvs,0x9000,0x6000", "does not fit"),
        ("nvs,data,nvs,0x1000000000,0x6000", "does not fit"),
        ("app,app,,0x10000,1M", "needs a subtype"),
        ("a-name-of-17-byte,data,nvs,,0x6000", "too long"),
        ("na\x07me,data,nvs,,0x6000", "bad partition name"),
        (",data,nvs,,0x6000", "bad partition name"),
        ("a,data,nvs,0xa000,0x6000\nb,data,phy,0x9000,0x1000", "overlaps"),
        ("a,data,nvs,0x8000,0x6000", "overlaps"),
        ("a,data,nvs,,-0x9000", "is empty"),
        ("a,data,nvs,,-0x1000", "no room"),
        ("boot,bootloader,primary,N/A,N/A", "boot loader offset"),
        ("a,data,nvs,,0xfffffff0", "no room"),
        ("x,data,nvs,,99999999999999999999999999", "bad size"),
        ("\n".join(f"p{index},data,0x40,,4K" for index in range(96)), "too many"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(text: str, what: str) -> None:
    with pytest.raises(PartitionTableError, match=what):
        parse_csv(text)


def test_text_that_is_not_text_or_far_too_long_is_refused() -> None:
    with pytest.raises(PartitionTableError, match="not text"):
        parse_csv(b"\x80\x81")
    with pytest.raises(PartitionTableError, match="too long"):
        parse_csv("#" * 1_000_000)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (Partition("app", 0, 0, 0x11000, 0x100000), "alignment"),
        (Partition("data", 1, 0x40, 0x9001, 0x1000), "alignment"),
        (Partition("app", 0, 0, 0x10000, 0x100001), "size"),
        (Partition("empty", 1, 0x40, 0x9000, 0), "size"),
        (Partition("nvs", 1, 2, 0x9000, 0x2000), "size"),
        (Partition("otadata", 1, 0, 0x9000, 0x1000), "otadata"),
        (Partition("otadata", 1, 0, 0x9000, 0x2000, 2), "readonly"),
        (Partition("dump", 1, 3, 0x9000, 0x2000, 2), "readonly"),
        (Partition("low", 1, 0x40, 0x8000, 0x1000), "below-table"),
    ],
)
def test_what_no_device_could_use_is_an_error(row: Partition, code: str) -> None:
    assert code in errors(table_of(row))


def test_a_small_readonly_nvs_is_allowed() -> None:
    assert errors(table_of(Partition("nvs", 1, 2, 0x9000, 0x1000, 2))) == []


def test_overlaps_doubled_names_doubled_otadata_and_the_end_of_flash_are_errors() -> None:
    assert errors(table_of(OTA_0, Partition("b", 0, 0x11, 0x110000, 0x100000))) == ["overlap"]
    assert "name" in errors(table_of(OTA_0, Partition("ota_0", 0, 0x11, 0x120000, 0x100000)))
    assert "otadata" in errors(table_of(OTADATA, Partition("more", 1, 0, 0x11000, 0x2000), OTA_0))
    assert errors(TWO_SLOTS, flash_size=4 << 20) == []
    assert errors(TWO_SLOTS, flash_size=2 << 20) == ["flash-size"]


def test_what_a_fleet_stumbles_over_is_a_warning() -> None:
    assert warnings(TWO_SLOTS) == []
    assert warnings(table_of(OTA_0, OTA_1)) == ["otadata"]
    assert warnings(table_of(OTADATA)) == ["otadata"]
    assert warnings(table_of(OTADATA, OTA_0, Partition("x", 0, 0x12, 0x120000, 0x100000))) == ["slots"]
    assert warnings(table_of(OTADATA, OTA_0, Partition("x", 0, 0x11, 0x120000, 0x80000))) == ["slots"]
    assert warnings(table_of(Partition("nvs", 1, 1, 0x9000, 0x6000))) == ["name"]
    assert warnings(table_of(Partition("sixteen-bytes-xx", 1, 2, 0x9000, 0x6000))) == ["name"]
    assert warnings(table_of(Partition("nvs", 1, 2, 0x9000, 0x6000, 0x80))) == ["flags"]


def test_a_table_is_0xc00_bytes_with_md5_and_end_row() -> None:
    packed = pack_table(TWO_SLOTS)
    assert len(packed) == 0xC00
    assert packed[160:176] == b"\xeb\xeb" + b"\xff" * 14
    assert packed[176:192] == hashlib.md5(packed[:160]).digest()
    assert packed[192:] == b"\xff" * (0xC00 - 192)
    assert parse_table(packed) == TWO_SLOTS


def test_as_many_partitions_as_fit_are_packed_and_no_more() -> None:
    rows = tuple(Partition(f"p{index}", 1, 0x40, 0x9000 + 0x1000 * index, 0x1000) for index in range(96))
    for with_md5, most in ((True, 94), (False, 95)):
        full = PartitionTable(rows[:most], with_md5)
        assert parse_table(pack_table(full)) == full
        with pytest.raises(PartitionTableError, match="too many"):
            pack_table(PartitionTable(rows[: most + 1], with_md5))


def test_a_table_cut_before_its_end_row_is_refused() -> None:
    packed = pack_table(TWO_SLOTS)
    for length in range(224):
        with pytest.raises(PartitionTableError):
            parse_table(packed[:length])
    assert parse_table(packed[:224]) == TWO_SLOTS


def test_any_flipped_bit_in_the_rows_is_noticed() -> None:
    packed = bytearray(pack_table(TWO_SLOTS))
    for position in range(192):
        packed[position] ^= 4
        with pytest.raises(PartitionTableError):
            parse_table(bytes(packed))
        packed[position] ^= 4


def test_hostile_rows_are_refused() -> None:
    row = pack_table(TWO_SLOTS)[:32]
    md5 = b"\xeb\xeb" + b"\xff" * 14 + hashlib.md5(row).digest()
    end = b"\xff" * 32
    for content in (end, b"", row * 96, row + md5 + md5 + end, row + md5 + row + end, bytes(0xC00), row + row[:31]):
        with pytest.raises(PartitionTableError):
            parse_table(content)
    with pytest.raises(PartitionTableError, match="beyond the flash"):
        parse_table(pack_table(TWO_SLOTS), flash_size=0x10000)


def test_csv_written_is_csv_read() -> None:
    for table in (TWO_SLOTS, parse_csv(MICRO_RDK_8MB_CSV)):
        assert parse_csv(csv_of(table)) == table
