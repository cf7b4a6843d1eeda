"""Two small listeners for AmebaD firmware that fetches for itself: over HTTP, and by TCP as the vendor's server does.

Written on asyncio's streams alone: a stock HTTP server writes header names in lower case, which the device cannot read.
Source: docs/reference/ameba-push.md, "Pulling over HTTP", "Pulling by TCP".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from flota.protocols.ameba_http import (
    CLIENT_SEEN_FOR_S,
    CLIENTS_PATH,
    REQUEST_MAX_BYTES,
    TRIGGER,
    TRIGGER_PORT,
    UPLOAD_PATH,
    PullRequest,
    pack_pull_answer,
    parse_pull_request,
    parse_state,
)
from flota.protocols.ameba_push import STALL_LIMIT_S, push_stream_start
from flota.protocols.malformed import MalformedMessage
from flota.protocols.peer_text import clean_text

REQUEST_LIMIT_S: Final = 10.0
PIECE_BYTES: Final = 64 * 1024
DEVICES_MAX: Final = 1000
CONNECTIONS_MAX: Final = 64

Tell = Callable[[str, str], None]
"""(address of the device, what happened)."""


def _silent(_device: str, _text: str) -> None:
    """Tell nobody."""


class PullServer:
    """Gives one `OTA_All.bin` to whoever asks, and keeps the states that devices post. `file` is served unchanged."""

    def __init__(self, file: bytes, *, tell: Tell = _silent) -> None:
        self._file = file
        self._tell = tell
        self._states: dict[str, tuple[float, str]] = {}
        self._open = 0

    def states(self) -> dict[str, str]:
        """Return the last state of each device that was heard of lately, by address."""
        now = time.monotonic()
        return {device: state for device, (at, state) in self._states.items() if now - at < CLIENT_SEEN_FOR_S}

    @contextlib.asynccontextmanager
    async def http(self, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
        """Listen for HTTP as long as the context is open; gives the address. Raises `OSError`."""
        async with _listening(self._serve_http, host, port) as address:
            yield address

    @contextlib.asynccontextmanager
    async def tcp(self, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
        """Listen for devices of `update_ota_local` as long as the context is open. Raises `OSError`."""
        async with _listening(self._serve_tcp, host, port) as address:
            yield address

    async def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        device = _peer_of(writer)
        async with self._place(writer) as free:
            if not free:
                return
            try:
                async with asyncio.timeout(REQUEST_LIMIT_S):
                    request = parse_pull_request(await reader.readuntil(b"\r\n\r\n"))
                    body = await reader.readexactly(min(request.body_length, REQUEST_MAX_BYTES))
                await self._answer(device, request, body, writer)
            except MalformedMessage as error:
                await _send(writer, _plain(400, str(error)))
            except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
                return

    async def _answer(self, device: str, request: PullRequest, body: bytes, writer: asyncio.StreamWriter) -> None:
        if request.path == CLIENTS_PATH and request.method == "POST":
            self._note(device, parse_state(body))
            await _send(writer, _plain(200, '{"success":true}', kind="application/json"))
        elif request.path == CLIENTS_PATH and request.method == "GET":
            entries = [{"ip": device, "OTA_state": state} for device, state in self.states().items()]
            await _send(writer, _plain(200, json.dumps({"recentEntries": entries}), kind="application/json"))
        elif request.method == "GET":
            # http_update_ota asks for whatever resource its sketch names: every path is the file
            what = "" if request.path == UPLOAD_PATH else f" ({request.path})"
            self._tell(device, f"fetches the file{what}")
            await _send(writer, pack_pull_answer(len(self._file)))
            await self._send_file(device, writer)
        else:
            await _send(writer, _plain(405, "GET, or POST of a state"))

    def _note(self, device: str, state: str) -> None:
        before = self._states.pop(device, (0.0, ""))[1]
        self._states[device] = (time.monotonic(), state)
        while len(self._states) > DEVICES_MAX:
            del self._states[next(iter(self._states))]
        if state != before:
            self._tell(device, state)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        device = _peer_of(writer)
        async with self._place(writer) as free:
            if not free:
                return
            self._tell(device, "is given the file")
            with contextlib.suppress(OSError, TimeoutError):
                await _send(writer, push_stream_start(self._file))
                await self._send_file(device, writer)
                async with asyncio.timeout(STALL_LIMIT_S):
                    while await reader.read(PIECE_BYTES):
                        pass
                self._tell(device, "Client Disconnected.")

    async def _send_file(self, device: str, writer: asyncio.StreamWriter) -> None:
        view = memoryview(self._file)
        for start in range(0, len(view), PIECE_BYTES):
            try:
                await _send(writer, view[start : start + PIECE_BYTES])
            except (OSError, TimeoutError) as error:
                self._tell(device, f"stopped after {start} of {len(view)} bytes: {clean_text(str(error)) or 'silence'}")
                raise
        self._tell(device, f"has been sent all {len(view)} bytes")

    @contextlib.asynccontextmanager
    async def _place(self, writer: asyncio.StreamWriter) -> AsyncIterator[bool]:
        """Give whether there is room for one more connection; closes it in the end."""
        self._open += 1
        try:
            yield self._open <= CONNECTIONS_MAX
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def trigger(device: str, *, port: int = TRIGGER_PORT, limit_s: float = REQUEST_LIMIT_S) -> bytes:
    """Tell a device with `OTA_Http` to fetch now; returns its echo. Raises `OSError` or `TimeoutError`.

    It looks once in 10 s, and answers with what it was sent.
    """
    body = TRIGGER
    head = f"POST / HTTP/1.1\r\nHost: {device}:{port}\r\nContent-Length: {len(body)}\r\n\r\n".encode("ascii")
    async with asyncio.timeout(limit_s):
        reader, writer = await asyncio.open_connection(device, port)
        try:
            await _send(writer, head + body)
            return await reader.read(1024)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _send(writer: asyncio.StreamWriter, data: bytes | memoryview) -> None:
    """Write, and wait until the device takes it: an erasing one takes nothing for a long time."""
    async with asyncio.timeout(STALL_LIMIT_S):
        writer.write(data)
        await writer.drain()


def _plain(status: int, text: str, *, kind: str = "text/plain") -> bytes:
    reason = {200: "OK", 400: "Bad Request", 405: "Method Not Allowed"}[status]
    body = text.encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


def _peer_of(writer: asyncio.StreamWriter) -> str:
    peer = writer.get_extra_info("peername")
    return str(peer[0]) if peer else "?"


@contextlib.asynccontextmanager
async def _listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object], host: str, port: int
) -> AsyncIterator[tuple[str, int]]:
    server = await asyncio.start_server(serve, host, port, limit=REQUEST_MAX_BYTES)  # type: ignore[arg-type]
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        await server.wait_closed()
