"""A NuMaker-M2354: internal flash with MCUboot in it, an SD card for staging, what a programmer does to it.

The boot loader is a stand-in that says which keys it was built with. TF-M's secure image is not modelled beyond its
version; its storage (keys, state of an update, counters) is the device's store.
Source: docs/reference/nuvoton.md, "M2354: boot and platform layer".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from flota.boards.model import Board
from flota.errors import FlotaError, InvalidInput
from flota.images.markers import MARKER_MAX_BYTES, find_markers, pack_marker
from flota.images.mcuboot import ImageVersion, SlotShape, check_fits, walk_image
from flota.images.model import ImageError
from flota.images.nuvoton.flash_map import (
    M2354_FLASH_SIZE,
    M2354_SECTOR_SIZE,
    M2354_WRITE_ALIGNMENT,
    MCUBOOT_HEADER_SIZE,
    MIB,
    NON_SECURE_ADDR,
    NON_SECURE_SIZE,
    SD_NON_SECURE_ADDR,
)
from flota.trust.image_keys import ImagePublicKey
from flota.virtual.boot.mcuboot_overwrite import BootChain, McubootBoot, header_of, run_mcuboot, slot_image
from flota.virtual.flash import FlashOperation, FlashOperationKind, NorFlash, Power
from flota.virtual.hardware import BootReport, ImageNotes
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.pace import Pace
from flota.virtual.sd_card import SdCard
from flota.virtual.slots import BadImage, RunningApp, SlotState, SlotWriter
from flota.virtual.slotted_flash import app_in, write_at

APP_SLOT: Final = "app"
STAGING_SLOT: Final = "staging"
SLOT_NAMES: Final = (APP_SLOT, STAGING_SLOT)
SD_SIZE: Final = 4 * MIB
BOOT_LOADER_SIZE: Final = 0xC000
BOOT_LOADER_MARKER: Final = "mcuboot-bl2"
COUNTER_KEY: Final = "nv-counter"
STATE_KEY: Final = "fwu"
"""The record of TF-M's firmware update service in protected storage, see `m2354_pal`."""
CONFIRMED_STATE: Final = 2
SECURE_VERSION: Final = ImageVersion(1, 4, 0)
"""Of TF-M as the vendor's board support carries it."""

_WHY_BLANK: Final = {STAGING_SLOT: "MCUboot erases what it has copied or refused."}

SECTOR_ERASE_S: Final = 0.010
CARD_BYTES_PER_S: Final = 2_000_000.0
FLASH_BYTES_PER_S: Final = 100_000.0
"""Our own figures, of the size that such parts have."""


class FlashSlot:
    """The primary slot, in internal flash."""

    sector_size: Final = M2354_SECTOR_SIZE
    size: Final = NON_SECURE_SIZE

    def __init__(self, flash: NorFlash) -> None:
        self._flash = flash

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the slot."""
        return self._flash.read(NON_SECURE_ADDR + offset, length)

    def erase(self, offset: int, length: int) -> None:
        """Erase whole sectors."""
        self._flash.erase(NON_SECURE_ADDR + offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Program erased flash, sector by sector."""
        for start in range(0, len(data), self.sector_size):
            self._flash.program(NON_SECURE_ADDR + offset + start, data[start : start + self.sector_size])


