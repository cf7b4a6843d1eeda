"""The download of Viam's micro-RDK: `GET /viam/image.bin?token=…`.

Bare ASGI, before the router. It translates links into deliveries; what they mean is decided in `viam_updates`.
A device reads nothing of an answer that is no image but its status, so those have a few bytes.
Source: docs/reference/viam.md, "What the server answers".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from flota.errors import FlotaError, TooManyRequests
from flota.server.api.artifacts import DeliveryOutcome, send_artifact
from flota.server.device_rates import DeviceRates
from flota.server.problems import status_of
from flota.server.viam_addresses import LINK_PATH
from flota.server.viam_links import DeviceGrant, Grant, read_token
from flota.server.viam_updates import LinkOver, NotNow, ViamUpdates

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from flota.server.context import ServerContext

GONE: Final = 410
UNAVAILABLE: Final = 503
RETRY_AFTER_S: Final = 60
"""What well-behaved clients are told; a micro-RDK comes back after ten seconds whatever it is told."""

FIELDS_MAX: Final = 16
"""Fields of a query that are looked at; our links have one."""

STRANGERS_PER_S: Final = 1.0
STRANGERS_BURST: Final = 600
"""For one address: a whole building of devices may share it, and each comes six times a minute."""


class ViamApi:
    """The one device route of this dialect."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._updates = ViamUpdates(context)
        self._rates = DeviceRates(refill_per_s=context.settings.device_requests_per_s)
        self._address_rates = DeviceRates(refill_per_s=STRANGERS_PER_S, burst=STRANGERS_BURST)

    def serves(self, path: str) -> bool:
        """Whether a request for this path is for this API."""
        return path == LINK_PATH

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Nothing of its header fields matters: no ranges, no conditions, no compression."""
        method = scope["method"]
        if method not in ("GET", "HEAD"):
            await _send_short(send, 405, "only GET and HEAD", ((b"allow", b"GET, HEAD"),))
            return
        has_started = False

        async def send_noting(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            grant = self._admit(scope)
            if method == "HEAD":
                artifact = await self._updates.look(grant)
                await self._send_image(_bare(scope), receive, send_noting, artifact.digests.sha256)
                return
            await self._deliver(scope, receive, send_noting, grant)
        except FlotaError as error:
            if has_started:
                raise
            await _refuse(send, error)

    def _admit(self, scope: Scope) -> Grant:
        """Return what the link stands for, within the rates; raises `NoSuchLink`, `LinkOver` or `TooManyRequests`."""
        now = self._context.now()
        try:
            grant = read_token(self._context, _token(scope["query_string"]))
        except FlotaError:
            self._address_rates.take(_address(scope) or "", now=now)
            raise
        if isinstance(grant, DeviceGrant):
            self._rates.take(f"{grant.execution_id}", now=now)
        else:
            self._address_rates.take(f"shared {_address(scope)}", now=now)
        return grant

    async def _deliver(self, scope: Scope, receive: Receive, send: Send, grant: Grant) -> None:
        delivery = await self._updates.begin(grant, _address(scope))
        outcome = DeliveryOutcome.INTERRUPTED

        def finished(how: DeliveryOutcome) -> None:
            nonlocal outcome
            outcome = how

        if delivery.execution_id is None:
            self._context.metrics.channel_downloads.labels(delivery.type_name).inc()
        try:
            await self._send_image(_bare(scope), receive, send, delivery.artifact.digests.sha256, finished=finished)
        finally:
            await self._updates.finish(delivery, whole=outcome is DeliveryOutcome.HANDED_OVER)

    async def _send_image(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        sha256: str,
        *,
        finished: Callable[[DeliveryOutcome], None] | None = None,
    ) -> None:
        path = self._context.artifacts.path(sha256)
        await send_artifact(
            scope, receive, send, path, sha256=sha256, allow_range=False, on_finished=finished, use_pathsend=False
        )


def _bare(scope: Scope) -> Scope:
    """Return the request without its header fields: a 304 or a part would be an error to the device."""
    return {**scope, "headers": []}


def _token(query: bytes) -> str:
    try:
        return next(iter(parse_qs(query.decode("latin-1"), max_num_fields=FIELDS_MAX).get("token", ())), "")
    except ValueError:  # more fields than that
        return ""


def _address(scope: Scope) -> str | None:
    client = scope.get("client")
    return None if client is None else str(client[0])


async def _refuse(send: Send, error: FlotaError) -> None:
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, LinkOver):
        status = GONE
    elif isinstance(error, NotNow):
        status, headers = UNAVAILABLE, ((b"retry-after", str(RETRY_AFTER_S).encode()),)
    else:
        status = status_of(error)
    if isinstance(error, TooManyRequests):
        headers = ((b"retry-after", str(error.retry_after_s).encode()),)
    await _send_short(send, status, error.message, headers)


async def _send_short(send: Send, status: int, text: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    body = text.encode() + b"\n"
    named = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": named})
    await send({"type": "http.response.body", "body": body, "more_body": False})
