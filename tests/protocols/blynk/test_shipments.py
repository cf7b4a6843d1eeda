"""The JSON of Blynk's upload and shipment API: what is read, what is refused by name, what is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import FlotaError, InvalidInput, Refused
from flota.fleet.maintenance_windows import parse_schedule
from flota.protocols.blynk.shipments import (
    ANY_TIME,
    ATTEMPT_PERIOD_DEFAULT_MS,
    ORDER_MEMBERS,
    SHIPMENT_TIMES,
    ShipmentOrder,
    UploadedFirmware,
    firmware_info,
    parse_shipment_order,
    refuse_other_info,
)

SHA256 = "ab" * 32
LEAST = {"productId": 7, "title": "spring", "pathToFirmware": f"/blynk/files/{SHA256}/mill.bin"}


def parse(**members: object) -> ShipmentOrder:
    return parse_shipment_order(json.dumps({**LEAST, **members}).encode())


def test_the_least_that_is_asked_for_has_the_vendors_defaults() -> None:
    assert parse() == ShipmentOrder("spring", 7, SHA256, "mill.bin")
    order = parse()
    assert (order.attempts, order.attempt_period_ms, order.time) == (3, ATTEMPT_PERIOD_DEFAULT_MS, ANY_TIME)
    assert (order.compare, order.device_ids, order.skip_type_check) == ("BUILD_DATE_DIFFERS", (), False)


def test_everything_that_the_vendors_client_sends_is_read() -> None:
    order = parse(
        orgId=1,
        firmwareOriginalFileName="firmware v2.bin",
        firmwareInfo={"version": "1.2.4"},
        deviceIds=[3, 4],
        shipmentTime="EVENING",
        host="updates.example.net",
        skipFwTypeCheck=True,
        compareField="NO_CONDITION",
        attemptsLimit=5,
        attemptResetPeriodMs=3_600_000,
        isSecure=False,
        isCritical=True,
        sendPush=False,
    )
    assert order == ShipmentOrder(
        title="spring",
        product_id=7,
        sha256=SHA256,
        file_name="firmware v2.bin",
        device_ids=(3, 4),
        compare="NO_CONDITION",
        skip_type_check=True,
        attempts=5,
        attempt_period_ms=3_600_000,
        time="EVENING",
        is_critical=True,
        is_secure=False,
        host="updates.example.net",
        organisation=1,
        firmware_info={"version": "1.2.4"},
    )
    assert parse(**dict.fromkeys(ORDER_MEMBERS - LEAST.keys())) == parse(), "null is as good as nothing"


@pytest.mark.parametrize(("time", "hour"), [("NIGHT", 0), ("MORNING", 6), ("AFTERNOON", 12), ("EVENING", 18)])
def test_a_time_of_day_is_a_quarter_of_it_by_each_devices_own_clock(time: str, hour: int) -> None:
    window = parse_schedule(SHIPMENT_TIMES[time])
    assert (window.opens_at.hour, window.duration_minutes, len(window.weekdays)) == (hour, 360, 7)
    assert window.is_local


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ({"attemptsLimit": 0}, "attemptsLimit"),
        ({"attemptsLimit": 1001}, "attemptsLimit"),
        ({"attemptsLimit": "3"}, "attemptsLimit"),
        ({"attemptResetPeriodMs": 999}, "attemptResetPeriodMs"),
        ({"attemptResetPeriodMs": 366 * 86_400_000}, "attemptResetPeriodMs"),
        ({"attemptResetPeriodMs": -1}, "attemptResetPeriodMs"),
        ({"attemptResetPeriodMs": 1 << 70}, "attemptResetPeriodMs"),
        ({"attemptLimit": 3}, "attemptLimit"),
        ({"status": "RUN"}, "status"),
        ({"shipmentTime": "NOON"}, "shipmentTime"),
        ({"shipmentTime": 5}, "shipmentTime"),
        ({"compareField": "WHATEVER"}, "compareField"),
        ({"compareField": 1}, "compareField"),
        ({"productId": True}, "productId"),
        ({"productId": None}, "productId"),
        ({"productId": 1 << 31}, "productId"),
        ({"productId": -1}, "productId"),
        ({"productId": 1.5}, "productId"),
        ({"orgId": "1"}, "orgId"),
        ({"deviceIds": "all"}, "deviceIds"),
        ({"deviceIds": {"1": 1}}, "deviceIds"),
        ({"deviceIds": [1 << 31]}, "deviceIds"),
        ({"deviceIds": [True]}, "deviceIds"),
        ({"deviceIds": [None]}, "deviceIds"),
        ({"deviceIds": [1] * 200_001}, "deviceIds"),
        ({"title": None}, "title"),
        ({"title": "a\nb"}, "title"),
        ({"title": 7}, "title"),
        ({"skipFwTypeCheck": "yes"}, "skipFwTypeCheck"),
        ({"isCritical": 1}, "isCritical"),
        ({"isSecure": "no"}, "isSecure"),
        ({"host": 5}, "host"),
        ({"firmwareInfo": []}, "firmwareInfo"),
        ({"pathToFirmware": None}, "pathToFirmware"),
        ({"pathToFirmware": "/etc/passwd"}, "pathToFirmware"),
        ({"pathToFirmware": "/blynk/files/" + "A" * 64 + "/x.bin"}, "pathToFirmware"),
        ({"pathToFirmware": "/blynk/files/" + "a" * 63 + "/x.bin"}, "pathToFirmware"),
        ({"pathToFirmware": f"/blynk/files/{SHA256}/"}, "pathToFirmware"),
        ({"firmwareOriginalFileName": "\x07"}, "firmwareOriginalFileName"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_what_is_no_order_is_refused_by_the_name_of_the_member(members: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(**members)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("members", "word"), [({"compareField": "LATEST_BLYNK_VERSION"}, "library"), ({"sendPush": True}, "notified")]
)
def test_what_cannot_be_had_here_is_refused_and_never_passed_over(members: dict[str, Any], word: str) -> None:
    with pytest.raises(Refused, match=word):
        parse(**members)


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers(), max_size=3)
)


@given(st.dictionaries(st.sampled_from(sorted(ORDER_MEMBERS)) | st.text(max_size=8), VALUES, max_size=8))
def test_any_object_is_an_order_or_one_of_our_errors(members: dict[str, Any]) -> None:
    try:
        order = parse(**members)
    except FlotaError:
        return
    assert 1 <= order.attempts <= 1000
    assert order.attempt_period_ms == 0 or order.attempt_period_ms >= 1000
    assert all(0 <= number < 1 << 31 for number in (order.product_id, *order.device_ids))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_order_or_one_of_our_errors(body: bytes) -> None:
    with pytest.raises(FlotaError):
        parse_shipment_order(body)


STORED = UploadedFirmware(SHA256, "0d" * 16, 5000, {"ncp": "0.6.3", "dev": "ESP32", "blynk": "0.6.4"})


def test_what_is_said_of_an_ncps_firmware_is_its_own_version() -> None:
    info = firmware_info(STORED)
    assert info is not None
    assert (info["type"], info["version"], info["boardType"], info["blynkVersion"]) == (
        "NCP",
        "0.6.3",
        "ESP32",
        "0.6.4",
    )
    assert (info["fwType"], info["buildDate"], info["md5Hash"]) == ("", "", "0D" * 16)
    assert firmware_info(UploadedFirmware(SHA256, "0d" * 16, 5000, {})) is None


@pytest.mark.parametrize("name", ["version", "fwType", "buildDate", "md5Hash", "sha256Hash", "fileSize"])
def test_information_that_is_repeated_has_to_be_that_of_the_file(name: str) -> None:
    info = firmware_info(STORED)
    assert info is not None
    refuse_other_info({**info, "boardType": "any", "type": "any"}, info)
    refuse_other_info({name: None}, info)
    refuse_other_info(None, info)
    with pytest.raises(InvalidInput, match=name):
        refuse_other_info({**info, name: "another"}, info)
    with pytest.raises(InvalidInput, match=name):
        refuse_other_info({name: "something"}, None)
