"""A server from start to end: opens what it needs in order, runs everything in one loop, closes it in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from flota import __version__
from flota.durable_files import remove_partial_files, write_durably
from flota.errors import FlotaError
from flota.server.certificate_authority import CertificateAuthority
from flota.server.context import ServerContext, make_context, utc_now
from flota.server.data_lock import hold_lock
from flota.server.download_tokens import load_or_create_key
from flota.server.first_start import ensure_admin_token, ensure_tenant
from flota.server.listeners import HasCertificate, Listener, TlsFiles, watch_certificates
from flota.server.settings import Address, ServerSettings
from flota.server.waiting import wait_for_any

if TYPE_CHECKING:
    from flota.server.engine import Engine
    from flota.server.metrics import Metrics
    from flota.server.mqtt_listeners import MqttListener
    from flota.server.mqtt_service import MqttBrokerService, MqttService
    from flota.store.database import Database

DATA_DIRECTORY_MODE: Final = 0o700
CERTIFICATE_CHECK_S: Final = 24 * 3600.0
"""How often a running server looks whether its own certificate nears its end."""

REQUESTS_LOOK_S: Final = 0.01
"""How often a stop looks whether requests are still at work; to tell it would cost each of them."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where a started server is found; the content of `server.json`, which clients on this machine read."""

    pid: int
    version: str
    started_at: datetime
    data: str
    http: str | None
    https: str | None
    mqtt: str | None
    mqtts: str | None
    public_url: str | None
    ca: str | None
    token_file: str | None


async def run_server(
    settings: ServerSettings, *, announce: Callable[[RunningServer], None], now: Callable[[], datetime] = utc_now
) -> bool:
    """Serve until SIGTERM or SIGINT. Returns whether every running response could finish within the grace time.

    `announce` is called once everything listens. Raises `FlotaError` if the server cannot start, or lost a part.
    """
    settings.data.root.mkdir(mode=DATA_DIRECTORY_MODE, parents=True, exist_ok=True)
    with hold_lock(settings.data.lock), _stop_signals() as stop:
        remove_partial_files(settings.data.root)
        settings.data.server_record.unlink(missing_ok=True)
        async with _opened_context(settings, now) as (context, engine, has_token):
            return await _serve(context, engine, stop, announce, has_token=has_token)


@contextlib.asynccontextmanager
async def _opened_context(
    settings: ServerSettings, now: Callable[[], datetime]
) -> AsyncIterator[tuple[ServerContext, Engine, bool]]:
    """Open database and artifact store, make what a first start makes, and wire everything together."""
    from flota.server.engine import Engine
    from flota.store.artifacts import ArtifactStore
    from flota.store.database import Database
    from flota.store.schema import upgrade_apart

    upgrade_apart(settings.effective_database_url)
    database: Database = await Database.open(settings.effective_database_url)
    try:
        settings.data.artifacts.mkdir(exist_ok=True)
        artifacts = ArtifactStore(settings.data.artifacts)
        artifacts.clean_partial_uploads()
        tenant = await ensure_tenant(database, now=now())
        has_token = await ensure_admin_token(database, tenant, settings.data.admin_token, now=now())
        key = load_or_create_key(settings.data.download_key)
        context = make_context(settings, database, artifacts, download_key=key, now=now)
        engine = Engine(database, now=now)

        def on_commit(tenant_ids: frozenset[int]) -> None:
            context.journal.notify(tenant_ids)
            engine.wake()

        database.on_commit(on_commit)
        yield context, engine, has_token
    finally:
        await database.close()


async def _serve(
    context: ServerContext,
    engine: Engine,
    stop: asyncio.Event,
    announce: Callable[[RunningServer], None],
    *,
    has_token: bool,
) -> bool:
    from flota.server.app import build_app
    from flota.server.artifact_cleanup import ArtifactCleanup

    settings = context.settings
    app = build_app(context)
    authority = CertificateAuthority(settings.data.certificates)
    listeners = []
    if settings.http is not None:
        listeners.append(Listener(app, settings.http, at_once=app.answer_at_once))
    if settings.https is not None:
        tls = _tls_files(settings, authority, context.now())
        listeners.append(Listener(app, settings.https, tls, at_once=app.answer_at_once))
    mqtt = _mqtt_service(context, authority)
    background_stop = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []
    finished = True
    try:
        for listener in listeners:
            await listener.start()
        context.own_url = next(map(_local_url, listeners), None)
        certified: list[HasCertificate] = [*listeners]
        if mqtt is not None:
            await mqtt.start()
            certified += mqtt.listeners
            ports = {listener.scheme: listener.address.port for listener in mqtt.listeners}
            context.mqtts_port = ports.get("mqtts")
        parts: dict[str, Awaitable[None]] = {
            "rollout engine": engine.run(background_stop),
            "artifact clean-up": ArtifactCleanup(context).run(background_stop),
            "sightings writer": context.sightings.run(background_stop),
            "certificate watch": watch_certificates(certified, background_stop),
            "certificate renewal": _renew_certificate(context, authority, background_stop),
        }
        if mqtt is not None:
            parts["MQTT dialect"] = mqtt.run(background_stop)
        tasks = [asyncio.create_task(_named(part), name=name) for name, part in parts.items()]
        tasks += [
            asyncio.create_task(listener.wait_lost(), name=f"listener {listener.address}") for listener in listeners
        ]
        running = _record(context, [*listeners, *(mqtt.listeners if mqtt is not None else ())], has_token=has_token)
        write_durably(settings.data.server_record, msgspec.json.format(msgspec.json.encode(running), indent=2) + b"\n")
        announce(running)
        await _until_stopped(stop, tasks)
    finally:
        _log.info("server.stopping")
        context.stopping.set()
        context.journal.close()
        settings.data.server_record.unlink(missing_ok=True)
        grace_ends = asyncio.get_running_loop().time() + settings.stop_grace_s
        stopping = [listener.stop(settings.stop_grace_s) for listener in listeners]
        if mqtt is not None:
            stopping.append(mqtt.stop(settings.stop_grace_s))
        results = await asyncio.gather(*stopping)
        finished = all(results) and await _requests_end(context.metrics, by=grace_ends)
        background_stop.set()
        await _end(tasks)
    _log.info("server.stopped", finished=finished)
    return finished


