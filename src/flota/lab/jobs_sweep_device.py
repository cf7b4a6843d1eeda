"""What all boards under AWS's OTA agent have in common in a sweep: geometry, offers, a life with the jobs in memory.

Source: docs/reference/power-cuts.md, "aws-reference".
"""

from __future__ import annotations

import functools
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from flota.boards.model import Board
from flota.errors import InvalidInput
from flota.lab.at_once import AtRest, TimelessPace, run_at_once
from flota.lab.cut_scenarios import SMALLER_BY_BYTES, Scenario, released
from flota.lab.known_limits import KnownLimit
from flota.lab.memory_jobs import THING, JobsRecord, MemoryService, sweep_signature
from flota.lab.oracle import Broken, Oracle, Reader, Region
from flota.lab.powered_store import PoweredStore
from flota.lab.swept_device import Boot, Chip, LifeEnd, Milestone, Offer
from flota.virtual.device import Agent, Identity, VirtualDevice
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.flash import Power
from flota.virtual.hardware import BootReport, Hardware
from flota.virtual.slots import ResetReason, Restart

IMAGE_MIN_BYTES: Final = 12 * 1024
"""The last image of a life is a sector and a bit shorter."""

MakeImage = Callable[[str, int, str | None], bytes]
"""(version, size in bytes, behaviour) -> the image."""


@dataclass(frozen=True, slots=True)
class JobsGeometry:
    """A board for a sweep and the size of its images (bytes)."""

    board: Board
    image_size: int


def jobs_geometry(board: Board, image_size: int | None, *, largest: int) -> JobsGeometry:
    """Return the board with images of `image_size` bytes, None = of `largest`. Raises `InvalidInput`."""
    size = largest if image_size is None else image_size
    if not IMAGE_MIN_BYTES <= size <= largest:
        raise InvalidInput(
            "not a size for images of a sweep", expected=f"{IMAGE_MIN_BYTES} to {largest} bytes", found=image_size
        )
    return JobsGeometry(board, size)


def jobs_files(scenario: Scenario, size: int, image: MakeImage) -> tuple[bytes, ...]:
    """Return the files of a scenario as they were signed; the last one is shorter, by a sector and a bit."""
    sizes = [size] * (len(scenario.offers) - 1) + [size - SMALLER_BY_BYTES]
    return tuple(
        image(version, length, behaviour)
        for (version, behaviour, _), length in zip(scenario.offers, sizes, strict=True)
    )


def jobs_offers(scenario: Scenario, files: Sequence[bytes]) -> tuple[Offer, ...]:
    """Return the offers of a scenario, each file as it arrives."""
    offers = []
    for (version, behaviour, damaged), file in zip(scenario.offers, files, strict=True):
        middle = len(file) // 2
        data = file[:middle] + bytes([file[middle] ^ 1]) + file[middle + 1 :] if damaged else file
        offers.append(Offer(released(version, data, bootable=not damaged, lasts=behaviour is None), version, data))
    return tuple(offers)


class JobsSweepDevice(ABC):
    """A board with AWS's OTA agent, and a service that has a job for what the scenario offers. A `SweptDevice`."""

    writes_slots_while_booting = False
    power: Power
    chips: Mapping[str, Chip]
    regions: Sequence[Region]
    store: PoweredStore

    def __init__(self, geometry: JobsGeometry, scenario: Scenario, image: MakeImage) -> None:
        self._pace = TimelessPace()
        self._service = JobsRecord()
        self._first = image("1.0.0", geometry.image_size, None)
        files = jobs_files(scenario, geometry.image_size, image)
        self.offers: Sequence[Offer] = jobs_offers(scenario, files)
        self._signatures = {
            offer.version: sweep_signature(file) for offer, file in zip(self.offers, files, strict=True)
        }
        self._identity = Identity(THING, geometry.board.name, "02:00:00:00:00:01", geometry.board.name)
        self._events: list[DeviceEvent] = []
        self._offered = ""

    @property
    @abstractmethod
    def hardware(self) -> Hardware:
        """The board."""

    @property
    @abstractmethod
    def _readers(self) -> Mapping[str, Reader]:
        """The chips with images on them."""

    @abstractmethod
    def _app(self, service: MemoryService) -> Agent:
        """Return the app with its platform layer."""

    def _under_way(self, milestone: Milestone) -> AbstractContextManager[object]:
        """Return what surrounds each boot and each life."""
        return nullcontext()

    def _refused(self, report: BootReport) -> tuple[str, ...]:
        """Return the slots that the boot loader refused though they were marked bootable."""
        return ()

    def oracle(self) -> Oracle:
        """Return a judge that knows the first image and all offers."""
        return self._judge

    @functools.cached_property
    def _judge(self) -> Oracle:
        first = released("1.0.0", self._first)
        return Oracle([first, *(offer.released for offer in self.offers)], self.regions, self._readers)

    def boot(self, milestone: Milestone) -> Boot:
        """Run the boot chain once."""
        with self._under_way(milestone):
            report = self.hardware.boot()
        refused = self._refused(report)
        if report.app is None:
            return Boot(None, refused)
        return Boot(report.app.slot, refused, report, unconfirmed=report.app.awaits_confirmation)

    def live(self, boot: Boot, offer: Offer, milestone: Milestone) -> LifeEnd:
        """Live as the app: test itself, do the job, until it restarts or there is no job for it."""
        report = boot.handle
        assert isinstance(report, BootReport)
        self._events.clear()
        self._offered = offer.version
        service = MemoryService(offer, self._signatures[offer.version], self._service, milestone)
        device = VirtualDevice(
            self._identity,
            self.hardware,
            self.store,
            self._app(service),
            pace=self._pace,
            rng=random.Random(1),  # noqa: S311 -- never drawn from
            listener=self._events.append,
        )
        try:
            with self._under_way(milestone):
                run_at_once(device.run_app(report, ResetReason.POWER_ON))
        except Restart:
            return LifeEnd(False, installed=any(event.kind is EventKind.INSTALLED for event in self._events))
        except AtRest:
            return LifeEnd(True, self._service.why_it_ended(offer.version))
        raise RuntimeError("an app ended without a restart")

    def limit(self, broken: Broken) -> KnownLimit | None:
        """Return nothing: whatever breaks is a broken promise."""
        return None

    def counter(self) -> int | None:
        """Return nothing: there is no counter that an update could get wrong."""
        return None
