"""AWS IoT Jobs over MQTT: topics, requests, answers, notifications. Both roles, no IO, no decisions.

Source: docs/reference/aws-iot.md, "Jobs"; awsdocs/aws-iot-docs: jobs-mqtt-api; aws/jobs-for-aws-iot-embedded-sdk.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from flota.errors import PeerError
from flota.protocols.json_text import parse_json
from flota.protocols.malformed import MalformedMessage

THING_PREFIX: Final = "$aws/things/"
NEXT: Final = "$next"
NOTIFICATION_ENTRIES_MAX: Final = 10
PENDING_LISTED_MAX: Final = 250
"""Executions in one answer to GetPendingJobExecutions: AWS's largest page; a message has to stay below 128 KiB."""

TOKEN_BYTES_MAX: Final = 64
DETAILS_MAX: Final = 20
DETAIL_VALUE_MAX_CHARS: Final = 1024
REQUEST_MAX_BYTES: Final = 32 * 1024
"""A request above this is refused before it is read as JSON; the largest real ones have a few hundred bytes."""

STEP_TIMEOUT_MIN_MINUTES: Final = 1
STEP_TIMEOUT_MAX_MINUTES: Final = 10_080
STEP_TIMER_DISCARDED: Final = -1

_THING_NAME = re.compile(r"[A-Za-z0-9:_-]{1,128}\Z")
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_DETAIL_NAME = re.compile(r"[A-Za-z0-9:_-]{1,128}\Z")


class JobsOperation(enum.StrEnum):
    """What a device asks for."""

    GET_PENDING = "get"
    START_NEXT = "start-next"
    DESCRIBE = "describe"
    UPDATE = "update"


class JobsRejection(enum.StrEnum):
    """Codes of a rejected request, in AWS's words."""

    INVALID_TOPIC = "InvalidTopic"
    INVALID_JSON = "InvalidJson"
    INVALID_REQUEST = "InvalidRequest"
    INVALID_STATE_TRANSITION = "InvalidStateTransition"
    RESOURCE_NOT_FOUND = "ResourceNotFound"
    VERSION_MISMATCH = "VersionMismatch"
    INTERNAL_ERROR = "InternalError"
    REQUEST_THROTTLED = "RequestThrottled"
    TERMINAL_STATE_REACHED = "TerminalStateReached"


class DeviceStatus(enum.StrEnum):
    """What a device may report; the other states are the server's."""

    IN_PROGRESS = "IN_PROGRESS"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class JobsTopic:
    """A topic of a thing's jobs; `job_id` is an id or `$next`, None where the operation names none."""

    thing: str
    operation: JobsOperation
    job_id: str | None = None

    @property
    def text(self) -> str:
        """The topic."""
        base = f"{THING_PREFIX}{self.thing}/jobs"
        if self.operation is JobsOperation.DESCRIBE:
            return f"{base}/{self.job_id}/get"
        if self.operation is JobsOperation.UPDATE:
            return f"{base}/{self.job_id}/update"
        return f"{base}/{self.operation.value}"

    @property
    def accepted(self) -> str:
        """Where the answer goes."""
        return f"{self.text}/accepted"

    @property
    def rejected(self) -> str:
        """Where the rejection goes."""
        return f"{self.text}/rejected"


class JobsRejected(PeerError):
    """A request that is answered with a rejection. `state` (of the execution) goes with some codes."""

    code = "jobs-rejected"

    def __init__(
        self,
        rejection: JobsRejection,
        message: str,
        *,
        token: str | None = None,
        state: ExecutionStateMessage | None = None,
    ) -> None:
        super().__init__(message, found=rejection.value)
        self.rejection = rejection
        self.token = token
        self.state = state


@dataclass(frozen=True, slots=True)
class ExecutionStateMessage:
    """`executionState` of an answer; empty details are left out."""

    status: str
    version: int
    details: Mapping[str, str] = field(default_factory=dict)

    def members(self) -> dict[str, object]:
        """Return its JSON."""
        details = {"statusDetails": dict(self.details)} if self.details else {}
        return {"status": self.status, **details, "versionNumber": self.version}


@dataclass(frozen=True, slots=True)
class ExecutionMessage:
    """An execution as the device sees it; times in epoch seconds. `document` None = not included."""

    job_id: str
    thing: str
    status: str
    queued_at: int
    updated_at: int
    version: int
    number: int
    started_at: int | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    document: Mapping[str, object] | None = None
    seconds_left: int | None = None

    def summary(self) -> dict[str, object]:
        """Return the short form of lists and notifications."""
        members: dict[str, object] = {"jobId": self.job_id, "queuedAt": self.queued_at}
        if self.started_at is not None:
            members["startedAt"] = self.started_at
        return members | {
            "lastUpdatedAt": self.updated_at,
            "versionNumber": self.version,
            "executionNumber": self.number,
        }

    def members(self) -> dict[str, object]:
        """Return the long form; the document is an object, empty details are left out."""
        members: dict[str, object] = {"jobId": self.job_id, "thingName": self.thing, "status": self.status}
        if self.details:
            members["statusDetails"] = dict(self.details)
        summary = self.summary()
        del summary["jobId"]
        members |= summary
        if self.document is not None:
            members["jobDocument"] = self.document
        if self.seconds_left is not None:
            members["approximateSecondsBeforeTimedOut"] = self.seconds_left
        return members

    @property
    def state(self) -> ExecutionStateMessage:
        """Its state alone."""
        return ExecutionStateMessage(self.status, self.version, self.details)


