"""NOR flash: erase sets a sector to 0xFF, a program only clears bits, and the power may go at any moment.

Rules that a driver could break are not errors that its code may catch: `FlashViolation` derives from `BaseException`.
So does `PowerCut`: nothing that runs on a device survives its own death. A board with several chips gives them one
`Power`: their operations are counted together, and a cut takes all of them.

Source: docs/reference/virtual-devices.md, "Flash"; docs/reference/power-cuts.md. The shape of the cut hook follows
mcu-tools/mcuboot:sim/simflash and littlefs-project/littlefs:bd/lfs_emubd.c.
"""

from __future__ import annotations

import enum
import mmap
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn, Protocol, Self

from flota.virtual.sector_memory import SectorMemory

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
    """What changes what outlives the power: flash, or a store whose changes are whole or not at all."""

    ERASE = "erase"
    PROGRAM = "program"
    COMMIT = "commit"


@dataclass(frozen=True, slots=True)
class FlashOperation:
    """One erase of one sector, one program of `length` bytes at `address`, or one commit of a store.

    `number` counts from 0 since power-on, over all chips of the board. `after` is what stands there afterwards.
    """

    number: int
    kind: FlashOperationKind
    address: int
    length: int
    chip: str = "flash"
    after: bytes = field(default=b"", repr=False, compare=False)


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


def first_bytes(count: int) -> Tear:
    """Return a tear that finishes the first `count` bytes; a negative count leaves out that many at the end."""

    def tear(before: bytes, after: bytes) -> bytes:
        return after[:count] + before[len(after[:count]) :]

    return tear


def random_last_unit(rng: random.Random, unit: int) -> Tear:
    """Return a tear that finishes all but the last `unit` bytes, of which each bit independently is old or new."""
    mix = random_bits(rng)

    def tear(before: bytes, after: bytes) -> bytes:
        return after[:-unit] + mix(before[-unit:], after[-unit:])

    return tear


@dataclass(frozen=True, slots=True)
class WeakErase:
    """A tear of an erase that ended too early: the sector reads as erased here and as before there, anew each time."""

    number: int

    def __call__(self, before: bytes, after: bytes) -> bytes:
        """Return what an erase leaves; the flash adds that it cannot be relied on."""
        return after


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


class Power:
    """The power supply of a board: counts operations from 0 at power-on and asks `plan` before each.

    After a cut every access raises `PowerCut` until `power_on`.
    """

    __slots__ = ("number", "on", "plan")

    def __init__(self, plan: PowerPlan | None = None) -> None:
        self.plan = plan
        self.on = True
        self.number = 0

    def check(self) -> None:
        """Raise `PowerCut` if there is no power."""
        if not self.on:
            raise PowerCut("the device has no power")

    def announce(
        self, kind: FlashOperationKind, chip: str, address: int, after: bytes
    ) -> tuple[FlashOperation, Cut | None]:
        """Return the operation with its number, and the cut that the plan has for it."""
        self.check()
        operation = FlashOperation(self.number, kind, address, len(after), chip, after)
        self.number += 1
        return operation, None if self.plan is None else self.plan(operation)

    def fail(self, operation: FlashOperation, cut: Cut) -> NoReturn:
        """Take the power away in the middle of things."""
        self.on = False
        raise PowerCut(f"{cut.phase} {operation.kind} {operation.number} at {operation.address:#x}")


class Memory(Protocol):
    """What holds the bytes of a chip: a `bytearray`, a mapped file, or a `SectorMemory`, which keeps snapshots."""

    def __len__(self) -> int:
        """Return the size in bytes."""

    def __getitem__(self, span: slice, /) -> bytes | bytearray:
        """Return the bytes of a span."""

    def __setitem__(self, span: slice, data: bytes, /) -> None:
        """Replace the bytes of a span by as many others."""


@dataclass(slots=True)
class FlashCounters:
    """Operations and bytes since the object was made."""

    erases: int = 0
    programs: int = 0
    programmed_bytes: int = 0


