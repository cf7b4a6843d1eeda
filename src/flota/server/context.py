"""What every API of the running server is given: one value, built once, passed on; no globals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection

from flota.errors import InvalidInput
from flota.server.artifact_cleanup import RecordingGate
from flota.server.download_tokens import DownloadTokens
from flota.server.journal import Journal
from flota.server.metrics import Metrics
from flota.server.settings import ServerSettings, parse_host
from flota.server.sightings import SightingsWriter

if TYPE_CHECKING:
    from flota.fleet.storage import Storage
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

    def public_base(self, request: HTTPConnection | Mapping[str, Any]) -> str:
        """Return the URL, without a final slash, under which the asking device can reach this server again.

        It is `--public-url` where given, else scheme and Host header of the request (an ASGI scope does too).
        Raises `InvalidInput` when the Host header is none that could be written into a URL.
        """
        if self.settings.public_url is not None:
            return self.settings.public_url
        scope = request.scope if isinstance(request, HTTPConnection) else request
        return f"{scope['scheme']}://{_authority(scope)}"


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
    name, separator, port_text = given.partition("]:") if given.startswith("[") else given.partition(":")
    if separator and not (port_text.isascii() and port_text.isdecimal()):
        raise InvalidInput("the Host header has no usable port", found=repr(given[:80]))
    parse_host(name.removeprefix("[").removesuffix("]"))
    return given
