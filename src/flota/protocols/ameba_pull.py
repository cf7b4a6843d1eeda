"""The pulling role: how `http_update_ota` reads an answer and what the AT console takes for an order to update. No IO.

It differs from a push in the order of things: nothing is erased beforehand, each sector is erased just before its first
byte is written; the headers of the file are its first 32 bytes; the end of the stream before the end of the image is a
failure.
Source: docs/reference/ameba-push.md, "Pulling over HTTP", "Pulling by TCP"; ambiot/ambd_sdk: rtl8721d_ota.c
(`http_update_ota`), atcmd_wifi.c.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from flota.images.ameba.ota_file import DEVICE_ID_PREFIX, FILE_HEADER_SIZE, OtaSubHeader
from flota.images.ameba.segment import SECTOR_SIZE
from flota.protocols.ameba_http import FIRST_READ_BYTES, OTA_HEADER_BYTES, parse_pull_answer
from flota.protocols.ameba_push.receiver import (
    SIGNATURE_SIZE,
    BodyBytes,
    ImageComplete,
    ReceiverEvent,
    ReceiverFailed,
    SerialLine,
)
from flota.protocols.malformed import MalformedMessage

CONSOLE_LINE_MAX_LEN: Final = 256


@dataclass(frozen=True, slots=True)
class EraseSector:
    """Erase the sector that begins at `offset` bytes from the target slot's start."""

    offset: int


PullEvent = ReceiverEvent | EraseSector


class _State(enum.Enum):
    ANSWER = "answer"
    HEADERS = "headers"
    BODY = "body"
    DONE = "done"


class PullReceiver:
    """One answer as the device reads it. After `ImageComplete` or a failure nothing more comes.

    Feed it what each read of at most 512 bytes brought, and tell it when a read brought nothing.
    """

    def __init__(self) -> None:
        self._state = _State.ANSWER
        self._buffer = bytearray()
        self._header: OtaSubHeader | None = None
        self._signature = b""
        self._body = 0
        self._erased = 0

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be read."""
        return self._state is _State.DONE

    def feed(self, data: bytes) -> Iterator[PullEvent]:
        """Yield what the device does with the next bytes; what comes after the image is not read."""
        self._buffer += data
        if self._state is _State.ANSWER:
            yield from self._take_answer()
        if self._state is _State.HEADERS and len(self._buffer) >= OTA_HEADER_BYTES:
            yield from self._take_headers()
        if self._state is _State.BODY:
            yield from self._take_body()

    def end_of_stream(self) -> Iterator[PullEvent]:
        """Yield what the device does when a read brings nothing: a close, or an error of the link."""
        if self._state is not _State.DONE:
            yield from self._fail("the server closed before the end of the image")

    def _take_answer(self) -> Iterator[PullEvent]:
        complete = b"\r\n\r\n" in self._buffer
        if not complete and len(self._buffer) < FIRST_READ_BYTES and _status_may_be_good(self._buffer):
            return
        try:
            _, start = parse_pull_answer(bytes(self._buffer))
        except MalformedMessage as error:
            yield from self._fail(str(error))
            return
        del self._buffer[:start]
        self._state = _State.HEADERS

    def _take_headers(self) -> Iterator[PullEvent]:
        raw = bytes(self._buffer[:OTA_HEADER_BYTES])
        del self._buffer[:OTA_HEADER_BYTES]
        (count,) = struct.unpack_from("<I", raw, 4)
        header = OtaSubHeader(*struct.unpack_from("<4sIIIII", raw, FILE_HEADER_SIZE))
        if count != 1 or header.image_id[:3] != DEVICE_ID_PREFIX:
            yield SerialLine("[beginOTA] [ERROR] Get OTA header failed")
            yield from self._fail("the headers are none of an OTA file with one image")
            return
        self._header = header
        self._state = _State.BODY
        if header.length <= SIGNATURE_SIZE:
            yield from self._complete(header)

    def _take_body(self) -> Iterator[PullEvent]:
        """Keep the signature in RAM, write the rest, no piece over the end of a sector."""
        header = self._header
        assert header is not None
        missing = SIGNATURE_SIZE - len(self._signature)
        self._signature += bytes(self._buffer[:missing])
        del self._buffer[:missing]
        if len(self._signature) < SIGNATURE_SIZE:
            return
        left = header.length - SIGNATURE_SIZE - self._body
        data = bytes(self._buffer[:left])
        self._buffer.clear()
        while data:
            offset = SIGNATURE_SIZE + self._body
            if offset >= self._erased:
                yield EraseSector(self._erased)
                self._erased += SECTOR_SIZE
            piece, data = data[: self._erased - offset], data[self._erased - offset :]
            yield BodyBytes(offset, piece)
            self._body += len(piece)
        if self._body >= header.length - SIGNATURE_SIZE:
            yield from self._complete(header)

    def _complete(self, header: OtaSubHeader) -> Iterator[PullEvent]:
        self._state = _State.DONE
        written = self._body + len(self._signature)
        yield ImageComplete(self._signature, header.length, header.checksum, written)

    def _fail(self, reason: str) -> Iterator[PullEvent]:
        self._state = _State.DONE
        yield ReceiverFailed(reason)


def _status_may_be_good(start: bytes | bytearray) -> bool:
    """Say whether the first read holds a status line that the device goes on with; it looks at no other read for it."""
    words = bytes(start).split(b" ", 2)
    return len(words) == 3 and words[1] == b"200" and b"\r\n" in start


class ConsoleCommand(enum.StrEnum):
    """How the order to update from a computer is written on the serial console."""

    ATWO = "ATWO"
    ATSO = "ATSO"
    """AT version 2; the only one that is answered."""
    UPDATE = "update"
    """`wifi_update IP PORT` and `update IP PORT` of the interactive console."""


@dataclass(frozen=True, slots=True)
class UpdateOrder:
    """An order to connect to `host`, TCP `port`, and take an update from there."""

    command: ConsoleCommand
    host: str
    port: int


_ORDERS: Final = (
    (ConsoleCommand.ATWO, re.compile(r"ATWO=([^\[\],\s]+)(?:\[(\d{1,5})\]|,(\d{1,5}))\Z", re.ASCII)),
    (ConsoleCommand.ATSO, re.compile(r"ATSO=([^\[\],\s]+),(\d{1,5})\Z", re.ASCII)),
    (ConsoleCommand.UPDATE, re.compile(r"(?:wifi_)?update\s+(\S+)\s+(\d{1,5})\Z", re.ASCII)),
)


def parse_update_order(line: str) -> UpdateOrder:
    """Return what a line of the console orders. Raises `MalformedMessage` for any other line."""
    text = line[:CONSOLE_LINE_MAX_LEN].strip()
    for command, pattern in _ORDERS:
        found = pattern.match(text)
        if found is None:
            continue
        host, *ports = (group for group in found.groups() if group is not None)
        if 0 < int(ports[0]) < 65536:
            return UpdateOrder(command, host, int(ports[0]))
    raise MalformedMessage("no order to update", expected="ATWO=IP[PORT] or ATSO=IP,PORT", found=ascii(text[:60]))
