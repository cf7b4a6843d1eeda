"""Our MQTT client against servers that misbehave; with a good one it is in the tests of the endpoint."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from flota.errors import PeerError
from flota.protocols.mqtt.packets import (
    Acknowledgement,
    Connack,
    Connect,
    Packet,
    PacketType,
    Publish,
    Suback,
    Subscribe,
    pack_packet,
)
from flota.transports import mqtt_client
from flota.transports.mqtt_client import MqttLink, MqttLinkLost, open_mqtt

CONNECT = Connect("c", keep_alive=60)
ACCEPTED = pack_packet(Connack(0))


@contextlib.asynccontextmanager
async def server_that_sends(*data: bytes, hang_up: bool = False) -> AsyncIterator[int]:
    """Listen; to whoever sends something these bytes are sent, one after each thing that comes."""

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with contextlib.suppress(ConnectionError):
            for piece in data:
                if not await reader.read(65536):
                    break
                writer.write(piece)
            if not hang_up:
                await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        server.close()
        if serving:
            await asyncio.wait(serving, timeout=20)


async def link_to(port: int, **more: float) -> MqttLink:
    return await open_mqtt("127.0.0.1", port, CONNECT, **more)  # type: ignore[arg-type]


def packed(*packets: Packet) -> bytes:
    return b"".join(map(pack_packet, packets))


async def test_nobody_there_is_an_error_of_the_peer() -> None:
    async with server_that_sends() as port:
        pass
    with pytest.raises(MqttLinkLost) as caught:
        await link_to(port)
    assert str(port) in str(caught.value)


async def test_a_server_without_a_connack_is_given_up() -> None:
    async with server_that_sends(b"") as port:
        with pytest.raises(MqttLinkLost) as caught:
            await link_to(port, timeout_s=0.1)
        assert "within 0.1 s" in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="HTTP"),
        pytest.param(packed(Publish("a", b"")), id="another packet"),
        pytest.param(b"\x20\x02", id="half a CONNACK"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x20\xff\xff\xff\x7f", id="a packet of 256 MiB"),
    ],
)
async def test_what_is_no_connack_ends_it(answer: bytes) -> None:
    async with server_that_sends(answer, hang_up=True) as port:
        with pytest.raises(MqttLinkLost):
            await link_to(port)


async def test_a_refused_subscription_and_a_silent_server_are_told_apart() -> None:
    async with server_that_sends(ACCEPTED, packed(Suback(1, (0x80,)))) as port:
        link = await link_to(port)
        with pytest.raises(PeerError, match="refused"):
            await link.subscribe("a")
        with pytest.raises(PeerError, match="did not answer a SUBSCRIBE"):
            await link.subscribe("b", timeout_s=0.05)
        with pytest.raises(PeerError, match="did not answer a PUBLISH"):
            await link.publish("b", b"", 1, timeout_s=0.05)
        with pytest.raises(PeerError, match="did not answer a UNSUBSCRIBE"):
            await link.unsubscribe("b", timeout_s=0.05)
        assert link.is_open
        await link.close()
        await link.close()


async def test_what_came_before_the_end_is_received_and_who_waits_hears_of_it() -> None:
    async with server_that_sends(ACCEPTED, packed(Publish("a", b"last words")), hang_up=True) as port:
        link = await link_to(port)
        waiting = asyncio.create_task(link.publish("x", b"", 1))
        assert (await link.receive()).payload == b"last words"
        with pytest.raises(MqttLinkLost):
            await link.receive()
        with pytest.raises(MqttLinkLost):
            await waiting
        assert not link.is_open


async def test_a_server_that_breaks_the_protocol_is_left() -> None:
    async with server_that_sends(ACCEPTED, packed(Subscribe(1, (("a", 0),)))) as port:
        link = await link_to(port)
        await link.publish("a", b"")
        with pytest.raises(MqttLinkLost, match="broke its protocol"):
            await link.receive()


async def test_messages_of_qos_1_are_acknowledged_on_arrival() -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(ACCEPTED + packed(Publish("a", b"x", 1, packet_id=300)))
        heard.set_result(await reader.readexactly(4))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    link = await link_to(server.sockets[0].getsockname()[1])
    assert await heard == packed(Acknowledgement(PacketType.PUBACK, 300))
    await link.close()
    server.close()


async def test_unread_messages_stop_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_client, "RECEIVED_MAX_BYTES", 10_000)
    message = packed(Publish("a", bytes(5_000)))
    async with server_that_sends(ACCEPTED + message * 400) as port:
        link = await link_to(port)
        await asyncio.sleep(0.05)
        assert link._received_bytes < 400 * 5_000 / 2
        for _ in range(400):
            assert len((await link.receive()).payload) == 5_000
        link.abort()
