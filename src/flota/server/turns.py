"""One after another: who wants the same thing waits for those who came before. Remembers only who waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable


class Turns:
    """For each key one turn at a time, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    def __len__(self) -> int:
        """How many keys are in use."""
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def of(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for the turn, and have it inside the block."""
        lock, count = self._waiting.get(key, (asyncio.Lock(), 0))
        self._waiting[key] = lock, count + 1
        try:
            async with lock:
                yield
        finally:
            lock, count = self._waiting[key]
            if count > 1:
                self._waiting[key] = lock, count - 1
            else:
                del self._waiting[key]
