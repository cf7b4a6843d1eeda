"""The Nuvoton boards as devices of a sweep: boot programs, flash, platform layer, and the core of AWS's OTA agent.

The service in memory is that of `memory_jobs`. On an M487 the reset that software asks for (a CPU reset keeps the
vector map) is a chip too, without operations: what a boot does depends on it, and a power cut forgets it.

Source: docs/reference/power-cuts.md, "Nuvoton boards"; docs/reference/nuvoton.md, "Power cuts".
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

from flota.boards.catalogue import board as board_named
from flota.boards.model import BOOT_MCUBOOT_OVERWRITE, Board
from flota.errors import InvalidInput
from flota.images.markers import pack_marker
from flota.images.mcuboot import (
    Dependency,
    ImageKeyKind,
    ImageOptions,
    ImageVersion,
    build_image,
    pack_image,
    sign_image,
)
from flota.images.nuvoton import AppVersion, ImageFlag
from flota.images.nuvoton.aprom import VECTORS_SIZE
from flota.images.nuvoton.flash_map import (
    APP_ADDR,
    APP_SIZE,
    APROM_SIZE,
    BACKUP_ADDR,
    LDROM_SIZE,
    M2354_FLASH_SIZE,
    M2354_SECTOR_SIZE,
    MCUBOOT_HEADER_SIZE,
    MIB,
    NON_SECURE_ADDR,
    NON_SECURE_SIZE,
    PAGE_SIZE,
    RAM_ADDR,
    RAM_SIZE,
    SD_NON_SECURE_ADDR,
    STAGING_ADDR,
    STAGING_SIZE,
    TRAILER_ADDR,
    backup_image_addr,
)
from flota.lab.cut_scenarios import Scenario
from flota.lab.jobs_sweep_device import JobsGeometry, JobsSweepDevice, jobs_geometry
from flota.lab.known_limits import M2354_PENDING, STOCK_CLONE, KnownLimit
from flota.lab.memory_jobs import THING, MemoryAgent, MemoryService, sweep_certificate
from flota.lab.nuvoton_agents import NUVOTON_BUILD, is_nuvoton
from flota.lab.nuvoton_programmer import note_nuvoton, provision
from flota.lab.nuvoton_swept_chips import SweptCard, SweptLatch, WaymarkedFlash
from flota.lab.oracle import Broken, Reader, Region
from flota.lab.powered_store import PoweredStore
from flota.lab.swept_device import Milestone
from flota.lab.swept_flash import SweptFlash
from flota.trust.image_keys import ImagePrivateKey
from flota.virtual.agents.aws_ota.pal import Pal, PalImageState
from flota.virtual.agents.nuvoton_app import M487App
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.boot.mcuboot_overwrite import header_of
from flota.virtual.boot.nuvoton_journal import read_descriptor
from flota.virtual.device import Agent, AppContext
from flota.virtual.flash import Power
from flota.virtual.m2354_board import M2354Chips, M2354Hardware
from flota.virtual.m2354_pal import PsaFwuPal, read_record
from flota.virtual.nuvoton_board import CONFIG_SIZE, M487Chips, M487Hardware
from flota.virtual.nuvoton_pal import BACKUP_MARKER, WITHOUT_BACKUP, NvtblBuild, NvtblPal
from flota.virtual.nuvoton_programs import BootProfile
from flota.virtual.spi_nor import SpiNor

BLANK_IN_PAGE: Final = range(0x300, 0xF00)
"""What an image of a sweep leaves blank in each page of APROM."""

SWEPT_SPI_SIZE: Final = MIB
SWEPT_SPI_ID: Final = bytes.fromhex("ef4014")
"""A part just large enough for staging and backup: each snapshot names all its sectors."""

SWEEP_BUILD: Final = replace(NUVOTON_BUILD, data_buffers=None)
"""A service in memory has no pace: all blocks of a request are there at once, and no timer asks again."""

SWEPT_CARD_SIZE: Final = 2 * MIB
BACKUP_END: Final = backup_image_addr(PAGE_SIZE) + APP_SIZE
_VECTORS: Final = struct.Struct("<16I")
assert _VECTORS.size == VECTORS_SIZE


def nuvoton_geometry_for(board_name: str, image_size: int | None) -> JobsGeometry:
    """Return the board with images of `image_size` bytes, None = images that fill the app's area.

    On an M2354 it is the size of the firmware inside. Raises `NotFound` for the board, `InvalidInput` for another
    family's and for sizes that do not go.
    """
    board = board_named(board_name)
    if not is_nuvoton(board):
        raise InvalidInput(f"{board.name} is no Nuvoton board")
    largest = NON_SECURE_SIZE - 4 * PAGE_SIZE if is_m2354(board) else APP_SIZE
    return jobs_geometry(board, image_size, largest=largest)


def is_m2354(board: Board) -> bool:
    """Return whether it is the board with MCUboot."""
    return board.boot == BOOT_MCUBOOT_OVERWRITE


@functools.lru_cache(maxsize=16)
def m487_image(version: str, size: int, behaviour: str | None = None, *, with_backup: bool = True) -> bytes:
    """Return an APROM image of exactly `size` bytes, each 4 KiB of it different for each version.

    The middle of each page is blank: more units of the same kind would show nothing new, and a clone has 512 a page.
    """
    markers = {"version": version} | ({"behaviour": behaviour} if behaviour else {})
    markers |= {} if with_backup else {BACKUP_MARKER: WITHOUT_BACKUP}
    entry = APP_ADDR + VECTORS_SIZE | 1
    vectors = _VECTORS.pack(RAM_ADDR + RAM_SIZE, *([entry] * 3), *([0] * 12))
    filling = hashlib.shake_256(f"m487 {version} {behaviour}".encode()).digest(size)
    image = bytearray((vectors + pack_marker(markers) + filling)[:size])
    for start in range(0, size, PAGE_SIZE):
        blank = range(start + BLANK_IN_PAGE.start, min(start + BLANK_IN_PAGE.stop, size))
        image[blank.start : blank.stop] = b"\xff" * len(blank)
    return bytes(image)


@functools.lru_cache(maxsize=16)
def m2354_image(version: str, size: int, behaviour: str | None = None) -> bytes:
    """Return a signed image around `size` bytes of firmware; the version in its header is its own for each."""
    markers = {"version": version} | ({"behaviour": behaviour} if behaviour else {})
    filling = hashlib.shake_256(f"m2354 {version} {behaviour}".encode()).digest(size)
    firmware = (pack_marker(markers) + filling)[:size]
    number = ImageVersion(1, 4, 0, AppVersion.parse(version).word)
    options = ImageOptions(
        version=number,
        header_size=MCUBOOT_HEADER_SIZE,
        add_header=True,
        security_counter=number.automatic_security_counter,
        dependencies=(Dependency(0, ImageVersion(0)),),
    )
    return pack_image(sign_image(build_image(firmware, options), sweep_boot_key().signer))


@functools.cache
def sweep_boot_key() -> ImagePrivateKey:
    """Return the RSA-3072 key of this process with which MCUboot images of sweeps are signed."""
    return ImagePrivateKey.generate(ImageKeyKind.RSA_3072)


class M487SweepDevice(JobsSweepDevice):
    """An M487 with the boot programs of a profile."""

    writes_slots_while_booting = True

    def __init__(
        self, geometry: JobsGeometry, scenario: Scenario, *, profile: BootProfile, with_backup: bool = True
    ) -> None:
        super().__init__(geometry, scenario, partial(m487_image, with_backup=with_backup))
        power = Power()
        backup = range(BACKUP_ADDR, BACKUP_END)
        stock = profile is BootProfile.STOCK
        aprom = WaymarkedFlash(
            APROM_SIZE,
            sector_size=PAGE_SIZE,
            power=power,
            name="aprom",
            marked=range(APP_ADDR, APP_SIZE),
            blind=[range(TRAILER_ADDR, TRAILER_ADDR + PAGE_SIZE)],
        )
        ldrom = SweptFlash(LDROM_SIZE, sector_size=PAGE_SIZE, power=power, name="ldrom")
        config = SweptFlash(CONFIG_SIZE, sector_size=PAGE_SIZE, power=power, name="config")
        spi = WaymarkedFlash(
            SWEPT_SPI_SIZE,
            sector_size=PAGE_SIZE,
            write_alignment=1,
            power=power,
            name="spi",
            marked=range(STAGING_ADDR, STAGING_SIZE if stock else BACKUP_END),
            blind=[backup] if stock else [],
        )
        chips = M487Chips(aprom, ldrom, config, SpiNor(spi, jedec_id=SWEPT_SPI_ID))
        self.power = power
        self.store = PoweredStore("store", power)
        self.board = M487Hardware(geometry.board, chips, nvs=self.store, pace=self._pace, usual_profile=profile)
        latch = SweptLatch()
        self.board.reset = latch
        for flash in chips.flashes:
            flash.listener = None
        self.board.flash_app(self._first)
        note_nuvoton(self.board, self._first)
        provision(self.board, THING, sweep_certificate())
        self._aprom, self._spi = aprom, spi
        self.chips = {
            "aprom": aprom,
            "ldrom": ldrom,
            "config": config,
            "spi": spi,
            "store": self.store,
            "service": self._service,
            "reset": latch,
        }
        self.regions = (
            Region("app", APP_ADDR, APP_SIZE, PAGE_SIZE, chip="aprom"),
            Region("staging", STAGING_ADDR, STAGING_SIZE, PAGE_SIZE, chip="spi"),
            Region("backup", backup_image_addr(PAGE_SIZE), APP_SIZE, PAGE_SIZE, chip="spi"),
            Region("trailer", TRAILER_ADDR, PAGE_SIZE, PAGE_SIZE, chip="aprom"),
        )

    def limit(self, broken: Broken) -> KnownLimit | None:
        """Return that the vendor's Cloner was cut: flag new, the staged image whole, and no whole app."""
        descriptor = read_descriptor(self.board.controller)
        if self.board.profile is not BootProfile.STOCK or descriptor is None or descriptor.flag != ImageFlag.NEW:
            return None
        images = {slot: self._judge.image_in(slot).image for slot in ("app", "staging")}
        return STOCK_CLONE if images["app"] is None and images["staging"] is not None else None

    @contextmanager
    def _under_way(self, milestone: Milestone) -> Iterator[None]:
        with self._aprom.under_way(milestone), self._spi.under_way(milestone):
            yield

    @property
    def hardware(self) -> M487Hardware:
        """The board."""
        return self.board

    @property
    def _readers(self) -> Mapping[str, Reader]:
        return {"aprom": self.board.chips.aprom, "spi": self.board.chips.spi.flash}

    def _app(self, service: MemoryService) -> Agent:
        return M487App(MemoryAgent(service, _nvtbl, SWEEP_BUILD))


