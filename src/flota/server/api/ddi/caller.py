"""An authenticated device's request, as every DDI handler is given it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from flota.errors import InvalidInput, NotFound
from flota.fleet.devices import Device
from flota.fleet.scope import Scope
from flota.protocols.ddi import DdiAddresses, parse_action_id
from flota.protocols.malformed import MalformedMessage


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated device and where its resources are."""

    request: Request
    scope: Scope
    device: Device
    addresses: DdiAddresses

    @property
    def action_id(self) -> int:
        """The action id of the path; raises `NotFound` for what is none."""
        return path_number(self.request, "action_id")


Handler = Callable[[Caller], Awaitable[Response]]


async def read_body(request: Request) -> bytes:
    """Return the whole body; its size is bounded by `server.limits`. Raises `InvalidInput` if the peer goes away."""
    try:
        return await request.body()
    except ClientDisconnect as gone:
        raise InvalidInput("the body ended early") from gone


def path_number(request: Request, name: str) -> int:
    """Return the number in the path; raises `NotFound` for what is none that DDI could have given out."""
    try:
        return parse_action_id(request.path_params[name])
    except MalformedMessage as error:
        raise NotFound("no such number", found=repr(request.path_params[name][:40])) from error
