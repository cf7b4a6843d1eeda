"""Parts of artifacts in memory: a block that many devices ask for is read from disk once. Bounded, least used first."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from flota.errors import FlotaError

PIECE_BYTES: Final = 64 * 1024
"""What is read and kept at a time: 16 blocks of 4 KiB."""

PIECES_MAX: Final = 512
"""32 MiB in all."""


class ArtifactPieces:
    """Pieces of artifacts. `path_of` gives where the artifact of a SHA-256 is, or raises `NotFound`."""

    def __init__(self, path_of: Callable[[str], Path], *, pieces_max: int = PIECES_MAX) -> None:
        self._path_of = path_of
        self._pieces_max = pieces_max
        self._pieces: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def __len__(self) -> int:
        """How many pieces are kept."""
        return len(self._pieces)

    def part(self, sha256: str, offset: int, length: int) -> bytes | None:
        """Return `length` bytes of the artifact from `offset` on, None if they are not all in memory."""
        index, start = divmod(offset, PIECE_BYTES)
        piece = self._pieces.get((sha256, index))
        if piece is None:
            return None
        self._pieces.move_to_end((sha256, index))
        if start + length <= len(piece):
            return piece[start : start + length]
        head = piece[start:]
        if not head or len(piece) < PIECE_BYTES:  # past the end of the file
            return None
        rest = self.part(sha256, (index + 1) * PIECE_BYTES, length - len(head))
        return None if rest is None else head + rest

    async def load(self, sha256: str, parts: Iterable[tuple[int, int]]) -> None:
        """Bring parts of an artifact, offsets and lengths in bytes, into memory. Raises `NotFound`, `FlotaError`."""
        wanted = {
            index
            for offset, length in parts
            for index in range(offset // PIECE_BYTES, (offset + length - 1) // PIECE_BYTES + 1)
            if (sha256, index) not in self._pieces
        }
        if not wanted:
            return
        for index, piece in (await asyncio.to_thread(self._read, sha256, sorted(wanted))).items():
            self._pieces[sha256, index] = piece
        while len(self._pieces) > self._pieces_max:
            self._pieces.popitem(last=False)

    def _read(self, sha256: str, indices: list[int]) -> dict[int, bytes]:
        try:
            descriptor = os.open(self._path_of(sha256), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise FlotaError("the artifact's file cannot be read", found=error.strerror) from error
        try:
            return {index: os.pread(descriptor, PIECE_BYTES, index * PIECE_BYTES) for index in indices}
        except OSError as error:
            raise FlotaError("the artifact's file cannot be read", found=error.strerror) from error
        finally:
            os.close(descriptor)
