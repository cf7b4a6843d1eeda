"""The running gateway: workers for its devices, the network watch, metrics; devices come and go with the configuration.

Stopping ends what waits at once and lets running pushes finish: a push that breaks leaves a board deaf.
Source: docs/reference/gateway.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import structlog

from flota.errors import FlotaError, InvalidInput
from flota.gateway.ameba import DRIVER_NAME as AMEBA_DRIVER
from flota.gateway.ameba import AmebaDriver
from flota.gateway.artifact_cache import ArtifactCache
from flota.gateway.check_ins import check_ins_heard
from flota.gateway.configuration import GatewaySettings, credentials_of, read_trust_files
from flota.gateway.device_worker import DeviceWorker, link_of
from flota.gateway.driver import AdoptedDevice, LastHopDriver
from flota.gateway.esp_push import DRIVER_NAME as ESPOTA_DRIVER
from flota.gateway.esp_push import EspotaDriver
from flota.gateway.journal import Journal, one_gateway
from flota.gateway.metrics import GatewayMetrics
from flota.gateway.network_watch import watch_network
from flota.gateway.sightings import SightingBook
from flota.gateway.stopping import stop_at_signals
from flota.gateway.workshop import Workshop
from flota.transports.ameba_push import PushLimits
from flota.transports.http import http_client

RELOAD_LOOK_S: Final = 1.0
DISK_THREADS: Final = 2
"""Journal entries are small, and the disk takes one after the other anyway."""

STOP_GRACE_S: Final = 150.0
"""How long running pushes may go on after the gateway was asked to stop: an erase and a slow write."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Turn:
    """One device being served."""

    device: AdoptedDevice
    worker: DeviceWorker
    stop: asyncio.Event
    task: asyncio.Task[None]

    def end(self) -> None:
        """End now, or after the push that is under way."""
        self.stop.set()
        if not self.worker.is_pushing:
            self.task.cancel()


