"""The rollout engine: asks `fleet.rollout_decisions` what to do, and does it in transactions; it decides nothing.

It looks again whenever something was committed (`wake`), and every `IDLE_TICK_S` for what only time brings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from flota.errors import Conflict, FlotaError
from flota.fleet.executions import OPEN_STATES, UNSUCCESSFUL_STATES, ExecutionState
from flota.fleet.rollout_decisions import (
    ChangeExecution,
    Effect,
    EndWave,
    OpenWave,
    SetRolloutState,
    change_on_leaving,
    decide,
)
from flota.fleet.rollouts import Rollout, RolloutState
from flota.fleet.scope import Scope
from flota.fleet.selectors import parse_selector
from flota.fleet.storage import DeviceFilter, Storage, Transaction

ACTOR: Final = "engine"

IDLE_TICK_S: Final = 5.0
"""How late a silent device may be noticed."""

SHORTEST_PAUSE_S: Final = 0.05
"""Between two passes: so many commits of a busy fleet cost one look."""

EXECUTIONS_READ_MAX: Final = 1_000_000
"""Executions of one rollout read in one pass: as many as there can be devices."""

SELECT_EVERY_S: Final = 5.0
"""How late a device may join a continuous rollout that selects it."""

JOINING_MAX: Final = 1000
"""Devices that join one rollout in one pass; the next takes the rest."""

_JUDGED: Final = UNSUCCESSFUL_STATES | {ExecutionState.IN_PROGRESS}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TickResult:
    """What one pass did: how many effects, and how many rollouts another writer got in the way of (try again)."""

    effects: int = 0
    conflicts: int = 0


class Engine:
    """Drives every tenant's rollouts. `now` gives aware UTC times."""

    def __init__(self, storage: Storage, *, now: Callable[[], datetime]) -> None:
        self._storage = storage
        self._now = now
        self._began_at = now()
        self._woken = asyncio.Event()
        self._selected_at: datetime | None = None

    def wake(self, _tenants: frozenset[int] = frozenset()) -> None:
        """Look again soon. Can be given to `Database.on_commit` as it is; call it in the loop's thread."""
        self._woken.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until `stop` is set; a failing pass is logged and tried again, because rollouts must not stand still."""
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                self._woken.clear()
                try:
                    result = await self.tick()
                except Exception:  # noqa: BLE001 - whatever it was, the other rollouts must go on
                    _log.exception("an engine pass failed")
                    result = TickResult()
                if result.conflicts:
                    self.wake()
                await self._pause(stopped)
        finally:
            stopped.cancel()

    async def tick(self) -> TickResult:
        """Take every rollout as far as it goes now."""
        effects = conflicts = 0
        now = self._now()
        selects = self._selected_at is None or (now - self._selected_at).total_seconds() >= SELECT_EVERY_S
        if selects:
            self._selected_at = now
        for tenant in await self._storage.list_tenants():
            scope = Scope(tenant.id, ACTOR)
            if selects:
                effects += await self._select_again(scope)
            async with self._storage.reading() as reading:
                due = [
                    rollout.id
                    for rollout in await _rollouts_at_work(reading, scope)
                    if await self._ask(reading, scope, rollout)
                ]
            for rollout_id in due:
                try:
                    effects += await self._advance(scope, rollout_id)
                except Conflict as conflict:
                    conflicts += 1
                    _log.info("rollout %d moved while the engine looked at it: %s", rollout_id, conflict)
        return TickResult(effects, conflicts)

    async def _select_again(self, scope: Scope) -> int:
        """Let devices join continuous rollouts, and leave them, by what their selectors pick now."""
        async with self._storage.reading() as reading:
            continuous = [
                rollout
                for rollout in await reading.list_rollouts(scope, open_only=True)
                if rollout.policy.continuous and rollout.state is RolloutState.ACTIVE
            ]
        done = 0
        for rollout in continuous:
            try:
                done += await self._select_for(scope, rollout)
            except FlotaError as error:
                _log.warning("who belongs to rollout %d could not be settled: %s", rollout.id, error)
        return done

    async def _select_for(self, scope: Scope, rollout: Rollout) -> int:
        selector = parse_selector(rollout.selector)
        fitting = selector.fitting(rollout.type_name)
        joining: Sequence[int] = ()
        async with self._storage.reading() as reading:
            if fitting is not None:
                outside = replace(fitting, outside_rollout=rollout.id)
                joining = await reading.device_ids(scope, outside, limit=JOINING_MAX)
            at_work = DeviceFilter(type_name=rollout.type_name, open_in_rollout=rollout.id)
            leaving = {
                device.id
                for device in await reading.list_devices(scope, at_work, limit=EXECUTIONS_READ_MAX)
                if not selector.matches(device)
            }
        if not joining and not leaving:
            return 0
        async with self._storage.transaction() as transaction:
            if joining:
                await transaction.join_rollout(scope, rollout.id, joining, now=self._now())
            opened = await transaction.list_executions(
                scope, rollout_id=rollout.id, states=OPEN_STATES, limit=EXECUTIONS_READ_MAX
            )
            for execution in opened:
                if execution.device_id in leaving and (change := change_on_leaving(execution)) is not None:
                    await transaction.change_execution(scope, execution.id, execution.version, change, now=self._now())
        return len(joining) + len(leaving)

    async def _advance(self, scope: Scope, rollout_id: int) -> int:
        """Decide again inside a write transaction, act, and repeat until nothing is left to do."""
        done = 0
        async with self._storage.transaction() as transaction:
            while effects := await self._ask(transaction, scope, await transaction.rollout(scope, rollout_id)):
                for effect in effects:
                    await self._act(transaction, scope, rollout_id, effect)
                done += len(effects)
        return done

    async def _ask(self, transaction: Transaction, scope: Scope, rollout: Rollout) -> list[Effect]:
        executions = await transaction.list_executions(
            scope, rollout_id=rollout.id, states=_JUDGED, limit=EXECUTIONS_READ_MAX
        )
        at_work = [e.device_id for e in executions if e.state is ExecutionState.IN_PROGRESS]
        release = await transaction.release(scope, rollout.release_id)
        return decide(
            rollout,
            executions,
            now=self._now(),
            last_seen=await transaction.last_seen(scope, at_work),
            release_expires_at=release.expires_at,
            watching_since=self._began_at,
        )

    async def _act(self, transaction: Transaction, scope: Scope, rollout_id: int, effect: Effect) -> None:
        now = self._now()
        match effect:
            case OpenWave(number):
                await transaction.open_wave(scope, rollout_id, number, now=now)
            case EndWave(number, state):
                await transaction.set_wave_state(scope, rollout_id, number, state, now=now)
            case SetRolloutState(state, reason):
                await transaction.set_rollout_state(scope, rollout_id, state, now=now, reason=reason)
            case ChangeExecution(execution_id, expected_version, change):
                await transaction.change_execution(scope, execution_id, expected_version, change, now=now)

    async def _pause(self, stopped: asyncio.Future[Any]) -> None:
        await asyncio.wait({stopped}, timeout=SHORTEST_PAUSE_S)
        if stopped.done():
            return
        woken: asyncio.Future[Any] = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({stopped, woken}, timeout=IDLE_TICK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await woken


async def _rollouts_at_work(transaction: Transaction, scope: Scope) -> list[Rollout]:
    """Return the open rollouts, and those that have ended but still have a device at work."""
    rollouts = {rollout.id: rollout for rollout in await transaction.list_rollouts(scope, open_only=True)}
    for execution in await transaction.list_executions(
        scope, states=frozenset({ExecutionState.IN_PROGRESS}), limit=EXECUTIONS_READ_MAX
    ):
        if execution.rollout_id not in rollouts:
            rollouts[execution.rollout_id] = await transaction.rollout(scope, execution.rollout_id)
    return [rollouts[rollout_id] for rollout_id in sorted(rollouts)]
