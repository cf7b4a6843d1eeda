"""An MQTT endpoint over asyncio: listening sockets in, a dialect behind, sessions and packets by the pure core.

One protocol object a connection, no task and no timer for an idle one. Whatever a client sends, what is kept of it is
bounded: while its request is worked off, or while it does not read, nothing more is read from it.
Source: docs/reference/mqtt.md, "The endpoint"; docs/adr/0017-own-mqtt-endpoint.md.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

import structlog

from flota.protocols.mqtt.broker import BrokerCore, BrokerLimits
from flota.protocols.mqtt.connect_rates import CONNECT_BURST, CONNECTS_PER_S, ConnectRates
from flota.protocols.mqtt.dialect import MqttClient, MqttDialect, Only
from flota.protocols.mqtt.server_connection import CONNECT_WITHIN_S, MqttLimits
from flota.protocols.peer_text import clean_text
from flota.transports.mqtt_connection import ServedConnection, address_of
from flota.transports.mqtt_tls import TlsShell

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

CONNECTIONS_MAX: Final = 20_000
PENDING_MAX: Final = 4_000
"""Connections that have not been let in yet: in their TLS handshake, before their CONNECT, or being judged."""

TLS_WITHIN_S: Final = 60.0
"""Handshake and CONNECT over TLS: a Cortex-M without an accelerator calculates for seconds."""

OUTPUT_HIGH_BYTES: Final = 128 * 1024
OUTPUT_LOW_BYTES: Final = 32 * 1024
"""Above the first of unsent bytes nothing more is read from a client, below the second it is again."""

OUTPUT_MAX_BYTES: Final = 4 << 20
"""A client with more unsent bytes is cut off: no dialect should let it come so far."""

SWEEP_S: Final = 1.0
"""How often deadlines are looked at."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class MqttServerLimits:
    """Bounds of one endpoint, all its listeners together; bytes and seconds."""

    connections: int = CONNECTIONS_MAX
    pending: int = PENDING_MAX
    connects_per_s: float = CONNECTS_PER_S
    connect_burst: int = CONNECT_BURST
    connect_within_s: float = CONNECT_WITHIN_S
    tls_within_s: float = TLS_WITHIN_S
    sweep_s: float = SWEEP_S
    output_high: int = OUTPUT_HIGH_BYTES
    output_low: int = OUTPUT_LOW_BYTES
    output_max: int = OUTPUT_MAX_BYTES
    connection: MqttLimits = field(default_factory=MqttLimits)
    broker: BrokerLimits = field(default_factory=BrokerLimits)


@dataclass(slots=True)
class MqttCounters:
    """What happened since the start. `turned_away`: closed at once, above a limit of connections or their rate."""

    accepted: int = 0
    turned_away: int = 0
    failed_handshakes: int = 0
    admitted: int = 0
    refused: int = 0
    violations: int = 0
    timed_out: int = 0
    crashes: int = 0
    received: int = 0
    ignored_qos_2: int = 0
    dropped_answers: int = 0