class NorFlash:
    """NOR flash of `len(memory)` bytes.

    `sector_size` and `write_alignment` in bytes. `power` is the board's (None = a supply of its own); `name` tells the
    board's chips apart. `listener` hears of each finished operation.
    Source: docs/reference/virtual-devices.md, "Flash".
    """

    def __init__(
        self,
        memory: Memory,
        *,
        sector_size: int = 4096,
        write_alignment: int = 4,
        power: Power | None = None,
        name: str = "flash",
    ) -> None:
        if len(memory) % sector_size or sector_size % write_alignment:
            raise ValueError(f"a flash of {len(memory)} bytes has no whole sectors of {sector_size}")
        self._memory = memory
        self.sector_size = sector_size
        self.write_alignment = write_alignment
        self.power = power or Power()
        self.name = name
        self.listener: Callable[[FlashOperation], None] | None = None
        self.counters = FlashCounters()
        self.erase_counts: dict[int, int] = {}
        self._erased = b"\xff" * sector_size

    @classmethod
    def blank(cls, size: int, *, sector_size: int = 4096, write_alignment: int = 4) -> Self:
        """Return an erased flash of `size` bytes in memory."""
        return cls(bytearray(b"\xff") * size, sector_size=sector_size, write_alignment=write_alignment)

    @classmethod
    def open(
        cls,
        path: Path,
        size: int,
        *,
        sector_size: int = 4096,
        write_alignment: int = 4,
        power: Power | None = None,
        name: str = "flash",
    ) -> Self:
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
            memory = mmap.mmap(file.fileno(), size)
            return cls(memory, sector_size=sector_size, write_alignment=write_alignment, power=power, name=name)

    @property
    def size(self) -> int:
        """Bytes of flash."""
        return len(self._memory)

    @property
    def plan(self) -> PowerPlan | None:
        """What is asked at each operation whether the power goes."""
        return self.power.plan

    @plan.setter
    def plan(self, plan: PowerPlan | None) -> None:
        self.power.plan = plan

    @property
    def powered(self) -> bool:
        """False between a power cut and `power_on`."""
        return self.power.on

    def power_on(self) -> None:
        """Give the power back; operations count from 0 again."""
        self.power.on = True
        self.power.number = 0

    def cut_power(self) -> None:
        """Take the power away now; whatever touches the flash next raises `PowerCut`."""
        self.power.on = False

    def close(self) -> None:
        """Let go of the file, if there is one."""
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from `address`."""
        self._check_range(address, length)
        self.power.check()
        return bytes(self._memory[address : address + length])

    def content_key(self, address: int, length: int) -> Hashable | None:
        """Return a key that is equal for equal content of that range, cheap to get; None where there is none.

        Only memory that keeps its sectors apart has one, and only while every bit there can be relied on.
        """
        self._check_range(address, length)
        return self._memory.content_key(address, length) if isinstance(self._memory, SectorMemory) else None

    def erase_sector(self, address: int) -> None:
        """Set the sector that starts at `address` to 0xFF."""
        if address % self.sector_size:
            raise FlashViolation("an erase starts inside a sector", address=address, length=self.sector_size)
        self._check_range(address, self.sector_size)
        self.counters.erases += 1
        self.erase_counts[address] = self.erase_counts.get(address, 0) + 1
        self._change(FlashOperationKind.ERASE, address, self._erased)

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
        self.power.check()
        before = self._memory[address : address + len(data)]
        if before.count(ERASED_BYTE) != len(data):
            new = int.from_bytes(data)
            if int.from_bytes(before) & new != new:
                raise FlashViolation("a program sets bits that are already cleared", address=address, length=len(data))
        self.counters.programs += 1
        self.counters.programmed_bytes += len(data)
        self._change(FlashOperationKind.PROGRAM, address, data)

    def leave(self, operation: FlashOperation, cut: Cut) -> None:
        """Make the flash what this cut of the operation leaves behind."""
        start, end = operation.address, operation.address + operation.length
        if cut.phase is CutPhase.BEFORE:
            return
        if cut.phase is CutPhase.AFTER:
            self._memory[start:end] = operation.after
            return
        before = bytes(self._memory[start:end])
        self._memory[start:end] = cut.tear(before, operation.after)
        if isinstance(cut.tear, WeakErase):
            if not isinstance(self._memory, SectorMemory):
                raise TypeError("only a SectorMemory can hold a sector that is erased halfway")
            self._memory.weaken(start, before, cut.tear.number)

    def _change(self, kind: FlashOperationKind, address: int, after: bytes) -> None:
        operation, cut = self.power.announce(kind, self.name, address, after)
        if cut is not None:
            self.leave(operation, cut)
            self.power.fail(operation, cut)
        self._memory[address : address + len(after)] = after
        if self.listener is not None:
            self.listener(operation)

    def _check_range(self, address: int, length: int) -> None:
        if address < 0 or length < 0 or address + length > len(self._memory):
            raise FlashViolation(f"outside the {len(self._memory)} bytes of flash", address=address, length=length)
