"""Files that small parts are read from, kept open while parts of them are asked for.

To open and close a file for each part costs a server more than reading it does: every one of the system calls lets
another thread have the interpreter (benchmarks/download.py, small ranges: a seventh of all its CPU).
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

FILES_OPEN_MAX: Final = 32
"""Images that are fetched in parts at the same time without being opened for each part."""

IDLE_S: Final = 2.0
"""A file of which no part was asked for so long is closed: what was deleted meanwhile keeps its room on the disk."""


class PartFiles:
    """Reads parts of files by their paths. For one event loop."""

    def __init__(self) -> None:
        self._open: dict[str, _OpenFile] = {}
        self._watched: set[str] = set()
        """Paths that `_close_idle` will look at; it holds no file, so that what is dropped is closed."""

    def __len__(self) -> int:
        """How many files are open."""
        return len(self._open)

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return the bytes from `offset` on, fewer at the file's end; none if they cannot be read, or it is deleted."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        file = self._open.get(path)
        if file is None or (file.seen_at != now and not file.still_exists()):
            file = self._reopen(path, loop)
            if file is None:
                return b""
        file.seen_at = now  # uvloop's time stands still while it goes through what is ready: one look is enough for all
        try:
            return os.pread(file.descriptor, length, offset)
        except OSError:
            self._open.pop(path, None)
            return b""

    def _reopen(self, path: str, loop: asyncio.AbstractEventLoop) -> _OpenFile | None:
        """Return the file that is there now, open; None if there is none that can be read."""
        self._open.pop(path, None)
        try:
            file = _OpenFile(path)
        except OSError:
            return None
        if len(self._open) >= FILES_OPEN_MAX:
            del self._open[next(iter(self._open))]  # the one that was opened first
        self._open[path] = file
        if path not in self._watched:
            self._watched.add(path)
            loop.call_later(IDLE_S, self._close_idle, path, loop)
        return file

    def _close_idle(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        file = self._open.get(path)
        if file is not None and loop.time() - file.seen_at < IDLE_S:
            loop.call_later(IDLE_S, self._close_idle, path, loop)
            return
        self._watched.discard(path)
        self._open.pop(path, None)


class _OpenFile:
    """A descriptor, closed when nothing refers to it any more."""

    __slots__ = ("descriptor", "seen_at")

    descriptor: int
    seen_at: float

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.seen_at = 0.0

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def still_exists(self) -> bool:
        """Whether it has a name yet: one that was deleted, or replaced by another, has none."""
        return os.fstat(self.descriptor).st_nlink > 0
