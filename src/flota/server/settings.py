"""What a running server was told: addresses, names, files and limits, parsed once at start-up."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from flota.errors import InvalidInput
from flota.fleet.scope import DEFAULT_TENANT
from flota.protocols.aws_ota import DataProtocol
from flota.protocols.aws_streams import JsonPayload
from flota.protocols.mqtt.bridge_rules import BridgeRule
from flota.protocols.mqtt.broker_url import BrokerUrl

DEFAULT_HTTP: Final = "127.0.0.1:8080"
DEFAULT_HTTPS: Final = "127.0.0.1:8443"
DEFAULT_MQTT: Final = "127.0.0.1:1883"
DEFAULT_MQTTS: Final = "127.0.0.1:8883"
PORT_MAX: Final = 65_535
HOST_NAME_MAX_LEN: Final = 253
"""RFC 1035 2.3.4: 255 octets on the wire are 253 characters of text."""

MEBIBYTE: Final = 1 << 20
DEFAULT_MAX_ARTIFACT_BYTES: Final = 256 * MEBIBYTE
"""Larger than any microcontroller image; a Linux image of a gateway may need more, then raise it."""

DEFAULT_DEVICE_REQUESTS_PER_S: Final = 0.5
"""How often one device may ask at the update URLs in the long run; real sketches ask every few minutes."""

DEFAULT_VIAM_QUIET_S: Final = 180.0
"""How long a micro-RDK may be quiet after it took an image before that counts as success (docs/reference/viam.md)."""

DEFAULT_POLL_JITTER_PERCENT: Final = 10
"""How far the time after which a device is to come back may lie from its type's interval."""

DEFAULT_URL_LIFETIME_S: Final = 1_800
"""How long the address of a file in a job document works: what AWS gives OTA updates."""

DEFAULT_STOP_GRACE_S: Final = 30.0
"""How long a stopping server lets running responses finish."""

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener listens. `port` 0 means: any free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of this machine."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def __str__(self) -> str:
        """Return `host:port`, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address in `HOST:PORT`, `[IPv6]:PORT`, `:PORT` or `PORT` (both loopback). Raises `InvalidInput`."""
    host, separator, port_text = text.strip().rpartition(":")
    if not separator:
        host = ""
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port_text.isascii() or not port_text.isdecimal() or int(port_text) > PORT_MAX:
        raise InvalidInput(
            "not an address to listen at", expected="HOST:PORT with a port of 0 to 65535", found=repr(text)
        )
    parse_host(host)
    return Address(host, int(port_text))


def parse_host(text: str) -> str:
    """Return a host name or an IP address as it is written in certificates and URLs. Raises `InvalidInput`."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    if len(text) > HOST_NAME_MAX_LEN or not _HOST_NAME.match(text):
        raise InvalidInput("neither a host name nor an IP address", found=repr(text[:HOST_NAME_MAX_LEN]))
    return text.rstrip(".").lower()


def parse_public_url(text: str) -> str:
    """Return the base URL without a final slash. Raises `InvalidInput` unless it is http(s)://host[:port][/path]."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise InvalidInput("not a URL", expected="http(s)://HOST[:PORT][/PATH]", found=repr(text)) from error
    plain = not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain or port == 0:
        raise InvalidInput(
            "not a base URL that devices could be given",
            expected="http(s)://HOST[:PORT][/PATH] without user, query and fragment",
            found=repr(text),
        )
    parse_host(parts.hostname)
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_AUTHORITY = re.compile(r"(?:([A-Za-z0-9][A-Za-z0-9_-]{0,39})=)?([!-<>-~]{1,256})\Z")


@dataclass(frozen=True, slots=True)
class TrustedAuthority:
    """Who may have issued the certificates of a tenant's devices, e.g. the SHA-256 of the issuer's certificate."""

    tenant: str
    authority: str


def parse_network(text: str) -> Network:
    """Return an address or a network (`10.0.0.7`, `10.1.0.0/16`, `::1`). Raises `InvalidInput`."""
    try:
        return ipaddress.ip_network(text.strip(), strict=True)
    except ValueError as error:
        raise InvalidInput(
            "not the address of a proxy", expected="an IP address or a network like 10.1.0.0/16", found=repr(text[:60])
        ) from error


