"""What is wrong with a peer's MQTT."""

from __future__ import annotations

from flota.errors import PeerError


class MalformedPacket(PeerError):
    """Bytes that are no MQTT 3.1.1: the connection has to be closed (section 4.8)."""

    code = "mqtt-malformed"


class PacketTooLarge(PeerError):
    """A packet announces more bytes than are allowed here; it was not waited for."""

    code = "mqtt-too-large"


class ProtocolViolation(PeerError):
    """A well-formed packet that may not come now: the connection has to be closed (section 4.8)."""

    code = "mqtt-violation"
