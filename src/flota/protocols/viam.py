"""Viam's over-the-air service of micro-RDK: its configuration, and how a device reads a download's answer.

Both roles: the server packs configurations and checks its own URLs; the virtual device parses them and judges answers.
What a device does is a table here, so that both sides can be held to it. No IO.

Source: docs/reference/viam.md; viamrobotics/micro-rdk:micro-rdk/src/common/ota.rs.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from flota.errors import InvalidInput
from flota.protocols.malformed import MalformedMessage

SERVICE_NAME: Final = "OTA"
SERVICE_NAMESPACE: Final = "rdk"
SERVICE_TYPE: Final = "generic"
SERVICE_MODEL: Final = "ota_service"
"""The entry as the vendor's guide writes it. The name is free; the model decides."""

SERVICE_MODEL_FULL: Final = "rdk:builtin:ota_service"
"""The same model as it arrives at the device."""

VERSION_MAX_BYTES: Final = 128
"""Of UTF-8, not characters: a longer one is a configuration error on the device."""

URL_MAX_CHARS: Final = 2048
"""Ours: an URL has to fit into the device's header list (16 KiB) with room to spare, and people have to copy it."""

DEFAULT_PORT: Final = 443
"""What a device takes for an URL without a port, whatever its scheme."""

IMAGE_MIN_BYTES: Final = 288
"""Image header, first segment header and app descriptor (24 + 8 + 256): the smallest length that an ESP32 takes, and
what the first DATA frame has to hold for its header check to read the header."""

NATIVE_IMAGE_MIN_BYTES: Final = 1024
NATIVE_IMAGE_MAX_BYTES: Final = 4 * 1024 * 1024
"""A native build keeps the image in memory and drops it."""

POLL_PERIOD_S: Final = 10
"""Between the end of one look at the configuration and the next; also what lies between two tries, for ever."""
CONFIG_TIMEOUT_S: Final = 60
ATTEMPTS_MAX: Final = 5
"""Connections in one run, failed ones and redirects together: so at most four redirects."""
CONNECT_RETRY_PAUSE_S: Final = 1
CHUNK_TIMEOUT_S: Final = 30
"""How long a device waits for the next piece of the body, once it reads."""

HTTP2_FRAME_MAX_BYTES: Final = 16_384
HTTP2_STREAM_WINDOW_BYTES: Final = 2 * 1024 * 1024
HTTP2_CONNECTION_WINDOW_BYTES: Final = 5 * 1024 * 1024
HTTP2_HEADER_LIST_MAX_BYTES: Final = 16 * 1024
"""The settings of the device's HTTP/2 client; sizes in bytes."""

NVS_NAMESPACE: Final = "VIAM_NS"
NVS_VERSION_KEY: Final = "OTA_VERSION"
"""Where a device keeps the version of the last image that it wrote and selected."""


class ConfigError(MalformedMessage):
    """A service configuration that a device does not take."""

    code = "viam-config"


class UnusableUrl(InvalidInput):
    """An URL that a device cannot use."""

    code = "viam-url"


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """What the service is told: where the image is, and the text that names it."""

    url: str
    version: str
    name: str = SERVICE_NAME


