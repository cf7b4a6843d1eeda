"""The reader of the vendor's C driver, weaknesses included: for virtual MCUs that are to behave as real ones do.

Source: docs/reference/blynk.md, "Frames", what was observed of Blynk-Technologies/Blynk-NCP-Driver.
"""

from __future__ import annotations

from typing import Final

from flota.protocols.blynk.frames import BEGIN, END, ESCAPE, INVERT, ReaderCounts, crc8

DRIVER_BUFFER_BYTES: Final = 2048
"""The driver's default receive buffer; small AVR builds have 256, Linux and ESP32 4096."""


class DriverFrameReader:
    """Reads bytes as the driver does. Each `feed` is one burst: what the driver finds in its UART at one time.

    A raw BEGIN inside a frame is data, so two frames are lost when an END was. Raw XON and XOFF are data. An empty
    frame makes it swallow the rest of the burst. A frame longer than the buffer, which corrupts the real one's memory,
    ends the reader: `is_corrupted`.
    """

    def __init__(self, buffer_bytes: int = DRIVER_BUFFER_BYTES) -> None:
        self.counts = ReaderCounts()
        self.is_corrupted = False
        self._room = buffer_bytes + 1
        self._inside = False
        self._escaped = False
        self._body = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that the next burst completes, in order."""
        payloads: list[bytes] = []
        for place, byte in enumerate(data):
            if self.is_corrupted:
                break
            if not self._inside:
                self._inside = byte == BEGIN
                self.counts.noise += byte != BEGIN
            elif byte == END:
                if not self._body:  # the driver's count of bytes runs below zero
                    self.counts.noise += len(data) - place - 1
                    self.reset()
                    break
                payload = self._end()
                if payload is not None:
                    payloads.append(payload)
            else:
                self._take(byte)
        return payloads

    def reset(self) -> None:
        """Forget a frame that has begun."""
        self._inside = self._escaped = False
        self._body.clear()

    def _take(self, byte: int) -> None:
        if self._escaped:
            byte, self._escaped = byte ^ INVERT, False
        elif byte == ESCAPE:
            self._escaped = True
            return
        self._body.append(byte)
        if len(self._body) > self._room:
            self.counts.too_long += 1
            self.is_corrupted = True

    def _end(self) -> bytes | None:
        body = bytes(self._body)
        self.reset()
        if len(body) < 2:
            return None
        if crc8(body[:-1]) != body[-1]:
            self.counts.wrong_crc += 1
            return None
        self.counts.frames += 1
        return body[:-1]
