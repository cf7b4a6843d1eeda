"""What a device's request means for its execution: shared by every dialect. The APIs translate; this decides.

Every change is compare-and-set on the execution's version, decided again when another writer was first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from flota.errors import NotFound, VersionMismatch
from flota.fleet.devices import Device, DeviceType, IdentityConflict
from flota.fleet.executions import Basis, Execution, ExecutionChange, ExecutionState
from flota.fleet.maintenance_windows import ZONE_LABEL
from flota.fleet.releases import Release
from flota.fleet.rollouts import RolloutPolicy
from flota.fleet.scope import DEFAULT_TENANT, Scope
from flota.fleet.storage import DeviceSighting, Transaction
from flota.fleet.update_rules import Showing, Stage, rules_for, show_update
from flota.server.identity_watch import INTERVALS

if TYPE_CHECKING:
    from flota.server.context import ServerContext

CHANGE_TRIES: Final = 8
"""A device races only with the engine and the operator, each of whom writes an execution a few times in its life."""

QUEUE_STEPS_MAX: Final = 16
"""Executions that one request may close before it gets an offer or nothing; the next request goes on from there."""

_T = TypeVar("_T")


class ActionClosed(NotFound):
    """The execution is over: nothing can be reported about it any more."""

    code = "execution-closed"


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a device is to do now: its execution, the release, the rollout's limits."""

    execution: Execution
    release: Release
    policy: RolloutPolicy
    showing: Showing
    """What the device is shown of it, unless it is being canceled: maintenance windows, confirmation, urgency."""
    expired: bool = False
    """It is queued, but its release may be offered no more: `close_expired` ends it."""

    @property
    def may_fetch(self) -> bool:
        """Whether the device may have the release's file.

        One that has begun may finish its download after its window has closed: only beginning waits for the next.
        """
        if self.cancel_requested or self.showing.stage is Stage.ASK:
            return False
        return self.showing.stage is Stage.TELL or self.execution.state is ExecutionState.IN_PROGRESS

    @property
    def cancel_requested(self) -> bool:
        """Whether the device is to stop: asked to, and it has not refused."""
        return is_canceling(self.execution)


CANCEL_DETAIL: Final = "cancel"
CANCEL_REJECTED: Final = "rejected"
"""Value of the detail `cancel` once a device said that it cannot stop: it goes on, and may still report its end."""


ONLY_DOWNLOADED_DETAIL: Final = "only-downloaded"
"""Set on an execution that ended well by being downloaded, because its rollout asked for no more."""

CONFIRM_DETAIL: Final = "confirmation"
CONFIRMED: Final = "confirmed"
DENIED: Final = "denied"
"""Values of the detail `confirmation`: what the device answered when it was asked."""


class Taker(Protocol):
    """What of a device decides what it is shown of an execution: a `Device`, or a job with what it needs of one."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels: there its time zone is."""
        ...

    @property
    def confirms_itself(self) -> bool:
        """Whether it has agreed beforehand."""
        ...


def showing_of(
    execution: Execution, policy: RolloutPolicy, device_type: DeviceType, device: Taker, *, now: datetime
) -> Showing:
    """Return what the device is shown of an execution whose turn it is, at `now`."""
    rules = rules_for(
        urgency=policy.urgency,
        forced_at=policy.forced_at,
        rollout_confirm=policy.confirm,
        rollout_maintenance=policy.maintenance,
        type_confirm=device_type.confirm,
        type_maintenance=device_type.maintenance,
        download_ahead=device_type.download_ahead,
        device_zone=device.labels.get(ZONE_LABEL, ""),
    )
    agreed = execution.details.get(CONFIRM_DETAIL) == CONFIRMED or device.confirms_itself
    return show_update(rules, agreed=agreed, now=now)


def is_canceling(execution: Execution) -> bool:
    """Whether an execution waits for its device to confirm that it stopped."""
    asked = execution.cancel_requested_at is not None and execution.is_open
    return asked and execution.details.get(CANCEL_DETAIL) != CANCEL_REJECTED


async def tenant_scope(context: ServerContext, actor: str, *, tenant: str = DEFAULT_TENANT) -> Scope:
    """Return the scope of a device's request; the tenant's name in any case. Raises `NotFound`."""
    async with context.storage.reading() as transaction:
        return Scope((await transaction.tenant_by_name(tenant.upper())).id, actor)


