"""Frames on the line between a network co-processor (NCP) and the primary MCU: escapes, CRC-8, and how to recover.

    AA  escaped( payload || crc8(payload) )  BB

Nothing answers a damaged frame: whoever waits for it times out. Source: docs/reference/blynk.md, "Frames".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from flota.errors import InvalidInput, TooLarge

BEGIN: Final = 0xAA
END: Final = 0xBB
ESCAPE: Final = 0xCC
XON: Final = 0x11
XOFF: Final = 0x13
INVERT: Final = 0xFF
"""An escaped byte is sent as the escape and then the byte XOR this."""

PAYLOAD_MAX_BYTES: Final = 1536
"""The most that a sender may put into a frame: a longer one overruns the vendor driver's buffer, which has no check."""

RECEIVED_PAYLOAD_MAX_BYTES: Final = 4096
"""The most that our reader takes; the largest buffer that the vendor's driver is built with."""

CRC_POLYNOMIAL: Final = 0x07
_ENCODED_MAX_BYTES: Final = 2 * (RECEIVED_PAYLOAD_MAX_BYTES + 1)
_SHORT: Final = 24
"""Below so many bytes a plain loop over the table is the faster way."""

_TO_ESCAPE: Final = tuple((bytes([byte]), bytes([ESCAPE, byte ^ INVERT])) for byte in (ESCAPE, BEGIN, END, XON, XOFF))
"""The escape itself comes first: the replacements of the others contain it."""
_FLOW_CONTROL: Final = bytes([XON, XOFF])
_DELIMITER: Final = re.compile(rb"[\xaa\xbb]")
_ESCAPED: Final = re.compile(rb"\xcc(.)", re.DOTALL)
_INVERTED: Final = tuple(bytes([byte ^ INVERT]) for byte in range(256))


def _times_x(value: int) -> int:
    return ((value << 1) ^ CRC_POLYNOMIAL) & 0xFF if value & 0x80 else value << 1


def _multiplied(value: int, bits: int) -> int:
    for _ in range(bits):
        value = _times_x(value)
    return value


_CRC_TABLE: Final = bytes(_multiplied(byte, 8) for byte in range(256))
_POWER_PERIOD: Final = 127
"""x to this power is 1 modulo the polynomial, so that there are no more tables than this for any distance."""
assert _multiplied(1, _POWER_PERIOD) == 1


def crc8(data: bytes) -> int:
    """Return the CRC-8 of `data`: polynomial 07, initial value 0, most significant bit first, nothing reflected.

    The CRC is linear, so the first half, multiplied by the power of x that its distance to the second half asks for,
    is added (XOR) to the second half, until little is left: the work is done by `bytes.translate` and big integers.
    """
    while len(data) > _SHORT:
        kept = (len(data) + 1) // 2
        moved = data[: len(data) - kept].translate(_moved_by(8 * kept % _POWER_PERIOD))
        folded = int.from_bytes(moved, "big") ^ int.from_bytes(data[-kept:], "big")
        data = folded.to_bytes(kept, "big")
    crc = 0
    for byte in data:
        crc = _CRC_TABLE[crc ^ byte]
    return crc


@lru_cache(maxsize=_POWER_PERIOD)
def _moved_by(bits: int) -> bytes:
    """Return the table that multiplies a byte by x to the power `bits`."""
    return bytes(_multiplied(byte, bits) for byte in range(256))


def pack_frame(payload: bytes) -> bytes:
    """Return the frame of a payload of 1 to 1536 bytes. Raises `InvalidInput` for none, `TooLarge` for more.

    An empty frame is never sent: it makes the vendor's driver stop reading (docs/reference/blynk.md, "Frames").
    """
    if not payload:
        raise InvalidInput("an empty frame would confuse the peer", expected="1 byte or more")
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise TooLarge("the payload overruns the peer's buffer", expected=PAYLOAD_MAX_BYTES, found=len(payload))
    body = payload + bytes([crc8(payload)])
    for byte, replacement in _TO_ESCAPE:
        body = body.replace(byte, replacement)
    return b"\xaa" + body + b"\xbb"


def unescape(body: bytes) -> bytes | None:
    """Return what lies between the two delimiters, unescaped; None when it ends in the middle of an escape.

    Raw XON and XOFF are dropped: a line driver may have put them in.
    """
    if XON in body or XOFF in body:
        body = body.translate(None, _FLOW_CONTROL)
    if ESCAPE not in body:
        return body
    escapes_at_the_end = len(body) - len(body.rstrip(b"\xcc"))
    if escapes_at_the_end % 2:  # what stands before them is no escape, so they go in pairs
        return None
    return _ESCAPED.sub(lambda found: _INVERTED[found[1][0]], body)


@dataclass(slots=True)
class ReaderCounts:
    """What a reader saw: whole frames, and what it had to drop. `noise` in bytes, the rest in frames."""

    frames: int = 0
    wrong_crc: int = 0
    cut_short: int = 0
    too_long: int = 0
    noise: int = 0


class FrameReader:
    """Takes bytes as they come and gives the payloads of whole frames; never raises, never grows beyond a bound.

    What is outside frames is noise. A raw BEGIN inside a frame starts a new one: the end of the first was lost.
    """

    def __init__(self) -> None:
        self.counts = ReaderCounts()
        self._inside = False
        self._body = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that the next bytes complete, in order; damaged frames are counted and dropped."""
        payloads: list[bytes] = []
        position = 0
        for found in _DELIMITER.finditer(data):
            self._take(data[position : found.start()])
            position = found.end()
            if data[found.start()] == BEGIN:
                self._begin()
            elif self._inside:
                payload = self._end()
                if payload is not None:
                    payloads.append(payload)
        self._take(data[position:])
        return payloads

    def reset(self) -> None:
        """Forget a frame that has begun: the rate of the line changes."""
        self._inside = False
        self._body.clear()

    def _take(self, piece: bytes) -> None:
        if not self._inside:
            self.counts.noise += len(piece)
            return
        self._body += piece
        if len(self._body) > _ENCODED_MAX_BYTES:
            self.counts.too_long += 1
            self.reset()

    def _begin(self) -> None:
        if self._inside:
            self.counts.cut_short += 1
        self._inside = True
        self._body.clear()

    def _end(self) -> bytes | None:
        body = unescape(bytes(self._body))
        self.reset()
        if body is None or len(body) < 2:
            self.counts.cut_short += 1
            return None
        if len(body) > RECEIVED_PAYLOAD_MAX_BYTES + 1:
            self.counts.too_long += 1
            return None
        if crc8(body[:-1]) != body[-1]:
            self.counts.wrong_crc += 1
            return None
        self.counts.frames += 1
        return body[:-1]
