"""Jobs: what a thing's requests do to its executions, and what they are answered. It translates; few rules are here.

Which state may follow which stands in `fleet.job_executions`, what a thing is shown in `pending`.
Source: docs/reference/aws-iot.md, "Jobs".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

import structlog

from flota.errors import Conflict, FlotaError, InvalidInput, TooManyRequests, VersionMismatch
from flota.fleet.executions import Basis, Execution, ExecutionChange, ExecutionState
from flota.fleet.inferences import ROUTE_DETAIL
from flota.fleet.job_executions import (
    AWS_IOT_ROUTE,
    DEVICE_STEPS,
    EXECUTION_NUMBER,
    LENIENT_STEPS,
    JobExecution,
    end_of_time,
    replacing_details,
    seconds_left,
    step_timer,
    visible_details,
)
from flota.protocols.aws_jobs import (
    NEXT,
    PENDING_LISTED_MAX,
    DeviceStatus,
    ExecutionMessage,
    ExecutionStateMessage,
    JobsOperation,
    JobsRejected,
    JobsRejection,
    JobsRequest,
    JobsTopic,
    pack_execution,
    pack_pending,
    pack_rejected,
    pack_updated,
    parse_jobs_request,
    parse_jobs_topic,
)
from flota.protocols.peer_text import clean_text
from flota.server.api.aws_iot.documents import JobDocuments
from flota.server.api.aws_iot.pending import NOTHING_PENDING, PendingJobs, ShownJob, read_pending
from flota.server.device_rates import DeviceRates
from flota.server.gathered import Gathered
from flota.server.turns import Turns
from flota.server.updates import expect_unchanged, sight, with_retries

if TYPE_CHECKING:
    from flota.fleet.releases import Release
    from flota.fleet.scope import Scope
    from flota.fleet.storage import Transaction
    from flota.server.api.aws_iot.identity import ThingIdentity
    from flota.server.context import ServerContext

REQUESTS_BURST: Final = 200
REQUESTS_PER_S: Final = 10.0
"""Per thing. An agent asks a few times in an update; AWS allows 10 a second for a whole account's describe calls."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and the topic that it goes to."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Lost:
    """An update that is not made; `state` is what the execution is now."""

    rejection: JobsRejection
    message: str
    execution: Execution


