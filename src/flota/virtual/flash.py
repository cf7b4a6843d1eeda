"""NOR flash: erase sets a sector to 0xFF, a program only clears bits, and the power may go at any moment.

Rules that a driver could break are not errors that its code may catch: `FlashViolation` derives from `BaseException`.
So does `PowerCut`: nothing that runs on a device survives its own death.

Source: docs/reference/virtual-devices.md, "Flash"; the shape of the cut hook follows mcu-tools/mcuboot:sim/simflash and
littlefs-project/littlefs:bd/lfs_emubd.c.
"""

from __future__ import annotations

import enum
import mmap
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

ERASED_BYTE: Final = 0xFF


class FlashViolation(BaseException):
    """The code on the device broke a rule of its flash: a bug of agent or boot loader, not a run-time condition."""

    def __init__(self, rule: str, *, address: int, length: int) -> None:
        super().__init__(f"{rule}, at address {address:#x}, {length} bytes")
        self.rule = rule
        self.address = address
        self.length = length


class PowerCut(BaseException):
    """The power went. Only the device shell (a new boot) or a test may catch it."""


class FlashOperationKind(enum.StrEnum):
    """What changes flash."""

    ERASE = "erase"
    PROGRAM = "program"


@dataclass(frozen=True, slots=True)
class FlashOperation:
    """One erase of one sector, or one program of `length` bytes at `address`; `number` counts from 0 since power-on."""

    number: int
    kind: FlashOperationKind
    address: int
    length: int


class CutPhase(enum.StrEnum):
    """When, relative to a flash operation, the power goes (a cut moment)."""

    BEFORE = "before"
    INSIDE = "inside"
    AFTER = "after"


Tear = Callable[[bytes, bytes], bytes]
"""(bytes before, bytes after) -> what an interrupted operation leaves; all three of the same length."""


def first_half(before: bytes, after: bytes) -> bytes:
    """Return `after` in the first half, `before` in the rest."""
    middle = len(before) // 2
    return after[:middle] + before[middle:]


def second_half(before: bytes, after: bytes) -> bytes:
    """Return `after` in the second half only."""
    middle = len(before) // 2
    return before[:middle] + after[middle:]


def first_byte(before: bytes, after: bytes) -> bytes:
    """Return `before` but for the first byte."""
    return after[:1] + before[1:]


def all_but_last_word(before: bytes, after: bytes) -> bytes:
    """Return `after` but for the last four bytes, which stay (a trailer that survives)."""
    return after[:-4] + before[-4:]


def only_last_word(before: bytes, after: bytes) -> bytes:
    """Return `before` but for the last four bytes."""
    return before[:-4] + after[-4:]


