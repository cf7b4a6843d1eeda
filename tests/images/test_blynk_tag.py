"""The Blynk firmware tag: what the vendor's tool finds, what we find, what we write, and where the two differ."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import mmap
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.images.blynk_tag import (
    MAGIC,
    BadTag,
    TagConflict,
    append_tag,
    find_tags,
    pack_tag,
    parse_tag,
    read_as_cloud,
    tag_findings,
    written_pairs,
)
from flota.images.inspection import inspect, inspection_as_dict
from flota.images.packed_files import unpacked_members

OFFICIAL = bytes.fromhex(
    "626c6e6b696e66006d637500312e322e330066772d7479706500544d504c6162"
    "636431323334006275696c64004e6f7620313620323032332032303a33353a35"
    "3500626c796e6b00302e362e340000"
)
"""Made by the vendor's tool."""
PAIRS = written_pairs(mcu="1.2.3", fw_type="TMPLabcd1234", build="Nov 16 2023 20:35:55", library="0.6.4")
FIRMWARE = bytes(range(256)) * 40


def raw(*texts: bytes) -> bytes:
    return MAGIC + b"".join(text + b"\0" for text in texts) + b"\0"


def codes(data: bytes) -> list[str]:
    return [finding.code for finding in tag_findings(data, find_tags(data))]


def test_a_tag_is_written_as_the_vendors_tool_writes_it() -> None:
    assert pack_tag(PAIRS) == OFFICIAL
    assert len(OFFICIAL) == 79


def test_a_tag_is_found_anywhere_in_a_file() -> None:
    for before in (b"", FIRMWARE, FIRMWARE + b"x"):
        (found,) = find_tags(before + OFFICIAL + FIRMWARE)
        assert (found.offset, found.size) == (len(before), 79)
        assert found.tag.pairs == PAIRS
        assert found.tag.version == "1.2.3"


class TestWhatTheVendorsToolFinds:
    """Each row as it was observed of the vendor's tool."""

    def test_the_third_nul_of_a_c_literal_is_no_part_of_the_tag(self) -> None:
        found = read_as_cloud(OFFICIAL + b"\0")
        assert found is not None
        assert found.raw == OFFICIAL

    @pytest.mark.parametrize("character", [*"+/'\"#@~ä"])
    def test_a_character_outside_its_set_hides_the_tag(self, character: str) -> None:
        hidden = raw(b"mcu", f"1.2.3{character}7".encode())
        assert read_as_cloud(hidden) is None
        assert codes(hidden) == ["tag-hidden"]
        assert find_tags(hidden)[0].tag.version == f"1.2.3{character}7"

    def test_after_a_hidden_tag_it_takes_the_next(self) -> None:
        found = read_as_cloud(raw(b"mcu", b"1+1") + OFFICIAL)
        assert found is not None
        assert found.raw == OFFICIAL

    def test_an_empty_value_in_the_middle_ends_the_tag(self) -> None:
        data = raw(b"mcu", b"1", b"hw", b"", b"fw-type", b"T")
        found = read_as_cloud(data)
        assert found is not None
        assert found.pairs == ((b"mcu", b"1"),)
        assert find_tags(data)[0].tag.get("fw-type") == "T"
        assert "tag-read-otherwise" in codes(data)

    def test_an_empty_value_at_the_end_is_lost(self) -> None:
        found = read_as_cloud(raw(b"mcu", b"1", b"hw", b""))
        assert found is not None
        assert found.pairs == ((b"mcu", b"1"),)

    def test_the_magic_and_two_nuls_are_no_tag_and_three_an_empty_one(self) -> None:
        assert read_as_cloud(MAGIC + b"\0") is None
        found = read_as_cloud(MAGIC + b"\0\0")
        assert found is not None
        assert (len(found.raw), found.pairs) == (10, ())

    def test_the_first_of_two_tags_wins(self) -> None:
        first, second = raw(b"mcu", b"1"), raw(b"mcu", b"2")
        found = read_as_cloud(first + second)
        assert found is not None
        assert found.pairs == ((b"mcu", b"1"),)
        assert find_tags(first + second)[0].tag.version == "1"
        assert codes(first + second) == ["several-tags"]
        assert codes(first + first) == []

    def test_a_key_twice_gives_both_pairs_and_the_first_counts(self) -> None:
        data = raw(b"mcu", b"1", b"mcu", b"2")
        found = read_as_cloud(data)
        assert found is not None
        assert len(found.pairs) == 2
        assert find_tags(data)[0].tag.version == "1"
        assert codes(data) == ["tag-key-twice"]

    def test_a_lone_text_at_the_end_is_dropped(self) -> None:
        found = read_as_cloud(raw(b"mcu", b"1", b"lone"))
        assert found is not None
        assert found.pairs == ((b"mcu", b"1"),)

    def test_letters_before_the_magic_do_not_matter(self) -> None:
        assert read_as_cloud(b"x" + OFFICIAL) is not None

    def test_other_text_behind_a_bare_magic_is_taken_for_a_tag(self) -> None:
        data = MAGIC + b"some text\0more (text)\0\0" + FIRMWARE
        found = read_as_cloud(data)
        assert found is not None
        assert found.pairs == ((b"some text", b"more (text)"),)
        assert find_tags(data) == ()
        assert codes(data) == ["tag-nonsense"]


