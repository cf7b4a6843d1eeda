"""What is packed in a file: the members of gzip, xz, bzip2, zip and tar, with a bound on how much they may grow to.

Source: docs/reference/blynk.md, "Firmware tag": the vendor's packer puts a tag into the first member of a `.tar.gz`.
"""

from __future__ import annotations

import bz2
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

Buffer = bytes | memoryview

UNPACKED_MAX_BYTES: Final = 64 * 1024 * 1024
"""All members together."""
MEMBERS_MAX: Final = 1000
DEPTH_MAX: Final = 2
"""A tar inside a gzip, and no further."""

_TAR_MAGIC_OFFSET: Final = 257
_ZIP_MAGIC: Final = b"PK\x03\x04"


class _Unpacker(Protocol):
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


_STREAMS: Final[tuple[tuple[bytes, Callable[[], _Unpacker]], ...]] = (
    (b"\x1f\x8b\x08", lambda: zlib.decompressobj(wbits=31)),
    (b"\xfd7zXZ\x00", lambda: lzma.LZMADecompressor(memlimit=128 * 1024 * 1024)),
    (b"BZh", bz2.BZ2Decompressor),
)


@dataclass(slots=True)
class _Budget:
    left: int
    members: int = MEMBERS_MAX


def unpacked_members(data: Buffer, *, limit: int = UNPACKED_MAX_BYTES) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of what is packed in `data`, in order; nothing for a file that is not packed. Never raises.

    A damaged archive yields what comes before the damage. At most `limit` bytes come out, of at most 1000 members.
    """
    yield from _members(bytes(data) if _is_packed(data) else b"", _Budget(limit), 0)


def _is_packed(data: Buffer) -> bool:
    start = bytes(data[:8])
    return start.startswith((*(magic for magic, _ in _STREAMS), _ZIP_MAGIC)) or _is_tar(data)


def _is_tar(data: Buffer) -> bool:
    return bytes(data[_TAR_MAGIC_OFFSET : _TAR_MAGIC_OFFSET + 5]) == b"ustar"


def _members(data: bytes, budget: _Budget, depth: int) -> Iterator[tuple[str, bytes]]:
    if depth >= DEPTH_MAX:
        return
    for magic, make in _STREAMS:
        if data.startswith(magic):
            content = _decompressed(make(), data, budget.left)
            budget.left -= len(content)
            if content:
                yield "content", content
                yield from _members(content, budget, depth + 1)
            return
    if data.startswith(_ZIP_MAGIC):
        yield from _zip_members(data, budget)
    elif _is_tar(data):
        yield from _tar_members(data, budget)


def _decompressed(unpacker: _Unpacker, data: bytes, limit: int) -> bytes:
    if limit <= 0:
        return b""
    try:
        return unpacker.decompress(data, limit)
    except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError):
        return b""


def _zip_members(data: bytes, budget: _Budget) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                if info.is_dir() or info.flag_bits & 1:
                    continue
                if budget.left <= 0 or budget.members <= 0:
                    return
                with archive.open(info) as member:
                    content = member.read(budget.left)
                budget.left -= len(content)
                budget.members -= 1
                yield info.filename, content
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        OSError,
        ValueError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ):
        return


def _tar_members(data: bytes, budget: _Budget) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.TarFile(fileobj=io.BytesIO(data), errorlevel=0) as archive:
            for info in archive:
                if budget.left <= 0 or budget.members <= 0:
                    return
                budget.members -= 1
                if not info.isreg() or info.size > budget.left:
                    continue
                member = archive.extractfile(info)
                if member is None:
                    continue
                content = member.read(budget.left)
                budget.left -= len(content)
                yield info.name, content
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, MemoryError, IndexError):
        return
