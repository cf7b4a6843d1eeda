"""The sending role: what goes out first, and what may honestly be said afterwards.

The device never answers. So a push has stages, not a result: connected, file information sent, all sent, closed by the
device. Even the last proves nothing: a device that found a wrong sum closes as well.
Source: docs/reference/ameba-push.md, "What a push can know".
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import Final

from flota.images.ameba.ota_file import byte_sum, file_info

CHUNK_SIZE: Final = 1024
"""The vendor's sender reads and sends pieces of this size, and prints a dot for each (bytes)."""

CONNECT_LIMIT_S: Final = 10.0
STALL_LIMIT_S: Final = 120.0
"""The device reads nothing while it erases its slot: 250 sectors take 10 s and more; slow flash ten times that."""

DEVICE_PATIENCE_S: Final = 3.0
"""The device gives up after so long without a byte."""

CLOSE_EXPECTED_WITHIN_S: Final = 20.0
"""A device that took the image closes within 3 s or so of the last byte: later is suspicious."""

CLOSE_LIMIT_S: Final = 120.0
"""How long to wait for the device to close; what is still in its buffers has to reach its flash first."""


class PushStage(enum.StrEnum):
    """How far a push came."""

    NOT_CONNECTED = "not-connected"
    CONNECTED = "connected"
    INFO_SENT = "info-sent"
    ALL_SENT = "all-sent"
    CLOSED = "closed"


class PushOutcome(enum.StrEnum):
    """What may be said of a push."""

    DELIVERED = "delivered"
    """Everything was sent and the device closed in good time: it may have taken the image, or found its sum wrong."""
    DOUBTFUL = "doubtful"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PushRecord:
    """What happened. `sent` and `total` in bytes of the file, without the file information.

    `unacknowledged`: bytes that the device's TCP had not acknowledged when it closed, None if the system does not
    tell. `closed_after_s`: from the last byte sent to the device's close.
    """

    stage: PushStage
    sent: int = 0
    total: int = 0
    closed_after_s: float | None = None
    unacknowledged: int | None = None
    reset: bool = False
    trouble: str | None = None
    """What the system said when the link broke."""


@dataclass(frozen=True, slots=True)
class PushVerdict:
    """What to tell: `reason` is one sentence for people."""

    outcome: PushOutcome
    reason: str


@functools.lru_cache(maxsize=2)
def push_stream_start(payload: bytes) -> bytes:
    """Return the 12 bytes that go before `payload`; they are always sent, even if the sum is 0.

    Remembered for the latest payloads: summing one takes 15 ms, and a gateway pushes the same to fifty boards at once,
    none of which may wait for 3 s.
    """
    return file_info(len(payload), byte_sum(payload))


def judge_push(record: PushRecord) -> PushVerdict:
    """Return what the record allows to say; never that the device took the image: this route cannot tell."""
    if record.stage is PushStage.NOT_CONNECTED:
        return PushVerdict(PushOutcome.FAILED, f"nothing listens there: {record.trouble or 'no connection'}")
    if record.stage in {PushStage.CONNECTED, PushStage.INFO_SENT}:
        why = record.trouble or "the device closed early"
        return PushVerdict(PushOutcome.FAILED, f"the link broke after {record.sent} of {record.total} bytes: {why}")
    if record.stage is PushStage.ALL_SENT:
        return PushVerdict(
            PushOutcome.DOUBTFUL, "all was sent, but the device did not close: it may hang, or the link is half open"
        )
    if record.unacknowledged:
        return PushVerdict(
            PushOutcome.FAILED, f"the device closed with {record.unacknowledged} bytes still on their way to it"
        )
    if record.closed_after_s is not None and record.closed_after_s > CLOSE_EXPECTED_WITHIN_S:
        return PushVerdict(
            PushOutcome.DOUBTFUL, f"the device closed only {record.closed_after_s:.0f} s after the last byte"
        )
    return PushVerdict(
        PushOutcome.DELIVERED,
        "all was sent and the device closed; whether it took the image shows only when it comes back",
    )
