"""Work that gathers: one transaction for many, an answer for each, one's failure not the others'."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from flota.fleet.scope import Scope
from flota.server.gathered import BATCH_MAX, Gathered

ONE, TWO = Scope(1, "x"), Scope(2, "x")


class Work:
    """Doubles numbers and remembers what it was asked at once; 13 fails, 0 is not found."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, list[int]]] = []
        self.gathered = Gathered(self._at_once, self._double)

    async def _at_once(self, work: Callable[[Any], Awaitable[Mapping[int, int]]]) -> Mapping[int, int]:
        await asyncio.sleep(0)
        return await work(None)

    async def _double(self, _: object, scope: Scope, keys: Sequence[int]) -> Mapping[int, int]:
        self.batches.append((scope.tenant_id, sorted(keys)))
        await asyncio.sleep(0)
        if 13 in keys:
            raise ValueError("13")
        return {key: key * 2 for key in keys if key}


async def test_what_is_asked_together_is_done_together() -> None:
    work = Work()
    assert await asyncio.gather(*(work.gathered.get(ONE, key) for key in (1, 2, 3, 2, 0))) == [2, 4, 6, 4, None]
    assert work.batches == [(1, [0, 1, 2, 3])]


async def test_what_comes_while_one_is_under_way_waits_for_the_next() -> None:
    work = Work()
    first = asyncio.create_task(work.gathered.get(ONE, 1))
    while not work.batches:  # noqa: ASYNC110 - one turn of the loop at a time
        await asyncio.sleep(0)
    assert await asyncio.gather(first, *(work.gathered.get(ONE, key) for key in (1, 5))) == [2, 2, 10]
    assert work.batches == [(1, [1]), (1, [1, 5])]


async def test_tenants_are_never_mixed() -> None:
    work = Work()
    assert await asyncio.gather(work.gathered.get(ONE, 1), work.gathered.get(TWO, 1)) == [2, 2]
    assert work.batches == [(1, [1]), (2, [1])]


async def test_a_failure_is_told_to_whom_it_belongs_alone() -> None:
    work = Work()
    found = await asyncio.gather(*(work.gathered.get(ONE, key) for key in (1, 13, 2)), return_exceptions=True)
    assert (found[0], found[2]) == (2, 4)
    assert isinstance(found[1], ValueError)
    assert await work.gathered.get(ONE, 4) == 8


async def test_who_goes_away_does_not_take_the_others_along() -> None:
    work = Work()
    tasks = [asyncio.create_task(work.gathered.get(ONE, 7)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert await asyncio.gather(*tasks[1:]) == [14, 14]
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_a_batch_is_bounded() -> None:
    work = Work()
    count = BATCH_MAX * 2 + 1
    assert len(await asyncio.gather(*(work.gathered.get(ONE, 100 + key) for key in range(count)))) == count
    assert [len(keys) for _, keys in work.batches] == [BATCH_MAX, BATCH_MAX, 1]
