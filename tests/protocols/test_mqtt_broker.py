"""Sessions, takeover, wills, retained messages and fan-out, without a socket; and against a model."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flota.protocols.mqtt.broker import BrokerCore, BrokerLimits, Opened
from flota.protocols.mqtt.errors import ProtocolViolation
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
from flota.protocols.mqtt.server_connection import MqttLimits, ServerConnection
from flota.protocols.mqtt.topics import matches


class Client:
    """One connection as a client sees it: what it was sent, message by message."""

    def __init__(self, broker: BrokerCore, *, limits: MqttLimits | None = None) -> None:
        self.broker = broker
        self.core = ServerConnection(limits)
        self.opened: Opened | None = None

    def connect(
        self,
        client_id: str = "c",
        *,
        clean: bool = True,
        owner: object = "me",
        will: Will | None = None,
        now: float = 0,
    ) -> Client:
        connect = Connect(client_id, clean, will=will)
        assert list(self.core.receive(pack_packet(connect), now=now)) == [connect]
        self.opened = self.broker.open_session(self.core, owner, client_id, clean=clean, now=now)
        return self

    def subscribe(self, topic_filter: str, qos: int = 0) -> Client:
        self.broker.subscribe(self.core, Subscribe(1, ((topic_filter, qos),)), [qos])
        return self

    def sent(self) -> list[Packet]:
        return list(PacketReader(1 << 20).feed(b"".join(self.core.take_output())))

    def messages(self, *, acknowledge: bool = True) -> list[Publish]:
        """What came since; of QoS 1 acknowledged, so that what waits comes too."""
        found: list[Publish] = []
        while new := [packet for packet in self.sent() if isinstance(packet, Publish)]:
            found += new
            for publish in new:
                if publish.packet_id is not None and acknowledge:
                    ack = Acknowledgement(PacketType.PUBACK, publish.packet_id)
                    assert list(self.core.receive(pack_packet(ack), now=0)) == []
        return found

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages()]

    def disconnect(self, *, now: float = 0, graceful: bool = True) -> Publish | None:
        if graceful:
            list(self.core.receive(pack_packet(Signal(PacketType.DISCONNECT)), now=now))
        return self.broker.close_session(self.core, now=now)


@pytest.fixture
def broker() -> BrokerCore:
    return BrokerCore()


def test_a_message_reaches_every_subscriber_once_at_the_lower_qos(broker: BrokerCore) -> None:
    one = Client(broker).connect("one").subscribe("a/b", 1).subscribe("a/+", 0).subscribe("#", 0)
    two = Client(broker).connect("two").subscribe("a/b", 0)
    three = Client(broker).connect("three").subscribe("a/c", 1)
    assert broker.publish("a/b", b"x", qos=1) == 2
    assert set(broker.take_ready()) == {one.core, two.core}
    assert broker.take_ready() == []
    assert [(message.qos, message.payload) for message in one.messages()] == [(1, b"x")]
    assert [(message.qos, message.payload) for message in two.messages()] == [(0, b"x")]
    assert three.messages() == []
    broker.publish("a/b", b"y", qos=0)
    assert [message.qos for message in one.messages()] == [0]


def test_a_second_connection_with_the_same_client_id_takes_over(broker: BrokerCore) -> None:
    first = Client(broker).connect(clean=False).subscribe("a", 1)
    second = Client(broker).connect(clean=False)
    assert second.opened is not None
    assert second.opened.replaced is first.core
    assert second.sent() == [Connack(0, session_present=True)]
    broker.publish("a", b"x", qos=1)
    assert second.payloads() == [b"x"]
    first.disconnect()
    broker.publish("a", b"y", qos=1)
    assert second.payloads() == [b"y"], "the end of the first connection took the session from the second"


def test_another_identity_takes_over_nothing(broker: BrokerCore) -> None:
    victim = Client(broker).connect(owner="victim", clean=False).subscribe("a", 1)
    thief = Client(broker).connect(owner="thief", clean=False)
    assert thief.opened is not None
    assert thief.opened.replaced is None
    assert thief.sent() == [Connack(0, session_present=False)]
    assert victim.core.is_open
    assert broker.forget("thief") == [thief.core]
    broker.publish("a", b"x", qos=1)
    assert victim.payloads() == [b"x"]


def test_messages_of_qos_1_wait_for_a_session_that_is_kept(broker: BrokerCore) -> None:
    Client(broker).connect(clean=False).subscribe("a", 1).disconnect()
    broker.publish("a", b"kept", qos=1)
    broker.publish("a", b"not kept", qos=0)
    again = Client(broker).connect(clean=False)
    assert again.payloads() == [b"kept"]


def test_a_clean_session_leaves_nothing(broker: BrokerCore) -> None:
    Client(broker).connect(clean=True).subscribe("a", 1).disconnect()
    assert broker.sessions == 0
    Client(broker).connect("d", clean=False).subscribe("a", 1).disconnect()
    broker.publish("a", b"x", qos=1)
    clean = Client(broker).connect("d", clean=True)
    assert clean.sent() == [Connack(0, session_present=False)]
    assert broker.publish("a", b"y", qos=1) == 0
    after_clean = Client(broker).connect("d", clean=False)
    assert after_clean.sent() == [Connack(0, session_present=False)], "a clean session is no past of the next one"


def test_sessions_are_kept_for_an_hour_and_a_bounded_number_of_them() -> None:
    broker = BrokerCore(BrokerLimits(session_kept_s=100, kept_sessions=2))
    for number in range(3):
        Client(broker).connect(str(number), clean=False).disconnect(now=number)
    assert broker.kept == 2, "the one that left first gives way"
    assert broker.expire(now=100) == 0
    assert broker.expire(now=101) == 1
    assert broker.expire(now=1000) == 1
    assert broker.sessions == 0


def test_what_is_kept_of_a_session_is_bounded_in_count_and_bytes() -> None:
    broker = BrokerCore(BrokerLimits(queued=3, held_max=100))
    Client(broker).connect(clean=False).subscribe("a", 1).disconnect()
    for number in range(5):
        broker.publish("a", bytes([number]), qos=1)
    assert broker.dropped == 2
    broker.publish("a", bytes(99), qos=1)
    assert Client(broker).connect(clean=False).payloads() == [b"\4", bytes(99)]


def test_a_will_is_due_unless_the_client_said_good_bye(broker: BrokerCore) -> None:
    will = Will("gone", b"me", qos=2, retain=True)
    assert Client(broker).connect("one", will=will).disconnect() is None
    assert Client(broker).connect("two", will=will).disconnect(graceful=False) == Publish(
        "gone", b"me", 1, retain=True, packet_id=1
    )
    assert Client(broker).connect("three").disconnect(graceful=False) is None


def test_retained_messages_go_to_later_subscribers_and_an_empty_one_removes_them(broker: BrokerCore) -> None:
    broker.publish("a/1", b"one", qos=1, retain=True)
    broker.publish("a/2", b"two", qos=0, retain=True)
    late = Client(broker).connect().subscribe("a/+", 1)
    assert [(m.topic, m.payload, m.qos, m.retain) for m in late.messages()] == [
        ("a/1", b"one", 1, True),
        ("a/2", b"two", 0, True),
    ]
    broker.publish("a/1", b"", qos=0, retain=True)
    assert [message.topic for message in Client(broker).connect("d").subscribe("#", 0).messages()] == ["a/2"]
    assert Client(broker).connect("e").subscribe("a/2", 0).payloads() == [b"two"]


def test_retained_messages_are_bounded() -> None:
    broker = BrokerCore(BrokerLimits(retained=2, retained_bytes=10))
    for number in range(4):
        broker.publish(f"a/{number}", b"x", qos=0, retain=True)
    broker.publish("a/0", bytes(11), qos=0, retain=True)
    assert [message.topic for message in Client(broker).connect().subscribe("#", 0).messages()] == ["a/1"]
    assert broker.dropped == 3


def test_a_client_that_reads_too_slowly_gets_qos_1_later_and_qos_0_not_at_all(broker: BrokerCore) -> None:
    slow = Client(broker).connect().subscribe("a", 1)
    slow.messages()
    slow.core.set_congested(congested=True)
    broker.publish("a", b"0", qos=0)
    broker.publish("a", b"1", qos=1)
    assert broker.take_ready() == []
    assert slow.messages() == []
    assert broker.dropped == 1
    slow.core.set_congested(congested=False)
    assert slow.payloads() == [b"1"]


def test_refused_filters_are_answered_and_not_kept(broker: BrokerCore) -> None:
    client = Client(broker).connect()
    client.sent()
    broker.subscribe(client.core, Subscribe(7, (("a", 1), ("b", 1))), [SUBACK_FAILURE, 1])
    assert client.sent() == [Suback(7, (SUBACK_FAILURE, 1))]
    assert broker.publish("a", b"", qos=0) == 0
    assert broker.publish("b", b"", qos=0) == 1
    broker.unsubscribe(client.core, Unsubscribe(8, ("b", "never")))
    assert client.sent()[-1] == Acknowledgement(PacketType.UNSUBACK, 8)
    assert broker.publish("b", b"", qos=0) == 0


def test_too_many_subscriptions_end_the_connection_and_leave_nothing_in_the_index(broker: BrokerCore) -> None:
    client = Client(broker, limits=MqttLimits(subscriptions=2)).connect().subscribe("a").subscribe("b")
    with pytest.raises(ProtocolViolation):
        client.subscribe("c")
    client.disconnect(graceful=False)
    assert [broker.publish(topic, b"", qos=0) for topic in "abc"] == [0, 0, 0]


def test_forgetting_an_identity_drops_all_its_sessions(broker: BrokerCore) -> None:
    here = Client(broker).connect("here", clean=False).subscribe("a", 1)
    Client(broker).connect("gone", clean=False).subscribe("a", 1).disconnect()
    assert broker.forget("me") == [here.core]
    assert broker.sessions == broker.kept == 0
    assert broker.publish("a", b"x", qos=1) == 0
    here.disconnect(graceful=False)
    assert broker.forget("me") == []


TOPICS = st.sampled_from(["a", "a/b", "a/c", "b", "$s/a"])
FILTERS = st.sampled_from(["a", "a/b", "a/+", "a/#", "#", "+", "$s/#", "+/b", "$s/a"])
IDS = st.sampled_from(["x", "y", "z"])


@dataclass
class Kept:
    """What the model knows of a session."""

    clean: bool
    subscriptions: dict[str, int] = field(default_factory=dict)
    waiting: list[tuple[str, bytes]] = field(default_factory=list)


class AnyOrderOfEvents(RuleBasedStateMachine):
    """A broker beside a dictionary: after every step every client got exactly what the dictionary says."""

    @initialize()
    def begin(self) -> None:
        self.broker = BrokerCore(BrokerLimits(session_kept_s=10))
        self.model: dict[str, Kept] = {}
        self.online: dict[str, Client] = {}
        self.left: dict[str, float] = {}
        self.retained: dict[str, tuple[bytes, int]] = {}
        self.now = 0.0
        self.number = 0

    @rule(client_id=IDS, clean=st.booleans())
    def connect(self, client_id: str, clean: bool) -> None:
        old = self.online.pop(client_id, None)
        self.left.pop(client_id, None)
        known = self.model.get(client_id)
        if known is not None and (clean or (old is not None and known.clean)):
            known = None
        new = Client(self.broker).connect(client_id, clean=clean, now=self.now)
        if old is not None:
            assert old.disconnect(now=self.now, graceful=False) is None
        first = new.sent()
        assert first[0] == Connack(0, session_present=known is not None)
        waiting = known.waiting if known is not None else []
        assert [(p.topic, p.payload) for p in first[1:] if isinstance(p, Publish)] == waiting
        for publish in first[1:]:
            assert isinstance(publish, Publish)
            assert publish.packet_id is not None
            list(new.core.receive(pack_packet(Acknowledgement(PacketType.PUBACK, publish.packet_id)), now=0))
        known = known or Kept(clean)
        known.clean, known.waiting = clean, []
        self.model[client_id], self.online[client_id] = known, new

    @rule(client_id=IDS, graceful=st.booleans())
    def disconnect(self, client_id: str, graceful: bool) -> None:
        client = self.online.pop(client_id, None)
        if client is None:
            return
        client.disconnect(now=self.now, graceful=graceful)
        if self.model[client_id].clean:
            del self.model[client_id]
        else:
            self.left[client_id] = self.now

    @rule(client_id=IDS, topic_filter=FILTERS, qos=st.integers(0, 1))
    def subscribe(self, client_id: str, topic_filter: str, qos: int) -> None:
        if client_id in self.online:
            client = self.online[client_id].subscribe(topic_filter, qos)
            expected = {
                (topic, payload, min(qos, kept))
                for topic, (payload, kept) in self.retained.items()
                if matches(topic_filter, topic, parent_too=False)
            }
            assert {(m.topic, m.payload, m.qos) for m in client.messages()} == expected
            self.model[client_id].subscriptions[topic_filter] = qos

    @rule(client_id=IDS, topic_filter=FILTERS)
    def unsubscribe(self, client_id: str, topic_filter: str) -> None:
        if client_id in self.online:
            self.broker.unsubscribe(self.online[client_id].core, Unsubscribe(1, (topic_filter,)))
            self.model[client_id].subscriptions.pop(topic_filter, None)

    @rule(topic=TOPICS, qos=st.integers(0, 1), retain=st.booleans(), empty=st.booleans())
    def publish(self, topic: str, qos: int, retain: bool, empty: bool) -> None:
        self.number += 1
        payload = b"" if empty else str(self.number).encode()
        count = self.broker.publish(topic, payload, qos=qos, retain=retain)
        if retain:
            self.retained.pop(topic, None)
            if payload:
                self.retained[topic] = (payload, qos)
        expected = 0
        for client_id, kept in self.model.items():
            granted = [q for text, q in kept.subscriptions.items() if matches(text, topic, parent_too=False)]
            client = self.online.get(client_id)
            if granted:
                expected += 1
            if client is not None:
                wanted = [(topic, payload, min(qos, max(granted)))] if granted else []
                assert [(m.topic, m.payload, m.qos) for m in client.messages()] == wanted
            elif granted and min(qos, max(granted)):
                kept.waiting.append((topic, payload))
        assert count == expected

    @rule(seconds=st.integers(1, 8))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        expired = [client_id for client_id, since in self.left.items() if self.now - since >= 10]
        assert self.broker.expire(now=self.now) == len(expired)
        for client_id in expired:
            del self.left[client_id], self.model[client_id]

    @precondition(lambda self: bool(self.model))
    @rule()
    def everybody_is_forgotten(self) -> None:
        assert set(self.broker.forget("me")) == {client.core for client in self.online.values()}
        for client in self.online.values():
            client.disconnect(now=self.now, graceful=False)
        self.model.clear()
        self.online.clear()
        self.left.clear()

    @invariant()
    def the_books_agree(self) -> None:
        if hasattr(self, "broker"):
            assert self.broker.sessions == len(self.model)
            assert self.broker.kept == len(self.left)
            assert {session.client_id for session in self.broker.sessions_of("me")} == set(self.model)


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_message_may_be_for_the_sessions_of_some_owners_alone() -> None:
    broker = BrokerCore()
    ours, theirs = Client(broker).connect(owner="us"), Client(broker).connect(owner="them")
    for client in (ours, theirs):
        client.subscribe("news", 0)
        client.sent()
    assert broker.publish("news", b"x", qos=0, only="us".__eq__) == 1
    assert [type(packet) for packet in ours.sent()] == [Publish]
    assert theirs.sent() == []
