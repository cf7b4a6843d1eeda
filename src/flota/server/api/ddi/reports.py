"""What hawkBit's feedback means for an execution: the one table of this dialect, for each of its two channels.

Source: docs/reference/hawkbit-ddi.md, "Feedback".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flota.fleet.executions import Basis, Execution, ExecutionChange, ExecutionState
from flota.fleet.update_rules import Showing, Window
from flota.protocols.ddi import (
    Confirmation,
    ConfirmationFeedback,
    Feedback,
    FeedbackExecution,
    FeedbackFinished,
    TooManyEntries,
    is_inferred,
)
from flota.protocols.peer_text import clean_text
from flota.server.updates import (
    CANCEL_DETAIL,
    CANCEL_REJECTED,
    CONFIRM_DETAIL,
    CONFIRMED,
    DENIED,
    ONLY_DOWNLOADED_DETAIL,
)

STATUS_ENTRIES_MAX: Final = 1000
"""hawkBit's quota of status entries per action; final ones are exempt."""

OWN_MESSAGE: Final = "Update Server: "
"""Begins messages of the server's own; a device does not get them back in the action history."""

RETRIEVED: Final = ExecutionChange(
    state=ExecutionState.IN_PROGRESS,
    details={"ddi-status": "RETRIEVED"},
    message=OWN_MESSAGE + "Target retrieved update action and should start now the download.",
)

LINE_MAX_LEN: Final = 256
MESSAGE_MAX_LEN: Final = 2000
"""Characters kept of one line, and of all lines of one feedback: a device's log is not the server's."""

LINE_SEPARATOR: Final = " | "


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one kind of feedback makes of an execution. `status` is hawkBit's name for where the action is then."""

    state: ExecutionState
    status: str
    cancel_rejected: bool = False
    only_downloaded: bool = False


_E, _F, _S = FeedbackExecution, FeedbackFinished, ExecutionState


def _whatever_result(
    execution: FeedbackExecution, meaning: Meaning
) -> dict[tuple[FeedbackExecution, FeedbackFinished], Meaning]:
    return {(execution, finished): meaning for finished in FeedbackFinished}


DEPLOYMENT_FEEDBACK: Final[Mapping[tuple[FeedbackExecution, FeedbackFinished], Meaning]] = {
    (_E.CLOSED, _F.SUCCESS): Meaning(_S.SUCCEEDED, "FINISHED"),
    (_E.CLOSED, _F.NONE): Meaning(_S.SUCCEEDED, "FINISHED"),
    (_E.CLOSED, _F.FAILURE): Meaning(_S.FAILED, "ERROR"),
    **_whatever_result(_E.PROCEEDING, Meaning(_S.IN_PROGRESS, "RUNNING")),
    **_whatever_result(_E.SCHEDULED, Meaning(_S.IN_PROGRESS, "RUNNING")),
    **_whatever_result(_E.RESUMED, Meaning(_S.IN_PROGRESS, "RUNNING")),
    **_whatever_result(_E.DOWNLOAD, Meaning(_S.IN_PROGRESS, "DOWNLOAD")),
    **_whatever_result(_E.DOWNLOADED, Meaning(_S.IN_PROGRESS, "DOWNLOADED")),
    **_whatever_result(_E.REJECTED, Meaning(_S.IN_PROGRESS, "WARNING")),
    **_whatever_result(_E.CANCELED, Meaning(_S.IN_PROGRESS, "CANCELED")),
}
"""Feedback about a deployment. `downloaded` is never success; `rejected` and `canceled` are recorded, nothing more."""

DOWNLOAD_ONLY_FEEDBACK: Final[Mapping[tuple[FeedbackExecution, FeedbackFinished], Meaning]] = {
    **DEPLOYMENT_FEEDBACK,
    **_whatever_result(_E.DOWNLOADED, Meaning(_S.SUCCEEDED, "DOWNLOADED", only_downloaded=True)),
}
"""Feedback about a deployment that asks for a download and no more: there, and only there, downloaded is success."""

SKIPPED_FEEDBACK: Final[Mapping[tuple[FeedbackExecution, FeedbackFinished], Meaning]] = {
    **DEPLOYMENT_FEEDBACK,
    (_E.CLOSED, _F.SUCCESS): Meaning(_S.IN_PROGRESS, "WARNING"),
    (_E.CLOSED, _F.NONE): Meaning(_S.IN_PROGRESS, "WARNING"),
}
"""Feedback of a client that closes what it was told not to install yet: it has installed nothing, so nothing ends."""

SKIP_NOTICE: Final = "skipped update"
"""What SWUpdate writes when it is told `"update":"skip"`: it then reports closed and success at once."""

WAIT_FOR_CONFIRMATION: Final = "WAIT_FOR_CONFIRMATION"


def is_skip_notice(feedback: Feedback, showing: Showing) -> bool:
    """Whether a device says no more than that it does not install now, as it was told."""
    if showing.window is not Window.CLOSED or feedback.execution is not _E.CLOSED:
        return False
    return any(SKIP_NOTICE in line.lower() for line in feedback.details)


