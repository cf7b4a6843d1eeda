"""The HTTP/2 client of micro-RDK: one connection, one GET, frames of 16,384 bytes, windows that open as data is taken.

Nothing but the settings of hyper on the device: no user agent, no range, no compression. While nobody takes a frame the
connection is not looked at, so pings stay unanswered, as on a chip that is erasing.
Source: docs/reference/viam.md; the protocol itself is python-hyper/h2.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol, Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import InvalidBodyLengthError, ProtocolError
from h2.settings import SettingCodes, Settings

from flota.errors import PeerError
from flota.protocols.peer_text import clean_text
from flota.protocols.viam import (
    HTTP2_CONNECTION_WINDOW_BYTES,
    HTTP2_FRAME_MAX_BYTES,
    HTTP2_HEADER_LIST_MAX_BYTES,
    HTTP2_STREAM_WINDOW_BYTES,
    DownloadAddress,
    Failure,
)
from flota.transports.http10 import connect_as_device

ALPN: Final = "h2"
CONNECT_LIMIT_S: Final = 30.0
"""For TCP and TLS together: the read time-out of TLS on the device."""

ANSWER_LIMIT_S: Final = 120.0
"""Ours: the device itself waits without a limit for the head of an answer."""

CLOSE_LIMIT_S: Final = 2.0
READ_BYTES: Final = 16 * 1024
FIRST_CONNECTION_WINDOW_BYTES: Final = 65_535
"""What a connection begins with, before the client opens it further (RFC 9113, 6.9.2)."""


class NoConnection(PeerError):
    """The connection could not be made; the device tries again a second later."""

    code = "viam-no-connection"


class ExchangeFailed(PeerError):
    """The exchange ended this run; `failure` says at which point."""

    code = "viam-exchange"

    def __init__(self, failure: Failure, found: str = "") -> None:
        super().__init__(failure.value, found=found or None)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """Status and headers of an answer, names in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]


class DownloadLink(Protocol):
    """A connection on which one file is fetched."""

    async def get(self) -> AnswerHead:
        """Ask for the target and return the answer's head. Raises `ExchangeFailed`."""

    async def next_frame(self, limit_s: float) -> bytes | None:
        """Return the data of the next frame, None at the end of the body. Raises `ExchangeFailed`."""

    async def close(self) -> None:
        """Drop the connection."""


OpenLink = Callable[[DownloadAddress, ssl.SSLContext], Awaitable[DownloadLink]]
"""Opens a connection. Raises `NoConnection`."""


