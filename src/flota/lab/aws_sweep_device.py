"""`aws-reference` as a device of a sweep: its boot loader, its platform, the core of its OTA agent and its app.

The MQTT connection is replaced by a service in memory that has one job for each offer and keeps what the device reports
of it, as the real one does: its record is a chip without operations, because what follows a power-on depends on it too.

Source: docs/reference/power-cuts.md, "aws-reference".
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from flota.boards.catalogue import board as board_named
from flota.boards.model import BOOT_AB_RECORD, Board
from flota.errors import InvalidInput
from flota.lab.at_once import AtRest, TimelessPace, run_at_once
from flota.lab.cut_scenarios import SMALLER_BY_BYTES, Scenario, released
from flota.lab.oracle import Oracle, Reason, Region
from flota.lab.power_cuts import Boot, Chip, LifeEnd, Milestone, Offer
from flota.lab.powered_store import PoweredStore
from flota.lab.sample_firmware import sample_versioned_file
from flota.lab.swept_flash import SweptFlash
from flota.protocols.aws_jobs import (
    ExecutionMessage,
    JobsOperation,
    pack_execution,
    parse_jobs_request,
    parse_jobs_topic,
)
from flota.protocols.aws_ota import DataProtocol, OtaFile, OtaUpdate, pack_ota_document
from flota.protocols.aws_streams import Block, StreamFormat, pack_block, parse_block_request, wanted_blocks
from flota.trust.code_signing import make_code_signing_certificate
from flota.trust.file_signatures import FilePrivateKey
from flota.trust.keys import PrivateKey
from flota.virtual.ab_board import AbHardware, AbSlots
from flota.virtual.agents.aws_ota.ab_pal import AbPal
from flota.virtual.agents.aws_ota.app import OtaDemoApp
from flota.virtual.agents.aws_ota.core import OtaAgentCore, Ports
from flota.virtual.agents.aws_ota.pal import Pal
from flota.virtual.agents.aws_ota.ports import AgentBuild, OtaTimer
from flota.virtual.agents.aws_ota.states import AgentEvent
from flota.virtual.agents.aws_ota.status import version_word
from flota.virtual.device import AppContext, Identity, VirtualDevice
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.flash import Cut, FlashOperation
from flota.virtual.hardware import BootReport
from flota.virtual.slots import ResetReason, Restart

IMAGE_MIN_BYTES: Final = 12 * 1024
"""The last image of a life is a sector and a bit shorter."""

THING: Final = "swept"
STREAM: Final = "AFR_OTA-sweep"
FINAL: Final = frozenset({"SUCCEEDED", "FAILED", "REJECTED"})
_CERTIFICATE_FROM: Final = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class AwsGeometry:
    """A board for a sweep and the size of its images (bytes)."""

    board: Board
    image_size: int


def is_ab(board_name: str) -> bool:
    """Return whether the board is our A/B reference. Raises `NotFound`."""
    return board_named(board_name).boot == BOOT_AB_RECORD


def aws_geometry_for(board_name: str, image_size: int | None) -> AwsGeometry:
    """Return the board with images of `image_size` bytes, None = images that fill a slot.

    Raises `NotFound` for the board, `InvalidInput` for another family's and for sizes that do not go.
    """
    board = board_named(board_name)
    if board.boot != BOOT_AB_RECORD:
        raise InvalidInput(f"{board.name} is no A/B board")
    slot_size = board.slots[0].size
    size = slot_size if image_size is None else image_size
    if not IMAGE_MIN_BYTES <= size <= slot_size:
        raise InvalidInput(
            "not a size for images of a sweep", expected=f"{IMAGE_MIN_BYTES} to {slot_size} bytes", found=image_size
        )
    return AwsGeometry(board, size)


@functools.lru_cache(maxsize=16)
def aws_image(version: str, size: int, behaviour: str | None = None) -> bytes:
    """Return an image of `size` bytes, each 4 KiB of it different for each version."""
    return sample_versioned_file(version, size=size, behaviour=behaviour or "healthy")


def aws_offers(scenario: Scenario, size: int) -> tuple[Offer, ...]:
    """Return the offers of a scenario; the last image is shorter, by a sector and a bit."""
    offers = []
    for number, (version, behaviour, damaged) in enumerate(scenario.offers):
        last = number == len(scenario.offers) - 1
        data = aws_image(version, size - SMALLER_BY_BYTES if last else size, behaviour)
        if damaged:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        offers.append(Offer(released(version, data, bootable=not damaged, lasts=behaviour is None), version, data))
    return tuple(offers)


class AwsSweepDevice:
    """The board with its agent, and a service that has a job for what the scenario offers. A `SweptDevice`."""

    writes_slots_while_booting = False

    def __init__(self, geometry: AwsGeometry, scenario: Scenario) -> None:
        board = geometry.board
        self._image_size = geometry.image_size
        self._flash = SweptFlash(board.flash_size, sector_size=board.sector_size, write_alignment=board.write_alignment)
        self.power = self._flash.power
        self._store = PoweredStore("store", self.power)
        self._service = JobsRecord()
        self.chips: Mapping[str, Chip] = {"flash": self._flash, "store": self._store, "service": self._service}
        self._pace = TimelessPace()
        self._hardware = AbHardware(board, self._flash, nvs=self._store, pace=self._pace)
        self._flash.listener = None
        self._hardware.flash_app(aws_image("1.0.0", self._image_size))
        self.regions: Sequence[Region] = tuple(
            Region(slot.name, slot.offset or 0, slot.size, board.sector_size) for slot in board.slots
        )
        self.offers: Sequence[Offer] = aws_offers(scenario, self._image_size)
        self._signatures = {
            version: sweep_signature(aws_image(version, len(offer.data), behaviour))
            for offer, (version, behaviour, _) in zip(self.offers, scenario.offers, strict=True)
        }
        self._identity = Identity(THING, board.name, "02:00:00:00:00:01", board.name)
        self._events: list[DeviceEvent] = []

    def oracle(self) -> Oracle:
        """Return a judge that knows the first image and all offers."""
        first = released("1.0.0", aws_image("1.0.0", self._image_size))
        return Oracle([first, *(offer.released for offer in self.offers)], self.regions, {"flash": self._flash})

    def boot(self) -> Boot:
        """Run the boot loader once."""
        report = self._hardware.boot()
        refused = tuple(text.partition(":")[0] for text in report.refused)
        if report.app is None:
            return Boot(None, refused)
        return Boot(report.app.slot, refused, report, unconfirmed=report.app.awaits_confirmation)

    def live(self, boot: Boot, offer: Offer, milestone: Milestone) -> LifeEnd:
        """Live as the app: test itself, do the job, until it restarts or there is no job for it."""
        report = boot.handle
        assert isinstance(report, BootReport)
        self._events.clear()
        service = MemoryService(offer, self._signatures[offer.version], self._service, milestone)
        device = VirtualDevice(
            self._identity,
            self._hardware,
            self._store,
            MemoryAgent(service, _ab_pal),
            pace=self._pace,
            rng=random.Random(1),  # noqa: S311 -- never drawn from
            listener=self._events.append,
        )
        try:
            run_at_once(device.run_app(report, ResetReason.POWER_ON))
        except Restart:
            return LifeEnd(False, installed=any(event.kind is EventKind.INSTALLED for event in self._events))
        except AtRest:
            return LifeEnd(True, self._service.why_it_ended(offer.version))
        raise RuntimeError("an app ended without a restart")

    def counter(self) -> int | None:
        """There is no anti-rollback counter."""
        return None


class JobsRecord:
    """What the service knows of the jobs: status and details of each, by version. It outlives the device's power."""

    def __init__(self) -> None:
        self._jobs: Mapping[str, tuple[str, Mapping[str, str]]] = {}

    def of(self, version: str) -> tuple[str, Mapping[str, str]]:
        """Return status and details of the job for a version."""
        return self._jobs.get(version, ("QUEUED", {}))

    def report(self, version: str, status: str, details: Mapping[str, str] | None) -> None:
        """Take a report, unless the job has ended."""
        old, before = self.of(version)
        if old not in FINAL:
            self._jobs = {**self._jobs, version: (status, before if details is None else dict(details))}

    def why_it_ended(self, version: str) -> Reason | None:
        """Return why a job failed, None if it did not."""
        status, details = self.of(version)
        if status != "FAILED":
            return None
        word = details.get("reason", "").partition(":")[0]
        return Reason.ROLLED_BACK if word in ("rejected", "aborted") else Reason.REFUSED

    def save(self) -> object:
        """Return the jobs; they are never changed in place."""
        return self._jobs

    def load(self, snapshot: object) -> None:
        """Become what it was."""
        assert isinstance(snapshot, Mapping)
        self._jobs = snapshot

    def fingerprint(self) -> int:
        """Return a number that tells records apart."""
        text = json.dumps(self._jobs, sort_keys=True).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest())

    def leave(self, operation: FlashOperation, cut: Cut) -> None:
        """Raise: no operation of the device's is this record's."""
        raise AssertionError("the service has power of its own")


