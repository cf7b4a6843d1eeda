"""What a micro-RDK takes as a configuration, where it goes for a URL, and how it reads an answer: every row."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import FlotaError
from flota.protocols.viam import (
    ATTEMPTS_MAX,
    ConfigError,
    Failure,
    Proceed,
    Redirect,
    Refusal,
    ServiceConfig,
    UnusableUrl,
    check_offered_url,
    find_service_config,
    header_is_read_from,
    judge_body,
    judge_response,
    may_try_again,
    pack_service_config,
    parse_download_url,
    parse_service_config,
    update_needed,
    with_service_config,
)

URL = "http://192.168.1.5:3001/fw.bin?token=abc"
SLOT = 0x377000


def service(**attributes: object) -> dict[str, Any]:
    return {
        "name": "OTA",
        "namespace": "rdk",
        "type": "generic",
        "model": "ota_service",
        "attributes": {"url": URL, "version": "v2"} | attributes,
    }


# configurations


def test_the_configuration_is_the_one_of_the_guide_key_by_key() -> None:
    packed = pack_service_config(ServiceConfig(url=URL, version="v2"))
    assert list(packed.items()) == list(service().items())


@given(version=st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()), name=st.text(max_size=20))
def test_what_is_packed_is_parsed_again(version: str, name: str) -> None:
    config = ServiceConfig(url=URL, version=version, name=name)
    assert parse_service_config(pack_service_config(config)) == config


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "attributes", "url", "version", "name", "services"]), inner)
    ),
)


@given(value=_ANYTHING)
def test_anything_is_a_configuration_or_an_error_of_ours(value: object) -> None:
    for read in (parse_service_config, find_service_config):
        with contextlib.suppress(FlotaError):
            read(value)


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        (None, "no attributes"),
        ([], "no attributes"),
        ({"version": "v2"}, "`url` is missing"),
        ({"url": URL}, "`version` is missing"),
        ({"url": 7, "version": "v2"}, "`url` is no text"),
        ({"url": URL, "version": 2.0}, "`version` is no text"),
        ({"url": URL, "version": None}, "`version` is no text"),
        ({"url": URL, "version": ["v2"]}, "`version` is no text"),
        ({"url": URL, "version": "x" * 129}, "too long"),
        ({"url": URL, "version": "ä" * 65}, "too long"),
    ],
)
def test_a_configuration_with_wrong_attributes_is_refused(attributes: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_service_config(service() | {"attributes": attributes})


def test_128_bytes_of_version_are_taken_129_are_not_offered_and_an_empty_one_is_read_but_not_offered() -> None:
    assert parse_service_config(service(version="ä" * 64)).version == "ä" * 64
    with pytest.raises(ConfigError, match="129 bytes"):
        pack_service_config(ServiceConfig(URL, "x" * 129))
    assert parse_service_config(service(version="")).version == ""
    with pytest.raises(ConfigError, match="empty"):
        pack_service_config(ServiceConfig(URL, ""))


def test_a_device_takes_the_first_update_service_whatever_its_name_and_ignores_the_rest() -> None:
    services = [
        {"model": "rdk:builtin:camera", "attributes": 3},
        "not even an object",
        {"model": "rdk:builtin:ota_service", "name": "mine", "attributes": {"url": URL, "version": "a", "more": 1}},
        {"model": "ota_service", "namespace": "rdk", "attributes": {}},
    ]
    assert find_service_config(services) == ServiceConfig(URL, "a", "mine")
    assert find_service_config([{"model": "ota_service", "namespace": "acme"}]) is None
    assert find_service_config(None) is None
    with pytest.raises(ConfigError, match="no array"):
        find_service_config({"services": []})


def test_an_update_is_needed_when_the_texts_differ_in_whatever_direction() -> None:
    assert update_needed("v2", "v1")
    assert update_needed("v1", "v2")
    assert not update_needed("v2", "v2")
    assert update_needed(None, "v1")
    assert not update_needed(None, "")


def test_setting_the_service_changes_its_two_attributes_and_nothing_else() -> None:
    entry = pack_service_config(ServiceConfig(URL, "v3"))
    old = {"name": "mine", "model": "rdk:builtin:ota_service", "attributes": {"url": "x", "version": "y", "extra": 1}}
    machine = {"components": [{"name": "c"}], "services": [{"model": "other"}, old]}
    changed = with_service_config(machine, entry)
    assert changed == {
        "components": [{"name": "c"}],
        "services": [{"model": "other"}, old | {"attributes": {"url": URL, "version": "v3", "extra": 1}}],
    }
    assert machine["services"][1] is old
    assert with_service_config({}, entry) == {"services": [entry]}
    for broken in ({"services": {}}, {"services": [{"model": "ota_service", "attributes": "text"}]}):
        with pytest.raises(ConfigError):
            with_service_config(broken, entry)


# URLs


@pytest.mark.parametrize(
    ("url", "authority", "target", "uses_tls"),
    [
        ("http://192.168.1.5:3001/fw.bin", "192.168.1.5:3001", "/fw.bin", False),
        ("http://host/x", "host:443", "/x", False),
        ("https://host/x?token=a.b", "host:443", "/x?token=a.b", True),
        ("https://host:8443", "host:8443", "/", True),
        ("ftp://host/x", "host:443", "/x", True),
        ("http://[fd00::1]:80/x", "[fd00::1]:80", "/x", False),
        ("HTTP://host:80/x", "host:80", "/x", False),
    ],
)
def test_where_a_device_goes(url: str, authority: str, target: str, uses_tls: bool) -> None:
    address = parse_download_url(url)
    assert (address.authority, address.target, address.uses_tls) == (authority, target, uses_tls)


@pytest.mark.parametrize("url", ["/fw.bin", "fw.bin", "", "http:///x", "//host/x", "http://h:99999/x", "http://h:0/x"])
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(UnusableUrl):
        parse_download_url(url)


def test_user_information_is_refused_and_not_repeated() -> None:
    with pytest.raises(UnusableUrl, match="user information") as caught:
        parse_download_url("https://jane:secret@host:443/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://host/x",
        "https://host/x",
        "ftp://host:21/x",
        "http://host:80/x#part",
        "http://host:80/a b",
        "http://host:80/ä",
        "http://host:80/" + "x" * 2048,
        "http://host:/x",
    ],
)
def test_a_url_that_would_surprise_is_never_offered(url: str) -> None:
    with pytest.raises(UnusableUrl):
        check_offered_url(url)


# answers


@pytest.mark.parametrize(
    ("status", "headers", "reading"),
    [
        (200, {"content-length": "5000"}, Proceed(5000)),
        (206, {"Content-Length": "5000"}, Proceed(5000)),
        (204, {}, Refusal(Failure.NO_LENGTH)),
        (200, {}, Refusal(Failure.NO_LENGTH)),
        (200, {"content-length": "many"}, Refusal(Failure.NO_LENGTH, "'many'")),
        (200, {"content-length": "-5"}, Refusal(Failure.NO_LENGTH, "'-5'")),
        (200, {"content-length": "9" * 20}, Refusal(Failure.NO_LENGTH, repr("9" * 20))),
        (200, {"content-length": str(SLOT)}, Proceed(SLOT)),
        (200, {"content-length": str(SLOT + 1)}, Refusal(Failure.TOO_LARGE, f"{SLOT + 1} of {SLOT} bytes")),
        (200, {"content-length": "288"}, Proceed(288)),
        (200, {"content-length": "287"}, Refusal(Failure.TOO_SMALL, "287 of 288 bytes")),
        (200, {"content-length": "0"}, Refusal(Failure.TOO_SMALL, "0 of 288 bytes")),
        (302, {}, Refusal(Failure.NO_LOCATION)),
        (304, {}, Refusal(Failure.NO_LOCATION)),
        (302, {"location": "/other.bin"}, Refusal(Failure.RELATIVE_LOCATION, "'/other.bin'")),
        (302, {"location": "other.bin"}, Refusal(Failure.RELATIVE_LOCATION, "'other.bin'")),
        (302, {"location": "https://a:b@h/x"}, Refusal(Failure.RELATIVE_LOCATION, "'https://a:b@h/x'")),
        (307, {"location": URL}, Redirect(parse_download_url(URL), URL)),
        (302, {"location": "http://h/x"}, Redirect(parse_download_url("http://h:443/x"), "http://h/x")),
        (401, {}, Refusal(Failure.STATUS, "401")),
        (404, {"content-length": "5000"}, Refusal(Failure.STATUS, "404")),
        (410, {}, Refusal(Failure.STATUS, "410")),
        (429, {"retry-after": "60"}, Refusal(Failure.STATUS, "429")),
        (503, {}, Refusal(Failure.STATUS, "503")),
        (101, {}, Refusal(Failure.STATUS, "101")),
    ],
)
def test_how_a_device_reads_an_answer(status: int, headers: dict[str, str], reading: object) -> None:
    assert judge_response(status, headers.items(), slot_size=SLOT) == reading


def test_of_two_lengths_the_first_counts() -> None:
    headers = [("content-length", "400"), ("content-length", "500")]
    assert judge_response(200, headers, slot_size=SLOT) == Proceed(400)


@given(status=st.integers(0, 999), name=st.sampled_from(["content-length", "location"]), value=st.text(max_size=40))
def test_any_answer_is_read_without_an_error(status: int, name: str, value: str) -> None:
    reading = judge_response(status, [(name, value)], slot_size=SLOT)
    assert isinstance(reading, Proceed | Redirect | Refusal)
    assert not isinstance(reading, Proceed) or status // 100 == 2


@pytest.mark.parametrize(
    ("received", "ended", "failure"),
    [
        (0, False, None),
        (4999, False, None),
        (5000, False, None),
        (5000, True, None),
        (4999, True, Failure.CUT),
        (0, True, Failure.CUT),
        (5001, False, Failure.OVERFLOW),
        (5001, True, Failure.OVERFLOW),
    ],
)
def test_a_body_of_another_length_than_announced_fails(received: int, ended: bool, failure: Failure | None) -> None:
    assert judge_body(received, 5000, ended=ended) is failure


def test_a_small_first_frame_makes_the_second_one_be_taken_for_the_header() -> None:
    assert header_is_read_from(1, 288)
    assert not header_is_read_from(2, 288)
    assert not header_is_read_from(1, 287)
    assert header_is_read_from(2, 287)


def test_five_connections_are_made_in_a_run_so_at_most_four_redirects() -> None:
    made = 0
    while may_try_again(made):
        made += 1
    assert made == ATTEMPTS_MAX == 5
