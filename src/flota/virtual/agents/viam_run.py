"""One run of micro-RDK's update service, as decisions: no IO, no clock.

The shell connects, asks, erases and writes as the answers of `UpdateRun` say; every way in which a run can end is a
`Refusal` with its reason, and a run that ended well is followed by verification, boot choice and tag.
Source: docs/reference/viam.md; viamrobotics/micro-rdk:micro-rdk/src/common/ota.rs.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from flota.protocols.viam import (
    CONNECT_RETRY_PAUSE_S,
    IMAGE_MIN_BYTES,
    DownloadAddress,
    Failure,
    Proceed,
    Redirect,
    Refusal,
    judge_response,
    may_try_again,
    parse_download_url,
)


@dataclass(frozen=True, slots=True)
class Connect:
    """Open connection number `attempt` to `address`, after `pause_s` seconds."""

    address: DownloadAddress
    attempt: int
    pause_s: float = 0.0


class FrameUse(enum.Enum):
    """What is done with the data of one DATA frame. Reading the header copies texts and checks nothing."""

    WRITE = "write"
    READ_HEADER_AND_WRITE = "read the image's header, then write"


class UpdateRun:
    """The decisions of one run: up to five connections, redirects among them, then one body.

    `slot_size` is the size in bytes of the partition that is written. Raises `UnusableUrl` for an URL that no
    connection can be made to.
    """

    def __init__(self, url: str, *, slot_size: int) -> None:
        self._address = parse_download_url(url)
        self._slot_size = slot_size
        self._attempts = 0
        self._header_was_read = False
        self.content_length = 0
        self.received = 0

    def first_connection(self) -> Connect:
        """Return the first connection to make."""
        self._attempts = 1
        return Connect(self._address, self._attempts)

    def connection_failed(self, reason: str) -> Connect | Refusal:
        """Return the next try, a second later, or the end of the run."""
        return self._connect_again(CONNECT_RETRY_PAUSE_S, Failure.CONNECTION, reason)

    def answered(self, status: int, headers: Iterable[tuple[str, str]]) -> Connect | Proceed | Refusal:
        """Return what follows the head of an answer: the body, another connection at once, or the end of the run."""
        reading = judge_response(status, headers, slot_size=self._slot_size)
        if isinstance(reading, Redirect):
            self._address = reading.address
            return self._connect_again(0.0, Failure.TOO_MANY_ATTEMPTS, reading.address.authority)
        if isinstance(reading, Proceed):
            self.content_length = reading.content_length
        return reading

    def frame(self, length: int) -> FrameUse | Refusal:
        """Return what to do with the next DATA frame, of `length` bytes.

        The header is taken from the frame with which 288 bytes are complete, whatever came before it; when that frame
        alone is shorter, it cannot be read. Only the slot's size limits what is written: a body longer than announced
        is found out at its end.
        """
        before = self.received
        self.received += length
        if self.received > self._slot_size:
            return Refusal(Failure.OVERFLOW, f"{self.received} of {self._slot_size} bytes")
        if self._header_was_read or self.received < IMAGE_MIN_BYTES:
            return FrameUse.WRITE
        self._header_was_read = True
        if length < IMAGE_MIN_BYTES:
            text = f"a frame of {length} bytes after {before}"
            return Refusal(Failure.WRITE, f"no header of {IMAGE_MIN_BYTES} bytes in {text}")
        return FrameUse.READ_HEADER_AND_WRITE

    def ended(self) -> Refusal | None:
        """Return why the body that has ended is wrong; None if verification comes next."""
        if self.received == self.content_length:
            return None
        failure = Failure.CUT if self.received < self.content_length else Failure.OVERFLOW
        return Refusal(failure, f"{self.received} of {self.content_length} bytes")

    def _connect_again(self, pause_s: float, at_the_end: Failure, found: str) -> Connect | Refusal:
        if not may_try_again(self._attempts):
            return Refusal(at_the_end, found)
        self._attempts += 1
        return Connect(self._address, self._attempts, pause_s)
