"""What one request may cost: header and body sizes, and the pace at which a body must arrive.

The listener bounds what it buffers; here the application refuses, with an answer, what is allowed to arrive there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from flota.errors import FlotaError, InvalidInput, TooLarge
from flota.server.problems import problem, problem_response

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from flota.server.settings import ServerSettings

TARGET_MAX_BYTES: Final = 4096
"""Path and query; the longest of ours, a DDI download of a file with a long percent-encoded name, is below 1 KiB."""

HEADERS_MAX_BYTES: Final = 16 * 1024
HEADERS_MAX_COUNT: Final = 100

DEVICE_BODY_MAX_BYTES: Final = 64 * 1024
"""Device APIs: the largest body is DDI feedback or configData, a few KiB of JSON."""

MANAGEMENT_BODY_MAX_BYTES: Final = 4 << 20
"""Management API: a rollout that names 40,000 devices one by one is about 1 MiB."""

IMPORT_BODY_MAX_BYTES: Final = 32 << 20
"""A CSV file of 200,000 devices."""

BODY_SILENCE_MAX_S: Final = 30.0
"""The longest pause inside a body."""

BODY_RATE_MIN_BYTES_S: Final = 1024
BODY_RATE_AFTER_S: Final = 30.0
"""From this age on a body must have come at the minimum rate on average: no trickle holds a request for ever."""

MANAGEMENT_PREFIX: Final = "/api/v1/"
UPLOAD_PATH: Final = "/api/v1/artifacts"
IMPORT_PATH: Final = "/api/v1/devices/import"
BLYNK_PREFIX: Final = "/blynk/api/"
BLYNK_UPLOAD_PATH: Final = "/blynk/api/upload"
BLYNK_UPLOAD_MAX_BYTES: Final = (10 << 20) + (64 << 10)
"""A file of the vendor's limit, and the form around it (docs/reference/blynk.md)."""


class SlowBody(InvalidInput):
    """The body arrived slower than the limits allow: 408."""

    code = "slow-body"


def body_limit(path: str, settings: ServerSettings) -> int:
    """Return how many bytes a request's body to `path` may have."""
    if path == UPLOAD_PATH:
        return settings.max_artifact_bytes
    if path == IMPORT_PATH:
        return IMPORT_BODY_MAX_BYTES
    if path == BLYNK_UPLOAD_PATH:
        return BLYNK_UPLOAD_MAX_BYTES
    return MANAGEMENT_BODY_MAX_BYTES if path.startswith((MANAGEMENT_PREFIX, BLYNK_PREFIX)) else DEVICE_BODY_MAX_BYTES


class RequestLimits:
    """Middleware: refuses what is too large by its header, breaks off what becomes too large or too slow."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with a `receive` that watches its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = body_limit(scope["path"], self._settings)
        refusal = _header_refusal(scope, limit)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        if _has_no_body(scope):
            await self._app(scope, receive, send)
            return
        body = _WatchedBody(receive, limit)
        answer = _AnswerUnlessTripped(scope, receive, send, body)
        await self._app(scope, body.receive, answer.send)


@dataclass(slots=True)
class _WatchedBody:
    """Counts a body while it comes in. Once a limit trips, `tripped` says which, and every further call raises it."""

    inner: Receive
    limit: int
    clock: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    received: int = 0
    started: float | None = None
    finished: bool = False
    tripped: FlotaError | None = None

    async def receive(self) -> Message:
        if self.tripped is not None:
            raise self.tripped
        if self.finished:
            return await self.inner()
        if self.started is None:
            self.started = self.clock()
        try:
            async with asyncio.timeout(BODY_SILENCE_MAX_S):
                message = await self.inner()
        except TimeoutError:
            raise self._trip(SlowBody("the body stopped", expected=f"a pause below {BODY_SILENCE_MAX_S:g} s")) from None
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self.finished = not message.get("more_body", False)
            self._check(self.clock() - self.started)
        else:
            self.finished = True
        return message

    def _check(self, age_s: float) -> None:
        if self.received > self.limit:
            raise self._trip(_too_large(self.limit, f"{self.received} bytes so far"))
        if not self.finished and age_s > BODY_RATE_AFTER_S and self.received < age_s * BODY_RATE_MIN_BYTES_S:
            found = f"{self.received} bytes in {age_s:.0f} s"
            raise self._trip(SlowBody("the body is too slow", expected=f"{BODY_RATE_MIN_BYTES_S} bytes/s", found=found))

    def _trip(self, error: FlotaError) -> FlotaError:
        self.tripped = error
        return error


@dataclass(slots=True)
class _AnswerUnlessTripped:
    """Replaces whatever an application makes of a broken body by the answer that says what broke it."""

    scope: Scope
    receive: Receive
    inner: Send
    body: _WatchedBody
    started: bool = False
    replaced: bool = False

    async def send(self, message: Message) -> None:
        if self.replaced:
            return
        if self.body.tripped is not None and not self.started:
            self.replaced = True
            await _refusal(self.body.tripped)(self.scope, self.receive, self.inner)
            return
        self.started = True
        await self.inner(message)


def _has_no_body(scope: Scope) -> bool:
    """Return whether there is nothing to watch: most requests of devices, so they are let through without a wrapper."""
    if scope["method"] not in ("GET", "HEAD"):
        return False
    return not any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def _header_refusal(scope: Scope, limit: int) -> Response | None:
    """Return the answer to a request that is too large already by its header, else None."""
    target_bytes = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if target_bytes > TARGET_MAX_BYTES:
        return problem(414, f"the URL has {target_bytes} bytes, {TARGET_MAX_BYTES} are allowed")
    headers = scope["headers"]
    total, length = 0, None
    for name, value in headers:
        total += len(name) + len(value)
        if name == b"content-length":
            length = value
    if total > HEADERS_MAX_BYTES or len(headers) > HEADERS_MAX_COUNT:
        allowed = f"{HEADERS_MAX_BYTES} bytes in {HEADERS_MAX_COUNT} fields are allowed"
        return problem(431, f"the header has {total} bytes in {len(headers)} fields, {allowed}")
    if length is not None and length.isdigit() and int(length) > limit:
        return _refusal(_too_large(limit, f"{int(length)} bytes"))
    return None


def _too_large(limit: int, found: str) -> TooLarge:
    return TooLarge("the body is too large", expected=f"at most {limit} bytes", found=found)


def _refusal(error: FlotaError) -> Response:
    """Return the answer, which also ends the connection over HTTP/1.1: the rest of the body is not going to be read."""
    if isinstance(error, SlowBody):
        response = problem(408, error.message, facts={"code": error.code, **_facts(error)})
    else:
        response = problem_response(error)
    response.headers["connection"] = "close"
    return response


def _facts(error: FlotaError) -> dict[str, object]:
    return {name: value for name, value in error.as_dict().items() if name not in ("code", "message")}
