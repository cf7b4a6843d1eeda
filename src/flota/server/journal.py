"""The audit trail, followed live: every follower gets every entry once, in order, from the database.

A commit only wakes followers; what they get is always read, so nothing can be lost between a commit and a wake-up,
and a follower that comes back with the last sequence it saw goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Final

from flota.fleet.audit import AuditEntry
from flota.fleet.scope import Scope
from flota.server.waiting import wait_for_any

if TYPE_CHECKING:
    from flota.fleet.storage import Storage

PAGE_ENTRIES: Final = 500
"""Entries read at a time: bounds what one follower of a long trail holds in memory."""

LOOK_AGAIN_S: Final = 5.0
"""Another process (a second replica) may commit without waking us: look at least this often."""


class Journal:
    """Wakes those who follow. One for the whole server."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._closed = asyncio.Event()
        self._wakes: dict[int, asyncio.Event] = {}

    def notify(self, tenant_ids: Iterable[int]) -> None:
        """Tell followers of these tenants that entries were committed. To be called in the loop's thread."""
        for tenant_id in tenant_ids:
            wake = self._wakes.pop(tenant_id, None)
            if wake is not None:
                wake.set()

    def close(self) -> None:
        """End every `follow`, now and for ever: the server stops."""
        self._closed.set()

    async def entries(self, scope: Scope, after: int, *, limit: int = PAGE_ENTRIES) -> list[AuditEntry]:
        """Return the entries whose sequence is above `after`, at most `limit`, in order."""
        async with self._storage.reading() as transaction:
            return list(await transaction.list_audit(scope, after=after, limit=limit))

    async def last_sequence(self, scope: Scope) -> int:
        """Return the sequence of the newest entry, 0 when there is none."""
        async with self._storage.reading() as transaction:
            return await transaction.last_audit_sequence(scope)

    async def follow(self, scope: Scope, after: int) -> AsyncIterator[AuditEntry]:
        """Yield the entries after sequence `after`, then each new one as it is committed, until the server stops."""
        while True:
            page = await self.next_page(scope, after)
            if page is None:
                return
            for entry in page:
                yield entry
                after = entry.sequence

    async def next_page(
        self, scope: Scope, after: int, *, timeout_s: float | None = None, gone: asyncio.Event | None = None
    ) -> list[AuditEntry] | None:
        """Return the entries after sequence `after`, waiting until there are some.

        An empty list means that `timeout_s` seconds passed without any; None means that the server stops, or that
        `gone` was set: nobody waits for them any more.
        """
        waited_s = 0.0
        ends = (self._closed,) if gone is None else (self._closed, gone)
        while not any(end.is_set() for end in ends):
            wake = self._wakes.setdefault(
                scope.tenant_id, asyncio.Event()
            )  # before reading: a commit in between is seen
            page = await self.entries(scope, after)
            if page:
                return page
            if timeout_s is not None and waited_s >= timeout_s:
                return []
            pause_s = LOOK_AGAIN_S if timeout_s is None else min(LOOK_AGAIN_S, timeout_s - waited_s)
            await wait_for_any(wake, *ends, timeout_s=pause_s)
            waited_s += pause_s
        return None
