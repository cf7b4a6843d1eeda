"""CBOR: the examples of RFC 8949, everything JSON can say, and nothing that could hurt."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.cbor import DEPTH_MAX, pack_cbor, parse_cbor
from flota.protocols.malformed import MalformedMessage

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=30,
)


@given(VALUES)
def test_what_is_packed_is_read_again(value: object) -> None:
    assert parse_cbor(pack_cbor(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        parse_cbor(data)


@given(VALUES, st.data())
def test_a_value_cut_short_is_refused(value: object, data: st.DataObject) -> None:
    packed = pack_cbor(value)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(MalformedMessage):
        parse_cbor(packed[:cut])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("00", 0),
        ("17", 23),
        ("1818", 24),
        ("1903e8", 1000),
        ("1bffffffffffffffff", 18446744073709551615),
        ("3bffffffffffffffff", -18446744073709551616),
        ("20", -1),
        ("f93c00", 1.0),
        ("fb3ff199999999999a", 1.1),
        ("fa47c35000", 100000.0),
        ("f4", False),
        ("f5", True),
        ("f6", None),
        ("f7", None),
        ("6449455446", "IETF"),
        ("62c3bc", "ü"),
        ("4401020304", b"\1\2\3\4"),
        ("83010203", [1, 2, 3]),
        ("a26161016162820203", {"a": 1, "b": [2, 3]}),
        ("9fff", []),
        ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
        ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
        ("7f657374726561646d696e67ff", "streaming"),
        ("5f42010243030405ff", b"\1\2\3\4\5"),
    ],
)
def test_examples_of_the_rfc(text: str, value: object) -> None:
    assert parse_cbor(bytes.fromhex(text)) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1c",
        "ff",
        "a1",
        "a10102",
        "a2616101616102",
        "9bffffffffffffffff",
        "bbffffffffffffffff",
        "5bffffffffffffffff00",
        "7bffffffffffffffff00",
        "61ff",
        "f97e00",
        "f97c00",
        "f8ff",
        "0000",
        "9f",
        "7f41ffff",
        "5f5f4100ffff",
        "c074323031332d30332d32315432303a30343a30305a",
        "c11a514b67b0",
    ],
)
def test_malformed_cbor_is_refused(text: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_cbor(bytes.fromhex(text))


@pytest.mark.parametrize("opener", [b"\x81", b"\x9f", b"\xc0", b"\xa1\x60"])
def test_deep_nesting_is_refused_before_it_costs_anything(opener: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"depth|understood"):
        parse_cbor(opener * 100_000)
    if opener == b"\x81":
        assert parse_cbor(opener * DEPTH_MAX + b"\x00") is not None


def test_an_integer_beyond_64_bits_cannot_be_packed() -> None:
    with pytest.raises(MalformedMessage):
        pack_cbor(1 << 64)
