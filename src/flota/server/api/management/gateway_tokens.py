"""`/gateway-tokens`: tokens with which a gateway asks for its devices at the DDI addresses."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from flota.client import schemas
from flota.errors import InvalidInput
from flota.fleet.scope import Scope
from flota.fleet.storage import NewGatewayToken
from flota.server.api.management import answers
from flota.server.api.management.guard import GuardedRoute, caller_of, context_of, needs
from flota.server.api.management.inputs import INT32_MAX, GatewayTokenInput
from flota.server.auth import Permission, digest_of_secret, new_secret
from flota.server.context import ServerContext
from flota.server.device_registry import device_type_or_builtin, parse_device_name

router = APIRouter(route_class=GuardedRoute, tags=["administration"])
Context = Annotated[ServerContext, Depends(context_of)]
Caller = Annotated[Scope, Depends(caller_of)]


@router.get("/gateway-tokens", responses=answers.describes(schemas.GatewayTokenPage))
@needs(Permission.TOKENS_MANAGE)
async def list_gateway_tokens(context: Context, caller: Caller) -> Response:
    """List gateway tokens, revoked ones included; nobody can read their secrets."""
    async with context.storage.reading() as transaction:
        found = await transaction.list_gateway_tokens(caller)
    return answers.answer(schemas.GatewayTokenPage(items=[answers.gateway_token(one) for one in found]))


@router.post("/gateway-tokens", status_code=201, responses=answers.describes(schemas.GatewayToken, 201, "Made."))
@needs(Permission.TOKENS_MANAGE)
async def create_gateway_token(wanted: GatewayTokenInput, context: Context, caller: Caller) -> Response:
    """Make a gateway's token; its secret is in this answer and nowhere else."""
    now = context.now()
    if wanted.expires_at is not None and wanted.expires_at <= now:
        raise InvalidInput("the token would have expired already", found=wanted.expires_at.isoformat())
    secret = new_secret()
    new = NewGatewayToken(
        name=wanted.name,
        secret_sha256=digest_of_secret(secret),
        device_names=None if wanted.devices is None else tuple(parse_device_name(one) for one in wanted.devices),
        selector=wanted.select,
        all_devices=wanted.all_devices,
        type_name=wanted.type,
        expires_at=wanted.expires_at,
    )
    async with context.storage.transaction() as transaction:
        if wanted.type is not None:
            await device_type_or_builtin(transaction, caller, wanted.type, now)
        made = await transaction.add_gateway_token(caller, new, now=now)
    return answers.answer(answers.gateway_token(made, secret=secret), 201)


@router.delete("/gateway-tokens/{token_id}", status_code=204)
@needs(Permission.TOKENS_MANAGE)
async def revoke_gateway_token(token_id: int, context: Context, caller: Caller) -> Response:
    """Make a gateway's token useless from now on."""
    async with context.storage.transaction() as transaction:
        await transaction.revoke_gateway_token(caller, max(0, min(token_id, INT32_MAX)), now=context.now())
    return Response(status_code=204)
