"""One device behind the gateway: polls for it, and carries an update to it step by step.

Every step is in the journal before it is taken. What may follow what is in `update_states`; what may be pushed is in
`judgement`; how, in the driver. Source: docs/reference/gateway.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

import httpx
import structlog

from flota.errors import FlotaError, Refused, StorageFull, Unauthenticated
from flota.gateway.artifact_cache import ArtifactCache, Source
from flota.gateway.configuration import Patience
from flota.gateway.driver import AdoptedDevice, Delivery, DeliveryEnd, LastHopDriver, Sighting
from flota.gateway.journal import DeviceEntry, Journal, UpdateRecord
from flota.gateway.judgement import judge_offer
from flota.gateway.metrics import GatewayMetrics
from flota.gateway.ready_images import ReadyImages
from flota.gateway.update_states import IS_OVER, MAY_PUSH, Happening, Stage
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
from flota.protocols.peer_text import clean_text
from flota.transports.ddi_link import ActionGone, DdiLink, ServerBusy
from flota.transports.download import DigestMismatch, DownloadFailed, LengthMismatch, NotOffered
from flota.trust.trust_file import TrustedSigners

NO_ANSWER_PERIOD_S: Final = 15.0
"""Between polls while the server does not answer."""

AT_ONCE_S: Final = 0.2
"""After an update has ended: there may be the next one."""

PROGRESS_EVERY_S: Final = 2.0
REASON_MAX_LEN: Final = 500

_log = structlog.get_logger(__name__)


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Workshop:
    """What all devices of a gateway share. `now` is the wall clock (signatures expire), `clock` the monotonic one."""

    journal: Journal
    cache: ArtifactCache
    signers: Sequence[TrustedSigners]
    metrics: GatewayMetrics
    patience: Patience
    pushes: asyncio.Semaphore
    server: str
    shelf: ReadyImages = field(default_factory=ReadyImages)
    rng: random.Random = field(default_factory=random.Random)
    now: Callable[[], datetime] = _utc_now
    clock: Callable[[], float] = time.monotonic


class DeviceWorker:
    """Serves one device until it is cancelled. One push at a time, by construction: everything is one coroutine."""

    def __init__(self, device: AdoptedDevice, driver: LastHopDriver, link: DdiLink, workshop: Workshop) -> None:
        self.device = device
        self._driver = driver
        self._link = link
        self._shop = workshop
        self._log = _log.bind(device=device.name)
        self._entry = DeviceEntry(device.name)
        self._started_at = workshop.clock()
        self._sent_at: float | None = None
        self._refused_since: float | None = None
        self._tries = 0
        self._said: str | None = None
        self.is_pushing = False

    async def run(self, stop: asyncio.Event) -> None:
        """Settle what the gateway's last life left, then poll until `stop`. Raises `DamagedJournal`."""
        self._entry = self._shop.journal.load(self.device.name)
        await self._settle()
        wait_s = self._shop.rng.random() * min(1.0, self._shop.patience.poll_s or 1.0)
        while not await _stopped(stop, wait_s):
            try:
                wait_s = await self.step()
            except StorageFull as error:
                self._decide_log("storage-full", str(error))
                wait_s = NO_ANSWER_PERIOD_S

    async def step(self) -> float:
        """Do what is to be done now; returns the seconds until the next step. Raises `StorageFull` only."""
        try:
            update = self._entry.update
            if update is not None and update.stage is Stage.SENT:
                await self._await_sign_of_life(update)
            await self._report_verdict()
            answer = await self._link.poll()
            self._shop.metrics.polls.labels("answered").inc()
            await self._obey(answer)
            await self._report_verdict()
        except StorageFull:
            raise
        except Unauthenticated as error:
            self._shop.metrics.polls.labels("not-accepted").inc()
            self._say_once("token-not-accepted", str(error))
            return self._shop.patience.poll_s or NO_ANSWER_PERIOD_S
        except FlotaError as error:
            self._shop.metrics.polls.labels("trouble").inc()
            self._say_once("server-trouble", str(error))
            return self._retry_s()
        return self._next_step_s(answer)

    def _next_step_s(self, answer: PollAnswer) -> float:
        """Return when to come back: soon while an update is open, else as configured or as the server says."""
        update = self._entry.update
        usual = self._shop.patience.poll_s or float(answer.sleep_s)
        if update is not None and update.stage in MAY_PUSH and answer.deployment_base is not None:
            return min(usual, self._retry_s())
        self._tries = 0
        if update is not None and update.stage is Stage.TOLD and answer.deployment_base is not None:
            return min(usual, AT_ONCE_S)
        return usual

    async def _settle(self) -> None:
        update = self._entry.update
        if update is not None and update.stage is Stage.INTENDED:
            self._decide(
                "interrupted", "the gateway was stopped in the middle of a push: the device is looked at first"
            )
            died = update.after(Happening.GATEWAY_DIED)
            await self._change(replace(died, attempts=max(0, died.attempts - 1)))  # the board is not to blame

    async def _obey(self, answer: PollAnswer) -> None:
        if answer.config_data is not None:
            await self._link.send_config_data(self._own(answer.config_data), ConfigData(self._attributes()))
        if answer.cancel_action is not None:
            await self._cancel(self._own(answer.cancel_action))
        elif answer.deployment_base is not None:
            await self._deploy(self._own(answer.deployment_base))
        elif answer.confirmation_base is not None:
            self._say_once("waits-for-confirmation", "somebody has to confirm the update at the server")

    def _own(self, href: str) -> str:
        """Return a link of the server. Raises `Refused` for one to elsewhere: our token would go with it."""
        link, server = urlsplit(href), urlsplit(self._shop.server)
        if (link.scheme, link.netloc.lower()) != (server.scheme, server.netloc.lower()):
            raise Refused(
                "the server's link leads to another address",
                expected=f"{server.scheme}://{server.netloc}",
                found=clean_text(f"{link.scheme}://{link.netloc}"),
                hint="Give the gateway the address that devices are given (--public-url of the server).",
            )
        return href

    def _attributes(self) -> dict[str, str | None]:
        device, entry = self.device, self._entry
        return {
            "board": device.board,
            "type": device.device_type,
            "gateway-driver": device.driver,
            **({} if device.mac is None else {"mac": device.mac}),
            **({} if device.address is None else {"address": device.address}),
            **({} if entry.accepted_version is None else {"version": entry.accepted_version}),
        }

    # --- an offer -----------------------------------------------------------------------------------------------------

    async def _deploy(self, href: str) -> None:
        action_id = action_id_of(href)
        update = self._entry.update
        if update is not None and update.action_id == action_id and update.stage is Stage.TOLD:
            await self._close(update)  # the server has lost the verdict: it gets it again, the device gets nothing
            return
        deployment = await self._link.deployment(href)
        if deployment.download is Handling.SKIP:
            self._say_once("waits-for-window", "the server does not want it downloaded yet")
            return
        try:
            offer = judge_offer(deployment, self.device, self._entry, self._shop.signers, now=self._shop.now())
        except FlotaError as error:
            await self._refuse(deployment, error)
            return
        manifest = offer.release.manifest
        if update is None or update.action_id != action_id or update.sha256 != offer.artifact.sha256:
            update = UpdateRecord(
                action_id,
                Stage.OFFERED,
                offer.version,
                offer.artifact.size,
                offer.artifact.sha256,
                self._shop.now().isoformat(timespec="milliseconds"),
                sequence=manifest.sequence,
                manifest_sha256=offer.release.sha256,
            )
            self._refused_since, self._tries = None, 0
            await self._change(update)
            self._decide("accepted", f"version {offer.version}, {offer.artifact.size} bytes, signed for this device")
        data = await self._fetch(deployment, offer.artifact)
        if data is None:
            return
        try:
            ready = await self._shop.shelf.take(self.device, self._driver, offer, data)
        except FlotaError as error:
            await self._refuse(deployment, error)
            return
        for warning in ready.warnings:
            self._say_once("warning", warning)
        if deployment.update is Handling.SKIP:
            self._say_once("waits-for-window", "fetched; the server does not want it installed yet")
            return
        await self._carry(update, ready.payload)

    async def _fetch(self, deployment: Deployment, artifact: DdiArtifact) -> bytes | None:
        """Return the file, None if it cannot be had now, or if the update failed because of it."""
        url = artifact.download or artifact.download_http
        if url is None:
            await self._refuse(deployment, Refused("the file has no download link"))
            return None
        source = Source(self._own(url), self._link.headers, artifact.size, artifact.sha256)
        try:
            return await self._shop.cache.get(source)
        except (DigestMismatch, LengthMismatch) as error:
            await self._refuse(deployment, error)
        except (DownloadFailed, NotOffered) as error:
            self._say_once("cannot-fetch", str(error))
        return None

    async def _refuse(self, deployment: Deployment, error: FlotaError) -> None:
        """Record that this action is refused: nothing will be sent to the device for it."""
        update = self._entry.update
        if update is None or update.action_id != deployment.action_id or update.stage in IS_OVER:
            version = clean_text(deployment.chunks[0].version) if deployment.chunks else ""
            now = self._shop.now().isoformat(timespec="milliseconds")
            update = UpdateRecord(deployment.action_id, Stage.OFFERED, version, 0, "", now)
        await self._verdict(update, Happening.REFUSED, success=False, basis="refused", reason=f"refused: {error}")

    # --- the last hop -------------------------------------------------------------------------------------------------

    async def _carry(self, update: UpdateRecord, payload: bytes) -> None:
        """Look at the device, and push if it may be pushed to now."""
        sighting = self._look()
        if sighting is None:
            return
        if update.stage is Stage.DOUBTED and self._says_it_runs(sighting, update):
            text = f"{self._name(sighting)} reports version {sighting.version} after a push that broke off"
            await self._verdict(update, Happening.SIGN_OF_LIFE, success=True, basis="check-in", reason=text)
            return
        async with self._shop.pushes:
            delivery = await self._push(update, payload, sighting)
        if delivery is None:
            return
        update = self._current()
        if delivery.end is DeliveryEnd.SENT:
            self._sent_at = delivery.ended_at
            sent = replace(
                update.after(Happening.ALL_SENT), sent_at=self._shop.now().isoformat(), reason=delivery.reason
            )
            await self._change(sent)
            self._decide("sent", delivery.reason, bytes=delivery.sent)
            await self._tell(sent, FeedbackExecution.PROCEEDING, f"{delivery.reason}; waits for a sign of life")
            await self._await_sign_of_life(sent)
        elif delivery.end is DeliveryEnd.NOT_CONNECTED:
            await self._not_connected(update, delivery)
        else:
            await self._broke_off(update, delivery)

    def _look(self) -> Sighting | None:
        try:
            sighting = self._driver.look(self.device)
        except FlotaError as error:
            self._say_once("wrong-device", str(error))
            return None
        if sighting is None:
            self._say_once("not-seen", "the device is not to be seen: waiting for it")
        return sighting

    async def _push(self, update: UpdateRecord, payload: bytes, sighting: Sighting) -> Delivery | None:
        """Write the intent down, then push. None: the server no longer wants it, and nothing was sent."""
        where = f"{sighting.address}:{sighting.port}"
        text = f"pushing {len(payload)} bytes to {where} ({sighting.basis.value}), try {update.attempts + 1}"
        if not await self._tell(update, FeedbackExecution.PROCEEDING, text, Progress(0, len(payload))):
            return None
        intended = replace(update.after(Happening.LOOKED_AT), attempts=update.attempts + 1)
        await self._change(intended)
        self._decide("pushing", text, attempt=intended.attempts)
        arrived = [0]
        reporting = asyncio.ensure_future(self._report_progress(intended, arrived, len(payload)))
        self.is_pushing = True
        try:
            with self._shop.metrics.pushing.track_inprogress():
                delivery = await self._driver.deliver(
                    self.device, sighting, payload, lambda done, _total: arrived.__setitem__(0, done)
                )
        finally:
            self.is_pushing = False
            reporting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reporting
        self._shop.metrics.pushed_bytes.inc(delivery.sent)
        return delivery

    async def _report_progress(self, update: UpdateRecord, arrived: list[int], total: int) -> None:
        told = 0
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            done = arrived[0]
            if done != told:
                told = done
                with contextlib.suppress(FlotaError):
                    text = f"{100 * done // max(total, 1)} % pushed"
                    await self._tell(update, FeedbackExecution.PROCEEDING, text, Progress(done, total))

    async def _not_connected(self, update: UpdateRecord, delivery: Delivery) -> None:
        """Count from now: a board that refuses for too long is deaf until somebody resets it."""
        now = self._shop.clock()
        self._refused_since = self._refused_since or now
        again = replace(update.after(Happening.NOT_CONNECTED), attempts=update.attempts - 1)
        await self._change(again)
        refused_s = now - self._refused_since
        if refused_s >= self._shop.patience.unreachable_s:
            reason = f"{delivery.reason}, for {refused_s:.0f} s: the board is deaf until it is reset"
            await self._verdict(again, Happening.GAVE_UP, success=False, basis="unreachable", reason=reason)
            return
        self._say_once("not-connected", f"{delivery.reason}; trying again")

    async def _broke_off(self, update: UpdateRecord, delivery: Delivery) -> None:
        self._refused_since = None
        doubted = update.after(Happening.BROKE_OFF)
        await self._change(doubted)
        self._decide("broke-off", delivery.reason, bytes=delivery.sent, attempt=doubted.attempts)
        if doubted.attempts >= self._shop.patience.attempts:
            reason = f"{delivery.reason}; {doubted.attempts} pushes broke off"
            await self._verdict(doubted, Happening.GAVE_UP, success=False, basis="broke-off", reason=reason)

    # --- the verdict --------------------------------------------------------------------------------------------------

    async def _await_sign_of_life(self, update: UpdateRecord) -> None:
        """Wait for the device to come back, and record what that says; without it, that nobody knows.

        After a restart of the gateway everything that is heard is later than the push.
        """
        patience, clock = self._shop.patience, self._shop.clock
        since = self._started_at if self._sent_at is None else self._sent_at
        deadline = max(since, self._started_at) + patience.evidence_s
        while clock() < deadline:
            sighting = self._quiet_look()
            if sighting is not None and sighting.version_at is not None and sighting.version_at > since:
                await self._judge_version(update, sighting)
                return
            if sighting is not None and _heard_after(sighting, since) and sighting.version is None:
                await self._came_back(update, sighting, since)
                return
            await asyncio.sleep(patience.look_s)
        sighting = self._quiet_look()
        if sighting is not None and _heard_after(sighting, since):
            await self._came_back(update, sighting, since)
            return
        reason = f"{update.reason}. Nothing was heard of it for {patience.evidence_s:g} s: the outcome is unknown"
        await self._verdict(update, Happening.SILENCE, success=False, basis="unknown", reason=reason)

    async def _judge_version(self, update: UpdateRecord, sighting: Sighting) -> None:
        says = clean_text(sighting.version or "")
        if sighting.version == update.version:
            text = f"{self._name(sighting)} reports version {says} after the push"
            await self._verdict(update, Happening.SIGN_OF_LIFE, success=True, basis="check-in", reason=text)
            return
        text = f"{self._name(sighting)} reports version {says} after the push of {update.version}"
        await self._verdict(update, Happening.ANOTHER_VERSION, success=False, basis="check-in", reason=text)

    async def _came_back(self, update: UpdateRecord, sighting: Sighting, since: float) -> None:
        after_s = (sighting.heard_at or since) - since
        when = f"{after_s:.1f} s after it closed" if self._sent_at is not None else "after the gateway's restart"
        kinds = {"announcement": "announced itself", "state-post": "posted its state", "check-in": "checked in"}
        text = f"{self._name(sighting)} {kinds.get(sighting.basis.value, 'was heard')} {when}"
        basis = sighting.basis.value
        await self._verdict(update, Happening.SIGN_OF_LIFE, success=True, basis=basis, reason=text)

    def _quiet_look(self) -> Sighting | None:
        with contextlib.suppress(FlotaError):
            return self._driver.look(self.device)
        return None

    def _says_it_runs(self, sighting: Sighting, update: UpdateRecord) -> bool:
        return sighting.version == update.version and (sighting.version_at or 0.0) > self._started_at

    def _name(self, sighting: Sighting) -> str:
        return f"the board at {sighting.address}"

    async def _verdict(
        self, update: UpdateRecord, happening: Happening, *, success: bool, basis: str, reason: str
    ) -> None:
        """Record the verdict; from now on nothing is sent to the device for this action."""
        decided = replace(update.after(happening), success=success, basis=basis, reason=reason[:REASON_MAX_LEN])
        entry = replace(self._entry, update=decided)
        if success:
            entry = replace(
                entry,
                accepted_version=decided.version,
                accepted_sequence=max(decided.sequence, entry.accepted_sequence),
                accepted_manifest_sha256=decided.manifest_sha256,
            )
        await self._shop.journal.save(entry)
        self._entry = entry
        self._sent_at = self._refused_since = None
        self._shop.metrics.verdicts.labels("success" if success else "failure", basis).inc()
        self._decide("verdict", decided.reason, success=success, basis=basis, attempts=decided.attempts)

    async def _report_verdict(self) -> None:
        update = self._entry.update
        if update is not None and update.stage is Stage.DECIDED:
            await self._close(update)

    async def _close(self, update: UpdateRecord) -> None:
        finished = FeedbackFinished.SUCCESS if update.success else FeedbackFinished.FAILURE
        details = (update.reason, f"basis: {update.basis}")
        feedback = Feedback(FeedbackExecution.CLOSED, finished, action_id=update.action_id, details=details)
        try:
            await self._link.report(update.action_id, feedback)
        except ActionGone:
            self._decide("verdict-not-wanted", "the server has closed the action already")
        else:
            self._decide("verdict-told", finished.value)
        await self._change(update.after(Happening.SERVER_KNOWS))

    # --- the rest of the talk -----------------------------------------------------------------------------------------

    async def _cancel(self, href: str) -> None:
        cancellation = await self._link.cancellation(href)
        update = self._entry.update
        concerned = update is not None and update.action_id == cancellation.stop_id and update.stage in MAY_PUSH
        if update is not None and concerned:
            await self._change(replace(update.after(Happening.CANCELED), reason="canceled by the server"))
        feedback = Feedback(
            FeedbackExecution.CLOSED,
            FeedbackFinished.SUCCESS,
            action_id=cancellation.action_id,
            details=("stopped: nothing more is sent to the device",),
        )
        await self._link.report_cancellation(cancellation.action_id, feedback)
        self._decide("canceled", f"action {cancellation.stop_id}")

    async def _tell(
        self, update: UpdateRecord, execution: FeedbackExecution, text: str, progress: Progress | None = None
    ) -> bool:
        """Report on the way; False if the server no longer wants the action. Without a link the next report will do."""
        feedback = Feedback(
            execution, FeedbackFinished.NONE, action_id=update.action_id, details=(text,), progress=progress
        )
        try:
            await self._link.report(update.action_id, feedback)
        except ActionGone:
            self._decide("not-wanted", "the server has closed the action")
            return False
        except ServerBusy as error:
            self._say_once("server-trouble", str(error))
        return True

    def _retry_s(self) -> float:
        self._tries += 1
        patience = self._shop.patience
        ceiling = min(patience.retry_max_s, patience.retry_s * 2.0 ** min(self._tries - 1, 20))
        return ceiling * (0.5 + self._shop.rng.random() / 2)

    def _current(self) -> UpdateRecord:
        assert self._entry.update is not None
        return self._entry.update

    async def _change(self, update: UpdateRecord) -> None:
        entry = replace(self._entry, update=update)
        await self._shop.journal.save(entry)
        self._entry = entry

    def _decide(self, decision: str, text: str, **facts: object) -> None:
        self._said = None
        self._decide_log(decision, text, **facts)

    def _say_once(self, decision: str, text: str) -> None:
        """Log something that may go on for hours only when it begins."""
        if self._said != decision:
            self._said = decision
            self._decide_log(decision, text)

    def _decide_log(self, decision: str, text: str, **facts: object) -> None:
        update = self._entry.update
        self._shop.metrics.decisions.labels(decision).inc()
        action = None if update is None else update.action_id
        version = None if update is None else update.version
        self._log.info(f"gateway.{decision}", action=action, version=version, text=clean_text(text), **facts)


def link_of(
    client: httpx.AsyncClient, device: AdoptedDevice, server: str, tenant: str, credentials: tuple[str, str] | None
) -> DdiLink:
    """Return the connection for a device's requests, with its token and that token's scheme."""
    from flota.protocols.ddi import TARGET_TOKEN, DdiAddresses

    token, scheme = credentials or (None, TARGET_TOKEN)
    return DdiLink(client, DdiAddresses(server, tenant, device.name), token, scheme=scheme)


def _heard_after(sighting: Sighting, since: float) -> bool:
    return sighting.heard_at is not None and sighting.heard_at > since


async def _stopped(stop: asyncio.Event, within_s: float) -> bool:
    """Wait up to `within_s` seconds for `stop`; returns whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await stop.wait()
    return stop.is_set()