def words(mask: int) -> Tear:
    """Return a tear that finishes the 32-bit words whose bits are set in `mask` (bit 0 = first word)."""

    def tear(before: bytes, after: bytes) -> bytes:
        torn = bytearray(before)
        for number in range((len(before) + 3) // 4):
            if mask >> number & 1:
                torn[4 * number : 4 * number + 4] = after[4 * number : 4 * number + 4]
        return bytes(torn)

    return tear


def random_bits(rng: random.Random) -> Tear:
    """Return a tear in which each bit independently is old or new."""

    def tear(before: bytes, after: bytes) -> bytes:
        mask = rng.getrandbits(8 * len(before))
        old, new = int.from_bytes(before), int.from_bytes(after)
        return (old & ~mask | new & mask).to_bytes(len(before))

    return tear


TEARS: Final[dict[str, Tear]] = {
    "first-half": first_half,
    "second-half": second_half,
    "first-byte": first_byte,
    "all-but-last-word": all_but_last_word,
    "only-last-word": only_last_word,
}
"""The tears that a power-cut sweep uses by default; they have a meaning for erases and programs alike."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The power goes at this phase of the operation; `tear` says what an interrupted one leaves."""

    phase: CutPhase
    tear: Tear = first_half


PowerPlan = Callable[[FlashOperation], Cut | None]
"""Asked before each flash operation: a `Cut`, or None to go on."""


@dataclass(slots=True)
class FlashCounters:
    """Operations and bytes since the object was made."""

    erases: int = 0
    programs: int = 0
    programmed_bytes: int = 0


class NorFlash:
    """NOR flash of `len(memory)` bytes.

    `sector_size` and `write_alignment` in bytes. `plan` is asked at each operation whether the power goes;
    after a cut every access raises `PowerCut` until `power_on`. `listener` hears of each finished operation.
    Source: docs/reference/virtual-devices.md, "Flash".
    """

    def __init__(
        self,
        memory: bytearray | mmap.mmap,
        *,
        sector_size: int = 4096,
        write_alignment: int = 4,
        plan: PowerPlan | None = None,
    ) -> None:
        if len(memory) % sector_size or sector_size % write_alignment:
            raise ValueError(f"a flash of {len(memory)} bytes has no whole sectors of {sector_size}")
        self._memory = memory
        self.sector_size = sector_size
        self.write_alignment = write_alignment
        self.plan = plan
        self.listener: Callable[[FlashOperation], None] | None = None
        self.counters = FlashCounters()
        self.erase_counts: dict[int, int] = {}
        self._number = 0
        self._powered = True

    @classmethod
    def blank(cls, size: int, *, sector_size: int = 4096, write_alignment: int = 4) -> Self:
        """Return an erased flash of `size` bytes in memory."""
        return cls(bytearray(b"\xff") * size, sector_size=sector_size, write_alignment=write_alignment)

    @classmethod
    def open(cls, path: Path, size: int, *, sector_size: int = 4096, write_alignment: int = 4) -> Self:
        """Return the flash kept in the file at `path`, made blank first if it is not there.

        The file is mapped: what an operation has done is in the file at once; a killed process has lost nothing of it.
        Raises `ValueError` if the file has another size.
        """
        if not path.exists():
            partial = path.with_suffix(".new")
            with partial.open("wb") as file:
                for _ in range(size // sector_size):
                    file.write(b"\xff" * sector_size)
            partial.replace(path)
        with path.open("r+b") as file:
            found = path.stat().st_size
            if found != size:
                raise ValueError(f"{path} holds {found} bytes of flash, expected {size}")
            return cls(mmap.mmap(file.fileno(), size), sector_size=sector_size, write_alignment=write_alignment)

    @property
    def size(self) -> int:
        """Bytes of flash."""
        return len(self._memory)

    @property
    def powered(self) -> bool:
        """False between a power cut and `power_on`."""
        return self._powered

    def power_on(self) -> None:
        """Give the power back; operations count from 0 again."""
        self._powered = True
        self._number = 0

    def cut_power(self) -> None:
        """Take the power away now; whatever touches the flash next raises `PowerCut`."""
        self._powered = False

    def close(self) -> None:
        """Let go of the file, if there is one."""
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from `address`."""
        self._check_range(address, length)
        self._check_power()
        return bytes(self._memory[address : address + length])

    def erase_sector(self, address: int) -> None:
        """Set the sector that starts at `address` to 0xFF."""
        if address % self.sector_size:
            raise FlashViolation("an erase starts inside a sector", address=address, length=self.sector_size)
        self._check_range(address, self.sector_size)
        self.counters.erases += 1
        self.erase_counts[address] = self.erase_counts.get(address, 0) + 1
        self._change(FlashOperationKind.ERASE, address, b"\xff" * self.sector_size)

    def erase(self, address: int, length: int) -> None:
        """Erase sector after sector; `address` and `length` (bytes) are multiples of the sector size."""
        if length % self.sector_size:
            raise FlashViolation("an erase ends inside a sector", address=address, length=length)
        for sector in range(address, address + length, self.sector_size):
            self.erase_sector(sector)

    def program(self, address: int, data: bytes) -> None:
        """Clear bits: write `data`, a whole number of write units, at an aligned `address` within one sector.

        A bit that is 0 and ought to become 1 is a violation, not a silent AND.
        """
        if address % self.write_alignment or len(data) % self.write_alignment:
            raise FlashViolation("a program is not aligned", address=address, length=len(data))
        self._check_range(address, len(data))
        self._check_power()
        before = self._memory[address : address + len(data)]
        if before.count(ERASED_BYTE) != len(data):
            new = int.from_bytes(data)
            if int.from_bytes(before) & new != new:
                raise FlashViolation("a program sets bits that are already cleared", address=address, length=len(data))
        self.counters.programs += 1
        self.counters.programmed_bytes += len(data)
        self._change(FlashOperationKind.PROGRAM, address, data)

    def _change(self, kind: FlashOperationKind, address: int, after: bytes) -> None:
        self._check_power()
        operation = FlashOperation(self._number, kind, address, len(after))
        self._number += 1
        cut = self.plan(operation) if self.plan is not None else None
        if cut is not None and cut.phase is not CutPhase.AFTER:
            if cut.phase is CutPhase.INSIDE:
                before = bytes(self._memory[address : address + len(after)])
                self._memory[address : address + len(after)] = cut.tear(before, after)
            self._die(operation, cut)
        self._memory[address : address + len(after)] = after
        if cut is not None:
            self._die(operation, cut)
        if self.listener is not None:
            self.listener(operation)

    def _die(self, operation: FlashOperation, cut: Cut) -> None:
        self._powered = False
        raise PowerCut(f"{cut.phase} {operation.kind} {operation.number} at {operation.address:#x}")

    def _check_power(self) -> None:
        if not self._powered:
            raise PowerCut("the device has no power")

    def _check_range(self, address: int, length: int) -> None:
        if address < 0 or length < 0 or address + length > len(self._memory):
            raise FlashViolation(f"outside the {len(self._memory)} bytes of flash", address=address, length=length)
