"""A light MQTT client: one connection, TLS by our own shell, no reconnecting. Virtual devices speak by it.

The shell around `flota.protocols.mqtt.client_connection`. Source: docs/reference/mqtt.md, "The client's side".
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Final, cast

from flota.errors import FlotaError, PeerError
from flota.protocols.mqtt.client_connection import ClientConnection
from flota.protocols.mqtt.packets import (
    SUBACK_FAILURE,
    Acknowledgement,
    Connack,
    Connect,
    ConnectReturn,
    Publish,
    Suback,
)
from flota.transports.mqtt_tls import TlsShell

CONNECT_WITHIN_S: Final = 20.0
"""TCP, TLS and CONNACK together."""

ANSWER_WITHIN_S: Final = 5.0
"""For SUBACK, UNSUBACK and PUBACK; what the AWS agent waits for a PUBACK."""

RECEIVED_MAX_BYTES: Final = 1 << 20
"""Payloads that wait to be received; above it nothing more is read."""


class MqttLinkLost(PeerError):
    """The connection is over, or never was."""

    code = "mqtt-link-lost"


class ConnectRefused(PeerError):
    """The server refused CONNECT; `code_returned` is what its CONNACK says."""

    code = "mqtt-refused"

    def __init__(self, code_returned: int) -> None:
        names = {code.value: code.name for code in ConnectReturn}
        super().__init__("the MQTT server refused the connection", found=names.get(code_returned, code_returned))
        self.code_returned = code_returned


async def open_mqtt(
    host: str,
    port: int,
    connect: Connect,
    *,
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
    timeout_s: float = CONNECT_WITHIN_S,
) -> MqttLink:
    """Connect and wait for the CONNACK. `server_name` is what the server's certificate has to name, `host` without one.

    Raises `ConnectRefused` for a return code other than 0, `MqttLinkLost` for everything else.
    """
    loop = asyncio.get_running_loop()
    link = MqttLink(connect, now=loop.time())

    def protocol() -> asyncio.Protocol:
        if tls is None:
            return link
        return TlsShell(tls, link, on_end=link.tls_ended, server_side=False, server_name=server_name or host)

    try:
        async with asyncio.timeout(timeout_s):
            await loop.create_connection(protocol, host, port)
            await link.opened
    except TimeoutError:
        link.abort()
        raise MqttLinkLost(f"no MQTT connection to {host}:{port} within {timeout_s:g} s") from None
    except OSError as error:
        raise MqttLinkLost(f"no MQTT connection to {host}:{port}", found=error.strerror or str(error)) from error
    except BaseException:
        link.abort()
        raise
    return link


class MqttLink(asyncio.Protocol):
    """One open connection. Everything raises `MqttLinkLost` once it is over."""

    def __init__(self, connect: Connect, *, now: float) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._core = ClientConnection(connect, now=now)
        self._transport: asyncio.Transport | None = None
        self._answers: dict[int, asyncio.Future[Suback | Acknowledgement]] = {}
        self._received: deque[Publish] = deque()
        self._received_bytes = 0
        self._is_paused = False
        self._arrived = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._lost: PeerError | None = None
        self._gone = asyncio.Event()
        self.opened: asyncio.Future[None] = loop.create_future()

    @property
    def is_open(self) -> bool:
        """Whether the connection was accepted and has not ended."""
        return self._lost is None and self._core.is_open

    @property
    def session_present(self) -> bool:
        """Whether the server had kept a session."""
        return self._core.session_present

    # --- what one does with it ----------------------------------------------------------------------------------------

    async def subscribe(self, topic_filter: str, qos: int = 0, *, timeout_s: float = ANSWER_WITHIN_S) -> int:
        """Subscribe; returns the QoS granted. Raises `PeerError` when the server refuses or does not answer."""
        self._check()
        answer = await self._answer(self._core.subscribe([(topic_filter, qos)]), "SUBSCRIBE", timeout_s)
        granted = answer.granted if isinstance(answer, Suback) else ()
        if len(granted) != 1 or granted[0] == SUBACK_FAILURE:
            raise PeerError("the MQTT server refused a subscription", found=topic_filter)
        return granted[0]

    async def unsubscribe(self, topic_filter: str, *, timeout_s: float = ANSWER_WITHIN_S) -> None:
        """Unsubscribe. Raises `PeerError` when the server does not answer."""
        self._check()
        await self._answer(self._core.unsubscribe([topic_filter]), "UNSUBSCRIBE", timeout_s)

    async def publish(
        self, topic: str, payload: bytes, qos: int = 0, *, timeout_s: float = ANSWER_WITHIN_S, retain: bool = False
    ) -> None:
        """Publish; at QoS 1 wait for the PUBACK. Raises `PeerError` when none comes."""
        self._check()
        packet_id = self._core.publish(topic, payload, qos=qos, retain=retain)
        if packet_id is None:
            self._flush()
        else:
            await self._answer(packet_id, "PUBLISH", timeout_s)

    async def receive(self) -> Publish:
        """Return the next message, also one that came before the connection ended."""
        while not self._received:
            if self._lost is not None:
                raise self._lost
            self._arrived.clear()
            await self._arrived.wait()
        message = self._received.popleft()
        self._received_bytes -= len(message.payload)
        self._regulate()
        return message

    async def close(self) -> None:
        """Say good-bye and close; does nothing when it is over."""
        if self._transport is not None:
            self._core.disconnect()
            self._flush()
            self._transport.close()
            await self._gone.wait()

    def abort(self) -> None:
        """Be gone without a word, as in a power cut."""
        self._end(MqttLinkLost("the MQTT connection was cut off"))
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send CONNECT."""
        self._transport = cast("asyncio.Transport", transport)
        if self._lost is not None:
            self._transport.abort()
            return
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._core.feed(data)
        try:
            while (event := self._core.next_event()) is not None:
                self._take(event)
        except FlotaError as error:
            self._end(MqttLinkLost("the MQTT server broke its protocol", found=str(error)))
            self._flush()
            if self._transport is not None:
                self._transport.close()
            return
        self._flush()
        self._regulate()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits."""
        self._transport = None
        found = None if exc is None else str(exc)
        self._end(MqttLinkLost("the MQTT connection ended", found=found))
        self._gone.set()

    def tls_ended(self, shell: TlsShell, error: Exception | None) -> None:
        """Hear how the TLS handshake ended."""
        if error is not None:
            self._end(MqttLinkLost("no TLS connection to the MQTT server", found=str(error)))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _take(self, event: Connack | Publish | Suback | Acknowledgement) -> None:
        if isinstance(event, Publish):
            self._received.append(event)
            self._received_bytes += len(event.payload)
            self._arrived.set()
        elif isinstance(event, Connack):
            if event.code != 0:
                self._end(ConnectRefused(event.code))
            elif not self.opened.done():
                self.opened.set_result(None)
                self._set_timer()
        else:
            waiting = self._answers.pop(event.packet_id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(event)

    async def _answer(self, packet_id: int, what: str, timeout_s: float) -> Suback | Acknowledgement:
        waiting: asyncio.Future[Suback | Acknowledgement] = self._loop.create_future()
        self._answers[packet_id] = waiting
        self._flush()
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting
        except TimeoutError:
            raise PeerError(f"the MQTT server did not answer a {what}", expected=f"within {timeout_s:g} s") from None
        finally:
            if self._answers.pop(packet_id, None) is not None:
                self._core.give_up(packet_id)

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _flush(self) -> None:
        output = self._core.take_output(now=self._loop.time())
        if output and self._transport is not None:
            self._transport.writelines(output)

    def _regulate(self) -> None:
        pause = self._received_bytes > RECEIVED_MAX_BYTES
        if self._transport is None or pause is self._is_paused:
            return
        self._is_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _set_timer(self) -> None:
        deadline = self._core.next_deadline
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._time_passed)

    def _time_passed(self) -> None:
        try:
            self._core.deadline_passed(now=self._loop.time())
        except FlotaError as error:
            self._end(MqttLinkLost("the MQTT server is silent", found=str(error)))
            if self._transport is not None:
                self._transport.abort()
            return
        self._flush()
        self._set_timer()

    def _end(self, error: PeerError) -> None:
        """Note why it is over; the first reason counts."""
        if self._lost is not None:
            return
        self._lost = error
        if self._timer is not None:
            self._timer.cancel()
        if not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()  # whoever opens it may have given up
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(error)
        self._answers.clear()
        self._arrived.set()
