"""An `aws-reference` board in memory with a scripted service at its side: every message kept, nothing waited for."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives.serialization import Encoding

from flota.boards.catalogue import board as board_named
from flota.lab.at_once import TimelessPace
from flota.lab.sample_firmware import sample_versioned_file
from flota.protocols.aws_jobs import JobsOperation, parse_jobs_topic
from flota.protocols.aws_streams import Block, StreamFormat, pack_block, parse_block_request, wanted_blocks
from flota.trust.code_signing import make_code_signing_certificate
from flota.trust.file_signatures import FilePrivateKey
from flota.trust.keys import PrivateKey
from flota.virtual.ab_board import AbHardware, AbSlots
from flota.virtual.agents.aws_ota.ab_pal import AbPal
from flota.virtual.agents.aws_ota.app import OtaDemoApp
from flota.virtual.agents.aws_ota.core import OtaAgentCore, Ports
from flota.virtual.agents.aws_ota.ports import AgentBuild, HttpRanges, OtaTimer, RangeAnswer
from flota.virtual.agents.aws_ota.states import AgentEvent
from flota.virtual.agents.aws_ota.status import version_word
from flota.virtual.device import AppContext, Identity
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.flash import NorFlash
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.slots import ResetReason

THING = "pump-1"
STREAM = "AFR_OTA-11111111-2222-3333-4444-555555555555"
JOB = "AFR_OTA-two"
IMAGE_BYTES = 7 * 4096 - 100
"""Seven blocks of 4 KiB, the last one short."""

SMALL_BUILD = AgentBuild(blocks_per_request=2)
NEXT_GET = f"$aws/things/{THING}/jobs/$next/get"
NOTIFY_NEXT = f"$aws/things/{THING}/jobs/notify-next"
UPDATE = f"$aws/things/{THING}/jobs/{JOB}/update"
DATA = f"$aws/things/{THING}/streams/{STREAM}/data/cbor"
GET_STREAM = f"$aws/things/{THING}/streams/{STREAM}/get/cbor"
NOTHING = b'{"clientToken":"0:pump-1","timestamp":1}'


@functools.cache
def signer() -> PrivateKey:
    return PrivateKey.generate("p256")


@functools.cache
def certificate_of(key: PrivateKey | None = None) -> bytes:
    made = make_code_signing_certificate(
        key or signer(), subject="tests", serial=1, now=datetime(2026, 1, 1, tzinfo=UTC)
    )
    return made.public_bytes(Encoding.PEM)


def signed(data: bytes, key: PrivateKey | None = None) -> str:
    signature = FilePrivateKey.from_pem((key or signer()).to_pem()).sign(hashlib.sha256(data).digest())
    return base64.b64encode(signature).decode("ascii")


@functools.cache
def image(version: str, behaviour: str = "healthy", size: int = IMAGE_BYTES) -> bytes:
    return sample_versioned_file(version, size=size, behaviour=behaviour)


def file_members(data: bytes, **changes: object) -> dict[str, object]:
    members: dict[str, object] = {
        "filepath": "pump.bin",
        "filesize": len(data),
        "fileid": 0,
        "certfile": "Code_Verify_Key",
        "fileType": 0,
        "sig-sha256-ecdsa": signed(data),
    }
    members |= changes
    return {name: value for name, value in members.items() if value is not None}


def job(
    data: bytes, *, job_id: str = JOB, details: dict[str, str] | None = None, protocols: object = None, **file: object
) -> bytes:
    """Return the answer to `$next/get` with a job for `data`; None leaves a member of its file out."""
    document: dict[str, object] = {"protocols": ["MQTT"] if protocols is None else protocols, "streamname": STREAM}
    document["files"] = [file_members(data, **file)]
    execution: dict[str, object] = {"jobId": job_id, "status": "IN_PROGRESS" if details else "QUEUED"}
    if details:
        execution["statusDetails"] = details
    execution["jobDocument"] = {"afr_ota": document}
    return json.dumps({"clientToken": "0:pump-1", "timestamp": 1, "execution": execution}).encode()


@dataclass
class ScriptedService:
    """Answers `$next/get` with `next_job`, requests for blocks with those of `data`; keeps what was published.

    `is_up` False: nothing can be sent. `lost`: blocks that do not arrive the first time. `answers`: whether at all.
    """

    next_job: bytes = NOTHING
    data: bytes = b""
    is_up: bool = True
    answers: bool = True
    lost: set[int] = field(default_factory=set)
    published: list[tuple[str, bytes, int]] = field(default_factory=list)
    subscribed: list[tuple[str, int]] = field(default_factory=list)
    unsubscribed: list[str] = field(default_factory=list)
    core: OtaAgentCore | None = None

    async def subscribe(self, topic_filter: str, qos: int) -> bool:
        self.subscribed.append((topic_filter, qos))
        return self.is_up

    async def unsubscribe(self, topic_filter: str) -> bool:
        self.unsubscribed.append(topic_filter)
        return self.is_up

    async def publish(self, topic: str, payload: bytes, qos: int) -> bool:
        self.published.append((topic, payload, qos))
        if not self.is_up:
            return False
        asked = parse_jobs_topic(topic)
        assert self.core is not None
        if asked is None:
            self._send_blocks(payload)
        elif asked.operation is JobsOperation.DESCRIBE:
            self.core.signal(AgentEvent.RECEIVED_JOB_DOCUMENT, self.next_job)
        return True

    def statuses(self) -> list[bytes]:
        """The payloads of all status updates."""
        return [payload for topic, payload, _ in self.published if topic.endswith("/update")]

    def requests(self) -> list[bytes]:
        """The payloads of all requests for blocks."""
        return [payload for topic, payload, _ in self.published if "/streams/" in topic]

    def _send_blocks(self, payload: bytes) -> None:
        if not self.answers:
            return
        request = parse_block_request(payload, StreamFormat.CBOR)
        for number in wanted_blocks(request, len(self.data)):
            if number in self.lost:
                self.lost.discard(number)
                continue
            assert self.core is not None
            self.core.signal(AgentEvent.RECEIVED_FILE_BLOCK, block(self.data, number, request.block_size))


def block(data: bytes, number: int, size: int = 4096) -> bytes:
    return pack_block(Block(0, number, data[number * size : (number + 1) * size]), StreamFormat.CBOR)


@dataclass
class KeptTimers:
    """Timers that run out when a test says so."""

    running: dict[OtaTimer, float] = field(default_factory=dict)

    def start(self, timer: OtaTimer, seconds: float) -> None:
        self.running[timer] = seconds

    def stop(self, timer: OtaTimer) -> None:
        self.running.pop(timer, None)


@dataclass
class ScriptedRanges:
    """An HTTP server: `statuses` are answered first, then 206 with the range."""

    data: bytes = b""
    statuses: list[int | None] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)
    closed: int = 0

    async def open(self, url: str) -> bool:
        self.opened.append(url)
        return url.startswith("http")

    async def get(self, first: int, last: int) -> RangeAnswer | None:
        self.asked.append((first, last))
        if self.statuses:
            status = self.statuses.pop(0)
            return None if status is None else RangeAnswer(status)
        return RangeAnswer(206, self.data[first : last + 1])

    async def close(self) -> None:
        self.closed += 1


class AwsBench:
    """A board whose flash outlives its apps; `boot` starts one, with its agent, and returns the core."""

    def __init__(
        self,
        version: str = "1.0.0",
        *,
        build: AgentBuild = SMALL_BUILD,
        certificate: bytes | None = b"default",
        http: HttpRanges | None = None,
    ) -> None:
        board = board_named("aws-reference")
        self.flash = NorFlash.blank(board.flash_size)
        self.nvs = NonVolatileStore()
        self.hardware = AbHardware(board, self.flash, nvs=self.nvs, pace=TimelessPace())
        self.hardware.flash_app(image(version))
        self.build = build
        self.certificate = certificate_of() if certificate == b"default" else certificate
        self.http = http
        self.service = ScriptedService()
        self.timers = KeptTimers()
        self.events: list[DeviceEvent] = []
        self.is_confirmed = False

    def boot(self) -> OtaAgentCore:
        """Boot once; the core is in Ready with nothing in its queue."""
        report = self.hardware.boot()
        assert report.app is not None
        assert isinstance(report.slots, AbSlots)
        self.app = report.app
        self.slots = report.slots
        context = AppContext(
            Identity(THING, "aws-reference", "02:00:00:00:00:01", "aws-reference"),
            report.slots,
            self.nvs,
            TimelessPace(),
            random.Random(1),
            ResetReason.POWER_ON,
            lambda kind, text, facts: self.events.append(DeviceEvent(THING, kind, text, facts)),
            self._confirmed,
        )
        self.pal = AbPal(report.slots, self.nvs, context.pace, self.certificate)
        app = OtaDemoApp(context, self.pal)
        ports = Ports(self.pal, self.service, self.timers, app, self.http)
        core = OtaAgentCore(THING, version_word(report.app.version), self.build, ports)
        app.carry(core)
        self.service.core = core
        return core

    async def start(self) -> OtaAgentCore:
        """Boot, start the agent and let it work until its queue is empty."""
        core = self.boot()
        core.signal(AgentEvent.START)
        await core.work_off()
        return core

    def told(self, kind: EventKind) -> list[str]:
        return [event.text for event in self.events if event.kind is kind]

    def _confirmed(self) -> None:
        self.is_confirmed = True
