"""`GET /blynk/ota/NAME?token=…`: the file of a Blynk device. Bare ASGI, before the router.

It translates links into deliveries; what they mean is decided in `blynk_deliveries`. Always with Content-Length, which
the vendor's client needs, and one byte range. Source: docs/reference/blynk.md, "Cloud link".
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from flota.errors import FlotaError
from flota.protocols.blynk.cloud import HEADER_BUILD, HEADER_MD5, HEADER_SHA256, HEADER_TYPE, HEADER_VERSION
from flota.protocols.http_range import RangeNotSatisfiable, parse_range
from flota.server.api.artifacts import DeliveryOutcome, send_artifact
from flota.server.blynk_deliveries import BlynkDeliveries, FileDelivery, LinkOver
from flota.server.blynk_links import FILE_PREFIX, FileGrant, read_link_token
from flota.server.device_rates import DeviceRates
from flota.server.problems import problem, problem_response

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from flota.server.context import ServerContext

GONE: Final = 410
FIELDS_MAX: Final = 16
"""Fields of a query that are looked at; our links have one."""

STRANGERS_PER_S: Final = 1.0
"""For one address, without a good token."""


class BlynkFiles:
    """The one device route of this dialect over HTTP."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._deliveries = BlynkDeliveries(context)
        self._rates = DeviceRates(refill_per_s=context.settings.device_requests_per_s)
        self._strangers = DeviceRates(refill_per_s=STRANGERS_PER_S)

    def serves(self, path: str) -> bool:
        """Whether a request for this path is for this API."""
        return path.startswith(FILE_PREFIX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        method = scope["method"]
        if method not in ("GET", "HEAD"):
            await problem(405, "only GET and HEAD", headers={"allow": "GET, HEAD"})(scope, receive, send)
            return
        has_started = False

        async def send_noting(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            grant = self._admit(scope)
            if method == "HEAD" or not await self._is_from_start(scope, grant):
                delivery = await self._deliveries.look(grant)
                await self._send(scope, receive, send_noting, delivery, counted=method == "GET")
                return
            delivery = await self._deliveries.begin(grant, self._context.peer_address(scope))
            await self._send(scope, receive, send_noting, delivery, counted=True)
        except FlotaError as error:
            if has_started:
                raise
            answer = problem_response(error)
            if isinstance(error, LinkOver):
                answer = problem(GONE, error.message, facts={"code": error.code})
            await answer(scope, receive, send)

    def _admit(self, scope: Scope) -> FileGrant:
        now = self._context.now()
        try:
            grant = read_link_token(self._context, _token(scope["query_string"]))
        except FlotaError:
            self._strangers.take(self._context.peer_address(scope) or "", now=now)
            raise
        self._rates.take(f"{grant.execution_id}", now=now)
        return grant

    async def _is_from_start(self, scope: Scope, grant: FileGrant) -> bool:
        """Whether a request asks for the first byte on: that counts as an attempt, going on does not."""
        header = next((value for name, value in scope["headers"] if name == b"range"), None)
        if header is None:
            return True
        size = (await self._deliveries.look(grant)).artifact.digests.size
        try:
            part = parse_range(header.decode("latin-1"), size)
        except RangeNotSatisfiable:
            return False
        return part is None or (part.first == 0 and part.length > 1)

    async def _send(self, scope: Scope, receive: Receive, send: Send, delivery: FileDelivery, *, counted: bool) -> None:
        digests = delivery.artifact.digests
        outcome = DeliveryOutcome.INTERRUPTED
        reaches_end = True

        async def send_looking(message: Message) -> None:
            nonlocal reaches_end, counted
            if message["type"] == "http.response.start":
                if message["status"] not in (200, 206):
                    counted = False
                reaches_end = _reaches_end(message, digests.size)
            await send(message)

        def finished(how: DeliveryOutcome) -> None:
            nonlocal outcome
            outcome = how

        try:
            await send_artifact(
                scope,
                receive,
                send_looking,
                self._context.artifacts.path(digests.sha256),
                sha256=digests.sha256,
                extra_headers=_headers(delivery),
                on_finished=finished,
                use_pathsend=False,
            )
        finally:
            whole = outcome is DeliveryOutcome.HANDED_OVER
            if counted and (reaches_end or not whole):
                await self._deliveries.finish(delivery, whole=whole)


def _reaches_end(start: Message, size: int) -> bool:
    told = next((value for name, value in start["headers"] if name == b"content-range"), None)
    if told is None:  # the whole file; several ranges in one answer are no end
        return bool(start["status"] == 200)
    return bool(told.startswith(b"bytes ") and told.endswith(b"-%d/%d" % (size - 1, size)))


def _headers(delivery: FileDelivery) -> dict[str, str]:
    digests, firmware = delivery.artifact.digests, delivery.firmware
    headers = {
        HEADER_SHA256: base64.b64encode(bytes.fromhex(digests.sha256)).decode("ascii"),
        HEADER_MD5: digests.md5,
        HEADER_TYPE: firmware.fw_type,
        HEADER_VERSION: firmware.version if delivery.artifact.inspection.get("firmware_tag") else "",
        HEADER_BUILD: firmware.build,
    }
    return {name: value for name, value in headers.items() if value and value.isascii() and value.isprintable()}


def _token(query: bytes) -> str:
    try:
        return next(iter(parse_qs(query.decode("latin-1"), max_num_fields=FIELDS_MAX).get("token", ())), "")
    except ValueError:  # more fields than that
        return ""
