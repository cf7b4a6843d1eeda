"""The HTTPUpdate client's request and its reading of answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import TooLarge
from flota.protocols.http_update import (
    AnswerHead,
    ChipFamily,
    UpdateMode,
    UpdateOutcome,
    UpdateRequest,
    judge_answer,
    judge_body,
    judge_first_byte,
    pack_request,
    parse_answer_head,
    parse_mac,
    parse_request_headers,
    request_headers,
)
from flota.protocols.malformed import MalformedMessage

macs = (
    st.binary(min_size=6, max_size=6)
    .map(lambda raw: ":".join(f"{byte:02X}" for byte in raw))
    .filter(lambda mac: mac not in ("00:00:00:00:00:00", "FF:FF:FF:FF:FF:FF"))
)
sizes = st.integers(0, (1 << 32) - 1)
words = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=60)
requests = st.builds(
    UpdateRequest,
    chip=st.sampled_from(ChipFamily),
    sta_mac=st.none() | macs,
    ap_mac=st.none() | macs,
    free_space=st.none() | sizes,
    sketch_size=st.none() | sizes,
    sketch_sha256=st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex),
    sketch_md5=st.none() | st.binary(min_size=16, max_size=16).map(bytes.hex),
    chip_size=st.none() | sizes,
    sdk_version=st.none() | words,
    chip_id=st.none() | sizes,
    mode=st.sampled_from(UpdateMode),
    version=st.none() | words,
)


def encoded(headers: tuple[tuple[str, str], ...]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers]


@given(requests)
def test_what_a_device_packs_is_what_the_server_reads(request: UpdateRequest) -> None:
    assert parse_request_headers(encoded(request_headers(request))) == request


@given(requests, st.randoms())
def test_the_case_of_header_names_does_not_matter(request: UpdateRequest, rng: object) -> None:
    def scrambled(name: bytes) -> bytes:
        return bytes(b ^ 0x20 if chr(b).isalpha() and rng.random() < 0.5 else b for b in name)  # type: ignore[attr-defined]

    headers = [(scrambled(name), value) for name, value in encoded(request_headers(request))]
    assert parse_request_headers(headers) == request


header_names = st.sampled_from(
    [
        b"x-ESP32-STA-MAC",
        b"x-ESP32-free-space",
        b"x-ESP32-sketch-sha256",
        b"x-ESP32-version",
        b"x-ESP32-mode",
        b"x-ESP32-unheard-of",
        b"x-ESP8266-chip-id",
        b"accept",
    ]
)


@given(st.lists(st.tuples(header_names | st.binary(max_size=40), st.binary(max_size=2000)), max_size=40))
def test_any_headers_give_a_value_or_our_error(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        request = parse_request_headers(headers)
    except (MalformedMessage, TooLarge):
        return
    if request is not None:
        for text in (request.version, request.sdk_version):
            assert text is None or (text.isprintable() and len(text) <= 256)


def test_another_http_client_is_none() -> None:
    assert parse_request_headers([(b"user-agent", b"ESP32 HTTP Client/1.0"), (b"accept", b"*/*")]) is None


def test_the_request_is_http_1_0_and_closes() -> None:
    request = UpdateRequest(
        ChipFamily.ESP32, sta_mac="AA:BB:CC:DD:EE:FF", free_space=1310720, sketch_sha256="ab" * 32, version="1.0.0"
    )
    lines = pack_request(request, target="/update/pump?token=x", host="h:8080").decode().split("\r\n")
    assert lines[0] == "GET /update/pump?token=x HTTP/1.0"
    assert lines[-2:] == ["", ""]
    assert lines[1:-2] == [
        "Host: h:8080",
        "Connection: close",
        "User-Agent: ESP32-http-Update",
        "Cache-Control: no-cache",
        "x-ESP32-STA-MAC: AA:BB:CC:DD:EE:FF",
        "x-ESP32-free-space: 1310720",
        f"x-ESP32-sketch-sha256: {'AB' * 32}",
        "x-ESP32-mode: sketch",
        "x-ESP32-version: 1.0.0",
    ]


def test_a_line_break_cannot_be_smuggled_into_a_request() -> None:
    request = UpdateRequest(ChipFamily.ESP32)
    with pytest.raises(ValueError, match="line break"):
        pack_request(request, target="/", host="h\r\nx-evil: 1")


def test_a_header_twice_counts_once_if_it_is_the_same() -> None:
    once = (b"x-ESP32-STA-MAC", b"AA:BB:CC:DD:EE:FF")
    assert parse_request_headers([once, once])
    with pytest.raises(MalformedMessage, match="twice"):
        parse_request_headers([once, (b"X-esp32-sta-mac", b"AA:BB:CC:DD:EE:00")])


def test_headers_of_both_chips_are_refused() -> None:
    with pytest.raises(MalformedMessage, match="ESP8266"):
        parse_request_headers([(b"x-ESP32-mode", b"sketch"), (b"x-ESP8266-mode", b"sketch")])


def test_too_many_headers_are_refused() -> None:
    with pytest.raises(TooLarge):
        parse_request_headers([(b"x-ESP32-extra-%d" % number, b"1") for number in range(33)])


def test_headers_of_newer_cores_are_ignored() -> None:
    assert parse_request_headers([(b"x-ESP32-mode", b"sketch"), (b"x-ESP32-battery", b"full")])


@pytest.mark.parametrize("text", ["aa:bb:cc:dd:ee:ff", "Aa:bB:cc:DD:ee:FF"])
def test_a_mac_is_kept_upper_case(text: str) -> None:
    assert parse_mac(text) == "AA:BB:CC:DD:EE:FF"


@pytest.mark.parametrize(
    ("status", "length", "outcome"),
    [
        (200, 1000, UpdateOutcome.UPDATE),
        (200, 1001, UpdateOutcome.NOT_ENOUGH_SPACE),
        (200, 0, UpdateOutcome.SIZE_NOT_REPORTED),
        (200, None, UpdateOutcome.SIZE_NOT_REPORTED),
        (304, None, UpdateOutcome.NO_UPDATE),
        (403, 20, UpdateOutcome.FORBIDDEN),
        (404, 20, UpdateOutcome.FILE_NOT_FOUND),
        (206, 1000, UpdateOutcome.WRONG_HTTP_CODE),
        (301, None, UpdateOutcome.WRONG_HTTP_CODE),
        (302, None, UpdateOutcome.WRONG_HTTP_CODE),
        (400, 20, UpdateOutcome.WRONG_HTTP_CODE),
        (429, 20, UpdateOutcome.WRONG_HTTP_CODE),
        (500, 20, UpdateOutcome.WRONG_HTTP_CODE),
    ],
)
def test_the_device_reads_an_answer_as_its_client_does(status: int, length: int | None, outcome: UpdateOutcome) -> None:
    assert judge_answer(AnswerHead(status, length), free_space=1000) is outcome
    assert outcome.is_failure is (outcome not in (UpdateOutcome.UPDATE, UpdateOutcome.NO_UPDATE))


def test_the_body_has_to_start_like_an_app_image_and_match_the_md5() -> None:
    assert judge_first_byte(0xE9) is UpdateOutcome.UPDATE
    assert judge_first_byte(0x1F) is UpdateOutcome.VERIFY_HEADER_FAILED
    head = parse_answer_head(200, [("Content-Length", "12"), ("X-md5", "AB" * 16)])
    assert head == AnswerHead(200, 12, "ab" * 16)
    assert judge_body(head, md5="ab" * 16) is UpdateOutcome.UPDATE
    assert judge_body(head, md5="cd" * 16) is UpdateOutcome.FAULTY_MD5
    assert judge_body(AnswerHead(200, 12), md5="cd" * 16) is UpdateOutcome.UPDATE


@given(st.integers(100, 599), st.lists(st.tuples(st.text(max_size=20), st.text(max_size=40))))
def test_any_answer_is_read(status: int, headers: list[tuple[str, str]]) -> None:
    head = parse_answer_head(status, [*headers, ("content-length", headers[0][1] if headers else "x")])
    judge_answer(head, free_space=1 << 20)


@pytest.mark.parametrize("space", ["\x1c", "\x1f", "\x85", "\xa0", " ", "\t"])
def test_white_space_that_numbers_do_not_know_around_a_length_is_no_traceback(space: str) -> None:
    assert parse_answer_head(200, [("Content-Length", f"{space}900000{space}")]).content_length == 900000
