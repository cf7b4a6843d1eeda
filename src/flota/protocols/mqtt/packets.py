"""MQTT 3.1.1 control packets: bytes <-> the values of `packet_values`, both roles. Source: section 3 of the standard.

`PacketReader` cuts a stream into packets and refuses what is too long before it has come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flota.protocols.mqtt.errors import MalformedPacket, PacketTooLarge
from flota.protocols.mqtt.packet_fields import Fields, text_of
from flota.protocols.mqtt.packet_values import (
    PACKET_ID_MAX,
    PROTOCOL_LEVEL,
    PROTOCOL_NAME,
    REMAINING_LENGTH_MAX,
    STRING_MAX_BYTES,
    SUBACK_FAILURE,
    Acknowledgement,
    Connack,
    Connect,
    ConnectReturn,
    Packet,
    PacketType,
    Publish,
    Signal,
    Suback,
    Subscribe,
    Unsubscribe,
    Will,
)

__all__ = [
    "PACKET_ID_MAX",
    "PROTOCOL_LEVEL",
    "PROTOCOL_NAME",
    "REMAINING_LENGTH_MAX",
    "STRING_MAX_BYTES",
    "SUBACK_FAILURE",
    "Acknowledgement",
    "Connack",
    "Connect",
    "ConnectReturn",
    "Packet",
    "PacketReader",
    "PacketType",
    "Publish",
    "Signal",
    "Suback",
    "Subscribe",
    "Unsubscribe",
    "Will",
    "pack_length",
    "pack_packet",
    "parse_packet",
    "publish_head",
]

Buffer = bytes | bytearray | memoryview

_ACKNOWLEDGEMENTS: Final = {
    PacketType.PUBACK: 0,
    PacketType.PUBREC: 0,
    PacketType.PUBREL: 2,
    PacketType.PUBCOMP: 0,
    PacketType.UNSUBACK: 0,
}
"""Type -> the flags that its first byte must carry (2.2.2)."""

_SIGNALS: Final = frozenset({PacketType.PINGREQ, PacketType.PINGRESP, PacketType.DISCONNECT})


class PacketReader:
    """Cuts a stream into packets. `max_packet_size` bounds a whole packet (bytes), and so what is ever kept.

    `push` bytes, then `take` until it gives None; `feed` does both and parses. An idle reader keeps nothing.
    """

    __slots__ = ("_at", "_data", "_max", "_partial", "_wanted")

    def __init__(self, max_packet_size: int) -> None:
        self._max = max_packet_size
        self._data: Buffer = b""
        self._at = 0
        self._partial: bytearray | None = None
        self._wanted = 0

    @property
    def waiting(self) -> int:
        """Bytes that are not cut into packets yet."""
        return len(self._data) - self._at + (0 if self._partial is None else len(self._partial))

    @property
    def first_byte(self) -> int | None:
        """The first byte of the packet under way, None before it has come."""
        if self._partial is not None:
            return self._partial[0]
        return self._data[self._at] if self._at < len(self._data) else None

    def allow(self, max_packet_size: int) -> None:
        """Take packets up to this size from now on: before CONNECT is accepted less is allowed than after."""
        self._max = max_packet_size

    def push(self, data: Buffer) -> None:
        """Add what came. It is not copied if nothing waits, so it must not change until `take` gave None."""
        partial = self._partial
        if partial is not None:
            partial += data
            if len(partial) < self._wanted:
                return
            self._partial = None
            data = bytes(partial)
        elif self._at < len(self._data):
            data = bytes(self._data[self._at :]) + bytes(data)
        self._data = data
        self._at = 0

    def take(self) -> tuple[int, bytes] | None:
        """Return the next packet as its first byte and its body, None until more comes.

        Raises `MalformedPacket` and `PacketTooLarge`; it is over then.
        """
        data, at = self._data, self._at
        size = len(data) - at
        if size >= 2 and data[at + 1] < 0x80:  # nearly every packet: a length of one byte
            start, length = at + 2, data[at + 1]
        else:
            head = _header_end(data, at)
            if head is None:
                self._keep(data, at, 0)
                return None
            start, length = head
        end = start + length
        if end - at > self._max:
            raise PacketTooLarge(
                "an MQTT packet is too large", expected=f"at most {self._max} bytes", found=f"{end - at} bytes"
            )
        if end > len(data):
            self._keep(data, at, end - at)
            return None
        self._at = end
        return data[at], bytes(data[start:end])

    def feed(self, data: Buffer) -> Iterator[Packet]:
        """Yield the packets that are complete now. Raises `MalformedPacket` and `PacketTooLarge`; it is over then."""
        self.push(data)
        while (cut := self.take()) is not None:
            yield parse_packet(*cut)

    def _keep(self, data: Buffer, at: int, wanted: int) -> None:
        """Keep the beginning of a packet of `wanted` bytes (0 = unknown yet) until the rest comes."""
        self._data, self._at = b"", 0
        if at < len(data):
            self._partial, self._wanted = bytearray(data[at:]), wanted


def parse_packet(first: int, body: bytes) -> Packet:
    """Return the packet with this first byte and what follows its length. Raises `MalformedPacket`."""
    kind, flags = first >> 4, first & 0x0F
    if kind == PacketType.PUBLISH:
        return _parse_publish(flags, body)
    try:
        packet_type = PacketType(kind)
    except ValueError:
        raise MalformedPacket("no MQTT packet has this type", expected="1 to 14", found=kind) from None
    wanted_flags = 2 if packet_type in {PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE} else 0
    if flags != _ACKNOWLEDGEMENTS.get(packet_type, wanted_flags):
        raise MalformedPacket(f"the flags of {packet_type.name} are wrong", found=f"{flags:04b}")
    return _parse_other(packet_type, body)


def _parse_other(packet_type: PacketType, body: bytes) -> Packet:
    fields = Fields(body)
    packet: Packet
    if packet_type in _ACKNOWLEDGEMENTS:
        packet = Acknowledgement(packet_type, fields.packet_id())
    elif packet_type in _SIGNALS:
        packet = Signal(packet_type)
    elif packet_type is PacketType.CONNECT:
        packet = _parse_connect(fields)
    elif packet_type is PacketType.CONNACK:
        session, code = fields.take(2)
        packet = Connack(code, bool(session & 1))
    elif packet_type is PacketType.SUBSCRIBE:
        packet = Subscribe(fields.packet_id(), tuple(_subscriptions(fields)))
    elif packet_type is PacketType.SUBACK:
        packet = Suback(fields.packet_id(), tuple(fields.rest()))
    else:
        packet = Unsubscribe(fields.packet_id(), tuple(_filters(fields)))
    fields.require_end(packet_type)
    return packet


def _parse_publish(flags: int, body: bytes) -> Publish:
    qos = flags >> 1 & 3
    if qos == 3:
        raise MalformedPacket("PUBLISH with QoS 3")
    if qos == 0 and flags & 8:
        raise MalformedPacket("PUBLISH with QoS 0 is marked as sent again")
    if len(body) < 2 or len(body) < 2 + (length := body[0] << 8 | body[1]):
        raise MalformedPacket("PUBLISH ends inside its topic", offset=len(body))
    topic = text_of(body[2 : 2 + length], "topic")
    if not topic or "+" in topic or "#" in topic:
        raise MalformedPacket("PUBLISH to a name that is empty or has wildcards", found=repr(topic[:80]))
    position = 2 + length
    if qos == 0:
        return Publish(topic, body[position:], 0, bool(flags & 1))
    if len(body) < position + 2:
        raise MalformedPacket("PUBLISH ends inside its packet id", offset=len(body))
    packet_id = body[position] << 8 | body[position + 1]
    if packet_id == 0:
        raise MalformedPacket("a packet id is 0")
    return Publish(topic, body[position + 2 :], qos, bool(flags & 1), bool(flags & 8), packet_id)


def _parse_connect(fields: Fields) -> Connect:
    """Parse section 3.1. For another protocol level nothing more is read: its answer is a CONNACK, not an error."""
    name = fields.text("protocol name")
    if name not in {PROTOCOL_NAME, "MQIsdp"}:
        raise MalformedPacket("no MQTT client", expected=PROTOCOL_NAME, found=repr(name[:20]))
    level, flags = fields.take(2)
    if name != PROTOCOL_NAME or level != PROTOCOL_LEVEL:
        fields.rest()
        return Connect("", level=level if name == PROTOCOL_NAME else 3)
    if flags & 1:
        raise MalformedPacket("the reserved flag of CONNECT is set")
    keep_alive = fields.u16()
    client_id = fields.text("client id")
    will = _parse_will(fields, flags)
    username = fields.text("user name") if flags & 0x80 else None
    if flags & 0x40 and not flags & 0x80:
        raise MalformedPacket("CONNECT has a password but no user name")
    password = fields.binary() if flags & 0x40 else None
    return Connect(client_id, bool(flags & 2), keep_alive, username, password, will)


def _parse_will(fields: Fields, flags: int) -> Will | None:
    qos = flags >> 3 & 3
    if not flags & 4:
        if flags & 0x38:
            raise MalformedPacket("CONNECT describes a will that it does not have")
        return None
    if qos == 3:
        raise MalformedPacket("a will with QoS 3")
    topic = fields.text("will topic")
    if not topic or "+" in topic or "#" in topic:
        raise MalformedPacket("a will for a name that is empty or has wildcards", found=repr(topic[:80]))
    return Will(topic, fields.binary(), qos, bool(flags & 0x20))


def _subscriptions(fields: Fields) -> Iterator[tuple[str, int]]:
    while True:
        topic_filter = fields.text("topic filter")
        (qos,) = fields.take(1)
        if qos > 2:
            raise MalformedPacket("SUBSCRIBE asks for a QoS that does not exist", found=qos)
        yield topic_filter, qos
        if fields.at_end:
            return


def _filters(fields: Fields) -> Iterator[str]:
    while True:
        yield fields.text("topic filter")
        if fields.at_end:
            return


def _header_end(buffer: Buffer, position: int) -> tuple[int, int] | None:
    """Return (where the body begins, its length), None while the length has not come. Raises `MalformedPacket`."""
    length = 0
    for count in range(4):
        place = position + 1 + count
        if place >= len(buffer):
            return None
        byte = buffer[place]
        length |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return place + 1, length
    raise MalformedPacket("the remaining length has more than four bytes")


def pack_length(length: int) -> bytes:
    """Return the remaining length's one to four bytes (2.2.3). Raises `PacketTooLarge`."""
    if length > REMAINING_LENGTH_MAX:
        raise PacketTooLarge("longer than any MQTT packet", expected=REMAINING_LENGTH_MAX, found=length)
    packed = bytearray()
    while length > 0x7F:
        packed.append(length & 0x7F | 0x80)
        length >>= 7
    packed.append(length)
    return bytes(packed)


