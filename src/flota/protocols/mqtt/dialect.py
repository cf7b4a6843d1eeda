"""The seam between an MQTT endpoint and what is spoken over it: types only, no IO.

The endpoint (`flota.transports.mqtt_server`) moves packets and keeps sessions; a dialect says who may connect, which
filters are granted, and what becomes of a message that a client publishes. Nothing that a client publishes reaches
another client unless the dialect hands it to `MqttBroker.publish`.
Source: docs/reference/mqtt.md, "The endpoint".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol

from flota.protocols.mqtt.packets import Connect, ConnectReturn, Publish


@dataclass(frozen=True, slots=True)
class Peer:
    """What the listener knows of a client before its CONNECT.

    `address` is an IP address. `certificate` (DER) passed the TLS handshake: its chain ends in one of the listener's
    client authorities and it is within its dates; None without one, and once the client was let in: ten thousands of
    them would be kept. `alpn` is the protocol chosen, None without ALPN.
    """

    address: str
    encrypted: bool = False
    certificate: bytes | None = None
    alpn: str | None = None


class Identity(Protocol):
    """Whom a dialect let in. Sessions belong to (`key`, client id): nobody takes over another identity's session."""

    @property
    def key(self) -> Hashable:
        """What tells one identity from another, e.g. (tenant, thing)."""
        ...


class MqttClient(Protocol):
    """One connected client, as its dialect sees it. After the connection ended it stays usable, but sends nothing."""

    @property
    def client_id(self) -> str:
        """The id it connected with, or the one it was given for an empty one."""
        ...

    @property
    def identity(self) -> Identity:
        """What `admit` returned."""
        ...

    @property
    def peer(self) -> Peer:
        """Where it came from."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether what is sent still goes anywhere."""
        ...

    def answer(self, topic: str | bytes, payload: bytes, *, qos: int | None = None) -> None:
        """Send to this connection alone, once, whether or not it subscribed.

        `topic` as bytes is UTF-8. Without `qos` it goes out at that of the subscription that covers the topic, else 0.
        """
        ...

    def answer_all(self, topic: str | bytes, payloads: Iterable[bytes], *, qos: int | None = None) -> None:
        """Send several messages to one topic, as `answer` does, in one piece: what blocks of a file go by."""
        ...

    async def drain(self) -> None:
        """Return once little is unsent. Raises `ConnectionError` when the connection is gone."""
        ...

    def close(self, reason: str) -> None:
        """End the connection after what was sent; `reason` is for the log."""
        ...


class AskedClient(MqttClient, Protocol):
    """A client on a connection of our own: whether a message reached it can be known."""

    async def ask(self, topic: str, payload: bytes, *, timeout_s: float) -> bool:
        """Send to this connection alone at QoS 1, whether or not it subscribed; return whether its PUBACK came in time.

        False at once if the message cannot go out now: the client reads too slowly.
        """
        ...


Only = Callable[[Hashable], bool]
"""Says of an identity's key whether a message is for its sessions: names in topics are unique within a tenant only."""


class MqttBroker(Protocol):
    """What a dialect may ask of the endpoint."""

    @property
    def connected(self) -> int:
        """Clients that are connected now."""
        ...

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, only: Only | None = None
    ) -> int:
        """Deliver to every session with a subscription that covers `topic`, once each, at the lower of both QoS.

        Sessions without a connection keep messages of QoS 1. Returns how many sessions it was for. With `retain` it is
        kept for later subscribers too; an empty payload removes what was kept. `only` leaves sessions out.
        """
        ...

    def is_wanted(self, topic: str) -> bool:
        """Return whether a message of this topic would reach anybody: one that is dear to make may be left out."""
        ...

    def clients_of(self, key: Hashable) -> list[MqttClient]:
        """Return the connected clients whose identity has this key."""
        ...

    def filters_of(self, key: Hashable) -> set[str]:
        """Return what the sessions of an identity are subscribed to, kept ones included."""
        ...

    def forget(self, key: Hashable, reason: str) -> int:
        """Close every connection of an identity and drop its sessions; returns how many connections there were."""
        ...


class MqttDialect(Protocol):
    """What is spoken over an endpoint. Exceptions that leave a method close the connection and are logged as bugs."""

    def begin(self, broker: MqttBroker) -> None:
        """Take the endpoint's handle; called once, before the first client."""
        ...

    async def admit(self, connect: Connect, peer: Peer) -> Identity | ConnectReturn:
        """Return who this is, or the return code of a refusal. A will that it may not publish is a reason to refuse."""
        ...

    def connected(self, client: MqttClient) -> None:
        """Hear that an admitted client is connected: its CONNACK is on its way."""
        ...

    def may_subscribe(self, client: MqttClient, topic_filter: str) -> bool:
        """Return whether the filter, which is well formed, is granted; else its SUBACK says 0x80."""
        ...

    def receive(self, client: MqttClient, publish: Publish) -> Awaitable[None] | None:
        """Work off a message of QoS 0 or 1. Its PUBACK is already on its way, before any answer.

        Return None when done; else what it returns is awaited, and the client's next message waits for it. A client's
        will comes here too, after `is_open` became False.
        """
        ...

    def gone(self, client: MqttClient) -> None:
        """Hear that a client's connection ended, for whatever reason; after its will.

        After a takeover this comes when the new connection of the same client is there already.
        """
        ...
