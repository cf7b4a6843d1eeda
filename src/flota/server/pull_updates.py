"""Updates of devices that only pull: the verdict comes from what they run when they ask again.

What is remembered about deliveries stands in the execution's details, so that it outlives the process:
`delivery` (under-way, interrupted, handed-over), `deliveries` and `deliveries-whole` (counts), `delivery-began-at`,
`delivered-at`, and `previous-hash`, `previous-md5`, `previous-size` of what ran when the latest delivery began.
Source: docs/reference/http-update.md, "Verdicts".
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from flota.errors import Conflict
from flota.fleet.devices import Device
from flota.fleet.executions import Basis, Execution, ExecutionChange, ExecutionState, moment_in_detail
from flota.fleet.releases import Artifact
from flota.fleet.scope import Scope
from flota.fleet.storage import Transaction
from flota.fleet.update_rules import Window
from flota.fleet.verdicts import (
    Deliveries,
    DeliveryStage,
    ImageIdentity,
    Judgement,
    RunningImage,
    judge_running_image,
)
from flota.images.model import ImageFormat
from flota.server.updates import (
    QUEUE_STEPS_MAX,
    Assignment,
    close_expired,
    current_assignment,
    with_retries,
)

if TYPE_CHECKING:
    from flota.server.context import ServerContext

UNDER_WAY: Final = "under-way"
INTERRUPTED: Final = "interrupted"
HANDED_OVER: Final = "handed-over"

HELD_DELIVERIES_MAX: Final = 50_000
"""Deliveries of this process that are remembered; the oldest is forgotten first and then counts as its details say."""


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a device says with its request. `free_space` in bytes; `chip` is the chip family of its client, if told.

    `asks_for_rest`: it asks for a later part of the image, so whatever was handed over before did not all arrive.
    """

    running: ImageIdentity = field(default_factory=ImageIdentity)
    free_space: int | None = None
    chip: str | None = None
    asks_for_rest: bool = False

    @property
    def is_update_client(self) -> bool:
        """Whether it is an HTTPUpdate client, which flashes whatever it is given with status 200."""
        return self.chip is not None


@dataclass(frozen=True, slots=True)
class Offer:
    """An image to hand out; `execution` is None on an anonymous channel."""

    artifact: Artifact
    version: str
    execution: Execution | None = None
    counted: bool = True
    """Whether handing it over is an attempt."""

    @property
    def identity(self) -> ImageIdentity:
        """What a device says that runs it."""
        return identity_of(self.artifact)

    @property
    def has_begun(self) -> bool:
        """Whether a delivery of it began already."""
        return self.execution is not None and "delivery" in self.execution.details


