"""Files that are either there whole or not there at all, after a crash or a power cut too.

The rule is write to a temporary name in the same directory, fsync, rename, fsync the directory
(rename(2): atomic on one file system; the directory entry itself is only durable after its own fsync).
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from flota.errors import StorageFull

PARTIAL_SUFFIX: Final = ".partial"
"""Temporary names end in this; a start-up may delete them, since nothing refers to them."""

PRIVATE_FILE_MODE: Final = 0o600
SHARED_FILE_MODE: Final = 0o644


def fsync_directory(directory: Path) -> None:
    """Make renames and creations in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


WRITE_BYTES: Final = 1 << 20
"""What goes to the kernel at a time. It caches a file in pieces as large as the writes that made it, and reading a file
back that came in small ones costs a sixth more CPU (`benchmarks/download.py` over h2c)."""


class DurableFileWriter:
    """Write a file of which nobody ever sees a part.

    Use as a context manager: `write` bytes, then `commit(path)`. Leaving the block without a commit removes the
    temporary file. Raises `StorageFull` when the disk or a quota is full; nothing stays behind then.
    """

    def __init__(self, directory: Path, *, mode: int = SHARED_FILE_MODE) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._mode = mode
        descriptor, name = tempfile.mkstemp(dir=directory, suffix=PARTIAL_SUFFIX)
        self._file = os.fdopen(descriptor, "wb", buffering=WRITE_BYTES)
        self.temporary_path = Path(name)
        self._committed = False

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes to the temporary file."""
        with _full_disk_as_storage_full():
            self._file.write(data)

    def flush_to_disk(self) -> None:
        """Write everything so far through to the disk."""
        with _full_disk_as_storage_full():
            self._file.flush()
            os.fsync(self._file.fileno())

    def commit(self, path: Path) -> None:
        """Put the whole file at `path` (replacing what was there), durably."""
        with _full_disk_as_storage_full():
            self.flush_to_disk()
            os.fchmod(self._file.fileno(), self._mode)
            self._file.close()
            made = _make_directories(path.parent)
            self.temporary_path.replace(path)
            self._committed = True
            for directory in {path.parent, self._directory, *made}:
                fsync_directory(directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._committed:
            return
        with contextlib.suppress(OSError):  # closing flushes: on a full disk that fails again, and the file goes anyway
            self._file.close()
        self.temporary_path.unlink(missing_ok=True)


def write_durably(path: Path, data: bytes, *, mode: int = SHARED_FILE_MODE) -> None:
    """Replace the file at `path` by `data`, atomically and durably. Raises `StorageFull`."""
    with DurableFileWriter(path.parent, mode=mode) as writer:
        writer.write(data)
        writer.commit(path)


def remove_partial_files(directory: Path) -> int:
    """Delete what interrupted writers left directly in `directory`; returns how many. For use at start-up only."""
    count = 0
    for path in directory.glob(f"*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)
        count += 1
    return count


def _make_directories(directory: Path) -> list[Path]:
    """Create `directory` and its parents; returns the existing directories whose entries changed."""
    changed: list[Path] = []
    missing = directory
    while not missing.exists():
        changed.append(missing.parent)
        missing = missing.parent
    directory.mkdir(parents=True, exist_ok=True)
    return changed


class _full_disk_as_storage_full(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads as a statement
    """Translate "no space" and "quota exceeded" into `StorageFull`."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                "the disk is full", found=os.strerror(error.errno or 0), hint="Free some space and send it again."
            ) from error
