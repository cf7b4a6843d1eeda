"""The server's side of one MQTT connection, sans-IO: what may come when, keep-alive, messages in flight.

Feed it bytes and the time; it gives what the application has to decide, and gathers what has to be sent. Which topics
a client may use, what a publish means and who gets it is the application's business.
Source: docs/reference/mqtt.md; MQTT 3.1.1, sections 3.1 to 3.14 and 4.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from flota.protocols.mqtt.errors import ProtocolViolation
from flota.protocols.mqtt.packets import (
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
    parse_packet,
    publish_head,
)
from flota.protocols.mqtt.session import HELD_MAX_BYTES, IN_FLIGHT_MAX, QUEUED_MAX, MqttSession

CONNECT_WITHIN_S: Final = 10.0
"""A connection that has not sent CONNECT by then is closed."""

KEEP_ALIVE_FACTOR: Final = 1.5
"""The standard's grace (3.1.2.10)."""

CONNECT_MAX_BYTES: Final = 8 * 1024
PACKET_MAX_BYTES: Final = 128 * 1024 + 1024
"""AWS's limit of a message, and room for its topic."""

SUBSCRIPTIONS_MAX: Final = 50

_CONNECT: Final = PacketType.CONNECT << 4
_PUBACK: Final = PacketType.PUBACK << 4
_PINGREQ: Final = PacketType.PINGREQ << 4
_PINGRESP_BYTES: Final = pack_packet(Signal(PacketType.PINGRESP))


@dataclass(frozen=True, slots=True)
class MqttLimits:
    """Bounds of one connection; sizes in bytes. `parent_too`: whether `a/#` covers `a`, which AWS's brokers deny."""

    connect_max: int = CONNECT_MAX_BYTES
    packet_max: int = PACKET_MAX_BYTES
    subscriptions: int = SUBSCRIPTIONS_MAX
    in_flight: int = IN_FLIGHT_MAX
    queued: int = QUEUED_MAX
    held_max: int = HELD_MAX_BYTES
    parent_too: bool = False


class _Phase(enum.Enum):
    NEW = "new"
    ASKED = "asked"
    OPEN = "open"
    CLOSED = "closed"


Event = Connect | Publish | Subscribe | Unsubscribe | Signal
"""What the application hears: CONNECT (answer with `accept` or `refuse`), PUBLISH (`acknowledge` at QoS 1),
SUBSCRIBE (`grant`), UNSUBSCRIBE (`confirm_unsubscribed`), DISCONNECT (the only Signal)."""

_DEFAULT_LIMITS: Final = MqttLimits()
_NOBODY: Final = MqttSession("")
"""Stands in until CONNECT is accepted; nothing is ever written to it."""


