"""A network co-processor for a primary MCU: this machine, a serial line on one side, the server on the other.

The protocol machine (`flota.protocols.blynk.ncp`) decides what is said on the line; this module runs it there, and
keeps on the disk what it says before the next byte goes out. `ncp_server_side` speaks to the server.
Source: docs/reference/blynk.md, "flota ncp run".
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from flota.gateway.artifact_cache import ArtifactCache
from flota.gateway.configuration import DEFAULT_CACHE_BYTES, read_trust_files
from flota.gateway.journal import one_gateway
from flota.gateway.ncp_desk import NcpDesk
from flota.gateway.ncp_journal import NcpJob, NcpJournal
from flota.gateway.ncp_server_side import NcpServerSide
from flota.gateway.ncp_settings import NcpRunSettings, state_directory
from flota.gateway.ncp_update_desk import update_job
from flota.gateway.stopping import stop_at_signals
from flota.protocols.blynk.catalogue import PrefetchStatus
from flota.protocols.blynk.ncp import Initialized, McuLost, RateFellBack, Reported
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
from flota.protocols.ddi import GATEWAY_TOKEN, TARGET_TOKEN, DdiAddresses
from flota.protocols.peer_text import clean_text
from flota.transports.ddi_link import DdiLink
from flota.transports.http import http_client
from flota.transports.uart import LineUnusable, SerialLine

REOPEN_S: Final = 1.0
"""Between tries to open a line that is lost: an adapter that was pulled out, a board that is being exchanged."""

_log = structlog.get_logger(__name__)


class NcpGateway:
    """One NCP with its settings."""

    def __init__(self, settings: NcpRunSettings) -> None:
        self.settings = settings
        self._rng = random.Random()  # noqa: S311 - jitter of waits, nothing secret

    async def run(self, stop: asyncio.Event) -> None:
        """Serve the MCU until `stop`. Raises `Conflict` if the state directory is in use, `BadTrustFile`, …."""
        settings = self.settings
        signers = read_trust_files([Path(path) for path in settings.trust])
        directory, server = state_directory(settings), settings.server.rstrip("/")
        with one_gateway(directory):
            self._desk = NcpDesk(settings, NcpJournal(directory), self._happened)
            cacert = None if settings.cacert is None else Path(settings.cacert)
            async with http_client(cacert=cacert, tls=server.startswith("https:")) as client:
                self._cache = ArtifactCache(directory / "cache", client, max_bytes=DEFAULT_CACHE_BYTES, rng=self._rng)
                scheme = GATEWAY_TOKEN if settings.is_gateway_token else TARGET_TOKEN
                addresses = DdiAddresses(server, settings.tenant, settings.device)
                link = DdiLink(client, addresses, settings.token, scheme=scheme)
                await self._take_up()
                _log.info("ncp.running", device=settings.device, serial=settings.serial, server=server)
                await self._serve(stop, NcpServerSide(self._desk, link, addresses, self._cache, signers))

    async def _serve(self, stop: asyncio.Event, server_side: NcpServerSide) -> None:
        holding = asyncio.ensure_future(self._hold_line())
        asking = asyncio.ensure_future(server_side.run())
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
            await self._desk.line.stop()
            _log.info("ncp.stopped", device=self.settings.device)

    async def _take_up(self) -> None:
        """Go on with the job of this NCP's last life, if its file is still here."""
        desk, job = self._desk, self._desk.record.job
        if job is None or (job.outcome and not self._may_come_back(job)):
            return
        data = await self._cache.kept(job.sha256)
        if data is None:
            if not job.outcome and not job.was_accepted:  # the server offers it again, and it is fetched again
                desk.change(replace(desk.record, job=None))
            return
        desk.image = data
        desk.say("resumed", f"version {job.version} was {job.state.value} when this NCP stopped")
        events = desk.ncp.keep(update_job(job, data), job.state, verdict_given=bool(job.outcome), now=desk.line.now)
        desk.line.tell(events)

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
                    self.settings.serial, self._desk.ncp.baud, on_data=self._desk.line.received, on_lost=on_lost
                )
            except LineUnusable as error:
                self._desk.say_once("line-unusable", str(error))
                await asyncio.sleep(REOPEN_S)
                continue
            self._desk.say("line-open", f"{self.settings.serial} at {self._desk.ncp.baud} baud")
            self._desk.line.attach(line)
            self._desk.line.tell(self._desk.ncp.line_opened(now=self._desk.line.now))
            try:
                reason = await lost
            finally:
                self._desk.line.attach(None)
                await line.close()
            self._desk.say("line-lost", reason)
            await asyncio.sleep(REOPEN_S)

    def _happened(self, event: object) -> None:
        """Take an event of the machine. What has to be on the disk before the next byte goes out is, on return."""
        if isinstance(event, NeedBytes):
            data = self._desk.image[event.offset : event.offset + event.length]
            self._desk.line.tell(self._desk.ncp.supply(event.offset, data, now=self._desk.line.now))
        elif isinstance(event, PrefetchWanted):
            self._desk.line.tell(self._desk.ncp.prefetched(PrefetchStatus.DONE, now=self._desk.line.now))
        elif isinstance(event, Progressed):
            self._desk.progress = event.stored
        elif isinstance(event, StateChanged):
            self._state_changed(event.state)
        elif isinstance(event, JobEnded):
            self._desk.job_ended(event)
        elif isinstance(event, Reported):
            self._mcu_reported(event)
        elif isinstance(event, Initialized):
            self._desk.say("mcu-initialized", f"template {clean_text(event.template_id)}")
            self._desk.wake.set()
        elif isinstance(event, McuLost):
            self._desk.say("mcu-lost", f"nothing was heard of the MCU for {event.silent_s:.0f} s")
        elif isinstance(event, RateFellBack):
            self._desk.say("rate-fell-back", f"nothing was heard at {event.baud} baud")
        elif isinstance(event, Remark):
            self._desk.say("remark", event.text)
        elif isinstance(event, RebootDue):
            self._desk.say("restarting", "the MCU applies the image: waiting for its bring-up")

    def _state_changed(self, state: UpdateState) -> None:
        job, held = self._desk.record.job, self._desk.ncp.update.job
        if job is None or job.outcome:
            return
        accepted = job.was_accepted or (held is not None and held.was_accepted)
        if state is not UpdateState.IDLE:
            self._desk.change(replace(self._desk.record, job=replace(job, state=state, was_accepted=accepted)))
        if state is UpdateState.STREAMING:
            self._desk.progress = 0
        self._desk.say(f"update-{state.value}", f"version {job.version}")
        self._desk.wake.set()

    def _mcu_reported(self, event: Reported) -> None:
        info = event.info
        version, fw_type = clean_text(info.version), clean_text(info.fw_type)
        self._desk.say("mcu-reported", f"version {version}, type {fw_type}, built {clean_text(info.build)}")
        if (version, fw_type) != (self._desk.record.runs_version, self._desk.record.runs_type):
            self._desk.change(replace(self._desk.record, runs_version=version, runs_type=fw_type))


async def run_ncp_until_signal(gateway: NcpGateway, *, with_parent: bool = False) -> None:
    """Run an NCP until SIGTERM or SIGINT, or until standard input ends; a second signal ends the process at once."""
    await gateway.run(await stop_at_signals(with_parent=with_parent))
