"""Primary MCUs behind an NCP as virtual devices: their line, their build, and the world around them.

`conditions.json` in the device's directory changes the world while it runs: battery_percent, is_busy, room_bytes.
Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import msgspec

from flota.boards.model import BOOT_DUAL_BANK, BOOT_NCP_ASSISTED, Board
from flota.lab.uart_ends import PseudoTerminal, is_serial_port, open_port
from flota.virtual.agents.blynk_firmware import Conditions, McuBuild
from flota.virtual.agents.blynk_mcu import BlynkMcuAgent

CONDITIONS_FILE: Final = "conditions.json"
CONDITIONS_MAX_BYTES: Final = 4096
LINK_FILE: Final = "uart"


@dataclass(frozen=True, slots=True)
class McuOptions:
    """`serial` is the line to the NCP: a port that is there, else a pseudo-terminal is made at that path."""

    serial: Path
    build: McuBuild = field(default_factory=McuBuild)


class _Told(msgspec.Struct, forbid_unknown_fields=True):
    battery_percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 100
    is_busy: bool = False
    room_bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None


def is_primary_mcu(board: Board) -> bool:
    """Return whether the board sits behind an NCP."""
    return board.boot in (BOOT_DUAL_BANK, BOOT_NCP_ASSISTED)


def line_of(options: McuOptions, state: Path) -> PseudoTerminal | None:
    """Return the pseudo-terminal made for the device in `state`, None if its line is a port that is there.

    Which link the device has made is noted: after a kill it may lead to whatever got the same number since.
    """
    note = state / LINK_FILE
    made_before = options.serial.is_symlink() and note.exists() and note.read_text("utf-8") == str(options.serial)
    if is_serial_port(options.serial) and not made_before:
        return None
    terminal = PseudoTerminal(options.serial, made_before=made_before)
    note.write_text(str(options.serial), "utf-8")
    return terminal


def mcu_agent(options: McuOptions, terminal: PseudoTerminal | None, state: Path) -> BlynkMcuAgent:
    """Return the firmware of a device whose directory is `state`."""
    opens = partial(open_port, options.serial) if terminal is None else terminal.open
    return BlynkMcuAgent(opens, options.build, look_around=_Watch(state / CONDITIONS_FILE))


class _Watch:
    """Reads the conditions when their file has changed; one that cannot be read changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None

    def __call__(self, conditions: Conditions) -> None:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            status = self._path.stat()
            if self._seen == (status.st_mtime_ns, status.st_size):
                return
            with self._path.open("rb") as file:
                told = msgspec.json.decode(file.read(CONDITIONS_MAX_BYTES), type=_Told)
            self._seen = (status.st_mtime_ns, status.st_size)
            conditions.battery_percent = told.battery_percent
            conditions.is_busy, conditions.room_bytes = told.is_busy, told.room_bytes
