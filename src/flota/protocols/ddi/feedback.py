"""Feedback: what a device says about a deployment or a cancellation."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from flota.protocols.ddi.addresses import ACTION_ID_MAX
from flota.protocols.ddi.attributes import TooManyEntries
from flota.protocols.ddi.reading import as_integer, decode

MESSAGES_MAX_PER_FEEDBACK: Final = 50
"""hawkBit's quota; SWUpdate flushes up to 48 log lines at once."""

_INT32_MIN: Final = -(1 << 31)
_INT32_MAX: Final = (1 << 31) - 1
_TIMESTAMP_MAX_MS: Final = 1 << 53


class FeedbackExecution(enum.StrEnum):
    """Where the device is with the action."""

    CLOSED = "closed"
    PROCEEDING = "proceeding"
    CANCELED = "canceled"
    SCHEDULED = "scheduled"
    REJECTED = "rejected"
    RESUMED = "resumed"
    DOWNLOADED = "downloaded"
    DOWNLOAD = "download"


class FeedbackFinished(enum.StrEnum):
    """How it ended; `none` while it has not."""

    SUCCESS = "success"
    FAILURE = "failure"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Progress:
    """Step `done` of `of` steps, in the device's own count."""

    done: int
    of: int


@dataclass(frozen=True, slots=True)
class Feedback:
    """One report. `action_id` is the legacy member inside the body, None when absent: the path is what counts.

    `details` are the device's own lines, not cleaned yet; `code` is a status code of the device's own.
    """

    execution: FeedbackExecution
    finished: FeedbackFinished
    action_id: int | None = None
    details: tuple[str, ...] = ()
    code: int | None = None
    progress: Progress | None = None
    timestamp_ms: int | None = None


def pack_feedback(feedback: Feedback) -> bytes:
    """Return the compact JSON of a feedback."""
    result: dict[str, object] = {"finished": feedback.finished.value}
    if feedback.progress is not None:
        result["progress"] = {"cnt": feedback.progress.done, "of": feedback.progress.of}
    status: dict[str, object] = {"execution": feedback.execution.value, "result": result}
    if feedback.code is not None:
        status["code"] = feedback.code
    status["details"] = list(feedback.details)
    message: dict[str, object] = {}
    if feedback.action_id is not None:
        message["id"] = str(feedback.action_id)
    if feedback.timestamp_ms is not None:
        message["timestamp"] = feedback.timestamp_ms
    message["status"] = status
    return msgspec.json.encode(message)


class _Result(msgspec.Struct):
    finished: FeedbackFinished
    progress: Any = None


class _Status(msgspec.Struct):
    execution: FeedbackExecution
    result: _Result
    code: Any = None
    details: list[str] | None = None


class _Message(msgspec.Struct):
    status: _Status
    id: Any = None
    timestamp: Any = None


_DECODER = msgspec.json.Decoder(_Message)


def parse_feedback(body: bytes, *, cbor: bool = False) -> Feedback:
    """Return what a device reports. Unknown members are ignored; `id`, `progress` and `code` are read leniently.

    `id` and the numbers of `progress` may be numbers or strings: SWUpdate and rauc-hawkbit differ.
    Raises `MalformedMessage` without `status`, `execution`, `result` or `finished`, or with unknown values in them, and
    `TooManyEntries` above 50 details.
    """
    message = decode(_DECODER, body, "feedback", cbor=cbor)
    status = message.status
    details = checked_details(status.details)
    return Feedback(
        execution=status.execution,
        finished=status.result.finished,
        action_id=as_integer(message.id, minimum=1, maximum=ACTION_ID_MAX),
        details=details,
        code=as_integer(status.code, minimum=_INT32_MIN, maximum=_INT32_MAX),
        progress=_progress(status.result.progress),
        timestamp_ms=as_integer(message.timestamp, minimum=0, maximum=_TIMESTAMP_MAX_MS),
    )


def checked_details(details: Sequence[str] | None) -> tuple[str, ...]:
    """Return the lines of one report. Raises `TooManyEntries` above 50."""
    lines = tuple(details or ())
    if len(lines) > MESSAGES_MAX_PER_FEEDBACK:
        raise TooManyEntries("details", limit=MESSAGES_MAX_PER_FEEDBACK, found=len(lines))
    return lines


def _progress(value: object) -> Progress | None:
    if not isinstance(value, dict):
        return None
    done = as_integer(value.get("cnt"), minimum=0, maximum=_INT32_MAX)
    of = as_integer(value.get("of"), minimum=0, maximum=_INT32_MAX)
    return None if done is None or of is None else Progress(done, of)
