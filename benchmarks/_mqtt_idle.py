"""Devices that are connected over MQTT and wait for news, as one process that is told what to do line by line.

Run by `mqtt_connections.py` with a JSON object as the only argument (`Plan`). Commands on the standard input, each
answered by one line of JSON: `connect N`, `notify` (wait until every device was told of its next job), `return` (wait
until the server has gone, then until everybody is back), `quit`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import uvloop
from benchmarks._mqtt_load import secret_of

from flota.errors import PeerError
from flota.protocols.mqtt.packets import Connect
from flota.transports.mqtt_client import MqttLink, open_mqtt

AT_ONCE = 100
NOTIFY_WITHIN_S = 120.0
RETRY_S = 0.5


@dataclass(frozen=True)
class Plan:
    """Things `names` connect to the port; by TLS with `certificates`, a directory: NAME.crt, device.key, root.crt."""

    host: str
    port: int
    names: list[str]
    certificates: str = ""


class Device:
    """One thing and its connection."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.plan, self.name = plan, name
        self.link: MqttLink | None = None
        self.context: ssl.SSLContext | None = None
        if plan.certificates:
            files = Path(plan.certificates)
            self.context = ssl.create_default_context(cafile=str(files / "root.crt"))
            self.context.load_cert_chain(files / f"{name}.crt", files / "device.key")

    async def connect(self) -> None:
        plan = self.plan
        password = None if plan.certificates else secret_of(self.name).encode()
        connect = Connect(self.name, username=self.name, password=password, keep_alive=600)
        self.link = await open_mqtt(
            plan.host, plan.port, connect, tls=self.context, server_name="localhost", timeout_s=60
        )
        await self.link.subscribe(f"$aws/things/{self.name}/jobs/notify-next", 1, timeout_s=60)

    async def told(self) -> float:
        """Return when the next job was announced (Unix seconds)."""
        assert self.link is not None
        while True:
            if b'"execution"' in (await self.link.receive()).payload:
                return time.time()

    async def come_back(self) -> None:
        """Wait for the end of the connection, then connect again as soon as that goes."""
        assert self.link is not None
        try:
            while True:
                await self.link.receive()
        except PeerError:
            pass
        while True:
            try:
                await self.connect()
            except PeerError:
                await asyncio.sleep(RETRY_S)
            else:
                return


async def main(plan: Plan) -> None:
    loop = asyncio.get_running_loop()
    devices: list[Device] = []
    turn = asyncio.Semaphore(AT_ONCE)
    while True:
        command, _, argument = (await loop.run_in_executor(None, sys.stdin.readline)).strip().partition(" ")
        if command == "connect":
            new = [Device(plan, name) for name in plan.names[len(devices) : len(devices) + int(argument)]]
            began = time.time()

            async def connect(device: Device) -> None:
                async with turn:
                    await device.connect()

            await asyncio.gather(*map(connect, new))
            devices += new
            answer: dict[str, object] = {"connected": len(devices), "seconds": time.time() - began}
        elif command == "notify":
            waiting = [asyncio.wait_for(device.told(), NOTIFY_WITHIN_S) for device in devices]
            print(json.dumps({"listening": len(waiting)}), flush=True)
            times = await asyncio.gather(*waiting)
            answer = {"told": len(times), "first": min(times), "last": max(times)}
        elif command == "return":
            coming = [asyncio.create_task(device.come_back()) for device in devices]
            print(json.dumps({"listening": len(coming)}), flush=True)
            await asyncio.gather(*coming)
            answer = {"back": len(coming), "last": time.time()}
        else:
            return
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(main(Plan(**json.loads(sys.stdin.readline()))))
