"""The decisions of one run of micro-RDK's update service, without a socket."""

from __future__ import annotations

import pytest

from flota.protocols.viam import Failure, Proceed, Refusal, UnusableUrl
from flota.virtual.agents.viam_run import Connect, FrameUse, UpdateRun

SLOT = 0x377000
URL = "http://10.0.0.5:3001/fw.bin?token=abc"


def run(url: str = URL) -> UpdateRun:
    started = UpdateRun(url, slot_size=SLOT)
    started.first_connection()
    return started


def failure_of(step: object) -> Failure | None:
    return step.failure if isinstance(step, Refusal) else None


def test_connections_are_tried_five_times_a_second_apart() -> None:
    started = UpdateRun(URL, slot_size=SLOT)
    step: object = started.first_connection()
    steps = []
    while isinstance(step, Connect):
        steps.append((step.attempt, step.pause_s))
        step = started.connection_failed("refused")
    assert steps == [(1, 0.0), (2, 1), (3, 1), (4, 1), (5, 1)]
    assert failure_of(step) is Failure.CONNECTION


def test_redirects_and_failed_connections_share_the_five_attempts() -> None:
    started = run()
    for number in (2, 3):
        step = started.answered(302, [("location", f"http://10.0.0.6:80/{number}")])
        assert isinstance(step, Connect)
        assert (step.attempt, step.pause_s, step.address.target) == (number, 0.0, f"/{number}")
    assert isinstance(started.connection_failed("refused"), Connect)
    assert isinstance(started.answered(307, [("location", "http://10.0.0.6:80/5")]), Connect)
    assert failure_of(started.answered(301, [("location", "http://10.0.0.6:80/6")])) is Failure.TOO_MANY_ATTEMPTS


@pytest.mark.parametrize(
    ("status", "headers", "failure"),
    [
        (404, [("content-length", "1000")], Failure.STATUS),
        (503, [], Failure.STATUS),
        (304, [], Failure.NO_LOCATION),
        (302, [("location", "/elsewhere")], Failure.RELATIVE_LOCATION),
        (200, [], Failure.NO_LENGTH),
        (200, [("content-length", "many")], Failure.NO_LENGTH),
        (200, [("content-length", str(SLOT + 1))], Failure.TOO_LARGE),
        (200, [("content-length", "287")], Failure.TOO_SMALL),
    ],
)
def test_an_answer_that_the_device_does_not_take_ends_the_run(
    status: int, headers: list[tuple[str, str]], failure: Failure
) -> None:
    assert failure_of(run().answered(status, headers)) is failure


@pytest.mark.parametrize("length", [288, SLOT])
def test_the_smallest_and_the_largest_length_are_taken(length: int) -> None:
    assert run().answered(206, [("Content-Length", str(length))]) == Proceed(length)


@pytest.mark.parametrize(
    ("frames", "uses"),
    [
        ((16_384, 100), [FrameUse.READ_HEADER_AND_WRITE, FrameUse.WRITE]),
        ((288, 288), [FrameUse.READ_HEADER_AND_WRITE, FrameUse.WRITE]),
        ((287, 16_384), [FrameUse.WRITE, FrameUse.READ_HEADER_AND_WRITE]),
        ((100, 100, 16_384), [FrameUse.WRITE, FrameUse.WRITE, FrameUse.READ_HEADER_AND_WRITE]),
    ],
)
def test_the_header_is_read_from_the_frame_that_completes_288_bytes(
    frames: tuple[int, ...], uses: list[FrameUse]
) -> None:
    started = run()
    assert [started.frame(length) for length in frames] == uses


def test_a_header_that_comes_in_frames_too_small_to_read_it_ends_the_run() -> None:
    started = run()
    started.frame(200)
    assert failure_of(started.frame(200)) is Failure.WRITE


def test_more_than_the_slot_holds_is_refused_at_once_and_a_wrong_total_at_the_end() -> None:
    started = run()
    assert started.answered(200, [("content-length", "1000")]) == Proceed(1000)
    assert started.frame(1001) is FrameUse.READ_HEADER_AND_WRITE
    assert failure_of(started.ended()) is Failure.OVERFLOW
    assert failure_of(started.frame(SLOT)) is Failure.OVERFLOW
    short = run()
    short.answered(200, [("content-length", "1000")])
    short.frame(999)
    assert failure_of(short.ended()) is Failure.CUT
    short.frame(1)
    assert short.ended() is None


@pytest.mark.parametrize(
    "url", ["/fw.bin", "http://user:pass@10.0.0.5:80/fw.bin", "http://:80/fw.bin", "http://[::1/x"]
)
def test_an_url_that_no_connection_can_be_made_to_is_an_error_of_ours(url: str) -> None:
    with pytest.raises(UnusableUrl):
        UpdateRun(url, slot_size=SLOT)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_without_a_port_it_is_443_whatever_the_scheme(scheme: str) -> None:
    address = UpdateRun(f"{scheme}://example.com/x", slot_size=SLOT).first_connection().address
    assert (address.authority, address.uses_tls) == ("example.com:443", scheme == "https")
