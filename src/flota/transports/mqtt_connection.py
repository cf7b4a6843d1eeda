"""One connection of an MQTT endpoint: bytes to the pure core, what it says to the dialect, and back.

Source: docs/reference/mqtt.md, "The endpoint".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

import structlog

from flota.errors import FlotaError
from flota.protocols.mqtt.dialect import Identity, Peer
from flota.protocols.mqtt.errors import ProtocolViolation
from flota.protocols.mqtt.packets import SUBACK_FAILURE, Connect, ConnectReturn, Publish, Subscribe, Unsubscribe
from flota.protocols.mqtt.server_connection import ServerConnection
from flota.protocols.mqtt.topics import is_valid_filter, is_valid_topic
from flota.protocols.peer_text import clean_text

if TYPE_CHECKING:
    from flota.transports.mqtt_server import MqttEndpoint

CLIENT_ID_MAX_LEN: Final = 128
"""As AWS has it; bytes of UTF-8."""

_NOBODY: Final = Peer("")
_log = structlog.get_logger(__name__)


class ServedConnection(asyncio.Protocol):
    """The protocol object of one connection, and the `MqttClient` that the dialect sees."""

    __slots__ = (
        "_client_id",
        "_core",
        "_drained",
        "_endpoint",
        "_identity",
        "_is_closing",
        "_is_paused",
        "_is_working",
        "_peer",
        "_task",
        "_transport",
        "was_let_in",
    )

    def __init__(self, endpoint: MqttEndpoint, connect_within_s: float) -> None:
        self._endpoint = endpoint
        self._core = ServerConnection(
            endpoint.limits.connection, now=endpoint.clock(), connect_within_s=connect_within_s
        )
        self._core.holder = self
        self._transport: asyncio.Transport | None = None
        self._peer = _NOBODY
        self._identity: Identity | None = None
        self._client_id = ""
        self._task: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._is_working = self._is_paused = self._is_closing = False
        self.was_let_in = False

    # --- MqttClient ---------------------------------------------------------------------------------------------------

    @property
    def client_id(self) -> str:
        """The id it connected with, or the one it was given."""
        return self._client_id

    @property
    def identity(self) -> Identity:
        """Who it is."""
        assert self._identity is not None
        return self._identity

    @property
    def peer(self) -> Peer:
        """Where it came from."""
        return self._peer

    @property
    def is_open(self) -> bool:
        """Whether what is sent still goes anywhere."""
        return self._core.is_open and not self._is_closing

    def answer(self, topic: str | bytes, payload: bytes, *, qos: int | None = None) -> None:
        """Send to this connection alone."""
        self.answer_all(topic, (payload,), qos=qos)

    def answer_all(self, topic: str | bytes, payloads: Iterable[bytes], *, qos: int | None = None) -> None:
        """Send several messages to one topic."""
        core = self._core
        if not core.is_open or self._is_closing:
            return
        name = topic.encode("utf-8") if isinstance(topic, str) else topic
        dropped = core.session.dropped
        core.send_all(name, payloads, qos=core.answer_qos(name) if qos is None else qos)
        self._endpoint.counters.dropped_answers += core.session.dropped - dropped
        if not self._is_working:
            self._flush()

    async def ask(self, topic: str, payload: bytes, *, timeout_s: float) -> bool:
        """Send at QoS 1; return whether the PUBACK came in time."""
        if not self.is_open:
            return False
        acknowledged = asyncio.Event()
        session = self._core.session
        packet_id = self._core.send_watched(topic.encode("utf-8"), payload, acknowledged.set)
        if packet_id is None:
            return False
        self.flush_soon()
        try:
            async with asyncio.timeout(timeout_s):
                await acknowledged.wait()
        except TimeoutError:
            return False
        finally:
            session.unwatch(packet_id)
        return True

    async def drain(self) -> None:
        """Return once little is unsent. Raises `ConnectionError` when the connection is gone."""
        if self._core.is_congested and self.is_open:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)
        if not self.is_open:
            raise ConnectionResetError(f"client {self._client_id!r} is gone")

    def close(self, reason: str) -> None:
        """End the connection after what was sent."""
        if self._is_closing or self._transport is None:
            return
        if self._identity is not None:
            _log.info("mqtt.closed", client=clean_text(self._client_id), reason=reason)
        self._flush()
        self._is_closing = True
        self._transport.close()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, unless it is turned away."""
        plain = not self.was_let_in
        if plain and not self._endpoint.lets_in(transport):
            return
        self.was_let_in = True
        self._transport = cast("asyncio.Transport", transport)
        limits = self._endpoint.limits
        self._transport.set_write_buffer_limits(limits.output_high, limits.output_low)
        tls = None if plain else transport.get_extra_info("ssl_object")
        self._peer = Peer(
            address_of(transport),
            encrypted=not plain,
            certificate=None if tls is None else tls.getpeercert(binary_form=True),
            alpn=None if tls is None else tls.selected_alpn_protocol(),
        )
        self._endpoint.add(self)

    def data_received(self, data: bytes) -> None:
        """Work off what came."""
        if self._transport is None or self._is_closing:
            return
        self._core.feed(data, now=self._endpoint.clock())
        self._work()

    def eof_received(self) -> bool:
        """Close: a client that does not send any more is gone."""
        return False

    def pause_writing(self) -> None:
        """Read nothing more from a client that does not read."""
        self._core.set_congested(congested=True)
        self._regulate()

    def resume_writing(self) -> None:
        """Go on with a client that reads again."""
        self._core.set_congested(congested=False)
        self._release()
        if self._transport is not None and not self._is_closing:
            self._work()

    def connection_lost(self, exc: Exception | None) -> None:
        """Publish the will where one is due, and tell the dialect."""
        if self._transport is None:
            return
        self._transport = None
        endpoint = self._endpoint
        endpoint.remove(self)
        self._release()
        will = endpoint.core.close_session(self._core, now=endpoint.clock())
        self._is_closing = True
        if self._identity is None:
            return
        endpoint.count_admitted(-1)
        try:
            later = None if will is None or endpoint.is_stopping else endpoint.dialect.receive(self, will)
            if later is not None:
                self._task = endpoint.start(self._finish(later))
            endpoint.dialect.gone(self)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not stop the others
            self._crashed(error)

    # --- for the endpoint ---------------------------------------------------------------------------------------------

    def flush_soon(self) -> None:
        """Send what the core gathered, now or at the end of what is being worked off."""
        if not self._is_working:
            self._flush()

    def abort(self) -> None:
        """Cut off."""
        if self._transport is not None:
            self._is_closing = True
            self._transport.abort()

    def check_deadline(self, now: float) -> None:
        """Cut off a client that was silent for too long; not one that waits for us, nor one whose window is shut.

        That one is TCP's to judge: a device that erases its flash reads nothing for a while (docs/reference/mqtt.md).
        """
        deadline = self._core.deadline
        if deadline is None or now < deadline or (self._is_paused and self._core.is_open):
            return
        self._endpoint.counters.timed_out += 1
        if self._identity is not None:
            _log.info("mqtt.silent", client=clean_text(self._client_id))
        self.abort()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Work off event after event, as long as none has to be waited for and the client reads its answers."""
        if self._is_working:
            return
        core, high = self._core, self._endpoint.limits.output_high
        self._is_working = True
        try:
            while self._task is None and not (core.is_congested or self._is_closing or self._endpoint.is_stopping):
                event = core.next_event()
                if event is None:
                    break
                self._handle(event)
                if core.output_bytes >= high:
                    self._flush()  # only what was written can tell that the client does not read
        except FlotaError as error:
            self._violated(error)
        except Exception as error:  # noqa: BLE001 - one connection ends, the server goes on
            self._crashed(error)
        finally:
            self._is_working = False
        self._flush()
        self._regulate()

    def _handle(self, event: object) -> None:
        if isinstance(event, Publish):
            self._published(event)
        elif isinstance(event, Connect):
            self._wait_for(self._admit(event))
        elif isinstance(event, Subscribe):
            self._subscribe(event)
        elif isinstance(event, Unsubscribe):
            self._check_count(event.filters)
            self._endpoint.core.unsubscribe(self._core, event)
        elif self._transport is not None:  # DISCONNECT
            self._is_closing = True
            self._transport.close()

    def _published(self, publish: Publish) -> None:
        endpoint = self._endpoint
        if publish.qos == 2:
            endpoint.counters.ignored_qos_2 += 1
            return
        if not is_valid_topic(publish.topic):
            raise ProtocolViolation("a topic that is too long or too deep")
        endpoint.counters.received += 1
        self._core.acknowledge(publish)
        later = endpoint.dialect.receive(self, publish)
        if later is not None:
            self._wait_for(later)

    def _subscribe(self, subscribe: Subscribe) -> None:
        self._check_count(subscribe.filters)
        if any(qos == 2 for _, qos in subscribe.filters):
            self._endpoint.counters.ignored_qos_2 += 1
            return
        may = self._endpoint.dialect.may_subscribe
        codes = [
            qos if is_valid_filter(text) and may(self, text) else SUBACK_FAILURE for text, qos in subscribe.filters
        ]
        self._endpoint.core.subscribe(self._core, subscribe, codes)

    def _check_count(self, filters: tuple[object, ...]) -> None:
        most = self._endpoint.limits.connection.subscriptions
        if len(filters) > most:
            raise ProtocolViolation("too many filters in one packet", expected=f"at most {most}", found=len(filters))

    async def _admit(self, connect: Connect) -> None:
        endpoint = self._endpoint
        outcome = _refusal_of(connect) or await endpoint.dialect.admit(connect, self._peer)
        if self._transport is None or self._is_closing or endpoint.is_stopping:
            return
        if isinstance(outcome, ConnectReturn):
            endpoint.counters.refused += 1
            _log.info(
                "mqtt.refused", client=clean_text(connect.client_id), code=outcome.name, address=self._peer.address
            )
            self._core.refuse(outcome)
            self._flush()
            self._is_closing = True
            self._transport.close()
            return
        self._identity = outcome
        if self._peer.certificate is not None:
            self._peer = replace(self._peer, certificate=None)
        self._client_id = connect.client_id or endpoint.new_client_id()
        endpoint.counters.admitted += 1
        endpoint.count_admitted(1)
        opened = endpoint.core.open_session(
            self._core, outcome.key, self._client_id, clean=connect.clean_session, now=endpoint.clock()
        )
        if opened.replaced is not None:
            cast("ServedConnection", opened.replaced.holder).close("taken over by a new connection with its client id")
        self._flush()
        endpoint.dialect.connected(self)

    def _wait_for(self, later: Awaitable[None]) -> None:
        self._task = self._endpoint.start(self._finish(later))

    async def _finish(self, later: Awaitable[None]) -> None:
        """Wait for one request, then go on with what came meanwhile."""
        try:
            await later
        except ConnectionError:
            pass  # the client went while it was being answered
        except FlotaError as error:
            self._violated(error)
        except Exception as error:  # noqa: BLE001 - one connection ends, the server goes on
            self._crashed(error)
        finally:
            self._task = None
        if self._transport is not None and not self._is_closing:
            self._work()

    def _violated(self, error: FlotaError) -> None:
        self._endpoint.counters.violations += 1
        if self._identity is not None:
            _log.info("mqtt.violation", client=clean_text(self._client_id), error=clean_text(str(error)))
        self._end()

    def _crashed(self, error: Exception) -> None:
        self._endpoint.counters.crashes += 1
        _log.error("mqtt.crashed", client=clean_text(self._client_id), exc_info=error)
        self._end()

    def _end(self) -> None:
        if self._transport is not None and not self._is_closing:
            self._flush()
            self._is_closing = True
            self._transport.close()

    def _flush(self) -> None:
        transport = self._transport
        if transport is None or not self._core.has_output or self._is_closing:
            return
        output = self._core.take_output()
        if len(output) == 1:
            transport.write(output[0])
        else:
            transport.writelines(output)
        if self._core.is_congested and transport.get_write_buffer_size() > self._endpoint.limits.output_max:
            _log.info("mqtt.reads_nothing", client=clean_text(self._client_id))
            self.abort()

    def _regulate(self) -> None:
        """Read from the client only if what it sends can be worked off."""
        pause = self._task is not None or self._core.is_congested
        if pause is self._is_paused or self._transport is None or self._is_closing:
            return
        self._is_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _release(self) -> None:
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None


def _refusal_of(connect: Connect) -> ConnectReturn | None:
    """Return the code of a CONNECT that no dialect needs to look at."""
    if connect.level != 4:
        return ConnectReturn.UNACCEPTABLE_PROTOCOL
    if len(connect.client_id.encode("utf-8")) > CLIENT_ID_MAX_LEN or not (connect.client_id or connect.clean_session):
        return ConnectReturn.IDENTIFIER_REJECTED
    if connect.will is not None and not is_valid_topic(connect.will.topic):
        return ConnectReturn.NOT_AUTHORISED
    return None


def address_of(transport: asyncio.BaseTransport) -> str:
    """Return the peer's IP address; one of IPv4 that came in over IPv6 as what it is."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]).removeprefix("::ffff:") if peer else ""
