"""Announcements of Arduino boards: read without trust, and never is the announced 5000 taken for an upload port."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import InvalidInput
from flota.protocols.arduino_mdns import (
    Announcement,
    DiscoveredBoard,
    PortBasis,
    PushKind,
    ameba_txt,
    board_of,
    esp_txt,
    mac_in,
    pack_txt,
    parse_txt,
    pluggable_port,
    preferred_address,
)


def announced(txt: dict[str, str], *, port: int = 5000, host: str = "ameba.local") -> Announcement:
    return Announcement("MyAmeba", host, port, ("192.168.1.7",), txt)


def board(txt: dict[str, str], *, port: int = 5000, host: str = "ameba.local") -> DiscoveredBoard:
    found = board_of(announced(txt, port=port, host=host))
    assert found is not None
    return found


def test_the_stock_sketchs_record_has_the_vendors_lengths() -> None:
    record = pack_txt(ameba_txt())
    assert [len(f"{key}={value}") for key, value in ameba_txt()] == [20, 14, 12, 13]
    assert len(record) == 63
    assert list(parse_txt(record).items()) == list(ameba_txt())


def test_a_stock_ameba_board_is_pushed_on_the_profiles_port() -> None:
    found = board(dict(ameba_txt()))
    assert (found.kind, found.upload_port, found.port_basis) == (PushKind.AMEBA, 8082, PortBasis.PROFILE)
    assert found.announced_port == 5000
    guide = board_of(announced(dict(ameba_txt())), ameba_port=8020)
    assert guide is not None
    assert guide.upload_port == 8020


def test_an_ameba_board_that_announces_its_real_port_is_pushed_there() -> None:
    found = board(dict(ameba_txt("ameba_rtl8720dn")), port=8082)
    assert (found.upload_port, found.port_basis) == (8082, PortBasis.ANNOUNCED)


@pytest.mark.parametrize(("password", "needs"), [(True, True), (False, False)])
def test_an_esp_board_is_told_by_its_port_or_name(password: bool, needs: bool) -> None:
    found = board(dict(esp_txt("esp32dev", password=password)), port=3232, host="esp32-a1b2c3d4e5f6.local")
    assert (found.kind, found.upload_port, found.needs_password) == (PushKind.ESPOTA, 3232, needs)
    assert found.mac == "A1:B2:C3:D4:E5:F6"
    assert board(dict(esp_txt("d1_mini", password=False)), port=8266, host="x.local").kind is PushKind.ESPOTA
    assert board(dict(esp_txt("d1", password=False)), port=9999, host="esp8266-c0ffee.local").kind is PushKind.ESPOTA


def test_others_are_shown_and_not_guessed() -> None:
    yun = board({"board": "yun", "distro_version": "0.1"}, port=80)
    assert (yun.kind, yun.upload_port, yun.port_basis) == (PushKind.SSH, None, PortBasis.UNKNOWN)
    unknown = board({}, port=80)
    assert (unknown.kind, unknown.board) == (PushKind.UNKNOWN, None)
    assert board_of(Announcement("x", "x.local", 5000, (), dict(ameba_txt()))) is None


def test_text_that_is_not_utf8_is_cleaned_and_harms_nothing() -> None:
    record = b"\x0aboard=\xff\xfe\x1b[" + b"\x05board" + b"\x00" + b"\x03=no" + b"\x0dssh_upload=no"
    found = parse_txt(record)
    assert found["ssh_upload"] == "no"
    assert "\x1b" not in found["board"]
    assert found["board"].isprintable()


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_txt_record(record: bytes) -> None:
    found = parse_txt(record)
    assert len(found) <= 64
    assert all(text.isprintable() for pair in found.items() for text in pair)
    board_of(announced(found))


keys = st.from_regex(r"[a-z_]{1,20}", fullmatch=True)
values = st.from_regex(r"[A-Za-z0-9_.=-]{0,60}", fullmatch=True)


@given(st.dictionaries(keys, values, max_size=10))
def test_what_is_packed_is_read_again(pairs: dict[str, str]) -> None:
    assert parse_txt(pack_txt(pairs.items())) == pairs


def test_a_txt_string_has_its_limit() -> None:
    for pair in (("", "x"), ("a=b", "x"), ("a", "x" * 254)):
        with pytest.raises(InvalidInput):
            pack_txt([pair])


@pytest.mark.parametrize(
    ("addresses", "chosen"),
    [
        (("fe80::1%eth0", "2001:db8::1", "10.0.0.3"), "10.0.0.3"),
        (("fe80::1%eth0", "2001:db8::1"), "2001:db8::1"),
        (("169.254.1.1", "2001:db8::1"), "2001:db8::1"),
        (("nonsense", "fe80::1"), "fe80::1"),
        (("nonsense",), None),
    ],
)
def test_the_address_to_connect_to(addresses: tuple[str, ...], chosen: str | None) -> None:
    assert preferred_address(addresses) == chosen


@pytest.mark.parametrize(
    ("name", "mac"),
    [
        ("esp32-a1b2c3d4e5f6.local", "A1:B2:C3:D4:E5:F6"),
        ("esp32-a1b2c3d4e5.local", None),
        ("esp32-a1b2c3d4e5zz", None),
        ("a1b2c3d4e5f6", None),
        ("", None),
    ],
)
def test_the_mac_in_a_host_name(name: str, mac: str | None) -> None:
    assert mac_in(name) == mac


def test_the_port_as_arduinos_tools_read_it() -> None:
    txt = dict(ameba_txt())
    assert pluggable_port(board(txt, host="ameba.local"), txt) == {
        "address": "192.168.1.7",
        "label": "ameba at 192.168.1.7",
        "protocol": "network",
        "protocolLabel": "Network Port",
        "properties": {
            "hostname": "ameba.local.",
            "port": "8082",
            "board": "ameba_rtl8721d",
            "auth_upload": "no",
            "tcp_check": "no",
            "ssh_upload": "no",
            ".": "ameba_rtl8721d",
        },
    }
