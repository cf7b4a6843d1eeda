"""`/viam/links` and evidence about executions: what an operator of micro-RDK devices needs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from flota.client import schemas
from flota.fleet.scope import Scope
from flota.server.api.management import answers
from flota.server.api.management.guard import GuardedRoute, caller_of, context_of, needs
from flota.server.api.management.inputs import INT32_MAX, EvidenceInput, ViamLinksInput
from flota.server.auth import Permission
from flota.server.context import ServerContext
from flota.server.evidence import record_last_online
from flota.server.viam_links import LinksWanted, make_links

router = APIRouter(route_class=GuardedRoute, tags=["viam"])
Context = Annotated[ServerContext, Depends(context_of)]
Caller = Annotated[Scope, Depends(caller_of)]


@router.post("/viam/links", responses=answers.describes(schemas.ViamLinks))
@needs(Permission.ROLLOUTS_CONTROL)
async def make_viam_links(wanted: ViamLinksInput, request: Request, context: Context, caller: Caller) -> Response:
    """Give the service configuration of micro-RDK devices: shared, of one device, or of a rollout's devices."""
    made = await make_links(
        context,
        caller,
        LinksWanted(
            release=wanted.release,
            device=wanted.device,
            rollout=wanted.rollout,
            base_url=wanted.base_url,
            asked_at=context.public_base(request),
        ),
    )
    return answers.answer(answers.viam_links(made))


@router.post("/executions/{execution_id}/evidence", responses=answers.describes(schemas.Execution))
@needs(Permission.ROLLOUTS_CONTROL)
async def add_evidence(execution_id: int, given: EvidenceInput, context: Context, caller: Caller) -> Response:
    """Say when another system last heard of the device: an inferred success becomes a reported one."""
    number = execution_id if 0 <= execution_id <= INT32_MAX else 0
    confirmed = await record_last_online(
        context, caller, number, last_online_at=given.last_online_at, source=given.source
    )
    return answers.answer(answers.execution(confirmed))
