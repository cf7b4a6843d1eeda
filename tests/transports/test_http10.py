"""One HTTP/1.0 exchange: what is not HTTP, too long, silent or cut is one clear error."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flota.errors import InvalidInput, PeerError
from flota.transports import http10
from flota.transports.http10 import LinkBroken, connect_as_device, http10_exchange, parse_head, split_url
from tests.server.serving import make_tls_files

REQUEST = b"GET / HTTP/1.0\r\n\r\n"


@contextlib.asynccontextmanager
async def saying(answer: bytes, *, then_wait_s: float = 0) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            await asyncio.sleep(then_wait_s)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        await server.wait_closed()


async def take(url: str, length: int | None = None) -> bytes:
    async with http10_exchange(url, REQUEST, silence_limit_s=0.3) as answer:
        wanted = answer.content_length if length is None else length
        return b"".join([data async for data in answer.body(wanted or 0)])


async def test_the_body_comes_whole() -> None:
    async with saying(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello and more") as url:
        assert await take(url) == b"hello"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "closed before the answer"),
        (b"HTTP/1.0 200 OK\r\nContent-Le", "closed before the answer"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 50\r\n\r\nshort", "ended early"),
        (b"SSH-2.0-x\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.0 abc\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.0 200 OK\r\nx: " + b"y" * 40_000 + b"\r\n\r\n", "too long"),
    ],
)
async def test_a_broken_answer_is_one_clear_error(answer: bytes, error: str) -> None:
    async with saying(answer) as url:
        with pytest.raises(PeerError, match=error):
            await take(url)


async def test_silence_ends_the_exchange() -> None:
    async with saying(b"HTTP/1.0 200 OK\r\nContent-Length: 50\r\n\r\nab", then_wait_s=1) as url:
        with pytest.raises(LinkBroken, match="silent"):
            await take(url)


async def test_nobody_listening_is_a_broken_link() -> None:
    with pytest.raises(LinkBroken, match="cannot connect"):
        await take("http://127.0.0.1:9/")


@pytest.mark.parametrize("url", ["ftp://h/", "http://", "/path", "file:///etc/passwd"])
def test_only_http_urls_are_taken(url: str) -> None:
    with pytest.raises(InvalidInput):
        split_url(url)


def test_the_first_of_equal_headers_counts_and_nonsense_is_ignored() -> None:
    assert parse_head(b"HTTP/1.1 304 X\r\nA: 1\r\na: 2\r\nnonsense\r\n\r\n") == (304, {"a": "1"})


@pytest.mark.parametrize("turns", range(9))
@pytest.mark.parametrize("secure", [False, True])
async def test_who_is_canceled_while_connecting_leaves_no_socket_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int, secure: bool
) -> None:
    begun: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
    open_now = asyncio.open_connection

    def opened(**named: Any) -> Any:
        begun.set_result(named["sock"])
        return open_now(**named)

    monkeypatch.setattr(http10.asyncio, "open_connection", opened)
    serving = trusting = None
    if secure:
        files = make_tls_files(tmp_path)
        serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        serving.load_cert_chain(files.certificate, files.key)
        trusting = ssl.create_default_context(cafile=str(tmp_path / "root.crt"))

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(hear, "127.0.0.1", 0, ssl=serving) as server:
        port = server.sockets[0].getsockname()[1]
        connecting = asyncio.ensure_future(connect_as_device("127.0.0.1", port, trusting))
        link = await begun
        descriptor = link.fileno()
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            _, writer = await connecting
            writer.transport.abort()
            await asyncio.sleep(0)
        assert link.fileno() == -1
        assert not asyncio.get_running_loop().remove_reader(descriptor), "raises if a transport has it still"
        async with asyncio.timeout(10):
            while getattr(server, "_active_count", 0):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
