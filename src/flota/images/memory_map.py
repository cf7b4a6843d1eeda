"""Pieces of a device's memory, each with its address: what HEX and ELF files hold and a `.bin` file cannot say.

Source: docs/reference/intel-hex.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from flota.images.model import ImageError

ADDRESS_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF
FLAT_SIZE_MAX: Final = 256 * 1024 * 1024
"""The longest file of plain bytes that we make of a map (bytes): two far-apart pieces would need gigabytes of gap."""
GAPS_SHOWN: Final = 3


class OverlappingMemory(ImageError):
    """Two pieces want the same address."""

    code = "overlapping-memory"


class TooFarApart(ImageError):
    """The pieces lie so far apart that a plain file of them would be mostly gap."""

    code = "too-far-apart"


@dataclass(frozen=True, slots=True)
class MemoryBlock:
    """`data` is wanted at `address`. Never empty."""

    address: int
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not self.data or self.address < 0 or self.end - 1 > ADDRESS_MAX:
            raise ImageError("bad piece of memory", expected="bytes at an address", found=hex(self.address))

    @property
    def end(self) -> int:
        """Address of the first byte after the data."""
        return self.address + len(self.data)


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """Blocks by rising address, none touching the next; `entry` is where the program starts, if that is said."""

    blocks: tuple[MemoryBlock, ...]
    entry: int | None = None

    @property
    def start(self) -> int:
        """The lowest address."""
        return self.blocks[0].address

    @property
    def end(self) -> int:
        """The first address after the highest block."""
        return self.blocks[-1].end

    @property
    def size(self) -> int:
        """Bytes that the blocks hold together, without gaps."""
        return sum(len(block.data) for block in self.blocks)


def memory_map(pieces: Iterable[MemoryBlock], *, entry: int | None = None) -> MemoryMap:
    """Return the map of `pieces` in any order, those that touch joined.

    Raises `OverlappingMemory` when two share an address, `ImageError` when there is none.
    """
    runs: list[list[MemoryBlock]] = []
    for piece in sorted(pieces, key=lambda piece: piece.address):
        if not runs or piece.address > runs[-1][-1].end:
            runs.append([piece])
        elif piece.address == runs[-1][-1].end:
            runs[-1].append(piece)
        else:
            last = runs[-1][-1]
            raise OverlappingMemory(
                "two pieces overlap",
                expected=f"nothing more below {last.end:#x}",
                found=f"{len(piece.data)} bytes at {piece.address:#x}",
            )
    if not runs:
        raise ImageError("the file holds no data")
    blocks = tuple(MemoryBlock(run[0].address, b"".join(piece.data for piece in run)) for run in runs)
    return MemoryMap(blocks, entry)


def flatten(held: MemoryMap, *, at: int | None = None, gap_fill: int = 0xFF, size_max: int = FLAT_SIZE_MAX) -> bytes:
    """Return the map as plain bytes, the first one being that at the address `at` (None = the lowest one held).

    Gaps are filled with the byte `gap_fill`. Raises `TooFarApart` before anything is allocated when the result would
    have more than `size_max` bytes, `ImageError` when data lies below `at`.
    """
    start = held.start if at is None else at
    if not 0 <= gap_fill <= 0xFF:
        raise ImageError("the fill byte is out of range", expected="0 to 0xff", found=gap_fill)
    if held.start < start:
        raise ImageError(
            "data lies before the address that the file is to begin with",
            expected=f"{start:#x} or above",
            found=f"{held.start:#x}",
        )
    size = held.end - start
    if size > size_max:
        raise TooFarApart(
            "the pieces lie too far apart for a plain file",
            expected=f"at most {size_max} bytes",
            found=f"{size} bytes for {held.size} of data: {_gaps(held)}",
            hint="Keep it as Intel HEX, or leave out what does not belong to the firmware.",
        )
    flat = bytearray()
    for block in held.blocks:
        flat += bytes((gap_fill,)) * (block.address - start - len(flat))
        flat += block.data
    return bytes(flat)


def _gaps(held: MemoryMap) -> str:
    shown = [f"{block.address:#x} to {block.end:#x}" for block in held.blocks[:GAPS_SHOWN]]
    more = len(held.blocks) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