class CardSlot:
    """The secondary slot, on the SD card; erasing writes FF."""

    sector_size: Final = M2354_SECTOR_SIZE
    size: Final = NON_SECURE_SIZE

    def __init__(self, card: SdCard) -> None:
        self._card = card

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the slot. Raises `SdCardError`."""
        return self._card.read(SD_NON_SECURE_ADDR + offset, length)

    def erase(self, offset: int, length: int) -> None:
        """Write FF. Raises `SdCardError`."""
        self._card.write(SD_NON_SECURE_ADDR + offset, b"\xff" * length)

    def write(self, offset: int, data: bytes) -> None:
        """Write whole blocks. Raises `SdCardError`."""
        self._card.write(SD_NON_SECURE_ADDR + offset, data)


@dataclass(slots=True)
class M2354Chips:
    """All that outlives the power: internal flash and the card, on one supply."""

    flash: NorFlash
    card: SdCard


class M2354Hardware:
    """The board under power. `chips.card.fitted` may change any time, and another card be put in."""

    def __init__(self, board: Board, chips: M2354Chips, *, nvs: NonVolatileStore, pace: Pace) -> None:
        self.board = board
        self.chips = chips
        self.nvs = nvs
        self.pace = pace
        self.primary = FlashSlot(chips.flash)
        self.secondary = CardSlot(chips.card)
        self.notes = ImageNotes(nvs)
        chips.flash.listener = self._spend_flash
        chips.card.listener = self._spend_card

    # --- power and boot -----------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Give power back."""
        self.chips.flash.power_on()

    def power_off(self) -> None:
        """Take the power away."""
        self.chips.flash.cut_power()

    def close(self) -> None:
        """Let go of the files."""
        self.chips.flash.close()
        self.chips.card.close()

    def insert_card(self, card: SdCard) -> None:
        """Put another card in, which has to hang on the same power supply; the one that was in it is let go of."""
        if card.power is not self.chips.flash.power:
            raise ValueError("the card has a power supply of its own")
        if card is not self.chips.card:
            self.chips.card.close()
        self.chips.card = card
        self.secondary = CardSlot(card)
        card.listener = self._spend_card

    def boot(self) -> BootReport:
        """Run MCUboot once; an image that runs raises the security counter to its own."""
        chain = self.chain
        if chain is None:
            return BootReport(None, None, ("0x0 holds no boot loader that is known here",))
        result = run_mcuboot(self.primary, self.secondary, chain)
        refused = () if result.refused is None else (f"staging: {result.refused}",)
        if result.running is None:
            return BootReport(None, None, (*refused, "app: no valid image in the primary slot"), console=result.console)
        counter = result.running.facts.security_counter
        if counter is not None and counter > chain.security_counter:
            self.nvs.set(COUNTER_KEY, counter)
        app = replace(self._app(result), awaits_confirmation=self.on_trial)
        writes = ("copied the staged image over the app",) if result.copied else ()
        return BootReport(app, M2354Slots(self, app), refused, writes, result.console)

    @property
    def on_trial(self) -> bool:
        """Whether the image that runs is the one that was staged last, and has not been accepted yet."""
        record = self.nvs.get_record(STATE_KEY) or {}
        version = record.get("stage_version")
        running = str(header_of(self.primary).version)
        return version == running and record.get("image_state") != CONFIRMED_STATE

    @property
    def chain(self) -> BootChain | None:
        """What the boot loader in flash was built with, None without one."""
        raw = self.chips.flash.read(0, BOOT_LOADER_SIZE)
        if find_markers(raw, 0, MARKER_MAX_BYTES).get("boot-program") != BOOT_LOADER_MARKER:
            return None
        start = raw.index(b"}") + 1
        length = int.from_bytes(raw[start : start + 4], "little")
        try:
            public = tuple(ImagePublicKey.from_pem(pem) for pem in json.loads(raw[start + 4 : start + 4 + length]))
        except (ValueError, FlotaError):
            return None
        counter = self.nvs.get(COUNTER_KEY)
        return BootChain(public, SECURE_VERSION, counter if isinstance(counter, int) else 0)

    # --- what a programmer does ---------------------------------------------------------------------------------------

    @property
    def blank(self) -> bool:
        """Whether the application was never programmed."""
        return self.primary.read(0, M2354_SECTOR_SIZE) == b"\xff" * M2354_SECTOR_SIZE

    def provision(self, keys: Sequence[ImagePublicKey]) -> None:
        """Program the boot loader, built with these keys."""
        self.write_flash(0, boot_loader(keys))

    def write_flash(self, address: int, data: bytes) -> None:
        """Erase the sectors that `data` touches, program it at `address`. Raises `InvalidInput` outside the flash."""
        write_at(self.chips.flash, address, data)

    def erase_chip(self) -> None:
        """Erase the internal flash."""
        self.chips.flash.erase(0, self.chips.flash.size)

    def flash_app(self, data: bytes) -> str:
        """Put a signed image into the primary slot. Raises `ImageError` or `InvalidInput`."""
        walk_image(data)
        check_fits(len(data), SlotShape(NON_SECURE_SIZE, overwrite_only=True))
        self.write_flash(NON_SECURE_ADDR, data)
        return APP_SLOT

    # --- looking ------------------------------------------------------------------------------------------------------

    def slot_names(self) -> tuple[str, ...]:
        """Return the places that can hold an image."""
        return SLOT_NAMES

    def running_slot(self) -> str | None:
        """Return `app` if its slot holds an image."""
        try:
            slot_image(self.primary)
        except FlotaError:
            return None
        return APP_SLOT

    def slot_content(self, slot: str) -> bytes:
        """Return a whole slot. Raises `InvalidInput` with the names there are."""
        if slot not in SLOT_NAMES:
            raise InvalidInput("no such slot", expected=", ".join(SLOT_NAMES), found=repr(slot))
        area = self.primary if slot == APP_SLOT else self.secondary
        return area.read(0, area.size)

    def image_in(self, slot: str) -> bytes:
        """Return exactly the image in a slot. Raises `ImageError` without one."""
        content = self.slot_content(slot)
        if content[:MCUBOOT_HEADER_SIZE].count(0xFF) == MCUBOOT_HEADER_SIZE:
            raise ImageError(f"{slot} holds no image", hint=_WHY_BLANK.get(slot))
        return content[: walk_image(content).image_size]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _app(self, result: McubootBoot) -> RunningApp:
        assert result.running is not None
        image = slot_image(self.primary)
        noted = self.notes.version_of(hashlib.sha256(image).hexdigest())
        return app_in(APP_SLOT, image, version=find_markers(image).get("version") or noted or "unknown")

    def _spend_card(self, operation: FlashOperation) -> None:
        self.pace.owe(operation.length / CARD_BYTES_PER_S)

    def _spend_flash(self, operation: FlashOperation) -> None:
        erase = operation.kind is FlashOperationKind.ERASE
        self.pace.owe(SECTOR_ERASE_S if erase else operation.length / FLASH_BYTES_PER_S)


