"""What is decided about one device, in one place each: journal entry, log line, word to the server.

A record is in the journal before the step that it announces. Source: docs/reference/gateway.md, "Journal", "Stages".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import structlog

from flota.errors import FlotaError
from flota.gateway.driver import AdoptedDevice
from flota.gateway.journal import DeviceEntry, UpdateRecord
from flota.gateway.update_states import IS_OVER, Happening, Stage
from flota.gateway.workshop import Workshop
from flota.protocols.ddi import (
    Deployment,
    Feedback,
    FeedbackExecution,
    FeedbackFinished,
    Progress,
    basis_line,
)
from flota.protocols.peer_text import clean_text
from flota.transports.ddi_link import ActionGone, DdiLink, ServerBusy

REASON_MAX_LEN: Final = 500

_log = structlog.get_logger(__name__)


class DeviceDesk:
    """Keeps the record of one device. `started_at` and `sent_at` (the end of a push) in seconds of the shop's clock."""

    def __init__(self, device: AdoptedDevice, link: DdiLink, workshop: Workshop) -> None:
        self.device = device
        self.link = link
        self.shop = workshop
        self.entry = DeviceEntry(device.name)
        self.started_at = workshop.clock()
        self.sent_at: float | None = None
        self._log = _log.bind(device=device.name)
        self._said: str | None = None

    def load(self) -> None:
        """Take up what the journal has. Raises `DamagedJournal`."""
        self.entry = self.shop.journal.load(self.device.name)

    @property
    def update(self) -> UpdateRecord | None:
        """The update that is remembered."""
        return self.entry.update

    def current(self) -> UpdateRecord:
        """Return the update that there has to be now."""
        assert self.entry.update is not None
        return self.entry.update

    async def change(self, update: UpdateRecord) -> None:
        """Put the update's new state on the disk. Raises `StorageFull`."""
        entry = replace(self.entry, update=update)
        await self.shop.journal.save(entry)
        self.entry = entry

    def decide(self, decision: str, text: str, **facts: object) -> None:
        """Log a decision."""
        self._said = None
        self.note(decision, text, **facts)

    def say_once(self, decision: str, text: str) -> None:
        """Log something that may go on for hours only when it begins."""
        if self._said != decision:
            self._said = decision
            self.note(decision, text)

    def note(self, decision: str, text: str, **facts: object) -> None:
        """Log and count; `decide` and `say_once` are for what is worth a line."""
        update = self.entry.update
        self.shop.metrics.decisions.labels(decision).inc()
        action = None if update is None else update.action_id
        version = None if update is None else update.version
        self._log.info(f"gateway.{decision}", action=action, version=version, text=clean_text(text), **facts)

    # --- verdicts -----------------------------------------------------------------------------------------------------

    async def verdict(
        self, update: UpdateRecord, happening: Happening, *, success: bool, basis: str, reason: str
    ) -> None:
        """Record the verdict; from now on nothing is sent to the device for this action."""
        decided = replace(update.after(happening), success=success, basis=basis, reason=reason[:REASON_MAX_LEN])
        entry = replace(self.entry, update=decided)
        if success:
            entry = replace(
                entry,
                accepted_version=decided.version,
                accepted_sequence=max(decided.sequence, entry.accepted_sequence),
                accepted_manifest_sha256=decided.manifest_sha256,
            )
        await self.shop.journal.save(entry)
        self.entry = entry
        self.sent_at = None
        self.shop.metrics.verdicts.labels("success" if success else "failure", basis).inc()
        self.decide("verdict", decided.reason, success=success, basis=basis, attempts=decided.attempts)

    async def report_verdict(self) -> None:
        """Tell the server the verdict, if there is one that it does not have."""
        update = self.entry.update
        if update is not None and update.stage is Stage.DECIDED:
            await self.close(update)

    async def close(self, update: UpdateRecord) -> None:
        """Tell the server a verdict, again if need be."""
        finished = FeedbackFinished.SUCCESS if update.success else FeedbackFinished.FAILURE
        details = (update.reason, basis_line(update.basis))
        feedback = Feedback(FeedbackExecution.CLOSED, finished, action_id=update.action_id, details=details)
        try:
            await self.link.report(update.action_id, feedback)
        except ActionGone:
            self.decide("verdict-not-wanted", "the server has closed the action already")
        else:
            self.decide("verdict-told", finished.value)
        await self.change(update.after(Happening.SERVER_KNOWS))

    async def refuse(self, deployment: Deployment, error: FlotaError) -> None:
        """Record that this action is refused: nothing will be sent to the device for it."""
        update = self.entry.update
        if update is None or update.action_id != deployment.action_id or update.stage in IS_OVER:
            version = clean_text(deployment.chunks[0].version) if deployment.chunks else ""
            now = self.shop.now().isoformat(timespec="milliseconds")
            update = UpdateRecord(deployment.action_id, Stage.OFFERED, version, 0, "", now)
        await self.verdict(update, Happening.REFUSED, success=False, basis="refused", reason=f"refused: {error}")

    async def tell(
        self, update: UpdateRecord, execution: FeedbackExecution, text: str, progress: Progress | None = None
    ) -> bool:
        """Report on the way; False if the server no longer wants the action. Without a link the next report will do."""
        feedback = Feedback(
            execution, FeedbackFinished.NONE, action_id=update.action_id, details=(text,), progress=progress
        )
        try:
            await self.link.report(update.action_id, feedback)
        except ActionGone:
            self.decide("not-wanted", "the server has closed the action")
            return False
        except ServerBusy as error:
            self.say_once("server-trouble", str(error))
        return True
