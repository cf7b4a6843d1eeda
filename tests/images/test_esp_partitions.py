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
    require_valid,
)
from flota.images.esp_partitions.errors import (
    LAYOUT_ERRORS,
    BadAppSize,
    BadCsvRow,
    BadOtadataSize,
    BadTableRow,
    BelowTable,
    BeyondFlash,
    CsvNotText,
    DuplicateName,
    EmptyPartition,
    EmptyTable,
    FieldTooLong,
    MisalignedPartition,
    MissingSystemOffset,
    NameNotForCsv,
    NoEndRow,
    NoRoomForPartition,
    NvsTooSmall,
    PartitionsOverlap,
    ReadonlyNotAllowed,
    SeveralOtadata,
    TooManyPartitions,
    UnknownVariable,
    WrongTableMd5,
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
    ("text", "kind", "what"),
    [
        ("", EmptyTable, "no partitions"),
        ("# only a comment", EmptyTable, "no partitions"),
        ("nvs", BadCsvRow, "type is missing"),
        ("nvs,data,nvs,0x9000,", BadCsvRow, "size is missing"),
        ("nvs,date,nvs,0x9000,0x6000", BadCsvRow, "bad type"),
        ("nvs,data,nvs,010,0x6000", BadCsvRow, "bad offset"),
        ("nvs,data,nvs,0x9000,lots", BadCsvRow, "bad size"),
        ("nvs,data,nvs,0x9000,0x6000,shiny", BadCsvRow, "unknown flag"),
        ("nvs,256,nvs,0x9000,0x6000", BadCsvRow, "does not fit"),
        ("nvs,data,nvs,0x1000000000,0x6000", BadCsvRow, "does not fit"),
        ("app,app,,0x10000,1M", BadCsvRow, "needs a subtype"),
        ("a-name-of-17-byte,data,nvs,,0x6000", BadCsvRow, "too long"),
        ("na\x07me,data,nvs,,0x6000", BadCsvRow, "bad partition name"),
        (",data,nvs,,0x6000", BadCsvRow, "bad partition name"),
        ("nvs,data,nvs,,$SIZE", UnknownVariable, "unknown variable"),
        ("a,data,nvs,0xa000,0x6000\nb,data,phy,0x9000,0x1000", PartitionsOverlap, "overlaps"),
        ("a,data,nvs,0x8000,0x6000", PartitionsOverlap, "overlaps"),
        ("a,data,nvs,,-0x9000", EmptyPartition, "is empty"),
        ("a,data,nvs,,-0x1000", NoRoomForPartition, "no room"),
        ("boot,bootloader,primary,N/A,N/A", MissingSystemOffset, "boot loader offset"),
        ("a,data,nvs,,0xfffffff0", NoRoomForPartition, "no room"),
        ("x,data,nvs,,99999999999999999999999999", BadCsvRow, "bad size"),
        ("\n".join(f"p{index},data,0x40,,4K" for index in range(95)), TooManyPartitions, "too many"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(text: str, kind: type[PartitionTableError], what: str) -> None:
    with pytest.raises(kind, match=what):
        parse_csv(text)


def test_text_that_is_not_text_or_far_too_long_is_refused() -> None:
    with pytest.raises(CsvNotText, match="not text"):
        parse_csv(b"\x80\x81")
    with pytest.raises(CsvNotText, match="too long"):
        parse_csv("#" * 1_000_000)


BROKEN_ROWS = [
    (Partition("app", 0, 0, 0x11000, 0x100000), MisalignedPartition),
    (Partition("data", 1, 0x40, 0x9001, 0x1000), MisalignedPartition),
    (Partition("boot", 2, 1, 0x9800, 0x1000), MisalignedPartition),
    (Partition("custom", 0x40, 0, 0x9800, 0x1000), MisalignedPartition),
    (Partition("app", 0, 0, 0x10000, 0x100001), BadAppSize),
    (Partition("empty", 1, 0x40, 0x9000, 0), EmptyPartition),
    (Partition("nvs", 1, 2, 0x9000, 0x2000), NvsTooSmall),
    (Partition("otadata", 1, 0, 0x9000, 0x1000), BadOtadataSize),
    (Partition("tee", 1, 0x90, 0x9000, 0x3000), BadOtadataSize),
    (Partition("otadata", 1, 0, 0x9000, 0x2000, 2), ReadonlyNotAllowed),
    (Partition("dump", 1, 3, 0x9000, 0x2000, 2), ReadonlyNotAllowed),
    (Partition("low", 1, 0x40, 0x8000, 0x1000), BelowTable),
    (Partition("ota-boot", 2, 1, 0x7000, 0x1000), BelowTable),
]


@pytest.mark.parametrize(("row", "kind"), BROKEN_ROWS, ids=lambda value: getattr(value, "label", None))
def test_each_rule_that_a_row_breaks_has_its_own_error(row: Partition, kind: type[PartitionTableError]) -> None:
    assert errors(table_of(row)) == [kind.code]
    with pytest.raises(kind):
        require_valid(table_of(row))


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ((OTA_0, Partition("b", 0, 0x11, 0x110000, 0x100000)), PartitionsOverlap),
        ((OTA_0, Partition("ota_0", 0, 0x11, 0x120000, 0x100000)), DuplicateName),
        ((OTADATA, Partition("more", 1, 0, 0x11000, 0x2000), OTA_0), SeveralOtadata),
        (
            (Partition("a", 1, 0x90, 0x9000, 0x2000), Partition("b", 1, 0x90, 0xB000, 0x2000)),
            SeveralOtadata,
        ),
        (tuple(Partition(f"p{n}", 0x40, n, 0x9000 + n * 0x1000, 0x1000) for n in range(95)), TooManyPartitions),
    ],
)
def test_each_rule_that_rows_break_together_has_its_own_error(
    rows: tuple[Partition, ...], kind: type[PartitionTableError]
) -> None:
    assert errors(table_of(*rows)) == [kind.code]
    with pytest.raises(kind):
        require_valid(table_of(*rows))


def test_every_error_of_the_layout_is_shown_by_a_test_above_or_below() -> None:
    shown = {kind for _, kind in BROKEN_ROWS}
    shown |= {PartitionsOverlap, DuplicateName, SeveralOtadata, TooManyPartitions, BeyondFlash}
    assert shown == set(LAYOUT_ERRORS.values())


def test_a_primary_boot_loader_and_table_may_lie_below_the_end_of_the_table() -> None:
    assert errors(table_of(Partition("b", 2, 0, 0x1000, 0x7000), Partition("t", 3, 0, 0x8000, 0x1000))) == []


def test_without_an_md5_row_one_more_partition_fits() -> None:
    rows = tuple(Partition(f"p{n}", 0x40, n, 0x9000 + n * 0x1000, 0x1000) for n in range(95))
    assert errors(PartitionTable(rows, with_md5=False)) == []
    assert parse_table(pack_table(PartitionTable(rows, with_md5=False))).partitions == rows
    with pytest.raises(TooManyPartitions):
        pack_table(PartitionTable(rows))


def test_secure_boot_v1_asks_for_whole_64_kib_of_app() -> None:
    rows = (Partition("app", 0, 0, 0x10000, 0x101000),)
    assert errors(table_of(*rows)) == []
    with pytest.raises(BadAppSize):
        require_valid(table_of(*rows), secure_boot_v1=True)
    with pytest.raises(BadAppSize):
        parse_csv("app,app,factory,,0x101000", secure_boot_v1=True)


def test_a_small_readonly_nvs_is_allowed() -> None:
    assert errors(table_of(Partition("nvs", 1, 2, 0x9000, 0x1000, 2))) == []


def test_partitions_must_end_within_the_flash() -> None:
    assert errors(TWO_SLOTS, flash_size=4 << 20) == []
    assert errors(TWO_SLOTS, flash_size=2 << 20) == ["flash-size"]
    with pytest.raises(BeyondFlash):
        parse_csv(TWO_OTA_4MB_CSV, flash_size=2 << 20)
    with pytest.raises(BeyondFlash):
        parse_table(pack_table(TWO_SLOTS), flash_size=2 << 20)


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
    for content, kind in (
        (end, EmptyTable),
        (b"", NoEndRow),
        (row * 96, NoEndRow),
        (row + md5 + md5 + end, WrongTableMd5),
        (row + b"\xeb\xeb" + b"\xff" * 14 + bytes(16) + end, WrongTableMd5),
        (row + md5 + row + end, BadTableRow),
        (bytes(0xC00), BadTableRow),
        (row + row[:31], BadTableRow),
    ):
        with pytest.raises(kind):
            parse_table(content)
    with pytest.raises(PartitionTableError, match="beyond the flash"):
        parse_table(pack_table(TWO_SLOTS), flash_size=0x10000)


def test_csv_written_is_csv_read() -> None:
    for table in (TWO_SLOTS, parse_csv(MICRO_RDK_8MB_CSV)):
        assert parse_csv(csv_of(table)) == table


@pytest.mark.parametrize("label", ["", "#x", "a,b", " a", "$A", "${B}"])
def test_a_name_that_would_read_as_something_else_is_not_written_to_csv(label: str) -> None:
    with pytest.raises(NameNotForCsv):
        csv_of(table_of(Partition(label, 1, 2, 0x9000, 0x6000)))


def test_names_and_numbers_that_do_not_fit_their_field_are_not_packed() -> None:
    for row in (
        Partition("x" * 17, 1, 2, 0x9000, 0x6000),
        Partition("x", 1, 2, 1 << 32, 0),
        Partition("x", 256, 2, 0, 0),
    ):
        with pytest.raises(FieldTooLong):
            pack_table(table_of(row))


def test_boot_loader_and_table_rows_take_their_place_from_the_offsets_given() -> None:
    text = "b,bootloader,primary,N/A,N/A\nt,partition_table,primary,N/A,N/A\nr,bootloader,recovery,,\nnvs,data,nvs,,24K"
    with pytest.raises(MissingSystemOffset):
        parse_csv(text, bootloader_offset=0x1000)
    table = parse_csv(
        text.replace("nvs,data", "late,data"), bootloader_offset=0x1000, recovery_bootloader_offset=0x9000
    )
    assert [(row.offset, row.size) for row in table.partitions] == [
        (0x1000, 0x7000),
        (0x8000, 0x1000),
        (0x9000, 0x7000),
        (0x10000, 0x6000),
    ]
    assert parse_csv(csv_of(table), bootloader_offset=0x1000, recovery_bootloader_offset=0x9000) == table