class MemoryService:
    """The service for one offer: answers at once, into the agent's queue."""

    def __init__(self, offer: Offer, signature: str, record: JobsRecord, milestone: Milestone) -> None:
        self._offer = offer
        self._signature = signature
        self._record = record
        self._milestone = milestone
        self._asked = 0
        self.core: OtaAgentCore | None = None

    async def subscribe(self, topic_filter: str, qos: int) -> bool:
        """Do nothing."""
        return True

    async def unsubscribe(self, topic_filter: str) -> bool:
        """Do nothing."""
        return True

    async def publish(self, topic: str, payload: bytes, qos: int) -> bool:
        """Answer a request."""
        assert self.core is not None
        asked = parse_jobs_topic(topic)
        if asked is None:
            self._send_blocks(payload)
        elif asked.operation is JobsOperation.UPDATE:
            request = parse_jobs_request(payload, asked.operation)
            assert request.status is not None
            self._record.report(self._offer.version, request.status.value, request.details)
        else:
            self.core.signal(AgentEvent.RECEIVED_JOB_DOCUMENT, self._job())
        return True

    def _job(self) -> bytes:
        status, details = self._record.of(self._offer.version)
        if status in FINAL:
            return pack_execution(None, token=None, timestamp=0)
        file = OtaFile(self._offer.version, len(self._offer.data), signatures={"sig-sha256-ecdsa": self._signature})
        document = pack_ota_document(OtaUpdate((DataProtocol.MQTT,), file, STREAM))
        execution = ExecutionMessage(
            f"AFR_OTA-{self._offer.version.replace('.', '-')}",
            THING,
            status,
            queued_at=0,
            updated_at=0,
            version=1,
            number=1,
            details=details,
            document=document,
        )
        return pack_execution(execution, token=None, timestamp=0)

    def _send_blocks(self, payload: bytes) -> None:
        """Send blocks; what was written before them, and how many, is all that matters for the rest."""
        assert self.core is not None
        self._asked += 1
        self._milestone(f"request {self._asked} for blocks")
        request = parse_block_request(payload, StreamFormat.CBOR)
        for number in wanted_blocks(request, len(self._offer.data)):
            start = number * request.block_size
            block = Block(0, number, self._offer.data[start : start + request.block_size])
            self.core.signal(AgentEvent.RECEIVED_FILE_BLOCK, pack_block(block, StreamFormat.CBOR))


