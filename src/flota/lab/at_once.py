"""The real agents without an event loop: what only ever waits for device time can be run to its end at once."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Final, TypeVar

from flota.virtual.pace import Pace

Result = TypeVar("Result")

REST_S: Final = 86_400.0
"""A poll period of this length means that there is nothing more to do."""


class AtRest(BaseException):
    """The app waits for something that only the outside can bring."""


class TimelessPace(Pace):
    """Spends no time at all; who waits for the next poll, or for ever, is at rest."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def owe(self, seconds: float) -> None:
        """Take note of nothing."""

    async def pay(self) -> None:
        """Go on at once."""

    async def spend(self, seconds: float) -> None:
        """Go on at once, unless it is the wait for the next poll."""
        if seconds > REST_S / 2:
            raise AtRest

    async def wait_for_ever(self) -> None:
        """Be at rest."""
        raise AtRest

    async def wait_for_peer(self, seconds: float) -> None:
        """Go on at once: the peer of a sweep answers without delay."""
        self.waits += 1


def run_at_once(work: Coroutine[object, object, Result]) -> Result:
    """Return what `work` returns, or raise what it raises. Raises `RuntimeError` if it waits for an event loop."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # the type of StopIteration.value is Any
    work.close()
    raise RuntimeError("waited for something that needs an event loop")
