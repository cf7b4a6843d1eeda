"""Memory in sectors that are shared until they change: a snapshot costs a copy of references, not of bytes.

A snapshot is a value: it stays what it was whatever happens to the memory later, and loading it is as cheap as taking
it. `fingerprint` tells states apart without keeping them.

Source: docs/reference/power-cuts.md, "Snapshots"; the idea is that of littlefs-project/littlefs:bd/lfs_emubd.c, which
forks a whole device at each operation.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Final

FINGERPRINT_BITS: Final = 128
_MASK: Final = (1 << FINGERPRINT_BITS) - 1


@dataclass(frozen=True, slots=True)
class WeakSector:
    """A sector whose erase ended too early: where `old` and the sector differ, each read gives one or the other."""

    old: bytes
    number: int


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """What a `SectorMemory` held at one moment."""

    sectors: tuple[bytes, ...]
    weak: tuple[tuple[int, WeakSector], ...]
    total: int
    """The part of the fingerprint that the sectors give."""


class SectorMemory:
    """`size` erased bytes in sectors of `sector_size` bytes; a `flota.virtual.flash.Memory`."""

    __slots__ = ("_blank", "_changed", "_reads", "_sectors", "_size", "_total", "_weak", "sector_size")

    def __init__(self, size: int, *, sector_size: int = 4096) -> None:
        if size % sector_size:
            raise ValueError(f"a memory of {size} bytes has no whole sectors of {sector_size}")
        self.sector_size = sector_size
        self._size = size
        self._blank = b"\xff" * sector_size
        self._sectors = [self._blank] * (size // sector_size)
        self._weak: dict[int, WeakSector] = {}
        self._reads = 0
        self._total = 0
        self._changed: dict[int, bytes] = {}

    def __len__(self) -> int:
        """Return the size in bytes."""
        return self._size

    def __getitem__(self, span: slice) -> bytes:
        """Return the bytes of a span of sectors or of a part of one; a weak sector reads otherwise each time."""
        start, end = int(span.start), int(span.stop)
        first, last = start // self.sector_size, (end - 1) // self.sector_size
        if self._weak and any(first <= index <= last for index in self._weak):
            sectors = [self._flickering(index) for index in range(first, last + 1)]
        elif first == last:
            offset = first * self.sector_size
            return self._sectors[first][start - offset : end - offset]
        else:
            sectors = self._sectors[first : last + 1]
        offset = first * self.sector_size
        return b"".join(sectors)[start - offset : end - offset]

    def __setitem__(self, span: slice, data: bytes) -> None:
        """Replace the bytes of a span, which lies within one sector."""
        start, end = int(span.start), int(span.stop)
        index, offset = divmod(start, self.sector_size)
        if end - start != len(data) or offset + len(data) > self.sector_size:
            raise ValueError(f"{len(data)} bytes at {start:#x} are not within one sector")
        old = self._sectors[index]
        self._changed.setdefault(index, old)
        if len(data) == self.sector_size:
            self._sectors[index] = bytes(data)
            self._weak.pop(index, None)
            return
        self._sectors[index] = b"".join((old[:offset], data, old[offset + len(data) :]))
        if index in self._weak:
            weak = self._weak[index]
            firm = b"".join((weak.old[:offset], data, weak.old[offset + len(data) :]))
            self._weak[index] = WeakSector(firm, weak.number)

    def weaken(self, address: int, old: bytes, number: int) -> None:
        """Make the sector at `address` read as itself or as `old`, bit by bit; `number` begins its random sequence."""
        self._weak[address // self.sector_size] = WeakSector(old, number)

    def content_key(self, address: int, length: int) -> Hashable | None:
        """Return a key of the whole sectors that hold the range, None if one of them is weak."""
        first, last = address // self.sector_size, -(-(address + length) // self.sector_size)
        if self._weak and any(first <= index < last for index in self._weak):
            return None
        return tuple(self._sectors[first:last])

    def save(self) -> MemorySnapshot:
        """Return what the memory holds now."""
        self.fingerprint()
        return MemorySnapshot(tuple(self._sectors), tuple(self._weak.items()), self._total)

    def load(self, snapshot: MemorySnapshot) -> None:
        """Make the memory what it was."""
        self._sectors = list(snapshot.sectors)
        self._weak = dict(snapshot.weak)
        self._total = snapshot.total
        self._changed.clear()
        self._reads = 0

    def fingerprint(self, without: Collection[int] = ()) -> int:
        """Return a number that differs for different content, but with the odds of 128-bit hashing.

        `without` are the numbers of sectors whose content makes no difference.
        """
        for index, old in self._changed.items():
            new = self._sectors[index]
            if new is not old:
                self._total += (_digest(new) - _digest(old)) * _weight(index)
        self._total &= _MASK
        self._changed.clear()
        total = self._total
        if without:
            total -= sum(_digest(self._sectors[index]) * _weight(index) for index in without)
        total += sum(
            (_digest(weak.old) ^ weak.number ^ 1) * _weight(index + len(self._sectors))
            for index, weak in self._weak.items()
            if index not in without
        )
        return total & _MASK

    def _flickering(self, index: int) -> bytes:
        sector, weak = self._sectors[index], self._weak.get(index)
        if weak is None:
            return sector
        self._reads += 1
        mask = random.Random(weak.number * 1_000_003 + self._reads).getrandbits(8 * self.sector_size)  # noqa: S311
        now, old = int.from_bytes(sector), int.from_bytes(weak.old)
        return (now & ~mask | old & mask).to_bytes(self.sector_size)


@functools.lru_cache(maxsize=1 << 12)
def _digest(sector: bytes) -> int:
    """Return the digest of a sector, 0 for an erased one: whether it was erased or never written is no difference."""
    if sector.count(0xFF) == len(sector):
        return 0
    return int.from_bytes(hashlib.blake2b(sector, digest_size=FINGERPRINT_BITS // 8).digest())


@functools.lru_cache(maxsize=1 << 12)
def _weight(index: int) -> int:
    return int.from_bytes(hashlib.blake2b(index.to_bytes(4), digest_size=FINGERPRINT_BITS // 8).digest()) | 1
