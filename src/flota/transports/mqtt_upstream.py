"""A connection to a broker of somebody else's, kept up for as long as the server runs: gmqtt, and what it leaves open.

gmqtt speaks the protocol. Reconnecting, a bound for what waits, and sending again what no PUBACK came for are here:
its own reconnecting waits for a CONNACK without end and its queue has none. Source: docs/reference/mqtt.md, "Another
broker"; gmqtt 0.8 gmqtt/client.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import gmqtt
import gmqtt.mqtt.handler
import structlog
from gmqtt.mqtt.constants import MQTTv311
from gmqtt.storage import PersistentStorage

from flota.errors import InvalidInput
from flota.protocols.mqtt.broker_url import BrokerUrl

CONNECT_WITHIN_S: Final = 10.0
RETRY_FIRST_S: Final = 0.5
RETRY_LAST_S: Final = 15.0
KEEP_ALIVE_S: Final = 30
DRAIN_EVERY_S: Final = 0.2
"""How often it is looked whether a full buffer has room again."""

UNSENT_MAX_BYTES: Final = 4 << 20
"""What may wait in the socket's buffer; gmqtt itself knows no bound."""

WAITING_MAX: Final = 10_000
WAITING_MAX_BYTES: Final = 8 << 20
"""Messages of QoS 1 that wait for a connection, or for their PUBACK; beyond it the oldest give way."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """One message, as it comes or goes."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


class UpstreamLink:
    """One session at the broker. `wanted` gives the filters and their QoS, at each connection; both run in the loop."""

    def __init__(
        self,
        url: BrokerUrl,
        *,
        client_id: str,
        on_message: Callable[[Message], None],
        wanted: Callable[[], Iterable[tuple[str, int]]],
    ) -> None:
        self.url = url
        self._client_id = client_id
        self._on_message = on_message
        self._wanted = wanted
        self._client: gmqtt.Client | None = None
        self._waiting: deque[Message] = deque()
        self._waiting_bytes = 0
        self.dropped = 0
        """Messages that were lost: nobody took them in time."""
        self.connects = 0

    @property
    def is_connected(self) -> bool:
        """Whether messages can go out now."""
        return self._client is not None and bool(self._client.is_connected)

    @property
    def waiting(self) -> int:
        """Messages that wait for a connection."""
        return len(self._waiting)

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the connection up until `stop` is set; then say good-bye."""
        pause_s, tls = RETRY_FIRST_S, tls_context(self.url)
        while not stop.is_set():
            ended = asyncio.Event()
            storage = _Unacknowledged()
            client = self._make_client(ended, storage)
            try:
                async with asyncio.timeout(CONNECT_WITHIN_S):
                    await client.connect(
                        self.url.host, self.url.port, ssl=tls or False, keepalive=KEEP_ALIVE_S, version=MQTTv311
                    )
            except (OSError, TimeoutError, gmqtt.mqtt.handler.MQTTError, ssl.SSLError) as error:
                _log.warning("mqtt_upstream.not_connected", broker=str(self.url), error=str(error) or repr(error))
            else:
                pause_s = RETRY_FIRST_S
                self._connected(client)
                while not await _first_of(ended, stop, timeout_s=DRAIN_EVERY_S):
                    self._drain(client)
            self._client = None
            for message in reversed(storage.left):
                self._wait(message, first=True)
            await _close(client)
            if not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause_s)
                pause_s = min(pause_s * 2, RETRY_LAST_S)

    def publish(self, message: Message) -> bool:
        """Send a message; one of QoS 1 waits for the connection where there is none. Returns False if it is lost."""
        client = self._client
        if client is None or not client.is_connected or _unsent_bytes(client) > UNSENT_MAX_BYTES:
            if message.qos == 0:
                self.dropped += 1
                return False
            self._wait(message)
            return True
        self._drain(client)
        _send(client, message)
        return True

    def subscribe(self, topic_filter: str, qos: int) -> None:
        """Subscribe, if there is a connection: at the next one `wanted` says it."""
        if self._client is not None and self._client.is_connected:
            self._client.subscribe(topic_filter, qos=qos)

    def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe, if there is a connection."""
        if self._client is not None and self._client.is_connected:
            self._client.unsubscribe(topic_filter)

    def _make_client(self, ended: asyncio.Event, storage: _Unacknowledged) -> gmqtt.Client:
        client = gmqtt.Client(self._client_id, clean_session=True, persistent_storage=storage)
        client.set_config({"reconnect_retries": 0})
        if self.url.user is not None:
            client.set_auth_credentials(self.url.user, self.url.password)

        def on_message(_client: Any, topic: str, payload: bytes, qos: int, properties: dict[str, Any]) -> int:
            self._on_message(Message(topic, bytes(payload), min(qos, 1), bool(properties.get("retain"))))
            return 0

        def on_disconnect(*_: Any) -> None:
            client.stop_reconnect()
            ended.set()

        client.on_message = on_message
        client.on_disconnect = on_disconnect
        return client

    def _connected(self, client: gmqtt.Client) -> None:
        self._client = client
        self.connects += 1
        _log.info("mqtt_upstream.connected", broker=str(self.url))
        for topic_filter, qos in self._wanted():
            client.subscribe(topic_filter, qos=qos)
        self._drain(client)

    def _drain(self, client: gmqtt.Client) -> None:
        while self._waiting and client.is_connected and _unsent_bytes(client) <= UNSENT_MAX_BYTES:
            message = self._waiting.popleft()
            self._waiting_bytes -= len(message.payload)
            _send(client, message)

    def _wait(self, message: Message, *, first: bool = False) -> None:
        self._waiting_bytes += len(message.payload)
        if first:
            self._waiting.appendleft(message)
        else:
            self._waiting.append(message)
        while len(self._waiting) > WAITING_MAX or self._waiting_bytes > WAITING_MAX_BYTES:
            self._waiting_bytes -= len(self._waiting.popleft().payload)
            self.dropped += 1


