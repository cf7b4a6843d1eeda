"""The agent's core: it takes events from its queue, one after another, and does what the table says.

It opens nothing and reads no clock: everything outside is one of its ports.

Source: docs/reference/aws-iot.md, "What the virtual agent mirrors"; aws/ota-for-aws-iot-embedded-sdk:source/ota.c.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final

from flota.protocols.aws_jobs import NEXT, TOKEN_BYTES_MAX, JobsOperation, JobsTopic, notify_next_topic
from flota.protocols.aws_ota import FIRMWARE_FILE_TYPE, DataProtocol
from flota.protocols.malformed import MalformedMessage
from flota.virtual.agents.aws_ota import status
from flota.virtual.agents.aws_ota.job_document import JobNotTaken, OtaJob, ParseFailure, parse_job
from flota.virtual.agents.aws_ota.pal import ImageState, Pal, PalCode, PalError, PalImageState
from flota.virtual.agents.aws_ota.ports import (
    EVENT_QUEUE_MAX,
    AgentBuild,
    AppEvent,
    HttpRanges,
    Messages,
    OtaApp,
    OtaTimer,
    Timers,
)
from flota.virtual.agents.aws_ota.states import Action, AgentError, AgentEvent, AgentState, transition
from flota.virtual.agents.aws_ota.transfer import DataPath, HttpPath, MqttPath, Transfer

CONTROL_QOS: Final = 1
NO_BUFFERS: Final = "No OTA data buffers available."


@dataclass(frozen=True, slots=True)
class Ports:
    """What the core stands on. `http` None: the firmware was built without."""

    pal: Pal
    messages: Messages
    timers: Timers
    app: OtaApp
    http: HttpRanges | None = None


@dataclass(frozen=True, slots=True)
class QueuedEvent:
    """An event with what came with it."""

    event: AgentEvent
    payload: bytes = field(default=b"", repr=False)


class OtaAgentCore:
    """One agent of the thing `thing`, from Init to Stopped. `running` is the version word of the app that runs.

    Feed it with `signal`, let it work with `work_off`. The app calls `set_image_state` and `activate`.
    """

    def __init__(self, thing: str, running: int, build: AgentBuild, ports: Ports) -> None:
        self.state = AgentState.READY
        self._thing = thing
        self._running = running
        self._build = build
        self._ports = ports
        self._queue: deque[QueuedEvent] = deque()
        self._active_job = ""
        self._image_state = ImageState.UNKNOWN
        self._previous_version = 0
        self._file_id = 0
        self._transfer: Transfer | None = None
        self._path: DataPath | None = None
        self._momentum = 0
        self._blocks_to_come = 0
        self._requests = 0
        self._in_work = 0
        self._actions: dict[Action, Callable[[bytes], Awaitable[bool]]] = {
            Action.START: self._start,
            Action.REQUEST_JOB: self._request_job,
            Action.PROCESS_JOB: self._process_job,
            Action.SELF_TEST: self._self_test,
            Action.INIT_FILE: self._init_file,
            Action.REQUEST_DATA: self._request_data,
            Action.PROCESS_DATA: self._process_data,
            Action.JOB_NOTIFICATION: self._give_way,
            Action.CLOSE_FILE: self._close_file,
            Action.SUSPEND: self._suspend,
            Action.RESUME: self._resume,
            Action.USER_ABORT: self._user_abort,
            Action.SHUTDOWN: self._shut_down,
        }

    @property
    def active_job(self) -> str:
        """The id of the job that the agent works on, empty if none."""
        return self._active_job

    @property
    def has_stopped(self) -> bool:
        """Whether it has shut down, for good."""
        return self.state is AgentState.STOPPED

    @property
    def has_events(self) -> bool:
        """Whether `work_off` has something to do."""
        return bool(self._queue)

    @property
    def buffers_in_use(self) -> int:
        """How many messages wait or are being worked off: each has a buffer of its own until then."""
        return self._in_work + sum(1 for queued in self._queue if queued.payload)

    def signal(self, event: AgentEvent, payload: bytes = b"") -> bool:
        """Put an event into the queue; False if that is full, or no buffer is free for its payload: it is lost then."""
        limit = self._build.data_buffers
        if payload and limit is not None and self.buffers_in_use >= limit:
            self._ports.app.tell(NO_BUFFERS)
            return False
        if len(self._queue) >= EVENT_QUEUE_MAX:
            self._ports.app.tell(f"the event queue is full: {event} is lost")
            return False
        self._queue.append(QueuedEvent(event, payload))
        return True

    async def work_off(self) -> None:
        """Take event after event until the queue is empty or the agent has stopped."""
        while self._queue and not self.has_stopped:
            queued = self._queue.popleft()
            self._in_work = 1 if queued.payload else 0
            await self._step(queued)
            self._in_work = 0

    async def _step(self, queued: QueuedEvent) -> None:
        found = transition(self.state, queued.event)
        if found is None:
            self._ports.app.tell(f"unexpected in state {self.state}: {queued.event}")
            return
        if await self._actions[found.action](queued.payload):
            self.state = found.next_state

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def _start(self, _: bytes) -> bool:
        if self._platform_in_self_test():
            self._ports.timers.start(OtaTimer.SELF_TEST, self._build.self_test_s)
        return self.signal(AgentEvent.REQUEST_JOB_DOCUMENT)

    async def _request_job(self, _: bytes) -> bool:
        token = f"{self._requests}:{self._thing}"[:TOKEN_BYTES_MAX]
        topic = JobsTopic(self._thing, JobsOperation.DESCRIBE, NEXT).text
        messages = self._ports.messages
        done = await messages.subscribe(notify_next_topic(self._thing), CONTROL_QOS) and await messages.publish(
            topic, f'{{"clientToken":"{token}"}}'.encode("ascii"), CONTROL_QOS
        )
        if done:
            self._requests += 1
            self._ports.timers.stop(OtaTimer.REQUEST)
            self._momentum = 0
            return True
        self._try_again_or_shut_down()
        return False

    async def _process_job(self, payload: bytes) -> bool:
        """Take the job in the message. False, and so no change of state, if there is nothing to do."""
        try:
            job = parse_job(payload, signature_key=self._build.signature_key)
        except JobNotTaken as refusal:
            await self._job_not_taken(refusal)
            return False
        if job.job_id == self._active_job and self._transfer is not None and self._transfer.is_open:
            renewed = replace(self._transfer.job, file=replace(self._transfer.job.file, url=job.file.url))
            self._transfer.job = renewed
            self._ports.app.tell(f"job {job.job_id} goes on, {self._transfer.remaining} blocks are missing")
            return self.signal(AgentEvent.CREATE_FILE)
        if self._active_job and job.job_id != self._active_job:
            await self._leave_image(ImageState.ABORTED)
            await self._close_transfer()
        self._active_job = job.job_id
        self._file_id = job.file.file_id
        if job.in_self_test:
            return await self._judge_version(job)
        return await self._begin_update(job)

    async def _job_not_taken(self, refusal: JobNotTaken) -> None:
        """Give a job that has an id but no document of ours to the app, which takes none: that ends it."""
        self._ports.app.tell(str(refusal))
        if refusal.failure is ParseFailure.NO_ACTIVE_JOBS:
            return
        if refusal.failure is ParseFailure.NON_CONFORMING and refusal.job_id is not None:
            self._active_job = refusal.job_id
        if self._active_job:
            await self._publish_status(status.failed_with(AgentError.JOB_PARSER_ERROR, refusal.failure))
            self._active_job = ""
            await self._close_transfer()

    async def _begin_update(self, job: OtaJob) -> bool:
        if self._platform_in_self_test():
            await self._ports.pal.reset("a new image is on trial, and the job is not")
        if job.file.size > self._build.file_max_bytes:
            self._ports.app.tell(f"a file of {job.file.size} bytes is above {self._build.file_max_bytes}")
            await self._close_transfer()
            return False
        protocol = self._choose_protocol(job)
        self._transfer = Transfer(job, self._build.block_size)
        self._previous_version = job.updated_by
        try:
            await self._ports.pal.create_file(job.file)
        except PalError as error:
            self._ports.app.tell(str(error))
            await self._set_image_state(ImageState.ABORTED, error.status)
            await self._close_transfer()
            return False
        if protocol is None:
            await self._set_image_state(ImageState.ABORTED, AgentError.INVALID_DATA_PROTOCOL)
            await self._close_transfer()
            return False
        self._path = self._path_for(protocol)
        self._ports.app.tell(f"job {job.job_id}: {job.file.size} bytes over {protocol}")
        return self.signal(AgentEvent.CREATE_FILE)

    def _choose_protocol(self, job: OtaJob) -> DataProtocol | None:
        supported = self._build.protocols if self._ports.http is not None else frozenset({DataProtocol.MQTT})
        usable = [protocol for protocol in DataProtocol if protocol in job.protocols and protocol in supported]
        return self._build.primary if self._build.primary in usable else next(iter(usable), None)

    def _path_for(self, protocol: DataProtocol) -> DataPath:
        if protocol is DataProtocol.MQTT or self._ports.http is None:
            return MqttPath(self._thing, self._ports.messages)
        return HttpPath(
            self._ports.http,
            deliver=lambda body: self.signal(AgentEvent.RECEIVED_FILE_BLOCK, body),
            renew=lambda: self.signal(AgentEvent.REQUEST_JOB_DOCUMENT),
        )

    # --- self-test ----------------------------------------------------------------------------------------------------

    async def _judge_version(self, job: OtaJob) -> bool:
        """Begin the test of an image that is newer than the app that installed it; reject any other."""
        self._previous_version = job.updated_by
        error = self._version_error(job)
        if error is AgentError.NONE:
            await self._set_image_state(ImageState.TESTING, AgentError.NONE)
        else:
            await self._set_image_state(ImageState.REJECTED, error)
            await self._ports.app.ota_event(AppEvent.SELF_TEST_FAILED)
            await self._ports.pal.reset(f"the job's image does not run: {error.name.lower().replace('_', ' ')}")
        if self._image_state is not ImageState.TESTING:
            return False
        return self.signal(AgentEvent.START_SELF_TEST)

    def _version_error(self, job: OtaJob) -> AgentError:
        if job.file.file_id != 0 or job.file.file_type != FIRMWARE_FILE_TYPE or self._running > job.updated_by:
            return AgentError.NONE
        same = self._running == job.updated_by
        return AgentError.SAME_FIRMWARE_VERSION if same else AgentError.DOWNGRADE_NOT_ALLOWED

    async def _self_test(self, _: bytes) -> bool:
        self._ports.app.tell("Beginning self-test.")
        if not self._platform_in_self_test():
            await self._set_image_state(ImageState.REJECTED, AgentError.IMAGE_STATE_MISMATCH)
            await self._ports.pal.reset("the job is in self-test, the platform is not")
        await self._ports.app.ota_event(AppEvent.START_TEST)
        self._ports.timers.stop(OtaTimer.SELF_TEST)
        return True

    async def set_image_state(self, state: ImageState) -> None:
        """Accept or reject the running image, as the app's own test says; a rejection restarts nothing by itself."""
        await self._set_image_state(state, AgentError.USER_ABORT if state is ImageState.ABORTED else AgentError.NONE)

    async def activate(self) -> None:
        """Start the new image. Raises `PalError` if the platform cannot, else `Restart`."""
        await self._ports.pal.activate()

    # --- blocks -------------------------------------------------------------------------------------------------------

    async def _init_file(self, _: bytes) -> bool:
        assert self._transfer is not None
        assert self._path is not None
        if await self._path.begin(self._transfer):
            self._momentum = 0
            return self.signal(AgentEvent.REQUEST_FILE_BLOCK)
        self._try_again_or_shut_down()
        return False

    async def _request_data(self, _: bytes) -> bool:
        if self._transfer is None or self._path is None or not self._transfer.remaining:
            return True
        if self._momentum < self._build.momentum:
            self._ports.timers.start(OtaTimer.REQUEST, self._build.request_wait_s)
            self._momentum += 1
            self._blocks_to_come = await self._path.request(self._transfer, self._build.blocks_per_request)
            return self._blocks_to_come > 0
        self._ports.timers.stop(OtaTimer.REQUEST)
        self._ports.app.tell(f"no block after {self._momentum} requests")
        await self._set_image_state(ImageState.ABORTED, AgentError.NONE)
        self._momentum = 0
        self.signal(AgentEvent.SHUTDOWN)
        return False

    async def _process_data(self, payload: bytes) -> bool:
        transfer, path = self._transfer, self._path
        if transfer is None or path is None or not transfer.is_open:
            return await self._fail(PalCode.UNINITIALIZED, 0, "a block without a file")
        self._ports.timers.start(OtaTimer.REQUEST, self._build.request_wait_s)
        try:
            number, data = path.decode(payload, transfer)
        except MalformedMessage as error:
            return await self._fail(PalCode.UNINITIALIZED, 0, str(error))
        if not transfer.fits(number, len(data)):
            text = f"block {number} of {len(data)} bytes is none of the file's"
            return await self._fail(PalCode.UNINITIALIZED, 0, text)
        if not transfer.has(number):
            try:
                await self._ports.pal.write_block(number * transfer.block_size, data)
            except PalError as error:
                return await self._fail(PalCode.UNINITIALIZED, 0, str(error))
            transfer.take(number)
            self._momentum = 0
            self._ports.app.progress(transfer.received, transfer.blocks)
            if not transfer.remaining:
                return await self._complete(transfer)
            if transfer.received == 1 or transfer.received % self._build.status_every_blocks == 0:
                receiving = status.receiving(transfer.received, transfer.blocks)
                await self._publish_status(receiving, qos=status.RECEIVING_QOS)
        if self._blocks_to_come > 1:
            self._blocks_to_come -= 1
        else:
            self.signal(AgentEvent.REQUEST_FILE_BLOCK)
        return True

    async def _complete(self, transfer: Transfer) -> bool:
        """Check the signature of the file that is whole now, say so, let the app activate it."""
        self._ports.timers.stop(OtaTimer.REQUEST)
        try:
            await self._ports.pal.close_file()
        except PalError as error:
            return await self._fail(error.main, error.sub_code, str(error))
        is_firmware = transfer.job.file.file_type == FIRMWARE_FILE_TYPE
        if is_firmware:
            await self._publish_status(status.self_test(status.SelfTestPhase.READY, self._running))
        else:
            await self._publish_status(status.accepted(transfer.job.file.file_type, transfer.job.updated_by))
        self._end_of_data()
        await self._ports.app.ota_event(AppEvent.ACTIVATE if is_firmware else AppEvent.UPDATE_COMPLETE)
        return True

    async def _fail(self, main: int, sub_code: int, text: str) -> bool:
        """Reject what came, and end the job at once."""
        self._ports.app.tell(text)
        await self._leave_image(ImageState.REJECTED)
        await self._publish_status(status.failed_with(main, sub_code))
        self._end_of_data()
        await self._ports.app.ota_event(AppEvent.FAIL)
        return True

    def _end_of_data(self) -> None:
        self._ports.timers.stop(OtaTimer.REQUEST)
        self.signal(AgentEvent.CLOSE_FILE)
        self._active_job = ""

    async def _give_way(self, _: bytes) -> bool:
        """Drop this job without a word, since another one is next, and ask which it is."""
        self._ports.timers.stop(OtaTimer.REQUEST)
        await self._leave_image(ImageState.ABORTED)
        await self._close_transfer()
        self._active_job = ""
        return self.signal(AgentEvent.REQUEST_JOB_DOCUMENT)

    async def _close_file(self, _: bytes) -> bool:
        await self._close_transfer()
        return True

    # --- life ---------------------------------------------------------------------------------------------------------

    async def _suspend(self, _: bytes) -> bool:
        self._ports.timers.stop(OtaTimer.REQUEST)
        return True

    async def _resume(self, _: bytes) -> bool:
        return self.signal(AgentEvent.REQUEST_JOB_DOCUMENT)

    async def _user_abort(self, _: bytes) -> bool:
        if not self._active_job:
            return False
        await self._set_image_state(ImageState.ABORTED, AgentError.USER_ABORT)
        self._ports.timers.stop(OtaTimer.REQUEST)
        await self._close_transfer()
        return True

    async def _shut_down(self, _: bytes) -> bool:
        self.state = AgentState.SHUTTING_DOWN
        self._ports.timers.stop(OtaTimer.REQUEST)
        await self._ports.messages.unsubscribe(notify_next_topic(self._thing))
        await self._close_transfer()
        self._active_job = ""
        self._queue.clear()
        return True

    def _try_again_or_shut_down(self) -> None:
        """Have a request that could not be made made again when the request timer runs out, but not for ever."""
        if self._momentum < self._build.momentum:
            self._momentum += 1
            self._ports.timers.start(OtaTimer.REQUEST, self._build.request_wait_s)
            return
        self._ports.timers.stop(OtaTimer.REQUEST)
        self.signal(AgentEvent.SHUTDOWN)

    # --- shared -------------------------------------------------------------------------------------------------------

    def _platform_in_self_test(self) -> bool:
        return self._ports.pal.image_state() is PalImageState.PENDING_COMMIT

    async def _leave_image(self, state: ImageState) -> None:
        """Tell the platform alone; a failure there changes nothing, as in the C agent."""
        try:
            await self._ports.pal.set_image_state(state)
        except PalError as error:
            self._ports.app.tell(str(error))

    async def _set_image_state(self, state: ImageState, reason: int) -> None:
        """Tell the platform, then the service. What the platform cannot do is a rejection, with its status."""
        try:
            await self._ports.pal.set_image_state(state)
        except PalError as error:
            self._ports.app.tell(str(error))
            if state is not ImageState.ABORTED:
                state, reason = ImageState.REJECTED, reason or error.status
        self._image_state = state
        if not self._active_job:
            return
        if state is ImageState.TESTING:
            await self._publish_status(status.self_test(status.SelfTestPhase.ACTIVE, self._running))
            return
        if state is ImageState.ACCEPTED:
            await self._publish_status(status.accepted(self._running, self._previous_version))
        else:
            word = status.FailureWord.REJECTED if state is ImageState.REJECTED else status.FailureWord.ABORTED
            await self._publish_status(status.not_accepted(word, reason))
        self._active_job = ""

    async def _publish_status(self, payload: bytes, *, qos: int = status.STATUS_QOS) -> None:
        topic = JobsTopic(self._thing, JobsOperation.UPDATE, self._active_job).text
        if not await self._ports.messages.publish(topic, payload, qos):
            self._ports.app.tell(f"the status was not sent: {payload.decode('ascii')}")

    async def _close_transfer(self) -> None:
        """Let go of data path and file."""
        path, self._path, self._transfer = self._path, None, None
        if path is not None:
            await path.cleanup()
        await self._ports.pal.abort()
