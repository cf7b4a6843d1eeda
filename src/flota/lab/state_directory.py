"""A virtual device's directory: who it is, its flash, its store, and whether a process runs it now.

device.json   board, name, MAC, build            flash.bin    NOR flash (all boards but generic-linux)
nvs.json      the agent's non-volatile store     slot_*.bin   slots (generic-linux), with boot.json
fuses.json    one-time fuses                     lock         held by the process that runs the device
aprom.bin, ldrom.bin, config.bin, spi.bin (m487)   sd.bin       SD card (m2354)
uart          link to its line (primary MCUs)      conditions.json  the world around it (primary MCUs)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Final, Self

from flota.boards.catalogue import board as board_named
from flota.boards.model import (
    BOOT_AB_RECORD,
    BOOT_DUAL_BANK,
    BOOT_MCUBOOT_OVERWRITE,
    BOOT_NCP_ASSISTED,
    BOOT_NUVOTON_CLONER,
    Board,
)
from flota.durable_files import write_durably
from flota.errors import Conflict, InvalidInput, NotFound
from flota.virtual.ab_board import AbHardware
from flota.virtual.ameba_board import AmebaHardware
from flota.virtual.ameba_board import open_flash as open_ameba_flash
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.dual_bank_board import DualBankHardware
from flota.virtual.esp_board import EspHardware, open_flash
from flota.virtual.m2354_board import M2354Hardware
from flota.virtual.m2354_board import open_chips as open_m2354_chips
from flota.virtual.nuvoton_board import M487Hardware
from flota.virtual.nuvoton_board import open_chips as open_m487_chips
from flota.virtual.nuvoton_programs import BootProfile
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.one_bank_board import OneBankHardware
from flota.virtual.pace import Pace
from flota.virtual.slotted_flash import open_flash as open_slotted_flash
from flota.virtual.two_files import TwoFileMachine

DEVICE_FILE: Final = "device.json"
NVS_FILE: Final = "nvs.json"
FUSES_FILE: Final = "fuses.json"
LOCK_FILE: Final = "lock"
TWO_FILES_BOOT: Final = "two-files"
AMEBA_BOOT: Final = "ameba-signature"

Machine = (
    EspHardware
    | TwoFileMachine
    | AmebaHardware
    | AbHardware
    | M487Hardware
    | M2354Hardware
    | DualBankHardware
    | OneBankHardware
)


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """What does not change in a device's life. `build` is how boot loader and app are built (ESP boards).

    `flash_size` in bytes, where its flash is not of the board's usual size (ESP boards).
    """

    board: str
    name: str
    mac: str
    build: str = BootBuild.ROLLBACK.value
    flash_size: int | None = None


def mac_of(name: str) -> str:
    """Return a locally administered MAC that is the same for the same name."""
    digest = hashlib.sha256(f"flota virtual device {name}".encode()).digest()
    return ":".join(f"{byte:02X}" for byte in (0x02, *digest[:5]))


def usual_build(board: Board) -> BootBuild:
    """Return how a board's boot loader and app are built unless told otherwise."""
    return BootBuild.ROLLBACK if board.rolls_back else BootBuild.PLAIN


