"""What the server keeps of one client: its subscriptions and the QoS 1 messages that it has not acknowledged.

Source: docs/reference/mqtt.md, "The server's side of a connection"; MQTT 3.1.1, 3.1.2.4 and 4.1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from flota.protocols.mqtt.packets import PACKET_ID_MAX
from flota.protocols.mqtt.topics import matches

if TYPE_CHECKING:
    from flota.protocols.mqtt.server_connection import ServerConnection

IN_FLIGHT_MAX: Final = 100
QUEUED_MAX: Final = 1000
"""QoS 1 messages that wait for their turn; beyond it the oldest is dropped and counted."""

HELD_MAX_BYTES: Final = 1 << 20
"""Payloads of one session, in flight and waiting: eight messages of the largest size, 256 blocks of 4 KiB."""

Message = tuple[bytes, bytes]
"""Topic (UTF-8) and payload."""


@dataclass(slots=True, eq=False)
class MqttSession:
    """What outlives a connection of a client that asked for it (clean session 0). `held_bytes` counts payloads."""

    client_id: str
    owner: Hashable = None
    """Whose it is: the identity's key. A session is named by owner and client id."""
    subscriptions: dict[str, int] = field(default_factory=dict)
    in_flight: dict[int, Message] = field(default_factory=dict)
    """By packet id: what was sent at QoS 1 and is not acknowledged."""
    queued: deque[Message] | None = None
    last_id: int = 0
    dropped: int = 0
    held_bytes: int = 0
    connection: ServerConnection | None = None
    watched: dict[int, Callable[[], None]] | None = None
    """By packet id: who wants to hear of its PUBACK. Almost nobody does."""

    def qos_for(self, topic: str, *, parent_too: bool = True) -> int | None:
        """Return the highest QoS of a subscription that covers `topic`, None without one."""
        found = [qos for text, qos in self.subscriptions.items() if matches(text, topic, parent_too=parent_too)]
        return max(found, default=None)

    def start_flight(self, topic: bytes, payload: bytes) -> int:
        """Note a message as sent and not acknowledged; returns its packet id, one that is not in use (2.3.1)."""
        packet_id = self.last_id
        while True:
            packet_id = packet_id % PACKET_ID_MAX + 1
            if packet_id not in self.in_flight:
                break
        self.last_id = packet_id
        self.in_flight[packet_id] = (topic, payload)
        self.held_bytes += len(payload)
        return packet_id

    def acknowledged(self, packet_id: int) -> None:
        """Forget a message; an id that is not in flight is nothing: the client acknowledged twice."""
        message = self.in_flight.pop(packet_id, None)
        if message is None:
            return
        self.held_bytes -= len(message[1])
        heard = self.watched.pop(packet_id, None) if self.watched else None
        if heard is not None:
            heard()

    def watch(self, packet_id: int, heard: Callable[[], None]) -> None:
        """Have `heard` called once that message is acknowledged."""
        if self.watched is None:
            self.watched = {}
        self.watched[packet_id] = heard

    def unwatch(self, packet_id: int) -> None:
        """Wait for that acknowledgement no longer."""
        if self.watched is not None:
            self.watched.pop(packet_id, None)

    def queue(self, topic: bytes, payload: bytes, *, queued_max: int, held_max: int) -> None:
        """Keep a message until its turn; what is above the limits is dropped and counted, the oldest first."""
        waiting = self.queued
        if waiting is None:
            waiting = self.queued = deque()
        waiting.append((topic, payload))
        self.held_bytes += len(payload)
        while waiting and (len(waiting) > queued_max or self.held_bytes > held_max):
            self.held_bytes -= len(waiting.popleft()[1])
            self.dropped += 1

    def next_queued(self) -> Message | None:
        """Take the oldest message that waits."""
        if not self.queued:
            return None
        message = self.queued.popleft()
        self.held_bytes -= len(message[1])
        if not self.queued:
            self.queued = None
        return message