@pytest.mark.parametrize("cut", range(1, len(OFFICIAL)))
def test_a_tag_that_the_file_cuts_off_is_none(cut: int) -> None:
    assert find_tags(FIRMWARE + OFFICIAL[:cut]) == ()


def test_a_tag_at_the_very_end_is_one() -> None:
    assert len(find_tags(FIRMWARE + OFFICIAL)) == 1


def test_a_tag_is_at_most_1024_bytes_long() -> None:
    filler = [b"k%d" % number for number in range(4)]
    texts = [text for key in filler for text in (key, b"v" * 245)]
    longest = raw(b"mcu", b"1", *texts)
    assert len(longest) <= 1024
    assert len(find_tags(longest)) == 1
    assert find_tags(raw(b"mcu", b"1", *texts, b"more", b"v" * 100)) == ()


def test_a_tag_without_a_version_is_none() -> None:
    assert find_tags(raw(b"fw-type", b"T")) == ()
    assert find_tags(raw(b"ncp", b"0.7"))[0].tag.version == "0.7"


def test_a_file_full_of_magics_costs_no_more_than_its_length() -> None:
    data = MAGIC * 200_000
    assert find_tags(data) == ()
    assert read_as_cloud(data) is None
    assert read_as_cloud(data + b"+\0\0") is None


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([("mcu", "1.2+3")], "hides"),
        ([("mcu", "1"), ("fw-type", "Wärme")], "hides"),
        ([("mcu", "")], "empty"),
        ([("", "1")], "empty"),
        ([("mcu", "1\0")], "hides"),
        ([("k" * 33, "1")], "too long"),
        ([("mcu", "1" * 257)], "too long"),
        ([("fw-type", "T")], "without a version"),
        ([("mcu", "1"), ("mcu", "2")], "twice"),
        ([("mcu", "1"), *((f"k{number}", "v" * 250) for number in range(5))], "too long"),
    ],
)
def test_what_no_reader_would_understand_is_not_written(pairs: list[tuple[str, str]], says: str) -> None:
    with pytest.raises(BadTag, match=says):
        pack_tag(pairs)


def test_the_error_names_the_character_and_its_place() -> None:
    with pytest.raises(BadTag) as caught:
        pack_tag([("mcu", "1.2.3+7")])
    assert (caught.value.offset, caught.value.found) == (5, "'+'")


ALLOWED = st.text("abcXYZ019_ .,:-()", min_size=1, max_size=32)


@given(st.dictionaries(ALLOWED, ALLOWED, max_size=6), ALLOWED, st.binary(max_size=50))
def test_what_is_written_is_read_by_both_readers(more: dict[str, str], version: str, behind: bytes) -> None:
    pairs = (("mcu", version), *((key, value) for key, value in more.items() if key not in ("mcu", "ncp")))
    tag = pack_tag(pairs)
    assert parse_tag(tag).tag.pairs == pairs
    (found,) = find_tags(tag + behind)[:1]
    assert (found.tag.pairs, found.size) == (pairs, len(tag))
    cloud = read_as_cloud(tag + behind)
    assert cloud is not None
    assert cloud.is_of(found.tag)