class MqttEndpoint:
    """Any number of listeners with one dialect; the `MqttBroker` that the dialect is given. `clock` in seconds."""

    def __init__(
        self,
        dialect: MqttDialect,
        limits: MqttServerLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        new_client_id: Callable[[], str] = lambda: f"auto-{secrets.token_hex(8)}",
    ) -> None:
        self.dialect = dialect
        self.limits = limits or MqttServerLimits()
        self.clock = clock
        self.new_client_id = new_client_id
        self.core = BrokerCore(self.limits.broker, parent_too=self.limits.connection.parent_too)
        self.counters = MqttCounters()
        self.is_stopping = False
        self._rates = ConnectRates(per_s=self.limits.connects_per_s, burst=self.limits.connect_burst)
        self._servers: list[asyncio.Server] = []
        self._shaking: dict[TlsShell, float] = {}
        self._connections: set[ServedConnection] = set()
        self._admitted = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        dialect.begin(self)

    # --- listening ----------------------------------------------------------------------------------------------------

    async def listen(self, listening: socket.socket, *, tls: Callable[[], ssl.SSLContext] | None = None) -> None:
        """Serve a bound and listening TCP socket; it is closed by `stop`. `tls` is asked for each connection anew."""
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            if tls is None:
                return ServedConnection(self, self.limits.connect_within_s)
            within_s = self.limits.tls_within_s
            return _TlsGate(self, tls(), ServedConnection(self, within_s))

        self._servers.append(await loop.create_server(protocol, sock=listening, backlog=1024))
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep(), name="mqtt deadlines")

    async def stop(self, grace_s: float) -> bool:
        """Accept no more, let requests that are being worked off finish, send what is unsent, close.

        Returns whether that took no longer than `grace_s` seconds; what is left then is cut off.
        """
        self.is_stopping = True
        for server in self._servers:
            server.close()
        for shell in list(self._shaking):
            shell.abort()
        until = asyncio.get_running_loop().time() + grace_s
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for connection in list(self._connections):
            connection.close("the server stops")
        while self._connections or self._tasks:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._changed.wait()
            except TimeoutError:
                break
        finished = not (self._connections or self._tasks)
        for connection in list(self._connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        return finished

    # --- what a dialect may ask (MqttBroker) --------------------------------------------------------------------------

    @property
    def connected(self) -> int:
        """Clients that are connected now."""
        return self._admitted

    @property
    def connections(self) -> int:
        """Connections, those that are not let in yet included."""
        return len(self._connections) + len(self._shaking)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, only: Only | None = None
    ) -> int:
        """Deliver to every session with a subscription that covers `topic`; returns how many those were."""
        count = self.core.publish(topic, payload, qos=qos, retain=retain, only=only)
        for connection in self.core.take_ready():
            cast("ServedConnection", connection.holder).flush_soon()
        return count

    def is_wanted(self, topic: str) -> bool:
        """Return whether any session has a filter that covers `topic`."""
        return self.core.is_wanted(topic)

    def clients_of(self, key: Hashable) -> list[MqttClient]:
        """Return the connected clients whose identity has this key."""
        sessions = self.core.sessions_of(key)
        return [cast("ServedConnection", one.connection.holder) for one in sessions if one.connection is not None]

    def filters_of(self, key: Hashable) -> set[str]:
        """Return what the sessions of an identity are subscribed to, kept ones included."""
        return {topic_filter for session in self.core.sessions_of(key) for topic_filter in session.subscriptions}

    def forget(self, key: Hashable, reason: str) -> int:
        """Close every connection of an identity and drop its sessions; returns how many connections there were."""
        connections = self.core.forget(key)
        for connection in connections:
            cast("ServedConnection", connection.holder).close(reason)
        return len(connections)

    # --- for its connections ------------------------------------------------------------------------------------------

    def lets_in(self, transport: asyncio.BaseTransport) -> bool:
        """Judge a connection by its address and the number of others; one that is turned away is closed at once."""
        pending = self.connections - self._admitted
        full = self.connections >= self.limits.connections or pending >= self.limits.pending
        now = self.clock()
        if self.is_stopping or full or not self._rates.take(address_of(transport), now=now):
            self.counters.turned_away += 1
            cast("asyncio.Transport", transport).abort()
            return False
        self.counters.accepted += 1
        return True

    def add(self, connection: ServedConnection) -> None:
        """Count a connection."""
        self._connections.add(connection)

    def remove(self, connection: ServedConnection) -> None:
        """Count it no longer."""
        self._connections.discard(connection)
        self._changed.set()

    def begin_handshake(self, shell: TlsShell) -> None:
        """Note when a TLS handshake began."""
        self._shaking[shell] = self.clock()

    def end_handshake(self, shell: TlsShell, error: Exception | None) -> None:
        """Note that a TLS handshake ended."""
        self._shaking.pop(shell, None)
        if error is not None:
            self.counters.failed_handshakes += 1
            _log.debug("mqtt.handshake_failed", address=address_of(shell), error=clean_text(str(error)))

    def count_admitted(self, by: int) -> None:
        """Count clients."""
        self._admitted += by

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something that `stop` waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()

    async def _sweep(self) -> None:
        """Close what is silent for too long, forget sessions that nobody came back for."""
        while True:
            await asyncio.sleep(self.limits.sweep_s)
            now = self.clock()
            for connection in list(self._connections):
                connection.check_deadline(now)
            for shell, since in list(self._shaking.items()):
                if now - since >= self.limits.tls_within_s:
                    self.counters.timed_out += 1
                    shell.abort()
            self.core.expire(now=now)


class _TlsGate(TlsShell):
    """The TLS shell of an accepted connection: counted before the handshake costs anything."""

    __slots__ = ("_endpoint",)

    def __init__(self, endpoint: MqttEndpoint, context: ssl.SSLContext, inner: ServedConnection) -> None:
        super().__init__(context, inner, on_end=endpoint.end_handshake, server_side=True)
        self._endpoint = endpoint
        inner.was_let_in = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake, unless it is turned away."""
        if self._endpoint.lets_in(transport):
            self._endpoint.begin_handshake(self)
            super().connection_made(transport)
        else:
            self._on_end = None
