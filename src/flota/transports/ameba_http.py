"""Two small listeners for AmebaD firmware that fetches for itself: over HTTP, and by TCP as the vendor's server does.

Source: docs/reference/ameba-push.md, "Pulling over HTTP", "Pulling by TCP".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from flota.protocols.ameba_http import TRIGGER, TRIGGER_PORT, UPLOAD_PATH, PullRequest, StatePost, pack_pull_answer
from flota.protocols.ameba_push import STALL_LIMIT_S, push_stream_start
from flota.protocols.malformed import MalformedMessage
from flota.protocols.peer_text import clean_text
from flota.transports.ameba_states import StateBook, answer_states
from flota.transports.device_http import Places, close, listening, peer_of, plain, read_request, send

TRIGGER_LIMIT_S: Final = 15.0
"""A device looks once in 10 s."""

PIECE_BYTES: Final = 64 * 1024

Tell = Callable[[str, str], None]
"""(address of the device, what happened)."""


def _silent(_device: str, _text: str) -> None:
    """Tell nobody."""


class PullServer:
    """Gives one `OTA_All.bin` to whoever asks, and keeps the states that devices post. `file` is served unchanged."""

    def __init__(self, file: bytes, *, tell: Tell = _silent) -> None:
        self._file = file
        self._tell = tell
        self._book = StateBook()
        self._told: dict[str, str] = {}
        self._places = Places()

    def states(self) -> dict[str, str]:
        """Return the last state of each device that was heard of lately, by address."""
        return self._book.recent()

    @contextlib.asynccontextmanager
    async def http(self, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
        """Listen for HTTP as long as the context is open; gives the address. Raises `OSError`."""
        async with listening(self._serve_http, host, port) as address:
            yield address

    @contextlib.asynccontextmanager
    async def tcp(self, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
        """Listen for devices of `update_ota_local` as long as the context is open. Raises `OSError`."""
        async with listening(self._serve_tcp, host, port) as address:
            yield address

    async def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        device = peer_of(writer)
        async with self._places.take(writer) as free:
            if not free:
                return
            try:
                request, body = await read_request(reader)
                await self._answer(device, request, body, writer)
            except MalformedMessage as error:
                with contextlib.suppress(OSError, TimeoutError):
                    await send(writer, plain(400, str(error)))
            except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
                return

    async def _answer(self, device: str, request: PullRequest, body: bytes, writer: asyncio.StreamWriter) -> None:
        about_states = answer_states(device, request, body, self._book, self._heard)
        if about_states is not None:
            await send(writer, about_states)
        elif request.method == "GET":
            # http_update_ota asks for whatever resource its sketch names: every path is the file
            what = "" if request.path == UPLOAD_PATH else f" ({request.path})"
            self._tell(device, f"fetches the file{what}")
            await send(writer, pack_pull_answer(len(self._file)))
            await self._send_file(device, writer)
        else:
            await send(writer, plain(405, "GET, or POST of a state"))

    def _heard(self, device: str, post: StatePost) -> None:
        text = post.state if post.version is None else f"{post.state}, version {post.version}"
        known = self.states()
        for gone in [address for address in self._told if address not in known]:
            del self._told[gone]
        if self._told.get(device) != text:
            self._told[device] = text
            self._tell(device, text)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        device = peer_of(writer)
        async with self._places.take(writer) as free:
            if not free:
                return
            self._tell(device, "is given the file")
            with contextlib.suppress(OSError, TimeoutError):
                await send(writer, push_stream_start(self._file))
                await self._send_file(device, writer)
                async with asyncio.timeout(STALL_LIMIT_S):
                    while await reader.read(PIECE_BYTES):
                        pass
                self._tell(device, "Client Disconnected.")

    async def _send_file(self, device: str, writer: asyncio.StreamWriter) -> None:
        view = memoryview(self._file)
        for start in range(0, len(view), PIECE_BYTES):
            try:
                await send(writer, view[start : start + PIECE_BYTES])
            except (OSError, TimeoutError) as error:
                self._tell(device, f"stopped after {start} of {len(view)} bytes: {clean_text(str(error)) or 'silence'}")
                raise
        self._tell(device, f"has been sent all {len(view)} bytes")


async def trigger(device: str, *, port: int = TRIGGER_PORT, limit_s: float = TRIGGER_LIMIT_S) -> bytes:
    """Tell a device with `OTA_Http` to fetch now; returns its echo. Raises `OSError` or `TimeoutError`.

    It looks once in 10 s, and answers with what it was sent.
    """
    body = TRIGGER
    host = f"[{device}]" if ":" in device else device
    head = f"POST / HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n".encode("ascii", "replace")
    async with asyncio.timeout(limit_s):
        reader, writer = await asyncio.open_connection(device, port)
        try:
            await send(writer, head + body)
            return await reader.read(1024)
        finally:
            await close(writer)
