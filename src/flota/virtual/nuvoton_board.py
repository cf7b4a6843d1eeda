"""An M487 board: APROM, LDROM, CONFIG0, SPI flash; how its processor starts; what a programmer does to it.

Nothing in APROM says how long the app is or whether it is whole: a processor starts whatever has vectors. A virtual
device starts an app only if it is one of the last files that a programmer or an update brought (their digests are
noted outside the flash); anything else would run into the weeds.
Source: docs/reference/nuvoton.md, "Resets", "Rollback" and "Programming".
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from flota.boards.model import Board
from flota.errors import InvalidInput
from flota.images.markers import find_markers
from flota.images.model import ImageError
from flota.images.nuvoton import ImageFlag, Place
from flota.images.nuvoton.flash_map import (
    APP_ADDR,
    APP_SIZE,
    APROM_SIZE,
    BACKUP_ADDR,
    CLONER_ADDR,
    CLONER_SIZE,
    DESCRIPTOR_LIMIT,
    KVSTORE_ADDR,
    LDROM_ADDR,
    LDROM_SIZE,
    PAGE_SIZE,
    RAM_ADDR,
    RAM_SIZE,
    SPI_SIZE,
    STAGING_SIZE,
    backup_image_addr,
)
from flota.virtual.boot import nuvoton_rollback, nuvoton_stock
from flota.virtual.boot.nuvoton_journal import read_descriptor
from flota.virtual.boot.nuvoton_parts import (
    BOOT_FROM_APROM,
    CONFIG0_LDROM_FIRST,
    WITHOUT_IAP,
    Handover,
    ResetKind,
)
from flota.virtual.flash import FlashOperation, FlashOperationKind, NorFlash, Power
from flota.virtual.hardware import BootReport, ImageNote, ImageNotes
from flota.virtual.nuvoton_kvstore import write_entries
from flota.virtual.nuvoton_programs import BootProfile, BootProgram, program_in, stand_in
from flota.virtual.nuvoton_slots import M487Slots
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.pace import SECTOR_ERASE_S, Pace, program_time_s
from flota.virtual.slots import RunningApp
from flota.virtual.slotted_flash import app_in
from flota.virtual.spi_nor import SpiDriver, SpiNor

APP_SLOT: Final = "app"
STAGING_SLOT: Final = "staging"
BACKUP_SLOT: Final = "backup"
SLOT_NAMES: Final = (APP_SLOT, STAGING_SLOT, BACKUP_SLOT)

CONFIG_SIZE: Final = 0x1000
WORD_SIZE: Final = 4
HANDOVERS_MAX: Final = 8
"""Programs that one reset may lead through; more means that they hand over to each other for ever."""

BAUD: Final = 115_200
BITS_PER_CHARACTER: Final = 10
PAGE_ERASE_S: Final = 0.020
UNIT_PROGRAM_S: Final = 0.000_04
"""Internal flash: our own figures, of the size that such flash has."""

_VECTORS: Final = struct.Struct("<II")


@dataclass(slots=True)
class M487Chips:
    """All that outlives the power: internal flash in three parts, and the SPI flash, on one power supply."""

    aprom: NorFlash
    ldrom: NorFlash
    config: NorFlash
    spi: SpiNor

    @property
    def power(self) -> Power:
        """The one supply of all."""
        return self.aprom.power

    @property
    def flashes(self) -> tuple[NorFlash, ...]:
        """The chips' cells."""
        return (self.aprom, self.ldrom, self.config, self.spi.flash)


