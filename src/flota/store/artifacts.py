"""Artifacts on disk: immutable files named by the SHA-256 of their bytes.

Layout under the root: `objects/ab/cd/<sha256>`, `incoming/` for uploads that are not whole yet, and `removals/` with an
empty file for each object that is being removed. Names that clients give never become paths. All methods block;
servers call them from a thread.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from flota.digests import DigestAccumulator, FileDigests, is_sha256_hex, parse_sha256_hex
from flota.durable_files import DurableFileWriter, remove_partial_files, write_durably
from flota.errors import InvalidInput, NotFound, StorageFull

SPARE_BYTES: Final = 16 << 20
"""What an upload must leave free on the disk: the database and the logs live there too."""


class ArtifactUpload:
    """One file on its way in. Feed `write`, then `finish`; see `ArtifactStore.upload`."""

    def __init__(self, store: ArtifactStore, writer: DurableFileWriter, expected_size: int | None) -> None:
        self._store = store
        self._writer = writer
        self._expected_size = expected_size
        self._digests = DigestAccumulator()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._digests.size

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes. Raises `StorageFull`, or `InvalidInput` past the announced size."""
        if self._expected_size is not None and self.size + len(data) > self._expected_size:
            raise InvalidInput(
                "the file is longer than announced",
                offset=self._expected_size,
                expected=f"{self._expected_size} bytes",
                found=f"at least {self.size + len(data)} bytes",
            )
        self._writer.write(data)
        self._digests.update(data)

    def finish(self) -> FileDigests:
        """Return the digests of the file, which is now in the store for good; the same bytes twice are one file.

        Raises `InvalidInput` if the file is shorter than announced, `StorageFull`; nothing is stored then.
        """
        digests = self._digests.finish()
        if self._expected_size is not None and digests.size != self._expected_size:
            raise InvalidInput(
                "the file ended early",
                offset=digests.size,
                expected=f"{self._expected_size} bytes",
                found=f"{digests.size} bytes",
                hint="Send it again.",
            )
        self._store.keep(self._writer, digests)
        return digests


class ArtifactStore:
    """A directory of artifacts. Safe for any number of threads, and for processes on one file system."""

    def __init__(self, root: Path) -> None:
        self._objects = root / "objects"
        self._incoming = root / "incoming"
        self._objects.mkdir(parents=True, exist_ok=True)
        self._incoming.mkdir(parents=True, exist_ok=True)
        self._removals = root / "removals"
        self._lock = threading.Lock()
        self._reserved_bytes = 0

    @contextlib.contextmanager
    def upload(self, expected_size: int | None = None) -> Iterator[ArtifactUpload]:
        """Give an `ArtifactUpload`; leaving the block before `finish` returns leaves nothing behind.

        `expected_size` in bytes, if announced, is held to exactly, and reserved: raises `StorageFull` at once if the
        disk cannot take it beside the other uploads under way.
        """
        with self._reservation(expected_size or 0), DurableFileWriter(self._incoming) as writer:
            yield ArtifactUpload(self, writer, expected_size)

    def path(self, sha256: str) -> Path:
        """Return where the artifact's bytes are; raises `NotFound`, or `InvalidInput` for what is no SHA-256."""
        path = self._object_path(parse_sha256_hex(sha256))
        if not path.is_file():
            raise NotFound("no such artifact", found=sha256)
        return path

    def read(self, sha256: str) -> bytes:
        """Return the artifact's bytes; raises as `path` does."""
        return self.path(sha256).read_bytes()

    def contains(self, sha256: str) -> bool:
        """Whether the artifact is here; raises `InvalidInput` for what is no SHA-256."""
        return self._object_path(parse_sha256_hex(sha256)).is_file()

    def clean_partial_uploads(self) -> int:
        """Delete what uploads left when the process died; returns how many. For use at start-up only."""
        return remove_partial_files(self._incoming)

    def mark_for_removal(self, sha256s: Iterable[str]) -> None:
        """Note, durably, that these artifacts are about to go; nothing is deleted before `finish_removal`."""
        for sha256 in sha256s:
            write_durably(self._removals / parse_sha256_hex(sha256), b"")

    def marked_for_removal(self) -> list[str]:
        """Return the SHA-256 of every artifact that is marked, in order."""
        if not self._removals.is_dir():
            return []
        return sorted(path.name for path in self._removals.iterdir() if is_sha256_hex(path.name))

    def finish_removal(self, sha256: str, *, remove: bool) -> None:
        """Delete a marked artifact's bytes, or keep them after all, then the mark. What is gone already is fine."""
        if remove:
            self._object_path(parse_sha256_hex(sha256)).unlink(missing_ok=True)
        (self._removals / parse_sha256_hex(sha256)).unlink(missing_ok=True)

    def keep(self, writer: DurableFileWriter, digests: FileDigests) -> None:
        """Put a finished upload in its place, unless its bytes are there already."""
        path = self._object_path(digests.sha256)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == digests.size:
                return
        writer.commit(path)

    def _object_path(self, sha256: str) -> Path:
        return self._objects / sha256[:2] / sha256[2:4] / sha256

    @contextlib.contextmanager
    def _reservation(self, size: int) -> Iterator[None]:
        with self._lock:
            free = shutil.disk_usage(self._incoming).free - self._reserved_bytes
            if size + SPARE_BYTES > free:
                raise StorageFull(
                    "the disk cannot take this file",
                    expected=f"{size + SPARE_BYTES} bytes free",
                    found=f"{max(free, 0)} bytes free",
                    hint="Free some space and send it again.",
                )
            self._reserved_bytes += size
        try:
            yield
        finally:
            with self._lock:
                self._reserved_bytes -= size
