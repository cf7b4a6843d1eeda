"""A network co-processor for a primary MCU: this machine, a serial line on one side, the server on the other.

The protocol machine (`flota.protocols.blynk.ncp`) decides what is said on the line; this module asks the server,
fetches and verifies, keeps the job on the disk before each step, and reports.
Source: docs/reference/blynk.md, "flota ncp run".
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog

from flota.errors import FlotaError, Refused, StorageFull, Unauthenticated
from flota.gateway.artifact_cache import ArtifactCache, Source
from flota.gateway.configuration import DEFAULT_CACHE_BYTES, read_trust_files
from flota.gateway.daemon import stop_at_signals
from flota.gateway.journal import one_gateway
from flota.gateway.ncp_journal import NcpJob, NcpJournal, NcpRecord
from flota.gateway.ncp_settings import DRIVER, NcpRunSettings, state_directory
from flota.gateway.ncp_update_desk import judge_deployment, ready_job, update_job, with_verdict
from flota.protocols.blynk.catalogue import PrefetchStatus
from flota.protocols.blynk.ncp import Initialized, McuLost, Ncp, NcpSettings, RateFellBack, Reported
from flota.protocols.blynk.ncp_job import (
    JobEnded,
    NeedBytes,
    Outcome,
    PrefetchWanted,
    Progressed,
    RebootDue,
    Remark,
    StateChanged,
)
from flota.protocols.blynk.ncp_states import UpdateState
from flota.protocols.ddi import (
    GATEWAY_TOKEN,
    TARGET_TOKEN,
    ConfigData,
    DdiAddresses,
    Deployment,
    Feedback,
    FeedbackExecution,
    FeedbackFinished,
    Handling,
    PollAnswer,
    Progress,
    action_id_of,
)
from flota.protocols.peer_text import clean_text
from flota.transports.ddi_link import ActionGone, DdiLink, ServerBusy
from flota.transports.download import DigestMismatch, DownloadFailed, LengthMismatch, NotOffered
from flota.transports.http import http_client
from flota.transports.uart import LineUnusable, MachineOnLine, SerialLine
from flota.trust.trust_file import TrustedSigners

NO_ANSWER_PERIOD_S: Final = 15.0
"""Between polls while the server does not answer."""
AT_ONCE_S: Final = 0.2
REOPEN_S: Final = 1.0
"""Between tries to open a line that is lost: an adapter that was pulled out, a board that is being exchanged."""
PROGRESS_EVERY_S: Final = 2.0

_STATE_WORDS: Final = {
    UpdateState.OFFERED: "offered to the MCU",
    UpdateState.ACCEPTED: "the MCU took the offer",
    UpdateState.STREAMING: "the MCU began to receive",
    UpdateState.FINISHING: "all bytes are at the MCU",
    UpdateState.APPLIED: "the MCU applies it; waiting for its version",
    UpdateState.SETTLING: "the MCU reports the new version; waiting whether it keeps it",
}
"""What the server is told on the way."""

_log = structlog.get_logger(__name__)


class NcpGateway:
    """One NCP with its settings."""

    def __init__(self, settings: NcpRunSettings) -> None:
        self.settings = settings
        self._device = settings.adopted()
        self._server = settings.server.rstrip("/")
        self._record = NcpRecord(settings.device)
        self._signers: Sequence[TrustedSigners] = ()
        self._wake = asyncio.Event()
        self._image = b""
        self._progress = 0
        self._told_words: str | None = None
        self._told_progress = 0
        self._told_attributes: dict[str, str | None] | None = None
        self._said: str | None = None
        self._full: StorageFull | None = None
        self._rng = random.Random()  # noqa: S311 - jitter of waits, nothing secret

    async def run(self, stop: asyncio.Event) -> None:
        """Serve the MCU until `stop`. Raises `Conflict` if the state directory is in use, `BadTrustFile`, …."""
        settings = self.settings
        self._signers = read_trust_files([Path(path) for path in settings.trust])
        directory = state_directory(settings)
        with one_gateway(directory):
            self._journal = NcpJournal(directory)
            self._record = self._journal.load(settings.device)
            cacert = None if settings.cacert is None else Path(settings.cacert)
            async with http_client(cacert=cacert, tls=self._server.startswith("https:")) as client:
                cache = ArtifactCache(directory / "cache", client, max_bytes=DEFAULT_CACHE_BYTES, rng=self._rng)
                scheme = GATEWAY_TOKEN if settings.is_gateway_token else TARGET_TOKEN
                addresses = DdiAddresses(self._server, settings.tenant, settings.device)
                self._addresses = addresses
                self._link = DdiLink(client, addresses, settings.token, scheme=scheme)
                self._cache = cache
                self._ncp = self._machine()
                self._line = MachineOnLine(self._ncp, self._happened, on_trouble=self._line_trouble)
                await self._take_up()
                _log.info("ncp.running", device=settings.device, serial=settings.serial, server=self._server)
                await self._serve(stop)

    def _machine(self) -> Ncp:
        settings = self.settings
        return Ncp(
            NcpSettings(
                initial_baud=settings.baud,
                bauds=settings.bauds(),
                announces_start=False,
                update=settings.update_settings(),
            ),
            now=asyncio.get_running_loop().time(),
        )

    async def _serve(self, stop: asyncio.Event) -> None:
        holding = asyncio.ensure_future(self._hold_line())
        asking = asyncio.ensure_future(self._ask_server())
        stopping: asyncio.Task[bool] = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({holding, asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in (holding, asking):
                if task.done():
                    task.result()  # only a bug ends them
        finally:
            for one in (holding, asking, stopping):
                one.cancel()
            await asyncio.gather(holding, asking, stopping, return_exceptions=True)
            await self._line.stop()
            _log.info("ncp.stopped", device=self.settings.device)

    async def _take_up(self) -> None:
        """Go on with the job of this NCP's last life, if its file is still here."""
        job = self._record.job
        if job is None or (job.outcome and not self._may_come_back(job)):
            return
        data = await self._cache.kept(job.sha256)
        if data is None:
            if not job.outcome and not job.was_accepted:
                self._change(replace(self._record, job=None))  # the server offers it again, and it is fetched again
            return
        self._image = data
        now = self._line.now
        self._say("resumed", f"version {job.version} was {job.state.value} when this NCP stopped")
        self._line.tell(self._ncp.keep(update_job(job, data), job.state, verdict_given=bool(job.outcome), now=now))

    def _may_come_back(self, job: NcpJob) -> bool:
        """Whether a boot loader may still come for a job that failed."""
        waits = self.settings.update_settings().left_to_boot_loader
        return waits and job.was_accepted and job.outcome != Outcome.SUCCEEDED.value

    # --- the line -----------------------------------------------------------------------------------------------------

    async def _hold_line(self) -> None:
        """Keep the serial line open; when it is lost, open it again."""
        while True:
            lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

            def on_lost(reason: str, lost: asyncio.Future[str] = lost) -> None:
                if not lost.done():
                    lost.set_result(reason)

            try:
                line = await SerialLine.open(
                    self.settings.serial, self._ncp.baud, on_data=self._line.received, on_lost=on_lost
                )
            except LineUnusable as error:
                self._say_once("line-unusable", str(error))
                await asyncio.sleep(REOPEN_S)
                continue
            self._say("line-open", f"{self.settings.serial} at {self._ncp.baud} baud")
            self._line.attach(line)
            self._line.tell(self._ncp.line_opened(now=self._line.now))
            try:
                reason = await lost
            finally:
                self._line.attach(None)
                await line.close()
            self._say("line-lost", reason)
            await asyncio.sleep(REOPEN_S)

    def _line_trouble(self, text: str) -> None:
        self._say("line-trouble", text)

    def _happened(self, event: object) -> None:
        """Take an event of the machine. What has to be on the disk before the next byte goes out is, on return."""
        if isinstance(event, NeedBytes):
            data = self._image[event.offset : event.offset + event.length]
            self._line.tell(self._ncp.supply(event.offset, data, now=self._line.now))
        elif isinstance(event, PrefetchWanted):
            self._line.tell(self._ncp.prefetched(PrefetchStatus.DONE, now=self._line.now))
        elif isinstance(event, Progressed):
            self._progress = event.stored
        elif isinstance(event, StateChanged):
            self._state_changed(event.state)
        elif isinstance(event, JobEnded):
            self._job_ended(event)
        elif isinstance(event, Reported):
            self._mcu_reported(event)
        elif isinstance(event, Initialized):
            self._say("mcu-initialized", f"template {clean_text(event.template_id)}")
            self._wake.set()
        elif isinstance(event, McuLost):
            self._say("mcu-lost", f"nothing was heard of the MCU for {event.silent_s:.0f} s")
        elif isinstance(event, RateFellBack):
            self._say("rate-fell-back", f"nothing was heard at {event.baud} baud")
        elif isinstance(event, Remark):
            self._say("remark", event.text)
        elif isinstance(event, RebootDue):
            self._say("restarting", "the MCU applies the image: waiting for its bring-up")

    def _state_changed(self, state: UpdateState) -> None:
        job, held = self._record.job, self._ncp.update.job
        if job is None or job.outcome:
            return
        accepted = job.was_accepted or (held is not None and held.was_accepted)
        if state is not UpdateState.IDLE:
            self._change(replace(self._record, job=replace(job, state=state, was_accepted=accepted)))
        if state is UpdateState.STREAMING:
            self._progress = 0
        self._say(f"update-{state.value}", f"version {job.version}")
        self._wake.set()

    def _job_ended(self, event: JobEnded) -> None:
        succeeded = event.outcome is Outcome.SUCCEEDED
        if self._record.job is not None:
            self._change(
                with_verdict(self._record, outcome=event.outcome.value, reason=event.reason, succeeded=succeeded)
            )
        self._say("verdict", event.reason, outcome=event.outcome.value)
        self._wake.set()

    def _mcu_reported(self, event: Reported) -> None:
        info = event.info
        version, fw_type = clean_text(info.version), clean_text(info.fw_type)
        self._say("mcu-reported", f"version {version}, type {fw_type}, built {clean_text(info.build)}")
        if (version, fw_type) != (self._record.runs_version, self._record.runs_type):
            self._change(replace(self._record, runs_version=version, runs_type=fw_type))

    # --- the server ---------------------------------------------------------------------------------------------------

    async def _ask_server(self) -> None:
        wait_s = 0.0
        while True:
            self._wake.clear()
            if wait_s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                await asyncio.sleep(AT_ONCE_S)  # what comes together is told together
            wait_s = await self._step()

    async def _step(self) -> float:
        """Do what is to be done with the server now; returns the seconds until the next step."""
        job = self._record.job
        is_open = job is not None and not job.told
        if not (self._ncp.is_initialized or is_open):
            return NO_ANSWER_PERIOD_S  # the MCU is offline, and so is the device: whatever it does wakes us
        try:
            await self._report()
            answer = await self._link.poll()
            self._line.tell(self._ncp.cloud(True, now=self._line.now))
            await self._obey(answer)
            await self._report()
        except Unauthenticated as error:
            self._say_once("token-not-accepted", str(error))
            self._offline()
            return self.settings.poll_s or NO_ANSWER_PERIOD_S
        except FlotaError as error:
            self._say_once("server-trouble", str(error))
            self._offline()
            return NO_ANSWER_PERIOD_S
        usual = self.settings.poll_s or float(answer.sleep_s)
        return min(usual, PROGRESS_EVERY_S) if self._ncp.update.is_open else usual

    def _offline(self) -> None:
        self._line.tell(self._ncp.cloud(False, now=self._line.now))

    async def _obey(self, answer: PollAnswer) -> None:
        attributes = self._attributes()
        if answer.config_data is not None or attributes != self._told_attributes:
            await self._link.send_config_data(self._addresses.config_data, ConfigData(attributes))
            self._told_attributes = attributes
        if answer.cancel_action is not None:
            await self._cancel(self._own(answer.cancel_action))
        elif answer.deployment_base is not None:
            await self._deploy(self._own(answer.deployment_base))
        elif answer.confirmation_base is not None:
            self._say_once("waits-for-confirmation", "somebody has to confirm the update at the server")

    def _own(self, href: str) -> str:
        """Return a link of the server. Raises `Refused` for one to elsewhere: our token would go with it."""
        link, server = urlsplit(href), urlsplit(self._server)
        if (link.scheme, link.netloc.lower()) != (server.scheme, server.netloc.lower()):
            raise Refused(
                "the server's link leads to another address",
                expected=f"{server.scheme}://{server.netloc}",
                found=clean_text(f"{link.scheme}://{link.netloc}"),
                hint="Give the NCP the address that devices are given (--public-url of the server).",
            )
        return href

    def _attributes(self) -> dict[str, str | None]:
        device, record = self._device, self._record
        known = {"version": record.runs_version, "fw-type": record.runs_type}
        firmware = self._ncp.firmware
        if firmware is not None:
            known |= {"build": clean_text(firmware.build), "blynk": clean_text(firmware.library)}
        return {
            "board": device.board,
            "type": device.device_type,
            "gateway-driver": DRIVER,
            **{name: text for name, text in known.items() if text},
        }

    async def _deploy(self, href: str) -> None:
        action_id, job = action_id_of(href), self._record.job
        if job is not None and job.action_id == action_id:
            if job.told:
                self._change(replace(self._record, job=replace(job, told=False)))  # it has lost the verdict
                await self._report()
                return
            if self._ncp.update.is_open or job.outcome:
                return
        elif self._ncp.update.is_open:
            self._say_once("busy", "another update is under way")
            return
        deployment = await self._link.deployment(href)
        if deployment.download is Handling.SKIP:
            self._say_once("waits-for-window", "the server does not want it downloaded yet")
            return
        await self._take(deployment)

    async def _take(self, deployment: Deployment) -> None:
        """Judge an offer, fetch its file, and give the job to the machine."""
        now = datetime.now(UTC)
        try:
            offer = judge_deployment(deployment, self._device, self._record, self._signers, now=now)
            url = offer.artifact.download or offer.artifact.download_http
            if url is None:
                raise Refused("the file has no download link")
            source = Source(self._own(url), self._link.headers, offer.artifact.size, offer.artifact.sha256)
            data = await self._cache.get(source)
            ready = await asyncio.to_thread(ready_job, deployment, offer, data, self._device, self._record)
        except (DigestMismatch, LengthMismatch) as error:
            await self._refuse(deployment, error)
            return
        except (DownloadFailed, NotOffered, StorageFull, ServerBusy) as error:
            self._say_once("cannot-fetch", str(error))
            return
        except FlotaError as error:
            await self._refuse(deployment, error)
            return
        for warning in ready.warnings:
            self._say_once("warning", warning)
        if deployment.update is Handling.SKIP:
            self._say_once("waits-for-window", "fetched; the server does not want it installed yet")
            return
        self._image, self._progress, self._told_words = data, 0, None
        self._change(replace(self._record, job=ready.record))
        self._say("accepted", f"version {ready.record.version}, {ready.record.size} bytes, signed for this device")
        if self._record.runs_version == ready.record.version and self._ncp.is_initialized:
            self._job_ended(JobEnded(Outcome.SUCCEEDED, f"the MCU reports version {ready.record.version} already"))
            return
        self._line.tell(self._ncp.offer(ready.update, now=self._line.now))

    async def _refuse(self, deployment: Deployment, error: FlotaError) -> None:
        """Record that this action is refused: the MCU never hears of it."""
        version = clean_text(deployment.chunks[0].version) if deployment.chunks else ""
        job = NcpJob(deployment.action_id, UpdateState.IDLE, "", 0, "", "", version, "")
        self._change(replace(self._record, job=job))
        self._job_ended(JobEnded(Outcome.DECLINED, f"refused: {error}"))
        await self._report()

    async def _cancel(self, href: str) -> None:
        cancellation = await self._link.cancellation(href)
        job = self._record.job
        concerned = job is not None and job.action_id == cancellation.stop_id and not job.outcome
        given_up = True
        if concerned:
            given_up, events = self._ncp.withdraw(now=self._line.now)
            if given_up:
                self._change(replace(self._record, job=None))
            self._line.tell(events)
        execution = FeedbackExecution.CLOSED if given_up else FeedbackExecution.REJECTED
        finished = FeedbackFinished.SUCCESS if given_up else FeedbackFinished.NONE
        text = "stopped: the MCU gets nothing more" if given_up else "too late: the MCU is being updated"
        feedback = Feedback(execution, finished, action_id=cancellation.action_id, details=(text,))
        await self._link.report_cancellation(cancellation.action_id, feedback)
        self._say("cancel", text)

    async def _report(self) -> None:
        """Tell the server the verdict, or how far the update is."""
        job = self._record.job
        if job is None or job.told:
            return
        if job.outcome:
            await self._close(job)
            return
        words = _STATE_WORDS.get(self._ncp.update.state)
        streaming = self._ncp.update.state is UpdateState.STREAMING
        if words is None or (words == self._told_words and (not streaming or self._progress == self._told_progress)):
            return
        progress = Progress(self._progress, job.size) if streaming else None
        feedback = Feedback(
            FeedbackExecution.PROCEEDING,
            FeedbackFinished.NONE,
            action_id=job.action_id,
            details=(words,),
            progress=progress,
        )
        with contextlib.suppress(ActionGone):
            await self._link.report(job.action_id, feedback)
        self._told_words, self._told_progress = words, self._progress

    async def _close(self, job: NcpJob) -> None:
        succeeded = job.outcome == Outcome.SUCCEEDED.value
        finished = FeedbackFinished.SUCCESS if succeeded else FeedbackFinished.FAILURE
        details = (job.reason, f"basis: {'check-in' if succeeded else job.outcome}")
        feedback = Feedback(FeedbackExecution.CLOSED, finished, action_id=job.action_id, details=details)
        try:
            await self._link.report(job.action_id, feedback)
        except ActionGone:
            self._say("verdict-not-wanted", "the server has closed the action already")
        else:
            self._say("verdict-told", finished.value)
        current = self._record.job
        if current is not None and current.action_id == job.action_id:
            self._change(replace(self._record, job=replace(current, told=True)))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _change(self, record: NcpRecord) -> None:
        self._record = record
        try:
            self._journal.save(record)
        except StorageFull as error:
            self._say_once("storage-full", str(error))

    def _say(self, what: str, text: str, **facts: object) -> None:
        self._said = None
        _log.info(f"ncp.{what}", device=self.settings.device, text=clean_text(text, max_len=400), **facts)

    def _say_once(self, what: str, text: str) -> None:
        """Log something that may go on for hours only when it begins."""
        if self._said != what:
            self._said = what
            _log.info(f"ncp.{what}", device=self.settings.device, text=clean_text(text, max_len=400))


async def run_ncp_until_signal(gateway: NcpGateway, *, with_parent: bool = False) -> None:
    """Run an NCP until SIGTERM or SIGINT, or until standard input ends; a second signal ends the process at once."""
    await gateway.run(await stop_at_signals(with_parent=with_parent))
