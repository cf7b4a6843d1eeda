"""The API of HTTPUpdate and esp_https_ota clients: `/update/{type}` and `/update/{type}/{device}`.

It translates headers into reports and offers into answers; what they mean is decided in `pull_updates`.
Source: docs/reference/http-update.md.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from flota.errors import FlotaError, Forbidden, NotFound, Unauthenticated
from flota.fleet.devices import Device, DeviceState, UnknownDevices
from flota.fleet.scope import Scope
from flota.fleet.verdicts import ImageIdentity
from flota.protocols.http_range import ByteRange, RangeNotSatisfiable, if_range, none_match, parse_range
from flota.protocols.http_update import UpdateMode, UpdateRequest, parse_request_headers
from flota.server.api.artifacts import DeliveryOutcome, send_artifact
from flota.server.device_admission import DeviceAdmission, Newcomer
from flota.server.device_rates import DeviceRates
from flota.server.problems import problem_response
from flota.server.pull_updates import Offer, PullReport, PullUpdates, unfit_reason
from flota.server.updates import device_scope, is_expired, sight, tenant_scope

if TYPE_CHECKING:
    from starlette.types import Receive, Send
    from starlette.types import Scope as AsgiScope

    from flota.server.context import ServerContext

ROUTE_UPDATE_CLIENT: Final = "http-update"
ROUTE_ESP_HTTPS_OTA: Final = "esp-https-ota"
"""How `Device.last_route` names the two clients of these URLs."""

ACTOR_BEFORE_IDENTITY: Final = "device"
TOKEN_MAX_LEN: Final = 256
"""Characters of a token that are looked at; ours are at most 128."""


PARTS_BURST: Final = 2048
PARTS_PER_S: Final = 32.0
"""Later parts of an image come one after the other: esp_https_ota's pieces of 64 KiB, or smaller ones."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, understood: who it is for, and what the client says about itself."""

    request: Request
    type_name: str
    device_name: str | None
    token: str | None
    client: UpdateRequest | None

    @property
    def is_head(self) -> bool:
        return self.request.method == "HEAD"

    @property
    def wants_other_than_app(self) -> bool:
        return self.client is not None and self.client.mode is UpdateMode.SPIFFS

    @property
    def rate_key(self) -> str:
        if self.client is not None and self.client.sta_mac is not None:
            return self.client.sta_mac
        if self.device_name is not None:
            return f"{self.type_name}/{self.device_name}"
        return f"address {_address(self.request)}"


def routes(context: ServerContext) -> list[BaseRoute]:
    """Return the routes of the update URLs; GET and HEAD only."""
    api = _UpdateApi(context)
    return [
        Route("/update/{type_name}", api.answer, methods=["GET", "HEAD"]),
        Route("/update/{type_name}/{device_name}", api.answer, methods=["GET", "HEAD"]),
    ]


class _UpdateApi:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._admission = DeviceAdmission(context)
        self._updates = PullUpdates(context)
        self._rates = DeviceRates(refill_per_s=context.settings.device_requests_per_s)
        self._part_rates = DeviceRates(burst=PARTS_BURST, refill_per_s=PARTS_PER_S)

    async def answer(self, request: Request) -> Response:
        """Answer one request: 200 or 206 with the image, 304 when there is nothing to do, 4xx."""
        try:
            asked = _understand(request)
            rates = self._part_rates if _is_continuation(request) else self._rates
            rates.take(asked.rate_key, now=self._context.now())
            scope = await tenant_scope(self._context, ACTOR_BEFORE_IDENTITY)
            device = await self._identify(scope, asked)
            if device is None:
                return await self._answer_channel(scope, asked)
            return await self._answer_device(device_scope(scope, device), device, asked)
        except FlotaError as error:
            return _refusal(error)

    async def _identify(self, scope: Scope, asked: _Asked) -> Device | None:
        """Return the device that asks; None when it does not say who it is and asks at its type's URL."""
        mac = None if asked.client is None else asked.client.sta_mac
        attributes = {} if asked.client is None else _attributes(asked.client)
        device_type = await self._admission.device_type(scope, asked.type_name)
        if asked.device_name is not None:
            device = await self._admission.by_token(scope, asked.device_name, asked.token, device_type=device_type.name)
        elif mac is not None:
            device = await self._admission.by_mac(scope, device_type, Newcomer(mac, asked.token, attributes))
        elif asked.token is not None:
            raise Forbidden("a token without a device", hint="Use the URL /update/TYPE/DEVICE?token=… of the device.")
        elif device_type.unknown_devices is UnknownDevices.REFUSE:
            raise Forbidden(
                "this type turns away devices that do not say who they are",
                hint="Send x-ESP32-STA-MAC, or use the URL /update/TYPE/DEVICE?token=… of the device.",
            )
        else:
            return None
        await self._admission.learn(device_scope(scope, device), device, mac, attributes)
        return device

    async def _answer_device(self, scope: Scope, device: Device, asked: _Asked) -> Response:
        report = replace(_report(asked.client), asks_for_rest=_is_continuation(asked.request))
        self._sight(scope, device, asked)
        if device.state is not DeviceState.ACCEPTED or asked.wants_other_than_app:
            return _nothing()
        offer = await self._updates.next_offer(scope, device, report)
        if offer is None:
            return _nothing()
        part = _body_part(asked.request, offer)
        if part is None:
            return _ImageResponse(self._context, offer)
        if _is_peek(asked, part, offer):
            return _ImageResponse(self._context, offer)
        if part.first > 0 and offer.has_begun:
            self._updates.continue_delivery(scope, offer)
        elif not await self._updates.begin_delivery(scope, offer, report):
            return _nothing()
        return _ImageResponse(self._context, offer, part=part, updates=self._updates)

    async def _answer_channel(self, scope: Scope, asked: _Asked) -> Response:
        """Hand the channel's release to whoever asks: counted, but nobody's execution."""
        async with self._context.storage.reading() as transaction:
            release = await transaction.current_release(scope, asked.type_name)
        is_offered = release is not None and not is_expired(release, self._context.now())
        report = _report(asked.client)
        if release is None or not is_offered:
            if report.is_update_client:
                return _nothing()
            raise NotFound("this device type has no published release")
        offer = Offer(release.artifact, release.version)
        runs_it = report.running.is_same(offer.identity)
        if runs_it or asked.wants_other_than_app or unfit_reason(release.artifact, report) is not None:
            return _nothing()
        part = _body_part(asked.request, offer)
        if part is not None and part.first == 0 and part.length > 1:
            self._context.metrics.channel_downloads.labels(release.type_name).inc()
        return _ImageResponse(self._context, offer)

    def _sight(self, scope: Scope, device: Device, asked: _Asked) -> None:
        client = asked.client
        running = (
            {"version": client.version, "hash": client.sketch_sha256, "md5": client.sketch_md5} if client else None
        )
        route = ROUTE_UPDATE_CLIENT if client is not None else ROUTE_ESP_HTTPS_OTA
        sight(self._context, scope, device, route=route, address=_address(asked.request), running=running)


