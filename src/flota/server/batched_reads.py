"""Reads that many requests need at once, made together: while one is under way, the next ones gather for one query.

A query costs several hand-overs between threads and a hundred times more Python than one more row of its result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from flota.fleet.scope import Scope
from flota.fleet.storage import Transaction

if TYPE_CHECKING:
    from flota.fleet.storage import Storage

BATCH_MAX: Final = 200
"""Keys in one read: it holds up nobody else for longer than a few milliseconds."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Asked(NamedTuple):
    scope: Scope
    key: object
    answer: asyncio.Future[object]


class BatchedReads(Generic[K, V]):
    """One kind of read. `read` gives what it found by key; it is called in a transaction that began after all asked."""

    def __init__(
        self, storage: Storage, read: Callable[[Transaction, Scope, Sequence[K]], Awaitable[Mapping[K, V]]]
    ) -> None:
        self._storage = storage
        self._read = read
        self._asked: list[_Asked] = []
        self._reading: asyncio.Task[None] | None = None

    async def get(self, scope: Scope, key: K) -> V | None:
        """Return what there is under the key now, None for nothing. Raises what the read raises."""
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(scope, key, answer))
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_all(), name="batched reads")
        found: V | None = await answer  # type: ignore[assignment]
        return found

    async def _read_all(self) -> None:
        try:
            while self._asked:
                batch, self._asked = self._asked[:BATCH_MAX], self._asked[BATCH_MAX:]
                by_tenant = sorted(batch, key=lambda asked: asked.scope.tenant_id)
                for _, group in groupby(by_tenant, key=lambda asked: asked.scope.tenant_id):
                    await self._answer(list(group))
        finally:
            self._reading = None
            for asked in islice(self._asked, None):  # only if this task was canceled
                asked.answer.cancel()

    async def _answer(self, group: list[_Asked]) -> None:
        keys: list[K] = list(dict.fromkeys(asked.key for asked in group))  # type: ignore[misc]
        try:
            async with self._storage.reading() as transaction:
                found = await self._read(transaction, group[0].scope, keys)
        except Exception as error:  # noqa: BLE001 - whoever asked gets it
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
                asked.answer.set_result(found.get(asked.key))  # type: ignore[call-overload]