@dataclass(slots=True)
class _LiveDelivery:
    """A delivery of this process: `outcome` is set the moment it ends, `written` once the store knows it."""

    scope: Scope
    execution_id: int
    number: int
    began_at: datetime
    outcome: str | None = None
    written: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class PullUpdates:
    """Offers and deliveries of one server process."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._live: dict[int, _LiveDelivery] = {}

    async def next_offer(self, scope: Scope, device: Device, report: PullReport) -> Offer | None:
        """Judge what the device runs, end executions that this decides, and return what to offer now, if anything."""
        for _ in range(QUEUE_STEPS_MAX):
            async with self._context.storage.reading() as transaction:
                assignment = await current_assignment(transaction, scope, device, now=self._context.now())
            if assignment is None:
                return None
            if assignment.expired:
                await close_expired(self._context, scope, device)
                continue
            if assignment.showing.window is Window.CLOSED and assignment.execution.state is ExecutionState.QUEUED:
                return None  # what such a client is given it installs: it begins when its maintenance window opens
            live = self._live.get(assignment.execution.id)
            if live is not None and live.outcome is not None and not live.written:
                await self._write_outcome(live)
                continue
            judgement = self._judge(assignment, report)
            if judgement.state is None:
                return _unjudged_offer(assignment, report)
            if judgement.is_offer:
                refusal = unfit_reason(assignment.release.artifact, report)
                if refusal is None:
                    return Offer(assignment.release.artifact, assignment.release.version, assignment.execution)
                judgement = Judgement(ExecutionState.REJECTED, judgement.image, Basis.REPORTED, refusal)
            await self._end(scope, assignment, judgement, report)
        return None

    async def begin_delivery(self, scope: Scope, offer: Offer, report: PullReport) -> bool:
        """Note that the offered image is about to be handed out; returns False if it may not start any more."""
        if offer.execution is None or not offer.counted:
            return True
        execution_id = offer.execution.id
        now = self._context.now()

        async def begin(transaction: Transaction) -> Execution:
            execution = await transaction.execution(scope, execution_id)
            deliveries = self._deliveries(execution, attempts=1)
            change = ExecutionChange(
                ExecutionState.IN_PROGRESS,
                details={
                    "delivery": UNDER_WAY,
                    "deliveries": str(_count(execution, "deliveries") + 1),
                    "deliveries-whole": str(deliveries.whole),
                    "delivery-began-at": now.isoformat(),
                    "previous-hash": min(report.running.hashes, default=None),
                    "previous-md5": report.running.md5,
                    "previous-size": None if report.running.size is None else str(report.running.size),
                },
                message="the image is being handed out",
            )
            return await transaction.change_execution(scope, execution.id, execution.version, change, now=now)

        try:
            execution = await with_retries(self._context, begin)
        except Conflict:  # paused, canceled or finished since it was read
            return False
        self._remember(_LiveDelivery(scope, execution_id, _count(execution, "deliveries"), now))
        return True

    def continue_delivery(self, scope: Scope, offer: Offer) -> None:
        """Go on with a delivery by a later part of the image, perhaps one that an earlier process began."""
        if offer.execution is None or not offer.counted:
            return
        live = self._live.get(offer.execution.id)
        if live is None or live.outcome is not None:
            number = _count(offer.execution, "deliveries")
            self._remember(_LiveDelivery(scope, offer.execution.id, number, self._context.now()))

    def mark_finished(self, offer: Offer, *, whole: bool) -> None:
        """Note, at once and in memory, how the latest delivery ended; `settle` makes it durable."""
        live = None if offer.execution is None else self._live.get(offer.execution.id)
        if live is not None and live.outcome is None:
            live.outcome = HANDED_OVER if whole else INTERRUPTED

    async def settle(self, offer: Offer) -> None:
        """Make durable what `mark_finished` noted."""
        live = None if offer.execution is None else self._live.get(offer.execution.id)
        if live is not None and live.outcome is not None:
            await self._write_outcome(live)

    def _remember(self, live: _LiveDelivery) -> None:
        self._live.pop(live.execution_id, None)
        self._live[live.execution_id] = live
        if len(self._live) > HELD_DELIVERIES_MAX:
            del self._live[next(iter(self._live))]

    async def _write_outcome(self, live: _LiveDelivery) -> None:
        now = self._context.now()

        async def write(transaction: Transaction) -> None:
            execution = await transaction.execution(live.scope, live.execution_id)
            if execution.state is not ExecutionState.IN_PROGRESS or _count(execution, "deliveries") != live.number:
                return
            details: dict[str, str | None] = {"delivery": live.outcome}
            if live.outcome == HANDED_OVER:
                counted = execution.details.get("delivery") == HANDED_OVER  # its rest was asked for again
                details["deliveries-whole"] = str(_count(execution, "deliveries-whole") + (not counted))
                details["delivery-began-at"] = live.began_at.isoformat()
                details["delivered-at"] = now.isoformat()
            said = "the image was handed over whole" if live.outcome == HANDED_OVER else "the delivery was interrupted"
            change = ExecutionChange(ExecutionState.IN_PROGRESS, details=details, message=said)
            await transaction.change_execution(live.scope, execution.id, execution.version, change, now=now)

        async with live.lock:
            if not live.written:
                await with_retries(self._context, write)
                live.written = True

    def _judge(self, assignment: Assignment, report: PullReport) -> Judgement:
        deliveries = self._deliveries(assignment.execution, attempts=assignment.policy.attempts)
        if report.asks_for_rest and deliveries.stage is not DeliveryStage.NONE:
            deliveries = replace(deliveries, stage=DeliveryStage.CUT)
        return judge_running_image(
            report.running,
            identity_of(assignment.release.artifact),
            deliveries,
            cancel_requested=assignment.cancel_requested,
            silence_limit_s=assignment.policy.silence_limit_s,
            now=self._context.now(),
        )

    def _deliveries(self, execution: Execution, *, attempts: int) -> Deliveries:
        """Return what is known about the deliveries; a device that asks has ended whatever was under way.

        A delivery that began before this process did is no attempt: what the old process had handed over may never
        have left the machine.
        """
        details = execution.details
        hash_before = details.get("previous-hash")
        size_before = details.get("previous-size")
        deliveries = Deliveries(
            whole=_count(execution, "deliveries-whole"),
            previous=ImageIdentity(
                hashes=frozenset({hash_before} if hash_before else ()),
                md5=details.get("previous-md5"),
                size=int(size_before) if size_before else None,
            ),
            last_whole_at=moment_in_detail(details.get("delivered-at")),
        )
        latest = details.get("delivery")
        if latest is None:
            return deliveries
        began_at = moment_in_detail(details.get("delivery-began-at"))
        if latest != HANDED_OVER:
            return replace(deliveries, stage=DeliveryStage.CUT)
        if began_at is None or began_at < self._context.started_at:
            return replace(deliveries, stage=DeliveryStage.CUT, whole=max(0, deliveries.whole - 1))
        stage = DeliveryStage.USED_UP if deliveries.whole >= attempts else DeliveryStage.WHOLE
        return replace(deliveries, stage=stage)

    async def _end(self, scope: Scope, assignment: Assignment, judgement: Judgement, report: PullReport) -> None:
        """Write the end that was decided; if something else has happened meanwhile, the caller decides again."""
        execution = assignment.execution
        state = judgement.state
        assert state is not None
        details: dict[str, str | None] = {}
        if judgement.image is RunningImage.UNKNOWN:
            details["running-unknown"] = min(report.running.hashes, default=None) or report.running.md5
        change = ExecutionChange(state, details=details, basis=judgement.basis, message=judgement.reason)
        if state is not ExecutionState.SUCCEEDED:
            change = replace(change, details={**details, "reason": judgement.reason})
        now = self._context.now()
        try:
            async with self._context.storage.transaction() as transaction:
                await transaction.change_execution(scope, execution.id, execution.version, change, now=now)
        except Conflict:
            return
        self._live.pop(execution.id, None)


def identity_of(artifact: Artifact) -> ImageIdentity:
    """Return what a device can say that runs this artifact: the appended hash, the file's digest, its MD5, its size."""
    hashes = {artifact.digests.sha256, artifact.validation_hash or artifact.digests.sha256}
    return ImageIdentity(hashes=frozenset(hashes), md5=artifact.digests.md5, size=artifact.digests.size)


_WRONG_FAMILY: Final = {
    "ESP32": frozenset({ImageFormat.ESP8266_APP.value}),
    "ESP8266": frozenset({ImageFormat.ESP_APP.value}),
}
"""Formats that a chip family's client would take and its boot loader could never start."""


def unfit_reason(artifact: Artifact, report: PullReport) -> str | None:
    """Return why this device cannot take the artifact, if so: it does not fit its free space, or is for other chips."""
    size = artifact.digests.size
    if report.free_space is not None and size > report.free_space:
        return f"the image has {size} bytes, the device has {report.free_space} bytes free"
    if artifact.format in _WRONG_FAMILY.get(report.chip or "", ()):
        return f"the image is {artifact.format}, the device is an {report.chip}"
    return None


def _unjudged_offer(assignment: Assignment, report: PullReport) -> Offer | None:
    """Offer again to clients that decide for themselves (esp_https_ota), never to those that flash whatever comes."""
    if report.is_update_client or assignment.cancel_requested:
        return None
    release = assignment.release
    return Offer(release.artifact, release.version, assignment.execution, counted=False)


def _count(execution: Execution, name: str) -> int:
    text = execution.details.get(name, "0")
    return int(text) if text.isdecimal() else 0