class JobsApi:
    """Answers the requests of things. One for the whole server; it remembers nothing but rates and whose turn it is.

    A thing's requests are answered one after another, whichever connections they came over: one that restarts as soon
    as its report is acknowledged must find that report in the answer to its next question.
    """

    def __init__(self, context: ServerContext, documents: JobDocuments) -> None:
        self._context = context
        self._documents = documents
        self._rates = DeviceRates(refill_per_s=REQUESTS_PER_S, burst=REQUESTS_BURST)
        self._turns = Turns()
        self._reads: Gathered[int, PendingJobs] = Gathered(context.storage.read_at_once, self._read)
        self._operations = {
            JobsOperation.GET_PENDING: self._get_pending,
            JobsOperation.START_NEXT: self._start_next,
            JobsOperation.DESCRIBE: self._describe,
            JobsOperation.UPDATE: self._update,
        }

    async def answer(self, thing: ThingIdentity, topic: str, payload: bytes, *, address: str | None = None) -> Reply:
        """Return the answer to what the thing published under its own `…/jobs/`; raises nothing.

        `address` is where it asks from, as far as that is known.
        """
        asked = parse_jobs_topic(topic)
        if asked is None or asked.thing != thing.name:
            rejected = JobsRejected(JobsRejection.INVALID_TOPIC, "no operation of Jobs has this topic")
            return Reply(f"{topic}/rejected", pack_rejected(rejected, timestamp=self._timestamp()))
        request = JobsRequest()
        try:
            request = parse_jobs_request(payload, asked.operation)
            self._rates.take(f"{thing.key}", now=self._context.now())
            sight(self._context, thing.scope, thing.device, route=AWS_IOT_ROUTE, address=address)
            async with self._turns.of(thing.key):
                return Reply(asked.accepted, await self._operations[asked.operation](thing, asked, request))
        except JobsRejected as error:
            rejected = error
        except TooManyRequests as error:
            rejected = _rejected(JobsRejection.REQUEST_THROTTLED, error.message, request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the thing gets an answer and may ask again
            _log.error("aws_iot.request_failed", thing=thing.name, operation=asked.operation.value, exc_info=error)
            rejected = _rejected(JobsRejection.INTERNAL_ERROR, "the server could not do this now", request)
        return Reply(asked.rejected, pack_rejected(rejected, timestamp=self._timestamp()))

    async def pending(self, thing: ThingIdentity) -> PendingJobs:
        """Return what a thing is shown now."""
        return await self._reads.get(thing.scope, thing.device.id) or NOTHING_PENDING

    def message(self, shown: ShownJob, *, thing: str, with_document: bool = True) -> ExecutionMessage:
        """Return a pending job as its thing is told of it, with a fresh document."""
        return self._message(shown.job, shown.release, thing=thing, with_document=with_document)

    async def _get_pending(self, thing: ThingIdentity, asked: JobsTopic, request: JobsRequest) -> bytes:
        pending = await self.pending(thing)
        in_progress = [self.message(job, thing=thing.name, with_document=False) for job in pending.in_progress]
        shown = pending.queued[: PENDING_LISTED_MAX - len(in_progress)]
        queued = [self.message(job, thing=thing.name, with_document=False) for job in shown]
        return pack_pending(in_progress, queued, token=request.token, timestamp=self._timestamp())

    async def _describe(self, thing: ThingIdentity, asked: JobsTopic, request: JobsRequest) -> bytes:
        pending = await self.pending(thing)
        with_document = request.include_document is not False
        if asked.job_id == NEXT:
            shown = pending.next
        else:
            shown = pending.find(asked.job_id or "")
            if shown is None:
                await self._refuse_description(thing, asked, request)
        if shown is not None and request.number not in (None, EXECUTION_NUMBER):
            raise _not_found(request)
        message = None if shown is None else self.message(shown, thing=thing.name, with_document=with_document)
        return pack_execution(message, token=request.token, timestamp=self._timestamp())

    async def _refuse_description(self, thing: ThingIdentity, asked: JobsTopic, request: JobsRequest) -> None:
        async with self._context.storage.reading() as transaction:
            job = await transaction.job_of_device(thing.scope, thing.device.id, asked.job_id or "")
        is_known = job is not None and request.number in (None, EXECUTION_NUMBER)
        if job is None or not is_known or job.execution.is_open or job.execution.state is ExecutionState.REMOVED:
            raise _not_found(request)
        raise _rejected(
            JobsRejection.TERMINAL_STATE_REACHED, f"the execution has ended: {job.execution.state}", request
        )

    async def _start_next(self, thing: ThingIdentity, asked: JobsTopic, request: JobsRequest) -> bytes:
        async def start(transaction: Transaction) -> ShownJob | None:
            now = self._context.now()
            shown = (await self._pending_in(transaction, thing)).next
            if shown is None:
                return None
            execution, timer = shown.job.execution, step_timer(request.step_timeout, now=now)
            if execution.state is ExecutionState.QUEUED:
                change = ExecutionChange(
                    ExecutionState.IN_PROGRESS,
                    details={
                        **replacing_details(execution.details, request.details),
                        ROUTE_DETAIL: AWS_IOT_ROUTE,
                    },
                    message=_line(ExecutionState.IN_PROGRESS, request.details),
                    step_timer=timer,
                )
                await transaction.change_execution(thing.scope, execution.id, execution.version, change, now=now)
            elif timer is not None:
                await transaction.set_step_timer(thing.scope, execution.id, execution.version, timer.expires_at)
            job = await transaction.job_of_device(thing.scope, thing.device.id, shown.job.job_id)
            return None if job is None else ShownJob(job, shown.release)

        try:
            shown = await with_retries(self._context, start)
        except InvalidInput as error:
            raise _rejected(JobsRejection.INVALID_REQUEST, error.message, request) from error
        message = None if shown is None else self.message(shown, thing=thing.name)
        return pack_execution(message, token=request.token, timestamp=self._timestamp())

    async def _update(self, thing: ThingIdentity, asked: JobsTopic, request: JobsRequest) -> bytes:
        async def update(transaction: Transaction) -> tuple[JobExecution, Release] | _Lost:
            now = self._context.now()
            job = await transaction.job_of_device(thing.scope, thing.device.id, asked.job_id or "")
            if job is None or job.execution.state is ExecutionState.REMOVED:
                raise _not_found(request)
            if request.number not in (None, EXECUTION_NUMBER):
                raise _not_found(request)
            execution = await self._past_its_time(transaction, thing.scope, job.execution, now=now)
            if execution.state is ExecutionState.QUEUED and not await self._is_shown(transaction, thing, job):
                await expect_unchanged(transaction, thing.scope, execution)
                raise _not_found(request)
            lost = self._why_not(execution, request)
            if lost is not None:
                return lost
            after = await transaction.change_execution(
                thing.scope, execution.id, execution.version, self._change(execution, request, now=now), now=now
            )
            release = await transaction.release(thing.scope, execution.release_id)
            return replace(job, execution=after), release

        try:
            done = await with_retries(self._context, update)
        except InvalidInput as error:
            raise _rejected(JobsRejection.INVALID_REQUEST, error.message, request) from error
        except VersionMismatch:
            raise
        except Conflict as error:  # paused meanwhile, or at work on another one
            done = _Lost(JobsRejection.INVALID_STATE_TRANSITION, error.message, await self._present(thing, asked))
        if isinstance(done, _Lost):
            raise JobsRejected(done.rejection, done.message, token=request.token, state=_state_message(done.execution))
        job, release = done
        if job.execution.state is ExecutionState.SUCCEEDED:
            sight(
                self._context,
                thing.scope,
                thing.device,
                route=AWS_IOT_ROUTE,
                address=None,
                running=release.as_running(),
            )
        message = self._message(job, release, thing=thing.name, with_document=request.include_document is True)
        return pack_updated(
            token=request.token,
            timestamp=self._timestamp(),
            state=message.state if request.include_state else None,
            document=message.document,
        )

    async def _is_shown(self, transaction: Transaction, thing: ThingIdentity, job: JobExecution) -> bool:
        return (await self._pending_in(transaction, thing)).find(job.job_id) is not None

    async def _past_its_time(
        self, transaction: Transaction, scope: Scope, execution: Execution, *, now: datetime
    ) -> Execution:
        """Return the execution; one whose time is over is ended first, though the engine has not looked yet."""
        end = end_of_time(execution, now=now)
        if end is None:
            return execution
        return await transaction.change_execution(scope, execution.id, execution.version, end, now=now)

    def _why_not(self, execution: Execution, request: JobsRequest) -> _Lost | None:
        expected, version = request.expected_version, execution.version
        if expected is not None and expected != version:
            text = f"the execution is at version {version}, not {expected}"
            return _Lost(JobsRejection.VERSION_MISMATCH, text, execution)
        steps = LENIENT_STEPS if self._context.settings.aws_iot_lenient_rejected else DEVICE_STEPS
        to = _state_of(request)
        if to not in steps.get(execution.state, frozenset()):
            text = f"an execution that is {execution.state} cannot become {to}"
            return _Lost(JobsRejection.INVALID_STATE_TRANSITION, text, execution)
        return None

    def _change(self, execution: Execution, request: JobsRequest, *, now: datetime) -> ExecutionChange:
        to = _state_of(request)
        return ExecutionChange(
            to,
            details={**replacing_details(execution.details, request.details), ROUTE_DETAIL: AWS_IOT_ROUTE},
            basis=None if to is ExecutionState.IN_PROGRESS else Basis.REPORTED,
            message=_line(to, request.details),
            step_timer=step_timer(request.step_timeout, now=now),
        )

    async def _present(self, thing: ThingIdentity, asked: JobsTopic) -> Execution:
        async with self._context.storage.reading() as transaction:
            job = await transaction.job_of_device(thing.scope, thing.device.id, asked.job_id or "")
        if job is None:
            raise FlotaError("the execution is gone")
        return job.execution

    async def _read(
        self, transaction: Transaction, scope: Scope, device_ids: Sequence[int]
    ) -> Mapping[int, PendingJobs]:
        return await read_pending(transaction, scope, device_ids, now=self._context.now())

    async def _pending_in(self, transaction: Transaction, thing: ThingIdentity) -> PendingJobs:
        device_id = thing.device.id
        return (await self._read(transaction, thing.scope, [device_id])).get(device_id, NOTHING_PENDING)

    def _timestamp(self) -> int:
        return int(self._context.now().timestamp())

    def _message(self, job: JobExecution, release: Release, *, thing: str, with_document: bool) -> ExecutionMessage:
        execution = job.execution
        return ExecutionMessage(
            job_id=job.job_id,
            thing=thing,
            status=execution.state.value,
            queued_at=int(execution.created_at.timestamp()),
            updated_at=int(execution.changed_at.timestamp()),
            version=execution.version,
            number=EXECUTION_NUMBER,
            started_at=None if execution.started_at is None else int(execution.started_at.timestamp()),
            details=visible_details(execution.details),
            document=self._documents.document(execution, release) if with_document else None,
            seconds_left=seconds_left(execution, now=self._context.now()),
        )


_STATES: Final = {status: ExecutionState(status.value) for status in DeviceStatus}


def _state_of(request: JobsRequest) -> ExecutionState:
    """Return the state that an update asks for."""
    if request.status is None:
        raise _rejected(JobsRejection.INVALID_REQUEST, "status is missing", request)
    return _STATES[request.status]


def _line(to: ExecutionState, details: Mapping[str, str] | None) -> str:
    """Return what the history says of a report: the new state, and what the device says of it."""
    told = ", ".join(f"{name} {text}" for name, text in (details or {}).items())
    return clean_text(f"{to}: {told}" if told else f"{to}")


def _state_message(execution: Execution) -> ExecutionStateMessage:
    return ExecutionStateMessage(execution.state.value, execution.version, visible_details(execution.details))


def _rejected(rejection: JobsRejection, message: str, request: JobsRequest) -> JobsRejected:
    return JobsRejected(rejection, message, token=request.token)


def _not_found(request: JobsRequest) -> JobsRejected:
    return _rejected(JobsRejection.RESOURCE_NOT_FOUND, "this thing has no such job execution", request)