def parse_authority(text: str) -> TrustedAuthority:
    """Return the authority in `[TENANT=]AUTHORITY`; without a tenant it is the default one's. Raises `InvalidInput`."""
    found = _AUTHORITY.match(text.strip())
    if found is None:
        raise InvalidInput(
            "not a certificate authority's mark", expected="[TENANT=]AUTHORITY, e.g. a SHA-256 in hex", found=repr(text)
        )
    return TrustedAuthority((found.group(1) or DEFAULT_TENANT).upper(), found.group(2))


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The layout of the directory that holds everything one server remembers."""

    root: Path

    @property
    def database(self) -> Path:
        """SQLite's file, unless another database was named."""
        return self.root / "flota.sqlite3"

    @property
    def artifacts(self) -> Path:
        """Content-addressed files, `objects/ab/cd/<sha256>`."""
        return self.root / "artifacts"

    @property
    def certificates(self) -> Path:
        """Our own certificate authority and the server's certificate."""
        return self.root / "ca"

    @property
    def admin_token(self) -> Path:
        """The administrator's token, mode 0600, made at the first start."""
        return self.root / "admin.token"

    @property
    def download_key(self) -> Path:
        """The key of signed download links, mode 0600."""
        return self.root / "download.key"

    @property
    def server_record(self) -> Path:
        """JSON: where the running server listens; absent while none runs."""
        return self.root / "server.json"

    @property
    def lock(self) -> Path:
        """Locked by the server that uses this directory."""
        return self.root / "lock"

    @property
    def configuration(self) -> Path:
        """`flota.toml`, read when the command line names no other."""
        return self.root / "flota.toml"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything `flota up` can be told. None for `http`, `https`, `mqtt` or `mqtts` means: no such listener.

    `public_url` is what devices are given; without it they get the address that they asked at.
    `names` are the host names and IP addresses for the server's certificate, besides localhost.
    """

    data: DataDirectory
    http: Address | None = None
    https: Address | None = None
    mqtt: Address | None = None
    mqtts: Address | None = None
    assumed: frozenset[str] = frozenset()
    """Listeners whose address nobody named: one that is taken by another program is left out, with a warning."""
    mqtt_bridge: BrokerUrl | None = None
    """Where things' topics outside `$aws/` go, by `mqtt_bridge_rules` (none: what begins with the thing's name)."""
    mqtt_bridge_rules: tuple[BridgeRule, ...] = ()
    mqtt_broker: BrokerUrl | None = None
    """The broker that things are connected to, instead of listeners of our own."""
    public_url: str | None = None
    names: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    database_url: str | None = None
    max_artifact_bytes: int = DEFAULT_MAX_ARTIFACT_BYTES
    stop_grace_s: float = DEFAULT_STOP_GRACE_S
    device_requests_per_s: float = DEFAULT_DEVICE_REQUESTS_PER_S
    viam_quiet_s: float = DEFAULT_VIAM_QUIET_S
    poll_jitter_percent: int = DEFAULT_POLL_JITTER_PERCENT
    time_zone: str | None = None
    """Zone of devices without one of their own, for shipments at a time of day; None: UTC."""
    trusted_proxies: tuple[Network, ...] = ()
    """Where X-Forwarded-* and Forwarded headers are believed."""
    certificate_proxies: tuple[Network, ...] = ()
    """Where X-Controller-Id and X-Authority headers are believed: proxies that have checked a client certificate."""
    proxy_authorities: tuple[TrustedAuthority, ...] = ()
    aws_iot_data: tuple[DataProtocol, ...] = (DataProtocol.MQTT,)
    """How job documents offer a release's file; each device takes the way that it was built for."""
    aws_iot_url_lifetime_s: int = DEFAULT_URL_LIFETIME_S
    aws_iot_lenient_rejected: bool = False
    """Whether a device may report REJECTED for what it has begun; AWS refuses that."""
    aws_iot_json_payload: JsonPayload = JsonPayload.BASE64
    aws_iot_events: bool = False
    """Whether operators can watch `$aws/events/`."""
    proxy_device_type: str | None = None
    """What an unknown device becomes whose certificate such a proxy has checked; None turns it away."""

    @property
    def is_database_shared(self) -> bool:
        """Whether other servers may write the database: one in our own data directory is ours alone, by its lock."""
        return self.database_url is not None

    @property
    def effective_database_url(self) -> str:
        """The database to open: the one named, else SQLite in the data directory."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data.database.absolute()}"
