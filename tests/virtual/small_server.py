"""A small, real HTTP/1.1 server over a socket, whose answers a test writes itself, breaks and pauses included."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

REASONS = {200: "OK", 206: "Partial Content", 304: "Not Modified", 416: "Range Not Satisfiable"}


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    version: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class Answer:
    """`cut_after`: close the connection after that many body bytes. `pause_s`: be silent for so long in the middle."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    pause_s: float = 0.0


Handler = Callable[[Request], Answer]


def file_answer(request: Request, data: bytes, etag: str, *, cut_after: int | None = None) -> Answer:
    """Answer like a server of files: HEAD, If-None-Match, If-Range, one range."""
    headers = {"etag": etag, "accept-ranges": "bytes"}
    if request.headers.get("if-none-match") == etag:
        return Answer(304, headers=headers)
    wanted = request.headers.get("range")
    if wanted is None or request.headers.get("if-range", etag) != etag:
        return Answer(200, data, headers, cut_after)
    first_text, _, last_text = wanted.removeprefix("bytes=").partition("-")
    first, last = int(first_text), min(int(last_text or len(data) - 1), len(data) - 1)
    if first >= len(data):
        return Answer(416, headers={**headers, "content-range": f"bytes */{len(data)}"})
    headers["content-range"] = f"bytes {first}-{last}/{len(data)}"
    return Answer(206, data[first : last + 1], headers, cut_after)


class SmallServer:
    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[Request] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        words = head[0].split(" ")
        if len(words) != 3:  # HTTP/2's frames, after its preface has been answered
            writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            return False
        method, target, version = words
        headers = {}
        for line in head[1:]:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(method, target, version, headers, body)
        self.requests.append(request)
        answer = self.handler(request)
        lines = [f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Other')}"]
        if answer.status != 304:
            lines.append(f"content-length: {len(answer.body)}")
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if method == "HEAD" or answer.status == 304:
            await writer.drain()
            return version != "HTTP/1.0"
        sent = answer.body if answer.cut_after is None else answer.body[: answer.cut_after]
        half = len(sent) // 2
        writer.write(sent[:half])
        await writer.drain()
        if answer.pause_s:
            await asyncio.sleep(answer.pause_s)
        writer.write(sent[half:])
        await writer.drain()
        return answer.cut_after is None and version != "HTTP/1.0"


async def stop_accepting(listening: asyncio.Server) -> None:
    """Close the listening socket; not between a connection's accept and its transport, which would leave it open."""
    for _ in range(3):
        await asyncio.sleep(0)
    listening.close()


@contextlib.asynccontextmanager
async def small_server(handler: Handler) -> AsyncIterator[SmallServer]:
    """Serve inside the block; raises at its end what went wrong in a handler, or in reading what was sent."""
    server = SmallServer(handler)
    tasks: set[asyncio.Task[None]] = set()
    errors: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            errors.append(error)

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(ended)

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        await stop_accepting(listening)
        while tasks:  # a connection that was accepted just now comes while the others end
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # for `ended`
        await listening.wait_closed()
    for error in errors:
        raise error
