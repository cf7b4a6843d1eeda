"""An NCP's side to the server: asks, judges and fetches, gives jobs to the machine, tells what becomes of them.

Source: docs/reference/blynk.md, "flota ncp run".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from flota.errors import FlotaError, Refused, StorageFull, Unauthenticated
from flota.gateway.artifact_cache import ArtifactCache, Source
from flota.gateway.ncp_desk import NcpDesk
from flota.gateway.ncp_fetches import after_failure, counted
from flota.gateway.ncp_journal import NcpJob
from flota.gateway.ncp_settings import DRIVER
from flota.gateway.ncp_update_desk import REASON_MAX_LEN, judge_deployment, ready_job
from flota.gateway.server_links import own_link
from flota.protocols.blynk.ncp_job import JobEnded, Outcome
from flota.protocols.blynk.ncp_states import UpdateState
from flota.protocols.ddi import (
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
from flota.transports.download import DigestMismatch, DownloadFailed, LengthMismatch
from flota.trust.trust_file import TrustedSigners

NO_ANSWER_PERIOD_S: Final = 15.0
"""Between polls while the server does not answer."""
LOOK_S: Final = 2.0
"""Between looks whether a boot loader listens."""
AT_ONCE_S: Final = 0.2
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


class NcpServerSide:
    """Speaks to the server in the device's name, for ever. `signers`: whose releases are believed."""

    def __init__(
        self,
        desk: NcpDesk,
        link: DdiLink,
        addresses: DdiAddresses,
        cache: ArtifactCache,
        signers: Sequence[TrustedSigners],
    ) -> None:
        self._desk = desk
        self._link = link
        self._addresses = addresses
        self._cache = cache
        self._signers = signers
        self._server = desk.settings.server.rstrip("/")
        self._told_words: str | None = None
        self._told_progress = 0
        self._told_attributes: dict[str, str | None] | None = None

    async def run(self) -> None:
        """Ask and tell until it is canceled."""
        wait_s = 0.0
        while True:
            self._desk.wake.clear()
            if wait_s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._desk.wake.wait()
                await asyncio.sleep(AT_ONCE_S)  # what comes together is told together
            wait_s = await self._step()

    async def _step(self) -> float:
        """Do what is to be done with the server now; returns the seconds until the next step."""
        job = self._desk.record.job
        is_open = job is not None and not job.told
        if not (is_open or self._desk.ncp.can_be_offered(now=self._desk.line.now)):
            return LOOK_S  # the MCU is offline, and so is the device: its bring-up wakes us
        try:
            await self._report()
            answer = await self._link.poll()
            self._desk.line.tell(self._desk.ncp.cloud(True, now=self._desk.line.now))
            await self._obey(answer)
            await self._report()
        except Unauthenticated as error:
            self._desk.say_once("token-not-accepted", str(error))
            self._offline()
            return self._desk.settings.poll_s or NO_ANSWER_PERIOD_S
        except FlotaError as error:
            self._desk.say_once("server-trouble", str(error))
            self._offline()
            return NO_ANSWER_PERIOD_S
        usual = self._desk.settings.poll_s or float(answer.sleep_s)
        return min(usual, PROGRESS_EVERY_S) if self._desk.ncp.update.is_open else usual

    def _offline(self) -> None:
        self._desk.line.tell(self._desk.ncp.cloud(False, now=self._desk.line.now))

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
            self._desk.say_once("waits-for-confirmation", "somebody has to confirm the update at the server")

    def _own(self, href: str) -> str:
        return own_link(self._server, href, asker="NCP")

    def _attributes(self) -> dict[str, str | None]:
        device, record = self._desk.device, self._desk.record
        known = {"version": record.runs_version, "fw-type": record.runs_type}
        firmware = self._desk.ncp.firmware
        if firmware is not None:
            known |= {"build": clean_text(firmware.build), "blynk": clean_text(firmware.library)}
        return {
            "board": device.board,
            "type": device.device_type,
            "gateway-driver": DRIVER,
            **{name: text for name, text in known.items() if text},
        }

    async def _deploy(self, href: str) -> None:
        action_id, job = action_id_of(href), self._desk.record.job
        if job is not None and job.action_id == action_id:
            if job.told:
                self._desk.change(replace(self._desk.record, job=replace(job, told=False)))  # it has lost the verdict
                await self._report()
                return
            if self._desk.ncp.update.is_open or job.outcome:
                return
        elif self._desk.ncp.update.is_open:
            self._desk.say_once("busy", "another update is under way")
            return
        deployment = await self._link.deployment(href)
        if deployment.download is Handling.SKIP:
            self._desk.say_once("waits-for-window", "the server does not want it downloaded yet")
            return
        await self._take(deployment)

    async def _take(self, deployment: Deployment) -> None:
        """Judge an offer, fetch its file, and give the job to the machine."""
        now = datetime.now(UTC)
        failed = counted(self._desk.record.failed_fetches, deployment.action_id, now=now)
        if failed is not None and failed.is_at_limit:
            self._desk.say_once("download-limit", failed.words)
            return
        try:
            offer = judge_deployment(deployment, self._desk.device, self._desk.record, self._signers, now=now)
            url = offer.artifact.download or offer.artifact.download_http
            if url is None:
                raise Refused("the file has no download link")
            source = Source(self._own(url), self._link.headers, offer.artifact.size, offer.artifact.sha256)
            data = await self._cache.get(source)
            ready = await asyncio.to_thread(ready_job, deployment, offer, data, self._desk.device, self._desk.record)
        except (DigestMismatch, LengthMismatch) as error:
            await self._refuse(deployment, error)
            return
        except DownloadFailed as error:
            await self._fetch_failed(deployment, error)
            return
        except (StorageFull, ServerBusy) as error:
            self._desk.say_once("cannot-fetch", str(error))
            return
        except FlotaError as error:
            await self._refuse(deployment, error)
            return
        for warning in ready.warnings:
            self._desk.say_once("warning", warning)
        if deployment.update is Handling.SKIP:
            self._desk.say_once("waits-for-window", "fetched; the server does not want it installed yet")
            return
        self._desk.image, self._desk.progress, self._told_words = data, 0, None
        self._desk.change(replace(self._desk.record, job=ready.record))
        self._desk.say("accepted", f"version {ready.record.version}, {ready.record.size} bytes, signed for this device")
        if self._desk.record.runs_version == ready.record.version and self._desk.ncp.is_initialized:
            self._desk.job_ended(JobEnded(Outcome.SUCCEEDED, f"the MCU reports version {ready.record.version} already"))
            return
        self._desk.line.tell(self._desk.ncp.offer(ready.update, now=self._desk.line.now))

    async def _fetch_failed(self, deployment: Deployment, error: DownloadFailed) -> None:
        """Count a download that failed, and tell the server of it."""
        failed = after_failure(self._desk.record.failed_fetches, deployment.action_id, now=datetime.now(UTC))
        self._desk.change(replace(self._desk.record, failed_fetches=failed))
        self._desk.say("cannot-fetch", str(error), failures=failed.count)
        words = f"download {failed.count} failed: {error}"[:REASON_MAX_LEN]
        details = (words, failed.words) if failed.is_at_limit else (words,)
        feedback = Feedback(
            FeedbackExecution.PROCEEDING, FeedbackFinished.NONE, action_id=deployment.action_id, details=details
        )
        with contextlib.suppress(ActionGone):
            await self._link.report(deployment.action_id, feedback)

    async def _refuse(self, deployment: Deployment, error: FlotaError) -> None:
        """Record that this action is refused: the MCU never hears of it."""
        version = clean_text(deployment.chunks[0].version) if deployment.chunks else ""
        job = NcpJob(deployment.action_id, UpdateState.IDLE, "", 0, "", "", version, "")
        self._desk.change(replace(self._desk.record, job=job))
        self._desk.job_ended(JobEnded(Outcome.DECLINED, f"refused: {error}"))
        await self._report()

    async def _cancel(self, href: str) -> None:
        cancellation = await self._link.cancellation(href)
        job = self._desk.record.job
        concerned = job is not None and job.action_id == cancellation.stop_id and not job.outcome
        given_up = True
        if concerned:
            given_up, events = self._desk.ncp.withdraw(now=self._desk.line.now)
            if given_up:
                self._desk.change(replace(self._desk.record, job=None))
            self._desk.line.tell(events)
        execution = FeedbackExecution.CLOSED if given_up else FeedbackExecution.REJECTED
        finished = FeedbackFinished.SUCCESS if given_up else FeedbackFinished.NONE
        text = "stopped: the MCU gets nothing more" if given_up else "too late: the MCU is being updated"
        feedback = Feedback(execution, finished, action_id=cancellation.action_id, details=(text,))
        await self._link.report_cancellation(cancellation.action_id, feedback)
        self._desk.say("cancel", text)

    async def _report(self) -> None:
        """Tell the server the verdict, or how far the update is."""
        job = self._desk.record.job
        if job is None or job.told:
            return
        if job.outcome:
            await self._close(job)
            return
        words = _STATE_WORDS.get(self._desk.ncp.update.state)
        streaming = self._desk.ncp.update.state is UpdateState.STREAMING
        if words is None or (
            words == self._told_words and (not streaming or self._desk.progress == self._told_progress)
        ):
            return
        progress = Progress(self._desk.progress, job.size) if streaming else None
        feedback = Feedback(
            FeedbackExecution.PROCEEDING,
            FeedbackFinished.NONE,
            action_id=job.action_id,
            details=(words,),
            progress=progress,
        )
        with contextlib.suppress(ActionGone):
            await self._link.report(job.action_id, feedback)
        self._told_words, self._told_progress = words, self._desk.progress

    async def _close(self, job: NcpJob) -> None:
        succeeded = job.outcome == Outcome.SUCCEEDED.value
        finished = FeedbackFinished.SUCCESS if succeeded else FeedbackFinished.FAILURE
        details = (job.reason, f"basis: {'check-in' if succeeded else job.outcome}")
        feedback = Feedback(FeedbackExecution.CLOSED, finished, action_id=job.action_id, details=details)
        try:
            await self._link.report(job.action_id, feedback)
        except ActionGone:
            self._desk.say("verdict-not-wanted", "the server has closed the action already")
        else:
            self._desk.say("verdict-told", finished.value)
        current = self._desk.record.job
        if current is not None and current.action_id == job.action_id:
            self._desk.change(replace(self._desk.record, job=replace(current, told=True)))