def device_scope(scope: Scope, device: Device) -> Scope:
    """Return the scope under which a device changes its own executions."""
    return Scope(scope.tenant_id, f"device:{device.name}")


async def current_assignment(
    transaction: Transaction, scope: Scope, device: Device, *, now: datetime
) -> Assignment | None:
    """Return what the device is to do: what it is at work on, else the oldest queued execution that may start."""
    return (await current_assignments(transaction, scope, [device], now=now)).get(device.id)


async def current_assignments(
    transaction: Transaction,
    scope: Scope,
    devices: Sequence[Device],
    *,
    now: datetime,
    types: Mapping[str, DeviceType] | None = None,
) -> Mapping[int, Assignment]:
    """Return by id what each device is to do, as `current_assignment` does; those with nothing to do are left out.

    `types` are the devices' types, if this transaction has read them already.
    """
    executions = await transaction.next_executions(scope, [device.id for device in devices])
    at_work = [device for device in devices if device.id in executions]
    shared = executions.values()
    releases = {key: await transaction.release(scope, key) for key in {one.release_id for one in shared}}
    policies = {key: await transaction.rollout_policy(scope, key) for key in {one.rollout_id for one in shared}}
    if types is None:
        types = {key: await transaction.device_type(scope, key) for key in {one.type_name for one in at_work}}
    assignments = {}
    for device in at_work:
        execution = executions[device.id]
        release, policy = releases[execution.release_id], policies[execution.rollout_id]
        showing = showing_of(execution, policy, types[device.type_name], device, now=now)
        expired = execution.state is ExecutionState.QUEUED and is_expired(release, now)
        assignments[device.id] = Assignment(execution, release, policy, showing, expired)
    return assignments


def is_expired(release: Release, now: datetime) -> bool:
    """Whether a release may be offered no more."""
    return release.expires_at is not None and release.expires_at <= now


async def close_expired(context: ServerContext, scope: Scope, device: Device) -> None:
    """End what is queued for the device but whose release has expired in the meantime."""
    now = context.now()

    async def close(transaction: Transaction) -> None:
        for _ in range(QUEUE_STEPS_MAX):
            queued = await transaction.next_execution(scope, device.id)
            if queued is None or queued.state is not ExecutionState.QUEUED:
                return
            release = await transaction.release(scope, queued.release_id)
            if not is_expired(release, now):
                return
            reason = f"release {release.version} expired before the device asked for it"
            change = ExecutionChange(ExecutionState.CANCELED, basis=Basis.OPERATOR, message=reason)
            await transaction.change_execution(scope, queued.id, queued.version, change, now=now)

    await with_retries(context, close)


async def open_assignment(context: ServerContext, scope: Scope, device: Device) -> Assignment | None:
    """Return what the device is to do; what is queued for it but has expired is closed on the way."""
    for _ in range(2):
        async with context.storage.reading() as transaction:
            assignment = await current_assignment(transaction, scope, device, now=context.now())
        if assignment is None or not assignment.expired:
            return assignment
        await close_expired(context, scope, device)
    return None


async def installed_execution(transaction: Transaction, scope: Scope, device: Device) -> Execution | None:
    """Return the latest execution that ended with its release installed on the device; downloads alone do not count."""
    return (await installed_executions(transaction, scope, [device.id])).get(device.id)


async def installed_executions(
    transaction: Transaction, scope: Scope, device_ids: Sequence[int]
) -> Mapping[int, Execution]:
    """Return by device what `installed_execution` does; devices on which nothing was installed are left out."""
    return await transaction.latest_executions(
        scope, device_ids, ExecutionState.SUCCEEDED, without_detail=ONLY_DOWNLOADED_DETAIL
    )


async def with_retries(context: ServerContext, step: Callable[[Transaction], Awaitable[_T]]) -> _T:
    """Run `step` in a transaction, again when a compare-and-set lost: it must re-read what it decides on.

    Raises what `step` raises, and `VersionMismatch` after `CHANGE_TRIES` losses in a row.
    """
    for tries_left in reversed(range(CHANGE_TRIES)):
        try:
            async with context.storage.transaction() as transaction:
                return await step(transaction)
        except VersionMismatch:
            if not tries_left:
                raise
    raise AssertionError("not reached")


