"""Run the sample firmware in the Unicorn emulator and compare what it says with what it should.

Usage: python emulate.py [DIRECTORY]. Needs `pip install unicorn pyelftools`. The emulator knows the RISC-V core; of the
ESP32-C3's peripherals this script gives it the few that the sample touches: UART, system timer, watchdog and reset
registers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from elftools.elf.elffile import ELFFile
from unicorn import UC_ARCH_RISCV, UC_HOOK_INTR, UC_MODE_RISCV32, UC_PROT_ALL, UC_PROT_EXEC, UC_PROT_READ, Uc
from unicorn.riscv_const import UC_RISCV_REG_MCAUSE, UC_RISCV_REG_MEPC, UC_RISCV_REG_MTVEC, UC_RISCV_REG_PC

FLASH_DATA, FLASH_CODE, SRAM_CODE, SRAM_DATA = 0x3C010000, 0x42000000, 0x40380000, 0x3FC84000
MEMORY = ((FLASH_DATA, 0x10000, UC_PROT_READ), (FLASH_CODE, 0x10000, UC_PROT_READ | UC_PROT_EXEC),
          (SRAM_CODE, 0x4000, UC_PROT_ALL), (SRAM_DATA, 0x10000, UC_PROT_ALL))  # fmt: skip
PERIPHERALS, PERIPHERALS_SIZE = 0x60000000, 0x24000
UART_FIFO, RTC_OPTIONS0, BOOT_WATCHDOG = 0x0, 0x8000, 0x8090
TIMER_OP, TIMER_HIGH, TIMER_LOW = 0x23004, 0x23040, 0x23044
TIMER_VALID, RESET_BIT = 1 << 29, 1 << 31
TICKS_A_READ = 16 * 10_000  # 10 ms pass at each look at the clock
LINES_MAX, INSTRUCTIONS_MAX = 40, 20_000_000

GREETING = "flota-sample {}"
EXPECTED = {
    "1.0.0": ["confirmed", "round 1 crc"],
    "2.0.0": ["confirmed", "round 1 crc"],
    "3.0.0": ["", "panic: cause 00000002 at 4200"],
    "4.0.0": ["round 1 crc", "round 2 crc"],
    "5.0.0": ["self-test: no network", "round 1 crc"],
}
"""Version -> how the lines after the greeting begin."""
RESETS = {"3.0.0": True, "5.0.0": True}
"""Which of them end in a reset, so that the boot loader goes back to the other slot."""


class Board:
    """An ESP32-C3 with a program in its memory, and what came out of its UART."""

    def __init__(self, elf: Path) -> None:
        self.uart = bytearray()
        self.was_reset = False
        self.watchdog_stopped_after = -1
        self._ticks = 0
        self._core = Uc(UC_ARCH_RISCV, UC_MODE_RISCV32)
        for start, size, rights in MEMORY:
            self._core.mem_map(start, size, rights)
        self._core.mem_write(SRAM_DATA, b"\xa5" * 0x10000)  # RAM is garbage after power-on
        self._core.mmio_map(PERIPHERALS, PERIPHERALS_SIZE, self._read, None, self._write, None)
        self._core.hook_add(UC_HOOK_INTR, self._trap)
        with elf.open("rb") as file:
            program = ELFFile(file)
            self._entry = program["e_entry"]
            for segment in program.iter_segments("PT_LOAD"):
                self._core.mem_write(segment["p_vaddr"], segment.data())

    def run(self) -> list[str]:
        """Run until a reset, or until there is enough output; returns the lines."""
        self._core.emu_start(self._entry, 0, count=INSTRUCTIONS_MAX)
        return self.uart.decode("ascii").replace("\r", "").split("\n")[1:-1]

    def _read(self, _core: Uc, offset: int, _size: int, _data: object) -> int:
        if offset == TIMER_OP:
            self._ticks += TICKS_A_READ
            return TIMER_VALID
        if offset == TIMER_LOW:
            return self._ticks & 0xFFFFFFFF
        return self._ticks >> 32 if offset == TIMER_HIGH else 0

    def _write(self, core: Uc, offset: int, _size: int, value: int, _data: object) -> None:
        if offset == UART_FIFO:
            self.uart.append(value & 0xFF)
            if self.uart.count(b"\n") > LINES_MAX:
                core.emu_stop()
        elif offset == BOOT_WATCHDOG and value == 0:
            self.watchdog_stopped_after = self.uart.count(b"\n")
        elif offset == RTC_OPTIONS0 and value & RESET_BIT:
            self.was_reset = True
            core.emu_stop()

    def _trap(self, core: Uc, cause: int, _data: object) -> None:
        """Enter the trap vector as the core would: Unicorn leaves that to the host."""
        core.reg_write(UC_RISCV_REG_MCAUSE, cause)
        core.reg_write(UC_RISCV_REG_MEPC, core.reg_read(UC_RISCV_REG_PC))
        core.reg_write(UC_RISCV_REG_PC, core.reg_read(UC_RISCV_REG_MTVEC) & ~0xFF)


def check(version: str, elf: Path) -> str | None:
    """Return what is wrong with this version, or None."""
    board = Board(elf)
    lines = board.run()
    expected = [GREETING.format(version), *EXPECTED[version]]
    for line, start in zip(lines, expected, strict=False):
        if not line.startswith(start) or (not start and line):
            return f"expected {start!r}, found {line!r} in {lines[:6]}"
    if len(lines) < len(expected):
        return f"said too little: {lines}"
    if board.was_reset != RESETS.get(version, False):
        return "was reset" if board.was_reset else "was not reset"
    if ("confirmed" in lines) != ("confirmed" in expected):
        return "confirmed itself"
    return None


def main() -> int:
    """Check every version; exit status 1 if one does not behave."""
    built = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "built"
    failed = 0
    for version in EXPECTED:
        problem = check(version, built / f"sample-{version}.elf")
        print(f"{version}: {problem or 'behaves'}")
        failed += problem is not None
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
