"""`aws-reference` as a device of a sweep: its boot loader, its platform, the core of its OTA agent and its app.

The MQTT connection is replaced by the service of `memory_jobs`; nothing else is.

Source: docs/reference/power-cuts.md, "aws-reference".
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from flota.boards.catalogue import board as board_named
from flota.boards.model import BOOT_AB_RECORD
from flota.errors import InvalidInput
from flota.lab.cut_scenarios import Scenario
from flota.lab.jobs_sweep_device import JobsGeometry, JobsSweepDevice, jobs_geometry
from flota.lab.memory_jobs import MemoryAgent, MemoryService, sweep_certificate
from flota.lab.oracle import Reader, Region
from flota.lab.powered_store import PoweredStore
from flota.lab.sample_firmware import sample_versioned_file
from flota.lab.swept_device import Chip
from flota.lab.swept_flash import SweptFlash
from flota.virtual.ab_board import AbHardware, AbSlots
from flota.virtual.agents.aws_ota.ab_pal import AbPal
from flota.virtual.agents.aws_ota.pal import Pal
from flota.virtual.device import Agent, AppContext
from flota.virtual.hardware import BootReport


def aws_geometry_for(board_name: str, image_size: int | None) -> JobsGeometry:
    """Return the board with images of `image_size` bytes, None = images that fill a slot.

    Raises `NotFound` for the board, `InvalidInput` for another family's and for sizes that do not go.
    """
    board = board_named(board_name)
    if board.boot != BOOT_AB_RECORD:
        raise InvalidInput(f"{board.name} is no A/B board")
    return jobs_geometry(board, image_size, largest=board.slots[0].size)


@functools.lru_cache(maxsize=16)
def aws_image(version: str, size: int, behaviour: str | None = None) -> bytes:
    """Return an image of `size` bytes, each 4 KiB of it different for each version."""
    return sample_versioned_file(version, size=size, behaviour=behaviour or "healthy")


class AwsSweepDevice(JobsSweepDevice):
    """The board with its agent, and a service that has a job for what the scenario offers."""

    def __init__(self, geometry: JobsGeometry, scenario: Scenario) -> None:
        super().__init__(geometry, scenario, aws_image)
        board = geometry.board
        self._flash = SweptFlash(board.flash_size, sector_size=board.sector_size, write_alignment=board.write_alignment)
        self.power = self._flash.power
        self.store = PoweredStore("store", self.power)
        self.chips: Mapping[str, Chip] = {"flash": self._flash, "store": self.store, "service": self._service}
        self._hardware = AbHardware(board, self._flash, nvs=self.store, pace=self._pace)
        self._flash.listener = None
        self._hardware.flash_app(self._first)
        self.regions: Sequence[Region] = tuple(
            Region(slot.name, slot.offset or 0, slot.size, board.sector_size) for slot in board.slots
        )

    @property
    def hardware(self) -> AbHardware:
        """The board."""
        return self._hardware

    @property
    def _readers(self) -> Mapping[str, Reader]:
        return {"flash": self._flash}

    def _app(self, service: MemoryService) -> Agent:
        return MemoryAgent(service, _ab_pal)

    def _refused(self, report: BootReport) -> tuple[str, ...]:
        return tuple(text.partition(":")[0] for text in report.refused)


def _ab_pal(context: AppContext) -> Pal:
    assert isinstance(context.slots, AbSlots)
    return AbPal(context.slots, context.nvs, context.pace, sweep_certificate())
