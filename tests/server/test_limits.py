"""What one request may cost, seen over real connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flota.server import limits
from flota.server.limits import (
    DEVICE_BODY_MAX_BYTES,
    HEADERS_MAX_COUNT,
    MANAGEMENT_BODY_MAX_BYTES,
    TARGET_MAX_BYTES,
    UPLOAD_PATH,
    body_limit,
)
from flota.server.listeners import Listener
from flota.server.settings import DataDirectory, ServerSettings
from tests.server.serving import a_context, app_of, listening


async def swallow(request: Request) -> Response:
    """Read the whole body, and blunder over every error as a careless library would."""
    try:
        size = len(await request.body())
    except Exception:  # noqa: BLE001 - that is the point
        return Response("the application's own idea of the error", status_code=418)
    return Response(str(size))


async def crash(_request: Request) -> Response:
    raise RuntimeError("secret detail")


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[Listener]:
    async with a_context(tmp_path) as context:
        routes = [
            Route("/{path:path}", swallow, methods=["POST", "GET"]),
        ]
        async with listening(app_of(context, [Route("/crash", crash), *routes])) as serving:
            yield serving


async def exchange(listener: Listener, head: str, body: bytes = b"") -> bytes:
    """Send raw bytes and return the header and the beginning of the body that come back."""
    reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
    with contextlib.suppress(ConnectionError):
        writer.write(head.encode() + b"\r\n" + body)
        await writer.drain()
    answer = b""
    with contextlib.suppress(ConnectionError):
        answer = await reader.readuntil(b"\r\n\r\n")
        answer += await reader.read(4096)
    writer.close()
    return answer


async def test_a_body_that_is_announced_too_large_is_refused_before_it_is_read(listener: Listener) -> None:
    head = f"POST /update/x HTTP/1.1\r\nhost: x\r\ncontent-length: {DEVICE_BODY_MAX_BYTES + 1}\r\n"
    answer = await exchange(listener, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"too-large"' in answer
    assert f"at most {DEVICE_BODY_MAX_BYTES} bytes".encode() in answer


async def test_a_body_without_length_is_cut_off_when_it_becomes_too_large(listener: Listener) -> None:
    chunk = b"8000\r\n" + b"a" * 0x8000 + b"\r\n"
    body = chunk * 3 + b"0\r\n\r\n"
    head = "POST /update/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    assert (await exchange(listener, head, body)).startswith(b"HTTP/1.1 413 ")


async def test_a_body_of_exactly_the_limit_is_taken(listener: Listener) -> None:
    head = f"POST /update/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {DEVICE_BODY_MAX_BYTES}\r\n"
    answer = await exchange(listener, head, b"a" * DEVICE_BODY_MAX_BYTES)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(str(DEVICE_BODY_MAX_BYTES).encode())


async def test_a_body_that_stops_is_given_up(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SILENCE_MAX_S", 0.1)
    head = "POST /update/x HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
    answer = await exchange(listener, head, b"part")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"slow-body"' in answer


async def test_a_trickle_is_given_up_although_it_never_stops(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_RATE_AFTER_S", 0.1)
    reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
    writer.write(b"POST /update/x HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
    answering = asyncio.ensure_future(reader.readuntil(b"\r\n"))
    while not answering.done():
        writer.write(b"a")
        await asyncio.sleep(0.01)
    assert (await answering).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_a_long_url_is_414_and_a_large_header_431(listener: Listener) -> None:
    head = f"GET /{'a' * TARGET_MAX_BYTES} HTTP/1.1\r\nhost: x\r\n"
    assert (await exchange(listener, head)).startswith(b"HTTP/1.1 414 ")
    head = "GET / HTTP/1.1\r\nhost: x\r\n" + f"x-big: {'a' * 17_000}\r\n"
    assert (await exchange(listener, head)).startswith(b"HTTP/1.1 431 ")
    many = "".join(f"x-{n}: 1\r\n" for n in range(HEADERS_MAX_COUNT))
    assert (await exchange(listener, "GET / HTTP/1.1\r\nhost: x\r\n" + many)).startswith(b"HTTP/1.1 431 ")


async def test_a_bug_gives_500_without_its_details(listener: Listener) -> None:
    answer = await exchange(listener, "GET /crash HTTP/1.1\r\nhost: x\r\n")
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"secret detail" not in answer
    assert b"application/problem+json" in answer


async def test_what_is_no_http_harms_nobody(listener: Listener) -> None:
    for junk in (b"\x16\x03\x01\x00\xa5", b"\x00" * 100, b"GET / HTTP/1.1\r\n" + b"a" * 200_000, b"PRI * HTTP/2.0\r\n"):
        reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
        writer.write(junk)
        with contextlib.suppress(OSError):
            writer.write_eof()
            await reader.read()
        writer.close()
    assert (await exchange(listener, "GET / HTTP/1.1\r\nhost: x\r\n")).startswith(b"HTTP/1.1 200 ")


def test_each_api_has_its_own_body_limit(tmp_path: Path) -> None:
    settings = ServerSettings(data=DataDirectory(tmp_path), max_artifact_bytes=123)
    assert body_limit(UPLOAD_PATH, settings) == 123
    assert body_limit("/api/v1/devices/import", settings) == limits.IMPORT_BODY_MAX_BYTES
    assert body_limit("/api/v1/rollouts", settings) == MANAGEMENT_BODY_MAX_BYTES
    for path in ("/update/x", "/DEFAULT/controller/v1/x/configData", "/", "/api/v1artifacts"):
        assert body_limit(path, settings) == DEVICE_BODY_MAX_BYTES
