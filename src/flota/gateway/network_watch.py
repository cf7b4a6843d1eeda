"""Listens on the local network and writes into the book of sightings: who announced itself, and with which MAC.

An announcement whose text says a version is a check-in: the app tells what it runs.
Source: docs/reference/gateway.md, "What counts as a sign of life".
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from typing import Final

import structlog

from flota.gateway.driver import SightingBasis
from flota.gateway.sightings import SightingBook
from flota.protocols.arduino_mdns import VERSION_TXT_KEY, board_of
from flota.transports.mdns import BoardBrowser, BoardHeard
from flota.transports.neighbours import mac_of_neighbour

ASKED_AT_ONCE_MAX: Final = 1000

_log = structlog.get_logger(__name__)


class MacQuestions:
    """Asks the system, once at a time for each address, which MAC is behind an address that was heard."""

    def __init__(self, book: SightingBook) -> None:
        self._book = book
        self._asking: dict[str, asyncio.Task[None]] = {}

    def ask(self, address: str) -> None:
        """Begin to ask, unless it is being asked already; the answer goes into the book."""
        if address in self._asking or len(self._asking) >= ASKED_AT_ONCE_MAX:
            return
        task = asyncio.ensure_future(self._ask(address))
        self._asking[address] = task
        task.add_done_callback(functools.partial(self._forget, address))

    async def close(self) -> None:
        """End with what is being asked."""
        for task in list(self._asking.values()):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _ask(self, address: str) -> None:
        mac = await mac_of_neighbour(address)
        if mac is not None:
            self._book.learn_mac(address, mac)

    def _forget(self, address: str, _task: asyncio.Task[None]) -> None:
        self._asking.pop(address, None)


async def watch_network(book: SightingBook, stop: asyncio.Event, *, interfaces: Sequence[str] | None) -> None:
    """Listen until `stop`. Raises `InvalidInput` for a bad interface, `OSError` where mDNS cannot be had."""
    questions = MacQuestions(book)

    def heard(sighting: BoardHeard) -> None:
        note_announcement(book, questions, sighting)

    async with BoardBrowser(heard, interfaces=interfaces):
        await stop.wait()
    await questions.close()


def note_announcement(book: SightingBook, questions: MacQuestions, sighting: BoardHeard) -> None:
    """Write an announcement into the book: with a version that came with it, it is a check-in."""
    board = None if sighting.announcement is None else board_of(sighting.announcement)
    if board is None or sighting.announcement is None:
        return
    version = sighting.announcement.txt.get(VERSION_TXT_KEY) if sighting.text_is_fresh else None
    basis = SightingBasis.CHECK_IN if version else SightingBasis.ANNOUNCEMENT
    host = board.host.lower()
    book.heard(board.address, sighting.heard_at, basis, host=host, mac=board.mac, version=version or None)
    _log.debug(
        "gateway.heard",
        address=board.address,
        instance=board.instance,
        board=board.board,
        mac=board.mac,
        said=version or None,
    )
    if board.mac is None:
        questions.ask(board.address)
