"""The peer of `mqtt_blocks.py`: answers requests for blocks through a broker, with gmqtt on uvloop.

Run with HOST PORT QOS FILE. It reads requests and packs blocks by the same functions as the server.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import uvloop
from gmqtt import Client
from gmqtt.mqtt.constants import MQTTv311

from flota.protocols.aws_streams import Block, StreamFormat, pack_block, parse_block_request, wanted_blocks


async def main(host: str, port: int, qos: int, content: bytes) -> None:
    client = Client("responder")

    def answer(client: Client, topic: str, payload: bytes, wanted_qos: int, properties: Any) -> int:
        request = parse_block_request(payload, StreamFormat.CBOR)
        to = topic.removesuffix("get/cbor") + "data/cbor"
        size = request.block_size
        for number in wanted_blocks(request, len(content)):
            block = Block(0, number, content[number * size : number * size + size], request.token)
            client.publish(to, pack_block(block, StreamFormat.CBOR), qos=qos)
        return 0

    client.on_message = answer
    await client.connect(host, port, version=MQTTv311)
    subscribed = asyncio.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    client.subscribe("$aws/things/+/streams/+/get/cbor", qos=qos)
    await subscribed.wait()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]).read_bytes()))