async def start_assignment(
    context: ServerContext, scope: Scope, assignment: Assignment, start: ExecutionChange
) -> Assignment:
    """Move a queued execution to IN_PROGRESS; one at work already stays as it is, however often it is fetched."""

    async def write(transaction: Transaction) -> Execution:
        execution = await transaction.execution(scope, assignment.execution.id)
        if execution.state is not ExecutionState.QUEUED:
            return execution
        return await transaction.change_execution(scope, execution.id, execution.version, start, now=context.now())

    if assignment.execution.state is not ExecutionState.QUEUED:
        return assignment
    execution = await with_retries(context, write)
    return replace(assignment, execution=execution)


async def own_execution(transaction: Transaction, scope: Scope, device: Device, execution_id: int) -> Execution:
    """Return the device's execution; raises `NotFound`, for another device's too."""
    execution = await transaction.execution(scope, execution_id)
    if execution.device_id != device.id:
        raise NotFound("no such execution", found=execution_id)
    return execution


async def has_its_turn(transaction: Transaction, scope: Scope, execution: Execution) -> bool:
    """Whether an execution, read earlier in this transaction, is the one that its device is at work on or is to begin.

    Raises `VersionMismatch` when it is not because another writer changed it since it was read.
    """
    turn = await transaction.next_execution(scope, execution.device_id)
    if turn is not None and turn.id == execution.id:
        return True
    await expect_unchanged(transaction, scope, execution)
    return False


async def expect_unchanged(transaction: Transaction, scope: Scope, execution: Execution) -> None:
    """Raise `VersionMismatch` if another writer changed an execution since this transaction read it.

    To be asked before something is refused for what was read after it: PostgreSQL lets each statement of a writing
    transaction see what was committed before that statement, so two of them may tell of two states.
    """
    stored = await transaction.execution(scope, execution.id)
    if stored.version != execution.version:
        raise VersionMismatch(
            f"execution {execution.id} has moved on", expected=f"version {execution.version}", found=stored.version
        )


async def report(
    transaction: Transaction, scope: Scope, execution: Execution, change: ExecutionChange, *, now: datetime
) -> Execution:
    """Write what a device reported; a queued execution is started first, since only what has begun can end.

    Raises `ActionClosed` when it is over, `VersionMismatch` when another writer was first.
    """
    if not execution.is_open:
        raise ActionClosed(f"execution {execution.id} is {execution.state} already", found=execution.id)
    if execution.state is ExecutionState.QUEUED and change.state is not ExecutionState.IN_PROGRESS:
        started = ExecutionChange(ExecutionState.IN_PROGRESS, message="the device reports about it")
        execution = await transaction.change_execution(scope, execution.id, execution.version, started, now=now)
    return await transaction.change_execution(scope, execution.id, execution.version, change, now=now)


async def notice_address(context: ServerContext, scope: Scope, device: Device, address: str | None) -> None:
    """See whether a device that asks from another address than before does so as two devices would."""
    if address is None or device.address in (None, address):
        return
    async with context.storage.reading() as transaction:
        interval_s = (await transaction.device_type(scope, device.type_name)).poll_interval_s
    within = timedelta(seconds=INTERVALS * interval_s)
    await note_identity_conflict(
        context, scope, device, trait="address", before=device.address or "", after=address, within=within
    )


async def note_identity_conflict(
    context: ServerContext, scope: Scope, device: Device, *, trait: str, before: str, after: str, within: timedelta
) -> None:
    """Note that a trait of the device changed; if it goes back and forth `within` that time, mark the device."""
    if device.identity_conflict is None:
        context.identity_watch.settled(device.id)
    now = context.now()
    seen = context.identity_watch.changed(device.id, trait, before, after, now=now, within=within)
    if seen is None:
        return
    async with context.storage.transaction() as transaction:
        await transaction.note_identity_conflict(scope, device.id, IdentityConflict(trait, seen, now))


def sight(
    context: ServerContext,
    scope: Scope,
    device: Device,
    *,
    route: str,
    address: str | None,
    running: Mapping[str, str | None] | None = None,
) -> None:
    """Note that the device was heard; `running` may have `version`, `hash` and `md5` of what it runs (cleaned)."""
    told = running or {}
    sighting = DeviceSighting(
        device_id=device.id,
        at=context.now(),
        route=route,
        address=address,
        running_version=told.get("version"),
        running_hash=told.get("hash"),
        running_md5=told.get("md5"),
    )
    context.sightings.record(scope, sighting)
