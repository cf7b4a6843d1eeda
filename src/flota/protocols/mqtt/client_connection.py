"""The client's side of one MQTT connection, sans-IO: what devices of ours speak to any MQTT 3.1.1 server.

Feed it bytes and the time; it gives what happened and gathers what has to be sent. Messages of QoS 1 are acknowledged
as they come; those of our own are told to be acknowledged by their packet id, and are not sent again by themselves:
the AWS agent does not either (docs/reference/mqtt.md, "The client's side").
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

from flota.protocols.mqtt.errors import ProtocolViolation
from flota.protocols.mqtt.packets import (
    PACKET_ID_MAX,
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
    pack_packet,
    parse_packet,
)

PACKET_MAX_BYTES: Final = 256 * 1024
"""Largest packet taken from a server, bytes."""

UNANSWERED_MAX: Final = 1000
"""Requests with a packet id that may wait for their answer."""

PING_SHARE: Final = 0.9
"""After this part of the keep-alive without having sent anything a PINGREQ goes out."""

PING_ANSWER_S: Final = 10.0
"""A server that has not answered a PINGREQ by then is gone."""

Event = Connack | Publish | Suback | Acknowledgement
"""CONNACK; a message; SUBACK; PUBACK and UNSUBACK."""


class _Phase(enum.Enum):
    CONNECTING = "connecting"
    OPEN = "open"
    CLOSED = "closed"


class ClientConnection:
    """One connection; its CONNECT is its first output. After a `MqttError`, a refusal or `disconnect` it is over."""

    def __init__(self, connect: Connect, *, now: float = 0.0, packet_max_bytes: int = PACKET_MAX_BYTES) -> None:
        self.connect = connect
        self.session_present = False
        self._reader = PacketReader(packet_max_bytes)
        self._phase = _Phase.CONNECTING
        self._output: list[bytes] = [pack_packet(connect)]
        self._unanswered: dict[int, PacketType] = {}
        self._last_id = 0
        self._sent_at = now
        self._pinged_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether CONNECT was accepted and nothing has ended it."""
        return self._phase is _Phase.OPEN

    def take_output(self, *, now: float) -> list[bytes]:
        """Return what has to be sent now, in order."""
        output, self._output = self._output, []
        if output:
            self._sent_at = now
        return output

    # --- what comes in ------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Add bytes."""
        self._reader.push(data)

    def next_event(self) -> Event | None:
        """Return what came next, None until more does. Raises `MalformedPacket`, `PacketTooLarge`, `ProtocolViolation`.

        A message of QoS 1 is acknowledged by the next output; one of QoS 2 is a violation: nothing here asked for it.
        """
        while self._phase is not _Phase.CLOSED and (cut := self._reader.take()) is not None:
            event = self._take(parse_packet(*cut))
            if event is not None:
                return event
        return None

    def _take(self, packet: Packet) -> Event | None:
        if self._phase is _Phase.CONNECTING:
            return self._first(packet)
        match packet:
            case Publish(qos=2):
                raise ProtocolViolation("a message of QoS 2 that nothing asked for")
            case Publish():
                if packet.packet_id is not None:
                    self._send(Acknowledgement(PacketType.PUBACK, packet.packet_id))
                return packet
            case Suback():
                return packet if self._answered(packet.packet_id, PacketType.SUBSCRIBE) else None
            case Acknowledgement(PacketType.PUBACK):
                return packet if self._answered(packet.packet_id, PacketType.PUBLISH) else None
            case Acknowledgement(PacketType.UNSUBACK):
                return packet if self._answered(packet.packet_id, PacketType.UNSUBSCRIBE) else None
            case Signal(PacketType.PINGRESP):
                self._pinged_at = None
                return None
        raise ProtocolViolation("a packet that servers do not send", found=type(packet).__name__)

    def _first(self, packet: Packet) -> Event:
        if not isinstance(packet, Connack):
            raise ProtocolViolation("the first packet is no CONNACK", found=type(packet).__name__)
        self._phase = _Phase.OPEN if packet.code == 0 else _Phase.CLOSED
        self.session_present = packet.session_present
        return packet

    def _answered(self, packet_id: int, asked: PacketType) -> bool:
        """Return whether this answers something that is not answered yet; what does not is dropped."""
        if self._unanswered.get(packet_id) is not asked:
            return False
        del self._unanswered[packet_id]
        return True

    # --- what goes out ------------------------------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> int | None:
        """Send a message; returns the packet id that its PUBACK will carry, None at QoS 0."""
        packet_id = self._ask(PacketType.PUBLISH) if qos else None
        self._send(Publish(topic, payload, qos, retain, packet_id=packet_id))
        return packet_id

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> int:
        """Ask for filters with their QoS; returns the packet id that SUBACK will carry."""
        packet_id = self._ask(PacketType.SUBSCRIBE)
        self._send(Subscribe(packet_id, tuple(filters)))
        return packet_id

    def unsubscribe(self, filters: Sequence[str]) -> int:
        """Drop filters; returns the packet id that UNSUBACK will carry."""
        packet_id = self._ask(PacketType.UNSUBSCRIBE)
        self._send(Unsubscribe(packet_id, tuple(filters)))
        return packet_id

    def disconnect(self) -> None:
        """Say good-bye: the server publishes no will then."""
        if self._phase is _Phase.OPEN:
            self._send(Signal(PacketType.DISCONNECT))
        self._phase = _Phase.CLOSED

    def give_up(self, packet_id: int) -> None:
        """Wait for this answer no longer."""
        self._unanswered.pop(packet_id, None)

    # --- time ---------------------------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        """When `deadline_passed` has to be called, None = never: before the CONNACK, or without a keep-alive."""
        if self._phase is not _Phase.OPEN or not self.connect.keep_alive:
            return None
        if self._pinged_at is not None:
            return self._pinged_at + PING_ANSWER_S
        return self._sent_at + PING_SHARE * self.connect.keep_alive

    def deadline_passed(self, *, now: float) -> None:
        """Send a PINGREQ if it is time. Raises `ProtocolViolation` when the last one was not answered."""
        deadline = self.next_deadline
        if deadline is None or now < deadline:
            return
        if self._pinged_at is not None:
            raise ProtocolViolation("the server does not answer", expected=f"PINGRESP within {PING_ANSWER_S:g} s")
        self._pinged_at = now
        self._send(Signal(PacketType.PINGREQ))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _ask(self, asked: PacketType) -> int:
        if len(self._unanswered) >= UNANSWERED_MAX:
            raise ProtocolViolation("the server leaves too much unanswered", found=len(self._unanswered))
        packet_id = self._last_id
        while True:
            packet_id = packet_id % PACKET_ID_MAX + 1
            if packet_id not in self._unanswered:
                break
        self._last_id = packet_id
        self._unanswered[packet_id] = asked
        return packet_id

    def _send(self, packet: Packet) -> None:
        self._output.append(pack_packet(packet))