class ApromController:
    """The flash controller over a `NorFlash`: what the boot programs and the application's journal write with."""

    def __init__(self, aprom: NorFlash) -> None:
        self._aprom = aprom
        self.vector_map = APP_ADDR

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes of APROM."""
        return self._aprom.read(address, length)

    def erase_page(self, address: int) -> bool:
        """Erase a page; a healthy flash never fails."""
        self._aprom.erase_sector(address)
        return True

    def program_unit(self, address: int, data: bytes) -> bool:
        """Program 8 bytes."""
        self._aprom.program(address, data)
        return True

    def crc32(self, address: int, length: int) -> int:
        """Return the CRC-32 of a range; which polynomial the part uses is not known, and nothing depends on it."""
        return zlib.crc32(self._aprom.read(address, length)) if length else 0

    def map_vectors(self, address: int) -> None:
        """Note where the next CPU reset starts."""
        self.vector_map = address


class ResetLatch:
    """The reset that software has asked for: its kind and the vector map. A power-on forgets it."""

    def __init__(self) -> None:
        self.cpu_reset_to: int | None = None

    def take(self) -> int | None:
        """Return where a CPU reset starts, None for any other reset; the latch is empty then."""
        target, self.cpu_reset_to = self.cpu_reset_to, None
        return target


class M487Hardware:
    """The board under power. `notes` keep what installers knew of files; `chips.spi.fitted` may change any time.

    `usual_profile` is which boot programs a programmer brings along.
    """

    def __init__(
        self,
        board: Board,
        chips: M487Chips,
        *,
        nvs: NonVolatileStore,
        pace: Pace,
        usual_profile: BootProfile = BootProfile.ROLLBACK,
    ) -> None:
        self.board = board
        self.usual_profile = usual_profile
        self.chips = chips
        self.pace = pace
        self.reset = ResetLatch()
        self.controller = ApromController(chips.aprom)
        self.spi = SpiDriver(chips.spi)
        self.notes = ImageNotes(nvs)
        for flash in (chips.aprom, chips.ldrom, chips.config):
            flash.listener = self._spend_inside
        chips.spi.flash.listener = self._spend_outside

    # --- power and boot -----------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Give power back; a chip that had none starts as at power-on."""
        if not self.chips.power.on:
            self.reset.take()
        self.chips.aprom.power_on()

    def power_off(self) -> None:
        """Take the power away."""
        self.chips.aprom.cut_power()

    def close(self) -> None:
        """Let go of the flash files."""
        for flash in self.chips.flashes:
            flash.close()

    def boot(self) -> BootReport:
        """Start as the last reset says: through LDROM and Cloner, or APROM directly."""
        mapped = self.reset.take()
        vector = self.first_vector if mapped is None else mapped
        console: list[str] = []
        for _ in range(HANDOVERS_MAX):
            if vector == APP_ADDR:
                return self._start_app(console)
            handover = self._run(vector)
            if isinstance(handover, str):
                return self._nothing(handover, console)
            console += handover.console
            vector = handover.vector_map if handover.reset is ResetKind.CPU else self.first_vector
        return self._nothing("LDROM and Cloner hand over to each other for ever", console)

    @property
    def config0(self) -> int:
        """The user configuration word."""
        return int.from_bytes(self.chips.config.read(0, WORD_SIZE), "little")

    @property
    def first_vector(self) -> int:
        """Where power-on and chip reset start."""
        return APP_ADDR if self.config0 & BOOT_FROM_APROM else LDROM_ADDR

    def write_config0(self, value: int) -> None:
        """Erase the configuration and write the word: a cut in between leaves all ones."""
        self.chips.config.erase_sector(0)
        if value != 0xFFFF_FFFF:
            self.chips.config.program(0, value.to_bytes(WORD_SIZE, "little"))

    def allow_programming(self) -> bool:
        """Clear bit 6 of CONFIG0 as the application does at its start; True: it was set, a chip reset is due."""
        if not self.config0 & WITHOUT_IAP:
            return False
        self.write_config0(self.config0 & ~WITHOUT_IAP)
        return True

    @property
    def profile(self) -> BootProfile | None:
        """Whose boot programs there are; None if one is missing, unknown, or they do not go together."""
        loader, cloner = self._program(Place.LOADER), self._program(Place.CLONER)
        if loader is None or cloner is None or loader.profile is not cloner.profile:
            return None
        return loader.profile

    @property
    def on_trial(self) -> bool:
        """Whether the descriptor says that the app has yet to commit itself."""
        descriptor = read_descriptor(self.controller)
        return descriptor is not None and descriptor.flag == ImageFlag.PENDING_COMMIT

    # --- what a programmer does ---------------------------------------------------------------------------------------

    def provision(self, entries: Mapping[str, str]) -> bool:
        """Write the key store if nothing was ever written there; returns whether it was so."""
        if self.chips.aprom.read(KVSTORE_ADDR, PAGE_SIZE) != b"\xff" * PAGE_SIZE:
            return False
        write_entries(self.chips.aprom, entries)
        return True

    @property
    def blank(self) -> bool:
        """Whether APROM was never programmed."""
        return self.chips.aprom.read(APP_ADDR, PAGE_SIZE) == b"\xff" * PAGE_SIZE

    def write_flash(self, address: int, data: bytes) -> None:
        """Write as the vendor's tool does: LDROM from 0x100000 on, else APROM, erased from `address` to its end.

        Raises `InvalidInput` for what fits nowhere.
        """
        in_ldrom = address >= LDROM_ADDR
        flash, start = (self.chips.ldrom, address - LDROM_ADDR) if in_ldrom else (self.chips.aprom, address)
        if start % PAGE_SIZE or start < 0 or start + len(data) > flash.size:
            raise InvalidInput(
                "cannot flash there",
                offset=address,
                expected=f"a multiple of {PAGE_SIZE:#x} in APROM (to {APROM_SIZE:#x}) or LDROM ({LDROM_ADDR:#x}, "
                f"{LDROM_SIZE:#x} bytes)",
                found=f"{len(data)} bytes",
            )
        flash.erase(start, flash.size - start)
        program_pages(flash, start, data)

    def erase_chip(self) -> None:
        """Erase APROM, LDROM, CONFIG0 and the SPI flash."""
        for flash in self.chips.flashes:
            flash.erase(0, flash.size)

    def flash_app(self, data: bytes) -> str:
        """Program loader, app and Cloner in the guide's order, and CONFIG0 where the profile needs it.

        Boot programs that are there and known stay: one may have brought the vendor's. Raises `InvalidInput`.
        """
        if len(data) > DESCRIPTOR_LIMIT:
            raise InvalidInput("the image is larger than APROM has room for", expected=APP_SIZE, found=len(data))
        profile = self.usual_profile
        cloner = None if self.profile is None else self.chips.aprom.read(CLONER_ADDR, CLONER_SIZE)
        if cloner is None:
            self.write_flash(LDROM_ADDR, stand_in(BootProgram(Place.LOADER, profile)))
        self.write_flash(APP_ADDR, data)
        self.write_flash(CLONER_ADDR, cloner or stand_in(BootProgram(Place.CLONER, profile)))
        ldrom_first = self.profile is BootProfile.ROLLBACK
        self.write_config0(CONFIG0_LDROM_FIRST if ldrom_first else 0xFFFF_FFFF)
        return APP_SLOT

    # --- looking ------------------------------------------------------------------------------------------------------

    def slot_names(self) -> tuple[str, ...]:
        """Return the names of the places that can hold an image."""
        return SLOT_NAMES

    def running_slot(self) -> str | None:
        """Return `app` if APROM holds a whole image."""
        return APP_SLOT if self._whole_app() is not None else None

    def slot_content(self, slot: str) -> bytes:
        """Return a place as it is. Raises `InvalidInput` with the names there are."""
        spi = self.chips.spi.flash
        if slot == APP_SLOT:
            return self.chips.aprom.read(APP_ADDR, DESCRIPTOR_LIMIT)
        if slot == STAGING_SLOT:
            return spi.read(0, STAGING_SIZE)
        if slot == BACKUP_SLOT:
            return spi.read(backup_image_addr(spi.sector_size), APP_SIZE)
        raise InvalidInput("no such slot", expected=", ".join(SLOT_NAMES), found=repr(slot))

    def image_in(self, slot: str) -> bytes:
        """Return exactly the image file in a place. Raises `ImageError` if it is none that was ever installed."""
        content = self.slot_content(slot)
        note = self._noted(content)
        if note is None:
            raise ImageError(
                f"{slot} holds no image that was installed on this device", expected="one of the last four files"
            )
        return content[: note.size]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _program(self, place: Place) -> BootProgram | None:
        if place is Place.LOADER:
            return program_in(self.chips.ldrom.read(0, LDROM_SIZE), place)
        return program_in(self.chips.aprom.read(CLONER_ADDR, CLONER_SIZE), place)

    def _run(self, vector: int) -> Handover | str:
        """Run the boot program at a vector; return why it does not run."""
        places = {LDROM_ADDR: Place.LOADER, CLONER_ADDR: Place.CLONER}
        place = places.get(vector)
        if place is None:
            return f"vectors are mapped to {vector:#x}, where no program begins"
        program = self._program(place)
        if program is None:
            return f"{vector:#x} holds no {place} that is known here"
        if program.profile is BootProfile.STOCK:
            if place is Place.LOADER:
                return nuvoton_stock.run_ldrom(self.controller)
            return nuvoton_stock.run_cloner(self.controller, self.chips.spi)
        if place is Place.LOADER:
            return nuvoton_rollback.run_ldrom(self.controller)
        return nuvoton_rollback.run_cloner(self.controller, self.chips.spi)

    def _start_app(self, console: list[str]) -> BootReport:
        app = self._whole_app()
        if app is None:
            stack, entry = _VECTORS.unpack(self.chips.aprom.read(APP_ADDR, _VECTORS.size))
            sound = RAM_ADDR < stack <= RAM_ADDR + RAM_SIZE and entry % 2 == 1 and entry < APROM_SIZE
            why = "an app that is not whole" if sound else f"no vectors ({stack:#010x}, {entry:#010x})"
            return self._nothing(f"APROM 0x0: {why}: HardFault", console)
        self._spend_console(console)
        app = replace(app, awaits_confirmation=self.on_trial)
        return BootReport(app, M487Slots(self, app), console=tuple(console))

    def _nothing(self, why: str, console: list[str]) -> BootReport:
        self._spend_console(console)
        return BootReport(None, None, (why,), console=tuple(console))

    def _whole_app(self) -> RunningApp | None:
        content = self.chips.aprom.read(APP_ADDR, DESCRIPTOR_LIMIT)
        note = self._noted(content)
        if note is None:
            return None
        image = content[: note.size]
        return app_in(APP_SLOT, image, version=find_markers(image).get("version") or note.version)

    def _noted(self, content: bytes) -> ImageNote | None:
        """Return the newest note whose image is at the start of `content`."""
        for note in reversed(self.notes.all()):
            if note.size <= len(content) and hashlib.sha256(content[: note.size]).hexdigest() == note.sha256:
                return note
        return None

    def _spend_console(self, console: Iterable[str]) -> None:
        characters = sum(len(line) + 2 for line in console)
        self.pace.owe(characters * BITS_PER_CHARACTER / BAUD)

    def _spend_inside(self, operation: FlashOperation) -> None:
        erase = operation.kind is FlashOperationKind.ERASE
        self.pace.owe(PAGE_ERASE_S if erase else operation.length / 8 * UNIT_PROGRAM_S)

    def _spend_outside(self, operation: FlashOperation) -> None:
        erase = operation.kind is FlashOperationKind.ERASE
        self.pace.owe(SECTOR_ERASE_S if erase else program_time_s(operation.length))


def program_pages(flash: NorFlash, address: int, data: bytes) -> None:
    """Program `data`, filled up with FF to a whole write unit, page by page."""
    filled = data + b"\xff" * (-len(data) % flash.write_alignment)
    for start in range(0, len(filled), PAGE_SIZE):
        flash.program(address + start, filled[start : start + PAGE_SIZE])


def open_chips(directory: Path, *, spi_size: int = SPI_SIZE) -> M487Chips:
    """Return the chips kept in `directory`, made blank if they are new. `spi_size` in bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    power = Power()

    def chip(name: str, size: int, alignment: int = WORD_SIZE) -> NorFlash:
        path = directory / f"{name}.bin"
        return NorFlash.open(path, size, sector_size=PAGE_SIZE, write_alignment=alignment, power=power, name=name)

    spi = SpiNor(chip("spi", spi_size, 1))
    return M487Chips(chip("aprom", APROM_SIZE), chip("ldrom", LDROM_SIZE), chip("config", CONFIG_SIZE), spi)


assert BACKUP_ADDR == STAGING_SIZE