class DeviceHttp2:
    """An open connection to `address`. Use `open`, `get`, `next_frame` until it gives None, and `close` in any case."""

    def __init__(self, address: DownloadAddress, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._address = address
        self._reader = reader
        self._writer = writer
        self._stream = 0
        self._events: deque[Event] = deque()
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="latin-1"))
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: HTTP2_STREAM_WINDOW_BYTES,
                SettingCodes.MAX_FRAME_SIZE: HTTP2_FRAME_MAX_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: HTTP2_HEADER_LIST_MAX_BYTES,
            },
        )
        del self._h2.local_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]  # a server's setting
        self._h2.decoder.max_header_list_size = HTTP2_HEADER_LIST_MAX_BYTES

    @classmethod
    async def open(cls, address: DownloadAddress, tls: ssl.SSLContext) -> Self:
        """Return a connection with its preface sent: with prior knowledge, or through TLS with ALPN `h2`.

        `tls` holds the certificates that the device knows. Raises `NoConnection`.
        """
        secure = tls if address.uses_tls else None
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                reader, writer = await connect_as_device(address.host, address.port, secure)
        except TimeoutError as error:
            raise NoConnection("no connection in time", expected=f"within {CONNECT_LIMIT_S:g} s") from error
        except (OSError, UnicodeError) as error:
            raise NoConnection(f"cannot connect to {address.authority}", found=clean_text(str(error))) from error
        link = cls(address, reader, writer)
        try:
            link._agree_on_http2()
            await link._begin()
        except OSError as error:
            await link.close()
            raise NoConnection(f"cannot connect to {address.authority}", found=clean_text(str(error))) from error
        except BaseException:
            await link.close()
            raise
        return link

    async def get(self) -> AnswerHead:
        """Ask for the target and return the answer's head. Raises `ExchangeFailed`."""
        self._stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "GET"),
            (":scheme", "https" if self._address.uses_tls else "http"),
            (":authority", self._address.authority),
            (":path", self._address.target),
        ]
        try:
            self._h2.send_headers(self._stream, headers, end_stream=True)
            await self._send()
            async with asyncio.timeout(ANSWER_LIMIT_S):
                while True:
                    event = await self._next_event(Failure.REQUEST)
                    if isinstance(event, ResponseReceived):
                        return _head_of(event)
                    if event is None:
                        raise ExchangeFailed(Failure.REQUEST, "the stream ended without an answer")
        except TimeoutError as error:
            raise ExchangeFailed(Failure.REQUEST, f"no answer within {ANSWER_LIMIT_S:g} s") from error
        except (OSError, ProtocolError) as error:
            raise ExchangeFailed(Failure.REQUEST, clean_text(str(error))) from error

    async def next_frame(self, limit_s: float) -> bytes | None:
        """Return the data of the next DATA frame, None at the end of the body; what is taken opens the windows again.

        Raises `ExchangeFailed` after `limit_s` seconds without a frame, or when stream or connection break.
        """
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    event = await self._next_event(Failure.CUT)
                    if event is None:
                        return None
                    if isinstance(event, DataReceived):
                        if event.flow_controlled_length:
                            self._h2.acknowledge_received_data(event.flow_controlled_length, self._stream)
                            await self._send()
                        if event.data:
                            return event.data
        except TimeoutError as error:
            raise ExchangeFailed(Failure.STALLED) from error
        except (OSError, ProtocolError) as error:
            raise ExchangeFailed(Failure.CUT, clean_text(str(error))) from error

    async def close(self) -> None:
        """Drop the connection, as the device does."""
        self._writer.close()
        try:
            with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
                async with asyncio.timeout(CLOSE_LIMIT_S):
                    await self._writer.wait_closed()
        finally:  # a server that does not say goodbye, or power that goes meanwhile: nothing stays open
            self._writer.transport.abort()

    def _agree_on_http2(self) -> None:
        if not self._address.uses_tls:
            return
        secured = self._writer.get_extra_info("ssl_object")
        chosen = secured.selected_alpn_protocol() if secured is not None else None
        if chosen != ALPN:
            raise NoConnection("the server does not speak HTTP/2", expected=f"ALPN {ALPN}", found=chosen or "none")

    async def _begin(self) -> None:
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(HTTP2_CONNECTION_WINDOW_BYTES - FIRST_CONNECTION_WINDOW_BYTES)
        await self._send()

    async def _send(self) -> None:
        self._writer.write(self._h2.data_to_send())
        await self._writer.drain()

    async def _next_event(self, at_a_break: Failure) -> Event | None:
        """Return the next event of our stream, None at its end. Raises `ExchangeFailed` with `at_a_break`."""
        while True:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, ConnectionTerminated):
                    if event.error_code != ErrorCodes.NO_ERROR:
                        raise ExchangeFailed(at_a_break, f"GOAWAY {_code(event.error_code)}")
                elif getattr(event, "stream_id", None) == self._stream:
                    if isinstance(event, StreamReset):
                        raise ExchangeFailed(at_a_break, f"stream reset: {_code(event.error_code)}")
                    return None if isinstance(event, StreamEnded) else event
            await self._receive(at_a_break)

    async def _receive(self, at_a_break: Failure) -> None:
        data = await self._reader.read(READ_BYTES)
        if not data:
            raise ExchangeFailed(at_a_break, "the connection closed")
        try:
            self._events.extend(self._h2.receive_data(data))
        except InvalidBodyLengthError as error:
            failure = Failure.OVERFLOW if error.actual_length > error.expected_length else Failure.CUT
            raise ExchangeFailed(failure, f"{error.actual_length} of {error.expected_length} bytes") from error
        finally:
            await self._send()


def device_tls(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return the context with the device's ALPN; the certificates that it trusts are the caller's choice."""
    context.set_alpn_protocols([ALPN])
    return context


def _head_of(event: ResponseReceived) -> AnswerHead:
    headers = tuple((_text(name), _text(value)) for name, value in event.headers or ())
    status = next((value for name, value in headers if name == ":status"), "")
    return AnswerHead(int(status) if status.isascii() and status.isdecimal() else 0, headers)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _code(code: ErrorCodes | int | None) -> str:
    return code.name if isinstance(code, ErrorCodes) else str(code)
