"""What many requests need of the database at once, done together: while one transaction is under way, the next gathers.

A statement costs several hand-overs between threads, and far more Python than one more row of it; a commit costs more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from itertools import groupby
from typing import Final, Generic, NamedTuple, TypeVar

from flota.fleet.scope import Scope
from flota.fleet.storage import Transaction

BATCH_MAX: Final = 200
"""Keys in one transaction: it holds up nobody else for longer than some ten milliseconds."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Asked(NamedTuple, Generic[K, V]):
    scope: Scope
    key: K
    answer: asyncio.Future[V | None]


class Gathered(Generic[K, V]):
    """One kind of work. `work` gives what it found by key; it is called in a transaction that began after all asked.

    `at_once` runs it in a transaction: `Storage.read_at_once` or `Storage.write_at_once`; what was written is committed
    before anybody gets an answer. The scope is that of one who asked, of the same tenant.
    """

    def __init__(
        self,
        at_once: Callable[[Callable[[Transaction], Awaitable[Mapping[K, V]]]], Awaitable[Mapping[K, V]]],
        work: Callable[[Transaction, Scope, Sequence[K]], Awaitable[Mapping[K, V]]],
    ) -> None:
        self._at_once = at_once
        self._work = work
        self._asked: list[_Asked[K, V]] = []
        self._working: asyncio.Task[None] | None = None

    async def get(self, scope: Scope, key: K) -> V | None:
        """Return what there is under the key now, None for nothing. Raises what the work raises."""
        answer: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(scope, key, answer))
        if self._working is None:
            self._working = asyncio.create_task(self._work_all(), name="gathered work")
        return await answer

    async def _work_all(self) -> None:
        try:
            while self._asked:
                batch, self._asked = self._asked[:BATCH_MAX], self._asked[BATCH_MAX:]
                by_tenant = sorted(batch, key=lambda asked: asked.scope.tenant_id)
                for _, group in groupby(by_tenant, key=lambda asked: asked.scope.tenant_id):
                    await self._answer(list(group))
        finally:
            self._working = None
            for asked in self._asked:  # only if this task was canceled
                asked.answer.cancel()

    async def _answer(self, group: list[_Asked[K, V]]) -> None:
        keys = list(dict.fromkeys(asked.key for asked in group))
        try:
            found = await self._at_once(lambda transaction: self._work(transaction, group[0].scope, keys))
        except Exception as error:  # noqa: BLE001 - whoever asked gets it
            if len(keys) > 1:  # what one of them asked for must not be the others' failure
                await asyncio.gather(*(self._answer([asked]) for asked in group))
                return
            for asked in group:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
            return
        except BaseException:
            for asked in group:
                asked.answer.cancel()
            raise
        for asked in group:
            if not asked.answer.done():
                asked.answer.set_result(found.get(asked.key))
