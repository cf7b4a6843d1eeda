"""Which address of this server a micro-RDK can use: it trusts the well-known certificate authorities only.

Source: docs/reference/viam.md, "Links".
"""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

import msgspec

from flota.errors import Refused
from flota.protocols.viam import check_offered_url
from flota.server.settings import PORT_MAX, ServerSettings

LINK_PATH: Final = "/viam/image.bin"

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def choose_base(settings: ServerSettings, *, asked_at: str, base_url: str | None) -> tuple[str, tuple[str, ...]]:
    """Return `scheme://host:port[/path]` for devices, and warnings.

    A device trusts the well-known certificate authorities only, so our own authority's https becomes our http (h2c).
    Raises `UnusableUrl`, and `Refused` where nothing is left that a device could use.
    """
    if base_url is not None:
        base = _with_port(base_url.rstrip("/"))
        check_offered_url(base + LINK_PATH)
        return base, _warnings(base, settings, chosen=True)
    base = _with_port((settings.public_url or asked_at).rstrip("/"))
    notes: tuple[str, ...] = ()
    if is_own_authority(base, settings):
        base, notes = _plain_instead(base, settings)
    check_offered_url(base + LINK_PATH)
    return base, (*notes, *_warnings(base, settings, chosen=False))


def is_own_authority(base: str, settings: ServerSettings) -> bool:
    """Whether devices would meet a certificate of our own authority there, which no micro-RDK knows."""
    parts = urlsplit(base)
    if parts.scheme != "https" or settings.https is None or settings.tls_cert is not None:
        return False
    return _https_port(settings) in (parts.port, None)


def _plain_instead(base: str, settings: ServerSettings) -> tuple[str, tuple[str, ...]]:
    port = _http_port(settings)
    if port is None:
        raise Refused(
            "a micro-RDK cannot check this server's certificate: it is of our own authority",
            expected="http, or a certificate of a well-known authority",
            found=base,
            hint="Turn --http on, or give --tls-cert and --tls-key, or the address of a proxy with --url.",
        )
    host = urlsplit(base).hostname or ""
    shown = f"[{host}]" if ":" in host else host
    note = "http instead of https: a micro-RDK does not know the certificate authority of this server"
    return f"http://{shown}:{port}", (note,)


def _with_port(base: str) -> str:
    """Return the address with its port named: a device takes 443 for one without, even for http."""
    try:
        parts = urlsplit(base)
        port = parts.port
    except ValueError:
        return base  # the check that follows says what is wrong
    if port is not None or parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        return base
    return parts._replace(netloc=f"{parts.netloc.rstrip(':')}:{_DEFAULT_PORTS[parts.scheme]}").geturl()


def _warnings(base: str, settings: ServerSettings, *, chosen: bool) -> tuple[str, ...]:
    found = []
    host = urlsplit(base).hostname or ""
    if _is_loopback(host):
        found.append(
            f"{host} is this machine only: no device elsewhere can reach it; give --url or start with --public-url"
        )
    if chosen and is_own_authority(base, settings):
        found.append("a micro-RDK will refuse the certificate there: it is of this server's own authority")
    if base.startswith("http://"):
        found.append("plain http: whoever is on the way can read and change the image; nobody on the device checks it")
    return tuple(found)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _http_port(settings: ServerSettings) -> int | None:
    return None if settings.http is None else settings.http.port or _recorded_port(settings, "http")


def _https_port(settings: ServerSettings) -> int | None:
    return None if settings.https is None else settings.https.port or _recorded_port(settings, "https")


def _recorded_port(settings: ServerSettings, scheme: str) -> int | None:
    """Return the port that was chosen for port 0, from the record of where this server listens."""
    try:
        record = msgspec.json.decode(settings.data.server_record.read_bytes(), type=dict[str, object])
        port = urlsplit(str(record.get(scheme))).port
    except (OSError, msgspec.DecodeError, ValueError):
        return None
    return port if port is not None and 0 < port <= PORT_MAX else None
