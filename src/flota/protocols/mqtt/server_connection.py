"""The server's side of one MQTT connection, sans-IO: what may come when, keep-alive, messages in flight.

Feed it bytes and the time; it yields what the application has to decide, and gathers what has to be sent. Which topics
a client may use, what a publish means and who gets it is the application's business.
Source: docs/reference/mqtt.md; MQTT 3.1.1, sections 3.1 to 3.14 and 4.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from flota.protocols.mqtt.errors import ProtocolViolation
from flota.protocols.mqtt.packets import (
    PACKET_ID_MAX,
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
    publish_head,
)
from flota.protocols.mqtt.topics import matches

CONNECT_WITHIN_S: Final = 10.0
"""A connection that has not sent CONNECT by then is closed."""

KEEP_ALIVE_FACTOR: Final = 1.5
"""The standard's grace (3.1.2.10)."""

CONNECT_MAX_BYTES: Final = 8 * 1024
PACKET_MAX_BYTES: Final = 128 * 1024 + 1024
"""AWS's limit of a message, and room for its topic."""

SUBSCRIPTIONS_MAX: Final = 50
IN_FLIGHT_MAX: Final = 100
QUEUED_MAX: Final = 1000
"""QoS 1 messages that wait for their turn; beyond it the oldest is dropped and counted."""


@dataclass(frozen=True, slots=True)
class MqttLimits:
    """Bounds of one connection; sizes in bytes."""

    connect_max: int = CONNECT_MAX_BYTES
    packet_max: int = PACKET_MAX_BYTES
    subscriptions: int = SUBSCRIPTIONS_MAX
    in_flight: int = IN_FLIGHT_MAX
    queued: int = QUEUED_MAX


@dataclass(slots=True)
class MqttSession:
    """What outlives a connection of a client that asked for it (clean session 0)."""

    client_id: str
    subscriptions: dict[str, int] = field(default_factory=dict)
    in_flight: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    """Packet id -> topic (UTF-8) and payload of QoS 1 messages that are not acknowledged."""
    queued: deque[tuple[bytes, bytes]] = field(default_factory=deque)
    last_id: int = 0
    dropped: int = 0

    def qos_for(self, topic: str, *, parent_too: bool = True) -> int | None:
        """Return the highest QoS of a subscription that covers `topic`, None without one."""
        found = [qos for text, qos in self.subscriptions.items() if matches(text, topic, parent_too=parent_too)]
        return max(found, default=None)


class _Phase(enum.Enum):
    NEW = "new"
    ASKED = "asked"
    OPEN = "open"
    CLOSED = "closed"


Event = Connect | Publish | Subscribe | Unsubscribe | Signal
"""What the application hears: CONNECT (answer with `accept` or `refuse`), PUBLISH (`acknowledge` at QoS 1),
SUBSCRIBE (`grant`), UNSUBSCRIBE (`confirm_unsubscribed`), DISCONNECT (the only Signal)."""


