"""A small, real HTTP/2 server over a socket (h2c by prior knowledge, or TLS): its answers a test writes itself."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RemoteSettingsChanged, RequestReceived, WindowUpdated
from h2.exceptions import ProtocolError

from tests.virtual.small_server import stop_accepting


class End(enum.Enum):
    """How the body ends."""

    STREAM = "end of stream"
    RESET = "stream reset"
    CLOSE = "connection closed"
    SILENCE = "nothing more"


@dataclass(frozen=True)
class H2Request:
    headers: dict[str, str]
    settings: dict[int, int]
    """What the client set before it asked, by number of the setting."""

    @property
    def path(self) -> str:
        return self.headers[":path"]


@dataclass(frozen=True)
class H2Answer:
    """`frames`: sizes of the first DATA frames, then 16,384 each. `length` None = no content-length."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = -1
    frames: tuple[int, ...] = ()
    end: End = End.STREAM
    stop_after: int | None = None
    """Send only so many bytes of the body, then `end`."""


class SmallHttp2:
    def __init__(self, handler: Callable[[H2Request], H2Answer]) -> None:
        self.handler = handler
        self.requests: list[H2Request] = []
        self.connections = 0
        self.most_in_flight = 0
        """Bytes sent that the client had not acknowledged by opening its window, at most."""
        self.port = 0
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = _Link(self, reader, writer)
        try:
            with contextlib.suppress(ConnectionError, ProtocolError):
                await link.live()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class _Link:
    def __init__(self, server: SmallHttp2, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._window_moved = asyncio.Event()
        self._answering: asyncio.Task[None] | None = None
        self._acknowledged = 0

    async def live(self) -> None:
        self._h2.initiate_connection()
        self._send()
        try:
            while data := await self._reader.read(65_536):
                for event in self._h2.receive_data(data):
                    if isinstance(event, RequestReceived):
                        self._answering = asyncio.ensure_future(self._answer(event))
                    elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
                        if isinstance(event, WindowUpdated) and event.stream_id:
                            self._acknowledged += event.delta or 0
                        self._window_moved.set()
                self._send()
        finally:
            if self._answering is not None:
                self._answering.cancel()
                await asyncio.gather(self._answering, return_exceptions=True)

    async def _answer(self, event: RequestReceived) -> None:
        settings = {int(code): value for code, value in self._h2.remote_settings.items()}
        request = H2Request({str(k): str(v) for k, v in event.headers or ()}, settings)
        self._server.requests.append(request)
        answer = self._server.handler(request)
        stream = event.stream_id
        headers = [(":status", str(answer.status)), *answer.headers.items()]
        if answer.length is not None:
            headers.append(("content-length", str(len(answer.body) if answer.length == -1 else answer.length)))
        self._h2.send_headers(stream, headers)
        self._send()
        await self._send_body(stream, answer)
        if answer.end is End.STREAM:
            self._h2.end_stream(stream)
        elif answer.end is End.RESET:
            self._h2.reset_stream(stream)
        self._send()
        if answer.end is End.CLOSE:
            self._writer.close()

    async def _send_body(self, stream: int, answer: H2Answer) -> None:
        body = answer.body if answer.stop_after is None else answer.body[: answer.stop_after]
        sizes, sent = list(answer.frames), 0
        while sent < len(body):
            size = min(sizes.pop(0) if sizes else 16_384, len(body) - sent)
            while self._h2.local_flow_control_window(stream) < size:
                self._window_moved.clear()
                await self._window_moved.wait()
            self._h2.send_data(stream, body[sent : sent + size])
            sent += size
            self._server.most_in_flight = max(self._server.most_in_flight, sent - self._acknowledged)
            self._send()
            await self._writer.drain()

    def _send(self) -> None:
        self._writer.write(self._h2.data_to_send())


@contextlib.asynccontextmanager
async def small_http2(
    handler: Callable[[H2Request], H2Answer], *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[SmallHttp2]:
    server = SmallHttp2(handler)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    server.scheme = "http" if tls is None else "https"
    try:
        yield server
    finally:
        await stop_accepting(listening)
        while tasks:  # a connection that shook hands just now comes while the others end
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)
        await listening.wait_closed()
        async with asyncio.timeout(10):
            # before Python 3.12 that does not wait for those that still shake hands
            while getattr(listening, "_active_count", 0):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