async def _requests_end(metrics: Metrics, *, by: float) -> bool:
    """Wait until nothing is being answered, at most until the loop's time is `by`; returns whether nothing is.

    A listener ends with its connections: what a peer that has left asked for may still be at work in the database.
    """
    while metrics.running and asyncio.get_running_loop().time() < by:  # noqa: ASYNC110
        await asyncio.sleep(REQUESTS_LOOK_S)
    return not metrics.running


async def _until_stopped(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Return when asked to stop; raises `FlotaError` when a part that should run for ever ended."""
    asked = asyncio.create_task(stop.wait(), name="stop")
    try:
        done, _ = await asyncio.wait({asked, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asked.cancel()
    for task in done - {asked}:
        error = None if task.cancelled() else task.exception()
        _log.error("server.part_lost", part=task.get_name(), exc_info=error)
        raise FlotaError(
            f"the {task.get_name()} ended", found=None if error is None else repr(error), hint="See the log above."
        ) from error


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Let background parts end by themselves, those that wait for ever excepted; log what goes wrong on the way."""
    for task in tasks:
        if task.get_name().startswith("listener "):
            task.cancel()
    for task, result in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(result, Exception):
            _log.error("server.part_failed", part=task.get_name(), error=repr(result))


async def _named(part: Awaitable[None]) -> None:
    await part


async def _renew_certificate(context: ServerContext, authority: CertificateAuthority, stop: asyncio.Event) -> None:
    """Renew our own certificate while the server runs for years; the certificate watch takes it into use."""
    settings = context.settings
    if (settings.https is None and settings.mqtts is None) or settings.tls_cert is not None:
        await stop.wait()
        return
    while not await wait_for_any(stop, timeout_s=CERTIFICATE_CHECK_S):
        try:
            authority.ensure_server_certificate(settings.names, now=context.now())
        except FlotaError as error:
            _log.error("tls.not_renewed", error=str(error))


def _tls_files(settings: ServerSettings, authority: CertificateAuthority, now: datetime) -> TlsFiles:
    """Return the user's own files where given, else those of our own authority."""
    if settings.tls_cert is not None and settings.tls_key is not None:
        return TlsFiles(settings.tls_cert, settings.tls_key)
    return authority.ensure_server_certificate(settings.names, now=now)


def _mqtt_service(context: ServerContext, authority: CertificateAuthority) -> MqttService | MqttBrokerService | None:
    """Return the part that speaks MQTT; without a listener for it nothing of it is imported."""
    settings = context.settings
    if settings.mqtt_broker is not None:
        from flota.server.mqtt_service import MqttBrokerService

        return MqttBrokerService(context, settings.mqtt_broker)
    if settings.mqtt is None and settings.mqtts is None:
        return None
    from flota.server.mqtt_service import MqttService

    return MqttService(context, lambda: _tls_files(settings, authority, context.now()))


def _record(context: ServerContext, listeners: Sequence[Listener | MqttListener], *, has_token: bool) -> RunningServer:
    settings = context.settings
    urls = {listener.scheme: _local_url(listener) for listener in listeners}
    own_authority = (settings.https is not None or settings.mqtts is not None) and settings.tls_cert is None
    root = CertificateAuthority(settings.data.certificates).root_certificate
    return RunningServer(
        pid=os.getpid(),
        version=__version__,
        started_at=context.started_at,
        data=_absolute(settings.data.root),
        http=urls.get("http"),
        https=urls.get("https"),
        mqtt=urls.get("mqtt"),
        mqtts=urls.get("mqtts"),
        public_url=settings.public_url,
        ca=_absolute(root) if own_authority else None,
        token_file=_absolute(settings.data.admin_token) if has_token else None,
    )


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _local_url(listener: Listener | MqttListener) -> str:
    """Return the URL by which this machine reaches a listener: every address includes the loopback one."""
    address = listener.address
    if address.is_wildcard:
        address = Address("::1" if ":" in address.host else "127.0.0.1", address.port)
    return f"{listener.scheme}://{address}"


@contextlib.contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
    """Give an event that SIGTERM or SIGINT sets. A second signal of the kind ends the process at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)

    def asked(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, asked, number)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
