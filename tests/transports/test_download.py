"""One download: it resumes after any break, never mixes two files, stops at the length, and verifies the whole."""

from __future__ import annotations

import hashlib
import random

import httpx
import pytest

from flota.errors import InvalidInput, PeerError
from flota.transports.download import (
    DigestMismatch,
    Downloaded,
    DownloadFailed,
    Expected,
    LengthMismatch,
    NotOffered,
    ResumePoint,
    RetriesUsedUp,
    RetryPolicy,
    download,
)
from flota.transports.http import http_client
from tests.virtual.small_server import Answer, Handler, Request, file_answer, small_server

DATA = hashlib.shake_256(b"file").digest(200_000)
SHA = hashlib.sha256(DATA).hexdigest()
POLICY = RetryPolicy(tries_without_progress=3)


class Sink:
    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.restarts = 0

    async def write(self, data: bytes) -> None:
        self.data += data

    async def restart(self) -> None:
        self.data.clear()
        self.restarts += 1


async def fetch(
    handler: Handler,
    sink: Sink,
    expected: Expected | None = None,
    start: ResumePoint | None = None,
    waits: list[float] | None = None,
) -> tuple[Downloaded, list[Request]]:
    async def sleep(seconds: float) -> None:
        if waits is not None:
            waits.append(seconds)

    async with small_server(handler) as server, http_client() as client:
        done = await download(
            client,
            server.url + "/file",
            sink,
            expected=expected or Expected(len(DATA), SHA),
            rng=random.Random(3),
            sleep=sleep,
            start=start,
            policy=POLICY,
        )
        return done, server.requests


async def test_a_whole_file_arrives_in_one_request() -> None:
    sink = Sink()
    done, requests = await fetch(lambda request: file_answer(request, DATA, '"a"'), sink)
    assert bytes(sink.data) == DATA
    assert (done.requests, done.resumed, done.etag, done.sha256) == (1, 0, '"a"', SHA)
    assert requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("cuts", [[0], [1], [100_000], [199_999], [5, 5, 0, 70_000, 1]])
async def test_it_goes_on_after_every_break(cuts: list[int]) -> None:
    sink, left = Sink(), [*cuts]
    done, requests = await fetch(
        lambda request: file_answer(request, DATA, '"a"', cut_after=left.pop(0) if left else None), sink
    )
    assert bytes(sink.data) == DATA
    assert done.requests == len(cuts) + 1
    assert sink.restarts == 0
    offset = 0
    for request, cut in zip(requests, [*cuts, 0], strict=True):
        assert request.headers.get("range") == (f"bytes={offset}-" if offset else None)
        offset += cut


async def test_it_resumes_what_an_earlier_life_wrote() -> None:
    sink = Sink(DATA[:50_000])
    start = ResumePoint(50_000, hashlib.sha256(DATA[:50_000]), '"a"')
    done, requests = await fetch(lambda request: file_answer(request, DATA, '"a"'), sink, start=start)
    assert bytes(sink.data) == DATA
    assert requests[0].headers["if-range"] == '"a"'
    assert done.resumed == 1


async def test_a_file_that_changed_is_fetched_from_its_start() -> None:
    sink = Sink(b"x" * 50_000)
    start = ResumePoint(50_000, hashlib.sha256(b"x" * 50_000), '"old"')
    await fetch(lambda request: file_answer(request, DATA, '"a"'), sink, start=start)
    assert bytes(sink.data) == DATA
    assert sink.restarts == 1


async def test_a_server_that_ignores_if_range_and_gives_a_new_etag_is_noticed() -> None:
    sink = Sink(b"x" * 50_000)
    start = ResumePoint(50_000, hashlib.sha256(b"x" * 50_000), '"old"')

    def handler(request: Request) -> Answer:
        request.headers.pop("if-range", None)
        return file_answer(request, DATA, '"a"')

    await fetch(handler, sink, start=start)
    assert bytes(sink.data) == DATA


async def test_resumed_bytes_of_another_file_are_found_by_the_digest_and_fetched_again_in_one_go() -> None:
    sink = Sink(b"x" * 50_000)
    start = ResumePoint(50_000, hashlib.sha256(b"x" * 50_000))
    done, requests = await fetch(lambda request: file_answer(request, DATA, '"a"'), sink, start=start)
    assert bytes(sink.data) == DATA
    assert "range" not in requests[-1].headers
    assert done.requests == 2


