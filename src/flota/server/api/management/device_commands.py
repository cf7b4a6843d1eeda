"""`/devices/{name}/…`: what an operator tells one device beside its update, and agreement in its owner's place."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from flota.client import schemas
from flota.fleet.scope import Scope
from flota.server import agreements, device_lines
from flota.server.api.management import answers
from flota.server.api.management.guard import GuardedRoute, caller_of, context_of, needs
from flota.server.api.management.inputs import EmptyInput, RedirectInput
from flota.server.auth import Permission
from flota.server.context import ServerContext

router = APIRouter(route_class=GuardedRoute, tags=["devices"])
Context = Annotated[ServerContext, Depends(context_of)]
Caller = Annotated[Scope, Depends(caller_of)]


@router.post("/devices/{name}/reboot", responses=answers.describes(schemas.Device))
@needs(Permission.DEVICES_COMMAND)
async def reboot_device(name: str, context: Context, caller: Caller, _: EmptyInput | None = None) -> Response:
    """Send a connected Blynk device that it is to restart; whether it does, only its next connection shows."""
    return answers.answer(answers.device(await device_lines.reboot_device(context, caller, name)))


@router.post("/devices/{name}/redirect", responses=answers.describes(schemas.Device))
@needs(Permission.DEVICES_COMMAND)
async def redirect_device(name: str, given: RedirectInput, context: Context, caller: Caller) -> Response:
    """Send a connected Blynk device to another MQTT endpoint."""
    return answers.answer(answers.device(await device_lines.redirect_device(context, caller, name, given.to)))


@router.post("/devices/{name}/ping", responses=answers.describes(schemas.Ping))
@needs(Permission.DEVICES_COMMAND)
async def ping_device(name: str, context: Context, caller: Caller, _: EmptyInput | None = None) -> Response:
    """Ask a connected Blynk device for a sign of life, for five seconds."""
    device, after_ms = await device_lines.ping_device(context, caller, name)
    return answers.answer(schemas.Ping(device=device.name, answered=after_ms is not None, after_ms=after_ms))


@router.post("/devices/{name}/confirm", responses=answers.describes(schemas.Execution))
@needs(Permission.DEVICES_COMMAND)
async def confirm_update(name: str, context: Context, caller: Caller, _: EmptyInput | None = None) -> Response:
    """Agree to the update that waits for the device's agreement, in its owner's place."""
    return answers.answer(answers.execution(await agreements.agree(context, caller, name)))
