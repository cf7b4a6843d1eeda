"""Listens on the local network and writes into the book of sightings: who announced itself, and with which MAC."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from typing import Final

import structlog

from flota.gateway.driver import SightingBasis
from flota.gateway.sightings import SightingBook
from flota.protocols.arduino_mdns import board_of
from flota.transports.mdns import BoardBrowser, BoardHeard
from flota.transports.neighbours import mac_of_neighbour

QUEUE_MAX: Final = 10_000

_log = structlog.get_logger(__name__)


async def watch_network(book: SightingBook, stop: asyncio.Event, *, interfaces: Sequence[str] | None) -> None:
    """Listen until `stop`. Raises `InvalidInput` for a bad interface, `OSError` where mDNS cannot be had."""
    asking: dict[str, asyncio.Task[None]] = {}

    def heard(sighting: BoardHeard) -> None:
        board = None if sighting.announcement is None else board_of(sighting.announcement)
        if board is None:
            return
        book.heard(board.address, sighting.heard_at, SightingBasis.ANNOUNCEMENT, host=board.host.lower(), mac=board.mac)
        _log.debug("gateway.heard", address=board.address, instance=board.instance, board=board.board, mac=board.mac)
        if board.mac is None and board.address not in asking and len(asking) < QUEUE_MAX:
            task = asyncio.ensure_future(_ask_mac(book, board.address))
            asking[board.address] = task
            task.add_done_callback(functools.partial(_forget, asking, board.address))

    async with BoardBrowser(heard, interfaces=interfaces):
        await stop.wait()
    for task in list(asking.values()):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _forget(asking: dict[str, asyncio.Task[None]], address: str, _task: asyncio.Task[None]) -> None:
    asking.pop(address, None)


async def _ask_mac(book: SightingBook, address: str) -> None:
    mac = await mac_of_neighbour(address)
    if mac is not None:
        book.learn_mac(address, mac)
