"""What every API of the running server is given: one value, built once, passed on; no globals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection

from flota.server.admissions import Admissions
from flota.server.artifact_cleanup import RecordingGate
from flota.server.device_lines import DeviceLines
from flota.server.download_tokens import DownloadTokens
from flota.server.gathered import Gathered
from flota.server.identity_watch import IdentityWatch
from flota.server.journal import Journal
from flota.server.metrics import Metrics
from flota.server.poll_answers import SHARED_MAX_AGE_S, PollAnswers
from flota.server.proxies import check_authority, forwarded, is_from
from flota.server.settings import ServerSettings
from flota.server.sightings import SightingsWriter
from flota.server.things import ThingCertificates

if TYPE_CHECKING:
    from flota.fleet.scope import Scope
    from flota.fleet.storage import GatewayToken, KnownDevice, Storage, Transaction
    from flota.store.artifacts import ArtifactStore


def utc_now() -> datetime:
    """Return the time, aware, in UTC."""
    return datetime.now(UTC)


@dataclass(slots=True)
class ServerContext:
    """The server's parts, as its APIs see them.

    `started_at` is when this process began: what was under way before it cannot have been finished by it.
    `stopping` is set when the server has been asked to stop: streams that never end by themselves end then.
    """

    settings: ServerSettings
    storage: Storage
    artifacts: ArtifactStore
    journal: Journal
    sightings: SightingsWriter
    download_tokens: DownloadTokens
    now: Callable[[], datetime]
    started_at: datetime
    metrics: Metrics = field(default_factory=Metrics)
    recording_gate: RecordingGate = field(default_factory=RecordingGate)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    identity_watch: IdentityWatch = field(default_factory=IdentityWatch)
    device_lines: DeviceLines = field(default_factory=DeviceLines)
    own_url: str | None = None
    """Where this process listens for HTTP, set once it does: what devices are given that do not come over HTTP."""
    mqtts_port: int | None = None
    """Where this process listens for things over TLS, set once it does."""
    poll_answers: PollAnswers = field(init=False)
    known_devices: Gathered[str, KnownDevice] = field(init=False)
    """By name."""
    gateways: Gathered[str, GatewayToken] = field(init=False)
    """By the hex SHA-256 of the secret."""
    admissions: Admissions = field(init=False)
    things: ThingCertificates = field(init=False)

    def __post_init__(self) -> None:
        """Have answers to polls kept as long as this process hears of every change."""
        self.known_devices = Gathered(self.storage.read_at_once, _known_devices)
        self.gateways = Gathered(self.storage.read_at_once, _gateways)
        self.admissions = Admissions(self.storage, now=self.now)
        max_age_s = SHARED_MAX_AGE_S if self.settings.is_database_shared else None
        self.poll_answers = PollAnswers(self.sightings, now=self.now, max_age_s=max_age_s)
        self.storage.on_change(self.poll_answers.forget)
        self.things = ThingCertificates(
            self.storage, self.settings.data.certificates, now=self.now, max_age_s=max_age_s
        )

    def public_base(self, request: HTTPConnection | Mapping[str, Any]) -> str:
        """Return the URL, without a final slash, under which the asking device can reach this server again.

        It is `--public-url` where given, else what a trusted proxy says, else scheme and Host header of the request
        (an ASGI scope does too).
        Raises `InvalidInput` when the Host header is none that could be written into a URL.
        """
        if self.settings.public_url is not None:
            return self.settings.public_url
        scope = request.scope if isinstance(request, HTTPConnection) else request
        if not self.settings.trusted_proxies:
            return f"{scope['scheme']}://{_authority(scope)}"
        told = forwarded(scope, self.settings.trusted_proxies)
        return f"{told.scheme or scope['scheme']}://{told.authority or _authority(scope)}{told.prefix}"

    def device_base_url(self) -> str | None:
        """Return the URL, without a final slash, that a device is given which does not ask over HTTP; None for none."""
        return self.settings.public_url or self.own_url

    def peer_address(self, request: HTTPConnection | Mapping[str, Any]) -> str | None:
        """Return where the request comes from: the peer's address, or the client's as a trusted proxy tells it."""
        scope = request.scope if isinstance(request, HTTPConnection) else request
        peer = scope.get("client")
        if not self.settings.trusted_proxies:
            return None if peer is None else str(peer[0])
        told = forwarded(scope, self.settings.trusted_proxies).client
        return told or (None if peer is None else str(peer[0]))

    def is_certificate_proxy(self, request: HTTPConnection) -> bool:
        """Whether the request comes through a proxy that checks client certificates."""
        return is_from(request.scope, self.settings.certificate_proxies)


async def _known_devices(transaction: Transaction, scope: Scope, names: Sequence[str]) -> Mapping[str, KnownDevice]:
    return await transaction.known_devices(scope, names)


async def _gateways(transaction: Transaction, scope: Scope, digests: Sequence[str]) -> Mapping[str, GatewayToken]:
    found = {digest: await transaction.gateway_token_by_digest(scope, digest) for digest in digests}
    return {digest: gateway for digest, gateway in found.items() if gateway is not None}


def make_context(
    settings: ServerSettings,
    storage: Storage,
    artifacts: ArtifactStore,
    *,
    download_key: bytes,
    now: Callable[[], datetime] = utc_now,
) -> ServerContext:
    """Return a context whose parts are wired together; nothing runs yet."""
    context = ServerContext(
        settings=settings,
        storage=storage,
        artifacts=artifacts,
        journal=Journal(storage),
        sightings=SightingsWriter(storage),
        download_tokens=DownloadTokens(download_key),
        now=now,
        started_at=now(),
    )
    context.metrics.watch_sightings(context.sightings)
    return context


def _authority(scope: Mapping[str, Any]) -> str:
    """Return host[:port] from the Host header (HTTP/2: `:authority`), else from the socket's own address."""
    given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    if not given:
        host, port = scope.get("server") or ("localhost", None)
        host = f"[{host}]" if ":" in host else host
        return f"{host}:{port}" if port else str(host)
    check_authority(given)
    return given
