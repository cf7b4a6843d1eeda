from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from flota.images.esp_nvs import looks_like_nvs, parse_nvs, read_string
from flota.images.esp_nvs_format import (
    ENTRIES_OFFSET,
    PAGE_SIZE,
    PAGES_MAX,
    NvsBadKey,
    NvsBadValue,
    NvsError,
    NvsFull,
    NvsMissing,
    NvsUnreadable,
    NvsWrongType,
    PageState,
)
from flota.images.esp_nvs_writing import (
    ErasePage,
    Program,
    apply_operations,
    create_nvs,
    plan_string_write,
    write_string,
)
from flota.images.model import ImageError

NAMESPACE, KEY = "VIAM_NS", "OTA_VERSION"
SECRET = "hunter2-hunter2-hunter2"


def generated(tmp_path: Path, rows: str, size: int = 0x6000) -> bytes:
    """What Espressif's generator makes of the CSV rows."""
    source, result = tmp_path / "nvs.csv", tmp_path / "nvs.bin"
    source.write_text(f"key,type,encoding,value\n{rows}")
    command = [sys.executable, "-m", "esp_idf_nvs_partition_gen", "generate", str(source), str(result), hex(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    if "No module named" in done.stderr:
        pytest.skip("esp-idf-nvs-partition-gen is not installed")
    assert done.returncode == 0, done.stdout + done.stderr
    return result.read_bytes()


def with_filler(size: int = 0x3000) -> bytes:
    """A partition whose first page has one namespace, one key and 100 entries of another key."""
    return create_nvs(size, {NAMESPACE: {KEY: "v1.0.0"}, "other": {"filler": "x" * 3100}})


# --- against the reference tool ----------------------------------------------------------------------------------


@pytest.mark.program
def test_what_the_reference_generator_writes_is_read_and_ours_has_the_same_bytes(tmp_path: Path) -> None:
    strings = {
        "first": {"a": "1", "empty": "", "exact": "x" * 31, "over": "x" * 32, "text": "žluťoučký kůň"},
        NAMESPACE: {KEY: "v1.2.3-rc4", "TLS_CERT": "c" * 3000},
        "pages": {f"k{number}": "x" * size for number, size in enumerate((3000, 31, 2000, 500, 3100))},
    }
    rows = ""
    for namespace, values in strings.items():
        rows += f"{namespace},namespace,,\n" + "".join(f"{key},data,string,{value}\n" for key, value in values.items())
    theirs = generated(tmp_path, rows)
    for namespace, values in strings.items():
        for key, value in values.items():
            assert read_string(theirs, namespace, key) == value
    assert create_nvs(0x6000, strings) == theirs
    assert looks_like_nvs(theirs)


@pytest.mark.program
def test_every_type_of_the_reference_generator_is_told_apart(tmp_path: Path) -> None:
    types = ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")
    rows = "n,namespace,,\n" + "".join(f"{kind},data,{kind},7\n" for kind in types)
    rows += f"text,data,string,seven\nbinary,data,hex2bin,{'0a' * 6000}\n"
    data = generated(tmp_path, rows)
    kinds = [(item.name, item.type_name) for item in parse_nvs(data).items if item.namespace_index]
    assert kinds[: len(types) + 1] == [*((kind, kind) for kind in types), ("text", "string")]
    assert {kind for name, kind in kinds if name == "binary"} == {"blob data", "blob index"}
    assert not any(page.damaged for page in parse_nvs(data).pages)
    with pytest.raises(NvsWrongType):
        read_string(data, "n", "u8")
    with pytest.raises(NvsWrongType):
        write_string(data, "n", "binary", "text")
    updated = write_string(data, "n", "text", "eight")
    assert [(i.name, i.content) for i in parse_nvs(updated).items if i.name not in ("text", "n")] == [
        (i.name, i.content) for i in parse_nvs(data).items if i.name not in ("text", "n")
    ]


@pytest.mark.program
def test_an_encrypted_partition_is_neither_read_nor_written(tmp_path: Path) -> None:
    generated(tmp_path, "n,namespace,,\ntext,data,string,seven\n")
    arguments = ["encrypt", "nvs.csv", "encrypted.bin", "0x4000", "--keygen"]
    command = [sys.executable, "-m", "esp_idf_nvs_partition_gen", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    data = (tmp_path / "encrypted.bin").read_bytes()
    assert looks_like_nvs(data)
    with pytest.raises(NvsUnreadable, match="Encrypted"):
        read_string(data, "n", "text")
    with pytest.raises(NvsUnreadable):
        plan_string_write(data, "n", "text", "eight")


# --- reading and writing -----------------------------------------------------------------------------------------


def test_a_new_partition_is_erased_but_for_its_first_page() -> None:
    data = create_nvs(0x4000, {NAMESPACE: {KEY: "v1"}})
    assert data[PAGE_SIZE:] == b"\xff" * 0x3000
    assert [page.state for page in parse_nvs(data).pages] == [PageState.ACTIVE] + [PageState.EMPTY] * 3
    assert create_nvs(0x3000) == b"\xff" * 0x3000


def test_an_update_appends_and_strikes_out_the_old_entry_and_never_erases_a_page_that_has_room() -> None:
    before = create_nvs(0x3000, {NAMESPACE: {KEY: "v1", "ROBOT_ID": SECRET}})
    operations = plan_string_write(before, NAMESPACE, KEY, "v2")
    assert all(isinstance(operation, Program) for operation in operations)
    after = apply_operations(before, operations)
    assert (read_string(after, NAMESPACE, KEY), read_string(after, NAMESPACE, "ROBOT_ID")) == ("v2", SECRET)
    assert all(new & old == new for new, old in zip(after, before, strict=True) if old != 0xFF)
    assert len(parse_nvs(after).items) == len(parse_nvs(before).items)


def test_writing_what_is_there_already_writes_nothing() -> None:
    assert plan_string_write(create_nvs(0x3000, {NAMESPACE: {KEY: "v1"}}), NAMESPACE, KEY, "v1") == ()


def test_a_thousand_updates_compact_the_pages_and_lose_nothing() -> None:
    data, erased = create_nvs(0x3000, {NAMESPACE: {"ROBOT_ID": SECRET}}), set()
    for number in range(1000):
        operations = plan_string_write(data, NAMESPACE, KEY, f"v{number}")
        erased |= {operation.offset for operation in operations if isinstance(operation, ErasePage)}
        data = apply_operations(data, operations)
    assert read_string(data, NAMESPACE, KEY) == "v999"
    assert read_string(data, NAMESPACE, "ROBOT_ID") == SECRET
    assert erased
    assert sum(page.blank for page in parse_nvs(data).pages) == 1


def test_the_longest_string_fills_a_page_and_one_byte_more_is_refused() -> None:
    data = create_nvs(0x5000, {NAMESPACE: {"BIG": "x" * 3999}})
    assert read_string(data, NAMESPACE, "BIG") == "x" * 3999
    with pytest.raises(NvsBadValue, match="too long"):
        write_string(data, NAMESPACE, "BIG", "x" * 4000)


def test_a_full_partition_is_an_error_and_says_what_to_do() -> None:
    data = create_nvs(0x3000, {"n": {"a": "x" * 3800}})
    data = write_string(data, "n", "b", "x" * 3000)
    with pytest.raises(NvsFull, match="Erase keys"):
        write_string(data, "n", "c", "x" * 3800)
    assert read_string(data, "n", "a") == "x" * 3800


def test_two_hundred_and_fifty_four_namespaces_are_the_limit() -> None:
    data = create_nvs(0x10000, {f"n{number}": {"k": "v"} for number in range(254)})
    assert sorted(parse_nvs(data).namespaces.values()) == list(range(1, 255))
    with pytest.raises(NvsFull, match="namespaces"):
        write_string(data, "one-more", "k", "v")


@pytest.mark.parametrize("name", ["", "x" * 16, "naïve", "a\0b", "a\nb"])
def test_names_that_nvs_cannot_hold_are_refused(name: str) -> None:
    data = create_nvs(0x3000, {"n": {"k": "v"}})
    for namespace, key in ((name, "k"), ("n", name)):
        with pytest.raises(NvsBadKey):
            read_string(data, namespace, key)
        with pytest.raises(NvsBadKey):
            write_string(data, namespace, key, "v")


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_values_that_nvs_cannot_hold_are_refused(value: str) -> None:
    with pytest.raises(NvsBadValue):
        write_string(create_nvs(0x3000), "n", "k", value)


@pytest.mark.parametrize("size", [0, 0x1000, 0x2000, 0x3001, (PAGES_MAX + 1) * PAGE_SIZE])
def test_sizes_that_esp_idf_cannot_write_to_are_refused(size: int) -> None:
    with pytest.raises(NvsError, match="not a size"):
        create_nvs(size)


def test_a_partition_of_two_pages_is_read_but_not_written() -> None:
    data = create_nvs(0x3000, {"n": {"k": "v"}})[:0x2000]
    assert read_string(data, "n", "k") == "v"
    with pytest.raises(NvsError, match="too small"):
        write_string(data, "n", "k", "w")


# --- power cuts --------------------------------------------------------------------------------------------------


def cuts(partition: bytes, key: str, value: str) -> list[bytes]:
    """The flash after a cut before every operation, and inside every program operation."""
    operations = plan_string_write(partition, NAMESPACE, key, value)
    found = []
    for count, operation in enumerate(operations):
        before = apply_operations(partition, operations[:count])
        found.append(before)
        if isinstance(operation, Program):
            for length in {1, 4, len(operation.data) // 2, len(operation.data) - 1}:
                torn = Program(operation.offset, operation.data[:length])
                found.append(apply_operations(before, [torn]))
        else:
            found.append(before[: operation.offset] + b"\xff" * 0x800 + before[operation.offset + 0x800 :])
    return [*found, apply_operations(partition, operations)]


@pytest.mark.parametrize("filler", [0, 90, 112, 115], ids=lambda count: f"{count} entries before")
def test_a_cut_anywhere_leaves_the_old_string_or_the_new_one_and_the_next_write_works(filler: int) -> None:
    partition = create_nvs(0x3000, {NAMESPACE: {KEY: "v1", "ROBOT_SECRET": SECRET}})
    for number in range(filler):
        partition = write_string(partition, NAMESPACE, "counter", str(number))
    new = "v2" * 60
    for flash in cuts(partition, KEY, new):
        assert read_string(flash, NAMESPACE, KEY) in ("v1", new)
        assert read_string(flash, NAMESPACE, "ROBOT_SECRET") == SECRET
        healed = write_string(flash, NAMESPACE, KEY, "v3")
        assert read_string(healed, NAMESPACE, KEY) == "v3"
        assert read_string(healed, NAMESPACE, "ROBOT_SECRET") == SECRET


def test_a_cut_in_the_middle_of_a_compaction_loses_nothing() -> None:
    partition = with_filler()
    number = 0
    while not any(isinstance(op, ErasePage) for op in plan_string_write(partition, NAMESPACE, KEY, f"v{number}")):
        partition = write_string(partition, NAMESPACE, KEY, f"v{number}")
        number += 1
    old, new = f"v{number - 1}", f"v{number}"
    for flash in cuts(partition, KEY, new):
        assert read_string(flash, NAMESPACE, KEY) in (old, new)
        assert read_string(flash, "other", "filler") == "x" * 3100
        healed = write_string(flash, NAMESPACE, KEY, "v-last")
        assert read_string(healed, NAMESPACE, KEY) == "v-last"
        assert read_string(healed, "other", "filler") == "x" * 3100


def with_an_old_value_left_on_an_earlier_page() -> bytes:
    """A cut between writing a value and striking out the one before: that one lies on the page that is compacted next.

    On one page a compaction keeps the order of the two, so only two pages can show a value that comes back.
    """
    partition = create_nvs(0x3000, {"n": {"old": "before"}})
    partition = write_string(partition, "n", "filler", "x" * 3840)
    both = apply_operations(partition, plan_string_write(partition, "n", "old", "after" * 20)[:-1])
    places = [(item.page, item.content) for item in parse_nvs(both).items if item.name == "old"]
    assert places == [(0, b"before\0"), (1, b"after" * 20 + b"\0")]
    return both


def test_a_value_that_a_cut_left_beside_its_successor_does_not_come_back_by_a_compaction() -> None:
    both = write_string(with_an_old_value_left_on_an_earlier_page(), "n", "filler", "")
    erased: set[int] = set()
    for number in range(120):
        operations = plan_string_write(both, "n", "counter", str(number))
        erased |= {operation.offset for operation in operations if isinstance(operation, ErasePage)}
        both = apply_operations(both, operations)
        assert read_string(both, "n", "old") == "after" * 20
    assert 0 in erased, "the page with the old value was never moved"


def test_a_compaction_that_a_cut_interrupted_does_not_bring_an_old_value_back_when_it_is_finished() -> None:
    both = with_an_old_value_left_on_an_earlier_page()
    words = {0: PageState.FREEING, PAGE_SIZE: PageState.FULL}
    begun = [Program(offset, struct.pack("<I", state)) for offset, state in words.items()]
    interrupted = apply_operations(both, begun)
    assert read_string(interrupted, "n", "old") == "after" * 20
    finished = write_string(interrupted, "n", "counter", "1")
    assert read_string(finished, "n", "old") == "after" * 20
    assert read_string(finished, "n", "filler") == "x" * 3840
    assert all(page.state != PageState.FREEING for page in parse_nvs(finished).pages)


def test_of_two_entries_of_one_key_the_newer_one_counts() -> None:
    before = create_nvs(0x3000, {NAMESPACE: {KEY: "v1"}})
    operations = plan_string_write(before, NAMESPACE, KEY, "v2")
    both = apply_operations(before, operations[:-1])
    assert [item.name for item in parse_nvs(both).items].count(KEY) == 2
    assert read_string(both, NAMESPACE, KEY) == "v2"


# --- damage ------------------------------------------------------------------------------------------------------


def test_a_damaged_entry_is_not_read() -> None:
    data = bytearray(create_nvs(0x3000, {NAMESPACE: {KEY: "v1", "b": "w"}}))
    data[ENTRIES_OFFSET + 32 + 9] ^= 1
    with pytest.raises(NvsMissing):
        read_string(data, NAMESPACE, KEY)
    assert 1 in parse_nvs(data).pages[0].damaged
    assert read_string(data, NAMESPACE, "b") == "w"


def test_an_entry_forged_inside_a_value_is_never_read_even_when_the_value_is_damaged() -> None:
    forged = create_nvs(0x3000, {"n": {"k": "forged"}})[ENTRIES_OFFSET + 32 : ENTRIES_OFFSET + 96]
    data = bytearray(create_nvs(0x3000, {"n": {"carrier": "x" * 63}}))
    data[ENTRIES_OFFSET + 64 : ENTRIES_OFFSET + 128] = forged
    with pytest.raises(NvsMissing):
        read_string(data, "n", "k")


def test_a_page_with_a_wrong_header_crc_is_not_read_and_reused_by_the_next_write() -> None:
    data = bytearray(create_nvs(0x3000, {NAMESPACE: {KEY: "v1"}}))
    data[29] ^= 1
    assert not parse_nvs(data).pages[0].live
    assert read_string(write_string(data, NAMESPACE, KEY, "v2"), NAMESPACE, KEY) == "v2"


def test_a_page_of_a_newer_version_is_refused() -> None:
    data = bytearray(create_nvs(0x3000, {NAMESPACE: {KEY: "v1"}}))
    data[8] = 0xFD
    data[28:32] = struct.pack("<I", zlib.crc32(data[4:28], 0xFFFFFFFF))
    with pytest.raises(NvsError, match="newer"):
        parse_nvs(data)
    assert not looks_like_nvs(bytes(data))


def test_a_string_without_nul_or_that_is_no_text_is_an_error_without_the_value() -> None:
    for content in (SECRET.encode(), b"\xff" + SECRET.encode() + b"\0"):
        data = bytearray(create_nvs(0x3000, {"n": {"k": "?" * (len(content) - 1)}}))
        start = ENTRIES_OFFSET + 32
        data[start + 32 : start + 32 + len(content)] = content
        data[start + 28 : start + 32] = struct.pack("<I", zlib.crc32(content, 0xFFFFFFFF))
        crc = zlib.crc32(data[start + 8 : start + 32], zlib.crc32(data[start : start + 4], 0xFFFFFFFF))
        data[start + 4 : start + 8] = struct.pack("<I", crc)
        with pytest.raises(NvsBadValue) as caught:
            read_string(data, "n", "k")
        assert "hunter" not in str(caught.value) + repr(caught.value.as_dict())
        assert read_string(write_string(data, "n", "k", "repaired"), "n", "k") == "repaired"


def test_hostile_spans_and_sizes_do_not_leave_the_page() -> None:
    data = bytearray(create_nvs(0x3000, {"n": {"k": "v"}}))
    start = ENTRIES_OFFSET + 32
    for span, size in ((0, 2), (255, 2), (126, 4000), (2, 0xFFFF), (2, 0), (1, 0)):
        data[start + 2] = span
        data[start + 24 : start + 26] = struct.pack("<H", size)
        crc = zlib.crc32(data[start + 8 : start + 32], zlib.crc32(data[start : start + 4], 0xFFFFFFFF))
        data[start + 4 : start + 8] = struct.pack("<I", crc)
        with pytest.raises(NvsMissing):
            read_string(data, "n", "k")


def test_a_partition_cut_anywhere_is_refused_or_read() -> None:
    data = create_nvs(0x3000, {NAMESPACE: {KEY: "v1"}})
    for length in (0, 1, 31, 4095, 4097, 0x2FFF):
        with pytest.raises(NvsError, match="whole NVS pages"):
            parse_nvs(data[:length])
        assert not looks_like_nvs(data[:length])
    with pytest.raises(ImageError):
        parse_nvs(b"\xff" * (PAGES_MAX + 1) * PAGE_SIZE)


def test_no_value_is_in_any_repr() -> None:
    data = create_nvs(0x3000, {NAMESPACE: {"ROBOT_SECRET": SECRET}})
    shown = repr(parse_nvs(data)) + repr(plan_string_write(data, NAMESPACE, "WIFI_PASSWORD", SECRET))
    assert "hunter" not in shown
    assert SECRET.encode().hex() not in shown