class _ImageResponse(Response):
    """The image, by `send_artifact`; a counted delivery is settled when its body has ended.

    By chunks, not by `pathsend`: only so can an interruption be noticed.
    """

    def __init__(
        self,
        context: ServerContext,
        offer: Offer,
        *,
        part: ByteRange | None = None,
        updates: PullUpdates | None = None,
    ) -> None:
        super().__init__()
        self._path = context.artifacts.path(offer.artifact.digests.sha256)
        self._offer = offer
        self._part = part
        self._updates = updates

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Send it, then note how the delivery ended."""
        try:
            await send_artifact(
                scope,
                receive,
                send,
                self._path,
                sha256=self._offer.artifact.digests.sha256,
                extra_headers={"x-MD5": self._offer.artifact.digests.md5},
                on_finished=self._finished,
                use_pathsend=self._updates is None,
            )
        finally:
            if self._updates is not None:
                await self._updates.settle(self._offer)

    def _finished(self, outcome: DeliveryOutcome) -> None:
        if self._updates is None or self._part is None:
            return
        reaches_end = self._part.last == self._offer.artifact.digests.size - 1
        if outcome is DeliveryOutcome.INTERRUPTED or reaches_end:
            self._updates.mark_finished(self._offer, whole=outcome is DeliveryOutcome.HANDED_OVER)


def _understand(request: Request) -> _Asked:
    """Return what the request says. Raises `MalformedMessage`, `TooLarge`."""
    return _Asked(
        request=request,
        type_name=request.path_params["type_name"],
        device_name=request.path_params.get("device_name"),
        token=_token(request),
        client=parse_request_headers(request.headers.raw),
    )


def _token(request: Request) -> str | None:
    """Return the token in `?token=` or, as the password, in Basic authorization."""
    token = request.query_params.get("token")
    if token is None:
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic" or len(encoded) > 2 * TOKEN_MAX_LEN:
            return None
        try:
            token = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return token[:TOKEN_MAX_LEN] or None


def _report(client: UpdateRequest | None) -> PullReport:
    if client is None:
        return PullReport()
    hashes = frozenset({client.sketch_sha256} if client.sketch_sha256 else ())
    running = ImageIdentity(hashes=hashes, md5=client.sketch_md5, size=client.sketch_size)
    return PullReport(running=running, free_space=client.free_space, chip=client.chip.value)


def _attributes(client: UpdateRequest) -> dict[str, str]:
    told = {
        "chip": client.chip.value,
        "ap-mac": client.ap_mac,
        "chip-size": client.chip_size,
        "chip-id": client.chip_id,
        "sdk-version": client.sdk_version,
    }
    return {name: str(value) for name, value in told.items() if value not in (None, "")}


def _body_part(request: Request, offer: Offer) -> ByteRange | None:
    """Return which bytes the answer's body will have; None for an answer without one: HEAD, 304, 416."""
    size = offer.artifact.digests.size
    etag = f'"{offer.artifact.digests.sha256}"'
    if request.method == "HEAD" or none_match(request.headers.get("if-none-match"), etag):
        return None
    whole = ByteRange(0, size - 1)
    if not if_range(request.headers.get("if-range"), etag):
        return whole
    try:
        return parse_range(request.headers.get("range"), size) or whole
    except RangeNotSatisfiable:
        return None


def _is_peek(asked: _Asked, part: ByteRange, offer: Offer) -> bool:
    """Whether a client only wants to know: by mode `check`, or by a probe of one byte, as esp_https_ota does."""
    if asked.client is not None and asked.client.mode is UpdateMode.CHECK:
        return True
    return part.length == 1 and offer.artifact.digests.size > 1


def _is_continuation(request: Request) -> bool:
    """Whether a request asks for a later part of an image: those come in bursts."""
    header = request.headers.get("range", "")
    return header.startswith("bytes=") and not header.startswith(("bytes=0-", "bytes=-"))


def _nothing() -> Response:
    """Return "no updates": the normal answer, without a body."""
    return Response(status_code=304, headers={"cache-control": "no-store"})


def _refusal(error: FlotaError) -> Response:
    response = problem_response(error)
    if isinstance(error, Unauthenticated):
        response.headers["www-authenticate"] = 'Basic realm="flota"'
    return response


def _address(request: Request) -> str | None:
    return None if request.client is None else request.client.host
