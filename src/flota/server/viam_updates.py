"""Deliveries to Viam's micro-RDK: what a request at a link may have, and what is remembered about it.

`fleet.inferences` says what a request means; here it is written down, compare-and-set, before the first byte goes out.
Links that are over are remembered in memory: a device asks for one every ten seconds, for ever, and gets a few bytes
without a look into the database.
Source: docs/reference/viam.md.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from flota.boards.model import Route
from flota.errors import Conflict, FlotaError, NotFound
from flota.fleet.executions import Execution, ExecutionChange, ExecutionState
from flota.fleet.inferences import (
    HANDED_OVER,
    INTERRUPTED,
    ROUTE_DETAIL,
    UNDER_WAY,
    flag_after_end,
    judge_request,
    silent_delivery,
)
from flota.fleet.releases import Artifact, ReleaseState
from flota.fleet.scope import Scope
from flota.fleet.storage import DeviceSighting
from flota.server.updates import has_its_turn, is_expired, with_retries
from flota.server.viam_links import DeviceGrant, Grant, SharedGrant

if TYPE_CHECKING:
    from flota.fleet.storage import Transaction
    from flota.server.context import ServerContext

CLOSED_LINKS_MAX: Final = 50_000
"""Links remembered as over; for one that is forgotten the database is asked once more."""

REFUSED_FOR: Final = timedelta(seconds=60)
"""How long a shared link that may not be used is refused without another look: its release may be published again."""

ACTOR: Final = "viam"


class LinkOver(NotFound):
    """The link's execution has ended, or its release may be offered no more: 410, a few bytes."""

    code = "link-over"


