"""Files that small parts are read from: open, and read ahead, while parts of them are asked for.

To open, read and close a file for each part costs a server more than the bytes do: every one of the system calls lets
another thread have the interpreter. Who asks for parts asks for one after the other, and many for the same image: a
block that was read has the next parts too (benchmarks/download.py, small ranges).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Final

FILES_OPEN_MAX: Final = 32
"""Images that are fetched in parts at the same time without being opened for each part."""

BLOCK_BYTES: Final = 32 * 1024
"""Read at once: eight parts of 4 KiB. A part that is as large is read alone."""

BLOCKS_KEPT_MAX: Final = 128
"""Blocks in memory, of all the files: 4 MiB. With more devices at as many places, each part may cost a block."""

LOOK_EVERY_S: Final = 0.02
"""A file is looked at before it is read from, to see that it is still there, if that was not done for so long. The look
is a system call: one for every part cost 12 us of CPU, of 82 in all (docs/adr/0010-embedded-granian.md)."""

IDLE_S: Final = 2.0
"""A file of which no part was asked for so long is closed: what was deleted meanwhile keeps its room on the disk."""


class PartFiles:
    """Reads parts of files by their paths, in any thread. To be made in the event loop, which closes what is idle."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._open: dict[str, _OpenFile] = {}
        self._blocks: dict[tuple[_OpenFile, int], bytes] = {}
        self._watched: set[str] = set()
        """Paths that `_close_idle` will look at; it holds no file, so that what is dropped is closed."""

    def __len__(self) -> int:
        """How many files are open."""
        return len(self._open)

    @property
    def blocks_kept(self) -> int:
        """How many blocks are in memory."""
        return len(self._blocks)

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on: fewer at the file's end, `b""` if they cannot be read.

        What was deleted, or written into, is noticed after `LOOK_EVERY_S` at most. Raises `RuntimeError` if the event
        loop has ended.
        """
        number, begin = divmod(offset, BLOCK_BYTES)
        with self._lock:
            now = time.monotonic()
            file = self._open.get(path)
            try:
                if file is None or now - file.looked_at >= LOOK_EVERY_S:
                    file = self._looked_at(path, file, now)
                file.used_at = now
                block = self._blocks.get((file, number))
                if block is not None and begin + length <= BLOCK_BYTES:
                    return block[begin : begin + length]
                return self._read_part(file, offset, length)
            except OSError:
                self._drop(path)
                return b""

    def _looked_at(self, path: str, file: _OpenFile | None, now: float) -> _OpenFile:
        """Return `file` if it is still the one that is there, else that one, open. Raises `OSError`."""
        if file is not None and file.is_unchanged(now):
            return file
        self._drop(path)
        file = _OpenFile(path, now)
        if len(self._open) >= FILES_OPEN_MAX:
            self._drop(next(iter(self._open)))  # the one that was opened first
        if path not in self._watched:
            self._loop.call_soon_threadsafe(self._loop.call_later, IDLE_S, self._close_idle, path)
            self._watched.add(path)
        self._open[path] = file
        return file

    def _read_part(self, file: _OpenFile, offset: int, length: int) -> bytes:
        """Return a part that is in no block yet, or in two, or larger than one. Raises `OSError`."""
        if length >= BLOCK_BYTES:
            return os.pread(file.descriptor, length, offset)
        number, begin = divmod(offset, BLOCK_BYTES)
        end = begin + length
        part = (self._blocks.get((file, number)) or self._read_block(file, number))[begin:end]
        if end > BLOCK_BYTES:
            number, end = number + 1, end - BLOCK_BYTES
            part += (self._blocks.get((file, number)) or self._read_block(file, number))[:end]
        return part

    def _read_block(self, file: _OpenFile, number: int) -> bytes:
        """Return a block, which is shorter at the file's end, and keep it. Raises `OSError`."""
        block = os.pread(file.descriptor, BLOCK_BYTES, number * BLOCK_BYTES)
        if len(self._blocks) >= BLOCKS_KEPT_MAX:
            del self._blocks[next(iter(self._blocks))]  # the one that was read first
        self._blocks[file, number] = block
        return block

    def _drop(self, path: str) -> None:
        file = self._open.pop(path, None)
        if file is not None:
            for key in [key for key in self._blocks if key[0] is file]:
                del self._blocks[key]

    def _close_idle(self, path: str) -> None:
        with self._lock:
            file = self._open.get(path)
            if file is not None and time.monotonic() - file.used_at < IDLE_S:
                self._loop.call_later(IDLE_S, self._close_idle, path)
                return
            self._watched.discard(path)
            self._drop(path)


class _OpenFile:
    """A descriptor, closed when nothing refers to it any more."""

    __slots__ = ("_size", "_written_at", "descriptor", "looked_at", "used_at")

    descriptor: int
    looked_at: float
    used_at: float

    def __init__(self, path: str, now: float) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.looked_at = self.used_at = now
        status = os.fstat(self.descriptor)
        self._size, self._written_at = status.st_size, status.st_mtime_ns

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def is_unchanged(self, now: float) -> bool:
        """Whether it has a name yet, as one that was deleted or replaced has not, and nobody wrote into it."""
        self.looked_at = now
        try:
            status = os.fstat(self.descriptor)
        except OSError:  # a file system that is elsewhere, and lost it
            return False
        return status.st_nlink > 0 and status.st_size == self._size and status.st_mtime_ns == self._written_at
