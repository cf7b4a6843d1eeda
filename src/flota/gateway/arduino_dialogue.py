"""`flota discover --arduino`: boards for the Arduino IDE and arduino-cli, over standard input and output."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from flota.gateway.discover import watch_boards
from flota.protocols.arduino_mdns import DiscoveredBoard, pluggable_port
from flota.protocols.pluggable_discovery import Message, PluggableDiscovery


async def run_dialogue(
    lines: AsyncIterator[str],
    write: Callable[[str], None],
    *,
    interfaces: Sequence[str] | None = None,
    ameba_port: int,
) -> None:
    """Answer commands until QUIT or the end of `lines`; `write` gets one JSON text a message."""
    dialogue = PluggableDiscovery()

    def tell(messages: Iterable[Message]) -> None:
        for message in messages:
            write(json.dumps(message, ensure_ascii=False))

    watching = asyncio.ensure_future(_watch(dialogue, tell, interfaces, ameba_port))
    try:
        async for line in lines:
            tell(dialogue.command(line))
            if dialogue.ended:
                return
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def _watch(
    dialogue: PluggableDiscovery,
    tell: Callable[[Iterable[Message]], None],
    interfaces: Sequence[str] | None,
    ameba_port: int,
) -> None:
    """Keep the dialogue's boards up to date; boards at one address collapse to the latest, as the IDE has it."""
    addresses: dict[str, str] = {}
    async for change in watch_boards(interfaces=interfaces, ameba_port=ameba_port):
        old = addresses.pop(change.name, None)
        if change.board is None or (old is not None and old != change.board.address):
            tell(dialogue.remove(old or ""))
        if change.board is not None:
            addresses[change.name] = change.board.address
            tell(dialogue.add(pluggable_port(change.board, _txt_of(change.board))))


def _txt_of(board: DiscoveredBoard) -> dict[str, str]:
    return {
        **({"board": board.board} if board.board else {}),
        "auth_upload": "yes" if board.needs_password else "no",
        "tcp_check": "no",
        "ssh_upload": "no",
    }
