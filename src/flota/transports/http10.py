"""One HTTP/1.0 exchange as small devices make it: request bytes out, head, then a body that may not fall silent.

httpx speaks 1.1; Arduino's HTTPUpdate speaks 1.0, closes after one answer and gives up after seconds of silence.
Source: docs/reference/http-update.md; espressif/arduino-esp32:libraries/HTTPClient/src/HTTPClient.cpp (`useHTTP10`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import SplitResult, urlsplit

from flota.errors import InvalidInput, PeerError

HEAD_MAX_BYTES: Final = 16 * 1024
READ_BYTES: Final = 4096
RECEIVE_WINDOW_BYTES: Final = 5760
"""TCP window of an ESP32: four segments of 1440 bytes (espressif/esp-idf:components/lwip/Kconfig,
LWIP_TCP_WND_DEFAULT). Linux doubles what it is given, for its own book-keeping."""

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

T = TypeVar("T")


class LinkBroken(PeerError):
    """The connection could not be made, broke, or fell silent for too long."""

    code = "link-broken"


@dataclass(slots=True)
class Http10Answer:
    """An answer's status and headers (lower-case names, the first of each name), and the body still to be read."""

    status: int
    headers: dict[str, str]
    _reader: asyncio.StreamReader
    _silence_limit_s: float

    @property
    def content_length(self) -> int | None:
        """Announced length of the body in bytes; None if absent or not a number."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdecimal() else None

    async def body(self, length: int) -> AsyncIterator[bytes]:
        """Give `length` bytes of the body as they come. Raises `LinkBroken` on silence or an early end."""
        left = length
        while left:
            data = await _in_time(self._reader.read(min(READ_BYTES, left)), self._silence_limit_s)
            if not data:
                raise LinkBroken("the body ended early", expected=f"{length} bytes", found=f"{length - left} bytes")
            left -= len(data)
            yield data


def split_url(url: str) -> SplitResult:
    """Return the parts of an http or https URL with a host. Raises `InvalidInput`."""
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise InvalidInput("not an http URL", expected="http://HOST[:PORT]/PATH", found=repr(url[:200]))
    return parts


@contextlib.asynccontextmanager
async def http10_exchange(
    url: str, request: bytes, *, silence_limit_s: float, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Http10Answer]:
    """Send `request` to the host of `url` and give the answer; the connection closes when the block is left.

    `silence_limit_s`: the longest wait for a connection and for each next byte. Raises `LinkBroken`, or `PeerError` for
    an answer that is not HTTP.
    """
    parts = split_url(url)
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    secure = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
    connecting = connect_as_device(parts.hostname or "", port, secure)
    reader, writer = await _in_time(connecting, silence_limit_s, broken=f"cannot connect to {parts.hostname}:{port}")
    try:
        writer.write(request)
        await _in_time(writer.drain(), silence_limit_s)
        status, headers = parse_head(await _in_time(_read_head(reader), silence_limit_s))
        yield Http10Answer(status, headers, reader, silence_limit_s)
    finally:
        writer.close()
        try:
            with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
                async with asyncio.timeout(silence_limit_s):
                    await writer.wait_closed()
        finally:  # a server that does not say goodbye over TLS, or power that goes meanwhile
            writer.transport.abort()


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return status and headers of an answer's head (with its empty line). Raises `PeerError`."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not (words[1].isascii() and words[1].isdecimal()):
        raise PeerError("not an HTTP answer", found=repr(lines[0][:80]))
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), value.strip())
    return int(words[1]), headers


FIRST_STEPS: Final = 3
"""Turns of the event loop until a connection that is being opened has a transport that can be closed."""


async def connect_as_device(
    host: str, port: int, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect with a device's small receive window, which has to be set before the connection is made.

    It matters to the other side: what a device has not taken stays with the server, which so learns of a break.
    Raises `OSError`.
    """
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        link = socket.socket(family, kind, protocol)
        try:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_WINDOW_BYTES)
            link.setblocking(False)
            await loop.sock_connect(link, address)
            return await _streams(link, tls, host if tls is not None else None)
        except OSError as error:
            link.close()
            failure = error
        except BaseException:
            link.close()
            raise
    raise failure or OSError(f"{host} has no address")


async def _streams(
    link: socket.socket, tls: ssl.SSLContext | None, name: str | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return the streams of a connected socket; who is canceled meanwhile leaves nothing open.

    asyncio leaves the socket to a transport that nobody closes if it is canceled before the transport's first step.
    """
    opening = asyncio.ensure_future(
        asyncio.open_connection(sock=link, ssl=tls, server_hostname=name, limit=HEAD_MAX_BYTES)
    )
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        for _ in range(FIRST_STEPS):
            await asyncio.sleep(0)
        opening.cancel()
        (outcome,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(outcome, tuple):
            outcome[1].transport.abort()
        await asyncio.sleep(0)  # for the transport to let go of the socket
        raise


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        raise LinkBroken("the connection closed before the answer", found=f"{len(error.partial)} bytes") from error
    except asyncio.LimitOverrunError as error:
        raise PeerError("the answer's head is too long", expected=f"at most {HEAD_MAX_BYTES} bytes") from error


async def _in_time(work: Awaitable[T], limit_s: float, *, broken: str = "the connection broke") -> T:
    try:
        async with asyncio.timeout(limit_s):
            return await work
    except TimeoutError as error:
        raise LinkBroken(f"silent for {limit_s:g} s") from error
    except OSError as error:
        raise LinkBroken(broken, found=str(error)) from error
