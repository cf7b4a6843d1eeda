"""States and events of the C agent, and its transition table.

A transition happens only if its action succeeds; an event without a row is dropped. Rows for any state come last.

Source: docs/reference/aws-iot.md, "What the virtual agent mirrors"; aws/ota-for-aws-iot-embedded-sdk:source/ota.c
(`otaTransitionTable`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class AgentState(enum.StrEnum):
    """Where the agent is; the C agent's names."""

    INIT = "Init"
    READY = "Ready"
    REQUESTING_JOB = "RequestingJob"
    WAITING_FOR_JOB = "WaitingForJob"
    CREATING_FILE = "CreatingFile"
    REQUESTING_FILE_BLOCK = "RequestingFileBlock"
    WAITING_FOR_FILE_BLOCK = "WaitingForFileBlock"
    CLOSING_FILE = "ClosingFile"
    SUSPENDED = "Suspended"
    SHUTTING_DOWN = "ShuttingDown"
    STOPPED = "Stopped"


class AgentEvent(enum.StrEnum):
    """What the agent's queue holds; the C agent's names."""

    START = "Start"
    START_SELF_TEST = "StartSelfTest"
    REQUEST_JOB_DOCUMENT = "RequestJobDocument"
    RECEIVED_JOB_DOCUMENT = "ReceivedJobDocument"
    CREATE_FILE = "CreateFile"
    REQUEST_FILE_BLOCK = "RequestFileBlock"
    RECEIVED_FILE_BLOCK = "ReceivedFileBlock"
    REQUEST_TIMER = "RequestTimer"
    CLOSE_FILE = "CloseFile"
    SUSPEND = "Suspend"
    RESUME = "Resume"
    USER_ABORT = "UserAbort"
    SHUTDOWN = "Shutdown"


class Action(enum.StrEnum):
    """What a transition does."""

    START = "start"
    REQUEST_JOB = "request the job"
    PROCESS_JOB = "process the job"
    SELF_TEST = "self-test"
    INIT_FILE = "begin the transfer"
    REQUEST_DATA = "request blocks"
    PROCESS_DATA = "take a block"
    JOB_NOTIFICATION = "give way to another job"
    CLOSE_FILE = "close the file"
    SUSPEND = "suspend"
    RESUME = "resume"
    USER_ABORT = "abort"
    SHUTDOWN = "shut down"


@dataclass(frozen=True, slots=True)
class Transition:
    """What an event leads to."""

    action: Action
    next_state: AgentState


_S = AgentState
_E = AgentEvent
_A = Action

TRANSITIONS: Final[dict[tuple[AgentState, AgentEvent], Transition]] = {
    (_S.READY, _E.START): Transition(_A.START, _S.REQUESTING_JOB),
    (_S.REQUESTING_JOB, _E.REQUEST_JOB_DOCUMENT): Transition(_A.REQUEST_JOB, _S.WAITING_FOR_JOB),
    (_S.REQUESTING_JOB, _E.REQUEST_TIMER): Transition(_A.REQUEST_JOB, _S.WAITING_FOR_JOB),
    (_S.WAITING_FOR_JOB, _E.RECEIVED_JOB_DOCUMENT): Transition(_A.PROCESS_JOB, _S.CREATING_FILE),
    (_S.CREATING_FILE, _E.START_SELF_TEST): Transition(_A.SELF_TEST, _S.WAITING_FOR_JOB),
    (_S.CREATING_FILE, _E.CREATE_FILE): Transition(_A.INIT_FILE, _S.REQUESTING_FILE_BLOCK),
    (_S.CREATING_FILE, _E.REQUEST_TIMER): Transition(_A.INIT_FILE, _S.REQUESTING_FILE_BLOCK),
    (_S.REQUESTING_FILE_BLOCK, _E.REQUEST_FILE_BLOCK): Transition(_A.REQUEST_DATA, _S.WAITING_FOR_FILE_BLOCK),
    (_S.REQUESTING_FILE_BLOCK, _E.REQUEST_TIMER): Transition(_A.REQUEST_DATA, _S.WAITING_FOR_FILE_BLOCK),
    (_S.WAITING_FOR_FILE_BLOCK, _E.RECEIVED_FILE_BLOCK): Transition(_A.PROCESS_DATA, _S.WAITING_FOR_FILE_BLOCK),
    (_S.WAITING_FOR_FILE_BLOCK, _E.REQUEST_TIMER): Transition(_A.REQUEST_DATA, _S.WAITING_FOR_FILE_BLOCK),
    (_S.WAITING_FOR_FILE_BLOCK, _E.REQUEST_FILE_BLOCK): Transition(_A.REQUEST_DATA, _S.WAITING_FOR_FILE_BLOCK),
    (_S.WAITING_FOR_FILE_BLOCK, _E.REQUEST_JOB_DOCUMENT): Transition(_A.REQUEST_JOB, _S.WAITING_FOR_JOB),
    (_S.WAITING_FOR_FILE_BLOCK, _E.RECEIVED_JOB_DOCUMENT): Transition(_A.JOB_NOTIFICATION, _S.REQUESTING_JOB),
    (_S.WAITING_FOR_FILE_BLOCK, _E.CLOSE_FILE): Transition(_A.CLOSE_FILE, _S.WAITING_FOR_JOB),
    (_S.SUSPENDED, _E.RESUME): Transition(_A.RESUME, _S.REQUESTING_JOB),
}
"""(state, event) -> what happens."""

FROM_ANY_STATE: Final[dict[AgentEvent, Transition]] = {
    _E.SUSPEND: Transition(_A.SUSPEND, _S.SUSPENDED),
    _E.USER_ABORT: Transition(_A.USER_ABORT, _S.WAITING_FOR_JOB),
    _E.SHUTDOWN: Transition(_A.SHUTDOWN, _S.STOPPED),
}
"""Events that every state takes."""


def transition(state: AgentState, event: AgentEvent) -> Transition | None:
    """Return what `event` leads to in `state`; None if it is dropped there."""
    return TRANSITIONS.get((state, event)) or FROM_ANY_STATE.get(event)


class AgentError(enum.IntEnum):
    """The agent's error codes: the second half of `rejected:` and `aborted:`."""

    NONE = 0x00
    UNINITIALIZED = 0x01
    PANIC = 0x02
    INVALID_ARGUMENT = 0x03
    AGENT_STOPPED = 0x04
    SIGNAL_EVENT_FAILED = 0x05
    REQUEST_JOB_FAILED = 0x06
    INIT_FILE_TRANSFER_FAILED = 0x07
    REQUEST_FILE_BLOCK_FAILED = 0x08
    CLEANUP_CONTROL_FAILED = 0x09
    CLEANUP_DATA_FAILED = 0x0A
    UPDATE_JOB_STATUS_FAILED = 0x0B
    JOB_PARSER_ERROR = 0x0C
    INVALID_DATA_PROTOCOL = 0x0D
    MOMENTUM_ABORT = 0x0E
    DOWNGRADE_NOT_ALLOWED = 0x0F
    SAME_FIRMWARE_VERSION = 0x10
    IMAGE_STATE_MISMATCH = 0x11
    NO_ACTIVE_JOB = 0x12
    USER_ABORT = 0x13
    FAILED_TO_ENCODE_CBOR = 0x14
    FAILED_TO_DECODE_CBOR = 0x15
    ACTIVATE_FAILED = 0x16
    FILE_SIZE_OVERFLOW = 0x17
    EMPTY_JOB_DOCUMENT = 0x18
