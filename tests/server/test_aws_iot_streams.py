"""Files in blocks over MQTT: the C agent's and the library's requests, every rejection, who may read what."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flota.fleet.releases import Release
from flota.fleet.rollouts import RolloutState
from flota.protocols.aws_streams import (
    Block,
    BlockRequest,
    JsonPayload,
    StreamFormat,
    missing_bitmap,
    pack_block_request,
    parse_block,
)
from flota.protocols.cbor import pack_cbor, parse_cbor
from tests.server.aws_iot_bench import Bench, Thing, a_bench, a_bench_over, job_id

CBOR, JSON = StreamFormat.CBOR, StreamFormat.JSON


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with a_bench(tmp_path) as made:
        yield made


async def _stream(bench: Bench, size: int = 5000) -> tuple[Thing, Release, str]:
    """Return a connected thing with a queued job, the release, and what the topics of its stream begin with."""
    pump = await bench.fleet.add_device("pump-1")
    release, _ = await bench.roll_out(pump, size=size)
    thing = await bench.connect()
    document = (await thing.accepted("$next/get"))["execution"]["jobDocument"]
    stream = document["afr_ota"]["streamname"]
    assert len(stream) == 44
    return thing, release, f"streams/{stream}"


async def _blocks(thing: Thing, count: int, form: StreamFormat = CBOR, **options: Any) -> list[Block]:
    blocks = []
    for _ in range(count):
        message = await thing.next()
        assert message.topic.endswith(f"/data/{form.value}"), (message.topic, message.payload[:80])
        blocks.append(parse_block(message.payload, form, **options))
    return blocks


async def _get(thing: Thing, stream: str, request: BlockRequest, form: StreamFormat = CBOR) -> None:
    topic = f"$aws/things/{thing.name}/{stream}/get/{form.value}"
    await thing.link.publish(topic, pack_block_request(request, form), 0)


async def test_the_c_agent_downloads_a_file_that_ends_in_the_middle_of_a_block(bench: Bench) -> None:
    thing, release, stream = await _stream(bench, 300_001)
    await thing.link.subscribe(f"$aws/things/pump-1/{stream}/data/cbor", 0)
    content = bytearray(300_001)
    missing = set(range(-(-300_001 // 2048)))
    while missing:
        received = set(range(147)) - missing
        await _get(thing, stream, BlockRequest(0, 2048, 0, 4, missing_bitmap(received, 147), token="rdy"))
        for block in await _blocks(thing, min(4, len(missing))):
            assert (block.token, block.file_id) == ("rdy", 0)
            assert block.number == min(missing)
            content[block.number * 2048 : block.number * 2048 + len(block.payload)] = block.payload
            missing.discard(block.number)
    assert bytes(content) == bench.fleet.read(release)
    assert await thing.has_nothing_new()


async def test_the_file_stream_librarys_requests_get_the_blocks_that_they_mean(bench: Bench) -> None:
    thing, release, stream = await _stream(bench, 20_000)
    data = bench.fleet.read(release)
    topic = f"$aws/things/pump-1/{stream}/get"
    request = bytes.fromhex("a6616363726479616600616c191000616f036162444d513d3d616e01")
    await thing.link.publish(f"{topic}/cbor", request, 0)
    assert await _blocks(thing, 1) == [Block(0, 3, data[3 * 4096 : 4 * 4096], "rdy")]
    await thing.link.publish(f"{topic}/json", b'{"s": 1,"f": 0,"l": 4096,"o": 4,"n": 1}', 0)
    message = await thing.next()
    assert json.loads(message.payload)["p"] == base64.b64encode(data[4 * 4096 :]).decode()


async def test_the_documented_bitmap_wants_blocks_20_21_24_and_43(bench: Bench) -> None:
    thing, release, stream = await _stream(bench, 256 * 50)
    data = bench.fleet.read(release)
    topic = f"$aws/things/pump-1/{stream}/get/json"
    await thing.link.publish(topic, b'{"c":"x","f":0,"l":256,"o":20,"n":90000,"b":"0x130080"}', 0)
    blocks = await _blocks(thing, 4, JSON)
    assert blocks == [Block(0, number, data[256 * number : 256 * number + 256], "x") for number in (20, 21, 24, 43)]
    assert await thing.has_nothing_new()


async def test_a_request_gets_no_more_than_131072_bytes(bench: Bench) -> None:
    thing, _, stream = await _stream(bench, 300_000)
    await _get(thing, stream, BlockRequest(0, 4096, 0, 98_304))
    assert [block.number for block in await _blocks(thing, 32)] == list(range(32))
    await _get(thing, stream, BlockRequest(0, 131_072, 1))
    assert [(block.number, len(block.payload)) for block in await _blocks(thing, 1)] == [(1, 131_072)]
    assert await thing.has_nothing_new()


async def test_blocks_may_be_hexadecimal_in_json_where_the_server_was_told_so(bench: Bench) -> None:
    object.__setattr__(bench.fleet.context.settings, "aws_iot_json_payload", JsonPayload.HEX)
    async with a_bench_over(bench.fleet) as told:
        thing, release, stream = await _stream(told)
        await _get(thing, stream, BlockRequest(0, 256, 0, 1), JSON)
        (block,) = await _blocks(thing, 1, JSON, json_payload=JsonPayload.HEX)
        assert block.payload == told.fleet.read(release)[:256]


async def test_describe_tells_version_and_files(bench: Bench) -> None:
    thing, release, stream = await _stream(bench)
    size = release.artifact.digests.size
    expected = {"c": "t1", "s": 1, "d": "pump 2.0.0", "r": [{"f": 0, "z": size}]}
    assert await thing.ask(f"{stream}/describe/json", {"c": "t1"}) == (f"{stream}/description/json", expected)
    topic, answer = await thing.ask(f"{stream}/describe/cbor", pack_cbor({"c": "t1"}))
    assert (topic, answer) == (f"{stream}/description/cbor", expected)
    del expected["c"]
    assert await thing.ask(f"{stream}/describe/json") == (f"{stream}/description/json", expected)


REJECTED: list[tuple[dict[str, object], str]] = [
    ({"f": 0}, "InvalidRequest"),
    ({"l": 256}, "InvalidRequest"),
    ({"f": 1, "l": 256}, "ResourceNotFound"),
    ({"f": 256, "l": 256}, "InvalidRequest"),
    ({"f": 0, "l": 255}, "BlockSizeOutOfBounds"),
    ({"f": 0, "l": 131_073}, "BlockSizeOutOfBounds"),
    ({"f": 0, "l": 256, "o": 20}, "OffsetOutOfBounds"),
    ({"f": 0, "l": 256, "o": 98_305}, "OffsetOutOfBounds"),
    ({"f": 0, "l": 256, "n": 98_305}, "BlockCountLimitExceeded"),
    ({"f": 0, "l": 256, "s": 2}, "VersionMismatch"),
    ({"f": 0, "l": 256, "b": 7}, "InvalidRequest"),
]


async def test_every_bad_request_has_its_rejection_in_both_formats(bench: Bench) -> None:
    thing, _, stream = await _stream(bench)
    for members, code in REJECTED:
        asked = members | {"c": "t"}
        topic, told = await thing.ask(f"{stream}/get/json", asked)
        assert (topic, told["o"], told["c"]) == (f"{stream}/rejected/json", code, "t"), members
        topic, told = await thing.ask(f"{stream}/get/cbor", pack_cbor(asked))
        assert (topic, told["o"], told["c"]) == (f"{stream}/rejected/cbor", code, "t"), members
    too_long = {"f": 0, "l": 256, "b": bytes(12_288)}
    assert (await thing.ask(f"{stream}/get/cbor", pack_cbor(too_long)))[1]["o"] == "BlockBitmapLimitExceeded"
    for form, code in (("json", "InvalidJson"), ("cbor", "InvalidCbor")):
        for payload in (b"\xff\x00", b"\x80", b'"x"', b"{" * 5000, b"\xbf" * 5000, b"\x9f"):
            assert (await thing.ask(f"{stream}/get/{form}", payload))[1]["o"] == code
            assert (await thing.ask(f"{stream}/describe/{form}", payload))[1]["o"] == code
    assert (await thing.ask(f"{stream}/get/xml", b"{}"))[1]["o"] == "InvalidTopic"
    assert (await thing.ask(f"{stream}/put/json", b"{}"))[1]["o"] == "InvalidTopic"
    assert (await thing.ask("streams/a b/get/json", b"{}"))[1]["o"] == "InvalidTopic"


async def test_a_bitmap_of_nothing_and_a_count_of_nothing_get_nothing(bench: Bench) -> None:
    thing, _, stream = await _stream(bench)
    await _get(thing, stream, BlockRequest(0, 256, 0, 5, bytes(12_287)))
    await _get(thing, stream, BlockRequest(0, 256, 0, 0))
    assert await thing.has_nothing_new()


async def test_a_stream_is_open_only_to_things_with_an_open_job_that_names_it(bench: Bench) -> None:
    thing, _, stream = await _stream(bench)
    await bench.fleet.add_device("pump-2")
    other = await bench.connect("pump-2")
    request = {"f": 0, "l": 256, "n": 1, "c": "t"}
    topic, told = await other.ask(f"{stream}/get/json", request)
    assert (topic, told["o"], told["c"]) == (f"{stream}/rejected/json", "ResourceNotFound", "t")
    assert (await other.ask(f"{stream}/describe/json"))[1]["o"] == "ResourceNotFound"
    assert (await thing.ask(f"{stream}/get/json", request))[0] == f"{stream}/data/json"
    await thing.accepted(f"{job_id(bench)}/update", {"status": "IN_PROGRESS"})
    await bench.settle()
    assert (await thing.ask(f"{stream}/get/json", request))[0] == f"{stream}/data/json"
    await thing.accepted(f"{job_id(bench)}/update", {"status": "FAILED"})
    await bench.settle()
    assert (await thing.ask(f"{stream}/get/json", request))[1]["o"] == "ResourceNotFound"


async def test_a_canceled_download_gets_no_further_block(bench: Bench) -> None:
    thing, _, stream = await _stream(bench)
    await thing.accepted(f"{job_id(bench)}/update", {"status": "IN_PROGRESS", "statusDetails": {"receive": "1/3"}})
    async with bench.fleet.database.transaction() as tx:
        rollout = bench.fleet.rollouts[0].id
        await tx.set_rollout_state(bench.fleet.scope, rollout, RolloutState.CANCELED, now=bench.fleet.clock())
    await bench.settle()
    assert (await thing.ask(f"{stream}/get/json", {"f": 0, "l": 256, "n": 1}))[1]["o"] == "ResourceNotFound"


async def test_a_stream_keeps_its_name_over_a_restart(bench: Bench) -> None:
    thing, release, stream = await _stream(bench)
    await thing.accepted(f"{job_id(bench)}/update", {"status": "IN_PROGRESS"})
    async with a_bench_over(bench.fleet.restarted()) as after:
        again = await after.connect()
        await _get(again, stream, BlockRequest(0, 1024, 2, 1))
        (block,) = await _blocks(again, 1)
        assert block.payload == bench.fleet.read(release)[2048:3072]


async def test_what_is_kept_in_memory_is_bounded_and_right(tmp_path: Path) -> None:
    from flota.server.api.aws_iot.blocks import PIECE_BYTES, ArtifactPieces

    data = bytes(range(256)) * 2600
    file = tmp_path / "file"
    file.write_bytes(data)
    pieces = ArtifactPieces(lambda _: file, pieces_max=3)
    for offset in range(0, len(data), 50_000):
        length = min(50_000, len(data) - offset)
        assert pieces.part("a", offset, length) is None or offset % PIECE_BYTES
        await pieces.load("a", [(offset, length)])
        assert pieces.part("a", offset, length) == data[offset : offset + length]
        assert len(pieces) <= 3
    await pieces.load("a", [(len(data) - 10, 10)])
    assert pieces.part("a", len(data) - 10, 11) is None


async def test_a_file_that_is_missing_is_told_as_the_servers_fault(bench: Bench) -> None:
    thing, release, stream = await _stream(bench)
    bench.fleet.context.artifacts.path(release.artifact.digests.sha256).unlink()
    topic, told = await thing.ask(f"{stream}/get/cbor", pack_cbor({"f": 0, "l": 256, "n": 1, "c": "t"}))
    assert (topic, told["o"], told["c"]) == (f"{stream}/rejected/cbor", "InternalError", "t")


def test_a_cbor_block_put_together_by_hand_is_what_the_library_writes() -> None:
    from flota.protocols.aws_streams import pack_block

    for size in (1, 23, 24, 255, 256, 4096, 65_535, 65_536, 131_072):
        for number in (0, 23, 24, 255, 256, 65_535, 98_303):
            for token in (None, "", "rdy", "é" * 32):
                members: dict[str, object] = {} if token is None else {"c": token}
                members |= {"f": 200, "l": size, "i": number, "p": b"\x5a" * size}
                assert pack_block(Block(200, number, b"\x5a" * size, token), CBOR) == pack_cbor(members)
    assert parse_cbor(pack_block(Block(0, 0, b"x"), CBOR)) == {"f": 0, "l": 1, "i": 0, "p": b"x"}