def publish_head(topic: bytes, payload_size: int, *, qos: int = 0, flags: int = 0, packet_id: int = 0) -> bytes:
    """Return everything of a PUBLISH but its payload: who sends many need not copy them. `topic` is UTF-8."""
    size = 2 + len(topic) + payload_size + (2 if qos else 0)
    head = bytes([0x30 | qos << 1 | flags]) + pack_length(size) + len(topic).to_bytes(2, "big") + topic
    return head + packet_id.to_bytes(2, "big") if qos else head


def pack_packet(packet: Packet) -> bytes:
    """Return the bytes of `packet`. Raises `MalformedPacket` for a text above 65,535 bytes."""
    match packet:
        case Publish():
            flags = (8 if packet.duplicate else 0) | (1 if packet.retain else 0)
            topic = _string_bytes(packet.topic)
            head = publish_head(
                topic, len(packet.payload), qos=packet.qos, flags=flags, packet_id=packet.packet_id or 0
            )
            return head + packet.payload
        case Acknowledgement():
            first = packet.type << 4 | _ACKNOWLEDGEMENTS[packet.type]
            return bytes([first, 2]) + packet.packet_id.to_bytes(2, "big")
        case Signal():
            return bytes([packet.type << 4, 0])
        case Connack():
            return bytes([PacketType.CONNACK << 4, 2, packet.session_present, packet.code])
        case Connect():
            return _with_length(PacketType.CONNECT << 4, _connect_body(packet))
        case Subscribe():
            body = b"".join(_string(text) + bytes([qos]) for text, qos in packet.filters)
            return _with_length(PacketType.SUBSCRIBE << 4 | 2, packet.packet_id.to_bytes(2, "big") + body)
        case Suback():
            body = packet.packet_id.to_bytes(2, "big") + bytes(packet.granted)
            return _with_length(PacketType.SUBACK << 4, body)
        case Unsubscribe():
            body = packet.packet_id.to_bytes(2, "big") + b"".join(map(_string, packet.filters))
            return _with_length(PacketType.UNSUBSCRIBE << 4 | 2, body)


