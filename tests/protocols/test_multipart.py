"""Forms with files, as HTTP clients upload them."""

from __future__ import annotations

import contextlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.malformed import MalformedMessage
from flota.protocols.multipart import FIELDS_MAX, FormField, parse_boundary, parse_form


@given(st.binary(max_size=400), st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_what_a_client_of_other_hands_packs_is_read(data: bytes, name: str) -> None:
    files = {"upfile": (name, data)}
    request = httpx.Request("POST", "http://a/", data={"type": "FIRMWARE"}, files=files)
    fields = parse_form(request.read(), parse_boundary(request.headers["content-type"]))
    assert fields["type"] == FormField(b"FIRMWARE")
    assert fields["upfile"].data == data


@given(st.binary(max_size=300))
def test_any_bytes_give_a_form_or_our_error(body: bytes) -> None:
    for boundary in ("b", "-", "boundary with space"):
        with contextlib.suppress(MalformedMessage):
            fields = parse_form(b"--" + boundary.encode() + b"\r\n" + body, boundary)
            assert sum(len(field.data) for field in fields.values()) <= len(body)


def part(name: str = "a", data: bytes = b"x") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), data)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--c--",
        b"--b",
        b"--b\r\n",
        part(),
        part()[:-3],
        part() + part() + b"--b--",
        b"--bx\r\n\r\n--b--",
        b"--b\r\nContent-Type: a\r\n\r\nx\r\n--b--",
        b"--b\r\n" + b"x" * 5000 + b"\r\n\r\n\r\n--b--",
        b"".join(part(f"f{number}") for number in range(FIELDS_MAX + 1)) + b"--b--",
    ],
    ids=range(11),
)
def test_a_broken_form_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_form(body, "b")


@pytest.mark.parametrize(
    "told", ["", "text/plain; boundary=b", "multipart/form-data", "multipart/form-data; boundary="]
)
def test_what_is_no_form_is_refused(told: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_boundary(told)


def test_an_empty_form_and_an_empty_field_are_forms() -> None:
    assert parse_form(b"--b--", "b") == {}
    assert parse_form(part(data=b"") + b"--b--", "b") == {"a": FormField(b"")}
