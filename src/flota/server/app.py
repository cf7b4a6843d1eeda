"""The whole application: every API under one roof, behind limits, counters and the last resort for bugs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
from starlette.applications import Starlette
from starlette.routing import Mount

from flota.server.api.artifact_parts import ARTIFACTS_PREFIX
from flota.server.limits import RequestLimits
from flota.server.poll_answers import ADMITTED
from flota.server.problems import EXCEPTION_HANDLERS, UNEXPECTED, problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from flota.server.context import ServerContext
    from flota.server.short_way import AnswerAtOnce

COMMON_HEADERS: Final = ((b"server", b"flota"), (b"x-content-type-options", b"nosniff"))
"""For every answer. Two short ones: an ESP32 reads answers through a buffer of 512 bytes."""

PEOPLE_HEADERS: Final = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
"""For what a browser may open. A page that needs more sets its own policy, which then stays."""

PEOPLE_PREFIXES: Final = ("/api/", "/healthz", "/metrics")

_log = structlog.get_logger(__name__)


def build_app(context: ServerContext) -> Outermost:
    """Return the ASGI application that both listeners serve.

    DDI comes last: its first path segment is a tenant's name, so its routes would match anything else's.
    """
    from flota.server.api import ddi, events, health, http_update
    from flota.server.api.artifacts import ArtifactApi
    from flota.server.api.aws_iot.files import AwsIotFiles
    from flota.server.api.blynk import shipments as blynk_shipments
    from flota.server.api.blynk.files import BlynkFiles
    from flota.server.api.management import build_management_api
    from flota.server.api.viam import ViamApi

    polls = ddi.Polls(context)
    routes = [
        *health.routes(context),
        *events.routes(context),
        Mount("/api/v1", build_management_api(context)),
        *http_update.routes(context),
        *blynk_shipments.routes(context),
        *ddi.routes(context, polls),
    ]
    routed = Starlette(routes=routes, exception_handlers=dict(EXCEPTION_HANDLERS))
    routed.router.redirect_slashes = False  # a device that asks at a wrong address is told so, as by hawkBit
    artifacts = ArtifactApi(context)
    viam = ViamApi(context)
    aws_iot_files = AwsIotFiles(context)
    blynk_files = BlynkFiles(context)

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path.startswith(ARTIFACTS_PREFIX):
            await artifacts(scope, receive, send)
        elif viam.serves(path):
            await viam(scope, receive, send)
        elif aws_iot_files.serves(path):
            await aws_iot_files(scope, receive, send)
        elif blynk_files.serves(path):
            await blynk_files(scope, receive, send)
        elif path and polls.serves(scope):
            await polls(scope, receive, send)
        else:
            await routed(scope, receive, send)

    return wrap(choose, context, at_once=artifacts.parts.answer)


def wrap(app: ASGIApp, context: ServerContext, *, at_once: AnswerAtOnce | None = None) -> Outermost:
    """Return `app` behind the limits, the common headers, the counters and the last resort.

    `at_once` is asked first, in any thread: it answers a request within its own limits, or leaves it to `app`.
    """
    return Outermost(RequestLimits(app, context.settings), context, at_once)


class Outermost:
    """Counts every request, adds headers, and lets no exception through to the server's own error page."""

    def __init__(self, app: ASGIApp, context: ServerContext, at_once: AnswerAtOnce | None) -> None:
        self._app = app
        self._metrics = context.metrics
        self._at_once = at_once
        self._polls = context.poll_answers

    def answer_at_once(self, scope: Scope) -> tuple[Message, Message] | None:
        """Return the whole answer, counted, if it needs no waiting and no event loop; None if it needs a call.

        For any thread. Raises nothing.
        """
        answer = self._asked_at_once(scope)
        if answer is not None:
            start = answer[0]
            start["headers"] += COMMON_HEADERS
            self._metrics.answered(scope["path"], start["status"])
        return answer

    def _asked_at_once(self, scope: Scope) -> tuple[Message, Message] | None:
        if self._at_once is None:
            return None
        try:
            return self._at_once(scope)
        except Exception as error:  # noqa: BLE001 - a bug of ours in the short way; the application has a longer one
            _log.error("request.not_answered_at_once", path=scope["path"], exc_info=error)
            return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"nothing here speaks {scope['type']}")
        path: str = scope["path"]
        answer = self._polls.answer(scope)
        if answer is None:
            if ADMITTED in scope and self._polls.ask_again is not None:
                self._metrics.running += 1
                try:
                    answer = await self._polls.ask_again(scope, scope[ADMITTED])
                finally:
                    self._metrics.running -= 1
            elif path.startswith(ARTIFACTS_PREFIX):  # its listener may have no short way
                answer = self._asked_at_once(scope)
        if answer is not None:
            start, body = answer
            start["headers"].extend(COMMON_HEADERS)
            await send(start)
            await send(body)
            self._metrics.answered(path, start["status"])
            return
        added = COMMON_HEADERS + (PEOPLE_HEADERS if path.startswith(PEOPLE_PREFIXES) else ())
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", ()))
                present = {name for name, _ in headers}
                message = {**message, "headers": headers + [pair for pair in added if pair[0] not in present]}
            await send(message)

        self._metrics.running += 1
        try:
            await self._app(scope, receive, send_marked)
        except Exception as error:  # noqa: BLE001 - the last resort: the peer gets an answer or a closed connection
            if status != 500:  # the application's own handler has not seen it
                _log.error("request.crashed", path=path, method=scope["method"], exc_info=error)
            self._metrics.crashes.inc()
            if status == 0:
                await problem(500, UNEXPECTED)(scope, receive, send_marked)
        finally:
            self._metrics.running -= 1
            self._metrics.answered(path, status)
