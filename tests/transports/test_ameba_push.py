"""Pushing over real sockets: every way in which a device can end it is told for what it is."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from flota.images.ameba import byte_sum, pack_ota_file
from flota.protocols.ameba_push import PushOutcome, PushStage, judge_push, parse_file_info
from flota.transports.ameba_push import PushLimits, push
from tests.images.ameba_samples import image2

OTA = pack_ota_file(image2(xip=b"\x22" * 400_000))
SHORT = PushLimits(connect_s=2, stall_s=0.5, close_s=0.5)
Device = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(device: Device) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await device(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 16)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_device_gets_the_12_bytes_and_the_file_and_progress_ends_at_the_end() -> None:
    got = bytearray()

    async def device(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.readexactly(12 + len(OTA)))

    seen: list[tuple[int, int]] = []
    async with listening(device) as port:
        record = await push("127.0.0.1", port, OTA, on_progress=lambda done, total: seen.append((done, total)))
    info = parse_file_info(bytes(got))
    assert (info.checksum, info.size, bytes(got[12:])) == (byte_sum(OTA), len(OTA), OTA)
    assert (record.stage, record.sent, record.total) == (PushStage.CLOSED, len(OTA), len(OTA))
    assert judge_push(record).outcome is PushOutcome.DELIVERED
    assert seen == sorted(seen)
    assert seen[-1] == (len(OTA), len(OTA))


async def test_nothing_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        record = await push("127.0.0.1", unused.getsockname()[1], OTA, limits=SHORT)
    assert record.stage is PushStage.NOT_CONNECTED
    assert "refused" in (record.trouble or "")


async def test_a_device_that_closes_early_is_a_failure_with_the_bytes_so_far() -> None:
    async def device(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1000)

    big = OTA * 60
    async with listening(device) as port:
        record = await push("127.0.0.1", port, big)
    verdict = judge_push(record)
    assert verdict.outcome is PushOutcome.FAILED
    assert record.sent < record.total


async def test_a_device_that_resets_at_the_end_with_bytes_on_the_way_is_no_delivery() -> None:
    async def device(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(12)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with listening(device) as port:
        record = await push("127.0.0.1", port, OTA * 60)
    assert record.reset
    assert judge_push(record).outcome is PushOutcome.FAILED


async def test_a_device_that_takes_nothing_is_given_up_after_the_stall_limit() -> None:
    done = asyncio.Event()

    async def device(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(12)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await done.wait()

    async with listening(device) as port:
        record = await push("127.0.0.1", port, OTA * 60, limits=SHORT)
        done.set()
    assert record.stage is PushStage.INFO_SENT
    assert "took nothing" in (record.trouble or "")


async def test_a_device_that_never_closes_is_doubtful() -> None:
    done = asyncio.Event()

    async def device(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(12 + len(OTA))
        await done.wait()

    async with listening(device) as port:
        record = await push("127.0.0.1", port, OTA, limits=SHORT)
        done.set()
    assert record.stage is PushStage.ALL_SENT
    assert judge_push(record).outcome is PushOutcome.DOUBTFUL


async def test_what_a_device_says_is_thrown_away() -> None:
    async def device(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"unexpected " * 5000)
        await reader.readexactly(12 + len(OTA))

    async with listening(device) as port:
        record = await push("127.0.0.1", port, OTA)
    assert record.stage is PushStage.CLOSED


@pytest.mark.parametrize("host", ["no.such.host.invalid", "", "x" * 70 + ".local"])
async def test_a_name_that_does_not_resolve_is_told(host: str) -> None:
    record = await push(host or "256.256.256.256", 8082, OTA, limits=SHORT)
    assert record.stage is PushStage.NOT_CONNECTED
    assert record.trouble
