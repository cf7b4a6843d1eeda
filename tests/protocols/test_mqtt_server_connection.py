"""The server's side of an MQTT connection: order, acknowledgements, keep-alive, and bounded memory."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.mqtt.errors import MalformedPacket, PacketTooLarge, ProtocolViolation
from flota.protocols.mqtt.packets import (
    SUBACK_FAILURE,
    Acknowledgement,
    Connack,
    Connect,
    ConnectReturn,
    Packet,
    PacketReader,
    PacketType,
    Publish,
    Signal,
    Suback,
    Subscribe,
    Unsubscribe,
    pack_packet,
)
from flota.protocols.mqtt.server_connection import CONNECT_WITHIN_S, MqttLimits, ServerConnection
from flota.protocols.mqtt.session import MqttSession


def sent(connection: ServerConnection) -> list[Packet]:
    return list(PacketReader(1 << 20).feed(b"".join(connection.take_output())))


def received(connection: ServerConnection, *packets: Packet, now: float = 0) -> list[object]:
    return list(connection.receive(b"".join(map(pack_packet, packets)), now=now))


def opened(session: MqttSession | None = None, *, keep_alive: int = 60, **limits: int) -> ServerConnection:
    connection = ServerConnection(MqttLimits(**limits))
    received(connection, Connect("c", keep_alive=keep_alive))
    connection.accept(session or MqttSession("c"), present=session is not None, now=0)
    connection.take_output()
    return connection


def test_connect_comes_first_and_once() -> None:
    connection = ServerConnection()
    assert received(connection, Connect("c")) == [Connect("c")]
    connection.accept(MqttSession("c"), present=False, now=0)
    assert sent(connection) == [Connack(0)]
    with pytest.raises(ProtocolViolation):
        received(connection, Connect("c"))
    for first in (Publish("a", b""), Signal(PacketType.PINGREQ), Subscribe(1, (("a", 0),))):
        with pytest.raises(ProtocolViolation):
            received(ServerConnection(), first)


def test_packets_behind_connect_wait_for_its_answer() -> None:
    connection = ServerConnection()
    assert received(connection, Connect("c"), Publish("a", b"1")) == [Connect("c")]
    assert received(connection, Publish("a", b"2")) == []
    connection.accept(MqttSession("c"), present=False, now=0)
    assert received(connection) == [Publish("a", b"1"), Publish("a", b"2")]


def test_a_refusal_is_told_and_ends_it() -> None:
    connection = ServerConnection()
    received(connection, Connect("c"))
    connection.refuse(ConnectReturn.AWS_NOT_AUTHORISED)
    assert sent(connection) == [Connack(7)]
    assert not connection.is_open
    assert received(connection, Publish("a", b"")) == []


def test_connect_has_a_smaller_limit_than_what_follows() -> None:
    connection = ServerConnection(MqttLimits(connect_max=100, packet_max=1000))
    with pytest.raises(PacketTooLarge):
        received(connection, Connect("c" * 200))
    connection = opened(connect_max=100, packet_max=1000)
    assert received(connection, Publish("a", bytes(900)))
    with pytest.raises(PacketTooLarge):
        received(connection, Publish("a", bytes(1000)))


def test_deadlines() -> None:
    connection = ServerConnection(now=5)
    assert connection.deadline == 5 + CONNECT_WITHIN_S
    received(connection, Connect("c", keep_alive=60), now=6)
    connection.accept(MqttSession("c"), present=False, now=7)
    assert connection.deadline == 7 + 90
    received(connection, Signal(PacketType.PINGREQ), now=50)
    assert connection.deadline == 50 + 90
    assert opened(keep_alive=0).deadline is None


def test_pings_are_answered_and_disconnect_is_told() -> None:
    connection = opened()
    assert received(connection, Signal(PacketType.PINGREQ)) == []
    assert sent(connection) == [Signal(PacketType.PINGRESP)]
    assert received(connection, Signal(PacketType.DISCONNECT), Publish("a", b"")) == [Signal(PacketType.DISCONNECT)]


def test_only_qos_1_is_acknowledged() -> None:
    connection = opened()
    for publish in (Publish("a", b"x"), Publish("a", b"x", 1, packet_id=7), Publish("a", b"x", 2, packet_id=8)):
        assert received(connection, publish) == [publish]
        connection.acknowledge(publish)
    assert sent(connection) == [Acknowledgement(PacketType.PUBACK, 7)]


def test_subscriptions_are_kept_as_granted() -> None:
    connection = opened()
    subscribe = Subscribe(3, (("a/+", 1), ("secret", 1), ("a/b", 0)))
    assert received(connection, subscribe) == [subscribe]
    connection.grant(subscribe, [1, SUBACK_FAILURE, 0])
    assert sent(connection) == [Suback(3, (1, SUBACK_FAILURE, 0))]
    assert connection.session.qos_for("a/b") == 1
    assert connection.session.qos_for("secret") is None
    connection.confirm_unsubscribed(Unsubscribe(4, ("a/+",)))
    assert sent(connection) == [Acknowledgement(PacketType.UNSUBACK, 4)]
    assert connection.session.qos_for("a/b") == 0


def test_there_is_a_limit_of_subscriptions() -> None:
    connection = opened(subscriptions=2)
    with pytest.raises(ProtocolViolation):
        connection.grant(Subscribe(1, (("a", 0), ("b", 0), ("c", 0))), [0, 0, 0])


def test_messages_of_qos_1_wait_for_their_turn_and_the_queue_is_bounded() -> None:
    connection = opened(in_flight=2, queued=3)
    for number in range(7):
        connection.send_publish(b"t", bytes([number]), qos=1)
    first = sent(connection)
    assert [(p.packet_id, p.payload) for p in first if isinstance(p, Publish)] == [(1, b"\0"), (2, b"\1")]
    assert connection.session.dropped == 2
    received(connection, Acknowledgement(PacketType.PUBACK, 1), Acknowledgement(PacketType.PUBACK, 99))
    assert [p.payload for p in sent(connection) if isinstance(p, Publish)] == [b"\4"]


def test_payloads_that_are_kept_are_bounded_in_bytes() -> None:
    connection = opened(in_flight=100, queued=100, held_max=1000)
    connection.send_all(b"t", [bytes(300)] * 10, qos=1)
    assert len([packet for packet in sent(connection) if isinstance(packet, Publish)]) == 3
    assert connection.session.held_bytes <= 1000
    assert connection.session.dropped == 7
    for packet_id in (1, 2, 3, 3):
        received(connection, Acknowledgement(PacketType.PUBACK, packet_id))
    assert connection.session.held_bytes == 0


def test_many_messages_of_one_topic_go_in_order_with_their_own_ids() -> None:
    connection = opened()
    payloads = [bytes([number]) * number for number in (3, 3, 0, 5)]
    connection.send_all(b"t", payloads, qos=0)
    assert sent(connection) == [Publish("t", payload) for payload in payloads]
    connection.send_all(b"t", payloads, qos=1)
    assert sent(connection) == [Publish("t", p, 1, packet_id=number) for number, p in enumerate(payloads, 1)]


def test_a_congested_client_is_sent_nothing_of_qos_1_until_it_reads() -> None:
    connection = opened()
    connection.set_congested(congested=True)
    connection.send_publish(b"t", b"1", qos=1)
    assert not connection.has_output
    received(connection, Acknowledgement(PacketType.PUBACK, 1))
    assert not connection.has_output
    connection.set_congested(congested=False)
    assert sent(connection) == [Publish("t", b"1", 1, packet_id=1)]


def test_answers_go_at_the_qos_of_the_subscription_as_it_is_now() -> None:
    connection = opened()
    assert connection.answer_qos(b"a/b") == 0
    connection.grant(Subscribe(1, (("a/+", 1),)), [1])
    assert connection.answer_qos(b"a/b") == 1
    assert connection.answer_qos(b"a/b") == 1
    assert connection.answer_qos(b"a") == 0
    connection.confirm_unsubscribed(Unsubscribe(2, ("a/+",)))
    assert connection.answer_qos(b"a/b") == 0


def test_an_acknowledgement_of_packet_0_is_malformed() -> None:
    with pytest.raises(MalformedPacket):
        list(opened().receive(bytes.fromhex("40020000"), now=0))


def test_what_was_not_acknowledged_is_sent_again_to_the_next_connection() -> None:
    session = MqttSession("c")
    connection = opened(session)
    connection.send_publish(b"t", b"kept", qos=1)
    connection.send_publish(b"t", b"gone", qos=0)
    again = ServerConnection()
    received(again, Connect("c", clean_session=False))
    again.accept(session, present=True, now=0)
    assert sent(again) == [Connack(0, session_present=True), Publish("t", b"kept", 1, duplicate=True, packet_id=1)]


def test_packet_ids_go_round_without_using_one_that_is_in_flight() -> None:
    session = MqttSession("c", last_id=0xFFFE)
    session.in_flight[1] = (b"t", b"")
    connection = opened(session)
    connection.send_publish(b"t", b"a", qos=1)
    connection.send_publish(b"t", b"b", qos=1)
    assert set(session.in_flight) == {0xFFFF, 1, 2}


def test_packets_of_servers_are_a_violation() -> None:
    unsuback = Acknowledgement(PacketType.UNSUBACK, 1)
    for packet in (Connack(0), Suback(1, (0,)), Signal(PacketType.PINGRESP), unsuback):
        with pytest.raises(ProtocolViolation):
            received(opened(), packet)


@given(st.binary(max_size=400))
def test_any_bytes_are_events_or_our_error(data: bytes) -> None:
    for connection in (ServerConnection(), opened()):
        with contextlib.suppress(MalformedPacket, PacketTooLarge, ProtocolViolation):
            list(connection.receive(data, now=0))


def test_who_watches_a_message_hears_of_its_acknowledgement_once_and_of_no_other() -> None:
    heard: list[str] = []
    connection = opened()
    connection.send_publish(b"a", b"1", qos=1)
    watched = connection.send_watched(b"b", b"", lambda: heard.append("b"))
    assert sent(connection) == [Publish("a", b"1", qos=1, packet_id=1), Publish("b", b"", qos=1, packet_id=2)]
    assert watched == 2
    received(connection, Acknowledgement(PacketType.PUBACK, 1))
    assert heard == []
    received(connection, Acknowledgement(PacketType.PUBACK, 2), Acknowledgement(PacketType.PUBACK, 2))
    assert heard == ["b"]


def test_who_watches_no_longer_hears_nothing_and_the_message_is_acknowledged_all_the_same() -> None:
    heard: list[str] = []
    connection = opened()
    watched = connection.send_watched(b"b", b"", lambda: heard.append("b"))
    assert watched is not None
    connection.session.unwatch(watched)
    received(connection, Acknowledgement(PacketType.PUBACK, watched))
    assert (heard, connection.session.in_flight) == ([], {})


def test_a_watched_message_does_not_wait_behind_others() -> None:
    connection = opened(in_flight=1)
    connection.send_publish(b"a", b"1", qos=1)
    connection.take_output()
    assert connection.send_watched(b"b", b"", lambda: None) is None
    assert sent(connection) == []
    assert connection.session.queued is None, "nor is it kept for later"
