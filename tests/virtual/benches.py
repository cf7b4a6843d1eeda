"""Virtual boards for tests: small flash in memory, no waiting, every event kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from flota.boards.catalogue import board
from flota.boards.model import Board
from flota.images.esp_partitions import parse_csv
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.device import Agent, Identity, VirtualDevice
from flota.virtual.esp_board import EspHardware
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.flash import NorFlash
from flota.virtual.hardware import Hardware
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.pace import Pace

SMALL_TABLE = """
nvs,     data, nvs,   0x9000,  0x4000,
otadata, data, ota,   0xd000,  0x2000,
ota_0,   app,  ota_0, 0x10000, 0x10000,
ota_1,   app,  ota_1, 0x20000, 0x10000,
"""
TABLE_WITH_FACTORY = SMALL_TABLE + "factory, app, factory, 0x30000, 0x10000,\n"


async def no_sleep(seconds: float) -> None:
    """Sleep a moment whatever is asked: long enough that an agent cannot spin."""
    await asyncio.sleep(0.0005)


def fast_pace() -> Pace:
    return Pace(10_000, no_sleep)


def small_board(flash_size: int = 0x40000) -> Board:
    return replace(board("esp32-c3"), flash_size=flash_size)


class EspBench:
    """A small ESP32-C3 whose flash outlives any number of hardware objects, like the real chip."""

    def __init__(
        self,
        image: bytes | None = None,
        *,
        build: BootBuild = BootBuild.ROLLBACK,
        table: str = SMALL_TABLE,
        chip_board: Board | None = None,
    ) -> None:
        self.board = chip_board or small_board()
        self.build = build
        self.flash = NorFlash.blank(self.board.flash_size)
        self.nvs = NonVolatileStore()
        self.fuses = NonVolatileStore()
        self.events: list[DeviceEvent] = []
        hardware = self.hardware()
        hardware.provision(parse_csv(table, flash_size=self.board.flash_size))
        if image is not None:
            hardware.flash_app(image)

    def hardware(self) -> EspHardware:
        return EspHardware(self.board, self.flash, fuses=self.fuses, nvs=self.nvs, pace=fast_pace(), build=self.build)

    def device(self, agent: Agent | None, *, hardware: Hardware | None = None) -> VirtualDevice:
        return VirtualDevice(
            Identity("unit-1", self.board.name, "02:00:00:00:00:01", "pump"),
            hardware or self.hardware(),
            self.nvs,
            agent,
            pace=fast_pace(),
            rng=random.Random(7),
            listener=self.events.append,
        )

    def flash_content(self) -> bytes:
        """Return the whole flash, powered or not."""
        self.flash.plan = None
        self.flash.power_on()
        return self.flash.read(0, self.flash.size)

    def texts(self, kind: EventKind) -> list[str]:
        return [event.text for event in self.events if event.kind is kind]


async def until(condition: Callable[[], bool], *, told: Sequence[DeviceEvent] = (), within_s: float = 30.0) -> None:
    """Give the loop time until `condition()` is true; fails with the last events told."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail("did not happen; last events: " + "; ".join(event.text for event in told[-12:]))
        await asyncio.sleep(0.002)
