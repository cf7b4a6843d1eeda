"""A site with AmebaD boards at fixed addresses of the loopback network, announced by real mDNS."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from flota.protocols.arduino_mdns import ameba_txt
from flota.transports.mdns import announced
from flota.virtual.agents.ameba_push import AmebaPushAgent, PushSettings
from flota.virtual.device import AppContext, Identity, VirtualDevice
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.nvs import NonVolatileStore
from tests.virtual.ameba_devices import blank_board, image_of

PORT = 8082
LOOPBACK = ["127.0.0.1"]
RESET_AFTER_S = 0.3
"""The stock sketch is deaf after a push that failed; the boards' watchdogs here reset them."""


@dataclass
class SiteBoard:
    name: str
    address: str
    device: VirtualDevice
    events: list[DeviceEvent] = field(default_factory=list)

    @property
    def version(self) -> str | None:
        app = self.device.app
        return None if app is None else app.version

    @property
    def accepted(self) -> int:
        return sum("Accept connection successfully" in event.text for event in self.events)


def announce(context: AppContext, host: str, _port: int) -> AbstractAsyncContextManager[object]:
    """Announce as the stock sketch does: with port 5000."""
    name = context.identity.name
    return announced(f"MyAmeba-{name}", 5000, ameba_txt(), host=name, addresses=[host], interfaces=LOOPBACK)


@asynccontextmanager
async def site(count: int, *, net: int, speed: float, version: str = "1.0.0") -> AsyncIterator[list[SiteBoard]]:
    """Boards, each with a name and an address of its own in 127.0.`net`.0/24, until the end of the context.

    Sites that may run at the same time have different nets: their boards listen on one port.
    """
    stop = asyncio.Event()
    boards = [_board(net, number, speed, version) for number in range(count)]
    lives = [asyncio.create_task(board.device.run(stop)) for board in boards]
    try:
        yield boards
    finally:
        stop.set()
        await asyncio.gather(*lives)


def _board(net: int, number: int, speed: float, version: str) -> SiteBoard:
    name, address = f"amebad-{net}-{number}", f"127.0.{net}.{number + 1}"
    hardware = blank_board(speed=speed)
    hardware.flash_app(image_of(version))
    agent = AmebaPushAgent(PushSettings(host=address, port=PORT), announce=announce)
    board = SiteBoard(name, address, None)  # type: ignore[arg-type]

    def hear(event: DeviceEvent) -> None:
        board.events.append(event)
        if event.kind is EventKind.UPDATE_FAILED:
            asyncio.get_running_loop().call_later(RESET_AFTER_S, board.device.press_reset)

    board.device = VirtualDevice(
        Identity(name, "amebad", f"02:00:00:00:{net:02X}:{number:02X}", "amebad"),
        hardware,
        NonVolatileStore(),
        agent,
        pace=hardware.pace,
        rng=random.Random(number),
        listener=hear,
    )
    return board
