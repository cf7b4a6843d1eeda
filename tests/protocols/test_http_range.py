"""Ranges and validators as update clients use them."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.http_range import (
    ByteRange,
    RangeNotSatisfiable,
    content_range,
    if_match,
    if_range,
    none_match,
    parse_content_range,
    parse_range,
    parse_several_ranges,
    parse_unsatisfied_content_range,
    range_header,
    unsatisfied_content_range,
)
from flota.protocols.malformed import MalformedMessage


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-", 0, 99),
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=10-", 10, 99),
        ("bytes=-5", 95, 99),
        ("bytes=-500", 0, 99),
        ("bytes=90-100", 90, 99),  # esp_https_ota may ask for one past the end
        ("bytes=0-999999999999999999", 0, 99),
        ("Bytes=1-2", 1, 2),
    ],
)
def test_one_range_is_given_and_clamped_to_the_file(header: str, first: int, last: int) -> None:
    assert parse_range(header, 100) == ByteRange(first, last)


@pytest.mark.parametrize("header", [None, "", "lines=0-5", "bytes 0-5"])
def test_no_range_and_other_units_mean_the_whole_file(header: str | None) -> None:
    assert parse_range(header, 100) is None


@pytest.mark.parametrize(
    "header",
    [
        "bytes=100-",
        "bytes=-0",
        "bytes=5-4",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=0-1,5-6",
        "bytes=1.5-2",
        "bytes=+1-2",
        "bytes=٣-٤",
        "bytes=" + "1" * 500 + "-",
        "bytes=" + "0-1," * 10_000,
    ],
)
def test_what_cannot_be_given_is_not_satisfiable(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, 100)


def test_an_empty_file_has_no_range() -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_range("bytes=0-", 0)


@given(st.text(), st.integers(0, 1 << 40))
def test_any_header_gives_a_range_inside_the_file_or_our_error(text: str, size: int) -> None:
    for header in (text, f"bytes={text}"):
        with contextlib.suppress(RangeNotSatisfiable):
            part = parse_range(header, size)
            assert part is None or 0 <= part.first <= part.last < size


@given(st.data(), st.integers(1, 1 << 40))
def test_what_a_client_packs_is_what_a_server_reads(data: st.DataObject, size: int) -> None:
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first, size - 1))
    assert parse_range(range_header(first, last), size) == ByteRange(first, last)
    assert parse_range(range_header(first), size) == ByteRange(first, size - 1)
    assert parse_content_range(content_range(ByteRange(first, last), size)) == (ByteRange(first, last), size)
    assert parse_unsatisfied_content_range(unsatisfied_content_range(size)) == size


@given(st.text())
def test_any_content_range_gives_a_value_or_our_error(text: str) -> None:
    for header in (text, f"bytes {text}"):
        with contextlib.suppress(MalformedMessage):
            parse_content_range(header)
        with contextlib.suppress(MalformedMessage):
            parse_unsatisfied_content_range(header)


@pytest.mark.parametrize("header", ["bytes 5-4/10", "bytes 0-10/10", "bytes */10", "bytes 0-1"])
def test_a_content_range_that_contradicts_itself_is_refused(header: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_content_range(header)


def test_an_unknown_length_is_none() -> None:
    assert parse_content_range("bytes 0-4/*") == (ByteRange(0, 4), None)


def test_a_range_that_ends_before_it_starts_is_not_a_value() -> None:
    with pytest.raises(ValueError, match="not a byte range"):
        ByteRange(5, 4)


@pytest.mark.parametrize(
    ("header", "matches"),
    [('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("a", False), (None, False)],
)
def test_if_none_match_compares_weakly(header: str | None, matches: bool) -> None:
    assert none_match(header, '"a"') is matches


@pytest.mark.parametrize(
    ("header", "matches"), [(None, True), ("*", True), ("a", True), ('"a"', True), ("b, a", True), ("b", False)]
)
def test_if_match_takes_unquoted_tags(header: str | None, matches: bool) -> None:
    assert if_match(header, '"a"') is matches


@pytest.mark.parametrize(
    ("header", "honoured"), [(None, True), ('"a"', True), ('W/"a"', False), ('"b"', False), ("Sun, 01 Mar 2026", False)]
)
def test_if_range_compares_exactly(header: str | None, honoured: bool) -> None:
    assert if_range(header, '"a"') is honoured


def test_several_ranges_come_in_rising_order() -> None:
    assert parse_several_ranges("bytes=50-59, 0-9,-5", 100) == (ByteRange(0, 9), ByteRange(50, 59), ByteRange(95, 99))


@pytest.mark.parametrize("header", [None, "", "bytes=0-9", "bytes=", "lines=1-2,3-4", "0-1,2-3"])
def test_any_other_header_asks_for_no_several_ranges(header: str | None) -> None:
    assert parse_several_ranges(header, 100) is None


@pytest.mark.parametrize(
    "header",
    [
        "bytes=0-9,9-20",
        "bytes=0-9,100-",
        "bytes=0-9,",
        "bytes=,",
        "bytes=9-0,20-30",
        "bytes=a-b,1-2",
        "bytes=" + ",".join(f"{number}-{number}" for number in range(0, 22, 2)),
        f"bytes={'0' * 200}-1,5-6",
    ],
)
def test_several_ranges_of_which_one_is_wrong_are_not_satisfiable(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_several_ranges(header, 100)


@given(st.text(max_size=60), st.integers(1, 1000))
def test_any_several_ranges_are_within_the_file_and_apart_or_an_error_of_ours(text: str, size: int) -> None:
    with contextlib.suppress(RangeNotSatisfiable):
        parts = parse_several_ranges(f"bytes={text}", size) or ()
        assert all(part.last < size for part in parts)
        assert all(before.last < after.first for before, after in pairwise(parts))
