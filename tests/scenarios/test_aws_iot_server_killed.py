"""Kill -9 the server while things read blocks over MQTT: they come back, ask for what is missing, and converge."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flota.errors import PeerError
from flota.lab.local_server import LocalServer
from flota.protocols.aws_streams import BlockRequest, StreamFormat, missing_bitmap, pack_block_request, parse_block
from flota.protocols.mqtt.packets import Connect, Publish
from flota.transports.mqtt_client import MqttLink, open_mqtt
from flota.trust.keys import PrivateKey
from tests.scenarios.conftest import wait_until
from tests.scenarios.releases import publish

BLOCK_BYTES = 1024
IMAGE = bytes(range(251)) * 2_000
BLOCKS = -(-len(IMAGE) // BLOCK_BYTES)
THINGS = 6
PAUSE_S = 0.01
"""Between two requests of a thing: the download lasts long enough to have a middle."""


@dataclass
class Meter:
    """What an agent does, without flash: it keeps its blocks over a lost connection, and asks for the others."""

    name: str
    token: str
    port: int
    got: dict[int, bytes] = field(default_factory=dict)
    connections: int = 0

    async def run(self) -> None:
        while True:
            try:
                connect = Connect(self.name, True, 60, self.name, self.token.encode())
                link = await open_mqtt("127.0.0.1", self.port, connect)
                self.connections += 1
                try:
                    if await self._work(link):
                        return
                finally:
                    await link.close()
            except (PeerError, TimeoutError):
                await asyncio.sleep(0.1)

    async def _work(self, link: MqttLink) -> bool:
        """Return whether the update is through; waits for a job where there is none yet."""
        prefix = f"$aws/things/{self.name}"
        await link.subscribe(f"{prefix}/jobs/notify-next", 1)
        await link.publish(f"{prefix}/jobs/$next/get", b'{"clientToken":"0:t1"}', 1)
        while True:
            execution = json.loads((await _next(link)).payload).get("execution")
            if execution is not None:
                break
        stream = f"{prefix}/streams/{execution['jobDocument']['afr_ota']['streamname']}"
        update = f"{prefix}/jobs/{execution['jobId']}/update"
        while len(self.got) < BLOCKS:
            bitmap = missing_bitmap(set(self.got), BLOCKS)
            request = BlockRequest(0, BLOCK_BYTES, 0, 4, bitmap, token="rdy")
            await link.publish(f"{stream}/get/cbor", pack_block_request(request, StreamFormat.CBOR), 0)
            for _ in range(min(4, BLOCKS - len(self.got))):
                message = await _next(link)
                if message.topic.endswith("/data/cbor"):
                    block = parse_block(message.payload, StreamFormat.CBOR)
                    self.got[block.number] = block.payload
            if len(self.got) % 100 < 4:
                details = {"receive": f"{len(self.got)}/{BLOCKS}"}
                report = json.dumps({"status": "IN_PROGRESS", "statusDetails": details})
                await link.publish(update, report.encode(), 1)
                await _until(link, f"{update}/accepted")
            await asyncio.sleep(PAUSE_S)
        await link.publish(update, b'{"status":"SUCCEEDED"}', 1)
        await _until(link, f"{update}/accepted")
        return True


async def _next(link: MqttLink) -> Publish:
    async with asyncio.timeout(10):
        return await link.receive()


async def _until(link: MqttLink, topic: str) -> None:
    while (await _next(link)).topic != topic:
        pass


@pytest.mark.scenario
@pytest.mark.timeout(120)
async def test_things_whose_server_is_killed_in_mid_stream_converge(
    tmp_path: Path, server: LocalServer, key: PrivateKey
) -> None:
    port = int((server.address.mqtt or "").rpartition(":")[2])
    meters = []
    with server.client() as client:
        client.add_type("meter", "generic-linux", signers=[key.public_pem])
        for number in range(THINGS):
            token = client.add_device(f"meter-{number}", "meter").token
            assert token is not None
            meters.append(Meter(f"meter-{number}", token, port))
        publish(client, key, "meter", "2.0.0", IMAGE)
        rollout = client.create_rollout("meter@2.0.0", select="type=meter", name="all").id
    running = [asyncio.create_task(meter.run()) for meter in meters]
    try:
        await asyncio.to_thread(
            wait_until,
            lambda: all(len(meter.got) > BLOCKS // 4 for meter in meters),
            within_s=60,
            what="all are in the middle",
        )
        assert all(len(meter.got) < BLOCKS for meter in meters), "nobody is through yet"
        await asyncio.to_thread(server.kill)
        kept = {meter.name: set(meter.got) for meter in meters}
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(60):
            await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
    for meter in meters:
        assert b"".join(meter.got[number] for number in range(BLOCKS)) == IMAGE
        assert meter.connections == 2
        assert kept[meter.name] < set(meter.got)
    with server.client() as client:
        wait_until(lambda: client.rollout(rollout).is_final, within_s=30, what="the rollout ends")
        executions = client.executions(rollout)
        assert [(one.state, one.basis) for one in executions] == [("SUCCEEDED", "reported")] * THINGS
        for one in executions:
            versions = [event.version for event in client.execution_events(one.id)]
            assert versions == list(range(1, one.version + 1)), "its history has a gap"
