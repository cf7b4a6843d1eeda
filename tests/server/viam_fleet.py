"""ESP32 devices behind the whole application: their links, their requests, and an engine over the same clock."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from flota.fleet.devices import UnknownDevices
from flota.fleet.executions import Execution
from flota.fleet.releases import Release
from flota.fleet.rollouts import RolloutPolicy
from flota.fleet.storage import NewDeviceType
from flota.server.app import build_app
from flota.server.engine import Engine
from flota.server.viam_links import LinksWanted, ServiceLink, make_links
from tests.server.update_fleet import SIGNER, UpdateFleet, an_update_fleet

ASKED_AT = "http://10.0.0.5:8080"
TYPE = "wrover"


@dataclass
class ViamFleet:
    """`at` is the fleet behind it; `engine` began when the server did."""

    at: UpdateFleet
    http: httpx.AsyncClient
    engine: Engine

    async def release(self, version: str = "2.0.0", **more: object) -> Release:
        return await self.at.add_release(version, type_name=TYPE, **more)  # type: ignore[arg-type]

    async def execution(
        self, name: str = "pump-1", release: Release | None = None, policy: RolloutPolicy | None = None
    ) -> Execution:
        """Return the queued execution of a new device."""
        device = await self.at.add_device(name, type_name=TYPE)
        made = await self.at.roll_out(release or await self.release(), device, policy=policy)
        return made[0]

    async def links(self, **wanted: str | None) -> tuple[ServiceLink, ...]:
        request = LinksWanted(**{"asked_at": ASKED_AT, **wanted})  # type: ignore[arg-type]
        return (await make_links(self.at.context, self.at.scope, request)).links

    async def link(self, device: str = "pump-1", release: str = f"{TYPE}@2.0.0") -> ServiceLink:
        (made,) = await self.links(release=release, device=device)
        return made

    async def get(self, link: ServiceLink | str, method: str = "GET", **headers: str) -> httpx.Response:
        """Return the answer to a device's request for a link."""
        parts = urlsplit(link if isinstance(link, str) else link.url)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.request(method, f"{parts.path}?{parts.query}", headers=named)

    async def tick(self, seconds: float = 0) -> None:
        self.at.clock.advance(seconds)
        await self.engine.tick()

    def restarted(self) -> ViamFleet:
        """Return the same fleet behind a new server process."""
        return _behind(self.at.restarted())


def _behind(fleet: UpdateFleet) -> ViamFleet:
    transport = httpx.ASGITransport(build_app(fleet.context))
    http = httpx.AsyncClient(transport=transport, base_url=ASKED_AT)
    return ViamFleet(fleet, http, Engine(fleet.database, now=fleet.clock))


@contextlib.asynccontextmanager
async def a_viam_fleet(directory: Path, **settings: object) -> AsyncIterator[ViamFleet]:
    """Give a fleet with the type `wrover` on board esp32."""
    async with an_update_fleet(directory) as fleet:
        if settings:
            fleet.context.settings = dataclasses.replace(fleet.context.settings, **settings)  # type: ignore[arg-type]
        async with fleet.database.transaction() as tx:
            new = NewDeviceType(TYPE, "esp32", unknown_devices=UnknownDevices.HOLD, signers=(SIGNER,))
            await tx.add_device_type(fleet.scope, new, now=fleet.clock())
        made = _behind(fleet)
        async with made.http:
            yield made
