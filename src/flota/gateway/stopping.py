"""When a process of the gateway's kind has to stop: signals, or the death of its parent.

A module of its own: the NCP stops so too, and needs nothing else of the gateway.
"""

from __future__ import annotations

import asyncio
import signal
import sys


async def stop_at_signals(*, with_parent: bool = False) -> asyncio.Event:
    """Return what is set at SIGTERM or SIGINT; a second signal ends the process at once.

    `with_parent`: set also when standard input ends, which it does when the process that holds its other end dies.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def asked(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    if with_parent:
        await loop.connect_read_pipe(lambda: _Parent(stop), sys.stdin)
    return stop


class _Parent(asyncio.Protocol):
    """Hears when the other end of standard input is gone."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop."""
        self._stop.set()
