"""Run the Nuvoton samples in the Unicorn emulator, from the two words that a loader knows of them.

Usage: python emulate.py [DIRECTORY]. Needs `pip install unicorn pyelftools`. The emulator knows the Arm core; of the
chips' peripherals this script gives it UART0, the clock and pin registers, and the reset register.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from elftools.elf.elffile import ELFFile
from unicorn import (
    UC_ARCH_ARM,
    UC_ERR_INSN_INVALID,
    UC_MODE_MCLASS,
    UC_MODE_THUMB,
    UC_PROT_ALL,
    UC_PROT_EXEC,
    UC_PROT_READ,
    Uc,
    UcError,
)
from unicorn.arm_const import UC_ARM_REG_SP

PAGE = 0x1000
FLASH = {"m487": (0x0000_0000, 0x80000), "m2354": (0x1000_0000, 0x100000)}
IMAGE = {"m487": 0x0000_0000, "m2354": 0x1007_0400}
RAM = {"m487": (0x2000_0000, 0x28000), "m2354": (0x3001_8000, 0x28000)}
UART = {"m487": 0x4007_0000, "m2354": 0x5007_0000}
SYSTEM, SCB = 0x4000_0000, 0xE000_E000
DAT, LINE, BAUD, AIRCR = 0x00, 0x0C, 0x24, 0xD0C
SETTINGS = {LINE: 3, BAUD: 0x3000_0066}
RESET_REQUEST = 0x05FA_0004
HARD_FAULT = 3
LINES_MAX, INSTRUCTIONS_MAX = 6, 80_000_000

HEALTHY = ["Accepted and committed final image.", "round 1 crc", "round 2 crc"]
EXPECTED = {
    f"{board}-{version}": [f"flota-sample-{board} {version}", *lines]
    for board in ("m487", "m2354")
    for version, lines in (
        ("1.0.0", HEALTHY),
        ("1.0.1", HEALTHY),
        ("1.0.2", ["", "panic: exception "]),
        ("1.0.3", ["round 1 crc", "round 2 crc"]),
    )
}
"""File -> how its lines begin."""
RESETS = {"m487-1.0.2", "m2354-1.0.2"}


class Board:
    """One board with a program in its flash, and what came out of UART0."""

    def __init__(self, elf: Path) -> None:
        self.uart = bytearray()
        self.was_reset = False
        self.settings: dict[int, int] = {}
        self._name = elf.stem.split("-")[0]
        self._core = Uc(UC_ARCH_ARM, UC_MODE_THUMB | UC_MODE_MCLASS)
        flash, size = FLASH[self._name]
        self._core.mem_map(flash, size, UC_PROT_READ | UC_PROT_EXEC)
        self._core.mem_write(flash, b"\xff" * size)
        start, size = RAM[self._name]
        self._core.mem_map(start, size, UC_PROT_ALL)
        self._core.mem_write(start, b"\xa5" * size)  # RAM is garbage after power-on
        self._core.mmio_map(UART[self._name], PAGE, lambda *_: 0, None, self._write_uart, None)
        self._core.mmio_map(SYSTEM, PAGE, lambda *_: 0, None, lambda *_: None, None)
        self._core.mmio_map(SCB, PAGE, lambda *_: 0, None, self._write_scb, None)
        with elf.open("rb") as file:
            for segment in ELFFile(file).iter_segments("PT_LOAD"):
                self._core.mem_write(segment["p_paddr"], segment.data())

    def run(self) -> list[str]:
        """Start as the core does after a reset: stack, then entry, from the first two words; returns the lines."""
        stack, entry = struct.unpack("<II", self._core.mem_read(IMAGE[self._name], 8))
        self._core.reg_write(UC_ARM_REG_SP, stack)
        try:
            self._core.emu_start(entry, 0, count=INSTRUCTIONS_MAX)
        except UcError as error:
            if error.errno != UC_ERR_INSN_INVALID:
                raise
            # Unicorn leaves exceptions to the host: go on where the vectors say
            (handler,) = struct.unpack("<I", self._core.mem_read(IMAGE[self._name] + 4 * HARD_FAULT, 4))
            self._core.emu_start(handler, 0, count=INSTRUCTIONS_MAX)
        return self.uart.decode("ascii").replace("\r", "").split("\n")[1:-1]

    def _write_uart(self, core: Uc, offset: int, _size: int, value: int, _data: object) -> None:
        if offset in SETTINGS:
            self.settings[offset] = value
        if offset == DAT:
            self.uart.append(value & 0xFF)
            if self.uart.count(b"\n") > LINES_MAX:
                core.emu_stop()

    def _write_scb(self, core: Uc, offset: int, _size: int, value: int, _data: object) -> None:
        if offset == AIRCR and value == RESET_REQUEST:
            self.was_reset = True
            core.emu_stop()


def check(elf: Path) -> str | None:
    """Return what is wrong with this program, or None."""
    board = Board(elf)
    lines = board.run()
    for line, start in zip(lines, EXPECTED[elf.stem], strict=False):
        if not line.startswith(start) or (not start and line):
            return f"expected {start!r}, found {line!r} in {lines[:6]}"
    if len(lines) < len(EXPECTED[elf.stem]):
        return f"said too little: {lines}"
    if board.was_reset != (elf.stem in RESETS):
        return "was reset" if board.was_reset else "was not reset"
    if board.settings != SETTINGS:
        return f"UART not at 115200 8N1: {board.settings}"
    return None


def main() -> int:
    """Check every program; exit status 1 if one does not behave."""
    built = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "built"
    failed = 0
    for name in EXPECTED:
        problem = check(built / f"{name}.elf")
        print(f"{name}: {problem or 'behaves'}")
        failed += problem is not None
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
