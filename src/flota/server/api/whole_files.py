"""A whole file over plain HTTP/2, in pieces that are as large as memory allows.

granian's own file loop (`pathsend`) hands each 128 KiB from thread to thread and copies them twice more. Over TLS that
is hidden behind the cipher; without, it was half as much CPU again as nginx (docs/adr/0010-embedded-granian.md). Larger
pieces out of memory cost less, but a reader that stalls keeps up to three of them. So a download begins with small
ones, they grow only for a reader who keeps taking them, and what all readers may hold together is bounded.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from flota.errors import FlotaError

if TYPE_CHECKING:
    from starlette.types import Receive, Send

FIRST_PIECE_BYTES: Final = 128 * 1024
"""What a download begins with, and comes back to when its reader is slow: as much as `pathsend` takes."""

LARGEST_PIECE_BYTES: Final = 512 * 1024
"""Also the unit in which files are read and kept. Twice as much saved nothing more."""

PIECES_HELD: Final = 3
"""Pieces of one download in memory at a time: one that is being written, one in granian's queue, one that waits."""

ROOM_BYTES: Final = 80 << 20
"""What all downloads together may hold in pieces larger than the first: fifty at full size. Memory is touched only as
far as readers are behind."""

CACHE_BYTES: Final = 16 << 20
"""Blocks of files that are kept in memory. In a rollout thousands of devices ask for the same image of a few MiB."""

QUICK_S: Final = 1.0
"""Who takes longer for a piece gets small ones again: below 512 KiB/s nobody gains by large ones."""

_NOWAIT: Final = getattr(os, "RWF_NOWAIT", None)
"""preadv2(2), Linux: read only what is in memory already."""


class Room:
    """Bytes that downloads may hold at a time beyond their first pieces; for one loop's thread."""

    def __init__(self, total: int) -> None:
        self.free = total

    def take(self, length: int) -> bool:
        """Return whether there was room for `length` more; then it is taken."""
        if length > self.free:
            return False
        self.free -= length
        return True

    def give_back(self, length: int) -> None:
        """Undo `take`."""
        self.free += length


class Pace:
    """How large the next piece of one download is: doubled after each that was taken quickly, while there is room.

    A piece of `size` bytes begins at a multiple of it, so that none reaches over the end of a block.
    """

    def __init__(self, room: Room) -> None:
        self.size = FIRST_PIECE_BYTES
        self._room = room
        self._held = 0

    def taken(self, offset: int, took_s: float) -> None:
        """Note that the server took a piece, `took_s` seconds after it was offered; the next begins at `offset`."""
        if took_s > QUICK_S:
            self.end()
            return
        more = self.size * PIECES_HELD
        larger = self.size * 2
        if larger <= LARGEST_PIECE_BYTES and offset % larger == 0 and self._room.take(more):
            self._held += more
            self.size = larger

    def end(self) -> None:
        """Return to the first size, and give back the room; also at the end of the download."""
        self._room.give_back(self._held)
        self._held = 0
        self.size = FIRST_PIECE_BYTES


class Blocks:
    """Blocks of files that were read lately, up to `capacity` bytes; a file that was written anew has none here."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[tuple[int, int, int, int, int], bytes] = OrderedDict()
        self._bytes = 0

    async def piece(self, descriptor: int, status: os.stat_result, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, which lie in one block of the open file that `status` describes.

        The disk is waited for in another thread. Raises `FlotaError` if the file has become shorter.
        """
        within = offset % LARGEST_PIECE_BYTES
        block = await self._block(descriptor, status, offset - within)
        data = block if length == len(block) else block[within : within + length]
        if len(data) != length:
            raise FlotaError(
                "the artifact's file became shorter while it was sent", offset=offset, expected=length, found=len(data)
            )
        return data

    async def _block(self, descriptor: int, status: os.stat_result, start: int) -> bytes:
        key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, start)
        block = self._kept.get(key)
        if block is not None:
            self._kept.move_to_end(key)
            return block
        length = min(LARGEST_PIECE_BYTES, status.st_size - start)
        block = _read_from_memory(descriptor, length, start)
        if block is None:
            block = await asyncio.to_thread(os.pread, descriptor, length, start)
        if status.st_size <= self._capacity and len(block) == length:  # a larger file would push itself out
            self._keep(key, block)
        return block

    def _keep(self, key: tuple[int, int, int, int, int], block: bytes) -> None:
        self._bytes += len(block) - len(self._kept.pop(key, b""))
        self._kept[key] = block
        while self._bytes > self._capacity:
            self._bytes -= len(self._kept.popitem(last=False)[1])


class WholeFiles:
    """Sends whole files; what its downloads share is memory, so a process has one of it."""

    def __init__(self, *, room: int = ROOM_BYTES, cache: int = CACHE_BYTES) -> None:
        self.room = Room(room)
        self._blocks = Blocks(cache)

    @property
    def has_room(self) -> bool:
        """Whether one more download could have its largest pieces."""
        return self.room.free >= (LARGEST_PIECE_BYTES - FIRST_PIECE_BYTES) * PIECES_HELD

    async def send(self, receive: Receive, send: Send, descriptor: int) -> bool:
        """Hand over the open file as the body of a started answer; returns False if the peer went away meanwhile.

        Raises `FlotaError` if the file becomes shorter.
        """
        clock = asyncio.get_running_loop().time
        status = os.fstat(descriptor)
        pace = Pace(self.room)
        gone = asyncio.ensure_future(peer_gone(receive))
        offset = 0
        try:
            while offset < status.st_size:
                if gone.done():
                    return False
                length = min(pace.size, status.st_size - offset)
                data = await self._blocks.piece(descriptor, status, offset, length)
                offset += length
                offered_at = clock()
                await send({"type": "http.response.body", "body": data, "more_body": offset < status.st_size})
                pace.taken(offset, clock() - offered_at)
        finally:
            gone.cancel()
            pace.end()
        return True


WHOLE_FILES: Final = WholeFiles()
"""The process's own."""


async def peer_gone(receive: Receive) -> None:
    """Return when the server says that the peer has gone away, or that the answer has ended."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _read_from_memory(descriptor: int, length: int, offset: int) -> bytes | None:
    """Return the bytes if the kernel has all of them in memory, else None: then reading would wait for the disk."""
    if _NOWAIT is None:
        return None
    buffer = bytearray(length)
    try:
        found = os.preadv(descriptor, [buffer], offset, _NOWAIT)
    except OSError:  # not in memory (EAGAIN), or a file system that cannot tell (EOPNOTSUPP)
        return None
    return bytes(buffer) if found == length else None
