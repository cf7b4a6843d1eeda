"""The one download handler: every dialect hands out an artifact's bytes through `send_artifact`.

What every device may rely on, whatever the dialect (docs/reference/server.md, "Downloads"): content-length always,
never compressed, never chunked, never redirected; a strong ETag; one byte range; a first DATA frame of at least 288
bytes, because Viam's micro-RDK looks for the ESP image header in the first frame only (docs/reference/server.md).
"""

from __future__ import annotations

import enum
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import Response

from flota.digests import parse_sha256_hex
from flota.errors import FlotaError, InvalidInput, NotFound, Unauthenticated
from flota.protocols.http_range import (
    ByteRange,
    RangeNotSatisfiable,
    content_range,
    if_range,
    none_match,
    parse_range,
    unsatisfied_content_range,
)
from flota.server.api.artifact_parts import ARTIFACTS_PREFIX, ArtifactParts
from flota.server.api.file_bodies import FILE_BODIES
from flota.server.auth import Permission, authenticate, require
from flota.server.problems import problem, problem_response
from flota.server.unacknowledged import Connection

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from flota.server.context import ServerContext
    from flota.server.download_tokens import DownloadGrant

RawHeaders = list[tuple[bytes, bytes]]
Fields = dict[bytes, bytes]

SMALL_BODY_BYTES: Final = 64 * 1024
"""Handed over in one go."""

PATHSEND: Final = "http.response.pathsend"

BODY_MEDIA_TYPE: Final = b"application/octet-stream"


class DeliveryOutcome(enum.Enum):
    """How a body ended, as far as a server can know. HANDED_OVER is no proof that the peer has read a single byte."""

    HANDED_OVER = "handed-over"
    INTERRUPTED = "interrupted"


async def send_artifact(
    scope: Scope,
    receive: Receive,
    send: Send,
    path: Path,
    *,
    sha256: str,
    extra_headers: Mapping[str, str] | None = None,
    last_modified: datetime | None = None,
    allow_range: bool = True,
    on_finished: Callable[[DeliveryOutcome], None] | None = None,
    use_pathsend: bool = True,
) -> None:
    """Answer GET or HEAD with the file at `path` (absolute), whose SHA-256 (lower-case hex) is `sha256`.

    200, 206, 304 (If-None-Match, or If-Modified-Since where `last_modified` is given) or 416. `extra_headers` go into
    each of them, e.g. `x-MD5`. With `use_pathsend` whole files go the fastest way, mostly the server's own file loop:
    then a peer that goes away may not be noticed; without it they go in pieces and it is. `on_finished` is called
    once, after a GET that had a body (200 or 206).
    Raises `NotFound` before anything is sent if there is no such file.
    """
    headers = dict(scope["headers"])
    etag = f'"{sha256}"'
    common = _common_headers(etag, extra_headers or {}, last_modified, allow_range=allow_range)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound("the artifact's file is missing", found=sha256, hint="Upload the file again.") from None
    try:
        size = os.fstat(descriptor).st_size
        if _not_modified(headers, etag, last_modified):
            await _send_empty(send, 304, common)
            return
        try:
            part = _wanted_part(headers, etag, size, last_modified) if allow_range else None
        except RangeNotSatisfiable:
            unsatisfied = (b"content-range", unsatisfied_content_range(size).encode())
            await _send_empty(send, 416, [*common, unsatisfied, (b"content-length", b"0")])
            return
        await _send_body(
            scope, receive, send, path, descriptor, size, part, common, on_finished, use_pathsend=use_pathsend
        )
    finally:
        os.close(descriptor)


