from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.json_text import parse_json
from flota.protocols.malformed import MalformedMessage


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b'{"a":1,"a":2}',
        b'[{"x":{"b":1,"b":1}}]',
        b"NaN",
        b'{"a":Infinity}',
        b"-Infinity",
        b"\xff",
        '{"a":1}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b"1" * 5000,
        b"{} {}",
    ],
)
def test_what_two_readers_could_take_for_two_things_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_json(payload)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_json_is_read_as_it_was_written(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_our_error(payload: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        parse_json(payload)
