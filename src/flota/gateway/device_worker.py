"""One device behind the gateway: polls for it, and carries an update to it step by step.

Every step is in the journal before it is taken. What may follow what is in `update_states`; what may be pushed is in
`judgement`; how, in the driver. Source: docs/reference/gateway.md.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Final

import httpx

from flota.errors import FlotaError, Refused, StorageFull, Unauthenticated
from flota.gateway.artifact_cache import Source
from flota.gateway.device_desk import DeviceDesk
from flota.gateway.driver import AdoptedDevice, LastHopDriver
from flota.gateway.journal import UpdateRecord
from flota.gateway.judgement import judge_offer
from flota.gateway.last_hop import LastHop
from flota.gateway.server_links import own_link
from flota.gateway.sign_of_life import await_sign_of_life
from flota.gateway.update_states import MAY_PUSH, Happening, Stage
from flota.gateway.workshop import Workshop
from flota.protocols.ddi import (
    TARGET_TOKEN,
    ConfigData,
    DdiAddresses,
    DdiArtifact,
    Deployment,
    Feedback,
    FeedbackExecution,
    FeedbackFinished,
    Handling,
    PollAnswer,
    action_id_of,
)
from flota.transports.ddi_link import DdiLink
from flota.transports.download import DigestMismatch, DownloadFailed, LengthMismatch, NotOffered

NO_ANSWER_PERIOD_S: Final = 15.0
"""Between polls while the server does not answer."""

AT_ONCE_S: Final = 0.2
"""After an update has ended: there may be the next one."""


class DeviceWorker:
    """Serves one device until it is cancelled. One push at a time, by construction: everything is one coroutine."""

    def __init__(self, device: AdoptedDevice, driver: LastHopDriver, link: DdiLink, workshop: Workshop) -> None:
        self.device = device
        self._driver = driver
        self._link = link
        self._shop = workshop
        self._desk = DeviceDesk(device, link, workshop)
        self._hop = LastHop(self._desk, driver)
        self._tries = 0

    @property
    def is_pushing(self) -> bool:
        """Whether bytes are on their way to the device."""
        return self._hop.is_pushing

    async def run(self, stop: asyncio.Event) -> None:
        """Settle what the gateway's last life left, then poll until `stop`. Raises `DamagedJournal`."""
        self._desk.load()
        await self._settle()
        wait_s = self._shop.rng.random() * min(1.0, self._shop.patience.poll_s or 1.0)
        while not await _stopped(stop, wait_s):
            try:
                wait_s = await self.step()
            except StorageFull as error:
                self._desk.note("storage-full", str(error))
                wait_s = NO_ANSWER_PERIOD_S

    async def step(self) -> float:
        """Do what is to be done now; returns the seconds until the next step. Raises `StorageFull` only."""
        try:
            update = self._desk.update
            if update is not None and update.stage is Stage.SENT:
                await await_sign_of_life(self._desk, self._driver, update)
            await self._desk.report_verdict()
            answer = await self._link.poll()
            self._shop.metrics.polls.labels("answered").inc()
            await self._obey(answer)
            await self._desk.report_verdict()
        except StorageFull:
            raise
        except Unauthenticated as error:
            self._shop.metrics.polls.labels("not-accepted").inc()
            self._desk.say_once("token-not-accepted", str(error))
            return self._shop.patience.poll_s or NO_ANSWER_PERIOD_S
        except FlotaError as error:
            self._shop.metrics.polls.labels("trouble").inc()
            self._desk.say_once("server-trouble", str(error))
            return self._retry_s()
        return self._next_step_s(answer)

    def _next_step_s(self, answer: PollAnswer) -> float:
        """Return when to come back: soon while an update is open, else as configured or as the server says."""
        update = self._desk.update
        usual = self._shop.patience.poll_s or float(answer.sleep_s)
        if update is not None and update.stage in MAY_PUSH and answer.deployment_base is not None:
            return min(usual, self._retry_s())
        self._tries = 0
        if update is not None and update.stage is Stage.TOLD and answer.deployment_base is not None:
            return min(usual, AT_ONCE_S)
        return usual

    async def _settle(self) -> None:
        update = self._desk.update
        if update is not None and update.stage is Stage.INTENDED:
            self._desk.decide(
                "interrupted", "the gateway was stopped in the middle of a push: the device is looked at first"
            )
            died = update.after(Happening.GATEWAY_DIED)
            await self._desk.change(replace(died, attempts=max(0, died.attempts - 1)))  # the board is not to blame

    async def _obey(self, answer: PollAnswer) -> None:
        if answer.config_data is not None:
            await self._link.send_config_data(self._own(answer.config_data), ConfigData(self._attributes()))
        if answer.cancel_action is not None:
            await self._cancel(self._own(answer.cancel_action))
        elif answer.deployment_base is not None:
            await self._deploy(self._own(answer.deployment_base))
        elif answer.confirmation_base is not None:
            self._desk.say_once("waits-for-confirmation", "somebody has to confirm the update at the server")

    def _own(self, href: str) -> str:
        return own_link(self._shop.server, href, asker="gateway")

    def _attributes(self) -> dict[str, str | None]:
        device, entry = self.device, self._desk.entry
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
        update = self._desk.update
        if update is not None and update.action_id == action_id and update.stage is Stage.TOLD:
            await self._desk.close(update)  # the server has lost the verdict: it gets it again, the device gets nothing
            return
        deployment = await self._link.deployment(href)
        if deployment.download is Handling.SKIP:
            self._desk.say_once("waits-for-window", "the server does not want it downloaded yet")
            return
        try:
            offer = judge_offer(deployment, self.device, self._desk.entry, self._shop.signers, now=self._shop.now())
        except FlotaError as error:
            await self._desk.refuse(deployment, error)
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
            self._hop.forget_refusals()
            self._tries = 0
            await self._desk.change(update)
            self._desk.decide(
                "accepted", f"version {offer.version}, {offer.artifact.size} bytes, signed for this device"
            )
        data = await self._fetch(deployment, offer.artifact)
        if data is None:
            return
        try:
            ready = await self._shop.shelf.take(self.device, self._driver, offer, data)
        except FlotaError as error:
            await self._desk.refuse(deployment, error)
            return
        for warning in ready.warnings:
            self._desk.say_once("warning", warning)
        if deployment.update is Handling.SKIP:
            self._desk.say_once("waits-for-window", "fetched; the server does not want it installed yet")
            return
        await self._hop.carry(update, ready.payload)

    async def _fetch(self, deployment: Deployment, artifact: DdiArtifact) -> bytes | None:
        """Return the file, None if it cannot be had now, or if the update failed because of it."""
        url = artifact.download or artifact.download_http
        if url is None:
            await self._desk.refuse(deployment, Refused("the file has no download link"))
            return None
        source = Source(self._own(url), self._link.headers, artifact.size, artifact.sha256)
        try:
            return await self._shop.cache.get(source)
        except (DigestMismatch, LengthMismatch) as error:
            await self._desk.refuse(deployment, error)
        except (DownloadFailed, NotOffered) as error:
            self._desk.say_once("cannot-fetch", str(error))
        return None

    async def _cancel(self, href: str) -> None:
        cancellation = await self._link.cancellation(href)
        update = self._desk.update
        concerned = update is not None and update.action_id == cancellation.stop_id and update.stage in MAY_PUSH
        if update is not None and concerned:
            await self._desk.change(replace(update.after(Happening.CANCELED), reason="canceled by the server"))
        feedback = Feedback(
            FeedbackExecution.CLOSED,
            FeedbackFinished.SUCCESS,
            action_id=cancellation.action_id,
            details=("stopped: nothing more is sent to the device",),
        )
        await self._link.report_cancellation(cancellation.action_id, feedback)
        self._desk.decide("canceled", f"action {cancellation.stop_id}")

    def _retry_s(self) -> float:
        self._tries += 1
        patience = self._shop.patience
        ceiling = min(patience.retry_max_s, patience.retry_s * 2.0 ** min(self._tries - 1, 20))
        return ceiling * (0.5 + self._shop.rng.random() / 2)


def link_of(
    client: httpx.AsyncClient, device: AdoptedDevice, server: str, tenant: str, credentials: tuple[str, str] | None
) -> DdiLink:
    """Return the connection for a device's requests, with its token and that token's scheme."""
    token, scheme = credentials or (None, TARGET_TOKEN)
    return DdiLink(client, DdiAddresses(server, tenant, device.name), token, scheme=scheme)


async def _stopped(stop: asyncio.Event, within_s: float) -> bool:
    """Wait up to `within_s` seconds for `stop`; returns whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await stop.wait()
    return stop.is_set()