async def test_a_server_without_ranges_starts_again() -> None:
    sink, cuts = Sink(), iter([60_000, None])
    await fetch(lambda request: Answer(200, DATA, cut_after=next(cuts)), sink)
    assert bytes(sink.data) == DATA
    assert sink.restarts == 1


async def test_wrong_bytes_are_refused() -> None:
    with pytest.raises(DigestMismatch):
        await fetch(lambda request: Answer(200, DATA[:-1] + b"\0"), Sink())


@pytest.mark.parametrize("length", [len(DATA) - 1, len(DATA) + 1, 0])
async def test_another_length_than_announced_is_refused_before_the_body_is_kept(length: int) -> None:
    sink = Sink()
    with pytest.raises(LengthMismatch):
        await fetch(lambda request: Answer(200, bytes(length)), sink)
    assert not sink.data


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 410])
async def test_a_refusal_is_final(status: int) -> None:
    with pytest.raises(NotOffered) as failure:
        await fetch(lambda request: Answer(status), Sink())
    assert failure.value.status == status


async def test_a_busy_server_is_asked_again_after_the_time_it_names() -> None:
    answers = [Answer(503, headers={"retry-after": "7"}), Answer(429), Answer(200, DATA)]
    waits: list[float] = []
    await fetch(lambda request: answers.pop(0), Sink(), waits=waits)
    assert waits[0] == 7
    assert 1 <= waits[1] <= 2


async def test_tries_without_progress_end_and_their_waits_grow() -> None:
    waits: list[float] = []
    with pytest.raises(RetriesUsedUp):
        await fetch(lambda request: Answer(500), Sink(), waits=waits)
    assert len(waits) == POLICY.tries_without_progress
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits))


async def test_progress_resets_the_count_of_tries() -> None:
    left = [10_000] * 15
    sink = Sink()
    await fetch(lambda request: file_answer(request, DATA, '"a"', cut_after=left.pop() if left else None), sink)
    assert bytes(sink.data) == DATA


async def test_a_compressed_answer_is_refused() -> None:
    with pytest.raises(DownloadFailed, match="compressed"):
        await fetch(lambda request: Answer(200, DATA, {"content-encoding": "gzip"}), Sink())


async def test_a_content_range_that_lies_is_refused() -> None:
    start = ResumePoint(50_000, hashlib.sha256(DATA[:50_000]))

    def handler(request: Request) -> Answer:
        return Answer(206, DATA[:100], {"content-range": f"bytes 0-99/{len(DATA)}"})

    with pytest.raises(PeerError):
        await fetch(handler, Sink(), start=start)


async def test_a_file_that_never_stays_the_same_is_given_up() -> None:
    count = 0

    def handler(request: Request) -> Answer:
        nonlocal count
        count += 1
        return file_answer(request, DATA, f'"{count}"', cut_after=1000)

    with pytest.raises(DownloadFailed, match=r"started again|brought nothing"):
        await fetch(handler, Sink())


async def test_a_server_that_is_not_there_is_retried_and_then_reported() -> None:
    async def no_sleep(seconds: float) -> None:
        pass

    async with http_client() as client:
        with pytest.raises(RetriesUsedUp):
            await download(
                client,
                "http://127.0.0.1:9/file",
                Sink(),
                expected=Expected(),
                rng=random.Random(1),
                sleep=no_sleep,
                policy=POLICY,
            )


async def test_a_resume_point_behind_the_end_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidInput):
        await fetch(lambda request: Answer(200, DATA), Sink(), start=ResumePoint(len(DATA) + 1))


def test_waits_double_up_to_the_cap() -> None:
    policy = RetryPolicy(first_delay_s=1, longest_delay_s=10)
    rng = random.Random(1)
    assert all(policy.delay_s(n, rng) <= 10 for n in range(1, 2000))
    assert policy.delay_s(1, rng) <= 1


def test_no_redirect_is_followed_by_default() -> None:
    assert not http_client().follow_redirects
    assert isinstance(http_client(), httpx.AsyncClient)
