"""The AmebaD push, both roles: what a device does with every kind of stream, and what a sender may say afterwards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import NotFound
from flota.images.ameba import byte_sum, pack_ota_file
from flota.images.ameba.ota_file import WrongOtaChecksum
from flota.images.ameba.segment import MissingSignature
from flota.protocols.ameba_push import (
    ANCHOROTA,
    ARDUINO,
    GUIDE,
    BodyBytes,
    EraseTarget,
    ImageComplete,
    PushOutcome,
    PushReceiver,
    PushRecord,
    PushStage,
    ReceiverEvent,
    ReceiverFailed,
    SerialLine,
    UndefinedBehaviour,
    judge_push,
    parse_file_info,
    payload_for,
    profile_named,
    push_stream_start,
)
from flota.protocols.malformed import MalformedMessage
from tests.images.ameba_samples import image2

OTA = pack_ota_file(image2())
STREAM = push_stream_start(OTA) + OTA
SUM = byte_sum(image2())


def received(stream: bytes, *, pieces: int = 1000, then: str = "") -> list[ReceiverEvent]:
    """Everything the device does with `stream` in pieces, then with the peer's close or silence."""
    receiver = PushReceiver()
    events: list[ReceiverEvent] = []
    for start in range(0, len(stream), pieces):
        events += receiver.feed(stream[start : start + pieces])
    if then == "close":
        events += receiver.end_of_stream()
    elif then == "silence":
        events += receiver.timed_out()
    return events


def lines(events: list[ReceiverEvent]) -> list[str]:
    return [event.text.removeprefix("[beginOTA] ") for event in events if isinstance(event, SerialLine)]


def slot_of(events: list[ReceiverEvent]) -> bytes:
    slot = bytearray()
    for event in events:
        if isinstance(event, BodyBytes):
            assert event.offset == len(slot) + 8
            slot += event.data
    return bytes(slot)


@pytest.mark.parametrize("pieces", [1, 7, 12, 13, 512, 1024, 100_000])
def test_the_whole_image_arrives_whatever_the_pieces(pieces: int) -> None:
    events = received(STREAM, pieces=pieces)
    assert lines(events) == ["Receive file_info done", "Receive firmware header done", "Get OTA header done"]
    assert EraseTarget(8192) in events
    assert slot_of(events) == image2()[8:]
    assert events[-1] == ImageComplete(b"81958711", 8192, SUM, 8192)
    assert all(len(event.data) <= 512 for event in events if isinstance(event, BodyBytes))


@given(st.lists(st.integers(1, 700), min_size=1, max_size=60), st.binary(max_size=40))
def test_pieces_of_any_size_and_trailing_bytes_change_nothing(sizes: list[int], trailing: bytes) -> None:
    receiver, position = PushReceiver(), 0
    events: list[ReceiverEvent] = []
    stream = STREAM + trailing
    for size in [*sizes, len(stream)]:
        events += receiver.feed(stream[position : position + size])
        position += size
    assert slot_of(events) == image2()[8:]
    assert events[-1] == ImageComplete(b"81958711", 8192, SUM, 8192)


def test_the_values_of_the_file_information_are_ignored() -> None:
    assert received(b"\xff" * 12 + OTA)[-1] == ImageComplete(b"81958711", 8192, SUM, 8192)


@pytest.mark.parametrize(
    ("stream", "then", "said"),
    [
        pytest.param(OTA, "close", "[ERROR] Get OTA header failed", id="the 12 bytes are missing"),
        pytest.param(
            push_stream_start(image2()) + image2(), "close", "[ERROR] Get OTA header failed", id="no OTA header"
        ),
        pytest.param(STREAM[:12] + b"\xff" * 4 + bytes(200), "close", "[ERROR] Get OTA header failed", id="no image"),
        pytest.param(b"", "close", "[ERROR] Get OTA header failed", id="closed at once"),
        pytest.param(STREAM[:20], "close", "[ERROR] Get OTA header failed", id="closed within the header"),
        pytest.param(b"", "silence", "[ERROR] Receive firmware file_info failed", id="silent at once"),
        pytest.param(STREAM[:11], "silence", "[ERROR] Receive firmware file_info failed", id="silent within the info"),
        pytest.param(STREAM[:20], "silence", "[ERROR] Get OTA header failed", id="silent within the header"),
        pytest.param(STREAM[:3000], "silence", "[ERROR] Download new firmware failed", id="silent within the body"),
    ],
)
def test_a_failed_update_says_so_and_ends(stream: bytes, then: str, said: str) -> None:
    events = received(stream, then=then)
    assert lines(events)[-1] == said
    assert isinstance(events[-1], ReceiverFailed)