def _connect_body(packet: Connect) -> bytes:
    flags = 2 if packet.clean_session else 0
    tail = _string(packet.client_id)
    if packet.will is not None:
        flags |= 4 | packet.will.qos << 3 | (0x20 if packet.will.retain else 0)
        tail += _string(packet.will.topic) + _binary(packet.will.payload)
    if packet.username is not None:
        flags |= 0x80
        tail += _string(packet.username)
    if packet.password is not None:
        flags |= 0x40
        tail += _binary(packet.password)
    return _string(PROTOCOL_NAME) + bytes([packet.level, flags]) + packet.keep_alive.to_bytes(2, "big") + tail


def _with_length(first: int, body: bytes) -> bytes:
    return bytes([first]) + pack_length(len(body)) + body


def _string(text: str) -> bytes:
    return _binary(text.encode("utf-8"))


def _string_bytes(text: str) -> bytes:
    raw = text.encode("utf-8")
    if len(raw) > STRING_MAX_BYTES:
        raise MalformedPacket("longer than any MQTT string", expected=STRING_MAX_BYTES, found=len(raw))
    return raw


def _binary(raw: bytes) -> bytes:
    if len(raw) > STRING_MAX_BYTES:
        raise MalformedPacket("longer than any MQTT string", expected=STRING_MAX_BYTES, found=len(raw))
    return len(raw).to_bytes(2, "big") + raw
