"""A DDI agent: poll, download with resume, verify, install, restart, self-test, report.

Its state is in `ddi_action`; this module does what the record's stage says. Source: docs/reference/hawkbit-ddi.md and
docs/reference/virtual-devices.md, "DDI agent".
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from flota.errors import FlotaError, InvalidInput, Unauthenticated
from flota.protocols.ddi import (
    ConfigData,
    DdiArtifact,
    Deployment,
    Feedback,
    FeedbackExecution,
    FeedbackFinished,
    Handling,
    PollAnswer,
    Progress,
    action_id_of,
)
from flota.transports.ddi_link import ActionGone, DdiLink, ServerBusy
from flota.transports.download import Expected, ResumePoint, RetryPolicy, download
from flota.trust.signed_release import SignedRelease, open_release
from flota.trust.trust_file import TrustedSigners
from flota.virtual.agents.ddi_action import (
    CHOICES_MAX,
    ActionRecord,
    Stage,
    Verdict,
    judge_restart,
    load_action,
    save_action,
    why_it_failed,
)
from flota.virtual.agents.signed_release import ACCEPTED_KEY, refuse_unless_for
from flota.virtual.device import LAST_PANIC_KEY, AppContext
from flota.virtual.events import EventKind
from flota.virtual.hardware import ImageNote, ImageNotes
from flota.virtual.slots import DeviceSlots, ResetReason, Restart, SlotWriter

SAVE_EVERY_BYTES: Final = 32 * 1024
PIECE_BYTES: Final = 4096
RETRY: Final = RetryPolicy(first_delay_s=0.5, longest_delay_s=30.0, tries_without_progress=8)
NO_ANSWER_PERIOD_S: Final = 30.0
"""Device time between polls while the server does not answer."""


class CanceledByServer(Exception):
    """The server wants the action stopped."""


@dataclass(frozen=True, slots=True)
class DdiSettings:
    """How the agent works. `period_s` None: as the server says. `now` is the trusted clock, None: it has none."""

    period_s: float | None = None
    signers: TrustedSigners | None = None
    now: Callable[[], datetime] | None = None
    hardware_revision: str | None = None


class DdiAgent:
    """Polls over `link` and does what it is told."""

    def __init__(self, link: DdiLink, settings: DdiSettings | None = None) -> None:
        self._link = link
        self._settings = settings or DdiSettings()
        self._period_s = NO_ANSWER_PERIOD_S

    async def run(self, context: AppContext) -> None:
        """Settle what the last life left, then poll for ever. Ends by `Restart`."""
        await self.settle(context)
        while True:
            await self.poll_once(context)
            await context.pace.spend(self._period_s * (0.95 + 0.1 * context.rng.random()))

    async def settle(self, context: AppContext) -> None:
        """Look at what became of the action that was being installed. May choose the boot slot again and restart."""
        record = load_action(context.nvs)
        if record is None or record.stage is not Stage.INSTALLING:
            return
        slots = context.slots
        running = hashlib.sha256(slots.read(slots.running.slot, record.size)).hexdigest()
        verdict = judge_restart(record, slots, running)
        if verdict is Verdict.RUNS:
            self._accept(context, record)
            reason = f"version {slots.running.version} runs in {record.slot} and has confirmed itself"
            save_action(context.nvs, replace(record, stage=Stage.REPORTING, success=True, reason=reason))
            return
        if verdict is Verdict.CHOICE_LOST and record.choices < CHOICES_MAX:
            context.tell(EventKind.RESUMED, f"the choice of {record.slot} did not survive the power cut: once more")
            await self._choose(context, record)
        reason = why_it_failed(record, context.nvs, verdict, slots.running.version)
        if verdict is Verdict.FELL_BACK:
            slots.set_boot(slots.running.slot)  # else the refused image would be tried first for ever
        context.tell(EventKind.ROLLED_BACK, reason, slot=record.slot, version=record.version)
        save_action(context.nvs, replace(record, stage=Stage.REPORTING, success=False, reason=reason))
        context.nvs.set(LAST_PANIC_KEY, None)

    async def poll_once(self, context: AppContext) -> None:
        """Make one poll and whatever follows from it. Failures are told, not raised."""
        try:
            await self._report_outcome(context)
            answer = await self._link.poll()
            self._period_s = self._settings.period_s or answer.sleep_s
            await self._obey(context, answer)
        except Unauthenticated as error:
            context.tell(EventKind.TROUBLE, str(error))
            self._period_s = self._settings.period_s or NO_ANSWER_PERIOD_S
        except FlotaError as error:
            context.tell(EventKind.BREAK if isinstance(error, ServerBusy) else EventKind.TROUBLE, str(error))

    async def _obey(self, context: AppContext, answer: PollAnswer) -> None:
        context.tell(EventKind.POLL, "poll", sleep_s=answer.sleep_s)
        if answer.config_data is not None:
            await self._link.send_config_data(answer.config_data, ConfigData(self._attributes(context)))
        if answer.cancel_action is not None:
            await self._cancel(context, answer.cancel_action)
        elif answer.deployment_base is not None:
            await self._deploy(context, answer.deployment_base)

    def _attributes(self, context: AppContext) -> dict[str, str | None]:
        app = context.slots.running
        return {
            **context.identity.attributes,
            "board": context.identity.board,
            "type": context.identity.device_type,
            "mac": context.identity.mac,
            "version": app.version,
            "slot": app.slot,
            "sha256": app.sha256,
        }

    # --- a deployment -------------------------------------------------------------------------------------------------

    async def _deploy(self, context: AppContext, href: str) -> None:
        record = load_action(context.nvs)
        action_id = action_id_of(href)
        if record is not None and record.action_id == action_id and record.stage is Stage.CLOSED:
            await self._close(context, record)  # the server has lost the report, or never understood it
            return
        deployment = await self._link.deployment(href)
        if deployment.download is Handling.SKIP:
            context.tell(EventKind.POLL, f"action {deployment.action_id} waits for its download window")
            return
        try:
            artifact, release = self._judge(context, deployment)
            await self._fetch_and_install(context, deployment, artifact, release)
        except CanceledByServer:
            context.tell(EventKind.CANCELED, f"action {deployment.action_id} is to be stopped")
        except ActionGone as gone:
            context.tell(EventKind.CANCELED, f"action {deployment.action_id} is over: {gone}")
            save_action(context.nvs, None)
        except ServerBusy:
            raise
        except FlotaError as error:
            context.tell(EventKind.UPDATE_FAILED, str(error), action=deployment.action_id)
            await self._fail(context, deployment, str(error))

    def _judge(self, context: AppContext, deployment: Deployment) -> tuple[DdiArtifact, SignedRelease | None]:
        """Return the deployment's one file, and its signed manifest if signers are configured; raises if refused."""
        artifacts = [artifact for chunk in deployment.chunks for artifact in chunk.artifacts]
        if len(deployment.chunks) != 1 or len(artifacts) != 1:
            raise InvalidInput(
                "this device takes one file",
                expected="1 chunk, 1 artifact",
                found=f"{len(deployment.chunks)}, {len(artifacts)}",
            )
        slot = context.slots.next_slot()
        if artifacts[0].size > context.slots.capacity(slot):
            raise InvalidInput(
                f"the file does not fit into {slot}",
                expected=f"at most {context.slots.capacity(slot)}",
                found=artifacts[0].size,
            )
        if self._settings.signers is None:
            return artifacts[0], None
        release = open_release(deployment.chunks[0].metadata, self._settings.signers)
        refuse_unless_for(
            release,
            context.identity,
            context.nvs,
            hardware_revision=self._settings.hardware_revision,
            now=None if self._settings.now is None else self._settings.now(),
        )
        release.refuse_unless_signed(artifacts[0].size, artifacts[0].sha256)
        return artifacts[0], release

    async def _fetch_and_install(
        self, context: AppContext, deployment: Deployment, artifact: DdiArtifact, release: SignedRelease | None
    ) -> None:
        chunk = deployment.chunks[0]
        slot = context.slots.next_slot()
        old = load_action(context.nvs)
        resumable = (
            old is not None
            and old.stage is Stage.DOWNLOADING
            and (old.action_id, old.sha256, old.slot) == (deployment.action_id, artifact.sha256, slot)
        )
        record = ActionRecord(
            deployment.action_id,
            Stage.DOWNLOADING,
            chunk.version,
            artifact.size,
            artifact.sha256,
            slot,
            written=old.written if old is not None and resumable else 0,
            etag=old.etag if old is not None and resumable else None,
            sequence=0 if release is None else release.manifest.sequence,
            manifest_sha256=None if release is None else release.sha256,
        )
        save_action(context.nvs, record)
        text = f"version {chunk.version} offered, {artifact.size} bytes for {slot}"
        context.tell(EventKind.OFFER, text, action=deployment.action_id, version=chunk.version)
        await self._tell_server(context, record, FeedbackExecution.DOWNLOAD, text, Progress(0, artifact.size))
        sink = SlotSink(self, context, record)
        writer = await sink.fetch(artifact)
        await writer.finish()
        context.tell(EventKind.VERIFIED, f"{artifact.size} bytes verified in {slot}", sha256=artifact.sha256)
        done = Progress(artifact.size, artifact.size)
        await self._tell_server(context, record, FeedbackExecution.DOWNLOADED, "downloaded and verified", done)
        if deployment.update is Handling.SKIP:
            context.tell(EventKind.POLL, "waits for its installation window")
            return
        ImageNotes(context.nvs).add(ImageNote(record.version, record.size, record.sha256))
        await self._tell_server(context, record, FeedbackExecution.PROCEEDING, f"restarting into {slot}", done)
        await self._choose(context, record)

    async def _choose(self, context: AppContext, record: ActionRecord) -> None:
        """Choose the slot for the next boot and restart; the record says so first."""
        save_action(context.nvs, replace(record, stage=Stage.INSTALLING, choices=record.choices + 1))
        context.nvs.set(LAST_PANIC_KEY, None)
        context.slots.set_boot(record.slot)
        await context.pace.pay()
        context.tell(EventKind.INSTALLED, f"{record.slot} is chosen for the next boot", slot=record.slot)
        raise Restart(ResetReason.SOFTWARE, "to start the update")

    def _accept(self, context: AppContext, record: ActionRecord) -> None:
        """After confirmation, never before, an older release is refused from now on."""
        if record.sequence:
            context.nvs.set(ACCEPTED_KEY, {"sequence": record.sequence, "sha256": record.manifest_sha256})

    # --- reports ------------------------------------------------------------------------------------------------------

    async def _fail(self, context: AppContext, deployment: Deployment, reason: str) -> None:
        record = load_action(context.nvs)
        if record is None or record.action_id != deployment.action_id:
            version = deployment.chunks[0].version if deployment.chunks else ""
            record = ActionRecord(deployment.action_id, Stage.REPORTING, version, 0, "", "")
        save_action(context.nvs, replace(record, stage=Stage.REPORTING, success=False, reason=reason))
        await self._report_outcome(context)

    async def _report_outcome(self, context: AppContext) -> None:
        """Tell the server how the action ended, if it does not know yet."""
        record = load_action(context.nvs)
        if record is not None and record.stage is Stage.REPORTING:
            await self._close(context, record)

    async def _close(self, context: AppContext, record: ActionRecord) -> None:
        finished = FeedbackFinished.SUCCESS if record.success else FeedbackFinished.FAILURE
        feedback = Feedback(FeedbackExecution.CLOSED, finished, action_id=record.action_id, details=(record.reason,))
        try:
            await self._link.report(record.action_id, feedback)
        except ActionGone:
            context.tell(EventKind.REPORTED, f"action {record.action_id}: the server has closed it already")
        else:
            context.tell(
                EventKind.REPORTED,
                f"action {record.action_id}: {finished.value}: {record.reason}",
                action=record.action_id,
            )
        save_action(context.nvs, replace(record, stage=Stage.CLOSED))

    async def _tell_server(
        self, context: AppContext, record: ActionRecord, execution: FeedbackExecution, text: str, progress: Progress
    ) -> None:
        """Report progress; if the link is down, the next report will do."""
        feedback = Feedback(
            execution, FeedbackFinished.NONE, action_id=record.action_id, details=(text,), progress=progress
        )
        try:
            await self._link.report(record.action_id, feedback)
        except ServerBusy as error:
            context.tell(EventKind.BREAK, str(error))

    async def tell_progress(self, context: AppContext, record: ActionRecord, text: str, progress: Progress) -> None:
        """Report how far a download is."""
        await self._tell_server(context, record, FeedbackExecution.DOWNLOAD, text, progress)

    # --- cancelling ---------------------------------------------------------------------------------------------------

    async def _cancel(self, context: AppContext, href: str) -> None:
        cancellation = await self._link.cancellation(href)
        record = load_action(context.nvs)
        too_late = (
            record is not None and record.action_id == cancellation.stop_id and record.stage is not Stage.DOWNLOADING
        )
        if too_late:
            feedback = Feedback(
                FeedbackExecution.REJECTED,
                FeedbackFinished.SUCCESS,
                action_id=cancellation.action_id,
                details=("the installation has begun",),
            )
        else:
            if record is not None and record.action_id == cancellation.stop_id:
                save_action(context.nvs, None)
            feedback = Feedback(
                FeedbackExecution.CLOSED,
                FeedbackFinished.SUCCESS,
                action_id=cancellation.action_id,
                details=("stopped",),
            )
        await self._link.report_cancellation(cancellation.action_id, feedback)
        context.tell(EventKind.CANCELED, f"action {cancellation.stop_id}: {feedback.details[0]}")

    async def refuse_if_canceled(self, context: AppContext, action_id: int) -> None:
        """Poll in the middle of a download; raises `CanceledByServer` if the action is not to go on."""
        try:
            answer = await self._link.poll()
        except ServerBusy:
            return
        if answer.cancel_action is not None and action_id_of(answer.cancel_action) == action_id:
            await self._cancel(context, answer.cancel_action)
            raise CanceledByServer

    @property
    def link(self) -> DdiLink:
        """The agent's connection."""
        return self._link

    @property
    def period_s(self) -> float:
        """Device time between polls (seconds)."""
        return self._period_s


