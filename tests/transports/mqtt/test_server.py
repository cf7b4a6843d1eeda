"""The MQTT endpoint over real sockets, on asyncio's own loop and on uvloop: who is answered, in what order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from flota.errors import PeerError
from flota.protocols.mqtt.client_connection import ClientConnection
from flota.protocols.mqtt.packets import (
    SUBACK_FAILURE,
    Acknowledgement,
    Connack,
    Connect,
    Packet,
    PacketReader,
    PacketType,
    Publish,
    Signal,
    Suback,
    Subscribe,
    Unsubscribe,
    Will,
    pack_packet,
)
from flota.protocols.mqtt.server_connection import MqttLimits
from flota.transports.mqtt_client import ConnectRefused, MqttLinkLost, open_mqtt
from flota.transports.mqtt_server import MqttServerLimits
from tests.transports.mqtt.desk import Served, serving

SOON_S = 20.0


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as one:
        yield one


class Raw:
    """A client that sends what a test says, byte by byte if it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._packets = PacketReader(1 << 20)
        self._ready: list[Packet] = []

    def send(self, *packets: Packet | bytes) -> None:
        self.writer.write(b"".join(one if isinstance(one, bytes) else pack_packet(one) for one in packets))

    async def next(self) -> Packet:
        while not self._ready:
            async with asyncio.timeout(SOON_S):
                data = await self.reader.read(65536)
            if not data:
                raise EOFError
            self._ready += self._packets.feed(data)
        return self._ready.pop(0)

    async def next_is_the_end(self) -> bool:
        with contextlib.suppress(EOFError, ConnectionResetError):
            return await self.next() is None
        return True