@dataclass(frozen=True, slots=True)
class DownloadAddress:
    """Where a device connects and what it asks for: `authority` always has the port, for the request too."""

    host: str
    port: int
    target: str
    uses_tls: bool

    @property
    def authority(self) -> str:
        """`host:port`, an IPv6 host in brackets."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{shown}:{self.port}"


# ---------------------------------------------------------------------------------------------------- configuration


def pack_service_config(config: ServiceConfig) -> dict[str, object]:
    """Return the entry for the array `services` of a machine's configuration, in the order of the vendor's guide.

    Raises `ConfigError` or `UnusableUrl` for what no device would take, or what would never start an update.
    """
    check_version(config.version)
    if not config.version:
        raise ConfigError(
            "the version is empty",
            expected="1 to 128 bytes",
            hint="A device that was never updated stores nothing,"
            " which is the same: it would never ask for this image.",
        )
    check_offered_url(config.url)
    return {
        "name": config.name,
        "namespace": SERVICE_NAMESPACE,
        "type": SERVICE_TYPE,
        "model": SERVICE_MODEL,
        "attributes": {"url": config.url, "version": config.version},
    }


def is_update_service(entry: object) -> bool:
    """Whether an entry of `services` is the update service; in the form of the guide or as it arrives at a device."""
    if not isinstance(entry, Mapping):
        return False
    model = entry.get("model")
    if model == SERVICE_MODEL_FULL:
        return True
    return model == SERVICE_MODEL and entry.get("namespace", SERVICE_NAMESPACE) == SERVICE_NAMESPACE


def parse_service_config(entry: object) -> ServiceConfig:
    """Return the configuration in one entry of `services`, as a device reads it. Raises `ConfigError`.

    Attributes other than `url` and `version` are ignored, as the device does. An empty version is well formed.
    """
    if not isinstance(entry, Mapping):
        raise ConfigError("a service is no object", expected="an object", found=_kind(entry))
    if not is_update_service(entry):
        raise ConfigError("not the update service", expected=f"model {SERVICE_MODEL}", found=_shown(entry.get("model")))
    attributes = entry.get("attributes")
    if not isinstance(attributes, Mapping):
        raise ConfigError("the service has no attributes", expected="an object", found=_kind(attributes))
    url = _text_attribute(attributes, "url")
    version = _text_attribute(attributes, "version")
    check_version(version)
    name = entry.get("name", SERVICE_NAME)
    return ServiceConfig(url=url, version=version, name=name if isinstance(name, str) else SERVICE_NAME)


def find_service_config(services: object) -> ServiceConfig | None:
    """Return the first update service of the array `services`, None if there is none. Raises `ConfigError`.

    Like a device: what is wrong in other services, or in a second update service, does not matter.
    """
    if services is None:
        return None
    if not isinstance(services, Sequence) or isinstance(services, str | bytes):
        raise ConfigError("the services are no array", expected="an array", found=_kind(services))
    found = next((entry for entry in services if is_update_service(entry)), None)
    return None if found is None else parse_service_config(found)


def with_service_config(machine: Mapping[str, object], entry: Mapping[str, object]) -> dict[str, object]:
    """Return a machine's configuration with `entry` (of `pack_service_config`) as its update service.

    The first update service gets the two attributes and keeps everything else that it has, its name too; without one
    the entry is appended. Nothing else changes. Raises `ConfigError` if `services` or the service's attributes are
    malformed: they are not overwritten.
    """
    services = machine.get("services")
    if services is None:
        services = []
    if not isinstance(services, list):
        raise ConfigError("the machine's services are no array", expected="an array", found=_kind(services))
    at = next((i for i, one in enumerate(services) if is_update_service(one)), None)
    if at is None:
        return {**machine, "services": [*services, dict(entry)]}
    present = services[at].get("attributes")
    if present is not None and not isinstance(present, Mapping):
        raise ConfigError("the update service's attributes are no object", found=_kind(present))
    wanted = entry["attributes"]
    assert isinstance(wanted, Mapping)
    changed = {**services[at], "attributes": {**(present or {}), **wanted}}
    return {**machine, "services": [*services[:at], changed, *services[at + 1 :]]}


def update_needed(stored_version: str | None, configured_version: str) -> bool:
    """Whether a device downloads: the texts differ. It is no order, and nothing stored is the empty text."""
    return (stored_version or "") != configured_version


def check_version(version: str) -> None:
    """Raise `ConfigError` for a version that a device refuses."""
    try:
        length = len(version.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise ConfigError("the version is no text", found=ascii(version[error.start])) from error
    if length > VERSION_MAX_BYTES:
        raise ConfigError(
            "the version is too long", expected=f"at most {VERSION_MAX_BYTES} bytes of UTF-8", found=f"{length} bytes"
        )


def _text_attribute(attributes: Mapping[object, object], name: str) -> str:
    if name not in attributes:
        raise ConfigError(f"the attribute `{name}` is missing")
    value = attributes[name]
    if not isinstance(value, str):
        raise ConfigError(f"the attribute `{name}` is no text", expected="a string", found=_kind(value))
    return value


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _shown(value: object) -> str:
    return ascii(value[:64]) if isinstance(value, str) else _kind(value)


# -------------------------------------------------------------------------------------------------------------- URLs


def parse_download_url(url: str) -> DownloadAddress:
    """Return where a device goes for this URL. Raises `UnusableUrl` for one that it cannot use.

    Without a port it is 443, for `http` too; any scheme but `http` means TLS. A relative URL has no host, and user
    information would become part of the host name.
    """
    parts, port = _split(url)
    if not parts.scheme or not parts.netloc:
        raise UnusableUrl("the URL is not absolute", expected="scheme://host:port/path", found=_shown(url))
    if "@" in parts.netloc:
        raise UnusableUrl(
            "the URL has user information",
            expected="none",
            found=ascii(parts.netloc.partition("@")[2][:64]),  # what stands before may be a password
            hint="A device takes it for a part of the host's name. Put a token into the query.",
        )
    if not parts.hostname:
        raise UnusableUrl("the URL names no host", found=_shown(url))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return DownloadAddress(
        parts.hostname, DEFAULT_PORT if port is None else port, target, uses_tls=parts.scheme.lower() != "http"
    )


def check_offered_url(url: str) -> DownloadAddress:
    """Return where the URL leads if it may be given to devices; raises `UnusableUrl`.

    Beyond what devices need: the port is named, the scheme is `http` or `https`, no fragment, at most 2,048 characters
    of printable ASCII.
    """
    if len(url) > URL_MAX_CHARS:
        raise UnusableUrl("the URL is too long", expected=f"at most {URL_MAX_CHARS} characters", found=len(url))
    address = parse_download_url(url)
    parts, port = _split(url)
    if parts.scheme.lower() not in ("http", "https"):
        raise UnusableUrl("the URL's scheme is not usable", expected="http or https", found=_shown(parts.scheme))
    if port is None:
        hint = "A device takes port 443 for an URL without one, even for http: name the port."
        raise UnusableUrl("the URL names no port", expected="host:port", found=_shown(parts.netloc), hint=hint)
    if parts.fragment:
        raise UnusableUrl("the URL has a fragment", found=_shown(parts.fragment))
    return address


def _split(url: str) -> tuple[SplitResult, int | None]:
    if not url.isascii() or any(character.isspace() or not character.isprintable() for character in url):
        raise UnusableUrl("the URL has characters that no URL has", found=_shown(url))
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UnusableUrl("the URL cannot be read", found=_shown(url)) from error
    if parts.netloc.endswith(":") or port == 0:
        raise UnusableUrl("the URL has no usable port", expected="1 to 65535", found=_shown(parts.netloc))
    return parts, port


# ---------------------------------------------------------------------------------------------------------- downloads


class Failure(enum.Enum):
    """Why a run of the service ended without an update; each is only logged, and tried again after ten seconds."""

    CONNECTION = "no connection after five attempts"
    REQUEST = "the request could not be sent, or was not answered"
    STATUS = "the answer has a status that is neither 2xx nor 3xx"
    NO_LOCATION = "a redirect without a location"
    RELATIVE_LOCATION = "a redirect to a location without a host"
    TOO_MANY_ATTEMPTS = "more than four redirects"
    NO_LENGTH = "no content-length"
    TOO_LARGE = "larger than the target partition"
    TOO_SMALL = "smaller than the minimum firmware size"
    STALLED = "the next piece of the body did not come within 30 s"
    CUT = "the body ended before its announced length"
    OVERFLOW = "the body is longer than announced"
    WRITE = "the image was refused while it was written"
    VERIFICATION = "the image was refused after it was written"
    SELECTION = "the slot could not be selected for the next boot"
    TAG = "the version could not be stored, or reads back differently"


@dataclass(frozen=True, slots=True)
class Proceed:
    """The body comes next: `content_length` bytes. The whole slot is erased before the first of them is read."""

    content_length: int


@dataclass(frozen=True, slots=True)
class Redirect:
    """Connect to `address` at once; it counts as an attempt."""

    address: DownloadAddress
    location: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """The run ends here; nothing was erased or written. `found` is what the answer had."""

    failure: Failure
    found: str = ""


Reading = Proceed | Redirect | Refusal


class StatusClass(enum.Enum):
    """What a device makes of a status."""

    GO_ON = "go on"
    REDIRECT = "redirect"
    ERROR = "error"


STATUS_CLASSES: Final[Mapping[int, StatusClass]] = {2: StatusClass.GO_ON, 3: StatusClass.REDIRECT}
"""By the hundreds of the status; absent = error. So 304, as any other 3xx, needs a location."""


def judge_response(
    status: int,
    headers: Iterable[tuple[str, str]],
    *,
    slot_size: int,
    minimum_size: int = IMAGE_MIN_BYTES,
) -> Reading:
    """Return what a device does after the head of an answer. Sizes in bytes; header names in any case.

    `slot_size` is the size of the partition that is written next; of several headers of one name the first counts.
    """
    first: dict[str, str] = {}
    for name, value in headers:
        first.setdefault(name.lower(), value)
    kind = STATUS_CLASSES.get(status // 100, StatusClass.ERROR)
    if kind is StatusClass.ERROR:
        return Refusal(Failure.STATUS, str(status))
    if kind is StatusClass.REDIRECT:
        return _judge_redirect(first.get("location"))
    return _judge_length(first.get("content-length"), slot_size, minimum_size)


def _judge_redirect(location: str | None) -> Reading:
    if location is None:
        return Refusal(Failure.NO_LOCATION)
    try:
        return Redirect(parse_download_url(location), location)
    except UnusableUrl:
        return Refusal(Failure.RELATIVE_LOCATION, ascii(location[:64]))


LENGTH_MAX_DIGITS: Final = 19
"""More cannot be a 64-bit length; the device's HTTP/2 library refuses it."""