class StateDirectory:
    """The directory at `path`; made on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @property
    def record(self) -> DeviceRecord | None:
        """Who the device is; None before `introduce`. Raises `InvalidInput` if the file is none of ours."""
        path = self.path / DEVICE_FILE
        if not path.exists():
            return None
        try:
            return DeviceRecord(**json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"{path} does not describe a virtual device", found=str(error)) from error

    def introduce(
        self,
        board: str,
        *,
        name: str | None = None,
        mac: str | None = None,
        build: BootBuild | None = None,
        flash_size: int | None = None,
    ) -> DeviceRecord:
        """Return the device's record, written first if new. Raises `Conflict` if the directory is another board's.

        `flash_size` (bytes; None = the board's) counts for a new device only: nobody changes the flash of one.
        """
        declared = board_named(board)
        old = self.record
        if old is not None and old.board != declared.name:
            raise Conflict(f"{self.path} holds another board", expected=declared.name, found=old.board)
        given = name or (old.name if old is not None else self.path.resolve().name)
        record = DeviceRecord(
            board=declared.name,
            name=given,
            mac=(mac or (old.mac if old is not None and old.name == given else mac_of(given))).upper(),
            build=(build or (BootBuild(old.build) if old is not None else usual_build(declared))).value,
            flash_size=flash_size if old is None else old.flash_size,
        )
        if record != old:
            self.path.mkdir(parents=True, exist_ok=True)
            write_durably(self.path / DEVICE_FILE, json.dumps(asdict(record), indent=2).encode())
        return record

    def require_record(self) -> DeviceRecord:
        """Return the record. Raises `NotFound` if there is no device here."""
        record = self.record
        if record is None:
            raise NotFound(
                f"there is no virtual device in {self.path}", hint="flota lab run or flota lab flash makes one."
            )
        return record

    def nvs(self) -> NonVolatileStore:
        """Return the device's store."""
        return NonVolatileStore(self.path / NVS_FILE)

    def machine(self, record: DeviceRecord, nvs: NonVolatileStore, pace: Pace) -> Machine:
        """Return the device's hardware."""
        board: Board = board_named(record.board)
        if board.boot == TWO_FILES_BOOT:
            return TwoFileMachine(self.path, nvs, pace)
        if board.boot == AMEBA_BOOT:
            return AmebaHardware(board, open_ameba_flash(self.path, board), nvs=nvs, pace=pace)
        if board.boot == BOOT_AB_RECORD:
            return AbHardware(board, open_slotted_flash(self.path, board), nvs=nvs, pace=pace)
        if board.boot == BOOT_DUAL_BANK:
            return DualBankHardware(board, open_slotted_flash(self.path, board), nvs=nvs)
        if board.boot == BOOT_NCP_ASSISTED:
            return OneBankHardware(board, open_slotted_flash(self.path, board), nvs=nvs)
        if board.boot == BOOT_NUVOTON_CLONER:
            profile = BootProfile.ROLLBACK if BootBuild(record.build).rolls_back else BootProfile.STOCK
            return M487Hardware(board, open_m487_chips(self.path), nvs=nvs, pace=pace, usual_profile=profile)
        if board.boot == BOOT_MCUBOOT_OVERWRITE:
            return M2354Hardware(board, open_m2354_chips(self.path), nvs=nvs, pace=pace)
        if record.flash_size is not None:
            board = replace(board, flash_size=record.flash_size)
        return EspHardware(
            board,
            open_flash(self.path, board),
            fuses=NonVolatileStore(self.path / FUSES_FILE),
            nvs=nvs,
            pace=pace,
            build=BootBuild(record.build),
        )

    # --- one process at a time ----------------------------------------------------------------------------------------

    def lock(self) -> Self:
        """Hold the device for this process. Raises `Conflict` if another one runs it."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / LOCK_FILE).open("a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise Conflict(
                f"the device in {self.path} is running", found=f"process {self._pid()}", hint="Stop it first."
            ) from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        self._lock = file
        return self

    def unlock(self) -> None:
        """Let go of the device."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self.lock()

    def __exit__(self, *exception: object) -> None:
        self.unlock()

    def send(self, number: signal.Signals) -> int:
        """Send a signal to the process that runs the device; returns its id. Raises `NotFound` if none does."""
        self.require_record()
        try:
            self.lock()
        except Conflict:
            pid = self._pid()
            if pid is None:
                raise NotFound(f"cannot tell which process runs the device in {self.path}") from None
            os.kill(pid, number)
            return pid
        self.unlock()
        raise NotFound(f"the device in {self.path} is not running", hint="flota lab run starts it.")

    def _pid(self) -> int | None:
        text = (self.path / LOCK_FILE).read_text("ascii").strip()
        return int(text) if text.isdecimal() else None
