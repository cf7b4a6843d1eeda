"""What each connected thing was told last, and which streams it may read: kept up to date by what is committed.

A commit marks the things that it concerns; they are read again, many in one transaction, and compared with what they
were told. So a notification says what is true when it is made, however many commits it stands for, and is made only
when the list of pending executions, or the first of them, is another one. Nothing here has to survive a restart: who
connects again asks.
Source: docs/reference/aws-iot.md, "Notifications".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Final

import structlog

from flota.server.api.aws_iot.agent_limits import limits_of, stream_id_of
from flota.server.api.aws_iot.pending import NOTHING_PENDING, PendingJobs, read_pending
from flota.server.api.aws_iot.streams import OpenStream
from flota.server.gathered import Gathered
from flota.server.waiting import wait_for_any

if TYPE_CHECKING:
    from flota.fleet.changes import Changes
    from flota.fleet.scope import Scope
    from flota.fleet.storage import KnownDevice, Transaction
    from flota.server.api.aws_iot.identity import ThingIdentity
    from flota.server.context import ServerContext

READ_AT_ONCE: Final = 500
"""Things in one transaction of an announcement."""

LOOK_EVERY_S: Final = 1.0
"""How late it may be noticed that by time alone something else is pending: a maintenance window opens."""

SHARED_LOOK_EVERY_S: Final = 5.0
"""How often everything is looked at again where other processes write the database too."""

KEPT_OFFLINE_S: Final = 3_600.0
"""How long a thing without a connection is followed that has a session: as long as the endpoint keeps sessions."""

DROPPED_AFTER_S: Final = 60.0
"""The same for one without a session: it was let in, and never came."""

RETRY_PAUSE_S: Final = 1.0

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class ThingState:
    """A thing that is connected, or has a session. `told` is None until it was read for the first time."""

    thing: ThingIdentity
    alone_since: datetime | None
    """Since when it has had no connection."""
    told: tuple[int, ...] | None = None
    """Ids of the pending executions, in order, as the thing knows them."""
    streams: dict[str, OpenStream] = field(default_factory=dict)
    valid_until: datetime | None = None
    connections: int = 0
    keeps_session: bool = False
    seen_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class News:
    """What a thing is to be told: that its list has changed, that another execution is the next one, or both."""

    pending: PendingJobs
    list_changed: bool
    next_changed: bool


Tell = Callable[[ThingState, News], None]
Recheck = Callable[[ThingState, "KnownDevice | None"], Awaitable[None]]
"""Sees whether a thing whose identity may have changed is still to be let in; None: there is no such device."""


class ThingStates:
    """The things of one server process."""

    def __init__(self, context: ServerContext, *, tell: Tell, recheck: Recheck) -> None:
        self._context = context
        self._tell = tell
        self._recheck = recheck
        self._states: dict[int, ThingState] = {}
        self._changed: dict[int, None] = {}
        self._doubtful: set[int] = set()
        self._woken = asyncio.Event()
        self._reads: Gathered[int, PendingJobs] = Gathered(context.storage.read_at_once, self._read)
        context.storage.on_change(self.note)

    def __len__(self) -> int:
        """How many things are followed."""
        return len(self._states)

    def get(self, thing: ThingIdentity) -> ThingState | None:
        """Return the state of a thing that is followed."""
        return self._states.get(thing.device.id)

    async def follow(self, thing: ThingIdentity, *, keeps_session: bool) -> None:
        """Follow a thing that was let in, from before it can have subscribed to anything."""
        state = self._states.get(thing.device.id)
        if state is None:
            state = self._states[thing.device.id] = ThingState(thing, alone_since=self._context.now())
        state.thing = thing
        state.keeps_session = keeps_session
        if state.told is None:
            await self._read_first(state)

    def connected(self, thing: ThingIdentity) -> ThingState:
        """Note that a thing that is followed has one more connection; whether it may is looked at once more.

        For since it was let in something may have changed, and nobody could close a connection that had no session yet.
        """
        state = self._states.get(thing.device.id)
        if state is None:  # it was long on its way
            state = self._states[thing.device.id] = ThingState(thing, alone_since=None)
        state.connections += 1
        state.alone_since = None
        self._doubtful.add(thing.device.id)
        self._changed[thing.device.id] = None  # not at once: who comes within a second is looked at together
        return state

    def gone(self, state: ThingState) -> None:
        """Note that one of its connections has ended."""
        state.connections -= 1
        if state.connections <= 0:
            state.alone_since = self._context.now()
            if not state.keeps_session and self._states.get(state.thing.device.id) is state:
                del self._states[state.thing.device.id]

    async def stream(self, state: ThingState, stream_id: str) -> OpenStream | None:
        """Return a stream that the thing may read, as the database says now."""
        pending = await self._reads.get(state.thing.scope, state.thing.device.id)
        state.streams = _streams(state.thing, pending or NOTHING_PENDING)
        return state.streams.get(stream_id)

    def note(self, changes: Changes) -> None:
        """Mark whom a commit concerns. Called in the loop's thread."""
        if changes.everything:
            concerned: Iterable[int] = list(self._states)
        elif changes.tenants:
            concerned = [key for key, one in self._states.items() if one.thing.scope.tenant_id in changes.tenants]
        else:
            concerned = ()
        self._doubtful.update(concerned, changes.identity & self._states.keys())
        for device_id in (*concerned, *(changes.work | changes.identity)):
            if device_id in self._states:
                self._mark(device_id)

    async def run(self, stop: asyncio.Event) -> None:
        """Tell things what has changed, until `stop` is set. What could not be read is tried again."""
        look_again_at = self._context.now()
        while not stop.is_set():
            await wait_for_any(self._woken, stop, timeout_s=LOOK_EVERY_S)
            self._woken.clear()
            self.mark_due()
            now = self._context.now()
            if now >= look_again_at:
                look_again_at = now + timedelta(seconds=SHARED_LOOK_EVERY_S)
                self._drop_alone(now)
                if self._context.settings.is_database_shared:
                    self._changed.update(dict.fromkeys(self._states))
            try:
                await self.tell_changes()
            except Exception as error:  # noqa: BLE001 - whatever the driver raises: things must be told some time
                _log.warning("aws_iot.not_told", waiting=len(self._changed), error=repr(error))
                await wait_for_any(stop, timeout_s=RETRY_PAUSE_S)

    def mark_due(self) -> None:
        """Mark things for which by time alone something else may be pending now."""
        now = self._context.now()
        for device_id, state in self._states.items():
            if state.valid_until is not None and now >= state.valid_until:
                self._changed[device_id] = None

    async def tell_changes(self) -> None:
        """Read the things that are marked and tell each what is new to it. What fails stays marked."""
        while self._changed:
            marked = [self._states[key] for key in self._changed if key in self._states]
            self._changed.clear()
            left = _batches(marked)
            try:
                while left:
                    await self._tell_batch(left[0])
                    del left[0]
            finally:
                for batch in left:
                    self._changed.update(dict.fromkeys(state.thing.device.id for state in batch))

    async def _tell_batch(self, batch: Sequence[ThingState]) -> None:
        doubtful = {state.thing.device.id for state in batch} & self._doubtful
        self._doubtful -= doubtful  # whoever becomes doubtful from here on is looked at once more
        try:
            await self._tell_all(batch, doubtful)
        except BaseException:
            self._doubtful |= doubtful
            raise

    async def _tell_all(self, batch: Sequence[ThingState], doubtful: set[int]) -> None:
        scope, ids = batch[0].thing.scope, [state.thing.device.id for state in batch]
        is_shared = self._context.settings.is_database_shared  # another process may have removed any of them
        unsure = [state.thing.name for state in batch if is_shared or state.thing.device.id in doubtful]

        async def read(transaction: Transaction) -> tuple[Mapping[str, KnownDevice], Mapping[int, PendingJobs]]:
            known = await transaction.known_devices(scope, unsure) if unsure else {}
            return known, await self._read(transaction, scope, ids)

        known, pending = await self._context.storage.read_at_once(read)
        for state in batch:
            device_id, one = state.thing.device.id, known.get(state.thing.name)
            if one is not None and one.device.id != device_id:
                one = None  # removed, and registered again under this name
            if device_id in doubtful or (is_shared and one is None):
                await self._recheck(state, one)
            self._settle(state, pending.get(device_id, NOTHING_PENDING))

    def _settle(self, state: ThingState, pending: PendingJobs) -> None:
        before, present = state.told, tuple(job.job.execution.id for job in pending.jobs)
        state.told = present
        state.streams = _streams(state.thing, pending)
        state.valid_until = pending.valid_until
        if before is None or before == present:
            return
        news = News(pending, set(before) != set(present), before[:1] != present[:1])
        if news.list_changed or news.next_changed:
            self._tell(state, news)

    async def _read_first(self, state: ThingState) -> None:
        pending = await self._reads.get(state.thing.scope, state.thing.device.id)
        if state.told is None:
            self._settle(state, pending or NOTHING_PENDING)

    async def _read(
        self, transaction: Transaction, scope: Scope, device_ids: Sequence[int]
    ) -> Mapping[int, PendingJobs]:
        return await read_pending(transaction, scope, device_ids, now=self._context.now())

    def _mark(self, device_id: int) -> None:
        self._changed[device_id] = None
        self._woken.set()

    def _drop_alone(self, now: datetime) -> None:
        for device_id, state in list(self._states.items()):
            limit_s = KEPT_OFFLINE_S if state.keeps_session else DROPPED_AFTER_S
            if state.alone_since is not None and (now - state.alone_since).total_seconds() > limit_s:
                del self._states[device_id]


def _batches(states: Sequence[ThingState]) -> list[list[ThingState]]:
    """Return the states in groups of one tenant each, none too large for one transaction."""
    batches = []
    by_tenant = sorted(states, key=lambda state: state.thing.scope.tenant_id)
    for _, group in groupby(by_tenant, key=lambda state: state.thing.scope.tenant_id):
        of_tenant = list(group)
        batches += [of_tenant[start : start + READ_AT_ONCE] for start in range(0, len(of_tenant), READ_AT_ONCE)]
    return batches


def _streams(thing: ThingIdentity, pending: PendingJobs) -> dict[str, OpenStream]:
    """Return the streams of a thing's pending jobs by their ids."""
    streams = {}
    for shown in pending.jobs:
        stream_id = stream_id_of(shown.job.execution, shown.release)
        if stream_id in streams:  # short ids may meet: the job that is first is the one that the thing works on
            continue
        digests, limits = shown.release.artifact.digests, limits_of(shown.release)
        streams[stream_id] = OpenStream(
            topic=f"{thing.prefix}streams/{stream_id}",
            sha256=digests.sha256,
            size=digests.size,
            description=f"{shown.release.type_name} {shown.release.version}",
            limits=limits,
        )
    return streams
