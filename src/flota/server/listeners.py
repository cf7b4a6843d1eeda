"""Where HTTP comes in: plain HTTP/1.1 and h2c on one port, TLS with h2 and HTTP/1.1 on another, in the running loop.

granian does the work, embedded once per listener (docs/adr/0010-embedded-granian.md). The listening sockets are ours:
that gives port 0, options that every accepted connection inherits, and a second granian on the same socket while the
first finishes, which is how a changed certificate comes into use without a closed door.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels
from granian.server.embed import Server as EmbeddedGranian

from flota.errors import FlotaError, InvalidInput
from flota.server.settings import Address
from flota.server.short_way import AnswerAtOnce, with_short_way
from flota.server.unacknowledged import kernel_tells
from flota.server.waiting import wait_for_any

if TYPE_CHECKING:
    from starlette.types import ASGIApp

BACKLOG: Final = 1024
"""Connections that wait to be accepted; the kernel's net.core.somaxconn may cap it."""

BACKPRESSURE: Final = 8192
"""Running requests per listener, event streams included; the next one waits silently."""

IDLE_MS: Final = 120_000
"""How long a connection may take for a request's header, and stay idle between two. An ESP32 that erases a whole slot
answers nothing for tens of seconds (docs/reference/esp-image.md): nothing of ours times out below 120 s."""

HEADERS_MAX_BYTES: Final = 16 * 1024
"""One request's header block over HTTP/2; granian's own default is 16 MiB."""

HTTP1_BUFFER_BYTES: Final = 64 * 1024
"""Read and write buffer of an HTTP/1.1 connection: bounds a request's header too (`limits` refuses from 16 KiB on)."""

HTTP2_SEND_BUFFER_BYTES: Final = 16 * 1024
"""Below so much unsent, a plain HTTP/2 stream opens its body's next piece (`server.api.file_bodies`). It is no bound on
a piece: a stream has at least one open. Five more wait in granian's queue, so a larger buffer gains nothing."""

HTTP2_TLS_SEND_BUFFER_BYTES: Final = 400 * 1024
"""The same over TLS, where granian's file loop has no queue: at 128 KiB a download cost a third more CPU."""

HTTP2_STREAMS: Final = 128
"""Requests at a time on one connection (RFC 9113 6.5.2 asks for at least 100)."""

FILE_THREADS: Final = 1
"""Threads that read files for whole downloads. A read is 128 KiB, mostly from memory: handing it to one of many threads
cost a tenth of the CPU of a plain download, and granian's own bound is 512 of them."""

UNACKNOWLEDGED_MS: Final = 300_000
"""A peer that acknowledges nothing, or keeps its window shut, for so long is cut off (tcp(7) TCP_USER_TIMEOUT)."""

UNSENT_MAX_BYTES: Final = 4 << 20
"""What the kernel takes for a plain connection beyond what is on its way (TCP_NOTSENT_LOWAT): that of a whole default
send buffer. Less costs h2c more CPU, 640 KiB a twelfth."""

UNSENT_UNTOLD_MAX_BYTES: Final = 640 * 1024
"""The same where the kernel does not tell what a peer has acknowledged. With more, on loopback, a whole 1 MiB image
vanishes into socket buffers at once, and a device that goes away in the middle looks like one that took it all; at
768 KiB it is still noticed. Networks other than loopback buffer far less anyway."""

KEEPALIVE_IDLE_S: Final = 120
KEEPALIVE_INTERVAL_S: Final = 30
KEEPALIVE_PROBES: Final = 6

READY_WITHIN_S: Final = 10.0
CERTIFICATE_LOOK_S: Final = 2.0
"""How often the certificate and key files are looked at for a change."""