@contextlib.asynccontextmanager
async def raw(served: Served, connect: Connect | None = None) -> AsyncIterator[Raw]:
    """Connect; with a CONNECT until it is accepted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    client = Raw(reader, writer)
    try:
        if connect is not None:
            client.send(connect)
            assert await client.next() == Connack(0)
        yield client
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until(condition: object) -> None:
    """Wait until a callable is true."""
    assert callable(condition)
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 - it looks at things that tell nobody
            await asyncio.sleep(0.005)


ANN = Connect("ann", username="ann", keep_alive=60)


async def test_requests_are_answered_on_the_asking_connection_even_unsubscribed(served: Served) -> None:
    ann, other = await served.link("ann"), await served.link("ann", "ann-2")
    await other.subscribe("desk/ann/told", 1)
    await ann.publish("desk/ann/ask", b"who am I", 1)
    told = await ann.receive()
    assert (told.topic, told.payload, told.qos) == ("desk/ann/told", b"who am I", 0)
    await other.publish("desk/ann/ask", b"mine", 0)
    assert (await other.receive()).payload == b"mine", "nobody's answer passed another subscriber"


async def test_an_answer_comes_once_to_a_client_that_subscribed_and_at_its_qos(served: Served) -> None:
    ann = await served.link()
    assert await ann.subscribe("desk/ann/told", 1) == 1
    assert await ann.subscribe("desk/ann/#", 0) == 0
    for text in (b"1", b"2"):
        await ann.publish("desk/ann/ask", text)
    assert [((await ann.receive()).payload, 1) for _ in range(2)] == [(b"1", 1), (b"2", 1)]


async def test_the_puback_comes_before_the_answer(served: Served) -> None:
    async with raw(served, ANN) as ann:
        ann.send(Publish("desk/ann/ask", b"x", 1, packet_id=7))
        assert await ann.next() == Acknowledgement(PacketType.PUBACK, 7)
        assert await ann.next() == Publish("desk/ann/told", b"x")


async def test_packets_may_come_behind_connect_without_waiting_for_its_answer(served: Served) -> None:
    async with raw(served) as ann:
        later = replace(ANN, password=b"later")
        ann.send(later, Subscribe(1, (("desk/ann/told", 0),)), Publish("desk/ann/ask", b"x"))
        await until(lambda: served.desk.peers)
        ann.send(Signal(PacketType.PINGREQ))
        served.desk.gate.set()
        assert [await ann.next() for _ in range(4)] == [
            Connack(0),
            Suback(1, (0,)),
            Publish("desk/ann/told", b"x"),
            Signal(PacketType.PINGRESP),
        ]


async def test_packets_may_come_in_any_pieces(served: Served) -> None:
    stream = b"".join(
        map(pack_packet, [ANN, Publish("desk/ann/ask", b"x" * 200, 1, packet_id=1), Signal(PacketType.PINGREQ)])
    )
    async with raw(served) as ann:
        for position in range(len(stream)):
            ann.send(stream[position : position + 1])
            await ann.writer.drain()
            await asyncio.sleep(0)
        assert await ann.next() == Connack(0)
        assert await ann.next() == Acknowledgement(PacketType.PUBACK, 1)
        assert await ann.next() == Publish("desk/ann/told", b"x" * 200)
        assert await ann.next() == Signal(PacketType.PINGRESP)


async def test_requests_are_worked_off_in_order_while_others_are_served(served: Served) -> None:
    ann, bob = await served.link("ann"), await served.link("bob")
    await ann.publish("desk/ann/slow", b"first")
    await ann.publish("desk/ann/ask", b"second")
    await bob.publish("desk/bob/ask", b"bob")
    assert (await bob.receive()).payload == b"bob"
    assert [publish.payload for publish in served.desk.heard] == [b"first", b"bob"]
    served.desk.gate.set()
    assert [(await ann.receive()).payload for _ in range(2)] == [b"first", b"second"]


async def test_messages_reach_subscribers_and_wait_for_one_that_comes_back(served: Served) -> None:
    ann = await served.link("ann", clean_session=False)
    bob = await served.link("bob")
    await ann.subscribe("news/#", 1)
    await bob.publish("news/today", b"1", 1)
    assert await ann.receive() == Publish("news/today", b"1", 1, packet_id=1)
    ann.abort()
    await until(lambda: "ann" in served.desk.left)
    await bob.publish("news/today", b"2", 1)
    again = await served.link("ann", clean_session=False)
    assert again.session_present
    assert (await again.receive()).payload == b"2"


async def test_retained_messages_are_handed_on(served: Served) -> None:
    ann = await served.link("ann")
    await ann.publish("news/rule", b"be kind", 1, retain=True)
    await ann.subscribe("news/+", 1)
    kept = await ann.receive()
    assert (kept.topic, kept.payload, kept.retain) == ("news/rule", b"be kind", True)


async def test_a_will_is_published_when_the_client_is_cut_off_and_only_then(served: Served) -> None:
    watcher = await served.link("watcher")
    await watcher.subscribe("news/#", 0)
    polite = await served.link("polite", will=Will("news/polite", b"gone"))
    rude = await served.link("rude", will=Will("news/rude", b"gone", 1))
    await polite.close()
    rude.abort()
    assert (await watcher.receive()).topic == "news/rude"
    await until(lambda: sorted(served.desk.left) == ["polite", "rude"])


async def test_the_same_client_id_takes_over_and_another_identity_does_not(served: Served) -> None:
    first = await served.link("ann", "id")
    other = await served.link("bob", "id")
    second = await served.link("ann", "id")
    with pytest.raises(MqttLinkLost):
        await first.receive()
    await second.publish("desk/ann/ask", b"still here", 1)
    await other.publish("desk/bob/ask", b"untouched", 1)
    await until(lambda: len(served.desk.left) == 1)
    assert served.endpoint.connected == 2


@pytest.mark.parametrize(
    ("connect", "code"),
    [
        (Connect("ann", username="ann", password=b"wrong"), 7),
        (Connect("ann", username="ann", level=5), 1),
        (Connect("", username="ann", clean_session=False), 2),
        (Connect("x" * 129, username="ann"), 2),
        (Connect("ann", username="ann", will=Will("a/" * 40, b"")), 5),
    ],
    ids=["wrong password", "MQTT 5", "no id to keep a session by", "long id", "a will that nobody may publish"],
)
async def test_a_refused_connect_is_told_why_and_closed(served: Served, connect: Connect, code: int) -> None:
    with pytest.raises(ConnectRefused) as caught:
        await open_mqtt("127.0.0.1", served.port, connect)
    assert caught.value.code_returned == code
    assert served.endpoint.connected == 0
    await until(lambda: served.endpoint.connections == 0)


async def test_a_client_without_an_id_is_given_one_of_its_own(served: Served) -> None:
    await served.link("ann", "")
    await served.link("ann", "")
    names = [client.client_id for client in served.desk.here]
    assert len(set(names)) == 2
    assert all(name.startswith("auto-") for name in names)


async def test_refused_filters_are_told(served: Served) -> None:
    async with raw(served, ANN) as ann:
        ann.send(Subscribe(1, (("desk/ann/#", 1), ("desk/bob/#", 1), ("#", 0), ("desk/ann/#/x", 0), ("news/+", 0))))
        assert await ann.next() == Suback(1, (1, SUBACK_FAILURE, SUBACK_FAILURE, SUBACK_FAILURE, 0))
        ann.send(Unsubscribe(2, ("desk/ann/#",)))
        assert await ann.next() == Acknowledgement(PacketType.UNSUBACK, 2)


async def test_qos_2_gets_no_acknowledgement_and_does_nothing(served: Served) -> None:
    async with raw(served, ANN) as ann:
        ann.send(
            Publish("desk/ann/ask", b"2", 2, packet_id=1),
            Acknowledgement(PacketType.PUBREL, 1),
            Subscribe(2, (("news/a", 2),)),
            Publish("desk/ann/ask", b"after"),
        )
        assert await ann.next() == Publish("desk/ann/told", b"after")
    assert served.endpoint.counters.ignored_qos_2 == 2
    assert len(served.desk.heard) == 1


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
        pytest.param(bytes.fromhex("160301020001"), id="TLS on the plain port"),
        pytest.param(pack_packet(Publish("a", b"")), id="no CONNECT"),
        pytest.param(pack_packet(ANN) * 2, id="CONNECT twice"),
        pytest.param(b"\x10\xff\xff\xff\x7f", id="a CONNECT of 256 MiB"),
        pytest.param(pack_packet(Connect("a" * 9000)), id="a CONNECT above 8 KiB"),
        pytest.param(pack_packet(ANN) + b"\x30\xff\xff\xff\xff\x01", id="a length of five bytes"),
        pytest.param(pack_packet(ANN) + b"\x30" + b"\xff\xff\xff\x7f", id="a message of 256 MiB"),
        pytest.param(pack_packet(ANN) + bytes.fromhex("300400024123"), id="wildcards in a name"),
        pytest.param(pack_packet(ANN) + pack_packet(Publish("a/" * 300, b"")), id="a name that is too deep"),
        pytest.param(pack_packet(ANN) + bytes.fromhex("30050003edb48061"), id="a surrogate in a name"),
        pytest.param(pack_packet(ANN) + pack_packet(Connack(0)), id="a packet of servers"),
        pytest.param(pack_packet(ANN) + pack_packet(Publish("desk/ann/crash", b"")), id="a bug of ours"),
        pytest.param(pack_packet(ANN) + pack_packet(Publish("$aws/things/bob", b"")), id="somebody else's topic"),
        pytest.param(
            pack_packet(ANN) + pack_packet(Subscribe(1, tuple((f"news/{n}", 0) for n in range(51)))), id="51 filters"
        ),
    ],
)
async def test_what_may_not_be_said_ends_that_connection_and_no_other(served: Served, data: bytes) -> None:
    bystander = await served.link("bystander")
    async with raw(served) as bad:
        bad.send(data)
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                await bad.next()
    await bystander.publish("desk/bystander/ask", b"fine", 1)
    assert (await bystander.receive()).payload == b"fine"
    await until(lambda: served.endpoint.connections == 1)


async def test_too_many_subscriptions_end_the_connection() -> None:
    async with serving(MqttServerLimits(connection=MqttLimits(subscriptions=2))) as served:
        ann = await served.link()
        await ann.subscribe("news/1")
        await ann.subscribe("news/2")
        with pytest.raises(PeerError):
            await ann.subscribe("news/3")
        await until(lambda: served.endpoint.connections == 0)


async def test_who_says_nothing_is_cut_off() -> None:
    limits = MqttServerLimits(connect_within_s=0.05, sweep_s=0.01)
    async with serving(limits) as served, raw(served) as mute, raw(served) as slow:
        slow.send(pack_packet(ANN)[:5])
        assert await mute.next_is_the_end()
        assert await slow.next_is_the_end()
        assert served.endpoint.counters.timed_out == 2


async def test_a_client_is_cut_off_after_one_and_a_half_keep_alives() -> None:
    now = 100.0
    async with serving(MqttServerLimits(sweep_s=0.01)) as served:
        served.endpoint.clock = lambda: now
        ann, bob = await served.link("ann", keep_alive=10), await served.link("bob", keep_alive=0)
        now = 114.9
        await ann.publish("desk/ann/ask", b"alive", 1)
        now = 129.8
        await ann.publish("desk/ann/ask", b"alive", 1)
        now = 144.9
        await until(lambda: not ann.is_open)
        assert bob.is_open
        assert served.endpoint.counters.timed_out == 1


async def test_a_request_that_takes_us_long_is_no_silence_of_the_client() -> None:
    now = 100.0
    async with serving(MqttServerLimits(sweep_s=0.01)) as served:
        served.endpoint.clock = lambda: now
        ann = await served.link("ann", keep_alive=10)
        await ann.publish("desk/ann/slow", b"thinking")
        await until(lambda: served.desk.heard)
        now = 200.0
        await asyncio.sleep(0.1)
        assert ann.is_open
        served.desk.gate.set()
        assert (await ann.receive()).payload == b"thinking"


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        (MqttServerLimits(connections=3), 3),
        (MqttServerLimits(pending=2), 2),
        (MqttServerLimits(connect_burst=4, connects_per_s=0.001), 4),
    ],
    ids=["in all", "that are not let in yet", "of one address"],
)
async def test_a_flood_of_connections_is_turned_away(limits: MqttServerLimits, allowed: int) -> None:
    async with serving(limits) as served:
        flood = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(10)]
        await until(lambda: served.endpoint.counters.accepted + served.endpoint.counters.turned_away == 10)
        assert served.endpoint.counters.accepted == allowed
        assert served.endpoint.connections == allowed
        for _, writer in flood:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def test_those_who_are_in_do_not_count_as_pending() -> None:
    async with serving(MqttServerLimits(pending=1)) as served:
        links = [await served.link(f"c{number}") for number in range(5)]
        assert served.endpoint.connected == 5
        for link in links:
            await link.close()


SLOW: list[socket.socket] = []


@pytest.fixture(autouse=True)
def no_slow_reader_stays() -> Iterator[None]:
    yield
    while SLOW:
        SLOW.pop().close()


async def a_slow_reader(served: Served) -> socket.socket:
    """A client with a small window that has connected and reads nothing from now on."""
    loop = asyncio.get_running_loop()
    slow = socket.socket()
    SLOW.append(slow)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    slow.setblocking(False)
    await loop.sock_connect(slow, ("127.0.0.1", served.port))
    await loop.sock_sendall(slow, pack_packet(ANN))
    assert await loop.sock_recv(slow, 4) == pack_packet(Connack(0))
    return slow


async def read_messages(slow: socket.socket, count: int) -> int:
    """Read so many messages; returns their payloads' bytes."""
    loop, reader, found, size = asyncio.get_running_loop(), PacketReader(1 << 20), 0, 0
    async with asyncio.timeout(30):
        while found < count:
            for packet in reader.feed(await loop.sock_recv(slow, 1 << 16)):
                assert isinstance(packet, Publish)
                found += 1
                size += len(packet.payload)
    return size


