"""Files fetched once for many devices: a directory of bounded size, named by SHA-256, the least used go first.

A download goes on where it was, after a break and after a restart; nothing is given out whose digest is not right.
Source: docs/reference/gateway.md, "Cache".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import httpx

from flota.durable_files import fsync_directory
from flota.errors import StorageFull, TooLarge
from flota.transports.download import DigestMismatch, Expected, LengthMismatch, ResumePoint, RetryPolicy, download

IN_MEMORY_MAX_BYTES: Final = 3 * 1024 * 1024
"""Files kept in memory for many devices at once, and always the latest: a slot has 1 or 2 MB."""

PART_SUFFIX: Final = ".part"
RETRY: Final = RetryPolicy(first_delay_s=0.5, longest_delay_s=15.0, tries_without_progress=6)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file can be had, by whom: address, headers (authorization) and what is known of it (bytes, hex)."""

    url: str
    headers: Mapping[str, str]
    size: int
    sha256: str


@dataclass(slots=True)
class CacheCounts:
    """What the cache did since its start."""

    hits: int = 0
    downloads: int = 0
    downloaded_bytes: int = 0
    evicted: int = 0


class ArtifactCache:
    """The cache; of one file there is one download at a time, whoever asks."""

    def __init__(self, directory: Path, client: httpx.AsyncClient, *, max_bytes: int, rng: random.Random) -> None:
        self._directory = directory
        self._client = client
        self._max_bytes = max_bytes
        self._rng = rng
        self._running: dict[str, asyncio.Task[None]] = {}
        self._memory: OrderedDict[str, bytes] = OrderedDict()
        self.counts = CacheCounts()
        directory.mkdir(parents=True, exist_ok=True)

    async def get(self, source: Source) -> bytes:
        """Return the file's bytes, fetched if they are not here.

        Raises `TooLarge`, `StorageFull`, or what the download raises (`NotOffered`, `DigestMismatch`, …).
        """
        while True:
            data = await self._kept(source.sha256)
            if data is not None:
                self.counts.hits += 1
                return data
            running = self._running.get(source.sha256)
            if running is None:
                await self._fetch(source)
                data = await self._kept(source.sha256)
                if data is not None:
                    return data
            else:
                await asyncio.wait({running})  # if it failed it is this device's turn to try, with its own credentials

    async def kept(self, sha256: str) -> bytes | None:
        """Return a file that is here already, None without fetching it."""
        return await self._kept(sha256)

    async def _fetch(self, source: Source) -> None:
        task = asyncio.ensure_future(self._download(source))
        self._running[source.sha256] = task
        task.add_done_callback(lambda _: self._running.pop(source.sha256, None))
        await task

    async def _download(self, source: Source) -> None:
        if (self._directory / source.sha256).exists():
            return  # another device's download ended while this one's look, which found nothing yet, was on its way
        if source.size > self._max_bytes:
            raise TooLarge("the file is larger than the cache", expected=self._max_bytes, found=source.size)
        self._make_room(source.size, keep=source.sha256)
        part = self._directory / f"{source.sha256}{PART_SUFFIX}"
        try:
            with _PartFile(part, source.size) as sink:
                self.counts.downloads += 1
                before = sink.start.offset
                done = await download(
                    self._client,
                    source.url,
                    sink,
                    expected=Expected(source.size, source.sha256),
                    start=sink.start,
                    headers=source.headers,
                    rng=self._rng,
                    sleep=asyncio.sleep,
                    policy=RETRY,
                )
                self.counts.downloaded_bytes += done.size - before
        except (DigestMismatch, LengthMismatch):
            part.unlink(missing_ok=True)
            raise
        except OSError as error:
            raise StorageFull("the cache cannot be written", found=error.strerror or str(error)) from error
        part.replace(self._directory / source.sha256)
        fsync_directory(self._directory)

    async def _kept(self, sha256: str) -> bytes | None:
        """Return a file that is here, its digest checked; one that was damaged on the disk is thrown away."""
        data = self._memory.get(sha256)
        path = self._directory / sha256
        if data is not None:
            self._memory.move_to_end(sha256)
            with contextlib.suppress(OSError):
                os.utime(path)
            return data
        try:
            data = await asyncio.to_thread(path.read_bytes)
            os.utime(path)
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            path.unlink(missing_ok=True)
            return None
        self._memory[sha256] = data
        while sum(map(len, self._memory.values())) > IN_MEMORY_MAX_BYTES and len(self._memory) > 1:
            self._memory.popitem(last=False)
        return data

    def _make_room(self, size: int, *, keep: str) -> None:
        """Remove the least recently used files until `size` more bytes are within the bound."""
        files = []
        for path in self._directory.iterdir():
            with contextlib.suppress(OSError):
                state = path.stat()
                if not path.name.startswith(keep) and path.name.removesuffix(PART_SUFFIX) not in self._running:
                    files.append((state.st_mtime, state.st_size, path))
        files.sort()
        total = sum(found for _, found, _ in files)
        for _, found, path in files:
            if total + size <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            self.counts.evicted += 1
            total -= found


class _PartFile:
    """A download's sink: appends to a file that survives a restart."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._file: BinaryIO | None = None
        self.start = ResumePoint()

    def __enter__(self) -> _PartFile:
        self._file = self._path.open("a+b")
        self._file.seek(0)
        have = self._file.read()
        if len(have) > self._size:
            have = b""
            self._file.truncate(0)
        self.start = ResumePoint(len(have), hashlib.sha256(have))
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    async def write(self, data: bytes) -> None:
        """Append."""
        assert self._file is not None
        self._file.write(data)

    async def restart(self) -> None:
        """Begin again."""
        assert self._file is not None
        self._file.truncate(0)
