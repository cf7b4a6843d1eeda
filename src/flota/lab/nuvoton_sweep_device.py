"""The Nuvoton boards as devices of a sweep: boot programs, flash, platform layer, and the core of AWS's OTA agent.

The service in memory is that of `aws_sweep_device`. On an M487 the reset that software asks for (a CPU reset keeps the
vector map) is a chip too, without operations: what a boot does depends on it, and a power cut forgets it.

Source: docs/reference/power-cuts.md, "Nuvoton boards"; docs/reference/nuvoton.md, "Power cuts".
"""

from __future__ import annotations

import functools
import hashlib
import random
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from flota.images.nuvoton import AppVersion
from flota.images.nuvoton.aprom import VECTORS_SIZE
from flota.images.nuvoton.flash_map import (
    APP_ADDR,
    APP_SIZE,
    APROM_SIZE,
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
    backup_image_addr,
)
from flota.lab.at_once import AtRest, TimelessPace, run_at_once
from flota.lab.aws_sweep_device import (
    THING,
    JobsRecord,
    MemoryAgent,
    MemoryService,
    sweep_certificate,
    sweep_signature,
)
from flota.lab.cut_scenarios import SMALLER_BY_BYTES, Scenario, released
from flota.lab.nuvoton_agents import NUVOTON_BUILD, is_nuvoton
from flota.lab.nuvoton_programmer import note_nuvoton, provision
from flota.lab.oracle import Oracle, Reader, Reason, Region
from flota.lab.power_cuts import Boot, Chip, LifeEnd, Milestone, Offer
from flota.lab.powered_store import PoweredStore
from flota.lab.swept_flash import SweptFlash
from flota.trust.image_keys import ImagePrivateKey
from flota.virtual.agents.aws_ota.pal import Pal
from flota.virtual.agents.nuvoton_app import M487App
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.device import Agent, AppContext, Identity, VirtualDevice
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.flash import Cut, FlashOperation, Power
from flota.virtual.hardware import BootReport
from flota.virtual.m2354_board import M2354Chips, M2354Hardware
from flota.virtual.m2354_pal import PsaFwuPal
from flota.virtual.nuvoton_board import CONFIG_SIZE, M487Chips, M487Hardware, ResetLatch
from flota.virtual.nuvoton_pal import BACKUP_MARKER, WITHOUT_BACKUP, NvtblBuild, NvtblPal
from flota.virtual.nuvoton_programs import BootProfile
from flota.virtual.sd_card import SdCard
from flota.virtual.sector_memory import MemorySnapshot, SectorMemory
from flota.virtual.slots import ResetReason, Restart
from flota.virtual.spi_nor import SpiNor

IMAGE_MIN_BYTES: Final = 12 * 1024
"""The last image of a life is a page and a bit shorter."""

SWEPT_SPI_SIZE: Final = MIB
SWEPT_SPI_ID: Final = bytes.fromhex("ef4014")
"""A part just large enough for staging and backup: each snapshot names all its sectors."""

SWEPT_CARD_SIZE: Final = 2 * MIB
CARD_SECTOR_BYTES: Final = 4096
_VECTORS: Final = struct.Struct("<16I")
assert _VECTORS.size == VECTORS_SIZE


@dataclass(frozen=True, slots=True)
class NuvotonGeometry:
    """A board for a sweep and the size of its images (bytes); on an M2354 that of the firmware inside."""

    board: Board
    image_size: int

    @property
    def is_m2354(self) -> bool:
        """Whether it is the board with MCUboot."""
        return self.board.boot == BOOT_MCUBOOT_OVERWRITE


def nuvoton_geometry_for(board_name: str, image_size: int | None) -> NuvotonGeometry:
    """Return the board with images of `image_size` bytes, None = images that fill the app's area.

    Raises `NotFound` for the board, `InvalidInput` for another family's and for sizes that do not go.
    """
    board = board_named(board_name)
    if not is_nuvoton(board):
        raise InvalidInput(f"{board.name} is no Nuvoton board")
    largest = NON_SECURE_SIZE - 4 * PAGE_SIZE if board.boot == BOOT_MCUBOOT_OVERWRITE else APP_SIZE
    size = largest if image_size is None else image_size
    if not IMAGE_MIN_BYTES <= size <= largest:
        raise InvalidInput(
            "not a size for images of a sweep", expected=f"{IMAGE_MIN_BYTES} to {largest} bytes", found=image_size
        )
    return NuvotonGeometry(board, size)