def test_an_early_close_in_the_body_counts_as_done_with_too_little() -> None:
    events = received(STREAM[:3000], then="close")
    assert lines(events)[-1] == "download new firmware failed"
    assert events[-1] == ImageComplete(b"81958711", 8192, SUM, 3000 - 12 - 32)


@pytest.mark.parametrize("count", [3, 21, 0x0AAA_AAAA])
def test_more_sub_headers_than_the_device_has_room_for_are_undefined(count: int) -> None:
    header = OTA[:4] + count.to_bytes(4, "little") + OTA[8:32]
    assert isinstance(received(bytes(12) + header + bytes(600))[-1], UndefinedBehaviour)


def test_two_images_for_one_slot_are_undefined() -> None:
    both = OTA[:4] + b"\2\0\0\0" + OTA[8:32] * 2 + image2() * 2
    assert isinstance(received(bytes(12) + both)[-1], UndefinedBehaviour)


@given(st.binary(max_size=800), st.sampled_from(["", "close", "silence"]))
def test_any_bytes_are_received_without_an_error_of_ours(stream: bytes, then: str) -> None:
    for start in (b"", STREAM[:12], STREAM[:28], STREAM[:44]):
        receiver = PushReceiver()
        list(receiver.feed(start + stream))
        list(receiver.end_of_stream() if then == "close" else receiver.timed_out())
        assert receiver.is_done


def test_file_information_of_a_push() -> None:
    info = parse_file_info(STREAM)
    assert (info.checksum, info.size) == (byte_sum(OTA), len(OTA))
    with pytest.raises(MalformedMessage):
        parse_file_info(STREAM[:11])
    assert push_stream_start(b"\0" * 5) == bytes(8) + b"\5\0\0\0"


def test_each_profile_gets_what_its_device_takes() -> None:
    assert payload_for(ARDUINO, OTA) == (OTA, False)
    assert payload_for(GUIDE, image2()) == (OTA, True)
    assert payload_for(ANCHOROTA, image2()) == (image2(), False)
    assert payload_for(ANCHOROTA, OTA) == (image2(), True)
    with pytest.raises(MissingSignature):
        payload_for(ARDUINO, bytes(4096))
    with pytest.raises(WrongOtaChecksum):
        payload_for(ARDUINO, OTA[:-1] + b"\0")
    assert payload_for(ARDUINO, bytes(4096), opaque=True) == (pack_ota_file(bytes(4096), opaque=True), True)


def test_profiles_by_name() -> None:
    assert [profile_named(name).port for name in ("guide", "Arduino", "anchorota")] == [8020, 8082, 8082]
    with pytest.raises(NotFound):
        profile_named("esp")


@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        (PushRecord(PushStage.NOT_CONNECTED, trouble="connection refused"), PushOutcome.FAILED),
        (PushRecord(PushStage.CONNECTED, 0, 100), PushOutcome.FAILED),
        (PushRecord(PushStage.INFO_SENT, 50, 100, reset=True), PushOutcome.FAILED),
        (PushRecord(PushStage.ALL_SENT, 100, 100), PushOutcome.DOUBTFUL),
        (PushRecord(PushStage.CLOSED, 100, 100, closed_after_s=1.2, unacknowledged=3), PushOutcome.FAILED),
        (PushRecord(PushStage.CLOSED, 100, 100, closed_after_s=20.5), PushOutcome.DOUBTFUL),
        (PushRecord(PushStage.CLOSED, 100, 100, closed_after_s=2.0, unacknowledged=0), PushOutcome.DELIVERED),
        (PushRecord(PushStage.CLOSED, 100, 100, closed_after_s=2.0, reset=True), PushOutcome.DELIVERED),
    ],
)
def test_the_verdict_claims_no_more_than_the_record_shows(record: PushRecord, outcome: PushOutcome) -> None:
    verdict = judge_push(record)
    assert verdict.outcome is outcome
    assert verdict.reason
    assert "success" not in verdict.reason
