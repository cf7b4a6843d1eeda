"""Bodies of answers that are read from files, handed to granian in pieces whose memory is bounded.

granian takes what it is given into a queue of five pieces, and its HTTP/2 opens one piece more whenever its send buffer
has a byte free, so that a reader who stalls keeps `PIECES_HELD` pieces in memory, whatever their size
(docs/adr/0010-embedded-granian.md). Large pieces cost less CPU. So a body begins with small ones, they grow only for a
reader who keeps taking them, and what all readers together may hold beyond the small ones is bounded. A body ends with
small ones too: once the last is taken over, nobody tells when the reader has had the rest.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from flota.errors import FlotaError
from flota.server.machine_memory import memory_limit

if TYPE_CHECKING:
    from starlette.types import Receive, Send

    from flota.server.unacknowledged import Connection

FIRST_PIECE_BYTES: Final = 16 * 1024
"""What a body begins and ends with, and comes back to when its reader is slow: one HTTP/2 frame, and far more than the
288 bytes that its first frame must have."""

LARGEST_PIECE_BYTES: Final = 512 * 1024
"""Also the unit in which files are read and kept. Half as much costs a ninth more CPU over h2c."""

LARGEST_WATCHED_PIECE_BYTES: Final = 64 * 1024
"""The largest where the end of a delivery is reported: all of an image of 1 MiB would fit into the pieces held, and a
device that goes away in the middle would look like one that took it all."""

PIECES_HELD: Final = 8
"""Pieces of one body in memory at a time: five in granian's queue, one that waits for a place there, and two that
HTTP/2 is writing (the second is opened when less than its send buffer is left of the first)."""

TAIL_BYTES: Final = PIECES_HELD * FIRST_PIECE_BYTES
"""The end of a body, of which every piece is small."""

GROWTH: Final = 4
"""How many times larger the next piece may be, or smaller: after three pieces a quick reader has nearly the largest."""

ROOM_MAX_BYTES: Final = 192 << 20
"""What all bodies together may hold in pieces beyond the size of the first: fifty at full size."""

ROOM_SHARE: Final = 8
"""On a small machine that is so small a part of the memory."""

CACHE_BYTES: Final = 16 << 20
"""Blocks of files that are kept in memory. In a rollout thousands of devices ask for the same image of a few MiB."""

QUICK_S: Final = 1.0
"""Who takes longer for a piece gets smaller ones again: nobody that slow gains by large ones."""

LAST_PIECE_PAUSE_S: Final = 0.05
"""How long the word that a peer is gone may be on its way from the server's thread to ours."""

_NOWAIT: Final = getattr(os, "RWF_NOWAIT", None)
"""preadv2(2), Linux: read only what is in memory already."""


