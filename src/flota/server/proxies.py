"""What a reverse proxy in front of the server may tell: where the client asked, from where, and who it is.

Only a proxy that the settings name is believed; the headers of all others are as if they were not there.
Source: docs/reference/hawkbit-ddi.md, "Behind a proxy"; RFC 7239 (Forwarded).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flota.errors import InvalidInput
from flota.server.settings import PORT_MAX, Network, parse_host

FORWARDED_MAX_LEN: Final = 2048
"""Characters of one of these headers that are looked at."""

_PAIR = re.compile(r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^;,"\s]*)')
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)*\Z")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What the proxy next to us says about the request; None is not said."""

    client: str | None = None
    scheme: str | None = None
    authority: str | None = None
    prefix: str = ""


def is_from(scope: Mapping[str, Any], networks: Sequence[Network]) -> bool:
    """Whether the connection comes from one of these networks."""
    peer = scope.get("client")
    if not networks or peer is None:
        return False
    try:
        address = ipaddress.ip_address(peer[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in networks)


def forwarded(scope: Mapping[str, Any], trusted: Sequence[Network]) -> Forwarded:
    """Return what a trusted proxy says; nothing of what anybody else says.

    The last entry of a list counts: it is the one that the proxy next to us has added. `Forwarded` wins over
    X-Forwarded-*. Raises `InvalidInput` for a host that could not stand in a URL.
    """
    if not is_from(scope, trusted):
        return Forwarded()
    standard = _last(scope, b"forwarded")
    pairs = {name.lower(): _unquoted(value) for name, value in _PAIR.findall(standard)} if standard else {}
    scheme = pairs.get("proto") or _last(scope, b"x-forwarded-proto")
    host = pairs.get("host") or _last(scope, b"x-forwarded-host")
    port = None if pairs.get("host") else _last(scope, b"x-forwarded-port")
    prefix = _last(scope, b"x-forwarded-prefix").rstrip("/")
    if scheme and scheme.lower() not in ("http", "https"):
        raise InvalidInput("the proxy names no scheme of ours", expected="http or https", found=repr(scheme[:20]))
    if not _PREFIX.match(prefix):
        raise InvalidInput("the proxy names no path prefix", found=repr(prefix[:80]))
    return Forwarded(
        client=_address(pairs.get("for") or _last(scope, b"x-forwarded-for")),
        scheme=scheme.lower() if scheme else None,
        authority=_authority(host, port) if host else None,
        prefix=prefix,
    )


def _last(scope: Mapping[str, Any], name: bytes) -> str:
    values = [value for key, value in scope["headers"] if key == name]
    if not values:
        return ""
    return str(values[-1][-FORWARDED_MAX_LEN:].decode("latin-1")).rpartition(",")[2].strip()


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _authority(host: str, port: str | None) -> str:
    check_authority(host)
    has_port = host.rpartition("]")[2].count(":") == 1
    if port and not has_port and port.isascii() and port.isdecimal() and 0 < int(port[:6]) <= PORT_MAX:
        return f"{host}:{port}"
    return host


def check_authority(authority: str) -> None:
    """Raise `InvalidInput` unless this host[:port] can be written into a URL."""
    name, separator, port = authority.partition("]:") if authority.startswith("[") else authority.partition(":")
    if separator and not (port.isascii() and port.isdecimal()):
        raise InvalidInput("the Host header has no usable port", found=repr(authority[:80]))
    parse_host(name.removeprefix("[").removesuffix("]"))


def _address(text: str) -> str | None:
    """Return the address in `for=` or X-Forwarded-For, its port left out; None for what is none (`unknown`, `_x`)."""
    bare = text.strip()
    if bare.startswith("["):
        bare = bare[1:].partition("]")[0]
    elif bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return None
