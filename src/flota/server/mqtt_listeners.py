"""Where MQTT comes in: plain on loopback, TLS with client certificates on another port, both on one endpoint.

The sockets get the same options as those of HTTP (`listeners.bind`). A changed certificate or set of client
authorities is in use for the next connection; open ones stay.
"""

from __future__ import annotations

import hashlib
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Final

import structlog

from flota.errors import InvalidInput
from flota.server.listeners import TlsFiles, bind
from flota.server.settings import Address
from flota.transports.mqtt_server import CONNECTIONS_MAX, MqttEndpoint
from flota.transports.mqtt_tls import server_context

DESCRIPTORS_BESIDE: Final = 2_048
"""File descriptors for everything but MQTT connections: HTTP, database, artifacts."""

_log = structlog.get_logger(__name__)


class MqttListener:
    """One listening socket of an endpoint. `authorities` gives the PEM of those that device certificates end in."""

    def __init__(
        self,
        endpoint: MqttEndpoint,
        address: Address,
        tls: TlsFiles | None = None,
        *,
        authorities: Callable[[], bytes] = bytes,
    ) -> None:
        self._endpoint = endpoint
        self._wanted = address
        self._tls = tls
        self._authorities = authorities
        self._fingerprint = b""
        self._context: ssl.SSLContext | None = None
        self._socket: socket.socket | None = None
        self._bound: Address | None = None

    @property
    def address(self) -> Address:
        """Where it listens really: with the port that was chosen for port 0."""
        return self._bound or self._wanted

    @property
    def scheme(self) -> str:
        """`mqtt` or `mqtts`."""
        return "mqtt" if self._tls is None else "mqtts"

    def bind(self) -> None:
        """Take the address. Raises `InvalidInput` if it cannot be had."""
        self._socket = bind(self._wanted, plain=False)
        host, port = self._socket.getsockname()[:2]
        self._bound = Address(host, port)

    async def start(self) -> None:
        """Listen. Raises `InvalidInput` if the address cannot be bound or the TLS files are unusable."""
        if self._tls is not None:
            await self.reload_certificate()
        if self._socket is None:
            self.bind()
        assert self._socket is not None
        await self._endpoint.listen(self._socket, tls=None if self._tls is None else self._current)
        self._socket = None  # the endpoint's now

    async def reload_certificate(self) -> bool:
        """Use the TLS files and the client authorities again if they changed; returns whether they did.

        Open connections go on with the old ones. Unusable files raise `InvalidInput`; the old stay in use.
        """
        if self._tls is None:
            return False
        authorities = self._authorities()
        fingerprint = self._tls.fingerprint() + hashlib.sha256(authorities).digest()
        if fingerprint == self._fingerprint:
            return False
        self._context = server_context(self._tls.certificate, self._tls.key, authorities)
        self._fingerprint = fingerprint
        return True

    def close(self) -> None:
        """Give back the address of a listener that was bound and never started."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _current(self) -> ssl.SSLContext:
        assert self._context is not None
        return self._context


def bind_unless_taken(listener: MqttListener) -> bool:
    """Bind a listener that nobody asked for; returns whether its address was free, and says so if it was not."""
    try:
        listener.bind()
    except InvalidInput as error:
        _log.warning(
            "mqtt.not_listening",
            listener=str(listener.address),
            error=str(error),
            hint=f"Name an address with --{listener.scheme} H:P, or switch it off with --no-{listener.scheme}.",
        )
        return False
    return True


def allow_descriptors(wanted: int = CONNECTIONS_MAX + DESCRIPTORS_BESIDE) -> int:
    """Raise this process's limit of open files as far as it may; returns how many MQTT connections that leaves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return CONNECTIONS_MAX if soft == resource.RLIM_INFINITY else max(soft - DESCRIPTORS_BESIDE, soft // 2)
