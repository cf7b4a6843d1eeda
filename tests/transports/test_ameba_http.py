"""Listeners for AmebaD firmware that fetches for itself, against a client that reads as the device does."""

from __future__ import annotations

import asyncio
import json

import pytest

from flota.images.ameba import pack_ota_file
from flota.lab.sample_firmware import sample_ameba
from flota.protocols.ameba_http import (
    FIRST_READ_BYTES,
    pack_pull_answer,
    pack_pull_request,
    parse_pull_answer,
    parse_pull_request,
    parse_state_post,
)
from flota.protocols.ameba_push import push_stream_start
from flota.protocols.malformed import MalformedMessage
from flota.transports.ameba_http import PullServer, trigger

FILE = pack_ota_file(sample_ameba("2.0.0", size=64 * 1024))


async def asked(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("resource", ["ota.bin", "api/uploadfile"])
async def test_a_device_that_pulls_gets_an_answer_that_its_parser_reads(resource: str) -> None:
    server = PullServer(FILE)
    async with server.http("127.0.0.1", 0) as (_, port):
        answer = await asked(port, pack_pull_request("127.0.0.1", resource))
    size, start = parse_pull_answer(answer)
    assert size == len(FILE)
    assert answer[start:] == FILE


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "No Content-Length in header"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 5\r\n\r\n", "200"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "size = 0"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 600 + b"\r\nContent-Length: 5\r\n\r\n", "too long"),
        (b"", "200"),
        (b"nonsense", "200"),
    ],
)
def test_what_stops_the_device_stops_its_parser(head: bytes, says: str) -> None:
    with pytest.raises(MalformedMessage, match=says):
        parse_pull_answer(head)


def test_the_answer_fits_the_devices_first_read_and_both_spellings_are_known() -> None:
    assert len(pack_pull_answer(1_024_000)) <= FIRST_READ_BYTES
    assert parse_pull_answer(b"HTTP/1.1 200 OK\r\nCONTENT-LENGTH: 77\r\n\r\n")[0] == 77


async def test_the_state_that_a_device_posts_is_kept_and_told_once_with_rubbish_behind_it_too() -> None:
    told: list[str] = []
    server = PullServer(FILE, tell=lambda _, text: told.append(text))
    body = b'{"OTA_state":"OTA_STATE_IDLE"}{"OTA_state":"OTA'
    post = b"POST /api/connectedclients HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: keep-alive\r\n\r\n"
    async with server.http("127.0.0.1", 0) as (_, port):
        for _ in range(2):
            assert b"200 OK" in await asked(port, post % len(body) + body)
        assert server.states() == {"127.0.0.1": "OTA_STATE_IDLE"}
        listed = await asked(port, b"GET /api/connectedclients HTTP/1.1\r\nHost: x\r\n\r\n")
    assert json.loads(listed.partition(b"\r\n\r\n")[2])["recentEntries"][0]["OTA_state"] == "OTA_STATE_IDLE"
    assert told == ["OTA_STATE_IDLE"]


@pytest.mark.parametrize(
    "request_",
    [b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"DELETE /api/uploadfile HTTP/1.1\r\n\r\n", b"x" * 20_000 + b"\r\n\r\n"],
)
async def test_nonsense_is_answered_or_dropped_and_the_server_lives_on(request_: bytes) -> None:
    async with PullServer(FILE).http("127.0.0.1", 0) as (_, port):
        assert b"200 OK" not in (await asked(port, request_))[:20]
        assert (await asked(port, pack_pull_request("x", "f"))).endswith(FILE)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"OTA_state":1}', b"\xff\xfe", b"[" * 5000])
def test_a_state_that_is_none_is_a_clear_error(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_state_post(body)


def test_a_request_with_a_length_that_is_none_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="length"):
        parse_pull_request(b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n")


async def test_a_device_that_connects_by_tcp_gets_the_stream_at_once_and_again_for_the_next() -> None:
    server = PullServer(FILE)
    async with server.tcp("127.0.0.1", 0) as (_, port):
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            expected = push_stream_start(FILE) + FILE
            assert await asyncio.wait_for(reader.readexactly(len(expected)), 10) == expected
            writer.close()
            await writer.wait_closed()


async def test_the_trigger_reaches_a_device_and_its_echo_comes_back() -> None:
    async def device(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(1024))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    listener = await asyncio.start_server(device, "127.0.0.1", 0)
    async with listener:
        echo = await trigger("127.0.0.1", port=listener.sockets[0].getsockname()[1])
    assert echo.endswith(b"\r\n\r\nstart_ota")
