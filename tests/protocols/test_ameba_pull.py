"""What a device that pulls makes of an answer, however it is cut, and what its console takes for an order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.images.ameba import pack_ota_file
from flota.protocols.ameba_http import pack_pull_answer
from flota.protocols.ameba_pull import (
    ConsoleCommand,
    EraseSector,
    PullEvent,
    PullReceiver,
    UpdateOrder,
    parse_update_order,
)
from flota.protocols.ameba_push import BodyBytes, ImageComplete, ReceiverFailed, SerialLine
from flota.protocols.malformed import MalformedMessage
from tests.images.ameba_samples import image2

IMAGE = image2(xip=b"\x22" * 20_000)
FILE = pack_ota_file(IMAGE)
ANSWER = pack_pull_answer(len(FILE)) + FILE


def events_of(*reads: bytes) -> list[PullEvent]:
    receiver = PullReceiver()
    events: list[PullEvent] = []
    for read in reads:
        if not receiver.is_done:
            events += receiver.feed(read)
    return events + list(receiver.end_of_stream())


def written(events: list[PullEvent]) -> bytes:
    """The slot as the events leave it, but for the signature; nothing may be written that was not erased before."""
    slot = bytearray(b"\0" * (len(IMAGE) + 4096))
    for event in events:
        if isinstance(event, EraseSector):
            slot[event.offset : event.offset + 4096] = b"\xff" * 4096
        elif isinstance(event, BodyBytes):
            assert set(slot[event.offset : event.offset + len(event.data)]) == {0xFF}
            slot[event.offset : event.offset + len(event.data)] = event.data
    return bytes(slot[: len(IMAGE)])


@given(st.lists(st.integers(min_value=1, max_value=2000), max_size=40))
def test_however_the_body_is_cut_the_same_image_is_written(cuts: list[int]) -> None:
    start = len(pack_pull_answer(len(FILE)))
    reads, position = [ANSWER[:start]], start
    for length in cuts:
        reads.append(ANSWER[position : position + length])
        position += length
    reads.append(ANSWER[position:])
    events = events_of(*filter(None, reads))
    assert written(events) == b"\xff" * 8 + IMAGE[8:]
    assert events[-1] == ImageComplete(IMAGE[:8], len(IMAGE), sum(IMAGE) & 0xFFFF_FFFF, len(IMAGE))


def test_each_sector_is_erased_just_before_its_first_byte_is_written() -> None:
    kinds = [(type(event), event.offset) for event in events_of(ANSWER) if isinstance(event, EraseSector | BodyBytes)]
    expected = []
    for number in range(len(IMAGE) // 4096):
        expected += [(EraseSector, number * 4096), (BodyBytes, max(8, number * 4096))]
    assert kinds == expected


@pytest.mark.parametrize(
    ("reads", "says"),
    [
        pytest.param((), "closed before", id="nothing"),
        pytest.param((ANSWER[:-1],), "closed before the end", id="one byte short"),
        pytest.param((b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!",), "200", id="another status"),
        pytest.param((ANSWER.replace(b"Content-Length", b"content-length"),), "No Content-Length", id="lower case"),
        pytest.param((ANSWER[:5], ANSWER[5:]), "no answer", id="no status line in the first read"),
    ],
)
def test_what_ends_a_pull_early_is_a_failure_and_no_signature_follows(reads: tuple[bytes, ...], says: str) -> None:
    events = events_of(*reads)
    last = events[-1]
    assert isinstance(last, ReceiverFailed)
    assert says in last.reason
    assert not any(isinstance(event, ImageComplete) for event in events)


@pytest.mark.parametrize("at", [4, 8])
def test_headers_of_anything_else_are_refused_before_a_sector_is_erased(at: int) -> None:
    file = FILE[:at] + b"\x02" + FILE[at + 1 :]
    events = events_of(pack_pull_answer(len(file)) + file)
    assert events[0] == SerialLine("[beginOTA] [ERROR] Get OTA header failed")
    assert isinstance(events[1], ReceiverFailed)
    assert len(events) == 2


@pytest.mark.parametrize(
    ("line", "order"),
    [
        ("ATWO=192.168.1.9[8082]", UpdateOrder(ConsoleCommand.ATWO, "192.168.1.9", 8082)),
        ("ATWO=192.168.1.9,8082\r", UpdateOrder(ConsoleCommand.ATWO, "192.168.1.9", 8082)),
        ("ATSO=192.168.1.9,8082", UpdateOrder(ConsoleCommand.ATSO, "192.168.1.9", 8082)),
        ("wifi_update 10.0.0.1 8082", UpdateOrder(ConsoleCommand.UPDATE, "10.0.0.1", 8082)),
        ("update 10.0.0.1 1", UpdateOrder(ConsoleCommand.UPDATE, "10.0.0.1", 1)),
    ],
)
def test_every_spelling_of_the_order_is_understood(line: str, order: UpdateOrder) -> None:
    assert parse_update_order(line) == order


@pytest.mark.parametrize(
    "line", ["", "ATWO", "ATWO=", "ATWO=10.0.0.1", "ATSO=10.0.0.1[80]", "ATSO=a,0", "ATSO=a,70000", "update a", "ls"]
)
def test_any_other_line_is_no_order(line: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_update_order(line)
