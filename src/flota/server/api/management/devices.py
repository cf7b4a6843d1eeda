"""`/devices`: registering, deciding, labelling, removing."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from flota.client import schemas
from flota.errors import InvalidInput
from flota.fleet.devices import DeviceState
from flota.fleet.scope import Scope
from flota.fleet.selectors import parse_selector
from flota.fleet.storage import DeviceFilter
from flota.server import device_import, device_registry
from flota.server.api.management import answers
from flota.server.api.management.guard import GuardedRoute, caller_of, context_of, needs
from flota.server.api.management.inputs import (
    DeviceInput,
    DeviceQuery,
    EmptyInput,
    LabelsInput,
    TokenOfDeviceInput,
)
from flota.server.auth import Permission, digest_of_secret
from flota.server.context import ServerContext

router = APIRouter(route_class=GuardedRoute, tags=["devices"])
Context = Annotated[ServerContext, Depends(context_of)]
Caller = Annotated[Scope, Depends(caller_of)]

_CSV_BODY = {
    "requestBody": {
        "required": True,
        "content": {"text/csv": {"schema": {"type": "string", "example": "name,type,mac,token,labels\n"}}},
    }
}


@router.get("/devices", responses=answers.describes(schemas.DevicePage))
@needs(Permission.DEVICES_READ)
async def list_devices(query: Annotated[DeviceQuery, Query()], context: Context, caller: Caller) -> Response:
    """List devices, a page at a time."""
    condition = _condition(query)
    async with context.storage.reading() as transaction:
        page = await transaction.list_devices(caller, condition, after_id=query.after, limit=query.limit + 1)
        total = await transaction.count_devices(caller, condition)
    more = len(page) > query.limit
    page = page[: query.limit]
    return answers.answer(
        schemas.DevicePage(items=[answers.device(one) for one in page], next=page[-1].id if more else None, total=total)
    )


def _condition(query: DeviceQuery) -> DeviceFilter:
    """Return the selector's conditions and the query's own together; raises `InvalidInput` where they contradict."""
    selected = parse_selector(query.select).device_filter() if query.select is not None else DeviceFilter()
    given: dict[str, Any] = {"type_name": query.type, "state": query.state, "text": query.text}
    for name, value in given.items():
        if value is not None and getattr(selected, name) not in (None, value):
            raise InvalidInput(
                f"the selector and the query differ about {name.removesuffix('_name')}",
                expected=str(value),
                found=str(getattr(selected, name)),
            )
    return dataclasses.replace(selected, **{name: value for name, value in given.items() if value is not None})


@router.post("/devices", status_code=201, responses=answers.describes(schemas.Device, 201, "Registered."))
@needs(Permission.DEVICES_REGISTER)
async def add_device(wanted: DeviceInput, context: Context, caller: Caller) -> Response:
    """Register an accepted device; its token is in this answer and nowhere else."""
    registration = device_registry.Registration(
        name=device_registry.parse_device_name(wanted.name),
        type_name=wanted.type,
        mac=device_registry.parse_mac(wanted.mac) if wanted.mac else None,
        token=device_registry.parse_device_token(wanted.token) if wanted.token else None,
        labels=device_registry.parse_labels(wanted.labels),
    )
    async with context.storage.transaction() as transaction:
        device, token = await device_registry.register_device(transaction, caller, registration, now=context.now())
    return answers.answer(answers.device(device, token=token), 201, location=f"/api/v1/devices/{device.name}")


@router.post(
    "/devices/import",
    status_code=201,
    openapi_extra=_CSV_BODY,
    responses=answers.describes(schemas.ImportAnswer, 201, "All registered."),
)
@needs(Permission.DEVICES_REGISTER, body_max_bytes=device_import.MAX_BYTES)
async def import_devices(request: Request, context: Context, caller: Caller) -> Response:
    """Register all devices of a CSV file, or none of them."""
    devices = device_import.parse_device_list(await request.body())
    async with context.storage.transaction() as transaction:
        made = await device_import.register_all(transaction, caller, devices, now=context.now())
    return answers.answer(
        schemas.ImportAnswer(items=[schemas.ImportedDevice(name=name, token=token) for name, token in made]), 201
    )


@router.get("/devices/{name}", responses=answers.describes(schemas.Device))
@needs(Permission.DEVICES_READ)
async def show_device(name: str, context: Context, caller: Caller) -> Response:
    """Show one device, with what an operator should look at."""
    async with context.storage.reading() as transaction:
        device = await transaction.device(caller, name)
        executions = await transaction.list_executions(caller, device_id=device.id)
    return answers.answer(answers.device(device, flags=answers.flags_of(executions)))


@router.delete("/devices/{name}", status_code=204)
@needs(Permission.DEVICES_REMOVE)
async def remove_device(name: str, context: Context, caller: Caller) -> Response:
    """Forget a device; what it still had to do ends as REMOVED."""
    async with context.storage.transaction() as transaction:
        await transaction.remove_device(caller, name, now=context.now())
    return Response(status_code=204)


@router.post("/devices/{name}/accept", responses=answers.describes(schemas.Device))
@needs(Permission.DEVICES_DECIDE)
async def accept_device(name: str, context: Context, caller: Caller, _: EmptyInput | None = None) -> Response:
    """Let a pending or refused device take part."""
    async with context.storage.transaction() as transaction:
        changed = await transaction.set_device_state(caller, name, DeviceState.ACCEPTED, now=context.now())
    return answers.answer(answers.device(changed))


@router.post("/devices/{name}/refuse", responses=answers.describes(schemas.Device))
@needs(Permission.DEVICES_DECIDE)
async def refuse_device(name: str, context: Context, caller: Caller, _: EmptyInput | None = None) -> Response:
    """Keep a device out; what is queued for it is canceled."""
    async with context.storage.transaction() as transaction:
        changed = await transaction.set_device_state(caller, name, DeviceState.REFUSED, now=context.now())
    return answers.answer(answers.device(changed))


@router.post("/devices/{name}/token", responses=answers.describes(schemas.Device))
@needs(Permission.DEVICES_TOKEN)
async def replace_token(
    name: str, context: Context, caller: Caller, given: TokenOfDeviceInput | None = None
) -> Response:
    """Replace a device's token; the new one is in this answer and nowhere else.

    The old one stops working at once, or after `overlap_s` seconds, or when the device has used the new one.
    """
    now = context.now()
    wanted = given.token if given else None
    until = now + timedelta(seconds=given.overlap_s) if given and given.overlap_s else None
    token = device_registry.parse_device_token(wanted) if wanted else device_registry.new_device_token()
    async with context.storage.transaction() as transaction:
        await transaction.set_device_token(caller, name, digest_of_secret(token), now=now, previous_until=until)
        device = await transaction.device(caller, name)
    return answers.answer(answers.device(device, token=token))


@router.post("/devices/{name}/labels", responses=answers.describes(schemas.Device))
@needs(Permission.DEVICES_LABEL)
async def set_labels(name: str, given: LabelsInput, context: Context, caller: Caller) -> Response:
    """Replace a device's labels."""
    labels = device_registry.parse_labels(given.labels)
    async with context.storage.transaction() as transaction:
        changed = await transaction.set_device_labels(caller, name, labels, now=context.now())
    return answers.answer(answers.device(changed))


@router.get("/devices/{name}/executions", responses=answers.describes(schemas.ExecutionPage))
@needs(Permission.ROLLOUTS_READ)
async def list_device_executions(name: str, context: Context, caller: Caller) -> Response:
    """List what a device was asked to do, oldest first."""
    async with context.storage.reading() as transaction:
        device = await transaction.device(caller, name)
        found = await transaction.list_executions(caller, device_id=device.id)
    return answers.answer(schemas.ExecutionPage(items=[answers.execution(one) for one in found]))
