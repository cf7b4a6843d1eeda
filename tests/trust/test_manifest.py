"""The manifest: one value, one spelling, and no input that leaves the parser as anything but a value or our error."""

import contextlib
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flota.errors import FlotaError, InvalidInput
from flota.trust import canonical_json
from flota.trust.canonical_json import (
    BadJson,
    DuplicateMember,
    JsonTooDeep,
    JsonTooLarge,
    MissingMember,
    NotCanonical,
    NumberNotAllowed,
    UnknownMember,
    WrongJsonType,
)
from flota.trust.manifest import (
    COMPONENTS_MAX,
    MANIFEST_MAX_BYTES,
    SEQUENCE_MAX,
    BadManifest,
    Manifest,
    ManifestComponent,
    pack_manifest,
    parse_manifest,
)
from tests.trust.releases import EXPIRES, ISSUED, SHA256, manifest, manifests

PACKED = (
    b'{"board":"esp32-c3","components":[{"format":"esp-app","name":"app","sha256":"' + SHA256.encode() + b'",'
    b'"size":1048576}],"device_type":"pump","expires_at":"2027-03-01T12:00:00Z","hardware_revision":"B",'
    b'"issued_at":"2026-03-01T12:00:00Z","kind":"flota-release","schema":1,"sequence":7,"version":"2.0.0"}'
)


def test_the_packed_form_is_pinned_byte_for_byte() -> None:
    assert pack_manifest(manifest()) == PACKED
    assert parse_manifest(PACKED) == manifest()


@given(manifests())
def test_every_manifest_survives_packing_and_parsing(value: Manifest) -> None:
    try:
        packed = pack_manifest(value)
    except BadManifest:
        return  # more than 16 KiB, which only packing can tell
    assert parse_manifest(packed) == value
    assert pack_manifest(parse_manifest(packed)) == packed


@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_manifest_or_our_error(data: bytes) -> None:
    with contextlib.suppress(FlotaError):
        assert pack_manifest(parse_manifest(data)) == data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=10), children, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(sorted(json.loads(PACKED))), json_values)
@settings(max_examples=300)
def test_any_json_value_in_any_field_is_a_manifest_or_our_error(field: str, value: object) -> None:
    document = json.loads(PACKED)
    document[field] = value
    data = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )
    try:
        parsed = parse_manifest(data)
    except InvalidInput:
        return
    assert pack_manifest(parsed) == data


@given(st.integers(0, len(PACKED) - 1), st.integers(0, 255))
def test_a_changed_byte_gives_another_manifest_or_an_error_but_never_the_same_one(position: int, byte: int) -> None:
    data = PACKED[:position] + bytes([byte]) + PACKED[position + 1 :]
    if data != PACKED:
        with contextlib.suppress(InvalidInput):
            assert parse_manifest(data) != manifest()