def _judge_length(text: str | None, slot_size: int, minimum_size: int) -> Reading:
    if text is None:
        return Refusal(Failure.NO_LENGTH)
    if not (text.isascii() and text.isdecimal() and len(text) <= LENGTH_MAX_DIGITS):
        return Refusal(Failure.NO_LENGTH, ascii(text[:64]))
    length = int(text)
    if length > slot_size:
        return Refusal(Failure.TOO_LARGE, f"{length} of {slot_size} bytes")
    if length < minimum_size:
        return Refusal(Failure.TOO_SMALL, f"{length} of {minimum_size} bytes")
    return Proceed(length)


def judge_body(received: int, content_length: int, *, ended: bool) -> Failure | None:
    """Return why the body is wrong after `received` bytes, None as long as it is not; `ended` is the end of stream."""
    if received > content_length:
        return Failure.OVERFLOW
    if ended and received < content_length:
        return Failure.CUT
    return None


def header_is_read_from(frame_number: int, first_frame_bytes: int) -> bool:
    """Whether the device reads the image's header from the data of DATA frame `frame_number` (1, 2, …).

    It reads it from the first frame, if that has 288 bytes; a smaller first frame is written unread, and what the
    second one begins with is then taken for the header. The check copies texts only; it verifies no magic.
    """
    return frame_number == (1 if first_frame_bytes >= IMAGE_MIN_BYTES else 2)


def may_try_again(attempts_made: int) -> bool:
    """Whether one more connection may be opened in this run, after so many."""
    return attempts_made < ATTEMPTS_MAX
