"""What others know about a device: it turns an inferred outcome into a reported one.

Nobody is asked from here: whoever has the credentials of the other system asks it, and brings what it said.
Source: docs/reference/viam.md, "Evidence".
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from flota.errors import InvalidInput
from flota.fleet.inferences import confirm_outcome
from flota.server.updates import with_retries

if TYPE_CHECKING:
    from flota.fleet.executions import Execution
    from flota.fleet.scope import Scope
    from flota.fleet.storage import Transaction
    from flota.server.context import ServerContext


async def record_last_online(
    context: ServerContext, scope: Scope, execution_id: int, *, last_online_at: datetime, source: str
) -> Execution:
    """Return the execution, now with the basis `reported`, after `source` has heard of its device.

    Raises `Conflict` for an outcome that was not inferred, and for a time before it was; `InvalidInput` for one that
    is yet to come.
    """
    now = context.now()
    if last_online_at > now:
        raise InvalidInput("the evidence is of the future", expected=f"up to {now.isoformat()}", found=last_online_at)

    async def write(transaction: Transaction) -> Execution:
        execution = await transaction.execution(scope, execution_id)
        confirmed, text = confirm_outcome(execution, last_online_at=last_online_at, source=source, now=now)
        return await transaction.amend_execution(scope, confirmed, text)

    return await with_retries(context, write)
