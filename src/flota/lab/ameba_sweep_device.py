"""AmebaD boards as devices of a sweep: the boot decision, the vendor's write order and the update task of the fleet.

The network is replaced by a sender in memory that pushes the offer whenever another version runs; nothing else is.

Source: docs/reference/power-cuts.md, "AmebaD boards"; docs/reference/ameba-boot.md, "Power cuts".
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flota.boards.catalogue import board as board_named
from flota.boards.model import Board
from flota.errors import InvalidInput
from flota.images.ameba import IMAGE2_SIGNATURE, SECTOR_SIZE, SegmentHeader, join_cores, pack_ota_file
from flota.images.ameba.image2 import KM0, KM4, PSRAM_ADDRESS, RAM_ADDRESS, XIP_ADDRESS
from flota.images.ameba.ota_file import IMAGE_OFFSET
from flota.images.ameba.segment import HEADER_SIZE, RAM_TEXT, RAM_TEXT_OFFSET
from flota.images.markers import pack_marker
from flota.lab.at_once import AtRest, TimelessPace, run_at_once
from flota.lab.cut_scenarios import Scenario, released
from flota.lab.known_limits import KnownLimit
from flota.lab.oracle import Broken, Oracle, Reason, Region
from flota.lab.powered_store import PoweredStore
from flota.lab.swept_device import Boot, Chip, LifeEnd, Milestone, Offer
from flota.lab.swept_flash import SweptFlash
from flota.protocols.ameba_push import push_stream_start
from flota.virtual.agents.ameba_update import UpdateTask
from flota.virtual.ameba_board import SLOT_NAMES, AmebaHardware, map_of
from flota.virtual.ameba_ota import SIGNATURE_WORD_SIZE
from flota.virtual.device import AppContext, Identity, VirtualDevice
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.hardware import BootReport
from flota.virtual.slots import ResetReason, Restart

IMAGE_MIN_BYTES: Final = 4 * SECTOR_SIZE
"""KM0 has one sector, and the last image of a life is a sector shorter than the others."""

START_SIZE: Final = len(push_stream_start(b"")) + IMAGE_OFFSET
"""The sender's first piece: file information and headers. The device erases its slot before it reads on (bytes)."""

PIECE_BYTES: Final = 4096
_RAM_PAYLOAD: Final = b"\x01\0\0\x0c".ljust(RAM_TEXT_OFFSET, b"\0") + RAM_TEXT + b"\xff" * 13


@dataclass(frozen=True, slots=True)
class AmebaGeometry:
    """A board for a sweep and the size of its images (bytes)."""

    board: Board
    image_size: int


def ameba_geometry_for(board_name: str, image_size: int | None) -> AmebaGeometry:
    """Return the board with images of `image_size` bytes, down to whole sectors; None = images that fill a slot.

    Raises `NotFound` for the board, `InvalidInput` for another family's and for sizes that do not go.
    """
    board = board_named(board_name)
    slot_size = map_of(board).slot_size
    size = slot_size if image_size is None else image_size // SECTOR_SIZE * SECTOR_SIZE
    if not IMAGE_MIN_BYTES <= size <= slot_size:
        raise InvalidInput(
            "not a size for images of a sweep", expected=f"{IMAGE_MIN_BYTES} to {slot_size} bytes", found=image_size
        )
    return AmebaGeometry(board, size)


@functools.lru_cache(maxsize=16)
def ameba_image(version: str, size: int) -> bytes:
    """Return an image2 of exactly `size` bytes (whole sectors), each 4 KiB of it different for each version."""
    overhead = 2 * HEADER_SIZE + len(_RAM_PAYLOAD)
    filling = hashlib.shake_256(f"ameba {version}".encode()).digest(size)
    km0_xip = filling[: SECTOR_SIZE - overhead]
    marker = pack_marker({"version": version})
    km4_xip = (marker + filling[SECTOR_SIZE:])[: size - SECTOR_SIZE - overhead - HEADER_SIZE]
    km0 = _segment(XIP_ADDRESS[KM0], km0_xip) + _segment(RAM_ADDRESS[KM0], _RAM_PAYLOAD)
    km4 = _segment(XIP_ADDRESS[KM4], km4_xip) + _segment(RAM_ADDRESS[KM4], _RAM_PAYLOAD) + _segment(PSRAM_ADDRESS, b"")
    image = join_cores(km0, km4)
    if len(image) != size:
        raise InvalidInput("the image came out at another size", expected=size, found=len(image))
    return image