@dataclass(frozen=True, slots=True)
class JobsRequest:
    """A request; what an operation does not know is left at its default. `step_timeout` in minutes, -1 discards."""

    token: str | None = None
    status: DeviceStatus | None = None
    details: Mapping[str, str] | None = None
    expected_version: int | None = None
    number: int | None = None
    include_document: bool | None = None
    include_state: bool = False
    step_timeout: int | None = None


def is_thing_name(text: str) -> bool:
    """Return whether `text` may name a thing."""
    return _THING_NAME.match(text) is not None


def is_job_id(text: str) -> bool:
    """Return whether `text` may be a job's id."""
    return _JOB_ID.match(text) is not None


def is_client_token(text: str) -> bool:
    """Return whether `text` may be a client token: at most 64 bytes that can be sent back."""
    try:
        return len(text.encode("utf-8")) <= TOKEN_BYTES_MAX
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def notify_topic(thing: str) -> str:
    """Return where changes of the list are told."""
    return f"{THING_PREFIX}{thing}/jobs/notify"


def notify_next_topic(thing: str) -> str:
    """Return where a change of the next execution is told."""
    return f"{THING_PREFIX}{thing}/jobs/notify-next"


def parse_jobs_topic(topic: str) -> JobsTopic | None:
    """Return what a topic that a device published to asks for; None when it is no request to Jobs.

    `jobs/get` lists; `jobs/x/get` describes.
    """
    if not topic.startswith(THING_PREFIX):
        return None
    levels = topic[len(THING_PREFIX) :].split("/")
    if len(levels) not in {3, 4} or levels[1] != "jobs" or not is_thing_name(levels[0]):
        return None
    thing = levels[0]
    if len(levels) == 3:
        listed = {"get": JobsOperation.GET_PENDING, "start-next": JobsOperation.START_NEXT}.get(levels[2])
        return JobsTopic(thing, listed) if listed else None
    job_id = levels[2]
    operation = {"get": JobsOperation.DESCRIBE, "update": JobsOperation.UPDATE}.get(levels[3])
    known = is_job_id(job_id) or (job_id == NEXT and operation is JobsOperation.DESCRIBE)
    return JobsTopic(thing, operation, job_id) if operation and known else None


def parse_jobs_request(payload: bytes, operation: JobsOperation) -> JobsRequest:
    """Return the request; an empty payload is `{}`, unknown members are ignored. Raises `JobsRejected`."""
    members = _members(payload)
    token = _token(members)
    fields = _Fields(members, token)
    status = fields.status() if operation is JobsOperation.UPDATE else None
    takes_details = operation in {JobsOperation.UPDATE, JobsOperation.START_NEXT}
    include_document = fields.flag("includeJobDocument")
    return JobsRequest(
        token=token,
        status=status,
        details=fields.details() if takes_details else None,
        expected_version=fields.number("expectedVersion") if operation is JobsOperation.UPDATE else None,
        number=fields.number("executionNumber"),
        include_document=include_document,
        include_state=bool(fields.flag("includeJobExecutionState")),
        step_timeout=fields.step_timeout() if takes_details else None,
    )


def pack_jobs_request(request: JobsRequest) -> bytes:
    """Return a request as a device writes it."""
    members: dict[str, object] = {}
    if request.status is not None:
        members["status"] = request.status.value
    if request.details is not None:
        members["statusDetails"] = dict(request.details)
    optional = {
        "expectedVersion": request.expected_version,
        "executionNumber": request.number,
        "includeJobDocument": request.include_document,
        "includeJobExecutionState": request.include_state or None,
        "stepTimeoutInMinutes": request.step_timeout,
        "clientToken": request.token,
    }
    members |= {name: value for name, value in optional.items() if value is not None}
    return _packed(members)


def pack_pending(
    in_progress: Sequence[ExecutionMessage], queued: Sequence[ExecutionMessage], *, token: str | None, timestamp: int
) -> bytes:
    """Return the answer to GetPendingJobExecutions."""
    members: dict[str, object] = {
        "inProgressJobs": [execution.summary() for execution in in_progress],
        "queuedJobs": [execution.summary() for execution in queued],
        "timestamp": timestamp,
    }
    return _packed(members | _token_member(token))


def pack_execution(execution: ExecutionMessage | None, *, token: str | None, timestamp: int) -> bytes:
    """Return the answer to StartNext and Describe; with nothing pending just token and time, which the agent knows."""
    members: dict[str, object] = dict(_token_member(token))
    members["timestamp"] = timestamp
    if execution is not None:
        members["execution"] = execution.members()
    return _packed(members)