@given(
    st.lists(st.sampled_from([MAGIC, b"mcu\0", b"1.0\0", b"\0", b"fw-type\0", b"T+\0", b"\xff", b"ncp"]), max_size=30)
)
def test_any_file_gives_tags_that_are_really_there(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    for found in find_tags(data):
        again = parse_tag(data[found.offset : found.offset + found.size])
        assert again.tag == found.tag
        assert found.tag.version
    list(tag_findings(data, find_tags(data)))


def test_a_tag_is_added_at_the_end_of_a_package() -> None:
    tagged = append_tag(FIRMWARE, OFFICIAL)
    assert tagged == FIRMWARE + OFFICIAL


def test_a_second_tag_is_refused_unless_it_replaces_the_first() -> None:
    shorter = pack_tag(written_pairs(mcu="1.2.4", fw_type="T"))
    file = FIRMWARE + OFFICIAL + FIRMWARE
    with pytest.raises(TagConflict):
        append_tag(file, shorter)
    replaced = append_tag(file, shorter, replace=True)
    assert len(replaced) == len(file)
    assert replaced[len(FIRMWARE) :].startswith(shorter + bytes(len(OFFICIAL) - len(shorter)))
    assert [one.tag.version for one in find_tags(replaced)] == ["1.2.4"]


def test_a_longer_tag_cannot_replace_a_shorter_one() -> None:
    file = FIRMWARE + pack_tag(written_pairs(mcu="1", fw_type="T")) + b"x"
    with pytest.raises(TagConflict, match="longer"):
        append_tag(file, OFFICIAL, replace=True)


def test_a_tag_that_something_else_would_hide_is_not_added() -> None:
    with pytest.raises(TagConflict, match="taken for the tag") as caught:
        append_tag(FIRMWARE + MAGIC + b"decoy\0text\0\0", OFFICIAL)
    assert caught.value.offset == len(FIRMWARE)


def packed(kind: str) -> bytes:
    content = FIRMWARE + OFFICIAL
    if kind == "gzip":
        return gzip.compress(content)
    if kind == "xz":
        return lzma.compress(content)
    if kind == "bzip2":
        return bz2.compress(content)
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("readme", "nothing")
            archive.writestr("fw.bin", content)
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in (("fw_info.bin", OFFICIAL), ("main.py", b"print()")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["gzip", "xz", "bzip2", "zip", "tar.gz"])
def test_a_tag_in_a_packed_file_is_found(kind: str) -> None:
    found = inspect(packed(kind))
    assert found.firmware_tag["mcu"] == "1.2.3"
    assert found.version == "1.2.3"
    assert any("packed in the file" in row.value for row in found.properties)


@pytest.mark.parametrize("kind", ["gzip", "xz", "bzip2", "zip", "tar.gz"])
def test_damaged_archives_give_what_they_give_and_never_an_error(kind: str) -> None:
    whole = packed(kind)
    for cut in range(0, len(whole), 7):
        inspect(whole[:cut])
        inspect(whole[:cut] + bytes([whole[cut] ^ 0x55]) + whole[cut + 1 :])


def test_a_file_that_grows_without_bound_is_unpacked_to_the_bound() -> None:
    bomb = gzip.compress(bytes(3_000_000))
    assert sum(len(content) for _, content in unpacked_members(bomb, limit=1_000_000)) == 1_000_000


def test_inspect_shows_the_tag_and_what_is_wrong_with_it() -> None:
    found = inspect(FIRMWARE + raw(b"mcu", b"1.2+3", b"fw-type", b"T"))
    rows = {row.name: row.value for row in found.properties}
    assert rows["tag mcu"] == "1.2+3"
    assert rows["firmware tag"].endswith(f"{len(FIRMWARE):#x}")
    assert [finding.code for finding in found.findings] == ["tag-hidden"]
    assert inspection_as_dict(found)["firmware_tag"] == {"mcu": "1.2+3", "fw-type": "T"}


@pytest.mark.parametrize("kind", [bytes, memoryview, "mmap"], ids=["bytes", "memoryview", "mmap"])
@pytest.mark.parametrize("border", [4096, 65_536])
def test_a_tag_over_the_border_of_a_page_is_found_wherever_the_border_cuts_it(
    tmp_path: Path, kind: object, border: int
) -> None:
    for cut in (1, 7, 8, 9, 40, len(OFFICIAL) - 1):
        data = bytes(border - cut) + OFFICIAL + bytes(10)
        with as_buffer(data, kind, tmp_path / "image.bin") as buffer:
            (found,) = find_tags(buffer)
            cloud = read_as_cloud(buffer)
        assert (found.offset, found.tag.pairs) == (border - cut, PAIRS)
        assert cloud is not None
        assert cloud.is_of(found.tag)


@pytest.mark.parametrize("kind", [bytes, memoryview, "mmap"], ids=["bytes", "memoryview", "mmap"])
def test_a_tag_that_is_the_end_of_the_file_is_found_and_one_byte_less_is_none(tmp_path: Path, kind: object) -> None:
    data = FIRMWARE + OFFICIAL
    with as_buffer(data, kind, tmp_path / "image.bin") as buffer:
        assert len(find_tags(buffer)) == 1
    with as_buffer(data[:-1], kind, tmp_path / "cut.bin") as buffer:
        assert find_tags(buffer) == ()
        assert read_as_cloud(buffer) is None


@contextlib.contextmanager
def as_buffer(data: bytes, kind: object, file: Path) -> Iterator[Any]:
    """Give the bytes as each reader of files gets them."""
    if kind != "mmap":
        yield data if kind is bytes else memoryview(data)
        return
    file.write_bytes(data)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


@pytest.mark.parametrize("kept", [40, len(OFFICIAL) - 1])
def test_a_tag_that_the_bound_of_unpacking_cuts_is_none(kept: int) -> None:
    (content,) = (
        content for _, content in unpacked_members(gzip.compress(FIRMWARE + OFFICIAL), limit=len(FIRMWARE) + kept)
    )
    assert content.endswith(OFFICIAL[:kept])
    assert find_tags(content) == ()