def room_bytes(memory: int) -> int:
    """Return how large the room is on a machine with so many bytes of memory."""
    return min(ROOM_MAX_BYTES, memory // ROOM_SHARE)


class Room:
    """Bytes that bodies may hold at a time beyond the size of their first pieces; for one loop's thread."""

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
    """How large the next piece of one body is: `GROWTH` times the last if that was taken quickly and there is room.

    What a piece has beyond the first size stays taken from the room until so many more were taken over that it has
    left memory.
    """

    def __init__(self, room: Room, largest: int = LARGEST_PIECE_BYTES) -> None:
        self._room = room
        self._largest = largest
        self._wanted = FIRST_PIECE_BYTES
        self._beyond: deque[int] = deque()

    def next(self, offset: int, left: int) -> int:
        """Return the length of the piece at `offset` in the file, of a body of which `left` bytes are to come.

        Above the first size none reaches over the end of a block of `LARGEST_PIECE_BYTES`.
        """
        if len(self._beyond) == PIECES_HELD:
            self._room.give_back(self._beyond.popleft())
        to_block_end = LARGEST_PIECE_BYTES - offset % LARGEST_PIECE_BYTES
        size = max(FIRST_PIECE_BYTES, min(self._wanted, to_block_end, left - TAIL_BYTES))
        while size > FIRST_PIECE_BYTES and not self._room.take(size - FIRST_PIECE_BYTES):
            size = self._wanted = max(FIRST_PIECE_BYTES, size // 2)
        self._beyond.append(size - FIRST_PIECE_BYTES)
        return min(size, left)

    def taken(self, took_s: float) -> None:
        """Note that granian took the piece over, `took_s` seconds after it was offered."""
        if took_s > QUICK_S:
            self._wanted = max(FIRST_PIECE_BYTES, self._wanted // GROWTH)
        else:
            self._wanted = min(self._wanted * GROWTH, self._largest)

    def end(self) -> None:
        """Give back all the room: the body has ended, and its last pieces were small, or its peer is gone."""
        self._room.give_back(sum(self._beyond))
        self._beyond.clear()


class Blocks:
    """Blocks of files that were read lately, up to `capacity` bytes; a file that was written anew has none here."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[tuple[int, int, int, int, int], bytes] = OrderedDict()
        self._bytes = 0

    async def piece(self, descriptor: int, status: os.stat_result, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` of the open file that `status` describes; it has as many.

        The disk is waited for in another thread. Raises `FlotaError` if the file has become shorter.
        """
        if status.st_size > self._capacity:  # it would push itself out
            data = await _read(descriptor, length, offset)
        else:
            within = offset % LARGEST_PIECE_BYTES
            data = await self._block(descriptor, status, offset - within)
            if within or length != len(data):
                data = data[within : within + length]
            if len(data) < length and within + length > LARGEST_PIECE_BYTES:
                rest = await self._block(descriptor, status, offset - within + LARGEST_PIECE_BYTES)
                data += rest[: length - len(data)]
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
        block = await _read(descriptor, length, start)
        if len(block) == length:
            self._keep(key, block)
        return block

    def _keep(self, key: tuple[int, int, int, int, int], block: bytes) -> None:
        self._bytes += len(block) - len(self._kept.pop(key, b""))
        self._kept[key] = block
        while self._bytes > self._capacity:
            self._bytes -= len(self._kept.popitem(last=False)[1])


class FileBodies:
    """Sends bodies from files; what its downloads share is memory, so a process has one of it."""

    def __init__(self, *, room: int = ROOM_MAX_BYTES, cache: int = CACHE_BYTES) -> None:
        self.room = Room(room)
        self._blocks = Blocks(cache)

    async def send(
        self,
        receive: Receive,
        send: Send,
        descriptor: int,
        first: int,
        length: int,
        *,
        watched: bool,
        connection: Connection | None = None,
    ) -> bool:
        """Hand over `length` bytes from offset `first` of the open file as the body of a started answer.

        Returns False if the peer went away meanwhile. To a peer that is gone the server takes every piece at once and
        without a word; the word comes a moment later, and after the last piece it comes in any case. So a `watched`
        body waits that moment before the last piece, and where the system tells of its `connection`, until the peer
        has acknowledged what came before.
        Raises `FlotaError` if the file becomes shorter.
        """
        clock = asyncio.get_running_loop().time
        status = os.fstat(descriptor)
        pace = Pace(self.room, LARGEST_WATCHED_PIECE_BYTES if watched else LARGEST_PIECE_BYTES)
        gone = asyncio.ensure_future(peer_gone(receive))
        offset, end = first, first + length
        try:
            while offset < end:
                size = pace.next(offset, end - offset)
                data = await self._blocks.piece(descriptor, status, offset, size)
                offset += size
                if watched and offset == end and not await _until_acknowledged(gone, connection):
                    return False
                if gone.done():
                    return False
                offered_at = clock()
                await send({"type": "http.response.body", "body": data, "more_body": offset < end})
                pace.taken(clock() - offered_at)
        finally:
            gone.cancel()
            pace.end()
        return True


FILE_BODIES: Final = FileBodies(room=room_bytes(memory_limit()))
"""The process's own."""


async def peer_gone(receive: Receive) -> None:
    """Return when the server says that the peer has gone away, or that the answer has ended."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _until_acknowledged(gone: asyncio.Future[None], connection: Connection | None) -> bool:
    """Return when the peer has all but the last pieces, or (False) is gone; TCP ends a connection of neither."""
    while not (await asyncio.wait({gone}, timeout=LAST_PIECE_PAUSE_S))[0]:
        if connection is None:
            return True
        left = connection.unacknowledged()
        if left is None:  # closed: the word of it is on its way
            return False
        if left <= FIRST_PIECE_BYTES:
            return True
    return False


async def _read(descriptor: int, length: int, offset: int) -> bytes:
    """Return what the file has of the asked bytes; the disk is waited for in another thread."""
    data = _read_from_memory(descriptor, length, offset)
    return await asyncio.to_thread(os.pread, descriptor, length, offset) if data is None else data


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
