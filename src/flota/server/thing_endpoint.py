"""Where things connect, as it is written into their firmware: AWS IoT's "endpoint"."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flota.errors import FlotaError, NotFound
from flota.server.certificate_authority import CertificateAuthority
from flota.trust.certificates import pack_certificates, parse_certificates

if TYPE_CHECKING:
    from pathlib import Path

    from flota.server.context import ServerContext


def thing_endpoint(context: ServerContext) -> tuple[str, int, str | None]:
    """Return host name, port and, in PEM, the root that things trust the server by (None: not known here).

    The host is that of `--public-url`, else the first `--name`, else this machine itself. Raises `NotFound` if nothing
    listens for things.
    """
    settings = context.settings
    if settings.mqtts is None:
        raise NotFound("this server does not listen for things", hint="Start it with --mqtts HOST:PORT.")
    named = urlsplit(settings.public_url).hostname if settings.public_url is not None else None
    host = named or (settings.names[0] if settings.names else "localhost")
    port = context.mqtts_port or settings.mqtts.port
    if settings.tls_cert is None:
        return host, port, _readable(CertificateAuthority(settings.data.certificates).root_certificate)
    return host, port, _root_in(settings.tls_cert)


def _readable(path: Path) -> str | None:
    try:
        return path.read_text("ascii")
    except OSError:
        return None


def _root_in(path: Path) -> str | None:
    """Return the last certificate of a chain if it is its own issuer: most chains leave the root out."""
    try:
        last = parse_certificates(path.read_bytes())[-1]
    except (OSError, FlotaError):
        return None
    return pack_certificates(last).decode("ascii") if last.issuer == last.subject else None
