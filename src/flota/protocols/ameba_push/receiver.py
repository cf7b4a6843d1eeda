"""The receiving role, as the Arduino library's `beginOTA` reads the stream, its serial lines and weaknesses included.

Feed it what arrives, tell it of the peer's close and of its time-out, and do what the events say.
Source: docs/reference/ameba-push.md, "The device"; Ameba-AIoT/ameba-arduino-d: OTA.cpp, ard_socket.c.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from flota.images.ameba.ota_file import (
    DEVICE_ID_PREFIX,
    FILE_HEADER_SIZE,
    FILE_INFO_SIZE,
    SUB_HEADER_SIZE,
    OtaSubHeader,
)
from flota.images.ameba.segment import IMAGE2_SIGNATURE
from flota.protocols.malformed import MalformedMessage

RECEIVE_LIMIT_S: Final = 3.0
"""Receive time-out of the accepted socket."""

READ_SIZE: Final = 512
"""What the device reads at once: at most so much of the body, and its header buffer."""

FIRST_HEADER_READ: Final = 16
"""The file header and the first half of the first sub-header."""

SUB_HEADERS_ROOM: Final = 2
SIGNATURE_SIZE: Final = len(IMAGE2_SIGNATURE)

_FILE_INFO: Final = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """The 12 bytes: `checksum` is the sum of the file's bytes, `size` its length (bytes)."""

    checksum: int
    size: int


def parse_file_info(data: bytes) -> FileInfo:
    """Return what the first 12 bytes of a push say. Raises `MalformedMessage` when there are fewer."""
    if len(data) < FILE_INFO_SIZE:
        raise MalformedMessage(
            "the stream ends inside the file information", offset=len(data), expected="12 bytes", found=len(data)
        )
    checksum, _, size = _FILE_INFO.unpack_from(data)
    return FileInfo(checksum, size)


@dataclass(frozen=True, slots=True)
class SerialLine:
    """A line on the serial console."""

    text: str


@dataclass(frozen=True, slots=True)
class EraseTarget:
    """Erase what the image of `length` bytes needs, from the target slot's start, before anything else is read."""

    length: int


