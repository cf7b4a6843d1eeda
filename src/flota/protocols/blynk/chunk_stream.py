"""The bytes of one image on their way to the MCU: which are wanted, which were sent under which number, their CRC-32.

Source: docs/reference/blynk.md, "What the NCP does" and "Lost answers".
"""

from __future__ import annotations

import zlib
from typing import Final

from flota.protocols.blynk.catalogue import OTA_WRITE
from flota.protocols.blynk.chunk_window import ChunkWindow
from flota.protocols.blynk.messages import Status
from flota.protocols.blynk.ncp_job import NeedBytes
from flota.protocols.blynk.rpc import Answered, CallFailed, RpcEndpoint

REMEMBERED_WRITES: Final = 64
"""Calls whose offsets are remembered, for answers that come late."""
_UNKNOWN_OUTCOMES: Final = frozenset({Status.TIMEOUT, Status.RESULT_NOT_READ})
"""Nobody knows whether the chunk was stored."""


class ChunkStream:
    """One stream, from the first byte; another start of the MCU makes another one. Sizes in bytes, times in seconds."""

    def __init__(self, size: int, chunk: int) -> None:
        self.window = ChunkWindow(size, chunk)
        self.waits_since: float | None = None
        """Since when bytes are awaited, None while none are."""
        self._wanted: tuple[int, int] | None = None
        self._ready: tuple[int, bytes] | None = None
        self._sent: dict[int, int] = {}
        self._crc = 0
        self._crc_to = 0

    @property
    def crc32(self) -> int | None:
        """The CRC-32 of the image, once all of it went by."""
        return self._crc if self._crc_to == self.window.size else None

    def supply(self, offset: int, data: bytes) -> bool:
        """Take the bytes that were asked for; returns whether it was these."""
        if self._wanted != (offset, len(data)):
            return False
        self._wanted = self.waits_since = None
        self._ready = (offset, data)
        if offset <= self._crc_to < offset + len(data):
            self._crc = zlib.crc32(data[self._crc_to - offset :], self._crc)
            self._crc_to = offset + len(data)
        return True

    def send(self, rpc: RpcEndpoint, *, now: float) -> NeedBytes | None:
        """Send the next chunk if its bytes are here; else return what is needed, once."""
        offset, length = self.window.piece()
        if self._ready is None or self._ready[0] != offset:
            if self._wanted == (offset, length):
                return None
            self._wanted, self.waits_since = (offset, length), now
            return NeedBytes(offset, length)
        data = self._ready[1]
        self._sent[rpc.call(OTA_WRITE, offset, data, zlib.crc32(data), now=now)] = offset
        if len(self._sent) > REMEMBERED_WRITES:
            del self._sent[next(iter(self._sent))]
        return None

    def write_ended(self, event: Answered | CallFailed) -> bool:
        """Take the end of a write; returns whether more is known to be stored. Late falses say nothing."""
        offset, before = self._sent.get(event.msgid), self.window.stored
        if offset is None:
            return False
        if isinstance(event, Answered) and event.values[0]:
            self.window.acknowledged(offset)
        elif not event.is_late and offset >= before:  # else a late answer has said already that it is stored
            if isinstance(event, CallFailed) and event.status in _UNKNOWN_OUTCOMES:
                self.window.timed_out()
            else:
                self.window.refused()
        return self.window.stored != before
