"""Agreement to an update by an operator, for devices that are asked first and have nobody who could answer.

A DDI device answers by itself (`api.ddi.reports`). One of Blynk has an owner with the vendor's app, which is not here.
Source: docs/reference/blynk.md, "Shipments".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from flota.errors import Conflict
from flota.fleet.update_rules import Stage
from flota.server.updates import CONFIRM_DETAIL, CONFIRMED, DENIED, current_assignment, with_retries

if TYPE_CHECKING:
    from flota.fleet.executions import Execution
    from flota.fleet.scope import Scope
    from flota.fleet.storage import Transaction
    from flota.server.context import ServerContext


async def agree(context: ServerContext, scope: Scope, name: str) -> Execution:
    """Return the device's execution, agreed to. Raises `NotFound` for the device, `Conflict` if nothing is asked.

    One that was agreed to already, and has not ended, is returned as it is. What a device refused stays refused.
    """
    now = context.now()

    async def write(transaction: Transaction) -> Execution:
        device = await transaction.device(scope, name)
        assignment = await current_assignment(transaction, scope, device, now=now)
        if assignment is None:
            raise Conflict(f"device {name} has no update to agree to")
        execution = assignment.execution
        answered = execution.details.get(CONFIRM_DETAIL)
        if answered == CONFIRMED:
            return execution
        if answered == DENIED:
            raise Conflict(f"device {name} has refused its update", hint="It can still agree by itself, over DDI.")
        if assignment.showing.stage is not Stage.ASK:
            expected = "an update of a type or rollout with --confirm"
            raise Conflict(f"the update of device {name} asks for no agreement", expected=expected)
        details = {**execution.details, CONFIRM_DETAIL: CONFIRMED}
        after = replace(execution, version=execution.version + 1, changed_at=now, details=details)
        return await transaction.amend_execution(scope, after, f"agreed to by {scope.actor}")

    return await with_retries(context, write)