@functools.lru_cache(maxsize=16)
def m487_image(version: str, size: int, behaviour: str | None = None, *, with_backup: bool = True) -> bytes:
    """Return an APROM image of exactly `size` bytes, each 4 KiB of it different for each version."""
    markers = {"version": version} | ({"behaviour": behaviour} if behaviour else {})
    markers |= {} if with_backup else {BACKUP_MARKER: WITHOUT_BACKUP}
    entry = APP_ADDR + VECTORS_SIZE | 1
    vectors = _VECTORS.pack(RAM_ADDR + RAM_SIZE, *([entry] * 3), *([0] * 12))
    filling = hashlib.shake_256(f"m487 {version} {behaviour}".encode()).digest(size)
    return (vectors + pack_marker(markers) + filling)[:size]


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


def nuvoton_offers(scenario: Scenario, size: int, image: Callable[[str, int, str | None], bytes]) -> tuple[Offer, ...]:
    """Return the offers of a scenario; the last image is shorter, by a page and a bit."""
    offers = []
    for number, (version, behaviour, damaged) in enumerate(scenario.offers):
        last = number == len(scenario.offers) - 1
        data = image(version, size - SMALLER_BY_BYTES if last else size, behaviour)
        if damaged:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        offers.append(Offer(released(version, data, bootable=not damaged, lasts=behaviour is None), version, data))
    return tuple(offers)


class SweptCard(SdCard):
    """An SD card that can be saved, loaded and told apart."""

    def __init__(self, size: int, power: Power) -> None:
        self._sectors = SectorMemory(size, sector_size=CARD_SECTOR_BYTES)
        super().__init__(self._sectors, power=power)

    def save(self) -> MemorySnapshot:
        """Return what the card holds."""
        return self._sectors.save()

    def load(self, snapshot: object) -> None:
        """Hold what a snapshot says."""
        assert isinstance(snapshot, MemorySnapshot)
        self._sectors.load(snapshot)

    def fingerprint(self) -> int:
        """Return a number that tells contents apart."""
        return self._sectors.fingerprint()


class SweptLatch(ResetLatch):
    """The reset that software asked for, as a chip without operations: no snapshot of an operation holds one."""

    def save(self) -> object:
        """Return what is asked for."""
        return self.cpu_reset_to

    def load(self, snapshot: object) -> None:
        """Become what it was."""
        assert snapshot is None or isinstance(snapshot, int)
        self.cpu_reset_to = snapshot

    def fingerprint(self) -> int:
        """Return a number that tells resets apart."""
        return -1 if self.cpu_reset_to is None else self.cpu_reset_to

    def leave(self, operation: FlashOperation, cut: Cut) -> None:
        """Raise: no operation is this latch's."""
        raise AssertionError("a reset is no flash operation")