class SlotSink:
    """Writes a download into its slot, keeps the resume point in NVS, tells of progress, notices a cancellation."""

    def __init__(self, agent: DdiAgent, context: AppContext, record: ActionRecord) -> None:
        self._agent = agent
        self._context = context
        self._record = record
        self._writer: SlotWriter | None = None
        self._taken = record.written
        self._start = ResumePoint()
        self._polled_at = asyncio.get_running_loop().time()

    async def fetch(self, artifact: DdiArtifact) -> SlotWriter:
        """Fetch the file into the slot and return the writer, all bytes given to it, the image not yet verified."""
        record, slots = self._record, self._context.slots
        start = self._start
        if record.written:
            start = self._start = self._resume_point(slots)
            self._writer = await slots.resume(record.slot, record.size, start.offset)
            self._context.tell(EventKind.RESUMED, f"goes on at {start.offset} of {record.size}", at=start.offset)
        else:
            self._writer = await slots.begin(record.slot, record.size)
        url = artifact.download or artifact.download_http
        if url is None:
            raise InvalidInput("the artifact has no download link")
        try:
            await download(
                self._agent.link.client,
                url,
                self,
                expected=Expected(artifact.size, artifact.sha256),
                start=start,
                headers=self._agent.link.headers,
                rng=self._context.rng,
                sleep=self._context.pace.wait_for_peer,
                policy=RETRY,
                on_break=self._tell_break,
            )
        except BaseException:
            self._writer.abandon()
            raise
        return self._writer

    async def write(self, data: bytes) -> None:
        """Take the next bytes, in pieces as small as a device's receive buffer."""
        for start in range(0, len(data), PIECE_BYTES):
            await self._write_piece(data[start : start + PIECE_BYTES])
        now = asyncio.get_running_loop().time()
        if now - self._polled_at > self._agent.period_s / self._context.pace.speed:
            self._polled_at = now
            await self._agent.refuse_if_canceled(self._context, self._record.action_id)

    async def _write_piece(self, data: bytes) -> None:
        assert self._writer is not None
        await self._writer.write(data)
        before, self._taken = self._taken, self._taken + len(data)
        if self._writer.durable - self._record.written >= SAVE_EVERY_BYTES:
            self._record = replace(self._record, written=self._writer.durable, etag=self._start.etag)
            save_action(self._context.nvs, self._record)
        await self._tell_quarter(before)

    async def restart(self) -> None:
        """Begin the slot again: the file has changed, or the server does not resume."""
        assert self._writer is not None
        self._writer.abandon()
        self._taken = 0
        self._start = ResumePoint()  # the ETag of the new start is not known here: resume without If-Range then
        self._record = replace(self._record, written=0, etag=None)
        save_action(self._context.nvs, self._record)
        self._writer = await self._context.slots.begin(self._record.slot, self._record.size)

    def _resume_point(self, slots: DeviceSlots) -> ResumePoint:
        """Return where to go on; the digest of what is there is computed from flash, not remembered."""
        digest = hashlib.sha256(slots.read(self._record.slot, self._record.written))
        return ResumePoint(self._record.written, digest, self._record.etag)

    async def _tell_quarter(self, before: int) -> None:
        size = self._record.size
        if before * 4 // size == self._taken * 4 // size or self._taken >= size:
            return
        text = f"{self._taken * 100 // size} %"
        self._context.tell(EventKind.PROGRESS, text, done=self._taken, of=size)
        await self._agent.tell_progress(self._context, self._record, text, Progress(self._taken, size))

    def _tell_break(self, reason: str, offset: int, wait_s: float) -> None:
        self._context.tell(EventKind.BREAK, f"interrupted at {offset}: {reason}; again in {wait_s:.1f} s", at=offset)