def ameba_offers(scenario: Scenario, size: int) -> tuple[Offer, ...]:
    """Return the offers of a scenario, as `OTA_All.bin`; the last image is a sector shorter.

    Raises `InvalidInput` for scenarios that need a boot loader which rolls back.
    """
    if scenario.needs_rollback:
        raise InvalidInput(f"the scenario {scenario.name} needs a boot loader that rolls back", found="AmebaD")
    offers = []
    for number, (version, _, damaged) in enumerate(scenario.offers):
        last = number == len(scenario.offers) - 1
        file = pack_ota_file(ameba_image(version, size - SECTOR_SIZE if last else size))
        if damaged:
            middle = len(file) // 2
            file = file[:middle] + bytes([file[middle] ^ 1]) + file[middle + 1 :]
        offers.append(Offer(released(version, file[IMAGE_OFFSET:], bootable=not damaged), version, file))
    return tuple(offers)


class AmebaSweepDevice:
    """An AmebaD board with its update task, and a sender that offers what the scenario says. A `SweptDevice`."""

    writes_slots_while_booting = False

    def __init__(self, geometry: AmebaGeometry, scenario: Scenario) -> None:
        board = geometry.board
        self._image_size = geometry.image_size
        self._flash = SweptFlash(board.flash_size, sector_size=SECTOR_SIZE, write_alignment=1)
        self.power = self._flash.power
        self._store = PoweredStore("store", self.power)
        self.chips: Mapping[str, Chip] = {"flash": self._flash, "store": self._store}
        self._pace = TimelessPace()
        self._hardware = AmebaHardware(board, self._flash, nvs=self._store, pace=self._pace)
        self._flash.listener = None
        self._hardware.flash_app(ameba_image("1.0.0", self._image_size))
        layout = self._hardware.layout
        self.regions: Sequence[Region] = tuple(
            Region(name, layout.slot_offset(number), layout.slot_size, SECTOR_SIZE, mark_size=SIGNATURE_WORD_SIZE)
            for number, name in enumerate(SLOT_NAMES, start=1)
        )
        self.offers: Sequence[Offer] = ameba_offers(scenario, self._image_size)
        self._identity = Identity("swept", board.name, "02:00:00:00:00:01", board.name)
        self._events: list[DeviceEvent] = []

    def oracle(self) -> Oracle:
        """Return a judge that knows the first image and all offers."""
        first = released("1.0.0", ameba_image("1.0.0", self._image_size))
        return Oracle([first, *(offer.released for offer in self.offers)], self.regions, {"flash": self._flash})

    def boot(self, milestone: Milestone) -> Boot:
        """Run both boot loaders once."""
        report = self._hardware.boot()
        return Boot(None) if report.app is None else Boot(report.app.slot, (), report)

    def live(self, boot: Boot, offer: Offer, milestone: Milestone) -> LifeEnd:
        """Live as the app: take the offer if another version runs, until the restart; else rest."""
        report = boot.handle
        assert isinstance(report, BootReport)
        self._events.clear()
        device = VirtualDevice(
            self._identity,
            self._hardware,
            self._store,
            _MemoryPush(offer, milestone),
            pace=self._pace,
            rng=random.Random(1),  # noqa: S311 -- never drawn from
            listener=self._events.append,
        )
        try:
            run_at_once(device.run_app(report, ResetReason.POWER_ON))
        except Restart:
            return LifeEnd(False, installed=any(event.kind is EventKind.INSTALLED for event in self._events))
        except AtRest:
            refused = any(event.kind is EventKind.UPDATE_FAILED for event in self._events)
            return LifeEnd(True, Reason.REFUSED if refused else None)
        raise RuntimeError("an app ended without a restart")

    def limit(self, broken: Broken) -> KnownLimit | None:
        """Return nothing: whatever breaks on this board is a broken promise."""
        return None

    def counter(self) -> int | None:
        """There is no anti-rollback counter."""
        return None


class _MemoryPush:
    """The update task with a sender at its side: pushes unless the offered version runs, then nobody comes."""

    def __init__(self, offer: Offer, milestone: Milestone) -> None:
        self._offer = offer
        self._milestone = milestone

    async def run(self, context: AppContext) -> None:
        """Take the offer."""
        if context.slots.running.version != self._offer.version:
            stream = push_stream_start(self._offer.data) + self._offer.data
            position = 0

            async def read() -> bytes:
                nonlocal position
                self._milestone(f"{position} bytes are taken")
                start, position = position, position + (PIECE_BYTES if position else START_SIZE)
                return stream[start:position]

            await UpdateTask(context).take(read)
        await context.pace.wait_for_ever()


def _segment(address: int, payload: bytes) -> bytes:
    return SegmentHeader(IMAGE2_SIGNATURE, len(payload), address).pack() + payload
