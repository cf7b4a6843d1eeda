"""A virtual AmebaD board in memory, with or without a running agent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from flota.boards.catalogue import board as board_named
from flota.images.ameba import AmebaFlashMap
from flota.images.markers import pack_marker
from flota.virtual.agents.ameba_push import AmebaPushAgent, PushSettings
from flota.virtual.ameba_board import AmebaHardware
from flota.virtual.device import Agent, Identity, VirtualDevice
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.flash import NorFlash
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.pace import Pace
from tests.images.ameba_samples import image2

SPEED = 5000.0


def image_of(version: str, size: int = 20_000) -> bytes:
    """image2 with our marker in KM4's XIP segment."""
    marker = pack_marker({"version": version})
    body = (marker + b"\x22" * size)[:size]
    return image2(xip=body[: len(body) // 4 * 4])


def blank_board(name: str = "amebad", *, speed: float = SPEED) -> AmebaHardware:
    board = board_named(name)
    flash = NorFlash.blank(board.flash_size, write_alignment=1)
    return AmebaHardware(board, flash, nvs=NonVolatileStore(), pace=Pace(speed))


def put(hardware: AmebaHardware, slot: int, image: bytes) -> None:
    """Put bytes at the start of a slot, as nothing but a debugger would."""
    hardware.write_flash(hardware.layout.slot_offset(slot), image)


@dataclass
class LiveBoard:
    """A board with its app running."""

    hardware: AmebaHardware
    device: VirtualDevice
    events: list[DeviceEvent] = field(default_factory=list)
    ports: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    links: list[asyncio.StreamWriter] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def layout(self) -> AmebaFlashMap:
        return self.hardware.layout

    @property
    def serial(self) -> list[str]:
        return [event.text for event in self.events if event.kind is EventKind.SERIAL]

    def boots(self) -> list[str]:
        return [str(event.facts["slot"]) for event in self.events if event.kind is EventKind.BOOT]

    async def seen(self, text: str, *, within_s: float = 30) -> None:
        """Wait until a serial line or event has `text`."""
        async with asyncio.timeout(within_s):
            while not any(text in event.text for event in self.events):
                self._more.clear()
                await self._more.wait()

    def hear(self, event: DeviceEvent) -> None:
        self.events.append(event)
        self._more.set()


@asynccontextmanager
async def running(
    hardware: AmebaHardware, settings: PushSettings | None = None, agent: Agent | None = None
) -> AsyncIterator[LiveBoard]:
    """A board that lives until the end of the context; its port comes through `ports` at each boot.

    `agent` in place of the one that is pushed to.
    """
    settings = settings or PushSettings(port=0, receive_limit_s=0.5)
    board = LiveBoard(hardware, None)  # type: ignore[arg-type]
    agent = agent or AmebaPushAgent(settings, on_listening=lambda _host, port: board.ports.put_nowait(port))
    identity = Identity("amebad-1", hardware.board.name, "02:00:00:00:00:01", hardware.board.name)
    board.device = VirtualDevice(
        identity,
        hardware,
        NonVolatileStore(),
        agent,
        pace=hardware.pace,
        rng=random.Random(1),
        listener=board.hear,
    )
    stop = asyncio.Event()
    life = asyncio.create_task(board.device.run(stop))
    try:
        yield board
    finally:
        stop.set()
        await life
        for link in board.links:
            link.close()