class NuvotonSweepDevice(ABC):
    """What both boards have in common: agent, service, a life. A `SweptDevice`."""

    writes_slots_while_booting = True
    power: Power
    chips: Mapping[str, Chip]
    regions: Sequence[Region]
    offers: Sequence[Offer]

    def __init__(
        self, geometry: NuvotonGeometry, scenario: Scenario, image: Callable[[str, int, str | None], bytes]
    ) -> None:
        self._pace = TimelessPace()
        self._service = JobsRecord()
        self._first = image("1.0.0", geometry.image_size, None)
        self.offers = nuvoton_offers(scenario, geometry.image_size, image)
        self._signatures = {
            version: sweep_signature(offer.data if not damaged else image(version, len(offer.data), behaviour))
            for offer, (version, behaviour, damaged) in zip(self.offers, scenario.offers, strict=True)
        }
        self._identity = Identity(THING, geometry.board.name, "02:00:00:00:00:01", geometry.board.name)
        self._events: list[DeviceEvent] = []

    @property
    @abstractmethod
    def hardware(self) -> M487Hardware | M2354Hardware:
        """The board."""

    @property
    @abstractmethod
    def _readers(self) -> Mapping[str, Reader]:
        """The chips with images on them."""

    @abstractmethod
    def _app(self, service: MemoryService) -> Agent:
        """Return the app with its platform layer."""

    @property
    @abstractmethod
    def _store(self) -> PoweredStore:
        """The device's store."""

    def oracle(self) -> Oracle:
        """Return a judge that knows the first image and all offers."""
        first = released("1.0.0", self._first)
        return Oracle([first, *(offer.released for offer in self.offers)], self.regions, self._readers)

    def boot(self) -> Boot:
        """Run the boot chain once."""
        report = self.hardware.boot()
        if report.app is None:
            return Boot(None)
        return Boot(report.app.slot, (), report, unconfirmed=report.app.awaits_confirmation)

    def live(self, boot: Boot, offer: Offer, milestone: Milestone) -> LifeEnd:
        """Live as the app: test itself, do the job, until it restarts or there is no job for it."""
        report = boot.handle
        assert isinstance(report, BootReport)
        self._events.clear()
        service = MemoryService(offer, self._signatures[offer.version], self._service, milestone)
        device = VirtualDevice(
            self._identity,
            self.hardware,
            self._store,
            self._app(service),
            pace=self._pace,
            rng=random.Random(1),  # noqa: S311 -- never drawn from
            listener=self._events.append,
        )
        try:
            run_at_once(device.run_app(report, ResetReason.POWER_ON))
        except Restart:
            return LifeEnd(False, installed=any(event.kind is EventKind.INSTALLED for event in self._events))
        except AtRest:
            return LifeEnd(True, self._service.why_it_ended(offer.version))
        raise RuntimeError("an app ended without a restart")

    def counter(self) -> int | None:
        """There is no counter that an update could get wrong: all images have the same."""
        return None

    def why(self, version: str) -> Reason | None:
        """Return why the job for a version failed, None if it did not."""
        return self._service.why_it_ended(version)


class M487SweepDevice(NuvotonSweepDevice):
    """An M487 with the boot programs of a profile."""

    def __init__(
        self, geometry: NuvotonGeometry, scenario: Scenario, *, profile: BootProfile, with_backup: bool = True
    ) -> None:
        super().__init__(geometry, scenario, partial(m487_image, with_backup=with_backup))
        power = Power()
        aprom = SweptFlash(APROM_SIZE, sector_size=PAGE_SIZE, power=power, name="aprom")
        ldrom = SweptFlash(LDROM_SIZE, sector_size=PAGE_SIZE, power=power, name="ldrom")
        config = SweptFlash(CONFIG_SIZE, sector_size=PAGE_SIZE, power=power, name="config")
        spi = SweptFlash(SWEPT_SPI_SIZE, sector_size=PAGE_SIZE, write_alignment=1, power=power, name="spi")
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
        )

    @property
    def hardware(self) -> M487Hardware:
        """The board."""
        return self.board

    @property
    def _readers(self) -> Mapping[str, Reader]:
        return {"aprom": self.board.chips.aprom, "spi": self.board.chips.spi.flash}

    @property
    def _store(self) -> PoweredStore:
        return self.store

    def _app(self, service: MemoryService) -> Agent:
        return M487App(MemoryAgent(service, _nvtbl, NUVOTON_BUILD))


class M2354SweepDevice(NuvotonSweepDevice):
    """An M2354."""

    def __init__(self, geometry: NuvotonGeometry, scenario: Scenario) -> None:
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

    @property
    def _store(self) -> PoweredStore:
        return self.store

    def _app(self, service: MemoryService) -> Agent:
        return MemoryAgent(service, PsaFwuPal, NUVOTON_BUILD)


def nuvoton_sweep_device(
    board_name: str, image_size: int | None, scenario: Scenario, build: BootBuild
) -> NuvotonSweepDevice:
    """Return a new device: on an M487 `build` says whether the boot programs roll back.

    Raises `NotFound` or `InvalidInput`.
    """
    geometry = nuvoton_geometry_for(board_name, image_size)
    if geometry.is_m2354:
        if build.rolls_back:
            raise InvalidInput("MCUboot on an M2354 only overwrites: it never rolls back")
        return M2354SweepDevice(geometry, scenario)
    profile = BootProfile.ROLLBACK if build.rolls_back else BootProfile.STOCK
    return M487SweepDevice(geometry, scenario, profile=profile)


def _nvtbl(context: AppContext) -> Pal:
    return NvtblPal(context, NvtblBuild(sweep_certificate()))
