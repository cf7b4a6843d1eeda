"""Files that small parts are read from: open, and read ahead, while parts of them are asked for.

To open, read and close a file for each part costs a server more than the bytes do: every one of the system calls lets
another thread have the interpreter. Who asks for parts asks for one after the other, and many for the same image: a
block that was read has the next parts too (benchmarks/download.py, small ranges).
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

FILES_OPEN_MAX: Final = 32
"""Images that are fetched in parts at the same time without being opened for each part."""

BLOCK_BYTES: Final = 64 * 1024
"""Read at once: sixteen parts of 4 KiB."""

BLOCKS_KEPT_MAX: Final = 64
"""Blocks in memory, of all the files: 4 MiB."""

IDLE_S: Final = 2.0
"""A file of which no part was asked for so long is closed: what was deleted meanwhile keeps its room on the disk."""


class PartFiles:
    """Reads parts of files by their paths. For one event loop."""

    def __init__(self) -> None:
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
        """Return `length` bytes from `offset` on, fewer at the file's end; none if they cannot be read.

        None either if the file is deleted; one that was changed is read again.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        file = self._open.get(path)
        if file is None or (file.seen_at != now and not file.is_unchanged()):
            file = self._reopen(path, loop)
            if file is None:
                return b""
        file.seen_at = now  # uvloop's time stands still while it goes through what is ready: one look is enough for all
        number, begin = divmod(offset, BLOCK_BYTES)
        end = begin + length
        try:
            part = (self._blocks.get((file, number)) or self._read_block(file, number))[begin:end]
            while end > BLOCK_BYTES:
                number, end = number + 1, end - BLOCK_BYTES
                part += (self._blocks.get((file, number)) or self._read_block(file, number))[:end]
        except OSError:
            self._drop(path)
            return b""
        return part

    def _read_block(self, file: _OpenFile, number: int) -> bytes:
        """Return a block, which is shorter at the file's end, and keep it. Raises `OSError`."""
        block = os.pread(file.descriptor, BLOCK_BYTES, number * BLOCK_BYTES)
        if len(self._blocks) >= BLOCKS_KEPT_MAX:
            del self._blocks[next(iter(self._blocks))]  # the one that was read first
        self._blocks[file, number] = block
        return block

    def _reopen(self, path: str, loop: asyncio.AbstractEventLoop) -> _OpenFile | None:
        """Return the file that is there now, open; None if there is none that can be read."""
        self._drop(path)
        try:
            file = _OpenFile(path)
        except OSError:
            return None
        if len(self._open) >= FILES_OPEN_MAX:
            self._drop(next(iter(self._open)))  # the one that was opened first
        self._open[path] = file
        if path not in self._watched:
            self._watched.add(path)
            loop.call_later(IDLE_S, self._close_idle, path, loop)
        return file

    def _drop(self, path: str) -> None:
        file = self._open.pop(path, None)
        if file is not None:
            for key in [key for key in self._blocks if key[0] is file]:
                del self._blocks[key]

    def _close_idle(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        file = self._open.get(path)
        if file is not None and loop.time() - file.seen_at < IDLE_S:
            loop.call_later(IDLE_S, self._close_idle, path, loop)
            return
        self._watched.discard(path)
        self._drop(path)


class _OpenFile:
    """A descriptor, closed when nothing refers to it any more."""

    __slots__ = ("_size", "_written_at", "descriptor", "seen_at")

    descriptor: int
    seen_at: float

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.seen_at = 0.0
        status = os.fstat(self.descriptor)
        self._size, self._written_at = status.st_size, status.st_mtime_ns

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def is_unchanged(self) -> bool:
        """Whether it has a name yet, as one that was deleted or replaced has not, and nobody wrote into it."""
        try:
            status = os.fstat(self.descriptor)
        except OSError:  # a file system that is elsewhere, and lost it
            return False
        return status.st_nlink > 0 and status.st_size == self._size and status.st_mtime_ns == self._written_at