class NotNow(FlotaError):
    """The link is good, but its execution may not start now: 503, the device comes back by itself."""

    code = "not-now"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One answer with an image. `number` counts the execution's requests; 0 on a shared link, which is nobody's."""

    artifact: Artifact
    type_name: str
    scope: Scope
    execution_id: int | None = None
    number: int = 0


class ViamUpdates:
    """Deliveries of one server process."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._over: OrderedDict[Grant, datetime | None] = OrderedDict()

    def refuse_over(self, grant: Grant) -> None:
        """Raise `LinkOver` at once for a link that is known to be over; no database is asked."""
        if grant not in self._over:
            return
        until = self._over[grant]
        if until is None or self._context.now() < until:
            raise LinkOver("this update is over")
        del self._over[grant]

    async def begin(self, grant: Grant, address: str | None) -> Delivery:
        """Return what to hand out for a request; it is counted, and durable, before this returns.

        Raises `LinkOver`, and `NotNow` where the device may only wait.
        """
        self.refuse_over(grant)
        if isinstance(grant, SharedGrant):
            return await self._begin_shared(grant)
        return await self._begin_for_device(grant, address)

    async def look(self, grant: Grant) -> Artifact:
        """Return what a request would get, for HEAD: nothing is counted. Raises as `begin` does."""
        self.refuse_over(grant)
        scope = Scope(grant.tenant_id, ACTOR)
        if isinstance(grant, SharedGrant):
            return (await self._begin_shared(grant)).artifact
        async with self._context.storage.reading() as transaction:
            execution = await self._execution(transaction, scope, grant)
            if not execution.is_open:
                raise LinkOver("this update is over")
            return (await transaction.release(scope, execution.release_id)).artifact

    async def finish(self, delivery: Delivery, *, whole: bool) -> None:
        """Note how a delivery ended, unless the device has asked again in the meantime."""
        execution_id = delivery.execution_id
        if execution_id is None:
            return
        now = self._context.now()

        async def write(transaction: Transaction) -> None:
            execution = await transaction.execution(delivery.scope, execution_id)
            seen = silent_delivery(execution.details)
            if execution.state is not ExecutionState.IN_PROGRESS or seen.gets != delivery.number:
                return
            ended = replace(seen, state=HANDED_OVER if whole else INTERRUPTED, ended_at=now if whole else None)
            text = "the image was handed over whole" if whole else "the delivery was interrupted"
            change = ExecutionChange(ExecutionState.IN_PROGRESS, details=ended.as_details(), message=text)
            await transaction.change_execution(delivery.scope, execution.id, execution.version, change, now=now)

        await with_retries(self._context, write)

    async def _begin_shared(self, grant: SharedGrant) -> Delivery:
        scope = Scope(grant.tenant_id, ACTOR)
        try:
            async with self._context.storage.reading() as transaction:
                release = await transaction.release(scope, grant.release_id)
        except NotFound as error:
            self._remember(grant, None)
            raise LinkOver("this release is offered no more") from error
        if release.state is not ReleaseState.PUBLISHED or is_expired(release, self._context.now()):
            self._remember(grant, self._context.now() + REFUSED_FOR)
            raise LinkOver("this release is offered no more")
        return Delivery(release.artifact, release.type_name, scope)

    async def _begin_for_device(self, grant: DeviceGrant, address: str | None) -> Delivery:
        scope = Scope(grant.tenant_id, ACTOR)

        async def begin(transaction: Transaction) -> tuple[Execution, Delivery | None]:
            execution = await self._execution(transaction, scope, grant)
            if not execution.is_open:
                return await self._flag(transaction, scope, execution), None
            return await self._count(transaction, scope, execution)

        try:
            execution, delivery = await with_retries(self._context, begin)
        except NotFound as error:
            self._remember(grant, None)
            raise LinkOver("this update is over") from error
        except Conflict as conflict:  # paused since it was read, or at work on another execution
            raise NotNow("this update may not start now", found=conflict.message) from conflict
        if not execution.is_open:
            self._remember(grant, None)
        self._sight(scope, grant, address)
        if delivery is None:
            raise LinkOver("this update is over")
        return delivery

    async def _count(
        self, transaction: Transaction, scope: Scope, execution: Execution
    ) -> tuple[Execution, Delivery | None]:
        """Write what the request means; returns the execution afterwards, and a delivery unless that ended it."""
        now = self._context.now()
        is_turn = await has_its_turn(transaction, scope, execution)
        release = await transaction.release(scope, execution.release_id)
        if execution.state is ExecutionState.QUEUED and is_expired(release, now):
            text = f"release {release.version} expired before the device asked for it"
            end = ExecutionChange(ExecutionState.CANCELED, message=text)
            return await transaction.change_execution(scope, execution.id, execution.version, end, now=now), None
        if not is_turn:
            raise NotNow("this update may not start now")
        policy = await transaction.rollout_policy(scope, execution.rollout_id)
        verdict = judge_request(execution, attempts=policy.attempts, since=self._context.started_at, now=now)
        if verdict.end is not None:
            ended = await transaction.change_execution(scope, execution.id, execution.version, verdict.end, now=now)
            return ended, None
        counted = replace(
            verdict.delivery,
            state=UNDER_WAY,
            began_at=now,
            ended_at=None,
            quiet_s=self._context.settings.viam_quiet_s,
        )
        text = "asked for the image" if counted.gets == 1 else f"asked for the image again, request {counted.gets}"
        if counted.flag is not None:
            text = f"{text}: no attempt led to an update so far"
        details = {**counted.as_details(), ROUTE_DETAIL: Route.VIAM.value}
        change = ExecutionChange(ExecutionState.IN_PROGRESS, details=details, message=text)
        started = await transaction.change_execution(scope, execution.id, execution.version, change, now=now)
        return started, Delivery(release.artifact, release.type_name, scope, execution.id, counted.gets)

    async def _flag(self, transaction: Transaction, scope: Scope, execution: Execution) -> Execution:
        """Mark, once, an execution that is over and whose device still asks."""
        flagged = flag_after_end(execution, now=self._context.now())
        if flagged is None:
            return execution
        after, text = flagged
        return await transaction.amend_execution(scope, after, text)

    async def _execution(self, transaction: Transaction, scope: Scope, grant: DeviceGrant) -> Execution:
        execution = await transaction.execution(scope, grant.execution_id)
        if execution.device_id != grant.device_id:
            raise NotFound("no such execution", found=grant.execution_id)
        return execution

    def _sight(self, scope: Scope, grant: DeviceGrant, address: str | None) -> None:
        sighting = DeviceSighting(grant.device_id, self._context.now(), Route.VIAM.value, address)
        self._context.sightings.record(scope, sighting)

    def _remember(self, grant: Grant, until: datetime | None) -> None:
        self._over[grant] = until
        if len(self._over) > CLOSED_LINKS_MAX:
            self._over.popitem(last=False)
