"""confirmationBase: a device is asked before it is told to update, where its type or the rollout says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from flota.errors import NotFound
from flota.fleet.devices import AutoConfirmation
from flota.fleet.executions import Execution, ExecutionState
from flota.fleet.storage import Transaction
from flota.fleet.update_rules import Stage
from flota.protocols.ddi import (
    AutoConfirm,
    pack_auto_confirm,
    pack_confirmation,
    parse_auto_confirm_request,
    parse_confirmation_feedback,
)
from flota.protocols.peer_text import clean_text
from flota.server.api.ddi.answers import done, is_cbor, json_answer
from flota.server.api.ddi.caller import Caller, read_body
from flota.server.api.ddi.rendering import action_link, deployment_of, history_wanted
from flota.server.api.ddi.reports import answer_change
from flota.server.updates import (
    ActionClosed,
    has_its_turn,
    is_canceling,
    open_assignment,
    own_execution,
    showing_of,
    with_retries,
)

if TYPE_CHECKING:
    from flota.server.context import ServerContext

INITIATOR_MAX_LEN = 64
REMARK_MAX_LEN = 512


class Confirmations:
    """What a device is asked, and what it answers."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def get_state(self, caller: Caller) -> Response:
        """GET whether the device agrees by itself, and what waits for its agreement."""
        activation = caller.device.auto_confirm
        state = AutoConfirm(active=False)
        if activation is not None:
            at_ms = int(activation.activated_at.timestamp() * 1000)
            state = AutoConfirm(True, activation.initiator or None, activation.remark or None, at_ms)
        assignment = await open_assignment(self._context, caller.scope, caller.device)
        waiting = None
        if assignment is not None and assignment.showing.stage is Stage.ASK:
            link = action_link(assignment, caller.addresses)
            waiting = link.href if link is not None and link.relation == "confirmation_base" else None
        return json_answer(caller.request, pack_auto_confirm(state, caller.addresses, waiting=waiting))

    async def get_question(self, caller: Caller) -> Response:
        """GET the action that waits for the device's agreement, in the form of a deployment."""
        assignment = await open_assignment(self._context, caller.scope, caller.device)
        if assignment is None or assignment.execution.id != caller.action_id or assignment.cancel_requested:
            raise NotFound("no such action", found=caller.action_id)
        if assignment.showing.stage is not Stage.ASK:
            raise NotFound("the action does not wait for agreement", found=caller.action_id)
        history = await history_wanted(self._context, caller, assignment.execution, waits=True)
        asked = deployment_of(
            assignment.execution, assignment.release, caller.addresses, showing=assignment.showing, history=history
        )
        return json_answer(caller.request, pack_confirmation(asked))

    async def post_answer(self, caller: Caller) -> Response:
        """POST whether the device agrees. Denied, it goes on waiting: the device may agree later."""
        action_id = caller.action_id
        answer = parse_confirmation_feedback(await read_body(caller.request), cbor=is_cbor(caller.request))

        async def write(transaction: Transaction) -> None:
            execution = await own_execution(transaction, caller.scope, caller.device, action_id)
            if not execution.is_open:
                raise ActionClosed(f"action {execution.id} is no longer active", found=execution.id)
            if not await self._waits(transaction, caller, execution):
                raise NotFound("the action does not wait for agreement", found=execution.id)
            change = answer_change(execution, answer)
            await transaction.change_execution(
                caller.scope, execution.id, execution.version, change, now=self._context.now()
            )

        await with_retries(self._context, write)
        return done()

    async def _waits(self, transaction: Transaction, caller: Caller, execution: Execution) -> bool:
        if is_canceling(execution):
            return False
        if execution.state is ExecutionState.QUEUED and not await has_its_turn(transaction, caller.scope, execution):
            return False
        policy = await transaction.rollout_policy(caller.scope, execution.rollout_id)
        device = await transaction.device_by_id(caller.scope, caller.device.id)
        device_type = await transaction.device_type(caller.scope, device.type_name)
        return showing_of(execution, policy, device_type, device, now=self._context.now()).stage is Stage.ASK

    async def activate(self, caller: Caller) -> Response:
        """POST that the device agrees to everything from now on; 409 if it does so already."""
        asked = parse_auto_confirm_request(await read_body(caller.request), cbor=is_cbor(caller.request))
        now = self._context.now()
        activation = AutoConfirmation(
            now,
            clean_text(asked.initiator or "", max_len=INITIATOR_MAX_LEN),
            clean_text(asked.remark or "", max_len=REMARK_MAX_LEN),
        )
        async with self._context.storage.transaction() as transaction:
            await transaction.set_auto_confirm(caller.scope, caller.device.id, activation, now=now)
        return done()

    async def deactivate(self, caller: Caller) -> Response:
        """POST that the device wants to be asked again."""
        async with self._context.storage.transaction() as transaction:
            await transaction.set_auto_confirm(caller.scope, caller.device.id, None, now=self._context.now())
        return done()