class ServerConnection:
    """One connection. `take_output` gives what to send; after a `MqttError` or DISCONNECT it is over."""

    def __init__(self, limits: MqttLimits | None = None, *, now: float = 0.0) -> None:
        self.limits = limits or MqttLimits()
        self.session = MqttSession("")
        self.connect: Connect | None = None
        self._reader = PacketReader(self.limits.connect_max)
        self._phase = _Phase.NEW
        self._output: list[bytes] = []
        self._deadline: float | None = now + CONNECT_WITHIN_S

    @property
    def deadline(self) -> float | None:
        """When the connection has to be closed if nothing comes (the clock of `now`), None = never."""
        return self._deadline

    @property
    def is_open(self) -> bool:
        """Whether CONNECT was accepted and nothing has ended it."""
        return self._phase is _Phase.OPEN

    def take_output(self) -> list[bytes]:
        """Return what has to be sent now, in order."""
        output, self._output = self._output, []
        return output

    # --- what comes in ------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, *, now: float) -> Iterator[Event]:
        """Yield what the bytes say. Raises `MalformedPacket`, `PacketTooLarge`, `ProtocolViolation`: close then."""
        for packet in self._reader.feed(data):
            if self._phase is _Phase.CLOSED:
                return
            if self.connect is not None and self.connect.keep_alive:
                self._deadline = now + KEEP_ALIVE_FACTOR * self.connect.keep_alive
            event = self._take(packet)
            if event is not None:
                yield event

    def _take(self, packet: Packet) -> Event | None:
        if self._phase is _Phase.NEW:
            return self._first(packet)
        if self._phase is not _Phase.OPEN:
            raise ProtocolViolation("a packet before the answer to CONNECT")
        match packet:
            case Publish() | Subscribe() | Unsubscribe():
                return packet
            case Acknowledgement(PacketType.PUBACK, packet_id):
                self._acknowledged(packet_id)
                return None
            case Signal(PacketType.PINGREQ):
                self._send(Signal(PacketType.PINGRESP))
                return None
            case Signal(PacketType.DISCONNECT):
                self._phase = _Phase.CLOSED
                return packet
            case Acknowledgement():
                return None  # parts of QoS 2, which nothing of ours began
            case Connect():
                raise ProtocolViolation("a second CONNECT")
        raise ProtocolViolation("a packet that only servers send")

    def _first(self, packet: Packet) -> Event:
        if not isinstance(packet, Connect):
            raise ProtocolViolation("the first packet is no CONNECT")
        self.connect = packet
        self._phase = _Phase.ASKED
        return packet

    # --- answers ------------------------------------------------------------------------------------------------------

    def accept(self, session: MqttSession, *, present: bool, now: float) -> None:
        """Accept CONNECT with `session`; messages that were not acknowledged are sent again."""
        assert self.connect is not None
        self.session = session
        self._phase = _Phase.OPEN
        self._reader.allow(self.limits.packet_max)
        keep_alive = self.connect.keep_alive
        self._deadline = now + KEEP_ALIVE_FACTOR * keep_alive if keep_alive else None
        self._send(Connack(ConnectReturn.ACCEPTED, present))
        for packet_id, (topic, payload) in session.in_flight.items():
            self._output += [publish_head(topic, len(payload), qos=1, flags=8, packet_id=packet_id), payload]

    def refuse(self, code: ConnectReturn) -> None:
        """Refuse CONNECT; the connection has to be closed after the output."""
        self._phase = _Phase.CLOSED
        self._send(Connack(code))

    def acknowledge(self, publish: Publish) -> None:
        """Acknowledge a PUBLISH of QoS 1; the other ones get nothing (AWS acknowledges no QoS 2)."""
        if publish.qos == 1 and publish.packet_id is not None:
            self._send(Acknowledgement(PacketType.PUBACK, publish.packet_id))

    def grant(self, subscribe: Subscribe, granted: Iterable[int]) -> None:
        """Answer SUBSCRIBE with a QoS, or `SUBACK_FAILURE`, for each of its filters, and keep the granted ones.

        Raises `ProtocolViolation` above the limit of subscriptions.
        """
        codes = tuple(granted)
        for (text, _), code in zip(subscribe.filters, codes, strict=True):
            if code <= 2:
                self.session.subscriptions[text] = code
        if len(self.session.subscriptions) > self.limits.subscriptions:
            raise ProtocolViolation("too many subscriptions", expected=f"at most {self.limits.subscriptions}")
        self._send(Suback(subscribe.packet_id, codes))

    def confirm_unsubscribed(self, unsubscribe: Unsubscribe) -> None:
        """Drop the subscriptions and say so."""
        for text in unsubscribe.filters:
            self.session.subscriptions.pop(text, None)
        self._send(Acknowledgement(PacketType.UNSUBACK, unsubscribe.packet_id))

    def send_publish(self, topic: bytes, payload: bytes, *, qos: int = 0) -> None:
        """Send a message; at QoS 1 it is kept until it is acknowledged, and waits its turn behind others."""
        if qos == 0:
            self._output += [publish_head(topic, len(payload)), payload]
            return
        if len(self.session.in_flight) >= self.limits.in_flight:
            self._queue(topic, payload)
            return
        self._send_kept(topic, payload)

    def close(self) -> None:
        """Note that the connection is over."""
        self._phase = _Phase.CLOSED

    # --- inside -------------------------------------------------------------------------------------------------------

    def _queue(self, topic: bytes, payload: bytes) -> None:
        session = self.session
        session.queued.append((topic, payload))
        if len(session.queued) > self.limits.queued:
            session.queued.popleft()
            session.dropped += 1

    def _send_kept(self, topic: bytes, payload: bytes) -> None:
        session = self.session
        packet_id = session.last_id
        while True:
            packet_id = packet_id % PACKET_ID_MAX + 1
            if packet_id not in session.in_flight:
                break
        session.last_id = packet_id
        session.in_flight[packet_id] = (topic, payload)
        self._output += [publish_head(topic, len(payload), qos=1, packet_id=packet_id), payload]

    def _acknowledged(self, packet_id: int) -> None:
        session = self.session
        session.in_flight.pop(packet_id, None)
        while session.queued and len(session.in_flight) < self.limits.in_flight:
            self._send_kept(*session.queued.popleft())

    def _send(self, packet: Packet) -> None:
        self._output.append(pack_packet(packet))
