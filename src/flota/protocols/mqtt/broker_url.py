"""Where another broker is, as one text. Source: docs/reference/mqtt.md, "Another broker"."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from flota.errors import InvalidInput

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """Where a broker is: `mqtt://` or `mqtts://USER:PASSWORD@HOST:PORT`, with `?ca=FILE` for its own authority."""

    scheme: str
    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: str | None = None
    """Path of a file with certificates, PEM."""

    def __str__(self) -> str:
        """Return it without the password."""
        user = "" if self.user is None else f"{self.user}@"
        return f"{self.scheme}://{user}{self.host}:{self.port}"


def parse_broker_url(text: str) -> BrokerUrl:
    """Return what a URL says. Raises `InvalidInput`, without repeating a password."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    options = parse_qs(parts.query, keep_blank_values=True)
    ca = options.pop("ca", [None])[-1]
    if parts.scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/") or parts.fragment or options:
        raise InvalidInput(
            "not the address of a broker",
            expected="mqtt://[USER:PASSWORD@]HOST[:PORT] or mqtts://…[?ca=FILE]",
            found=f"a URL with scheme {parts.scheme or 'none'!r}",
        )
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return BrokerUrl(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], user, password, ca or None)