class ArtifactResponse(Response):
    """`send_artifact` as a Starlette response, for endpoints that return one."""

    def __init__(
        self,
        path: Path,
        *,
        sha256: str,
        extra_headers: Mapping[str, str] | None = None,
        last_modified: datetime | None = None,
        allow_range: bool = True,
        on_finished: Callable[[DeliveryOutcome], None] | None = None,
        use_pathsend: bool = True,
    ) -> None:
        super().__init__()
        self._path = path
        self._sha256 = sha256
        self._options: dict[str, Any] = {
            "extra_headers": extra_headers,
            "last_modified": last_modified,
            "allow_range": allow_range,
            "on_finished": on_finished,
            "use_pathsend": use_pathsend,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, or the part of it that the request asks for."""
        await send_artifact(scope, receive, send, self._path, sha256=self._sha256, **self._options)


KNOWN_PATHS: Final = 256
"""Artifacts whose place on disk is remembered: it depends on nothing but the digest."""


class ArtifactApi:
    """`GET /artifacts/{sha256}`: for signed links, and for management tokens of the artifact's tenant.

    Bare ASGI, before the router. Links that were found good are left to `parts`, which answers plain requests for
    small ranges even before that: they come by the ten thousand.
    """

    def __init__(self, context: ServerContext) -> None:
        self.parts = ArtifactParts(context)
        self._context = context
        self._path_of = functools.lru_cache(maxsize=KNOWN_PATHS)(context.artifacts.path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; errors become problem documents."""
        try:
            if scope["method"] not in ("GET", "HEAD"):
                await problem(405, "only GET and HEAD", headers={"allow": "GET, HEAD"})(scope, receive, send)
                return
            sha256 = _requested_sha256(scope["path"])
            path = self._path_of(sha256)
            grant = await self._authorize(scope, sha256)
            if grant is not None:
                self.parts.remember(scope, grant, path, _part_headers(sha256))
            await send_artifact(scope, receive, send, path, sha256=sha256)
        except FlotaError as error:
            await problem_response(error)(scope, receive, send)

    async def _authorize(self, scope: Scope, sha256: str) -> DownloadGrant | None:
        """Return if the request may have the artifact, with the grant of a signed link.

        Raises `Unauthenticated`, `Forbidden` or `NotFound`.
        """
        token = _token_in(scope["query_string"].decode("latin-1"))
        if token is not None:
            return self._context.download_tokens.check(token, sha256, now=self._context.now())
        header = Headers(scope=scope).get("authorization")
        if header is None:
            raise Unauthenticated("a token is needed", hint="Send ?token= from the update, or Authorization: Bearer.")
        caller, role = await authenticate(self._context, header)
        require(role, Permission.ARTIFACTS_READ)
        async with self._context.storage.reading() as transaction:
            await transaction.artifact(caller, sha256)
        return None


def _token_in(query: str) -> str | None:
    """Return the value of `token`; a query of nothing else, as in our own links, needs no general parser."""
    name, _, value = query.partition("=")
    if name == "token" and not set(value) & set("&;%+"):
        return value
    return next(iter(parse_qs(query).get("token", ())), None)


def _requested_sha256(path: str) -> str:
    try:
        return parse_sha256_hex(path.removeprefix(ARTIFACTS_PREFIX))
    except InvalidInput as error:
        raise NotFound("no such artifact") from error


def _common_headers(
    etag: str, extra: Mapping[str, str], last_modified: datetime | None, *, allow_range: bool
) -> RawHeaders:
    named = {
        b"etag": etag.encode(),
        b"accept-ranges": b"bytes" if allow_range else b"none",
        b"cache-control": b"no-transform",  # no proxy on the way may compress what a device cannot unpack
    }
    if last_modified is not None:
        named[b"last-modified"] = _http_date(last_modified).encode()
    named |= {name.lower().encode("latin-1"): value.encode("latin-1") for name, value in extra.items()}
    return list(named.items())


def _part_headers(sha256: str) -> RawHeaders:
    return [*_common_headers(f'"{sha256}"', {}, None, allow_range=True), (b"content-type", BODY_MEDIA_TYPE)]


def _not_modified(headers: Fields, etag: str, last_modified: datetime | None) -> bool:
    """Return whether the client has this file already: by its ETag, else (only without If-None-Match) by its date."""
    if b"if-none-match" in headers:
        return none_match(_text(headers, b"if-none-match"), etag)
    since = _text(headers, b"if-modified-since")
    if since is None or last_modified is None:
        return False
    try:
        return last_modified.replace(microsecond=0) <= parsedate_to_datetime(since)
    except (ValueError, TypeError):  # no date, or one without a zone: RFC 9110 13.1.3 has it ignored
        return False


def _wanted_part(headers: Fields, etag: str, size: int, last_modified: datetime | None) -> ByteRange | None:
    """Return the asked-for part; None for the whole file, also when If-Range names another file than this one."""
    date = None if last_modified is None else _http_date(last_modified)
    if not if_range(_text(headers, b"if-range"), etag, date):
        return None
    return parse_range(_text(headers, b"range"), size)


def _text(headers: Fields, name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def _http_date(moment: datetime) -> str:
    return format_datetime(moment.astimezone(UTC), usegmt=True)


async def _send_empty(send: Send, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_body(
    scope: Scope,
    receive: Receive,
    send: Send,
    path: Path,
    descriptor: int,
    size: int,
    part: ByteRange | None,
    common: RawHeaders,
    on_finished: Callable[[DeliveryOutcome], None] | None,
    *,
    use_pathsend: bool,
) -> None:
    length = size if part is None else part.length
    headers = [*common, (b"content-type", BODY_MEDIA_TYPE), (b"content-length", str(length).encode())]
    if part is not None:
        headers.append((b"content-range", content_range(part, size).encode()))
    start: Message = {"type": "http.response.start", "status": 200 if part is None else 206, "headers": headers}
    if scope["method"] == "HEAD" or length == 0:
        await send(start)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    outcome = DeliveryOutcome.INTERRUPTED
    try:
        await send(start)
        if length <= SMALL_BODY_BYTES:
            await send(_whole_body(descriptor, 0 if part is None else part.first, length))
            outcome = DeliveryOutcome.HANDED_OVER
        elif part is None and use_pathsend and _has_file_loop(scope):
            await send({"type": PATHSEND, "path": str(path)})
            outcome = DeliveryOutcome.HANDED_OVER
        else:
            first = 0 if part is None else part.first
            watched = on_finished is not None
            connection = Connection.of(scope) if watched else None
            if await FILE_BODIES.send(receive, send, descriptor, first, length, watched=watched, connection=connection):
                outcome = DeliveryOutcome.HANDED_OVER
    finally:
        if on_finished is not None:
            on_finished(outcome)


def _has_file_loop(scope: Scope) -> bool:
    """Return whether the server's own file loop costs no more than our pieces: over plain HTTP/2 it does."""
    if scope.get("http_version") == "2" and scope.get("scheme") == "http":
        return False
    return PATHSEND in (scope.get("extensions") or {})


def _whole_body(descriptor: int, first: int, length: int) -> Message:
    data = os.pread(descriptor, length, first)
    if len(data) != length:
        raise FlotaError(
            "the artifact's file became shorter while it was sent", offset=first, expected=length, found=len(data)
        )
    return {"type": "http.response.body", "body": data, "more_body": False}
