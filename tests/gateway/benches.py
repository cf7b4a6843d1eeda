"""A gateway in this process, a small DDI server and virtual AmebaD boards over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from flota.digests import digests_of
from flota.gateway.configuration import GatewaySettings, Patience
from flota.gateway.daemon import Gateway
from flota.gateway.driver import AdoptedDevice, SightingBasis
from flota.gateway.journal import Journal, UpdateRecord
from flota.images.ameba import pack_ota_file
from flota.images.inspection import inspect
from flota.protocols.ddi import Feedback
from flota.transports.ameba_push import PushLimits
from flota.trust.keys import PrivateKey
from flota.trust.manifest import Manifest, ManifestComponent, pack_manifest
from flota.trust.signatures import signatures_as_json
from flota.trust.trust_file import TrustedSigners, pack_trust_file
from flota.virtual.events import DeviceEvent, EventKind
from tests.virtual.ameba_devices import LiveBoard, image_of
from tests.virtual.small_ddi import SmallDdi
from tests.virtual.small_server import SmallServer, small_server

KEY = PrivateKey.generate("p256")
OTHER_KEY = PrivateKey.generate("p256")
DEVICE = "unit-1"
"""The one that the small server serves."""

LIMITS = PushLimits(connect_s=2, stall_s=1.0, close_s=3.0)
QUICK = Patience(evidence_s=1.5, unreachable_s=0.0, attempts=2, poll_s=0.05, look_s=0.02, retry_s=0.05, retry_max_s=0.1)


def ota(version: str = "2.0.0", size: int = 20_000) -> bytes:
    return pack_ota_file(image_of(version, size))


def signed(
    file: bytes, *, key: PrivateKey = KEY, version: str = "2.0.0", sequence: int = 2, **changes: object
) -> dict[str, str]:
    """Chunk metadata that sign `file` for the type and board `amebad`, with changes."""
    component = ManifestComponent("app", inspect(file).format.value, len(file), digests_of(file).sha256)
    fields: dict[str, object] = {
        "device_type": "amebad",
        "board": "amebad",
        "hardware_revision": None,
        "version": version,
        "sequence": sequence,
        "expires_at": None,
        "components": (component,),
        "issued_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    packed = pack_manifest(Manifest(**(fields | changes)))  # type: ignore[arg-type]
    return {
        "flota.manifest": base64.b64encode(packed).decode(),
        "flota.signatures": signatures_as_json([key.sign(packed)]),
    }


@dataclass
class Bench:
    """A gateway under test; `ddi` is its server, `state` what it keeps."""

    ddi: SmallDdi
    server: SmallServer
    state: Path
    trust: Path
    patience: Patience = QUICK
    feedback_at: list[float] = field(default_factory=list)

    def gateway(self, *devices: AdoptedDevice, patience: Patience | None = None) -> Gateway:
        settings = GatewaySettings(
            server=self.server.url,
            state=self.state,
            trust=(self.trust,),
            devices=devices,
            patience=patience or self.patience,
            listens=False,
        )
        return Gateway(settings, push_limits=LIMITS)

    @asynccontextmanager
    async def running(self, *devices: AdoptedDevice, patience: Patience | None = None) -> AsyncIterator[Gateway]:
        gateway = self.gateway(*devices, patience=patience)
        stop = asyncio.Event()
        life = asyncio.create_task(gateway.run(stop))
        try:
            yield gateway
        finally:
            stop.set()
            await life

    def update(self) -> UpdateRecord | None:
        """What the gateway's journal says of the device's update."""
        return Journal(self.state, clean=False).load(DEVICE).update

    async def closing(self, *, within_s: float = 20) -> Feedback:
        """Wait for the feedback that closes the action."""
        await eventually(lambda: self.ddi.closing is not None, within_s=within_s)
        assert self.ddi.closing is not None
        return self.ddi.closing


def device(port: int, **changes: object) -> AdoptedDevice:
    fields: dict[str, object] = {
        "name": DEVICE,
        "device_type": "amebad",
        "board": "amebad",
        "address": "127.0.0.1",
        "port": port,
        "token": "secret-of-unit-1",
    }
    return AdoptedDevice(**(fields | changes))  # type: ignore[arg-type]


@asynccontextmanager
async def bench(tmp_path: Path, file: bytes, metadata: dict[str, str] | None = None) -> AsyncIterator[Bench]:
    """A server that offers `file`, and a state directory that trusts KEY."""
    trust = tmp_path / "trust.json"
    trust.write_bytes(pack_trust_file(TrustedSigners.of([KEY.public_pem])))
    ddi = SmallDdi(file, metadata=signed(file) if metadata is None else metadata, token="secret-of-unit-1")
    async with small_server(ddi.handle) as server:
        ddi.server = server
        yield Bench(ddi, server, tmp_path / "gateway", trust)


async def eventually(condition: Callable[[], object], *, within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is on disk, or in another process
            await asyncio.sleep(0.01)


def announce_boots(board: LiveBoard, gateway: Gateway, address: str = "127.0.0.1") -> None:
    """Be the network: every boot of the board is heard by the gateway as an announcement."""
    hear = board.hear

    def heard(event: DeviceEvent) -> None:
        hear(event)
        if event.kind is EventKind.BOOT:
            gateway.book.heard(address, time.monotonic(), SightingBasis.ANNOUNCEMENT)

    board.device._listener = heard


def accepts(board: LiveBoard) -> int:
    """How often somebody connected to the board."""
    return sum("Accept connection successfully" in line for line in board.serial)


def journal_text(state: Path) -> str:
    return json.dumps([path.read_text() for path in (state / "devices").glob("*.json")])


def decisions(gateway: Gateway, decision: str) -> int:
    """How often the gateway has decided so."""
    return int(gateway.metrics.registry.get_sample_value("flota_gateway_decisions_total", {"decision": decision}) or 0)


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])
