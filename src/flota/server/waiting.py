"""Waiting for whichever of several events comes first."""

from __future__ import annotations

import asyncio


async def wait_for_any(*events: asyncio.Event, timeout_s: float | None = None) -> bool:
    """Return True as soon as one of the events is set, False after `timeout_s` seconds without any."""
    if any(event.is_set() for event in events):
        return True
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return bool(done)