class M2354Slots:
    """The slots of an M2354; updates go through `PsaFwuPal` only."""

    rolls_back = False

    def __init__(self, hardware: M2354Hardware, app: RunningApp) -> None:
        self.hardware = hardware
        self._app = app

    @property
    def running(self) -> RunningApp:
        """The app that runs."""
        return self._app

    def next_slot(self) -> str:
        """Return where a new image is staged."""
        return STAGING_SLOT

    def capacity(self, slot: str) -> int:
        """Return how large an image may be, the boot loader's mark taken off (bytes)."""
        return NON_SECURE_SIZE - SlotShape(NON_SECURE_SIZE, overwrite_only=True).trailer_size

    async def begin(self, slot: str, size: int) -> SlotWriter:
        """Raise: an M2354 is updated by its PAL."""
        raise BadImage("an M2354 is written by its OTA platform layer only", found=slot)

    async def resume(self, slot: str, size: int, written: int) -> SlotWriter:
        """Raise: nothing is resumed after a reset."""
        raise BadImage("an M2354's download is not resumed", found=slot)

    def read(self, slot: str, length: int) -> bytes:
        """Return the first `length` bytes of a slot."""
        return self.hardware.slot_content(slot)[:length]

    def chosen(self) -> str | None:
        """Return the only slot that anything runs from."""
        return APP_SLOT

    def set_boot(self, slot: str) -> None:
        """Raise: the boot loader's mark decides."""
        raise BadImage("an M2354 has no boot record but MCUboot's mark", found=slot)

    def confirm(self) -> None:
        """Nothing: the agent commits through its PAL."""

    def reject(self) -> None:
        """Raise: there is no way back."""
        raise BadImage("an M2354 cannot roll back", found=APP_SLOT)

    def state_of(self, slot: str) -> SlotState | None:
        """Return nothing: `PsaFwuPal.image_state` says what is known."""
        return None


def boot_loader(keys: Sequence[ImagePublicKey]) -> bytes:
    """Return the stand-in for MCUboot built with these keys. Raises `InvalidInput` if they are too many."""
    body = json.dumps([key.pem for key in keys]).encode()
    file = pack_marker({"boot-program": BOOT_LOADER_MARKER}) + len(body).to_bytes(4, "little") + body
    if len(file) > BOOT_LOADER_SIZE:
        raise InvalidInput("too many keys for the boot loader", expected=f"{BOOT_LOADER_SIZE} bytes", found=len(file))
    return file


def open_chips(directory: Path) -> M2354Chips:
    """Return flash and card kept in `directory`, made new if they are not there."""
    directory.mkdir(parents=True, exist_ok=True)
    power = Power()
    flash = NorFlash.open(
        directory / "flash.bin",
        M2354_FLASH_SIZE,
        sector_size=M2354_SECTOR_SIZE,
        write_alignment=M2354_WRITE_ALIGNMENT,
        power=power,
    )
    return M2354Chips(flash, SdCard.open(directory / "sd.bin", SD_SIZE, power=power))