class M2354SweepDevice(JobsSweepDevice):
    """An M2354."""

    writes_slots_while_booting = True

    def __init__(self, geometry: JobsGeometry, scenario: Scenario) -> None:
        if scenario.needs_rollback:
            raise InvalidInput(f"the scenario {scenario.name} needs a boot loader that rolls back", found="m2354")
        super().__init__(geometry, scenario, m2354_image)
        flash = SweptFlash(M2354_FLASH_SIZE, sector_size=M2354_SECTOR_SIZE)
        self.power = flash.power
        card = SweptCard(SWEPT_CARD_SIZE, flash.power)
        self.store = PoweredStore("store", flash.power)
        chips = M2354Chips(flash, card)
        self.board = M2354Hardware(geometry.board, chips, nvs=self.store, pace=self._pace)
        flash.listener = None
        card.listener = None
        provision(self.board, THING, sweep_certificate(), (sweep_boot_key().public,))
        self.board.flash_app(self._first)
        note_nuvoton(self.board, self._first)
        self.chips = {"flash": flash, "sd": card, "store": self.store, "service": self._service}
        self.regions = (
            Region("app", NON_SECURE_ADDR, NON_SECURE_SIZE, M2354_SECTOR_SIZE),
            Region("staging", SD_NON_SECURE_ADDR, NON_SECURE_SIZE, 1, chip="sd"),
        )

    @property
    def hardware(self) -> M2354Hardware:
        """The board."""
        return self.board

    @property
    def _readers(self) -> Mapping[str, Reader]:
        return {"flash": self.board.chips.flash, "sd": self.board.chips.card}

    def limit(self, broken: Broken) -> KnownLimit | None:
        """Return that the image that runs was never committed, and the job that is there knows of no self-test."""
        record = read_record(self.store)
        pending = record.rebooted and record.image_state == PalImageState.PENDING_COMMIT.value
        running = record.stage_version == str(header_of(self.board.primary).version)
        return M2354_PENDING if pending and running and not self._service.in_self_test(self._offered) else None

    def _app(self, service: MemoryService) -> Agent:
        return MemoryAgent(service, PsaFwuPal, SWEEP_BUILD)


def nuvoton_sweep_device(
    board_name: str, image_size: int | None, scenario: Scenario, build: BootBuild
) -> JobsSweepDevice:
    """Return a new device: on an M487 `build` says whether the boot programs roll back.

    Raises `NotFound` or `InvalidInput`.
    """
    geometry = nuvoton_geometry_for(board_name, image_size)
    if is_m2354(geometry.board):
        if build.rolls_back:
            raise InvalidInput("MCUboot on an M2354 only overwrites: it never rolls back")
        return M2354SweepDevice(geometry, scenario)
    profile = BootProfile.ROLLBACK if build.rolls_back else BootProfile.STOCK
    return M487SweepDevice(geometry, scenario, profile=profile)


def _nvtbl(context: AppContext) -> Pal:
    return NvtblPal(context, NvtblBuild(sweep_certificate()))
