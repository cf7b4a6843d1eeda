"""TLS for thousands of connections: `ssl.MemoryBIO` between a plain transport and a protocol, on any event loop.

asyncio's own TLS transport keeps a buffer of 256 KiB for each connection; this keeps what OpenSSL needs and nothing
else. Why our own, and what it weighs: docs/adr/0017-own-mqtt-endpoint.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, cast

from flota.errors import InvalidInput

ALPN: Final = ("x-amzn-mqtt-ca", "mqtt")
"""What AWS's devices offer on port 443: with a client certificate, and with other credentials."""

TICKETS: Final = 1
"""TLS 1.3 session tickets for each handshake; OpenSSL's default of two is for browsers."""

RECORD_MAX_BYTES: Final = 16 * 1024
"""Plain bytes of one TLS record (RFC 8446 5.1)."""

SHAKEN_MAX_BYTES: Final = 512
"""Bytes of a handshake that OpenSSL is given at a time. Its memory BIOs keep the room that they have needed once for as
long as the connection lasts: so none of them ever needs much (docs/adr/0017-own-mqtt-endpoint.md)."""

PIECE_MAX_BYTES: Final = 4096 + 256
"""The same after the handshake, both ways: a block of 4 KiB and its head are one record."""


def server_context(certificate: Path, key: Path, authorities: bytes = b"") -> ssl.SSLContext:
    """Return a context for TLS 1.2 and above with these PEM files.

    With `authorities` (PEM) a client is asked for a certificate; one that it sends has to end in one of them, which
    may be a root, an intermediate, or a device's own. Raises `InvalidInput` for what cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = TICKETS
    context.set_alpn_protocols(list(ALPN))
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise InvalidInput(
            f"{certificate} and {key} cannot serve TLS",
            expected="a PEM certificate chain and its unencrypted PEM key",
            found=str(error),
        ) from error
    if authorities:
        try:
            context.load_verify_locations(cadata=authorities.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise InvalidInput("not PEM certificates of client authorities", found=str(error)) from error
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


class TlsShell(asyncio.Transport, asyncio.Protocol):
    """Sits between a plain transport, to which it is the protocol, and a protocol, to which it is the transport.

    The inner protocol hears `connection_made` when the handshake is done. `on_end(error)` is called once: with None
    then, or with what went wrong; the connection is closed by then and the inner protocol hears nothing.
    """

    __slots__ = ("_incoming", "_inner", "_is_paused", "_on_end", "_outgoing", "_raw", "_tls", "_waiting")

    def __init__(
        self,
        context: ssl.SSLContext,
        inner: asyncio.Protocol,
        *,
        on_end: Callable[[TlsShell, Exception | None], None],
        server_side: bool,
        server_name: str | None = None,
    ) -> None:
        super().__init__()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )
        self._inner = inner
        self._on_end: Callable[[TlsShell, Exception | None], None] | None = on_end
        self._raw: asyncio.Transport | None = None
        self._is_paused = False
        self._waiting = b""
        """What came in and waits until the inner protocol reads on."""

    # --- towards the plain transport ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._raw = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._shake()

    def data_received(self, data: bytes) -> None:
        """Decrypt, or go on with the handshake."""
        if self._waiting:
            self._waiting += data
            return
        at, size = 0, len(data)
        while at < size and not self.is_closing():
            if self._is_paused:
                self._waiting = bytes(data[at:])
                return
            is_shaking = self._on_end is not None
            until = at + (SHAKEN_MAX_BYTES if is_shaking else PIECE_MAX_BYTES)
            self._incoming.write(data if at == 0 and until >= size else data[at:until])
            at = until
            if is_shaking:
                self._shake()
            else:
                self._deliver()

    def eof_received(self) -> bool:
        """Close: half a TLS connection is of no use."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self._raw = None
        if self._on_end is not None:
            self._end_handshake(exc or ConnectionResetError("closed during the TLS handshake"))
        else:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        if self._on_end is None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        if self._on_end is None:
            self._inner.resume_writing()

    # --- towards the inner protocol -----------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        raw = self._raw
        if raw is None or raw.is_closing():
            return
        sealed = []
        try:
            for start in range(0, len(data), PIECE_MAX_BYTES):
                self._tls.write(data if len(data) <= PIECE_MAX_BYTES else data[start : start + PIECE_MAX_BYTES])
                sealed.append(self._outgoing.read())
        except ssl.SSLError:
            raw.abort()
            return
        raw.writelines(sealed)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Encrypt and send, joined, in records of `PIECE_MAX_BYTES`."""
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """Send what is left and a close_notify, then close."""
        raw = self._raw
        if raw is None or raw.is_closing():
            return
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()  # does not wait for the answer: it says that it would
        self._send()
        raw.close()

    def abort(self) -> None:
        """Close at once."""
        if self._raw is not None:
            self._raw.abort()

    def is_closing(self) -> bool:
        """Whether it is closed or about to be."""
        return self._raw is None or self._raw.is_closing()

    def pause_reading(self) -> None:
        """Deliver nothing for now."""
        self._is_paused = True
        if self._raw is not None:
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Deliver again, first what is here already."""
        self._is_paused = False
        if self._raw is not None and not self._raw.is_closing():
            self._raw.resume_reading()
            asyncio.get_running_loop().call_soon(self._go_on)

    def get_write_buffer_size(self) -> int:
        """Return how many encrypted bytes are not sent."""
        return 0 if self._raw is None else self._raw.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Pass it on."""
        if self._raw is not None:
            self._raw.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return `ssl_object`, or what the plain transport knows."""
        if name == "ssl_object":
            return self._tls
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return
        except (ssl.SSLError, ValueError) as error:
            self._send()  # the alert
            raw = self._raw
            self._end_handshake(error)
            if raw is not None:
                raw.close()
            return
        self._send()
        self._end_handshake(None)
        self._inner.connection_made(self)
        self._deliver()

    def _end_handshake(self, error: Exception | None) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self, error)
        if error is not None:
            self._inner = asyncio.Protocol()  # it never was connected

    def _go_on(self) -> None:
        """Deliver what is in OpenSSL's hands, then what waited for that."""
        self._deliver()
        if not self._is_paused and self._raw is not None:
            waiting, self._waiting = self._waiting, b""
            self.data_received(waiting)

    def _deliver(self) -> None:
        tls, incoming = self._tls, self._incoming
        while not self._is_paused and self._raw is not None and (incoming.pending or tls.pending()):
            try:
                data = tls.read(RECORD_MAX_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError:  # not ours to explain: the peer sends what is no TLS any more
                self._send()
                self._raw.abort()
                return
            if not data:  # close_notify
                self.close()
                return
            self._inner.data_received(data)
        self._send()  # what reading may bring about: an answer to a key update

    def _send(self) -> None:
        if self._outgoing.pending and self._raw is not None:
            self._raw.write(self._outgoing.read())


def _no_password() -> str:
    raise ValueError("the key is encrypted")