@dataclass(slots=True)
class Gateway:
    """A gateway with its settings; `reload` returns newer ones, or None while nothing has changed.

    `book` is where signs of life arrive: who listens to more than mDNS writes into it.
    """

    settings: GatewaySettings
    reload: Callable[[], GatewaySettings | None] | None = None
    book: SightingBook = field(default_factory=SightingBook)
    metrics: GatewayMetrics = field(default_factory=GatewayMetrics)
    push_limits: PushLimits | None = None
    _turns: dict[str, _Turn] = field(default_factory=dict)
    _out: set[str] = field(default_factory=set)
    """Devices that are not served until the configuration changes."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`. Raises `Conflict` if another gateway has the state directory, `BadTrustFile`, ….

        A device whose configuration no driver can serve is refused before anything begins.
        """
        settings = self.settings
        signers = read_trust_files(settings.trust)
        drivers = self.drivers()
        for device in settings.devices:
            driver_of(device, drivers).identify(device)
        with one_gateway(settings.state):
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(DISK_THREADS, "disk"))
            async with http_client(cacert=settings.cacert, tls=settings.server.startswith("https:")) as client:
                rng = random.Random()  # noqa: S311 - jitter of waits, nothing secret
                cache = ArtifactCache(settings.state / "cache", client, max_bytes=settings.cache_bytes, rng=rng)
                shop = Workshop(
                    journal=Journal(settings.state),
                    cache=cache,
                    signers=signers,
                    metrics=self.metrics,
                    patience=settings.patience,
                    pushes=asyncio.Semaphore(settings.pushes_at_once),
                    server=settings.server,
                    rng=rng,
                )
                self.metrics.watch(cache, self.book)

                def begin(device: AdoptedDevice) -> _Turn:
                    driver = driver_of(device, drivers)
                    credentials = credentials_of(self.settings, device)
                    link = link_of(client, device, settings.server, settings.tenant, credentials)
                    worker = DeviceWorker(device, driver, link, shop)
                    ending = asyncio.Event()
                    _log.info("gateway.serving", device=device.name, by=driver.identify(device))
                    return _Turn(device, worker, ending, asyncio.ensure_future(worker.run(ending)))

                await self._serve(stop, begin)

    def drivers(self) -> dict[str, LastHopDriver]:
        """Return the drivers by name. Another kind of device is one more line here."""
        return {
            AMEBA_DRIVER: AmebaDriver(self.book, limits=self.push_limits),
            ESPOTA_DRIVER: EspotaDriver(self.book),
        }

    async def _serve(self, stop: asyncio.Event, begin: Callable[[AdoptedDevice], _Turn]) -> None:
        settings = self.settings
        async with self._listeners():
            watching = asyncio.ensure_future(self._watch(stop, settings.interfaces)) if settings.listens else None
            self._reconcile(begin)
            _log.info("gateway.running", server=settings.server, devices=len(self._turns))
            try:
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(RELOAD_LOOK_S):
                            await stop.wait()
                    self._look_after(begin)
            finally:
                await self._end()
                if watching is not None:
                    watching.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await watching

    async def _watch(self, stop: asyncio.Event, interfaces: Sequence[str] | None) -> None:
        """Listen by mDNS; a machine without it still serves fixed addresses, and says what it lacks."""
        try:
            await watch_network(self.book, stop, interfaces=interfaces)
        except OSError as error:
            _log.error("gateway.no_mdns", text=error.strerror or str(error))

    def _look_after(self, begin: Callable[[AdoptedDevice], _Turn]) -> None:
        """Take note of devices whose turn ended, read a changed configuration, begin with devices that wait."""
        for name, turn in list(self._turns.items()):
            if turn.task.done():
                del self._turns[name]
                self._ended(name, turn)
        try:
            changed = None if self.reload is None else self.reload()
        except FlotaError as error:
            _log.error("gateway.configuration_refused", text=str(error))
            changed = None
        if changed is not None:
            self.settings = changed
            self._out.clear()
            _log.info("gateway.configuration_read", devices=len(changed.devices))
        self._reconcile(begin)

    def _ended(self, name: str, turn: _Turn) -> None:
        """Log why a device is served no more; the others are not concerned."""
        error = None if turn.task.cancelled() else turn.task.exception()
        if error is None:
            return
        self._out.add(name)
        self.metrics.decisions.labels("device-out").inc()
        known = isinstance(error, FlotaError | OSError)
        _log.error("gateway.device_out", device=name, text=str(error), exc_info=None if known else error)

    def _reconcile(self, begin: Callable[[AdoptedDevice], _Turn]) -> None:
        """End with devices that are gone or changed, begin with new ones; a changed one begins once it has ended."""
        wanted = {device.name: device for device in self.settings.devices}
        for name, turn in self._turns.items():
            if wanted.get(name) != turn.device and not turn.stop.is_set():
                turn.end()
        for name, device in wanted.items():
            if name in self._turns or name in self._out:
                continue
            try:
                self._turns[name] = begin(device)
            except FlotaError as error:
                self._out.add(name)
                _log.error("gateway.device_refused", device=name, text=str(error))
        self.metrics.devices.set(len(self._turns))

    async def _end(self) -> None:
        for turn in self._turns.values():
            turn.end()
        tasks = [turn.task for turn in self._turns.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_GRACE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        _log.info("gateway.stopped")

    @contextlib.asynccontextmanager
    async def _listeners(self) -> AsyncIterator[None]:
        """Listen where the configuration says so, and nowhere else. Raises `InvalidInput` if that cannot be."""
        settings = self.settings
        if settings.metrics is not None:
            host, wanted = settings.metrics
            try:
                port, _ = self.metrics.serve(host, wanted)
            except OSError as error:
                raise InvalidInput(f"cannot listen at {host}:{wanted}", found=error.strerror or str(error)) from error
            _log.info("gateway.metrics", url=f"http://{host}:{port}/metrics")
        if settings.check_ins is None:
            yield
            return
        async with check_ins_heard(self.book, settings.check_ins) as (host, port):
            _log.info("gateway.check_ins", address=f"{host}:{port}")
            yield


def driver_of(device: AdoptedDevice, drivers: dict[str, LastHopDriver]) -> LastHopDriver:
    """Return a device's driver. Raises `InvalidInput` with the names there are."""
    driver = drivers.get(device.driver)
    if driver is None:
        raise InvalidInput(f"{device.name}: no such driver", expected=", ".join(drivers), found=repr(device.driver))
    return driver


async def run_until_signal(gateway: Gateway, *, with_parent: bool = False) -> None:
    """Run a gateway until SIGTERM or SIGINT; a second signal ends the process at once. `stop_at_signals` says more."""
    await gateway.run(await stop_at_signals(with_parent=with_parent))