def pack_updated(
    *,
    token: str | None,
    timestamp: int,
    state: ExecutionStateMessage | None = None,
    document: Mapping[str, object] | None = None,
) -> bytes:
    """Return the answer to UpdateJobExecution; state and document only if they were asked for."""
    members: dict[str, object] = {"timestamp": timestamp, **_token_member(token)}
    if state is not None:
        members["executionState"] = state.members()
    if document is not None:
        members["jobDocument"] = document
    return _packed(members)


def pack_rejected(rejected: JobsRejected, *, timestamp: int) -> bytes:
    """Return the message for the topic `…/rejected`."""
    members: dict[str, object] = {"code": rejected.rejection.value, "message": rejected.message}
    members |= {**_token_member(rejected.token), "timestamp": timestamp}
    if rejected.state is not None:
        members["executionState"] = rejected.state.members()
    return _packed(members)


def pack_notify(
    in_progress: Sequence[ExecutionMessage], queued: Sequence[ExecutionMessage], *, timestamp: int
) -> bytes:
    """Return the notification that the list has changed: at most ten entries, and only keys that have some."""
    jobs: dict[str, object] = {}
    left = NOTIFICATION_ENTRIES_MAX
    for status, executions in (("IN_PROGRESS", in_progress), ("QUEUED", queued)):
        shown = [execution.summary() for execution in executions[:left]]
        left -= len(shown)
        if shown:
            jobs[status] = shown
    return _packed({"timestamp": timestamp, "jobs": jobs})


def pack_notify_next(execution: ExecutionMessage | None, *, timestamp: int) -> bytes:
    """Return the notification that another execution is the next one, or that there is none."""
    members: dict[str, object] = {"timestamp": timestamp}
    if execution is not None:
        members["execution"] = execution.members()
    return _packed(members)


def parse_answer(payload: bytes) -> dict[str, Any]:
    """Return an answer's or notification's members as a device reads them. Raises `MalformedMessage`."""
    try:
        return _members(payload)
    except JobsRejected as error:
        raise MalformedMessage("an answer that is no JSON object", found=error.message) from error


def _packed(members: Mapping[str, object]) -> bytes:
    return msgspec.json.encode(members)


def _token_member(token: str | None) -> dict[str, object]:
    return {} if token is None else {"clientToken": token}


def _members(payload: bytes) -> dict[str, Any]:
    if not payload:
        return {}
    if len(payload) > REQUEST_MAX_BYTES:
        raise JobsRejected(JobsRejection.INVALID_REQUEST, f"a request has at most {REQUEST_MAX_BYTES} bytes")
    try:
        members = parse_json(payload)
    except MalformedMessage:
        raise JobsRejected(JobsRejection.INVALID_JSON, "the payload is not JSON in UTF-8") from None
    if not isinstance(members, dict):
        raise JobsRejected(JobsRejection.INVALID_JSON, "the payload is no JSON object")
    return members


def _token(members: Mapping[str, Any]) -> str | None:
    token = members.get("clientToken")
    if token is None:
        return None
    if not isinstance(token, str) or not is_client_token(token):
        raise JobsRejected(JobsRejection.INVALID_REQUEST, f"a client token is text of at most {TOKEN_BYTES_MAX} bytes")
    return token


class _Fields:
    """The optional members of a request, each with its rules."""

    def __init__(self, members: Mapping[str, Any], token: str | None) -> None:
        self._members = members
        self._token = token

    def status(self) -> DeviceStatus:
        value = self._members.get("status")
        if not isinstance(value, str) or value not in set(DeviceStatus):
            raise self._rejected(f"status is one of {', '.join(DeviceStatus)}")
        return DeviceStatus(value)

    def number(self, name: str) -> int | None:
        """Return a number of 0 or more; it may come as digits in quotes."""
        value = self._members.get(name)
        if value is None:
            return None
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 18:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise self._rejected(f"{name} is no number")
        return value

    def flag(self, name: str) -> bool | None:
        value = self._members.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._rejected(f"{name} is neither true nor false")
        return value

    def details(self) -> dict[str, str] | None:
        value = self._members.get("statusDetails")
        if value is None:
            return None
        if not isinstance(value, dict) or len(value) > DETAILS_MAX:
            raise self._rejected(f"statusDetails is an object of at most {DETAILS_MAX} members")
        for name, text in value.items():
            fine = isinstance(text, str) and 1 <= len(text) <= DETAIL_VALUE_MAX_CHARS and text.isprintable()
            if not fine or not _DETAIL_NAME.match(name):
                raise self._rejected("a member of statusDetails has a name or a value that is not allowed")
        return value

    def step_timeout(self) -> int | None:
        value = self._members.get("stepTimeoutInMinutes")
        if value is None:
            return None
        in_range = isinstance(value, int) and STEP_TIMEOUT_MIN_MINUTES <= value <= STEP_TIMEOUT_MAX_MINUTES
        if isinstance(value, bool) or not (in_range or value == STEP_TIMER_DISCARDED):
            raise self._rejected(f"stepTimeoutInMinutes is -1, or 1 to {STEP_TIMEOUT_MAX_MINUTES}")
        return int(value)

    def _rejected(self, message: str) -> JobsRejected:
        return JobsRejected(JobsRejection.INVALID_REQUEST, message, token=self._token)
