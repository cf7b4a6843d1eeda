"""Blynk devices behind a real MQTT endpoint and the real file route: real database, a clock that tests move."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from flota.fleet.devices import Device
from flota.fleet.executions import Execution
from flota.fleet.releases import Release
from flota.fleet.rollouts import RolloutPolicy
from flota.fleet.scope import Scope
from flota.fleet.shipments import ShipmentConditions, ShipmentRecord
from flota.images.blynk_tag import pack_tag
from flota.images.inspection import inspect, inspection_as_dict
from flota.protocols.blynk.cloud import UpdateAnnouncement, parse_announcement
from flota.protocols.mqtt.packets import Connect, Will
from flota.server.api.aws_iot import AwsIot
from flota.server.api.blynk import BlynkDialect, BlynkFiles
from flota.server.app import wrap
from flota.server.context import ServerContext
from flota.server.engine import Engine
from flota.server.listeners import bind
from flota.server.mqtt_dialects import MqttDialects
from flota.transports.mqtt_client import MqttLink, MqttLinkLost, open_mqtt
from flota.transports.mqtt_server import MqttEndpoint
from tests.server.serving import LOOPBACK
from tests.server.update_fleet import UpdateFleet, an_update_fleet

WAIT_S = 30.0
PRODUCT = "TMPLabcd1234"
OLD = {"tmpl": PRODUCT, "ver": "1.2.3", "build": "Nov 16 2023 20:35:55", "type": PRODUCT, "rxbuff": 1024}
NEW = {"tmpl": PRODUCT, "ver": "1.2.4", "build": "Jan 05 2024 10:00:00", "type": PRODUCT, "rxbuff": 1024}


def tagged_image(version: str = "1.2.4", *, build: str = "Jan  5 2024 10:00:00", fw_type: str = PRODUCT) -> bytes:
    """Return a file of some kilobytes with a firmware tag at its end."""
    return bytes(range(256)) * 20 + pack_tag([("mcu", version), ("fw-type", fw_type), ("build", build)])


@dataclass
class BlynkClient:
    """A connected device, seen from its side."""

    bench: BlynkBench
    link: MqttLink

    async def report(self, info: object) -> None:
        """Publish what runs, a moment after what was before."""
        self.bench.fleet.clock.advance(1)
        payload = info if isinstance(info, bytes) else json.dumps(info).encode()
        await self.link.publish("info/mcu", payload, 1)

    async def offer(self) -> UpdateAnnouncement:
        """Return the next announcement."""
        async with asyncio.timeout(WAIT_S):
            message = await self.link.receive()
        assert (message.topic, message.qos) == ("downlink/ota/json", 0)
        return parse_announcement(message.payload)

    async def nothing(self) -> None:
        """Check that nothing was sent until now: a subscription is acknowledged after what came before it."""
        await self.link.subscribe("downlink/ping", 0)
        try:
            async with asyncio.timeout(0):
                message = await self.link.receive()
        except TimeoutError:
            return
        raise AssertionError(message)

    async def is_closed(self) -> bool:
        """Whether the server has ended the connection."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self.link.receive()
        except MqttLinkLost:
            return True
        return False


@dataclass
class BlynkBench:
    """Everything of one test."""

    fleet: UpdateFleet
    blynk: BlynkDialect
    engine: Engine
    http: httpx.AsyncClient
    port: int
    links: list[MqttLink] = field(default_factory=list)

    async def connect(self, token: str, *, user: str = "device", will: Will | None = None) -> BlynkClient:
        connect = replace(Connect("", True, 45, user, token.encode()), will=will)
        link = await open_mqtt("127.0.0.1", self.port, connect)
        self.links.append(link)
        return BlynkClient(self, link)

    async def device(self, name: str = "mill-1", type_name: str = PRODUCT) -> Device:
        """Register a device whose token is its name and `-token`."""
        return await self.fleet.add_device(name, type_name=type_name, token=f"{name}-token")

    async def ship(self, *devices: Device, policy: RolloutPolicy | None = None, **conditions: Any) -> Execution:
        """Return the first device's execution of a new shipment; nobody is told yet."""
        execution = await self.roll_out(*devices, policy=policy)
        record = ShipmentRecord(execution.rollout_id, ShipmentConditions(**conditions), "token:test", "mill.bin")
        async with self.fleet.database.transaction() as transaction:
            await transaction.add_shipment(self.fleet.scope, record)
        return execution

    async def release(self, version: str = "1.2.4", data: bytes | None = None) -> Release:
        """Publish a release of a tagged file."""
        data = tagged_image(version) if data is None else data
        read = json.loads(json.dumps(inspection_as_dict(inspect(data)), default=str))
        return await self.fleet.add_release(version, data=data, type_name=PRODUCT, filename="mill.bin", inspection=read)

    async def roll_out(
        self, *devices: Device, policy: RolloutPolicy | None = None, data: bytes | None = None
    ) -> Execution:
        """Return the first device's execution of a new release; nobody is told yet."""
        executions = await self.fleet.roll_out(await self.release(data=data), *devices, policy=policy)
        return executions[0]

    async def settle(self) -> None:
        """Let the engine and the dialect do all that there is to do now."""
        while (await self.engine.tick()).effects:
            pass
        self.blynk.mark_due()
        await self.blynk.tell_changes()

    async def get(self, url: str, **headers: str) -> httpx.Response:
        """Return the answer at an announced URL."""
        path = url.removeprefix("http://flota.test:8080")
        assert path != url
        return await self.http.get(path, headers=headers)


@contextlib.asynccontextmanager
async def a_blynk_bench(directory: Path) -> AsyncIterator[BlynkBench]:
    """Give a bench with the product's type."""
    async with an_update_fleet(directory, public_url="http://flota.test:8080") as fleet:
        await fleet.add_type(PRODUCT)
        async with a_blynk_bench_over(fleet) as bench:
            yield bench


@contextlib.asynccontextmanager
async def a_blynk_bench_over(fleet: UpdateFleet) -> AsyncIterator[BlynkBench]:
    """Give a bench over a fleet."""
    aws_iot, blynk = AwsIot(fleet.context), BlynkDialect(fleet.context)
    await aws_iot.prepare()
    endpoint = MqttEndpoint(MqttDialects(aws_iot, blynk))
    listening = bind(LOOPBACK, plain=True)
    port = listening.getsockname()[1]
    await endpoint.listen(listening)
    app = wrap(BlynkFiles(fleet.context), fleet.context)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://flota.test:8080") as http:
        bench = BlynkBench(fleet, blynk, Engine(fleet.database, now=fleet.clock), http, port)
        try:
            yield bench
        finally:
            for link in bench.links:
                await link.close()
            await endpoint.stop(WAIT_S)


async def another_tenant(context: ServerContext, name: str = "OTHER") -> Scope:
    """Return the scope of a new tenant."""
    async with context.storage.transaction() as transaction:
        tenant = await transaction.add_tenant(name, now=context.now())
    return Scope(tenant.id, "token:other")
