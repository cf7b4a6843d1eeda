"""What the small listeners for AmebaD firmware share: one request a connection, few at a time, nothing for ever.

Written on asyncio's streams alone: a stock HTTP server writes header names in lower case, which the device cannot read.
Source: docs/reference/ameba-push.md, "Pulling over HTTP".
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable
from typing import Final

from flota.protocols.ameba_http import REQUEST_MAX_BYTES, PullRequest, parse_pull_request
from flota.protocols.ameba_push import STALL_LIMIT_S

REQUEST_LIMIT_S: Final = 10.0
CONNECTIONS_MAX: Final = 64
_REASONS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


class Places:
    """Counts open connections: what comes when all places are taken is closed at once."""

    def __init__(self, most: int = CONNECTIONS_MAX) -> None:
        self._most = most
        self._open = 0

    @contextlib.asynccontextmanager
    async def take(self, writer: asyncio.StreamWriter) -> AsyncIterator[bool]:
        """Give whether there is room for one more connection; closes it in the end."""
        self._open += 1
        try:
            yield self._open <= self._most
        finally:
            self._open -= 1
            await close(writer)


async def read_request(reader: asyncio.StreamReader) -> tuple[PullRequest, bytes]:
    """Return a request and its body, which is cut at `REQUEST_MAX_BYTES`.

    Raises `MalformedMessage`; `TimeoutError`, `IncompleteReadError`, `LimitOverrunError` or `OSError` for a peer that
    is too slow, gone, or sends more than a device would.
    """
    async with asyncio.timeout(REQUEST_LIMIT_S):
        request = parse_pull_request(await reader.readuntil(b"\r\n\r\n"))
        return request, await reader.readexactly(min(request.body_length, REQUEST_MAX_BYTES))


async def send(writer: asyncio.StreamWriter, data: bytes | memoryview) -> None:
    """Write, and wait until the device takes it: an erasing one takes nothing for a long time."""
    async with asyncio.timeout(STALL_LIMIT_S):
        writer.write(data)
        await writer.drain()


def plain(status: int, text: str, *, kind: str = "text/plain") -> bytes:
    """Return a whole answer, the length spelled as devices know it."""
    body = text.encode()
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


def peer_of(writer: asyncio.StreamWriter) -> str:
    """Return the peer's address; IPv4 ones as such, also on a listener for both families."""
    peer = writer.get_extra_info("peername")
    if not peer:
        return "?"
    try:
        address = ipaddress.ip_address(peer[0].partition("%")[0])
    except ValueError:
        return str(peer[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or peer[0])


async def close(writer: asyncio.StreamWriter) -> None:
    """End a connection; one that is broken already is no error."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def listening(serve: Serve, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
    """Listen as long as the context is open; gives the address. Raises `OSError`."""
    server = await asyncio.start_server(serve, host, port, limit=REQUEST_MAX_BYTES)  # type: ignore[arg-type]
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        await server.wait_closed()
