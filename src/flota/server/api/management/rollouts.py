"""`/rollouts` and `/executions`: who is offered what, and how it goes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from flota.client import schemas
from flota.fleet.rollouts import RolloutPolicy, RolloutState
from flota.fleet.scope import Scope
from flota.server import rollout_desk
from flota.server.api.management import answers
from flota.server.api.management.guard import GuardedRoute, caller_of, context_of, needs
from flota.server.api.management.inputs import INT32_MAX, EmptyInput, ReasonInput, RolloutInput, RolloutQuery
from flota.server.auth import Permission
from flota.server.context import ServerContext
from flota.server.shipment_desk import read_shipment

router = APIRouter(route_class=GuardedRoute, tags=["rollouts"])
Context = Annotated[ServerContext, Depends(context_of)]
Caller = Annotated[Scope, Depends(caller_of)]

LISTED_EXECUTIONS_MAX = 1_000_000


@router.get("/rollouts", responses=answers.describes(schemas.RolloutPage))
@needs(Permission.ROLLOUTS_READ)
async def list_rollouts(query: Annotated[RolloutQuery, Query()], context: Context, caller: Caller) -> Response:
    """List rollouts, oldest first."""
    async with context.storage.reading() as transaction:
        found = await transaction.list_rollouts(caller, open_only=query.open)
    return answers.answer(schemas.RolloutPage(items=[answers.rollout(one) for one in found]))


@router.post("/rollouts", status_code=201, responses=answers.describes(schemas.Rollout, 201, "Started."))
@needs(Permission.ROLLOUTS_CREATE)
async def create_rollout(wanted: RolloutInput, context: Context, caller: Caller) -> Response:
    """Offer a published release to a snapshot of devices, in waves."""
    defaults = RolloutPolicy()
    request = rollout_desk.RolloutRequest(
        release=wanted.release,
        devices=tuple(wanted.devices) if wanted.devices is not None else None,
        select=wanted.select,
        name=wanted.name,
        waves=wanted.waves,
        policy=RolloutPolicy(
            abort_after_failures=wanted.abort_after_failures,
            silence_limit_s=wanted.silence_limit_s or defaults.silence_limit_s,
            attempts=wanted.attempts or defaults.attempts,
            count_inferred=defaults.count_inferred if wanted.count_inferred is None else wanted.count_inferred,
            continuous=wanted.continuous,
            urgency=wanted.urgency,
            forced_at=wanted.forced_at,
            confirm=wanted.confirm,
            maintenance=wanted.maintenance,
        ),
    )
    made = await rollout_desk.create_rollout(context, caller, request)
    return answers.answer(answers.rollout(made), 201, location=f"/api/v1/rollouts/{made.id}")


@router.get("/rollouts/{reference}", responses=answers.describes(schemas.Rollout))
@needs(Permission.ROLLOUTS_READ)
async def show_rollout(reference: str, context: Context, caller: Caller) -> Response:
    """Show one rollout, by number or name."""
    async with context.storage.reading() as transaction:
        return answers.answer(answers.rollout(await rollout_desk.find_rollout(transaction, caller, reference)))


@router.get("/rollouts/{reference}/executions", responses=answers.describes(schemas.ExecutionPage))
@needs(Permission.ROLLOUTS_READ)
async def list_executions(reference: str, context: Context, caller: Caller) -> Response:
    """List a rollout's executions; waves that are not open yet have none."""
    async with context.storage.reading() as transaction:
        rollout = await rollout_desk.find_rollout(transaction, caller, reference)
        found = await transaction.list_executions(caller, rollout_id=rollout.id, limit=LISTED_EXECUTIONS_MAX)
    return answers.answer(schemas.ExecutionPage(items=[answers.execution(one) for one in found]))


@router.get("/rollouts/{reference}/shipment", responses=answers.describes(schemas.Shipment))
@needs(Permission.ROLLOUTS_READ)
async def show_as_shipment(reference: str, context: Context, caller: Caller) -> Response:
    """Show one rollout as Blynk's console does: each device's status, and the counters."""
    async with context.storage.reading() as transaction:
        rollout = await rollout_desk.find_rollout(transaction, caller, reference)
        return answers.answer(answers.shipment(await read_shipment(transaction, caller, rollout)))


@router.post("/rollouts/{reference}/pause", responses=answers.describes(schemas.Rollout))
@needs(Permission.ROLLOUTS_CONTROL)
async def pause(reference: str, context: Context, caller: Caller, given: ReasonInput | None = None) -> Response:
    """Open no wave and offer nothing more; devices that have started go on."""
    return await _control(context, caller, reference, RolloutState.PAUSED, given.reason if given else "")


@router.post("/rollouts/{reference}/resume", responses=answers.describes(schemas.Rollout))
@needs(Permission.ROLLOUTS_CONTROL)
async def resume(reference: str, context: Context, caller: Caller, _: EmptyInput | None = None) -> Response:
    """Go on with a paused rollout."""
    return await _control(context, caller, reference, RolloutState.ACTIVE, "")


@router.post("/rollouts/{reference}/cancel", responses=answers.describes(schemas.Rollout))
@needs(Permission.ROLLOUTS_CONTROL)
async def cancel(reference: str, context: Context, caller: Caller, given: ReasonInput | None = None) -> Response:
    """End a rollout: what waits is canceled, what runs is asked to stop."""
    return await _control(context, caller, reference, RolloutState.CANCELED, given.reason if given else "")


async def _control(context: ServerContext, caller: Scope, reference: str, state: RolloutState, reason: str) -> Response:
    changed = await rollout_desk.control_rollout(context, caller, reference, state, reason)
    return answers.answer(answers.rollout(changed))


@router.get("/executions/{execution_id}", responses=answers.describes(schemas.Execution))
@needs(Permission.ROLLOUTS_READ)
async def show_execution(execution_id: int, context: Context, caller: Caller) -> Response:
    """Show one device's part in a rollout."""
    async with context.storage.reading() as transaction:
        return answers.answer(answers.execution(await transaction.execution(caller, _row_id(execution_id))))


@router.get("/executions/{execution_id}/events", responses=answers.describes(schemas.ExecutionEventPage))
@needs(Permission.ROLLOUTS_READ)
async def list_execution_events(execution_id: int, context: Context, caller: Caller) -> Response:
    """Show the history of an execution, oldest first."""
    async with context.storage.reading() as transaction:
        events = await transaction.execution_events(caller, _row_id(execution_id))
    return answers.answer(schemas.ExecutionEventPage(items=[answers.execution_event(one) for one in events]))


def _row_id(number: int) -> int:
    """Return a number that a row can have: 0, which none has, stands for those outside of what a database can take."""
    return number if 0 <= number <= INT32_MAX else 0