_EXPERIMENTAL: Final = "Embedded server is experimental!"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: certificate chain (the server's first) and PKCS#8 key."""

    certificate: Path
    key: Path

    def fingerprint(self) -> bytes:
        """Return a digest of both files' content. Raises `InvalidInput` if one cannot be read."""
        digest = hashlib.sha256()
        for path in (self.certificate, self.key):
            try:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
            except OSError as error:
                raise InvalidInput(f"{path} cannot be read", found=error.strerror) from error
        return digest.digest()

    def check(self) -> None:
        """Raise `InvalidInput` unless key and certificate are well formed and belong together."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise InvalidInput(
                f"{self.certificate} and {self.key} cannot serve TLS",
                expected="a PEM certificate chain and its unencrypted PEM key",
                found=str(error),
            ) from error
        text = self.key.read_bytes()
        if b"-----BEGIN PRIVATE KEY-----" not in text:
            raise InvalidInput(
                f"{self.key} is not in PKCS#8 form",
                expected="BEGIN PRIVATE KEY",
                found=text.split(b"\n", 1)[0][:64].decode("ascii", "replace"),
                hint=f"Convert it: openssl pkcs8 -topk8 -nocrypt -in {self.key} -out new-key.pem",
            )


class Listener:
    """One listening socket and the granian that serves it.

    `at_once` is asked for each request before `app` is, in granian's own thread (`flota.server.short_way`).
    """

    def __init__(
        self, app: ASGIApp, address: Address, tls: TlsFiles | None = None, *, at_once: AnswerAtOnce | None = None
    ) -> None:
        self._app = app
        self._at_once = at_once
        self._wanted = address
        self._tls = tls
        self._fingerprint = b""
        self._socket: socket.socket | None = None
        self._running: tuple[_GranianOnSocket, asyncio.Task[None]] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._lost = asyncio.Event()

    @property
    def address(self) -> Address:
        """Where it listens really: with the port that was chosen for port 0."""
        if self._socket is None:
            return self._wanted
        host, port = self._socket.getsockname()[:2]
        return Address(host, port)

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "http" if self._tls is None else "https"

    async def start(self) -> None:
        """Listen. Raises `InvalidInput` if the address cannot be bound or the TLS files are unusable."""
        if self._tls is not None:
            self._tls.check()
            self._fingerprint = self._tls.fingerprint()
        self._socket = bind(self._wanted, plain=self._tls is None)
        self._running = self._spawn()

    async def reload_certificate(self) -> bool:
        """Use the TLS files again if their content changed; returns whether it did.

        Open connections finish with the old certificate. Unusable files raise `InvalidInput`; the old stay in use.
        """
        if self._tls is None or self._running is None:
            return False
        fingerprint = self._tls.fingerprint()
        if fingerprint == self._fingerprint:
            return False
        self._tls.check()
        self._fingerprint = fingerprint
        server, task = self._running
        self._running = self._spawn()
        _ask_to_stop(server)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return True

    async def wait_lost(self) -> None:
        """Return only when granian ended without having been asked to: nobody serves the socket any more."""
        await self._lost.wait()

    async def stop(self, grace_s: float) -> bool:
        """Accept no more, let running responses finish for up to `grace_s` seconds; returns whether all of them did."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._running is None:
            return True
        server, task = self._running
        self._running = None
        _ask_to_stop(server)
        _done, left = await asyncio.wait({task, *self._leaving}, timeout=grace_s)
        return not left

    def _spawn(self) -> tuple[_GranianOnSocket, asyncio.Task[None]]:
        assert self._socket is not None
        server = _GranianOnSocket(self._app, self._socket, self._tls)
        task = asyncio.create_task(server.run(self._at_once), name=f"granian {self.address}")
        task.add_done_callback(self._on_end)
        return server, task

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.error("listener.failed", listener=str(self.address), exc_info=task.exception())
        if self._running is not None and self._running[1] is task:
            self._lost.set()


def bind(address: Address, *, plain: bool) -> socket.socket:
    """Return a bound TCP socket with the options that its connections shall inherit. Raises `InvalidInput`."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(address, error) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address.is_wildcard else 1)
        for level, option, value in _connection_options(plain=plain):
            listening.setsockopt(level, option, value)
        listening.bind(where)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise _cannot_listen(address, error) from error
    return listening


class HasCertificate(Protocol):
    """A listener whose TLS files may change while it runs."""

    @property
    def address(self) -> Address:
        """Where it listens."""
        ...

    async def reload_certificate(self) -> bool:
        """Use the files again if their content changed; returns whether it did. Raises `InvalidInput`."""
        ...


async def watch_certificates(listeners: Sequence[HasCertificate], stop: asyncio.Event) -> None:
    """Take changed TLS files into use until `stop` is set. Wrong or half-written files are reported once."""
    complained = ""
    while not await wait_for_any(stop, timeout_s=CERTIFICATE_LOOK_S):
        for listener in listeners:
            try:
                if await listener.reload_certificate():
                    _log.info("tls.reloaded", listener=str(listener.address))
                    complained = ""
            except FlotaError as error:
                if str(error) != complained:
                    complained = str(error)
                    _log.error("tls.not_reloaded", listener=str(listener.address), error=complained)


def _connection_options(*, plain: bool) -> list[tuple[int, int, int]]:
    """Return socket options that Linux hands down from a listening socket to its connections; elsewhere what exists."""
    wanted = [
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", UNACKNOWLEDGED_MS),
    ]
    if plain:
        unsent = UNSENT_MAX_BYTES if kernel_tells() else UNSENT_UNTOLD_MAX_BYTES
        wanted.append((socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT", unsent))
    return [(level, getattr(socket, name), value) for level, name, value in wanted if hasattr(socket, name)]


def _cannot_listen(address: Address, error: OSError) -> InvalidInput:
    return InvalidInput(
        f"cannot listen at {address}",
        found=error.strerror,
        hint="Is another server running there? Choose another address, or port 0 for any free one.",
    )


def _ask_to_stop(server: Any) -> None:
    server.stop()


def _no_password() -> str:
    raise ValueError("the key is encrypted")


class _GranianOnSocket(EmbeddedGranian):
    """granian's embeddable server on a socket that stays ours, silent unless something is wrong."""

    def __init__(self, app: ASGIApp, listening: socket.socket, tls: TlsFiles | None) -> None:
        host, port = listening.getsockname()[:2]
        super().__init__(
            app,
            address=host,
            port=port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.auto,
            websockets=False,
            backlog=BACKLOG,
            backpressure=BACKPRESSURE,
            runtime_blocking_threads=FILE_THREADS,
            http1_settings=HTTP1Settings(header_read_timeout=IDLE_MS, max_buffer_size=HTTP1_BUFFER_BYTES),
            http2_settings=HTTP2Settings(
                keep_alive_interval=IDLE_MS,
                keep_alive_timeout=IDLE_MS // 1000,
                max_concurrent_streams=HTTP2_STREAMS,
                max_headers_size=HEADERS_MAX_BYTES,
                max_send_buffer_size=HTTP2_SEND_BUFFER_BYTES if tls is None else HTTP2_TLS_SEND_BUFFER_BYTES,
            ),
            log_level=LogLevels.warning,
            log_dictconfig=_GRANIAN_LOGGING,
            ssl_cert=None if tls is None else tls.certificate,
            ssl_key=None if tls is None else tls.key,
            ssl_protocol_min=SSLProtocols.tls12,
        )
        self._listening = listening

    async def run(self, at_once: AnswerAtOnce | None) -> None:
        """Serve until asked to stop."""
        serve: Any = self.serve  # granian's stub takes it for the one of its other servers
        await serve(with_short_way(self._spawn_asgi_worker, at_once))

    def _init_shared_socket(self) -> None:
        """Give the worker a descriptor of its own: it closes that one, our socket stays open."""
        holder: Any = SocketHolder  # granian's stub forgets the constructor
        holding: Any = self
        holding._shd = holder(os.dup(self._listening.fileno()), False, BACKLOG)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop the remark that embedding is experimental: our tests hold what it promises, the ADR names the risk."""
    return record.getMessage() != _EXPERIMENTAL


_GRANIAN_LOGGING: Final[dict[str, Any]] = {
    "incremental": True,  # without it dictConfig closes every handler of the process
    "formatters": {},
    "handlers": {},
    "loggers": {"_granian": {"propagate": True}, "granian.access": {"propagate": True}},
}
logging.getLogger("_granian").addFilter(_is_news)
