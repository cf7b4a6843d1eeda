"""What a Blynk device says over MQTT and what it is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.blynk.cloud import (
    INFO_MAX_BYTES,
    OTA_TOPIC,
    FirmwareInfo,
    UpdateAnnouncement,
    fitted_announcement,
    pack_announcement,
    pack_redirect,
    parse_announcement,
    parse_build_moment,
    parse_info,
)
from flota.protocols.malformed import MalformedMessage
from flota.protocols.mqtt.packets import Publish, pack_packet

TEXT = st.text(st.characters(codec="utf-8"), max_size=80)


def test_a_report_of_the_vendors_firmware_is_read() -> None:
    payload = b'{"tmpl":"TMPL1","ver":"1.2.3","build":"Nov 16 2023 20:35:55","type":"TMPL2","rxbuff":1024,"new":[1]}'
    assert parse_info(payload) == FirmwareInfo("1.2.3", "Nov 16 2023 20:35:55", "TMPL2", "TMPL1", 1024)


def test_what_a_device_does_not_say_is_empty_and_control_characters_are_dropped() -> None:
    assert parse_info(b'{"ver":"1\\u0000\\u001b[31m"}') == FirmwareInfo("1[31m")


def test_a_report_that_is_too_long_is_not_even_parsed() -> None:
    with pytest.raises(MalformedMessage) as caught:
        parse_info(b" " * (INFO_MAX_BYTES + 1))
    assert caught.value.found == INFO_MAX_BYTES + 1


@given(TEXT, st.integers(0, 1 << 40), *[st.none() | TEXT] * 3)
def test_an_announcement_is_read_as_it_was_packed(
    url: str, size: int, fw_type: str | None, version: str | None, build: str | None
) -> None:
    told = UpdateAnnouncement(url, size, fw_type, version, build)
    assert parse_announcement(pack_announcement(told)) == told


def test_what_no_tag_says_is_left_out_of_an_announcement() -> None:
    assert json.loads(pack_announcement(UpdateAnnouncement("http://a/b", 9))) == {"url": "http://a/b", "size": 9}


@given(st.binary(max_size=300))
def test_any_bytes_give_a_report_or_our_error(payload: bytes) -> None:
    try:
        info = parse_info(payload)
    except MalformedMessage:
        return
    assert all(text.isprintable() for text in (info.version, info.build, info.fw_type, info.template))


def test_build_times_compare_whichever_way_the_day_is_padded() -> None:
    assert parse_build_moment("Jan  5 2024 10:00:00") == parse_build_moment("Jan 05 2024 10:00:00")
    earlier, later = parse_build_moment("Nov 16 2023 20:35:55"), parse_build_moment("Jan  5 2024 10:00:00")
    assert earlier is not None
    assert later is not None
    assert earlier < later
    assert parse_build_moment("2024-01-05") is None


@given(st.integers(0, 600), TEXT, TEXT, TEXT)
def test_what_is_announced_never_exceeds_the_devices_buffer_and_is_never_less_than_it_takes(
    room: int, fw_type: str, version: str, build: str
) -> None:
    whole = UpdateAnnouncement("http://flota/f.bin?token=1.2", 20_000, fw_type, version, build)
    fitted = fitted_announcement(whole, room)
    packets = {update: packet_bytes(update) for update in leaving_out(whole)}
    if room == 0 or packets[whole] <= room:
        assert fitted == whole
    elif fitted is None:
        assert min(packets.values()) > room
    else:
        assert packets[fitted] <= room
        assert parse_announcement(pack_announcement(fitted)) == fitted


def leaving_out(whole: UpdateAnnouncement) -> list[UpdateAnnouncement]:
    without_build = replace(whole, build=None)
    without_type = replace(without_build, fw_type=None)
    return [whole, without_build, without_type, replace(without_type, version=None)]


def packet_bytes(update: UpdateAnnouncement) -> int:
    return len(pack_packet(Publish(OTA_TOPIC, pack_announcement(update))))


def test_a_device_that_does_not_say_how_large_its_buffer_is_gets_all() -> None:
    whole = UpdateAnnouncement("http://flota/" + "x" * 5000, 20_000, "T", "1", "now")
    assert fitted_announcement(whole, None) == whole
    assert fitted_announcement(whole, 4096) is None


def test_a_device_is_redirected_to_host_and_port() -> None:
    assert pack_redirect("updates.example.net", 8883) == b"updates.example.net:8883"
    assert pack_redirect("2001:db8::1", 1883) == b"[2001:db8::1]:1883"