class MemoryAgent:
    """The agent's core and its app, with the service at their side."""

    tests_the_app = True

    def __init__(
        self, service: MemoryService, pal: Callable[[AppContext], Pal], build: AgentBuild | None = None
    ) -> None:
        self._service = service
        self._pal = pal
        self._build = build or AgentBuild()

    async def run(self, context: AppContext) -> None:
        """Work until there is nothing more to do."""
        pal = self._pal(context)
        app = OtaDemoApp(context, pal)
        version = version_word(context.slots.running.version)
        core = OtaAgentCore(THING, version, self._build, Ports(pal, self._service, _NoTimers(), app))
        app.carry(core)
        self._service.core = core
        core.signal(AgentEvent.START)
        await core.work_off()
        await context.pace.wait_for_ever()


def _ab_pal(context: AppContext) -> Pal:
    assert isinstance(context.slots, AbSlots)
    return AbPal(context.slots, context.nvs, context.pace, sweep_certificate())


class _NoTimers:
    """Timers that never run out: nothing takes time in a sweep."""

    def start(self, timer: OtaTimer, seconds: float) -> None:
        """Do nothing."""

    def stop(self, timer: OtaTimer) -> None:
        """Do nothing."""


@functools.cache
def _key() -> PrivateKey:
    """Return the signer's key of this process; nothing on the device depends on which one it is."""
    return PrivateKey.generate("p256")


@functools.cache
def sweep_certificate() -> bytes:
    """Return the certificate (PEM) with which devices of sweeps check files."""
    made = make_code_signing_certificate(_key(), subject="sweep", serial=1, now=_CERTIFICATE_FROM)
    return made.public_bytes(Encoding.PEM)


def sweep_signature(data: bytes) -> str:
    """Return the signature over `data` as a job document has it."""
    signer = FilePrivateKey.from_pem(_key().to_pem())
    return base64.b64encode(signer.sign(hashlib.sha256(data).digest())).decode("ascii")
