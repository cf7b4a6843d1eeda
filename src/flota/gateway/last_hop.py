"""One device's last hop: look, write the intent down, push, and note how far it came.

How bytes reach the device is the driver's; whether they may is decided here, and written down first.
Source: docs/reference/gateway.md, "Stages".
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Final

from flota.errors import FlotaError
from flota.gateway.device_desk import DeviceDesk
from flota.gateway.driver import Delivery, DeliveryEnd, LastHopDriver, Sighting
from flota.gateway.journal import UpdateRecord
from flota.gateway.sign_of_life import await_sign_of_life, name_of, says_it_runs
from flota.gateway.update_states import Happening, Stage
from flota.protocols.ddi import FeedbackExecution, Progress

PROGRESS_EVERY_S: Final = 2.0


class LastHop:
    """Carries one update at a time. `is_pushing`: bytes are on their way, and breaking off leaves a deaf board."""

    def __init__(self, desk: DeviceDesk, driver: LastHopDriver) -> None:
        self._desk = desk
        self._driver = driver
        self._refused_since: float | None = None
        self.is_pushing = False

    def forget_refusals(self) -> None:
        """Begin to count anew for how long the device has refused connections."""
        self._refused_since = None

    async def carry(self, update: UpdateRecord, payload: bytes) -> None:
        """Look at the device, and push if it may be pushed to now."""
        sighting = self._look()
        if sighting is None:
            return
        if update.stage is Stage.DOUBTED and says_it_runs(sighting, update.version, since=self._desk.started_at):
            text = f"{name_of(sighting)} reports version {sighting.version} after a push that broke off"
            await self._desk.verdict(update, Happening.SIGN_OF_LIFE, success=True, basis="check-in", reason=text)
            return
        async with self._desk.shop.pushes:
            delivery = await self._push(update, payload, sighting)
        if delivery is None:
            return
        update = self._desk.current()
        if delivery.end is DeliveryEnd.SENT:
            self._desk.sent_at = delivery.ended_at
            sent = replace(
                update.after(Happening.ALL_SENT), sent_at=self._desk.shop.now().isoformat(), reason=delivery.reason
            )
            await self._desk.change(sent)
            self._desk.decide("sent", delivery.reason, bytes=delivery.sent)
            await self._desk.tell(sent, FeedbackExecution.PROCEEDING, f"{delivery.reason}; waits for a sign of life")
            await await_sign_of_life(self._desk, self._driver, sent)
        elif delivery.end is DeliveryEnd.NOT_CONNECTED:
            await self._not_connected(update, delivery)
        else:
            await self._broke_off(update, delivery)

    def _look(self) -> Sighting | None:
        try:
            sighting = self._driver.look(self._desk.device)
        except FlotaError as error:
            self._desk.say_once("wrong-device", str(error))
            return None
        if sighting is None:
            self._desk.say_once("not-seen", "the device is not to be seen: waiting for it")
        return sighting

    async def _push(self, update: UpdateRecord, payload: bytes, sighting: Sighting) -> Delivery | None:
        """Write the intent down, then push. None: the server no longer wants it, and nothing was sent."""
        where = f"{sighting.address}:{sighting.port}"
        text = f"pushing {len(payload)} bytes to {where} ({sighting.basis.value}), try {update.attempts + 1}"
        if not await self._desk.tell(update, FeedbackExecution.PROCEEDING, text, Progress(0, len(payload))):
            return None
        intended = replace(update.after(Happening.LOOKED_AT), attempts=update.attempts + 1)
        await self._desk.change(intended)
        self._desk.decide("pushing", text, attempt=intended.attempts)
        arrived = [0]
        reporting = asyncio.ensure_future(self._report_progress(intended, arrived, len(payload)))
        self.is_pushing = True
        try:
            with self._desk.shop.metrics.pushing.track_inprogress():
                delivery = await self._driver.deliver(
                    self._desk.device, sighting, payload, lambda done, _total: arrived.__setitem__(0, done)
                )
        finally:
            self.is_pushing = False
            reporting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reporting
        self._desk.shop.metrics.pushed_bytes.inc(delivery.sent)
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
                    await self._desk.tell(update, FeedbackExecution.PROCEEDING, text, Progress(done, total))

    async def _not_connected(self, update: UpdateRecord, delivery: Delivery) -> None:
        """Count from now: a board that refuses for too long is deaf until somebody resets it."""
        now = self._desk.shop.clock()
        self._refused_since = self._refused_since or now
        again = replace(update.after(Happening.NOT_CONNECTED), attempts=update.attempts - 1)
        await self._desk.change(again)
        refused_s = now - self._refused_since
        if refused_s >= self._desk.shop.patience.unreachable_s:
            reason = f"{delivery.reason}, for {refused_s:.0f} s: the board is deaf until it is reset"
            await self._desk.verdict(again, Happening.GAVE_UP, success=False, basis="unreachable", reason=reason)
            return
        self._desk.say_once("not-connected", f"{delivery.reason}; trying again")

    async def _broke_off(self, update: UpdateRecord, delivery: Delivery) -> None:
        self._refused_since = None
        doubted = update.after(Happening.BROKE_OFF)
        await self._desk.change(doubted)
        self._desk.decide("broke-off", delivery.reason, bytes=delivery.sent, attempt=doubted.attempts)
        if doubted.attempts >= self._desk.shop.patience.attempts:
            reason = f"{delivery.reason}; {doubted.attempts} pushes broke off"
            await self._desk.verdict(doubted, Happening.GAVE_UP, success=False, basis="broke-off", reason=reason)
