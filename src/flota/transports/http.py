"""HTTP clients as devices and tools use them: no proxy from the environment, no surprise redirects, explicit trust."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path
from typing import Final

import httpx

from flota import __version__
from flota.errors import InvalidInput

CONNECT_LIMIT_S: Final = 10.0
SILENCE_LIMIT_S: Final = 120.0
"""The longest pause in an answer: as long as a server lets an erasing device be silent (docs/reference/server.md)."""

USER_AGENT: Final = f"flota/{__version__}"


def tls_context(cacert: Path | None) -> ssl.SSLContext:
    """Return a context that trusts the certificates in the PEM file `cacert`; None = the system's.

    Raises `InvalidInput` if the file cannot be read or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=None if cacert is None else str(cacert))
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"cannot use the CA file {cacert}", found=str(error)) from error


def http_client(
    *,
    cacert: Path | None = None,
    http2: bool = False,
    user_agent: str = USER_AGENT,
    silence_limit_s: float = SILENCE_LIMIT_S,
    tls: bool = True,
) -> httpx.AsyncClient:
    """Return a client that follows no redirect and reads no proxy setting; close it with `async with`.

    With `tls` False it trusts nobody: for who speaks plain HTTP only, and spares the system's certificates.
    """
    if not tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    elif cacert is None:
        context = _system_context(http2=http2)
    else:
        context = tls_context(cacert)
    return httpx.AsyncClient(
        verify=context,
        http2=http2,
        trust_env=False,
        follow_redirects=False,
        headers={"user-agent": user_agent, "accept-encoding": "identity"},
        timeout=httpx.Timeout(silence_limit_s, connect=CONNECT_LIMIT_S),
        limits=httpx.Limits(max_connections=4, max_keepalive_connections=2),
    )


@functools.cache
def _system_context(*, http2: bool) -> ssl.SSLContext:
    """Return one context for all clients of this process: reading the system's certificates takes 40 ms and a megabyte.

    There is one for each set of versions: what a connection offers (ALPN) stands in its context.
    """
    context = tls_context(None)
    context.set_alpn_protocols(["http/1.1", "h2"] if http2 else ["http/1.1"])
    return context
