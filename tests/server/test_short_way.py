"""Answers in granian's own thread: given there and nowhere else, the same by every protocol, never in the way."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from granian.server.embed import Server as EmbeddedGranian
from starlette.types import Message, Receive, Scope, Send

from flota.server.api import part_files
from flota.server.api.artifacts import ArtifactApi
from flota.server.app import wrap
from flota.server.context import ServerContext
from flota.server.short_way import LoopBehindShortWay, with_short_way
from tests.server.programs import curl
from tests.server.serving import a_context, listening, make_tls_files, url_of

WAIT_S = 60.0
SHORT, LONG = b"at once", b"by the loop"


@dataclass
class Counted:
    """An application with a short way for `/short`, and in which threads both were asked."""

    in_loop: list[int] = field(default_factory=list)
    at_once: list[int] = field(default_factory=list)

    def answer(self, scope: Scope) -> tuple[Message, Message] | None:
        self.at_once.append(threading.get_ident())
        if scope["path"] == "/artifacts/broken":
            raise RuntimeError("a bug")
        return _answer(SHORT) if scope["path"] == "/artifacts/short" else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.in_loop.append(threading.get_ident())
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body", False):
                break
        for message in _answer(LONG + body):
            await send(message)


def _answer(body: bytes) -> tuple[Message, Message]:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    return start, {"type": "http.response.body", "body": body, "more_body": False}


def a_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=WAIT_S)


@pytest.mark.program
@pytest.mark.parametrize("flag", ["--http1.0", "--http1.1", "--http2-prior-knowledge"])
async def test_what_can_be_answered_at_once_never_gets_to_the_loop(flag: str) -> None:
    app = Counted()
    async with listening(app, at_once=app.answer) as listener:
        urls = [url_of(listener, path) for path in ("/artifacts/short", "/artifacts/long", "/artifacts/short")]
        answers = [(await curl(flag, url)).body for url in urls]
    assert answers == [SHORT, LONG, SHORT]
    assert app.in_loop == [threading.get_ident()]
    assert threading.get_ident() not in app.at_once
    assert len(app.at_once) == 3


async def test_other_requests_are_spared_the_question() -> None:
    app = Counted()
    async with listening(app, at_once=app.answer) as listener, a_client() as client:
        assert (await client.get(url_of(listener, "/DEFAULT/controller/v1/pump-1"))).content == LONG
    assert app.at_once == []


async def test_over_tls_too_and_one_connection_takes_both_ways_in_turn(tmp_path: Path) -> None:
    app = Counted()
    async with (
        listening(app, make_tls_files(tmp_path), at_once=app.answer) as listener,
        httpx.AsyncClient(verify=_trusting(tmp_path), http2=True, timeout=WAIT_S) as client,
    ):
        for _ in range(3):
            assert (await client.get(url_of(listener, "/artifacts/short"))).content == SHORT
            assert (await client.post(url_of(listener, "/artifacts/long"), content=b"!" * 200_000)).content[-1:] == b"!"
        together = await asyncio.gather(*(client.get(url_of(listener, "/artifacts/short")) for _ in range(50)))
    assert {answer.content for answer in together} == {SHORT}
    assert set(app.in_loop) == {threading.get_ident()}
    assert len(app.in_loop) == 3


async def test_a_bug_in_the_short_way_is_logged_and_the_request_is_answered_all_the_same() -> None:
    app = Counted()
    with structlog.testing.capture_logs() as logs:
        async with listening(app, at_once=app.answer) as listener, a_client() as client:
            answers = [
                (await client.get(url_of(listener, path))).content for path in ("/artifacts/broken", "/artifacts/short")
            ]
    assert answers == [LONG, SHORT]
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["request.not_answered_at_once"]


async def test_a_bug_in_the_whole_servers_short_way_is_logged_and_the_request_is_answered_all_the_same(
    tmp_path: Path,
) -> None:
    def broken(scope: Scope) -> None:
        raise KeyError(scope["path"])

    async with a_context(tmp_path) as context:
        app = wrap(Counted(), context, at_once=broken)
        with structlog.testing.capture_logs() as logs:
            async with listening(app, at_once=app.answer_at_once) as listener, a_client() as client:
                answer = await client.get(url_of(listener, "/artifacts/any"))
    assert (answer.content, answer.headers["server"]) == (LONG, "flota")
    assert {entry["event"] for entry in logs if entry["log_level"] == "error"} == {"request.not_answered_at_once"}


async def test_an_answer_that_cannot_be_sent_ends_that_request_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def answer(scope: Scope) -> tuple[Message, Message] | None:
        whole = _answer(SHORT)
        return whole if scope["path"] == "/artifacts/short" else (whole[1], whole[1])

    async with listening(Counted(), at_once=answer) as listener, a_client() as client:
        assert (await client.get(url_of(listener, "/artifacts/no-start"))).status_code == 500
        assert (await client.get(url_of(listener, "/artifacts/short"))).content == SHORT
        async with asyncio.timeout(WAIT_S):
            while "Application callable raised" not in caplog.text:  # noqa: ASYNC110 - granian logs after its answer
                await asyncio.sleep(0.01)


async def test_what_is_no_request_goes_to_the_loop() -> None:
    app = Counted()
    loop = LoopBehindShortWay(asyncio.get_running_loop(), app.answer)
    heard: asyncio.Future[tuple[object, ...]] = loop.create_future()
    loop.call_soon_threadsafe(lambda *given: heard.set_result(given), "one", "other")
    assert await heard == ("one", "other")
    assert app.at_once == []


def test_a_granian_that_hands_requests_over_otherwise_is_left_as_it_is() -> None:
    async def spawn(*_arguments: Any) -> None:
        other_scheduler()

    def other_scheduler() -> None: ...

    wrapped: Callable[..., Awaitable[None]] = lambda *_: spawn()  # noqa: E731
    assert with_short_way(spawn, Counted().answer) is spawn
    wrapped.__wrapped__ = spawn  # type: ignore[attr-defined]
    assert with_short_way(wrapped, Counted().answer) is wrapped


def test_this_granian_has_a_short_way_and_without_an_answer_it_is_left_as_it_is() -> None:
    spawn = EmbeddedGranian._spawn_asgi_worker
    assert with_short_way(spawn, None) is spawn
    assert with_short_way(spawn, Counted().answer) is not spawn


IMAGE = bytes(n % 251 for n in range(300_000))


@dataclass
class Served:
    """One artifact with a link to it, served as the server does, and the threads in which parts of it were given."""

    context: ServerContext
    url: str
    path: Path
    given_in: list[int]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with a_context(tmp_path) as context:
        with context.artifacts.upload() as upload:
            upload.write(IMAGE)
            sha256 = upload.finish().sha256
        api, given_in = ArtifactApi(context), []

        def answer(scope: Scope) -> tuple[Message, Message] | None:
            found = api.parts.answer(scope)
            if found is not None:
                given_in.append(threading.get_ident())
            return found

        app = wrap(api, context, at_once=answer)
        token = context.download_tokens.issue(sha256, device_id=7, now=context.now())
        async with listening(app, at_once=app.answer_at_once) as listener:
            url = url_of(listener, f"/artifacts/{sha256}?token={token}")
            yield Served(context, url, context.artifacts.path(sha256), given_in)
        assert threading.get_ident() not in given_in


async def _part(client: httpx.AsyncClient, url: str, first: int, last: int) -> httpx.Response:
    return await client.get(url, headers={"range": f"bytes={first}-{last}"})


async def test_many_devices_that_fetch_by_small_parts_get_the_same_file_and_each_part_is_counted(
    served: Served,
) -> None:
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=8), timeout=WAIT_S) as client:
        (await _part(client, served.url, 0, 0)).raise_for_status()

        async def fetch() -> bytes:
            return b"".join(
                [
                    (await _part(client, served.url, at, min(at + 4096, len(IMAGE)) - 1)).content
                    for at in range(0, len(IMAGE), 4096)
                ]
            )

        assert set(await asyncio.gather(*(fetch() for _ in range(4)))) == {IMAGE}
    counted = served.context.metrics.registry.get_sample_value(
        "flota_http_requests_total", {"group": "artifacts", "status": "2xx"}
    )
    assert counted == 1 + 4 * -(-len(IMAGE) // 4096)
    assert len(served.given_in) == counted - 1


async def test_a_part_has_the_headers_of_the_ordinary_way(served: Served) -> None:
    async with a_client() as client:
        first, again = [await _part(client, served.url, 10, 20) for _ in range(2)]
    volatile = {"date"}
    assert [pair for pair in again.headers.raw if pair[0].decode() not in volatile] == [
        pair for pair in first.headers.raw if pair[0].decode() not in volatile
    ]
    assert (again.status_code, again.content) == (206, IMAGE[10:21])
    assert len(served.given_in) == 1


async def test_a_file_that_nobody_asks_for_any_more_is_closed_by_the_loop(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_files, "IDLE_S", 0.05)
    closed: list[tuple[int, int]] = []
    close_now = part_files.PartFiles._close_idle

    def told(files: part_files.PartFiles, path: str) -> None:
        close_now(files, path)
        closed.append((len(files), threading.get_ident()))

    monkeypatch.setattr(part_files.PartFiles, "_close_idle", told)
    async with a_client() as client:
        for _ in range(2):
            assert (await _part(client, served.url, 0, 9)).status_code == 206
    assert len(served.given_in) == 1
    async with asyncio.timeout(WAIT_S):
        while (0, threading.get_ident()) not in closed:  # noqa: ASYNC110 - that it is closed is told to nobody
            await asyncio.sleep(0.01)


def _trusting(directory: Path) -> Any:
    return ssl.create_default_context(cafile=str(directory / "root.crt"))