@dataclass(frozen=True, slots=True)
class BodyBytes:
    """Program `data` at `offset` bytes from the target slot's start; its first 8 bytes are never written here."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ImageComplete:
    """No more body comes: sum what is in the slot, add the signature's bytes, compare with `checksum`.

    `written` counts body bytes and the 8 of the signature; after an early close it is less than `length`.
    """

    signature: bytes
    length: int
    checksum: int
    written: int


@dataclass(frozen=True, slots=True)
class ReceiverFailed:
    """The update is over; the slot that runs is untouched."""

    reason: str


@dataclass(frozen=True, slots=True)
class UndefinedBehaviour:
    """The headers overrun a buffer of the device: whatever happens now is not in its program."""

    reason: str


ReceiverEvent = SerialLine | EraseTarget | BodyBytes | ImageComplete | ReceiverFailed | UndefinedBehaviour


class _State(enum.Enum):
    INFO = "info"
    HEADER = "header"
    SUB_HEADERS = "sub-headers"
    BODY = "body"
    DONE = "done"


def _line(text: str) -> SerialLine:
    return SerialLine(f"[beginOTA] {text}")


_HEADER_FAILED: Final = _line("[ERROR] Get OTA header failed")


class PushReceiver:
    """One update as the device reads it. After `ImageComplete`, a failure or undefined behaviour nothing more comes."""

    def __init__(self) -> None:
        self._state = _State.INFO
        self._buffer = bytearray()
        self._wanted = FILE_INFO_SIZE
        self._count = 0
        self._first_header = b""
        self._header: OtaSubHeader | None = None
        self._position = 0
        self._signature = bytearray()
        self._body = 0

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be read."""
        return self._state is _State.DONE

    @property
    def _reads_body(self) -> bool:
        return self._state is _State.BODY

    def feed(self, data: bytes) -> Iterator[ReceiverEvent]:
        """Yield what the device does with the next bytes; what comes after the image is ignored."""
        self._buffer += data
        while not self.is_done:
            if self._reads_body:
                if not self._buffer:
                    return
                yield from self._take_body()
                continue
            if len(self._buffer) < self._wanted:
                return
            taken = bytes(self._buffer[: self._wanted])
            del self._buffer[: self._wanted]
            yield from self._take(taken)

    def end_of_stream(self) -> Iterator[ReceiverEvent]:
        """Yield what the device does when the peer has closed: a read of 0 bytes is no error to it."""
        while not self.is_done:
            if self._reads_body:
                yield from self._finish_body(complete=False)
            else:
                short, self._buffer = bytes(self._buffer), bytearray()
                yield from self._take(short.ljust(self._wanted, b"\0"))

    def timed_out(self) -> Iterator[ReceiverEvent]:
        """Yield what the device does after `RECEIVE_LIMIT_S` without a byte."""
        if self._state is _State.DONE:
            return
        state, self._state = self._state, _State.DONE
        if state is _State.INFO:
            yield SerialLine("[recv_file_info_from_server] read socket failed")
            yield _line("[ERROR] Receive firmware file_info failed")
        elif state is _State.BODY:
            yield SerialLine("[download_new_fw_from_server] Read socket failed")
            yield _line("[ERROR] Download new firmware failed")
        else:
            yield _HEADER_FAILED
        yield ReceiverFailed("nothing came for 3 s")

    def _take(self, taken: bytes) -> Iterator[ReceiverEvent]:
        if self._state is _State.INFO:
            yield _line("Receive file_info done")
            self._state, self._wanted = _State.HEADER, FIRST_HEADER_READ
        elif self._state is _State.HEADER:
            yield from self._take_first_header(taken)
        else:
            yield from self._take_sub_headers(taken)

    def _take_first_header(self, taken: bytes) -> Iterator[ReceiverEvent]:
        self._count = int.from_bytes(taken[4:8], "little")
        length = int.from_bytes(taken[12:16], "little")
        total = self._count * length
        shifted = length != SUB_HEADER_SIZE and FILE_HEADER_SIZE + total > READ_SIZE
        if self._count == 0 or length < FILE_HEADER_SIZE or shifted:
            yield from self._fail_header()
            return
        if self._count > SUB_HEADERS_ROOM or FILE_HEADER_SIZE + total > READ_SIZE:
            self._state = _State.DONE
            yield UndefinedBehaviour(f"{self._count} sub-headers of {length} bytes overrun the device's buffer")
            return
        self._position = FILE_HEADER_SIZE + total
        self._state, self._wanted = _State.SUB_HEADERS, total - FILE_HEADER_SIZE
        self._first_header = taken[FILE_HEADER_SIZE:]
        if self._wanted == 0:
            yield from self._take_sub_headers(b"")

    def _take_sub_headers(self, taken: bytes) -> Iterator[ReceiverEvent]:
        yield _line("Receive firmware header done")
        raw = self._first_header + taken
        length = len(raw) // self._count
        if length < SUB_HEADER_SIZE:
            yield from self._fail_header()
            return
        headers = [OtaSubHeader(*struct.unpack_from("<4sIIIII", raw, number * length)) for number in range(self._count)]
        if any(header.image_id[:3] != DEVICE_ID_PREFIX for header in headers):
            yield from self._fail_header()
            return
        if len(headers) > 1:
            self._state = _State.DONE
            yield UndefinedBehaviour("both images go to the same slot, the second over the first")
            return
        self._header = headers[0]
        self._state = _State.BODY
        yield _line("Get OTA header done")
        yield EraseTarget(self._header.length)
        if self._header.length <= SIGNATURE_SIZE:
            yield from self._finish_body(complete=True)

    def _fail_header(self) -> Iterator[ReceiverEvent]:
        self._state = _State.DONE
        yield _HEADER_FAILED
        yield ReceiverFailed("the headers are none of an OTA file")

    def _take_body(self) -> Iterator[ReceiverEvent]:
        """Take at most one read's worth: skip to the image, keep its signature in RAM, write the rest."""
        header = self._header
        assert header is not None
        piece = bytes(self._buffer[:READ_SIZE])
        del self._buffer[: len(piece)]
        skipped = min(len(piece), max(0, header.offset - self._position))
        self._position += len(piece)
        piece = piece[skipped:]
        signature = piece[: SIGNATURE_SIZE - len(self._signature)]
        self._signature += signature
        rest = piece[len(signature) : len(signature) + header.length - SIGNATURE_SIZE - self._body]
        if rest:
            yield BodyBytes(SIGNATURE_SIZE + self._body, rest)
            self._body += len(rest)
        if self._body >= header.length - SIGNATURE_SIZE:
            yield from self._finish_body(complete=True)

    def _finish_body(self, *, complete: bool) -> Iterator[ReceiverEvent]:
        """End the body; after an early close the library says both that it failed and that it is done."""
        header = self._header
        assert header is not None
        self._state = _State.DONE
        written = self._body + len(self._signature)
        if not complete:
            yield _line("download new firmware failed")
        yield ImageComplete(bytes(self._signature), header.length, header.checksum, written)
