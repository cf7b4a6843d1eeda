"""Boards on the local network: who announces itself, where it takes an update, and how that is known.

Nobody is connected to just to look. Source: docs/reference/arduino-discovery.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from flota.protocols.ameba_push import ARDUINO
from flota.protocols.arduino_mdns import DiscoveredBoard, board_of
from flota.transports.mdns import BoardBrowser, BoardHeard

LOOK_S: Final = 5.0
"""How long a look lasts: boards answer within a second or two; some miss the first question."""

QUEUE_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class BoardChange:
    """A board appeared or was heard again (`board`), or is gone (`board` None). `name` is the service's full name."""

    name: str
    board: DiscoveredBoard | None


async def discover(
    *, seconds: float = LOOK_S, interfaces: Sequence[str] | None = None, ameba_port: int = ARDUINO.port
) -> list[DiscoveredBoard]:
    """Return the boards that answer within `seconds`, by address. Raises `InvalidInput` for a bad interface."""
    async with BoardBrowser(interfaces=interfaces) as browser:
        await asyncio.sleep(seconds)
        found = [_board(heard, ameba_port) for heard in browser.boards.values()]
    return sorted((board for board in found if board is not None), key=lambda board: (board.address, board.instance))


async def watch_boards(
    *, interfaces: Sequence[str] | None = None, ameba_port: int = ARDUINO.port
) -> AsyncIterator[BoardChange]:
    """Yield boards as they come, change and go, for as long as anyone listens; one again only if it changed."""
    queue: asyncio.Queue[BoardHeard] = asyncio.Queue(QUEUE_MAX)
    known: dict[str, DiscoveredBoard] = {}
    async with BoardBrowser(queue.put_nowait, interfaces=interfaces):
        while True:
            heard = await queue.get()
            board = _board(heard, ameba_port)
            if board is None:
                if known.pop(heard.name, None) is not None:
                    yield BoardChange(heard.name, None)
            elif known.get(heard.name) != board:
                known[heard.name] = board
                yield BoardChange(heard.name, board)


async def board_at(
    address: str, *, within_s: float, interfaces: Sequence[str] | None = None, ameba_port: int = ARDUINO.port
) -> DiscoveredBoard | None:
    """Return the board that announces `address` (or that host name), None if none does `within_s`."""
    async with BoardBrowser(interfaces=interfaces) as browser:
        deadline = asyncio.get_running_loop().time() + within_s
        while asyncio.get_running_loop().time() < deadline:
            for heard in browser.boards.values():
                board = _board(heard, ameba_port)
                if board is not None and _is_at(board, address):
                    return board
            await asyncio.sleep(0.05)
    return None


def board_as_dict(board: DiscoveredBoard) -> dict[str, object]:
    """Return the board as plain data for JSON."""
    return {
        "instance": board.instance,
        "board": board.board,
        "kind": board.kind.value,
        "address": board.address,
        "addresses": list(board.addresses),
        "host": board.host,
        "mac": board.mac,
        "upload_port": board.upload_port,
        "upload_port_from": board.port_basis.value,
        "announced_port": board.announced_port,
        "needs_password": board.needs_password,
    }


def _board(heard: BoardHeard, ameba_port: int) -> DiscoveredBoard | None:
    return None if heard.announcement is None else board_of(heard.announcement, ameba_port=ameba_port)


def _is_at(board: DiscoveredBoard, address: str) -> bool:
    wanted = address.lower().rstrip(".")
    return wanted in board.addresses or wanted == board.host.lower()