class _Unacknowledged(PersistentStorage):  # type: ignore[misc]
    """gmqtt's store of what no PUBACK came for, with the messages themselves, to send them in a later session."""

    def __init__(self) -> None:
        super().__init__()
        self._sent: dict[int, Message] = {}
        self.sending: Message | None = None

    @property
    def left(self) -> list[Message]:
        """What was not acknowledged, oldest first."""
        return list(self._sent.values())

    def push_message(self, mid: int, raw_package: bytes) -> None:
        super().push_message(mid, raw_package)
        if self.sending is not None:
            self._sent[mid] = self.sending

    def remove_message_by_mid(self, mid: int) -> None:
        super().remove_message_by_mid(mid)
        self._sent.pop(mid, None)


def _send(client: gmqtt.Client, message: Message) -> None:
    storage = client._persistent_storage
    storage.sending = message
    client.publish(message.topic, message.payload, qos=message.qos, retain=message.retain)
    storage.sending = None


def _unsent_bytes(client: gmqtt.Client) -> int:
    """Return what waits in the socket's buffer; gmqtt has no public way to ask."""
    transport = client._connection._transport
    return int(transport.get_write_buffer_size())


async def _close(client: gmqtt.Client) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(2):
            await client.disconnect()


async def _first_of(*events: asyncio.Event, timeout_s: float) -> bool:
    """Return whether one of the events was set within the time."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return bool(done)


def tls_context(url: BrokerUrl) -> ssl.SSLContext | None:
    """Return how the broker's certificate is checked; None for plain MQTT. Raises `InvalidInput`: an unusable file."""
    if url.scheme == "mqtt":
        return None
    try:
        return ssl.create_default_context(cafile=url.ca)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"{url.ca} is not a file of certificates", found=str(error)) from error
