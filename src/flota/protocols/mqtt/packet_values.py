"""What MQTT 3.1.1 control packets say, as values of both roles. Source: section 3 of the standard."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

PROTOCOL_NAME: Final = "MQTT"
PROTOCOL_LEVEL: Final = 4
REMAINING_LENGTH_MAX: Final = 268_435_455
PACKET_ID_MAX: Final = 0xFFFF
STRING_MAX_BYTES: Final = 0xFFFF
SUBACK_FAILURE: Final = 0x80


class PacketType(enum.IntEnum):
    """The upper four bits of a packet's first byte (2.2.1)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class ConnectReturn(enum.IntEnum):
    """Return codes of CONNACK (3.2.2.3). 7 is none of the standard's: AWS answers it where others answer 5."""

    ACCEPTED = 0
    UNACCEPTABLE_PROTOCOL = 1
    IDENTIFIER_REJECTED = 2
    SERVER_UNAVAILABLE = 3
    BAD_CREDENTIALS = 4
    NOT_AUTHORISED = 5
    AWS_NOT_AUTHORISED = 7


@dataclass(frozen=True, slots=True)
class Will:
    """What the server publishes if the client goes without a DISCONNECT."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Connect:
    """CONNECT. `keep_alive` in seconds, 0 = none. `level` is 4; another one is the server's to refuse (3.1.2.2)."""

    client_id: str
    clean_session: bool = True
    keep_alive: int = 0
    username: str | None = None
    password: bytes | None = None
    will: Will | None = None
    level: int = PROTOCOL_LEVEL


@dataclass(frozen=True, slots=True)
class Connack:
    """CONNACK."""

    code: int
    session_present: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """PUBLISH. `packet_id` is None exactly at QoS 0."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    duplicate: bool = False
    packet_id: int | None = None


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """PUBACK, PUBREC, PUBREL, PUBCOMP, UNSUBACK: a type and a packet id."""

    type: PacketType
    packet_id: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """SUBSCRIBE: topic filters with the QoS wanted."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Suback:
    """SUBACK: for each filter the QoS granted, or `SUBACK_FAILURE`."""

    packet_id: int
    granted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """UNSUBSCRIBE."""

    packet_id: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Signal:
    """PINGREQ, PINGRESP, DISCONNECT: nothing but a type."""

    type: PacketType


Packet = Connect | Connack | Publish | Acknowledgement | Subscribe | Suback | Unsubscribe | Signal