async def test_nothing_more_is_read_from_who_does_not_read_and_others_are_served(served: Served) -> None:
    loop = asyncio.get_running_loop()
    slow = await a_slow_reader(served)
    asked = 200
    request = pack_packet(Publish("desk/ann/blocks", b"32,4096"))  # 128 KiB each, 25 MiB in all
    await loop.sock_sendall(slow, request * asked)
    bob = await served.link("bob")
    for _ in range(20):
        await bob.publish("desk/bob/ask", b"x", 1)
        assert (await bob.receive()).payload == b"x"
    heard = sum(publish.topic == "desk/ann/blocks" for publish in served.desk.heard)
    assert heard < asked / 2, "the server went on working for a client that reads nothing"
    assert await read_messages(slow, asked * 32) == asked * 32 * 4096
    slow.close()


async def test_a_dialect_can_wait_until_its_answers_are_read(served: Served) -> None:
    loop = asyncio.get_running_loop()
    slow = await a_slow_reader(served)
    await loop.sock_sendall(slow, pack_packet(Publish("desk/ann/careful", b"400,65536")))
    await until(lambda: served.desk.heard)
    assert await read_messages(slow, 400) == 400 * 65536
    await loop.sock_sendall(slow, pack_packet(Publish("desk/ann/careful", b"400,65536")))
    await read_messages(slow, 1)
    slow.close()
    await until(lambda: served.desk.errors)
    assert isinstance(served.desk.errors[0], ConnectionError)


