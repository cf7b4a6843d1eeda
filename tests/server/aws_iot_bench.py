"""A fleet of things behind a real MQTT endpoint: real database, real sockets, a clock and an engine that tests move."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flota.fleet.devices import Device
from flota.fleet.executions import Execution
from flota.fleet.releases import Release
from flota.protocols.cbor import parse_cbor
from flota.protocols.mqtt.packets import Connect, Publish
from flota.server.api.aws_iot import AwsIot
from flota.server.engine import Engine
from flota.server.listeners import bind
from flota.transports.mqtt_client import MqttLink, open_mqtt
from flota.transports.mqtt_server import MqttEndpoint
from tests.server.serving import LOOPBACK
from tests.server.update_fleet import TOKEN, UpdateFleet, an_update_fleet

WAIT_S = 30.0


@dataclass
class Thing:
    """A connected thing, seen from the device."""

    name: str
    link: MqttLink
    inbox: list[Publish] = field(default_factory=list)

    @property
    def jobs(self) -> str:
        return f"$aws/things/{self.name}/jobs"

    async def next(self) -> Publish:
        """Return the next message."""
        if self.inbox:
            return self.inbox.pop(0)
        async with asyncio.timeout(WAIT_S):
            return await self.link.receive()

    async def told(self) -> tuple[str, Any]:
        """Return topic, without `$aws/things/NAME/`, and content of the next message."""
        message = await self.next()
        topic = message.topic.removeprefix(f"$aws/things/{self.name}/")
        return topic, parse_cbor(message.payload) if topic.endswith("/cbor") else json.loads(message.payload)

    async def ask(self, rest: str, payload: object = b"", *, qos: int = 1) -> tuple[str, Any]:
        """Publish to `$aws/things/NAME/rest` and return the next message, its topic without what it begins with."""
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await self.link.publish(f"$aws/things/{self.name}/{rest}", data, qos)
        return await self.told()

    async def accepted(self, rest: str, payload: object = b"") -> Any:
        """Return the accepted answer to a jobs request."""
        topic, members = await self.ask(f"jobs/{rest}", payload)
        assert topic == f"jobs/{rest}/accepted", (topic, members)
        return members

    async def rejected(self, rest: str, payload: object = b"") -> Any:
        """Return the rejection of a jobs request."""
        topic, members = await self.ask(f"jobs/{rest}", payload)
        assert topic == f"jobs/{rest}/rejected", (topic, members)
        return members

    async def has_nothing_new(self) -> bool:
        """Whether no message came before the answer to a request that is made now."""
        topic, _ = await self.ask("jobs/get", {"clientToken": "probe"})
        return topic == "jobs/get/accepted"


@dataclass
class Bench:
    """Everything of one test."""

    fleet: UpdateFleet
    aws_iot: AwsIot
    endpoint: MqttEndpoint
    engine: Engine
    port: int
    links: list[MqttLink] = field(default_factory=list)

    async def connect(
        self, name: str = "pump-1", *, client_id: str | None = None, token: str = TOKEN, clean: bool = True
    ) -> Thing:
        connect = Connect(client_id or f"client of {name}", clean, 60, name, token.encode())
        link = await open_mqtt("127.0.0.1", self.port, connect)
        self.links.append(link)
        return Thing(name, link)

    async def listening(self, name: str = "pump-1", *events: str) -> Thing:
        """Return a connected thing that has subscribed to these events; to both when none is named."""
        thing = await self.connect(name)
        for event in events or ("notify", "notify-next"):
            await thing.link.subscribe(f"{thing.jobs}/{event}", 1)
        return thing

    async def roll_out(self, *devices: Device, version: str = "2.0.0", size: int = 5000) -> tuple[Release, Execution]:
        """Return a release and the first device's execution; nobody is told yet."""
        release = await self.fleet.add_release(version, data=f"image {version} ".encode().ljust(size, b"\x5a"))
        executions = await self.fleet.roll_out(release, *devices)
        return release, executions[0]

    async def settle(self) -> None:
        """Let the engine and the notifications do all that there is to do now."""
        while (await self.engine.tick()).effects:
            pass
        self.aws_iot.states.mark_due()
        await self.aws_iot.states.tell_changes()


@contextlib.asynccontextmanager
async def a_bench_over(fleet: UpdateFleet) -> AsyncIterator[Bench]:
    aws_iot = AwsIot(fleet.context)
    await aws_iot.prepare()
    endpoint = MqttEndpoint(aws_iot)
    listening = bind(LOOPBACK, plain=True)
    port = listening.getsockname()[1]
    await endpoint.listen(listening)
    bench = Bench(fleet, aws_iot, endpoint, Engine(fleet.database, now=fleet.clock), port)
    try:
        yield bench
    finally:
        for link in bench.links:
            await link.close()
        await endpoint.stop(WAIT_S)


@contextlib.asynccontextmanager
async def a_bench(directory: Path) -> AsyncIterator[Bench]:
    """Give a bench with the type `pump`."""
    async with an_update_fleet(directory) as fleet:
        await fleet.add_type()
        async with a_bench_over(fleet) as bench:
            yield bench


def job_id(bench: Bench, number: int = -1) -> str:
    """Return the job id of a rollout of the bench."""
    rollout = bench.fleet.rollouts[number]
    return rollout.job_id or f"AFR_OTA-{rollout.id}"
