"""`/whoami`, `/tokens` and `/audit`: who may ask, and who asked for what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from flota.client import schemas
from flota.errors import Conflict, InvalidInput
from flota.fleet.scope import Role, Scope
from flota.server.api.management import answers
from flota.server.api.management.guard import GuardedRoute, caller_of, context_of, needs
from flota.server.api.management.inputs import INT32_MAX, AuditQuery, TokenInput
from flota.server.auth import Permission, digest_of_secret, new_secret
from flota.server.context import ServerContext

router = APIRouter(route_class=GuardedRoute, tags=["administration"])
Context = Annotated[ServerContext, Depends(context_of)]
Caller = Annotated[Scope, Depends(caller_of)]


@router.get("/whoami", responses=answers.describes(schemas.WhoAmI))
@needs(Permission.SELF_READ)
async def whoami(request: Request, context: Context, caller: Caller) -> Response:
    """Say whose token asks."""
    tenants = await context.storage.list_tenants()
    tenant = next(one.name for one in tenants if one.id == caller.tenant_id)
    return answers.answer(answers.whoami(caller, request.state.role, tenant))


@router.get("/tokens", responses=answers.describes(schemas.AccessTokenPage))
@needs(Permission.TOKENS_MANAGE)
async def list_tokens(context: Context, caller: Caller) -> Response:
    """List the tokens, revoked ones included; nobody can read their secrets."""
    async with context.storage.reading() as transaction:
        found = await transaction.list_access_tokens(caller)
    return answers.answer(schemas.AccessTokenPage(items=[answers.access_token(one) for one in found]))


@router.post("/tokens", status_code=201, responses=answers.describes(schemas.AccessToken, 201, "Made."))
@needs(Permission.TOKENS_MANAGE)
async def create_token(wanted: TokenInput, context: Context, caller: Caller) -> Response:
    """Make a token; its secret is in this answer and nowhere else."""
    now = context.now()
    if wanted.expires_at is not None and wanted.expires_at <= now:
        raise InvalidInput("the token would have expired already", found=wanted.expires_at.isoformat())
    secret = new_secret()
    async with context.storage.transaction() as transaction:
        made = await transaction.add_access_token(
            caller, wanted.name, wanted.role, digest_of_secret(secret), now=now, expires_at=wanted.expires_at
        )
    return answers.answer(answers.access_token(made, secret=secret), 201)


@router.delete("/tokens/{token_id}", status_code=204)
@needs(Permission.TOKENS_MANAGE)
async def revoke_token(token_id: int, context: Context, caller: Caller) -> Response:
    """Make a token useless from now on. The last administrator's token stays, or nobody could make another."""
    async with context.storage.transaction() as transaction:
        live = [one for one in await transaction.list_access_tokens(caller) if one.revoked_at is None]
        admins = [one.id for one in live if one.role is Role.ADMIN and one.expires_at is None]
        if admins == [token_id]:
            raise Conflict(
                "this is the last administrator's token",
                hint="Make another first: flota token create NAME --role admin.",
            )
        await transaction.revoke_access_token(caller, min(token_id, INT32_MAX), now=context.now())
    return Response(status_code=204)


@router.get("/audit", responses=answers.describes(schemas.AuditPage))
@needs(Permission.AUDIT_READ)
async def list_audit(query: Annotated[AuditQuery, Query()], context: Context, caller: Caller) -> Response:
    """Show a stretch of the audit trail, oldest first."""
    async with context.storage.reading() as transaction:
        found = await transaction.list_audit(caller, after=query.after, limit=query.limit)
        last = await transaction.last_audit_sequence(caller)
    return answers.answer(schemas.AuditPage(items=[answers.audit_entry(one) for one in found], last=last))