class ServerConnection:
    """One connection. `take_output` gives what to send; after a `MqttError` or DISCONNECT it is over.

    `holder` is whoever moves its bytes: nothing here looks at it.
    """

    __slots__ = (
        "_answer_qos",
        "_congested",
        "_deadline",
        "_output",
        "_phase",
        "_reader",
        "connect",
        "holder",
        "limits",
        "output_bytes",
        "session",
    )

    def __init__(
        self, limits: MqttLimits | None = None, *, now: float = 0.0, connect_within_s: float = CONNECT_WITHIN_S
    ) -> None:
        self.limits = limits or _DEFAULT_LIMITS
        self.session = _NOBODY
        self.connect: Connect | None = None
        self.holder: object = None
        self._reader = PacketReader(self.limits.connect_max)
        self._phase = _Phase.NEW
        self._output: list[bytes] = []
        self.output_bytes = 0
        """Payloads that `take_output` will give, bytes: who works off many requests at once has to look at it."""
        self._deadline: float | None = now + connect_within_s
        self._congested = False
        self._answer_qos: tuple[bytes, int] | None = None

    @property
    def deadline(self) -> float | None:
        """When the connection has to be closed if nothing comes (the clock of `now`), None = never."""
        return self._deadline

    @property
    def is_open(self) -> bool:
        """Whether CONNECT was accepted and nothing has ended it."""
        return self._phase is _Phase.OPEN

    @property
    def has_output(self) -> bool:
        """Whether there is something to send."""
        return bool(self._output)

    def take_output(self) -> list[bytes]:
        """Return what has to be sent now, in order."""
        output, self._output = self._output, []
        self.output_bytes = 0
        return output

    # --- what comes in ------------------------------------------------------------------------------------------------

    def feed(self, data: bytes, *, now: float) -> None:
        """Add bytes; any of them put off the keep-alive's deadline."""
        self._reader.push(data)
        if self._phase is _Phase.OPEN:
            self._put_off(now)

    def next_event(self) -> Event | None:
        """Return what came next, None until more does or while CONNECT is not answered (a client need not wait: 3.1.4).

        Raises `MalformedPacket`, `PacketTooLarge`, `ProtocolViolation`: close then.
        """
        take = self._reader.take
        if self._phase is _Phase.NEW and self._reader.first_byte not in {None, _CONNECT}:
            raise ProtocolViolation("the first packet is no CONNECT")  # without waiting for its end
        while self._phase is _Phase.OPEN or self._phase is _Phase.NEW:
            cut = take()
            if cut is None:
                return None
            first, body = cut
            if first == _PUBACK and self._phase is _Phase.OPEN and len(body) == 2 and body != b"\0\0":
                self._acknowledged(body[0] << 8 | body[1])
                continue
            if first == _PINGREQ and self._phase is _Phase.OPEN and not body:
                self._output.append(_PINGRESP_BYTES)
                continue
            event = self._take(parse_packet(first, body))
            if event is not None:
                return event
        return None

    def receive(self, data: bytes, *, now: float) -> Iterator[Event]:
        """Feed, and yield every event that there is then."""
        self.feed(data, now=now)
        while (event := self.next_event()) is not None:
            yield event

    def _take(self, packet: Packet) -> Event | None:
        if self._phase is _Phase.NEW:
            return self._first(packet)
        match packet:
            case Publish() | Subscribe() | Unsubscribe():
                return packet
            case Signal(PacketType.DISCONNECT):
                self._phase = _Phase.CLOSED
                return packet
            case Acknowledgement(PacketType.PUBACK | PacketType.PUBREC | PacketType.PUBREL | PacketType.PUBCOMP):
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
        """Accept CONNECT with `session`; messages that were not acknowledged are sent again, then those that wait."""
        assert self.connect is not None
        self.session = session
        self._phase = _Phase.OPEN
        self._reader.allow(self.limits.packet_max)
        self._deadline = None
        self._put_off(now)
        self._send(Connack(ConnectReturn.ACCEPTED, present))
        for packet_id, (topic, payload) in session.in_flight.items():
            self._output += [publish_head(topic, len(payload), qos=1, flags=8, packet_id=packet_id), payload]
        self._send_queued()

    def refuse(self, code: ConnectReturn) -> None:
        """Refuse CONNECT; the connection has to be closed after the output."""
        self._phase = _Phase.CLOSED
        self._send(Connack(code))

    def acknowledge(self, publish: Publish) -> None:
        """Acknowledge a PUBLISH of QoS 1; the other ones get nothing (AWS acknowledges no QoS 2)."""
        if publish.qos == 1 and publish.packet_id is not None:
            self._output.append(b"\x40\x02" + publish.packet_id.to_bytes(2, "big"))

    def grant(self, subscribe: Subscribe, granted: Iterable[int]) -> None:
        """Answer SUBSCRIBE with a QoS, or `SUBACK_FAILURE`, for each of its filters, and keep the granted ones.

        Raises `ProtocolViolation` above the limit of subscriptions.
        """
        codes = tuple(granted)
        for (text, _), code in zip(subscribe.filters, codes, strict=True):
            if code <= 2:
                self.session.subscriptions[text] = code
        self._answer_qos = None
        if len(self.session.subscriptions) > self.limits.subscriptions:
            raise ProtocolViolation("too many subscriptions", expected=f"at most {self.limits.subscriptions}")
        self._send(Suback(subscribe.packet_id, codes))

    def confirm_unsubscribed(self, unsubscribe: Unsubscribe) -> None:
        """Drop the subscriptions and say so."""
        for text in unsubscribe.filters:
            self.session.subscriptions.pop(text, None)
        self._answer_qos = None
        self._send(Acknowledgement(PacketType.UNSUBACK, unsubscribe.packet_id))

    def close(self) -> None:
        """Note that the connection is over."""
        self._phase = _Phase.CLOSED

    # --- messages to the client ---------------------------------------------------------------------------------------

    def answer_qos(self, topic: bytes) -> int:
        """Return the QoS of the subscription that covers `topic` (UTF-8), 0 without one. The last answer is kept."""
        kept = self._answer_qos
        if kept is not None and kept[0] == topic:
            return kept[1]
        qos = self.session.qos_for(topic.decode("utf-8", "replace"), parent_too=self.limits.parent_too) or 0
        self._answer_qos = (topic, qos)
        return qos

    def send_publish(self, topic: bytes, payload: bytes, *, qos: int = 0, flags: int = 0) -> None:
        """Send a message; at QoS 1 it is kept until it is acknowledged, and waits its turn behind others."""
        self.send_all(topic, (payload,), qos=qos, flags=flags)

    def send_all(self, topic: bytes, payloads: Iterable[bytes], *, qos: int = 0, flags: int = 0) -> None:
        """Send messages to one topic, in order. Nothing is copied but their heads."""
        append = self._output.append
        size, head = -1, b""
        for payload in payloads:
            if qos and not self._may_fly(len(payload)):
                limits = self.limits
                self.session.queue(topic, payload, queued_max=limits.queued, held_max=limits.held_max)
                continue
            if len(payload) != size:
                size = len(payload)
                head = publish_head(topic, size, qos=qos, flags=flags)
            if qos:
                append(head[:-2] + self.session.start_flight(topic, payload).to_bytes(2, "big"))
            else:
                append(head)
            append(payload)
            self.output_bytes += size

    def send_watched(self, topic: bytes, payload: bytes, heard: Callable[[], None]) -> int | None:
        """Send a message at QoS 1 and call `heard` once it is acknowledged; returns its packet id.

        None if it cannot go out now, because others wait before it: then it is not sent at all.
        """
        if not self._may_fly(len(payload)):
            return None
        self.send_publish(topic, payload, qos=1)
        packet_id = self.session.last_id
        self.session.watch(packet_id, heard)
        return packet_id

    def set_congested(self, *, congested: bool) -> None:
        """Hear from the holder that the client reads too slowly, or no longer: messages of QoS 1 wait meanwhile."""
        self._congested = congested
        if not congested:
            self._send_queued()

    @property
    def is_congested(self) -> bool:
        """Whether the client reads too slowly."""
        return self._congested

    # --- inside -------------------------------------------------------------------------------------------------------

    def _may_fly(self, size: int) -> bool:
        session, limits = self.session, self.limits
        return (
            session.queued is None
            and not self._congested
            and len(session.in_flight) < limits.in_flight
            and session.held_bytes + size <= limits.held_max
        )

    def _acknowledged(self, packet_id: int) -> None:
        self.session.acknowledged(packet_id)
        if self.session.queued is not None:
            self._send_queued()

    def _send_queued(self) -> None:
        session = self.session
        while not self._congested and len(session.in_flight) < self.limits.in_flight:
            message = session.next_queued()
            if message is None:
                return
            topic, payload = message
            packet_id = session.start_flight(topic, payload)
            self._output += [publish_head(topic, len(payload), qos=1, packet_id=packet_id), payload]

    def _put_off(self, now: float) -> None:
        if self.connect is not None and self.connect.keep_alive:
            self._deadline = now + KEEP_ALIVE_FACTOR * self.connect.keep_alive

    def _send(self, packet: Packet) -> None:
        self._output.append(pack_packet(packet))
