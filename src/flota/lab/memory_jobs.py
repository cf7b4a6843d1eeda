"""AWS IoT Jobs in memory, for sweeps: a service that has one job for each offer, and the agent's core at its side.

The service keeps what the device reports of a job, as the real one does: its record is a chip without operations,
because what follows a power-on depends on it too.

Source: docs/reference/power-cuts.md, "aws-reference".
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from flota.lab.oracle import Reason
from flota.lab.swept_device import Milestone, Offer
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
from flota.virtual.agents.aws_ota.app import OtaDemoApp
from flota.virtual.agents.aws_ota.core import OtaAgentCore, Ports
from flota.virtual.agents.aws_ota.pal import Pal
from flota.virtual.agents.aws_ota.ports import AgentBuild, OtaTimer
from flota.virtual.agents.aws_ota.states import AgentEvent
from flota.virtual.agents.aws_ota.status import version_word
from flota.virtual.device import AppContext
from flota.virtual.flash import Cut, FlashOperation

THING: Final = "swept"
STREAM: Final = "AFR_OTA-sweep"
FINAL: Final = frozenset({"SUCCEEDED", "FAILED", "REJECTED"})
_CERTIFICATE_FROM: Final = datetime(2026, 1, 1, tzinfo=UTC)


class JobsRecord:
    """What the service knows of the jobs: status and details of each, by version. It outlives the device's power."""

    def __init__(self) -> None:
        self._jobs: Mapping[str, tuple[str, Mapping[str, str]]] = {}
        self._digest: tuple[object, int] = (None, 0)

    def of(self, version: str) -> tuple[str, Mapping[str, str]]:
        """Return status and details of the job for a version."""
        return self._jobs.get(version, ("QUEUED", {}))

    def report(self, version: str, status: str, details: Mapping[str, str] | None) -> None:
        """Take a report, unless the job has ended."""
        old, before = self.of(version)
        if old not in FINAL:
            self._jobs = {**self._jobs, version: (status, before if details is None else dict(details))}

    def in_self_test(self, version: str) -> bool:
        """Return whether the job for a version is one that a device is testing."""
        return "self_test" in self.of(version)[1]

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
        if self._digest[0] is not self._jobs:
            text = json.dumps(self._jobs, sort_keys=True).encode()
            self._digest = (self._jobs, int.from_bytes(hashlib.blake2b(text, digest_size=16).digest()))
        return self._digest[1]

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
        core = OtaAgentCore(THING, version, self._build, Ports(pal, self._service, NoTimers(), app))
        app.carry(core)
        self._service.core = core
        core.signal(AgentEvent.START)
        await core.work_off()
        await context.pace.wait_for_ever()


class NoTimers:
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
