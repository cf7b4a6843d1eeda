"""The client's side of an MQTT connection, alone and against the server's side."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import FlotaError
from flota.protocols.mqtt.broker import BrokerCore
from flota.protocols.mqtt.client_connection import PING_ANSWER_S, ClientConnection
from flota.protocols.mqtt.errors import ProtocolViolation
from flota.protocols.mqtt.packets import (
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
    pack_packet,
)
from flota.protocols.mqtt.server_connection import ServerConnection


def sent(client: ClientConnection, now: float = 0) -> list[Packet]:
    return list(PacketReader(1 << 20).feed(b"".join(client.take_output(now=now))))


def events(client: ClientConnection, *packets: Packet) -> list[object]:
    client.feed(b"".join(map(pack_packet, packets)))
    found = []
    while (event := client.next_event()) is not None:
        found.append(event)
    return found


def opened(keep_alive: int = 60) -> ClientConnection:
    client = ClientConnection(Connect("c", keep_alive=keep_alive))
    assert sent(client) == [Connect("c", keep_alive=keep_alive)]
    assert events(client, Connack(0, session_present=True)) == [Connack(0, session_present=True)]
    return client


def test_it_is_open_after_the_connack_only() -> None:
    client = ClientConnection(Connect("c"))
    assert not client.is_open
    assert events(client, Connack(5)) == [Connack(5)]
    assert not client.is_open
    accepted = opened()
    assert accepted.is_open
    assert accepted.session_present
    with pytest.raises(ProtocolViolation):
        events(ClientConnection(Connect("c")), Publish("a", b""))


def test_messages_of_qos_1_are_acknowledged_as_they_come() -> None:
    client = opened()
    zero, one = Publish("a", b"0"), Publish("a", b"1", 1, packet_id=9)
    assert events(client, zero, one) == [zero, one]
    assert sent(client) == [Acknowledgement(PacketType.PUBACK, 9)]
    with pytest.raises(ProtocolViolation):
        events(client, Publish("a", b"", 2, packet_id=1))


def test_answers_are_told_once_and_only_to_what_was_asked() -> None:
    client = opened()
    published = client.publish("a", b"x", qos=1)
    subscribed = client.subscribe([("a", 1)])
    unsubscribed = client.unsubscribe(["a"])
    assert client.publish("a", b"y") is None
    assert published is not None
    assert len({published, subscribed, unsubscribed}) == 3
    answers = [
        Acknowledgement(PacketType.PUBACK, published),
        Suback(subscribed, (1,)),
        Acknowledgement(PacketType.UNSUBACK, unsubscribed),
    ]
    assert events(client, Acknowledgement(PacketType.PUBACK, subscribed), Suback(99, (0,))) == []
    assert events(client, *answers) == answers
    assert events(client, *answers) == []
    client.give_up(client.subscribe([("b", 0)]))


def test_pings_keep_it_alive_and_a_server_without_answer_is_gone() -> None:
    client = opened(keep_alive=100)
    assert client.next_deadline == 90
    client.deadline_passed(now=50)
    assert sent(client) == []
    client.deadline_passed(now=90)
    assert sent(client, now=90) == [Signal(PacketType.PINGREQ)]
    assert client.next_deadline == 90 + PING_ANSWER_S
    events(client, Signal(PacketType.PINGRESP))
    assert client.next_deadline == 90 + 90
    client.publish("a", b"")
    sent(client, now=120)
    assert client.next_deadline == 120 + 90, "what is sent is as good as a ping"
    client.deadline_passed(now=210)
    with pytest.raises(ProtocolViolation):
        client.deadline_passed(now=210 + PING_ANSWER_S)
    assert opened(keep_alive=0).next_deadline is None


def test_disconnect_is_the_last_word() -> None:
    client = opened()
    client.disconnect()
    client.disconnect()
    assert sent(client) == [Signal(PacketType.DISCONNECT)]
    assert events(client, Publish("a", b"")) == []


def test_packets_of_clients_are_a_violation() -> None:
    for packet in (Connect("c"), Subscribe(1, (("a", 0),)), Signal(PacketType.PINGREQ), Connack(0)):
        with pytest.raises(ProtocolViolation):
            events(opened(), packet)


def test_both_sides_understand_each_other() -> None:
    client, broker, server = ClientConnection(Connect("c")), BrokerCore(), ServerConnection()

    def exchange() -> list[object]:
        heard = []
        for event in server.receive(b"".join(client.take_output(now=0)), now=0):
            if isinstance(event, Connect):
                broker.open_session(server, "me", event.client_id, clean=event.clean_session, now=0)
            elif isinstance(event, Subscribe):
                broker.subscribe(server, event, [qos for _, qos in event.filters])
            elif isinstance(event, Publish):
                server.acknowledge(event)
                broker.publish(event.topic, event.payload, qos=event.qos)
        client.feed(b"".join(server.take_output()))
        while (told := client.next_event()) is not None:
            heard.append(told)
        return heard

    assert exchange() == [Connack(0)]
    subscribed = client.subscribe([("a/#", 1)])
    assert exchange() == [Suback(subscribed, (1,))]
    published = client.publish("a/b", b"hello", qos=1)
    assert published is not None
    assert exchange() == [Acknowledgement(PacketType.PUBACK, published), Publish("a/b", b"hello", 1, packet_id=1)]
    assert exchange() == []
    assert server.session.in_flight == {}


@given(st.binary(max_size=300))
def test_any_bytes_are_events_or_our_error(data: bytes) -> None:
    for client in (ClientConnection(Connect("c")), opened()):
        client.feed(data)
        with contextlib.suppress(FlotaError):
            while client.next_event() is not None:
                pass
