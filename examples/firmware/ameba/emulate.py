"""Run the AmebaD sample in the Unicorn emulator, from the entry that a boot loader finds in its start block.

Usage: python emulate.py [DIRECTORY]. Needs `pip install unicorn pyelftools`. The emulator knows the Arm core; of the
RTL872xD's peripherals this script gives it the log UART and the reset register.
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

MIB = 1 << 20
XIP = {"km0": 0x0C000000, "km4": 0x0E000000}
RAM = {"km0": 0x00083000, "km4": 0x10005000}
RAM_MAPPED = {"km0": (0x00080000, 0x10000), "km4": (0x10000000, 0x80000)}
UART, SCB, PAGE = 0x48012000, 0xE000E000, 0x1000
LSR, THR, VTOR, AIRCR = 0x14, 0x24, 0xD08, 0xD0C
RESET_REQUEST = 0x05FA0004
HARD_FAULT = 3
LINES_MAX, INSTRUCTIONS_MAX = 6, 80_000_000

EXPECTED = {
    "ameba-km0": ["KM0 crc "],
    "ameba-km4-1.0.0": ["flota-sample-ameba 1.0.0", "self-test passed", "round 1 crc", "round 2 crc"],
    "ameba-km4-2.0.0": ["flota-sample-ameba 2.0.0", "self-test passed", "round 1 crc", "round 2 crc"],
    "ameba-km4-3.0.0": ["flota-sample-ameba 3.0.0", "", "panic: exception "],
}
"""File -> how its lines begin."""
RESETS = {"ameba-km4-3.0.0"}


class Core:
    """One core with a program in flash window and RAM, and what came out of the log UART."""

    def __init__(self, elf: Path) -> None:
        self.uart = bytearray()
        self.was_reset = False
        self._vectors = 0
        self._name = elf.stem.split("-")[1]
        self._core = Uc(UC_ARCH_ARM, UC_MODE_THUMB | UC_MODE_MCLASS)
        self._core.mem_map(XIP[self._name], MIB, UC_PROT_READ | UC_PROT_EXEC)
        start, size = RAM_MAPPED[self._name]
        self._core.mem_map(start, size, UC_PROT_ALL)
        self._core.mem_write(start, b"\xa5" * size)  # RAM is garbage after power-on
        self._core.mmio_map(UART, PAGE, self._read_uart, None, self._write_uart, None)
        self._core.mmio_map(SCB, PAGE, lambda *_: 0, None, self._write_scb, None)
        with elf.open("rb") as file:
            for segment in ELFFile(file).iter_segments("PT_LOAD"):
                self._core.mem_write(segment["p_paddr"], segment.data())

    def run(self) -> list[str]:
        """Start at the start block's entry, as a boot loader does; returns the lines."""
        entry, _, _, text = struct.unpack("<III7s", self._core.mem_read(RAM[self._name], 19))
        if text != b"RTKWin\0" or not entry & 1:
            return [f"no start block: {text!r}, entry {entry:#x}"]
        try:
            self._core.emu_start(entry, 0, count=INSTRUCTIONS_MAX)
        except UcError as error:
            if error.errno != UC_ERR_INSN_INVALID:
                raise
            self._core.emu_start(self._fault_handler(), 0, count=INSTRUCTIONS_MAX)
        return self.uart.decode("ascii").replace("\r", "").split("\n")[1:-1]

    def _read_uart(self, _core: Uc, offset: int, _size: int, _data: object) -> int:
        return 1 << 5 if offset == LSR else 0

    def _write_uart(self, core: Uc, offset: int, _size: int, value: int, _data: object) -> None:
        if offset == THR:
            self.uart.append(value & 0xFF)
            if self.uart.count(b"\n") > LINES_MAX:
                core.emu_stop()

    def _write_scb(self, core: Uc, offset: int, _size: int, value: int, _data: object) -> None:
        if offset == VTOR:
            self._vectors = value
        elif offset == AIRCR and value == RESET_REQUEST:
            self.was_reset = True
            core.emu_stop()

    def _fault_handler(self) -> int:
        """Return where the core goes on after an instruction that it does not know: Unicorn leaves that to the host."""
        (handler,) = struct.unpack("<I", self._core.mem_read(self._vectors + 4 * HARD_FAULT, 4))
        return handler


def check(elf: Path) -> str | None:
    """Return what is wrong with this program, or None."""
    core = Core(elf)
    lines = core.run()
    for line, start in zip(lines, EXPECTED[elf.stem], strict=False):
        if not line.startswith(start) or (not start and line):
            return f"expected {start!r}, found {line!r} in {lines[:6]}"
    if len(lines) < len(EXPECTED[elf.stem]):
        return f"said too little: {lines}"
    if core.was_reset != (elf.stem in RESETS):
        return "was reset" if core.was_reset else "was not reset"
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
