"""SBOMs: CycloneDX and SPDX as JSON are told apart and counted; everything else is a clear error."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import FlotaError, TooLarge
from flota.images.sbom import SBOM_MAX_BYTES, BadSbom, Sbom, SbomFormat, UnknownSbomFormat, parse_sbom
from tests.images.sbom_samples import cyclonedx, spdx_2, spdx_3


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (cyclonedx("lwip", "mbedtls"), Sbom(SbomFormat.CYCLONEDX, "1.6", 2)),
        (cyclonedx(version="1.2"), Sbom(SbomFormat.CYCLONEDX, "1.2", 0)),
        (spdx_2("lwip"), Sbom(SbomFormat.SPDX, "2.3", 1)),
        (spdx_2(version="2.2"), Sbom(SbomFormat.SPDX, "2.2", 0)),
        (spdx_3("lwip", "mbedtls"), Sbom(SbomFormat.SPDX, "3.0.1", 2)),
        (b"\xef\xbb\xbf" + cyclonedx("lwip"), Sbom(SbomFormat.CYCLONEDX, "1.6", 1)),
    ],
    ids=["CycloneDX", "empty CycloneDX", "SPDX 2.3", "empty SPDX 2.2", "SPDX 3", "with a byte-order mark"],
)
def test_format_version_and_components_are_told(data: bytes, expected: Sbom) -> None:
    assert parse_sbom(data) == expected


def test_components_inside_components_count_too() -> None:
    inner = {"name": "lwip", "components": [{"name": "tcp"}, {"name": "ip", "components": [{"name": "icmp"}]}]}
    document = {"bomFormat": "CycloneDX", "specVersion": "1.5", "components": [inner, {"name": "mbedtls"}]}
    assert parse_sbom(json.dumps(document).encode()).component_count == 5


def test_an_spdx_3_context_may_stand_in_a_list() -> None:
    document = json.loads(spdx_3("lwip"))
    document["@context"] = [document["@context"], {"own": "https://example.org/"}]
    assert parse_sbom(json.dumps(document).encode()).spec_version == "3.0.1"


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"", "cyclonedx-json"),
        (b"{}", "cyclonedx-json"),
        (b"[]", "cyclonedx-json"),
        (b"null", "cyclonedx-json"),
        (b'{"artifacts": [], "schema": {"version": "16"}}', "cyclonedx-json"),
        (b'{"bomFormat": "SomethingElse", "specVersion": "1.6"}', "cyclonedx-json"),
        (b'{"@context": "https://schema.org"}', "cyclonedx-json"),
        (b'<?xml version="1.0"?><bom xmlns="http://cyclonedx.org/schema/bom/1.6"/>', "convert it to JSON"),
        (b"SPDXVersion: SPDX-2.2\nDataLicense: CC0-1.0\n", "convert it to JSON"),
        (cyclonedx("a").decode().encode("utf-16"), "UTF-8"),
        (b"\xe9\x03\x02\x1f" + bytes(100), "cyclonedx-json"),
        (cyclonedx("a").replace(b"1.0", b"\xff"), "cyclonedx-json"),
        (cyclonedx("a")[:-1], "cyclonedx-json"),
    ],
)
def test_anything_else_is_refused_with_what_to_do(data: bytes, hint: str) -> None:
    with pytest.raises(UnknownSbomFormat, match="no SBOM that Flota reads") as caught:
        parse_sbom(data)
    assert hint in (caught.value.hint or "")


def test_a_file_that_says_it_is_both_is_refused() -> None:
    both = json.loads(cyclonedx("a")) | json.loads(spdx_2("b"))
    with pytest.raises(UnknownSbomFormat) as caught:
        parse_sbom(json.dumps(both).encode())
    assert caught.value.found == "both at once"


@pytest.mark.parametrize(
    "data",
    [
        b'{"bomFormat": "CycloneDX"}',
        b'{"bomFormat": "CycloneDX", "specVersion": 1.6}',
        b'{"bomFormat": "CycloneDX", "specVersion": "2026.1"}',
        b'{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": {}}',
        b'{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [{"type": "library"}]}',
        b'{"spdxVersion": "SPDX-1.2", "SPDXID": "SPDXRef-DOCUMENT"}',
        b'{"spdxVersion": "SPDX-2.3", "packages": []}',
        b'{"spdxVersion": "SPDX-2.3", "SPDXID": "SPDXRef-DOCUMENT", "packages": [{}]}',
        b'{"@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld", "@graph": []}',
        b'{"@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld", "@graph": [{"specVersion": "4.0"}]}',
    ],
)
def test_one_that_is_not_well_formed_is_an_error_that_says_so(data: bytes) -> None:
    with pytest.raises(BadSbom) as caught:
        parse_sbom(data)
    assert not isinstance(caught.value, UnknownSbomFormat)
    assert caught.value.found is not None


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"name":"","components":['], ids=["lists", "objects", "ours"])
def test_deep_nesting_is_an_error_and_no_crash(opening: bytes) -> None:
    start = b'{"bomFormat":"CycloneDX","specVersion":"1.6","components":['
    for data in (opening * 100_000, start + opening * 100_000):
        with pytest.raises(BadSbom, match=r"deep|Expected `object`"):
            parse_sbom(data)


def test_too_large_a_file_is_refused_before_it_is_read() -> None:
    with pytest.raises(TooLarge, match="at most 16777216 bytes"):
        parse_sbom(bytes(SBOM_MAX_BYTES + 1))


@given(st.binary(max_size=300))
def test_any_bytes_are_an_sbom_or_our_error(data: bytes) -> None:
    with contextlib.suppress(FlotaError):
        parse_sbom(data)


_MEMBERS = st.sampled_from(
    [
        "bomFormat",
        "specVersion",
        "spdxVersion",
        "SPDXID",
        "@context",
        "@graph",
        "components",
        "packages",
        "name",
        "type",
    ]
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(
        ["CycloneDX", "1.6", "SPDX-2.3", "3.0", "https://spdx.org/rdf/3.0/c", "software_Package", "\ud800"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_MEMBERS, inner, max_size=5),
    max_leaves=12,
)


@given(st.dictionaries(_MEMBERS, _VALUES, max_size=6))
def test_any_json_with_the_right_words_in_it_is_an_sbom_or_our_error(document: dict[str, object]) -> None:
    try:
        found = parse_sbom(json.dumps(document).encode())
    except FlotaError:
        return
    assert found.component_count >= 0
