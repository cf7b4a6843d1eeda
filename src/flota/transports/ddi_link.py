"""A DDI client's connection: each request of the protocol as one call, errors as `FlotaError`."""

from __future__ import annotations

from typing import Final

import httpx

from flota.errors import PeerError, Unauthenticated
from flota.protocols.ddi import (
    TARGET_TOKEN,
    CancelAction,
    ConfigData,
    DdiAddresses,
    Deployment,
    Feedback,
    PollAnswer,
    pack_authorization,
    pack_config_data,
    pack_feedback,
    parse_cancel_action,
    parse_deployment,
    parse_poll_answer,
)

JSON_MAX_BYTES: Final = 256 * 1024
ACCEPT: Final = "application/hal+json"
TRY_AGAIN_STATUSES: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class ActionGone(PeerError):
    """The server does not know the action any more, or it is closed (404, 405, 410)."""

    code = "action-gone"


class ServerBusy(PeerError):
    """The server asks to try again later, or the link is down."""

    code = "server-busy"


class DdiLink:
    """One device's requests, with its target token (None: without authorization).

    `scheme` says what kind of token it is: the device's own, or that of a gateway which asks for it.
    """

    def __init__(
        self, client: httpx.AsyncClient, addresses: DdiAddresses, token: str | None, *, scheme: str = TARGET_TOKEN
    ) -> None:
        self.client = client
        self._addresses = addresses
        self.headers = {} if token is None else {"authorization": pack_authorization(token, scheme=scheme)}

    async def poll(self) -> PollAnswer:
        """Ask the controller base."""
        return parse_poll_answer(await self._get(self._addresses.base))

    async def deployment(self, href: str) -> Deployment:
        """Fetch what a deploymentBase link says."""
        return parse_deployment(await self._get(href))

    async def cancellation(self, href: str) -> CancelAction:
        """Fetch what a cancelAction link says."""
        return parse_cancel_action(await self._get(href))

    async def send_config_data(self, href: str, config: ConfigData) -> None:
        """Tell the server the device's attributes."""
        await self._send("PUT", href, pack_config_data(config))

    async def report(self, action_id: int, feedback: Feedback) -> None:
        """Report on a deployment."""
        await self._send("POST", self._addresses.deployment_feedback(action_id), pack_feedback(feedback))

    async def report_cancellation(self, action_id: int, feedback: Feedback) -> None:
        """Report on a cancellation."""
        await self._send("POST", self._addresses.cancel_feedback(action_id), pack_feedback(feedback))

    async def _get(self, url: str) -> bytes:
        return await self._request("GET", url, None)

    async def _send(self, method: str, url: str, body: bytes) -> None:
        await self._request(method, url, body)

    async def _request(self, method: str, url: str, body: bytes | None) -> bytes:
        headers = {**self.headers, "accept": ACCEPT}
        if body is not None:
            headers["content-type"] = "application/json"
        try:
            async with self.client.stream(method, url, headers=headers, content=body) as answer:
                received = bytearray()
                async for data in answer.aiter_bytes():
                    received += data
                    if len(received) > JSON_MAX_BYTES:
                        raise PeerError("the answer is too long", expected=f"at most {JSON_MAX_BYTES} bytes")
                _check_status(answer.status_code, method, url)
                return bytes(received)
        except httpx.TransportError as error:
            raise ServerBusy(f"no answer from {httpx.URL(url).host}", found=type(error).__name__) from error


def _check_status(status: int, method: str, url: str) -> None:
    if status == 200:
        return
    path = httpx.URL(url).path
    if status in (401, 403):
        raise Unauthenticated("the server does not accept this device's token", found=f"HTTP {status}")
    if status in (404, 405, 410):
        raise ActionGone(f"{method} {path}", expected="HTTP 200", found=f"HTTP {status}")
    if status in TRY_AGAIN_STATUSES:
        raise ServerBusy(f"{method} {path}", expected="HTTP 200", found=f"HTTP {status}")
    raise PeerError(f"{method} {path}", expected="HTTP 200", found=f"HTTP {status}")
