"""What both kinds of primary MCU do with their flash: two copies of a record, and an image that comes in a stream.

Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from flota.errors import InvalidInput
from flota.images.blynk_tag import find_tags
from flota.images.markers import find_markers
from flota.protocols.blynk.ncp_job import FirmwareInfo
from flota.virtual.flash import FlashOperation, FlashOperationKind, NorFlash
from flota.virtual.pace import SECTOR_ERASE_S, program_time_s

RECORD_ADDRESSES: Final = (0xE000, 0xF000)
"""The last two sectors of the boot loader's 64 KiB."""


class Numbered(Protocol):
    """A record that has a number."""

    @property
    def number(self) -> int:
        """The higher one counts."""


RecordT = TypeVar("RecordT", bound=Numbered)


def newest_record(
    flash: NorFlash, size: int, parse: Callable[[bytes], RecordT | None]
) -> tuple[int | None, RecordT | None]:
    """Return the sector address and the record that counts; (None, None) if there is none that is whole."""
    records = [(address, parse(flash.read(address, size))) for address in RECORD_ADDRESSES]
    found = [(record.number, address, record) for address, record in records if record is not None]
    if not found:
        return None, None
    _, address, record = max(found, key=lambda each: each[:2])
    return address, record


def write_record(flash: NorFlash, current: int | None, data: bytes) -> None:
    """Write a record into the sector that does not hold the `current` one; until it stands, that one counts."""
    place = RECORD_ADDRESSES[1] if current == RECORD_ADDRESSES[0] else RECORD_ADDRESSES[0]
    flash.erase_sector(place)
    flash.program(place, data)


class FlashTime:
    """Adds up the device time (seconds, unscaled) that erases and programs take, for a firmware that waits for them."""

    def __init__(self) -> None:
        self._spent_s = 0.0

    def __call__(self, operation: FlashOperation) -> None:
        """Count an operation; the flash's listener."""
        erase = operation.kind is FlashOperationKind.ERASE
        self._spent_s += SECTOR_ERASE_S if erase else program_time_s(operation.length)

    def take(self) -> float:
        """Return what was spent since the last time."""
        spent, self._spent_s = self._spent_s, 0.0
        return spent


class StreamWriter:
    """An image of `size` bytes that comes in order, in pieces of any length, into the region at `start`.

    Each sector is erased when the stream reaches it, unless `erase_all` was called before. What is less than a write
    unit waits in memory for the next piece.
    """

    def __init__(self, flash: NorFlash, start: int, size: int) -> None:
        self._flash = flash
        self._start = start
        self.size = size
        self.received = 0
        self._tail = b""
        self._programmed = 0
        self._erased_to = 0

    def erase_all(self) -> None:
        """Erase all that the image needs."""
        sector = self._flash.sector_size
        self._erased_to = -(-self.size // sector) * sector
        self._flash.erase(self._start, self._erased_to)

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises `InvalidInput` behind the end."""
        if self.received + len(data) > self.size:
            raise InvalidInput("more bytes than the image has", expected=self.size, found=self.received + len(data))
        self.received += len(data)
        ready = self._tail + data
        unit = self._flash.write_alignment
        if self.received == self.size:
            ready += b"\xff" * (-len(ready) % unit)
        usable = len(ready) // unit * unit
        self._tail = ready[usable:]
        self._program(ready[:usable])

    def _program(self, data: bytes) -> None:
        sector = self._flash.sector_size
        while data:
            if self._programmed == self._erased_to:
                self._flash.erase_sector(self._start + self._erased_to)
                self._erased_to += sector
            room = sector - self._programmed % sector
            piece, data = data[:room], data[room:]
            self._flash.program(self._start + self._programmed, piece)
            self._programmed += len(piece)

    def content(self) -> bytes:
        """Return what stands in the flash."""
        return self._flash.read(self._start, self.size)


def firmware_info_of(image: bytes, version: str | None = None) -> FirmwareInfo:
    """Return what firmware reports of itself: the values of its tag; without one `version`, and nothing else."""
    tags = find_tags(image)
    if tags:
        tag = tags[0].tag
        return FirmwareInfo(tag.fw_type or "", tag.version or "", tag.build or "", tag.library or "")
    return FirmwareInfo(version=version or find_markers(image).get("version", ""))


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def md5_of(data: bytes) -> bytes:
    """Return the raw MD5."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def crc32_of(data: bytes) -> int:
    """Return the CRC-32 of zlib."""
    return zlib.crc32(data)