async def test_a_client_with_too_much_unsent_is_cut_off() -> None:
    limits = MqttServerLimits(output_max=1 << 20, output_high=4096, output_low=1024)
    async with serving(limits) as served:
        loop = asyncio.get_running_loop()
        slow = await a_slow_reader(served)
        await loop.sock_sendall(slow, pack_packet(Publish("desk/ann/blocks", b"300,100000")))
        await until(lambda: served.endpoint.connections == 0)
        slow.close()


async def test_a_removed_identity_is_cut_off_with_all_its_connections(served: Served) -> None:
    links = [await served.link("ann", str(number)) for number in range(2)]
    bob = await served.link("bob")
    assert len(served.endpoint.clients_of("ann")) == 2
    assert served.endpoint.forget("ann", "removed") == 2
    for link in links:
        with pytest.raises(MqttLinkLost):
            await link.receive()
    assert bob.is_open
    assert served.endpoint.clients_of("ann") == []


async def test_stopping_finishes_what_is_being_answered_and_sends_no_wills() -> None:
    async with serving() as served:
        ann = await served.link("ann", will=Will("news/ann", b"gone"))
        watcher = await served.link("watcher")
        await watcher.subscribe("news/#")
        await ann.publish("desk/ann/slow", b"finished")
        await until(lambda: served.desk.heard)
        stopping = asyncio.create_task(served.endpoint.stop(SOON_S))
        await asyncio.sleep(0.02)
        assert not stopping.done()
        served.desk.gate.set()
        assert (await ann.receive()).payload == b"finished"
        assert await stopping
        with pytest.raises(MqttLinkLost):
            await ann.receive()
        with pytest.raises(MqttLinkLost):
            await watcher.receive()
        with pytest.raises(MqttLinkLost):
            await served.link("late")


async def test_stopping_cuts_off_what_takes_longer_than_the_grace_time() -> None:
    async with serving() as served:
        ann = await served.link("ann")
        await ann.publish("desk/ann/slow", b"never")
        await until(lambda: served.desk.heard)
        slow = await a_slow_reader(served)
        await asyncio.get_running_loop().sock_sendall(slow, pack_packet(Publish("desk/ann/blocks", b"200,65536")))
        await until(lambda: len(served.desk.heard) == 2)
        assert not await served.endpoint.stop(0.1)
        slow.close()


async def test_a_ping_is_answered_and_a_client_pings_by_itself(served: Served) -> None:
    async with raw(served, ANN) as ann:
        ann.send(Signal(PacketType.PINGREQ))
        assert await ann.next() == Signal(PacketType.PINGRESP)
    link = await served.link("bob", keep_alive=1)
    core = link._core
    assert isinstance(core, ClientConnection)
    first = core.next_deadline
    await until(lambda: core.next_deadline != first)
    assert link.is_open
    await link.close()
    with pytest.raises(MqttLinkLost):
        await link.publish("desk/bob/ask", b"")