CANCEL_FEEDBACK: Final[Mapping[tuple[FeedbackExecution, FeedbackFinished], Meaning]] = {
    (_E.CLOSED, _F.SUCCESS): Meaning(_S.CANCELED, "CANCELED"),
    (_E.CLOSED, _F.NONE): Meaning(_S.CANCELED, "CANCELED"),
    (_E.CLOSED, _F.FAILURE): Meaning(_S.IN_PROGRESS, "RUNNING", cancel_rejected=True),
    **_whatever_result(_E.REJECTED, Meaning(_S.IN_PROGRESS, "CANCEL_REJECTED", cancel_rejected=True)),
    **_whatever_result(_E.CANCELED, Meaning(_S.IN_PROGRESS, "WARNING")),
    **_whatever_result(_E.PROCEEDING, Meaning(_S.IN_PROGRESS, "RUNNING")),
    **_whatever_result(_E.SCHEDULED, Meaning(_S.IN_PROGRESS, "RUNNING")),
    **_whatever_result(_E.RESUMED, Meaning(_S.IN_PROGRESS, "RUNNING")),
    **_whatever_result(_E.DOWNLOAD, Meaning(_S.IN_PROGRESS, "RUNNING")),
    **_whatever_result(_E.DOWNLOADED, Meaning(_S.IN_PROGRESS, "RUNNING")),
}
"""Feedback about a cancellation: what is rejected goes on as a deployment, the rest is still canceling."""

_DEFAULT_MESSAGES: Final[Mapping[str, str]] = {
    "FINISHED": "Target reported CLOSED with OK!",
    "ERROR": "Target reported CLOSED with ERROR!",
    "RUNNING": "Target reported that it is working on it.",
    "DOWNLOAD": "Target started the download.",
    "DOWNLOADED": "Target downloaded all artifacts.",
    "WARNING": "Target reported REJECTED.",
    "CANCELED": "Target reported CANCELED.",
    "CANCEL_REJECTED": "Target rejected the cancellation.",
}

_STATUS_OF_STATE: Final[Mapping[ExecutionState, str]] = {
    _S.QUEUED: "SCHEDULED",
    _S.IN_PROGRESS: "RUNNING",
    _S.SUCCEEDED: "FINISHED",
    _S.FAILED: "ERROR",
    _S.TIMED_OUT: "ERROR",
    _S.REJECTED: "ERROR",
    _S.REMOVED: "CANCELED",
    _S.CANCELED: "CANCELED",
}


def change_of(
    execution: Execution,
    feedback: Feedback,
    table: Mapping[tuple[FeedbackExecution, FeedbackFinished], Meaning],
) -> ExecutionChange:
    """Return what to write for a feedback, its text cleaned.

    Raises `TooManyEntries` when the execution has 1000 entries and this would not end it.
    """
    meaning = table[feedback.execution, feedback.finished]
    is_final = meaning.state is not ExecutionState.IN_PROGRESS
    if not is_final:
        _take_entry(execution)
    lines = _clean_lines(feedback.details)
    details: dict[str, str | None] = {"ddi-status": meaning.status}
    if feedback.code is not None:
        details["ddi-code"] = str(feedback.code)
        lines.append(f"Device reported status code: {feedback.code}")
    if feedback.progress is not None:
        details["progress"] = f"{feedback.progress.done}/{feedback.progress.of}"
    if meaning.cancel_rejected:
        details[CANCEL_DETAIL] = CANCEL_REJECTED
    if meaning.only_downloaded:
        details[ONLY_DOWNLOADED_DETAIL] = "yes"
    if meaning.state is ExecutionState.FAILED:
        details["reason"] = lines[0] if lines else "the device reported a failure without details"
    message = LINE_SEPARATOR.join(lines) or OWN_MESSAGE + _DEFAULT_MESSAGES[meaning.status]
    return ExecutionChange(
        state=meaning.state,
        details=details,
        basis=_basis_of(meaning, lines) if is_final else None,
        message=clean_text(message, max_len=MESSAGE_MAX_LEN),
    )


def _basis_of(meaning: Meaning, lines: Sequence[str]) -> Basis:
    """Return how an outcome is known: a gateway says so when it has concluded a success from a sign of life."""
    concluded = meaning.state is ExecutionState.SUCCEEDED and is_inferred(lines)
    return Basis.INFERRED if concluded else Basis.REPORTED


def answer_change(execution: Execution, answer: ConfirmationFeedback) -> ExecutionChange:
    """Return what to write for a device's answer to the question whether it agrees. Raises `TooManyEntries`."""
    _take_entry(execution)
    agrees = answer.confirmation is Confirmation.CONFIRMED
    lines = _clean_lines(answer.details)
    details: dict[str, str | None] = {
        CONFIRM_DETAIL: CONFIRMED if agrees else DENIED,
        "ddi-status": "RUNNING" if agrees else WAIT_FOR_CONFIRMATION,
    }
    if answer.code is not None:
        details["ddi-code"] = str(answer.code)
        lines.append(f"Device reported status code: {answer.code}")
    said = "Target confirmed action." if agrees else "Target rejected to confirm the action."
    message = LINE_SEPARATOR.join(lines) or OWN_MESSAGE + said
    return ExecutionChange(
        state=ExecutionState.IN_PROGRESS, details=details, message=clean_text(message, max_len=MESSAGE_MAX_LEN)
    )


def _take_entry(execution: Execution) -> None:
    if execution.version >= STATUS_ENTRIES_MAX:
        raise TooManyEntries("status entries", limit=STATUS_ENTRIES_MAX, found=execution.version)


def _clean_lines(details: Sequence[str]) -> list[str]:
    return [line for text in details if (line := clean_text(text, max_len=LINE_MAX_LEN))]


def action_status(execution: Execution) -> str:
    """Return hawkBit's name for where an action is."""
    if execution.is_open:
        return execution.details.get("ddi-status") or _STATUS_OF_STATE[execution.state]
    return _STATUS_OF_STATE[execution.state]
