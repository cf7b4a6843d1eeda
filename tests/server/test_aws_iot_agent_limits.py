"""Agents with little room, such as the M487's: two messages at a time, MQTT packets of 2,176 bytes, MQTT alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flota.boards.catalogue import board
from flota.fleet.devices import Device
from flota.fleet.releases import Release
from flota.protocols.aws_ota import DataProtocol
from flota.protocols.aws_streams import BlockRequest, StreamFormat, pack_block_request, parse_block
from flota.protocols.mqtt.packets import Publish, pack_packet
from flota.server.api.aws_iot.agent_limits import BlockPacing, without_holes
from tests.server.aws_iot_bench import Bench, Thing, a_bench

PACKET_MAX_BYTES = 2176
SIZE = 1024 * 2048
"""The largest file that the agent takes."""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with a_bench(tmp_path) as made:
        yield made


async def roll_out(bench: Bench, device: Device, version: str, size: int = 16_000, **options: Any) -> Release:
    data = version.encode().ljust(size, b"\x5a")
    release = await bench.fleet.add_release(version, data=data, **({"board": "m487"} | options))
    await bench.fleet.roll_out(release, device)
    return release


async def stream_of(thing: Thing) -> str:
    document = (await thing.accepted("$next/get"))["execution"]["jobDocument"]
    return str(document["afr_ota"]["streamname"])


async def ask(thing: Thing, stream: str, count: int, missing: bytes) -> None:
    request = BlockRequest(0, 2048, 0, count, missing, token="rdy")
    packed = pack_block_request(request, StreamFormat.CBOR)
    await thing.link.publish(f"$aws/things/{thing.name}/streams/{stream}/get/cbor", packed, 0)


def test_both_boards_have_the_agent_of_the_vendors_example() -> None:
    for name in ("m487", "pfm-m487", "m2354"):
        limits = board(name).agent_limits
        assert limits is not None
        assert (limits.block_size, limits.blocks_held, limits.packet_max_bytes) == (2048, 2, PACKET_MAX_BYTES)
        assert limits.in_order is (name == "m2354")


@pytest.mark.parametrize("name_length", [1, 17, 23, 24, 40, 64])
async def test_each_packet_fits_whatever_the_things_name_and_the_block_are(bench: Bench, name_length: int) -> None:
    name = "n" * name_length
    await roll_out(bench, await bench.fleet.add_device(name), "1", SIZE)
    thing = await bench.connect(name)
    stream = await stream_of(thing)
    assert len(stream) == min(44, 67 - name_length), "AWS's 44 characters where they fit"
    await thing.link.subscribe(f"$aws/things/{name}/streams/{stream}/data/cbor", 0)
    await ask(thing, stream, 1, bytes(127) + b"\x80")
    message = await thing.next()
    assert (parse_block(message.payload, StreamFormat.CBOR).number, len(message.payload)) == (1023, 2073)
    assert len(pack_packet(message)) == 2176 if name_length > 22 else 2153 - 22 + name_length


async def test_a_job_message_with_everything_at_its_longest_fits(bench: Bench) -> None:
    object.__setattr__(bench.fleet.context.settings, "aws_iot_data", (DataProtocol.MQTT, DataProtocol.HTTP))
    object.__setattr__(bench.fleet.context.settings, "public_url", "https://updates.example.net:8443")
    name = "n" * 64
    await roll_out(bench, await bench.fleet.add_device(name), "1", filename="f" * 256)
    thing = await bench.connect(name)
    details = {"self_test": "ready", "updatedBy": "0x01000000"}
    job = (await thing.accepted("$next/get"))["execution"]["jobId"]
    await thing.accepted(f"{job}/update", {"status": "IN_PROGRESS", "statusDetails": details})
    payload = b'{"clientToken":"0:' + name.encode()[:62] + b'"}'
    await thing.link.publish(f"{thing.jobs}/$next/get", payload, 1)
    message = await thing.next()
    assert b'"protocols":["MQTT"]' in message.payload, "it fetches over MQTT alone, whatever the server offers others"
    assert b"update_data_url" not in message.payload
    signature, longest_certfile = ',"sig-sha256-ecdsa":"' + "A" * 96 + '"', "c" * 256
    missing_here = len(signature) + len(longest_certfile) - len("Code_Verify_Key")
    assert len(pack_packet(message)) + missing_here < PACKET_MAX_BYTES


async def test_a_name_that_leaves_no_room_for_any_stream_keeps_the_usual_one(bench: Bench) -> None:
    """No such firmware can be built: it has room for 64 characters."""
    await roll_out(bench, await bench.fleet.add_device("n" * 65), "1")
    assert len(await stream_of(await bench.connect("n" * 65))) == 44


async def test_other_boards_get_the_streams_and_the_bursts_that_they_ask_for(bench: Bench) -> None:
    name = "n" * 64
    await roll_out(bench, await bench.fleet.add_device(name), "1", board="aws-reference")
    thing = await bench.connect(name)
    stream = await stream_of(thing)
    assert len(stream) == 44
    await ask(thing, stream, 4, b"\x0f")
    assert [await number(thing) for _ in range(4)] == [0, 1, 2, 3]


async def number(thing: Thing) -> int:
    return parse_block((await thing.next()).payload, StreamFormat.CBOR).number


async def test_all_four_blocks_come_in_order_to_an_agent_that_holds_two(bench: Bench) -> None:
    await roll_out(bench, await bench.fleet.add_device("pump-1"), "1")
    thing = await bench.connect()
    stream = await stream_of(thing)
    await ask(thing, stream, 4, b"\x7e")
    assert [await number(thing) for _ in range(4)] == [1, 2, 3, 4]
    await ask(thing, stream, 4, b"\x60")
    assert [await number(thing) for _ in range(2)] == [5, 6]
    assert await thing.has_nothing_new()


async def test_an_agent_that_hashes_what_arrives_gets_two_blocks_a_request_and_repetitions_to_count(
    bench: Bench,
) -> None:
    await roll_out(bench, await bench.fleet.add_device("door-1"), "1", board="m2354")
    thing = await bench.connect("door-1")
    stream = await stream_of(thing)
    await ask(thing, stream, 4, b"\xff")
    assert [await number(thing) for _ in range(4)] == [0, 1, 1, 1]
    await ask(thing, stream, 4, b"\xe0")
    assert [await number(thing) for _ in range(4)] == [5, 6, 6, 6], "three are missing, and it waits for four"
    await ask(thing, stream, 4, b"\x80")
    assert await number(thing) == 7
    assert await thing.has_nothing_new()


@pytest.mark.parametrize("lost", [{2}, {3}, {2, 3}, {1, 2, 3}])
def test_whatever_is_lost_of_a_repetition_the_blocks_that_are_taken_have_no_hole(lost: set[int]) -> None:
    sent = without_holes([b"0", b"1", b"2", b"3"], held=2, asked=4)
    assert sent == [b"0", b"1", b"1", b"1"]
    taken = sorted({payload for place, payload in enumerate(sent) if place not in lost})
    assert taken == [b"0", b"1"][: len(taken)]
    assert without_holes([b"0", b"1"], held=2, asked=4) == [b"0", b"1"]
    assert len(without_holes([b"0", b"1", b"2"], held=2, asked=98_304)) == 64


# --- pacing alone -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Sent:
    """A client that keeps what it is sent."""

    is_open: bool = True
    sent: list[tuple[bytes, ...]] = field(default_factory=list)

    def answer_all(self, topic: str | bytes, payloads: Iterable[bytes], *, qos: int | None = None) -> None:
        assert (topic, qos) == (b"t", None)
        self.sent.append(tuple(payloads))


BLOCKS = [b"0", b"1", b"2", b"3"]


def paced(pacing: BlockPacing, client: Any, blocks: list[bytes], wanted: list[bool] | None = None) -> None:
    flags = [True] if wanted is None else wanted
    pacing.send(client, b"t", blocks, at_once=2, is_wanted=lambda: flags[-1])


async def settled(pacing: BlockPacing) -> None:
    async with asyncio.timeout(10):
        while len(pacing):  # noqa: ASYNC110 - it is the loop's own timers that are waited for
            await asyncio.sleep(0)


async def test_two_blocks_go_at_once_and_each_further_one_alone() -> None:
    pacing, client = BlockPacing(every_s=0), Sent()
    paced(pacing, client, BLOCKS)
    assert client.sent == [(b"0", b"1")]
    await settled(pacing)
    assert client.sent == [(b"0", b"1"), (b"2",), (b"3",)]
    paced(pacing, client, [])
    paced(pacing, client, BLOCKS[:2])
    assert (client.sent[3:], len(pacing)) == ([(b"0", b"1")], 0)


async def test_a_new_request_makes_the_rest_of_the_last_one_void() -> None:
    pacing, client = BlockPacing(every_s=0), Sent()
    paced(pacing, client, BLOCKS)
    paced(pacing, client, [b"7", b"8", b"9"])
    await settled(pacing)
    assert client.sent == [(b"0", b"1"), (b"7", b"8"), (b"9",)]


async def test_nothing_more_goes_to_who_is_gone_or_may_not_read_it_any_more() -> None:
    pacing, closed, ended, left, wanted = BlockPacing(every_s=0), Sent(), Sent(), Sent(), [True]
    paced(pacing, closed, BLOCKS)
    paced(pacing, ended, BLOCKS, wanted)
    paced(pacing, left, BLOCKS)
    closed.is_open, wanted[0] = False, False
    pacing.forget(left)  # type: ignore[arg-type]  # as good a client as the pacing needs
    await settled(pacing)
    assert [client.sent for client in (closed, ended, left)] == [[(b"0", b"1")]] * 3


def test_the_packet_that_is_measured_is_the_packet_that_goes_out() -> None:
    assert len(pack_packet(Publish("t" * 98, bytes(2073)))) == PACKET_MAX_BYTES
