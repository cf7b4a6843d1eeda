"""Last-seen times and reported versions of devices, written in batches: a poll costs no commit of its own."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Final

import structlog

from flota.errors import FlotaError
from flota.fleet.scope import Scope
from flota.fleet.storage import DeviceSighting
from flota.server.waiting import wait_for_any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from flota.fleet.storage import Storage, Transaction

BATCH_WINDOW_S: Final = 0.05
"""A sighting is durable this long after it was recorded, or sooner."""

BATCH_MAX_ROWS: Final = 500
"""Batches of 200 wrote 74 000 rows/s on SQLite where single commits wrote 3 700 (docs/reference/server.md)."""

SEEN_WINDOW_S: Final = 0.5
SEEN_MAX_ROWS: Final = 2000
"""Devices that told nothing new can wait longer, for larger batches: each costs the loop a change of threads."""

WAITING_MAX: Final = 20_000
"""Devices whose sightings may wait while the database is away; the oldest give way then."""

RETRY_PAUSE_S: Final = 1.0

_Waiting = tuple[Scope, DeviceSighting]
_Moment = tuple[Scope, str, "datetime"]
"""Tenant, route and time that many devices share that were only seen."""

_log = structlog.get_logger(__name__)


class SightingsWriter:
    """Collects what devices tell in passing. `record` returns at once; several sightings of one device become one row.

    Only losing the process can lose a sighting, and the device's next request brings it again. What decides about
    executions never goes this way.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._waiting: dict[tuple[int, int], _Waiting] = {}
        self._seen: dict[_Moment, list[int]] = {}
        self._seen_waiting = 0
        self._seen_pending = asyncio.Event()
        self._seen_full = asyncio.Event()
        self._pending = asyncio.Event()
        self._full = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Devices whose sightings are not written yet."""
        return len(self._waiting) + self._seen_waiting

    def record(self, scope: Scope, sighting: DeviceSighting) -> None:
        """Take one sighting; it is written within `BATCH_WINDOW_S`, together with others'."""
        key = (scope.tenant_id, sighting.device_id)
        earlier = self._waiting.pop(key, None)
        if earlier is not None:
            sighting = merge_sightings(earlier[1], sighting)
        elif len(self._waiting) >= WAITING_MAX:
            self._waiting.pop(next(iter(self._waiting)))
        self._waiting[key] = (scope, sighting)
        self._pending.set()
        if len(self._waiting) >= BATCH_MAX_ROWS:
            self._full.set()

    def record_seen(self, scope: Scope, device_id: int, route: str, *, at: datetime) -> None:
        """Take that a device was heard and told nothing new; `at` is rounded, so that many share a statement."""
        if self._seen_waiting >= WAITING_MAX:
            self._drop_earliest_seen()
        devices = self._seen.get((scope, route, at))
        if devices is None:
            devices = self._seen[scope, route, at] = []
        devices.append(device_id)
        self._seen_waiting += 1
        if self._seen_waiting == 1:
            self._seen_pending.set()
        elif self._seen_waiting == SEEN_MAX_ROWS:
            self._seen_full.set()

    async def flush(self) -> None:
        """Write all that waits, now. What could not be written waits again, and the error is raised."""
        await self._flush_seen()
        await self._flush_told()

    async def _flush_told(self) -> None:
        self._pending.clear()
        self._full.clear()
        while self._waiting:
            batch = [self._waiting.pop(key) for key in list(self._waiting)[:BATCH_MAX_ROWS]]
            try:
                await self._write(batch)
            except FlotaError:
                await self._write_singly(batch)
            except BaseException:
                for scope, sighting in batch:
                    key = (scope.tenant_id, sighting.device_id)
                    newer = self._waiting.get(key)
                    self._waiting[key] = (scope, merge_sightings(sighting, newer[1]) if newer else sighting)
                raise

    async def _flush_seen(self) -> None:
        self._seen_pending.clear()
        self._seen_full.clear()
        seen, self._seen, self._seen_waiting = self._seen, {}, 0

        async def write(transaction: Transaction) -> None:
            for (scope, route, at), devices in seen.items():  # in the order of time: of a device the latest counts
                await transaction.record_seen(scope, devices, route, at=at)

        if not seen:
            return
        try:
            await self._storage.write_at_once(write)
        except BaseException:
            for moment, devices in self._seen.items():
                seen.setdefault(moment, []).extend(devices)
            self._seen, self._seen_waiting = seen, sum(map(len, seen.values()))
            raise

    def _drop_earliest_seen(self) -> None:
        earliest = next(iter(self._seen))
        self._seen_waiting -= len(self._seen.pop(earliest))

    async def run(self, stop: asyncio.Event) -> None:
        """Write batches until `stop` is set, then write the rest. A failing database is tried again every second."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._keep_writing(self._flush_told, self._pending, self._full, BATCH_WINDOW_S, stop))
            both.create_task(
                self._keep_writing(self._flush_seen, self._seen_pending, self._seen_full, SEEN_WINDOW_S, stop)
            )
        await self.flush()

    async def _keep_writing(
        self,
        flush: Callable[[], Awaitable[None]],
        pending: asyncio.Event,
        full: asyncio.Event,
        window_s: float,
        stop: asyncio.Event,
    ) -> None:
        while not stop.is_set():
            await wait_for_any(pending, stop)
            await wait_for_any(full, stop, timeout_s=window_s)
            try:
                await flush()
            except Exception as error:  # noqa: BLE001 - whatever the driver raises: the batch waits and is tried again
                _log.warning("sightings.not_written", error=str(error), waiting=self.waiting)
                pending.set()
                await wait_for_any(stop, timeout_s=RETRY_PAUSE_S)

    async def _write(self, batch: list[_Waiting]) -> None:
        by_tenant: dict[int, tuple[Scope, list[DeviceSighting]]] = {}
        for scope, sighting in batch:
            by_tenant.setdefault(scope.tenant_id, (scope, []))[1].append(sighting)

        async def write(transaction: Transaction) -> None:
            for scope, sightings in by_tenant.values():
                await transaction.record_sightings(scope, sightings)

        await self._storage.write_at_once(write)

    async def _write_singly(self, batch: list[_Waiting]) -> None:
        """Write what the store takes; a device that was removed meanwhile must not hold up the others."""
        for waiting in batch:
            try:
                await self._write([waiting])
            except FlotaError as error:
                _log.info("sightings.dropped", device_id=waiting[1].device_id, error=str(error))


def merge_sightings(earlier: DeviceSighting, later: DeviceSighting) -> DeviceSighting:
    """Return `later` with what only `earlier` told filled in: None leaves the known value."""
    told = {
        field.name: value for field in dataclasses.fields(later) if (value := getattr(later, field.name)) is not None
    }
    return dataclasses.replace(earlier, **told)
