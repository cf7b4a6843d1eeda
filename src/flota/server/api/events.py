"""`GET /api/v1/events`: the audit trail as server-sent events, from any point on, for as long as the reader stays.

Source: HTML Living Standard, "Server-sent events"; docs/reference/server.md, "Events".
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from flota.errors import InvalidInput
from flota.fleet.audit import AuditEntry
from flota.fleet.scope import Scope as FleetScope
from flota.server.auth import Permission, authenticate, require

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from flota.server.context import ServerContext
    from flota.server.journal import Journal

COMMENT_EVERY_S: Final = 15.0
"""A comment line so often keeps proxies from taking a quiet stream for a dead one."""

SEQUENCE_MAX_DIGITS: Final = 18


def routes(context: ServerContext) -> list[BaseRoute]:
    """Return the event stream's route. It belongs before the management API's mount, which has the same prefix."""

    async def events(request: Request) -> Response:
        scope, role = await authenticate(context, request.headers.get("authorization"))
        require(role, Permission.AUDIT_READ)
        after = await _starting_point(context, scope, request)
        return EventStream(context.journal, scope, after)

    return [Route("/api/v1/events", events, methods=["GET"])]


class EventStream(Response):
    """Streams the entries after sequence `after` of one tenant until the reader goes or the server stops."""

    def __init__(self, journal: Journal, scope: FleetScope, after: int) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._journal = journal
        self._scope = scope
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until nobody reads them any more."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        gone = asyncio.Event()
        watching = asyncio.ensure_future(_watch_peer(receive, gone))
        try:
            await self._write(send, gone)
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    async def _write(self, send: Send, gone: asyncio.Event) -> None:
        await send({"type": "http.response.body", "body": b": flota events\n\n", "more_body": True})
        after = self._after
        while not gone.is_set():  # never canceled: a look into the database would be broken off
            page = await self._journal.next_page(self._scope, after, timeout_s=COMMENT_EVERY_S, gone=gone)
            if page is None:
                break
            text = b"".join(map(event_bytes, page)) or b": nothing new\n\n"
            await send({"type": "http.response.body", "body": text, "more_body": True})
            after = page[-1].sequence if page else after
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event_bytes(entry: AuditEntry) -> bytes:
    """Return one event: its id is the sequence number, its data the entry as one line of JSON."""
    return b"id: %d\ndata: %b\n\n" % (entry.sequence, msgspec.json.encode(entry))


async def _starting_point(context: ServerContext, scope: FleetScope, request: Request) -> int:
    """Return the sequence after which to begin: Last-Event-ID, else `?after=`, else the newest entry there is."""
    text = request.headers.get("last-event-id") or request.query_params.get("after")
    if text is None:
        return await context.journal.last_sequence(scope)
    if not (text.isascii() and text.isdecimal() and len(text) <= SEQUENCE_MAX_DIGITS):
        raise InvalidInput("not a sequence number to begin after", expected="a whole number", found=repr(text[:40]))
    return int(text)


async def _watch_peer(receive: Receive, gone: asyncio.Event) -> None:
    """Set `gone` once the reader has left."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        gone.set()
