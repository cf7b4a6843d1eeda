"""How fast a virtual device lives: what it does alone is scaled, what waits for a peer is not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from flota.errors import InvalidInput

SECTOR_ERASE_S: Final = 0.045
"""Typical time to erase 4 KiB of serial NOR flash (Winbond W25Q32JV data sheet, tSE)."""

PAGE_PROGRAM_S: Final = 0.000_7
"""Typical time to program a page (same source, tPP, upper end of typical)."""

PAGE_BYTES: Final = 256
REBOOT_S: Final = 1.5
SELF_TEST_S: Final = 2.0
SELF_TEST_LIMIT_S: Final = 30.0
"""An app that has not confirmed itself by then is restarted by its watchdog, or gives up and rejects itself."""

PANIC_AFTER_S: Final = 0.5
"""How long a crashing app lives."""

SMALLEST_SLEEP_S: Final = 0.004
SPEED_MAX: Final = 10_000.0


class Pace:
    """Spends device time: `speed` 20 makes erase, program, reboot, self-test and poll period 20 times shorter.

    Small amounts are collected (`owe`) and spent together (`pay`), because a sleep per flash operation would cost more
    than the operation. `sleep` is given so that tests need not wait.
    """

    def __init__(self, speed: float = 1.0, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        if not 0 < speed <= SPEED_MAX:
            raise InvalidInput("not a speed", expected=f"above 0, at most {SPEED_MAX:g}", found=speed)
        self.speed = speed
        self._sleep = sleep
        self._owed_s = 0.0

    def owe(self, seconds: float) -> None:
        """Add device time (unscaled seconds) to what the next `pay` spends."""
        self._owed_s += seconds / self.speed

    async def pay(self) -> None:
        """Spend what is owed once it is worth a sleep."""
        if self._owed_s >= SMALLEST_SLEEP_S:
            owed, self._owed_s = self._owed_s, 0.0
            await self._sleep(owed)

    async def spend(self, seconds: float) -> None:
        """Spend device time (unscaled seconds) now."""
        owed, self._owed_s = self._owed_s, 0.0
        await self._sleep(owed + seconds / self.speed)

    async def wait_for_ever(self) -> None:
        """Wait for what only the outside can bring: a reset, a programmer."""
        await asyncio.Event().wait()

    async def wait_for_peer(self, seconds: float) -> None:
        """Wait on the wall clock, unscaled: time that a peer needs does not pass faster."""
        await self._sleep(seconds)


def program_time_s(length: int) -> float:
    """Return the device time (seconds) that programming `length` bytes takes."""
    return -(-length // PAGE_BYTES) * PAGE_PROGRAM_S
