"""One after another for each key, in the order of asking, and nothing kept of who is done."""

from __future__ import annotations

import asyncio

import pytest

from flota.server.turns import Turns


async def test_who_asks_for_the_same_key_waits_for_those_before() -> None:
    turns, order, first_may_go = Turns(), [], asyncio.Event()

    async def work(name: str, key: str, gate: asyncio.Event | None) -> None:
        async with turns.of(key):
            order.append(f"{name} begins")
            if gate is not None:
                await gate.wait()
            order.append(f"{name} ends")

    tasks = [asyncio.create_task(work("first", "a", first_may_go))]
    tasks += [asyncio.create_task(work(name, key, None)) for name, key in (("second", "a"), ("third", "a"), ("x", "b"))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == ["first begins", "x begins", "x ends"]
    first_may_go.set()
    await asyncio.gather(*tasks)
    assert order[3:] == ["first ends", "second begins", "second ends", "third begins", "third ends"]
    assert len(turns) == 0


async def test_a_turn_that_fails_or_is_given_up_is_over() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="no"):
        async with turns.of("a"):
            raise ValueError("no")

    async def wait() -> None:
        async with turns.of("a"):
            raise AssertionError("it was given up while it waited")

    async with turns.of("a"):
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(turns) == 1
    assert len(turns) == 0