def test_a_manifest_cut_off_at_every_byte_is_refused() -> None:
    for length in range(len(PACKED)):
        with pytest.raises(BadJson):
            parse_manifest(PACKED[:length])


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (PACKED.replace(b'"schema":1', b'"schema":1,"schema":1'), DuplicateMember),
        (PACKED.replace(b'"name":"app"', b'"name":"app","name":"app"'), DuplicateMember),
        (PACKED.replace(b'"schema":1', b'"schema":1,"url":"http://x"'), UnknownMember),
        (PACKED.replace(b'"size":1048576', b'"size":1048576,"address":65536'), UnknownMember),
        (PACKED.replace(b'"sequence":7,', b""), MissingMember),
        (PACKED.replace(b'"expires_at":"2027-03-01T12:00:00Z",', b""), MissingMember),
        (PACKED.replace(b'"sequence":7', b'"sequence":"7"'), WrongJsonType),
        (PACKED.replace(b'"sequence":7', b'"sequence":true'), WrongJsonType),
        (PACKED.replace(b'"sequence":7', b'"sequence":null'), WrongJsonType),
        (PACKED.replace(b'"version":"2.0.0"', b'"version":2'), WrongJsonType),
        (b"[]", WrongJsonType),
        (b"7", WrongJsonType),
        (PACKED.replace(b'"sequence":7', b'"sequence":7.0'), NumberNotAllowed),
        (PACKED.replace(b'"sequence":7', b'"sequence":7e0'), NumberNotAllowed),
        (PACKED.replace(b'"sequence":7', b'"sequence":NaN'), NumberNotAllowed),
        (PACKED.replace(b'"sequence":7', b'"sequence":-Infinity'), NumberNotAllowed),
        (PACKED.replace(b'"sequence":7', b'"sequence":9007199254740992'), NumberNotAllowed),
        (PACKED.replace(b'"sequence":7', b'"sequence":' + b"9" * 8000), NumberNotAllowed),
        (PACKED.replace(b'"sequence":7', b'"sequence":0'), BadManifest),
        (PACKED.replace(b'"sequence":7', b'"sequence":-7'), BadManifest),
        (PACKED.replace(b'"sequence":7', b'"sequence":-0'), BadManifest),
        (PACKED.replace(b"1048576", b"0"), BadManifest),
        (PACKED.replace(b"flota-release", b"flota-trust"), BadManifest),
        (PACKED.replace(b'"schema":1', b'"schema":2'), BadManifest),
        (PACKED.replace(SHA256.encode(), SHA256.upper().encode()), BadManifest),
        (PACKED.replace(b"2026-03-01T12", b"2026-03-01 12"), BadManifest),
        (PACKED.replace(b"2026-03-01", b"2026-02-30"), BadManifest),
        (PACKED.replace(b"2026-03-01", b"2028-03-01"), BadManifest),
        (PACKED.replace(b'"pump"', b'""'), BadManifest),
        (PACKED.replace(b'"pump"', b'"pu\\u001bmp"'), BadManifest),
        (PACKED.replace(b'"2.0.0"', b'" 2.0.0"'), BadManifest),
        (PACKED.replace(b'"2.0.0"', b'"' + b"2" * 129 + b'"'), InvalidInput),
        (PACKED.replace(b'"pump"', b'"\\u0070ump"'), NotCanonical),
        (PACKED.replace(b",", b", "), NotCanonical),
        (PACKED + b"\n", NotCanonical),
        (b'{"version":"2.0.0",' + PACKED[1:-19] + b"}", NotCanonical),
        (PACKED.replace(b'"pump"', b'"\\ud800"'), InvalidInput),
        (PACKED + b"x", BadJson),
        (b"\xef\xbb\xbf" + PACKED, BadJson),
        (PACKED.replace(b"pump", b"p\xffmp"), BadJson),
        (b"", BadJson),
        (b"[" * 4, JsonTooDeep),
        (b"[" * MANIFEST_MAX_BYTES, JsonTooDeep),
        (b'{"a":' * 3000, JsonTooDeep),
        (b" " * (MANIFEST_MAX_BYTES + 1), JsonTooLarge),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_manifest_that_is_not_exactly_right_is_refused(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_manifest(data)


def test_brackets_inside_text_are_not_depth() -> None:
    value = manifest(device_type='[[[["{{{{\\')
    assert parse_manifest(pack_manifest(value)) == value


def test_times_are_kept_in_whole_seconds_of_utc() -> None:
    berlin = timezone(timedelta(hours=1))
    value = manifest(issued_at=datetime(2026, 3, 1, 13, 0, 0, 999999, tzinfo=berlin))
    assert value.issued_at == ISSUED
    assert value.issued_at.tzinfo is UTC


@pytest.mark.parametrize(
    "changes",
    [
        {"issued_at": ISSUED.replace(tzinfo=None)},
        {"issued_at": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))},
        {"expires_at": ISSUED},
        {"sequence": 0},
        {"sequence": SEQUENCE_MAX + 1},
        {"components": ()},
        {"components": (ManifestComponent("app", "esp-app", 1, SHA256),) * 2},
        {"components": tuple(ManifestComponent(f"c{i}", "raw", 1, SHA256) for i in range(COMPONENTS_MAX + 1))},
        {"board": "esp\n32"},
        {"board": "b" * 129},
        {"hardware_revision": ""},
    ],
)
def test_a_manifest_out_of_range_cannot_be_made(changes: dict[str, object]) -> None:
    with pytest.raises(BadManifest):
        manifest(**changes)


def test_sixteen_components_with_the_longest_names_fit_the_limit() -> None:
    parts = tuple(
        ManifestComponent(f"{index:02}" + "n" * 126, "f" * 64, 2**40, SHA256) for index in range(COMPONENTS_MAX)
    )
    longest = "x" * 128
    value = manifest(
        components=parts, device_type=longest, board=longest, hardware_revision=longest, version=longest,
        sequence=SEQUENCE_MAX, expires_at=EXPIRES,
    )  # fmt: skip
    assert parse_manifest(pack_manifest(value)) == value


def test_canonical_json_sorts_members_and_keeps_letters() -> None:
    assert (
        canonical_json.pack_canonical({"b": [1, None, True], "a": 'ä"\\'})
        == '{"a":"ä\\"\\\\","b":[1,null,true]}'.encode()
    )
