"""A micro-SD card used as raw blocks: no erasing is needed, any block can be written again, and it can be pulled out.

A write of several blocks is one command; the power may go in its middle.
Source: docs/reference/nuvoton.md, "M2354: boot and platform layer".
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Final, Self

from flota.errors import FlotaError
from flota.virtual.flash import (
    Cut,
    CutPhase,
    FlashOperation,
    FlashOperationKind,
    FlashViolation,
    Memory,
    Power,
)
from flota.virtual.sector_memory import SectorMemory

BLOCK_SIZE: Final = 512
COMMAND_MAX_BYTES: Final = 32 * 1024
"""The longest write that is one command, and never across a multiple of it."""


class SdCardError(FlotaError):
    """There is no card, or the card ends before."""

    code = "sd-card"


class SdCard:
    """A card of `len(memory)` bytes. `fitted` may change any time."""

    def __init__(self, memory: Memory, *, power: Power | None = None, name: str = "sd", fitted: bool = True) -> None:
        if len(memory) % BLOCK_SIZE:
            raise ValueError(f"a card of {len(memory)} bytes has no whole blocks of {BLOCK_SIZE}")
        self._memory = memory
        self.power = power or Power()
        self.name = name
        self.fitted = fitted
        self.listener: Callable[[FlashOperation], None] | None = None

    @classmethod
    def open(cls, path: Path, size: int, *, power: Power | None = None) -> Self:
        """Return the card kept in the file at `path`, made new (`size` bytes of zeros) if it is not there.

        A file of another size is another card, one of no bytes an empty slot. Raises `SdCardError` for a file that
        has no whole blocks.
        """
        if not path.exists():
            partial = path.with_suffix(".new")
            with partial.open("wb") as file:
                file.truncate(size)
            partial.replace(path)
        with path.open("r+b") as file:
            found = path.stat().st_size
            if found % BLOCK_SIZE:
                raise SdCardError(
                    f"{path} is no SD card",
                    expected=f"whole blocks of {BLOCK_SIZE} bytes",
                    found=f"{found} bytes",
                    hint="Delete it: the next start makes a new card.",
                )
            if not found:
                return cls(bytearray(), power=power, fitted=False)
            return cls(mmap.mmap(file.fileno(), found), power=power)

    @property
    def size(self) -> int:
        """Bytes of the card."""
        return len(self._memory)

    def close(self) -> None:
        """Let go of the file, if there is one."""
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes. Raises `SdCardError`."""
        self._check(address, length)
        self.power.check()
        return bytes(self._memory[address : address + length])

    def content_key(self, address: int, length: int) -> Hashable | None:
        """Return something equal for equal content, None where there is nothing cheap."""
        return self._memory.content_key(address, length) if isinstance(self._memory, SectorMemory) else None

    def write(self, address: int, data: bytes) -> None:
        """Write whole blocks, command after command. Raises `SdCardError` without a card and beyond its end."""
        if address % BLOCK_SIZE or len(data) % BLOCK_SIZE:
            raise FlashViolation("a card is written in whole blocks", address=address, length=len(data))
        position = 0
        while position < len(data):
            room = COMMAND_MAX_BYTES - (address + position) % COMMAND_MAX_BYTES
            piece = data[position : position + room]
            self._check(address + position, len(piece))
            self._command(address + position, piece)
            position += len(piece)

    def leave(self, operation: FlashOperation, cut: Cut) -> None:
        """Make the card what this cut of a write leaves behind."""
        if cut.phase is CutPhase.BEFORE:
            return
        start, end = operation.address, operation.address + operation.length
        before = bytes(self._memory[start:end])
        self._put(start, operation.after if cut.phase is CutPhase.AFTER else cut.tear(before, operation.after))

    def _command(self, address: int, after: bytes) -> None:
        operation, cut = self.power.announce(FlashOperationKind.PROGRAM, self.name, address, after)
        if cut is not None:
            self.leave(operation, cut)
            self.power.fail(operation, cut)
        self._put(address, after)
        if self.listener is not None:
            self.listener(operation)

    def _put(self, address: int, data: bytes) -> None:
        """Store bytes, sector by sector where the memory wants that."""
        step = self._memory.sector_size if isinstance(self._memory, SectorMemory) else COMMAND_MAX_BYTES
        position = 0
        while position < len(data):
            end = min(len(data), position + step - (address + position) % step)
            self._memory[address + position : address + end] = data[position:end]
            position = end

    def _check(self, address: int, length: int) -> None:
        if not self.fitted:
            raise SdCardError("there is no SD card", hint="Put the card in, and reset the board.")
        if address < 0 or address + length > self.size:
            raise SdCardError("behind the SD card's end", offset=address, expected=f"{self.size} bytes", found=length)
