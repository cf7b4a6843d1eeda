"""HTTPUpdate, the pull client of arduino-esp32 and ESP8266: what a device sends, and how it reads the answer.

Both roles: the server parses requests, the virtual device packs them and judges answers. No IO.

Source: docs/reference/http-update.md;
espressif/arduino-esp32:libraries/HTTPUpdate/src/HTTPUpdate.cpp,
esp8266/Arduino:libraries/ESP8266httpUpdate/src/ESP8266httpUpdate.cpp.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from flota.errors import TooLarge
from flota.protocols.malformed import MalformedMessage
from flota.protocols.peer_text import FREE_TEXT_MAX_LEN, VERSION_LABEL_MAX_LEN, clean_bytes

HEADER_VALUE_MAX_BYTES: Final = 1024
"""Of one `x-ESP` header: the longest that real sketches send is a base64 version of some 200 bytes."""

UPDATE_HEADERS_MAX: Final = 32
"""`x-ESP` headers in one request; real clients send at most twelve."""

SIZE_MAX_BYTES: Final = (1 << 32) - 1
"""The device's own sizes are `uint32_t`."""

ESP32_TIMEOUT_S: Final = 8
"""Without a byte for this long the ESP32 client gives up."""

APP_IMAGE_MAGIC: Final = 0xE9
"""First byte of every ESP app image."""

_MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}\Z")
_DECIMAL = re.compile(r"[0-9]{1,10}\Z")
_SHA256_UPPER = re.compile(r"[0-9A-F]{64}\Z")
_MD5_LOWER = re.compile(r"[0-9a-f]{32}\Z")
_MD5_ANY = re.compile(r"[0-9A-Fa-f]{32}\Z")


class ChipFamily(enum.StrEnum):
    """Which of the two clients asks; the value is the part of the header names between `x-` and the next dash."""

    ESP32 = "ESP32"
    ESP8266 = "ESP8266"


class UpdateMode(enum.StrEnum):
    """What the device wants: a new app, a new file system, or (some forks) only to know."""

    SKETCH = "sketch"
    SPIFFS = "spiffs"
    CHECK = "check"


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """What the `x-ESP…` headers of one request say. Sizes in bytes; MACs upper-case; digests lower-case hex.

    `sketch_sha256` is what `esp_partition_get_sha256(running)` returns: for an image with appended hash its last 32
    bytes, not the file's digest. `sketch_md5` is the MD5 of the running image file. Free text is cleaned.
    """

    chip: ChipFamily
    sta_mac: str | None = None
    ap_mac: str | None = None
    free_space: int | None = None
    sketch_size: int | None = None
    sketch_sha256: str | None = None
    sketch_md5: str | None = None
    chip_size: int | None = None
    sdk_version: str | None = None
    chip_id: int | None = None
    mode: UpdateMode = UpdateMode.SKETCH
    version: str | None = None


def parse_mac(text: str) -> str:
    """Return a MAC as `AA:BB:CC:DD:EE:FF`; upper, lower and mixed case are read. Raises `MalformedMessage`."""
    if not _MAC.match(text):
        raise MalformedMessage("not a MAC address", expected="AA:BB:CC:DD:EE:FF", found=repr(text[:40]))
    mac = text.upper()
    if mac in ("00:00:00:00:00:00", "FF:FF:FF:FF:FF:FF"):
        raise MalformedMessage("a MAC address that no device has", found=mac)
    return mac


def _mac(raw: bytes) -> str:
    return parse_mac(raw.decode("latin-1"))


def _size(raw: bytes) -> int:
    text = raw.decode("latin-1")
    if not _DECIMAL.match(text) or int(text) > SIZE_MAX_BYTES:
        raise MalformedMessage("not a size", expected=f"decimal bytes up to {SIZE_MAX_BYTES}", found=repr(text[:40]))
    return int(text)


def _sha256(raw: bytes) -> str:
    text = raw.decode("latin-1")
    if not _SHA256_UPPER.match(text):
        raise MalformedMessage("not a sketch SHA-256", expected="64 upper-case hex digits", found=repr(text[:80]))
    return text.lower()


def _md5(raw: bytes) -> str:
    text = raw.decode("latin-1")
    if not _MD5_LOWER.match(text):
        raise MalformedMessage("not a sketch MD5", expected="32 lower-case hex digits", found=repr(text[:80]))
    return text


def _mode(raw: bytes) -> UpdateMode:
    try:
        return UpdateMode(raw.decode("latin-1"))
    except ValueError as error:
        raise MalformedMessage("not an update mode", expected="sketch or spiffs", found=repr(raw[:40])) from error


def _text(raw: bytes) -> str:
    return clean_bytes(raw, max_len=FREE_TEXT_MAX_LEN)


def _version(raw: bytes) -> str:
    if any(byte < 0x20 or byte == 0x7F for byte in raw):
        raise MalformedMessage("the version has control characters", found=repr(raw[:40]))
    return clean_bytes(raw, max_len=VERSION_LABEL_MAX_LEN)


_PARSERS: Final = {
    "sta-mac": ("sta_mac", _mac),
    "ap-mac": ("ap_mac", _mac),
    "free-space": ("free_space", _size),
    "sketch-size": ("sketch_size", _size),
    "sketch-sha256": ("sketch_sha256", _sha256),
    "sketch-md5": ("sketch_md5", _md5),
    "chip-size": ("chip_size", _size),
    "sdk-version": ("sdk_version", _text),
    "chip-id": ("chip_id", _size),
    "mode": ("mode", _mode),
    "version": ("version", _version),
}
"""Header name after `x-ESP32-` or `x-ESP8266-`: field and reader. Others are ignored: newer cores may add some."""


def parse_request_headers(headers: Iterable[tuple[bytes, bytes]]) -> UpdateRequest | None:
    """Return what the update client says about itself; None when no `x-ESP` header is there (any other HTTP client).

    `headers` are names, in any case, with values, as ASGI gives them. An empty value counts as absent.
    Raises `MalformedMessage` for a value that breaks its rule, for one header twice with different values and for
    headers of both chips; `TooLarge` for a value of more than 1024 bytes or too many headers.
    """
    chips: set[ChipFamily] = set()
    raw_values: dict[str, bytes] = {}
    for count, (chip, name, value) in enumerate(_update_headers(headers), start=1):
        if count > UPDATE_HEADERS_MAX:
            raise TooLarge("too many x-ESP headers", expected=f"at most {UPDATE_HEADERS_MAX}")
        if len(value) > HEADER_VALUE_MAX_BYTES:
            raise TooLarge(
                f"the header x-{chip}-{name} is too long",
                expected=f"at most {HEADER_VALUE_MAX_BYTES} bytes",
                found=f"{len(value)} bytes",
            )
        chips.add(chip)
        if raw_values.setdefault(name, value) != value:
            raise MalformedMessage(f"the header x-{chip}-{name} is there twice with different values")
    if not chips:
        return None
    if len(chips) > 1:
        raise MalformedMessage("headers of an ESP32 and of an ESP8266 in one request")
    fields = {
        field: parse(raw_values[name]) for name, (field, parse) in _PARSERS.items() if raw_values.get(name, b"") != b""
    }
    return UpdateRequest(chip=chips.pop(), **fields)  # type: ignore[arg-type]  # the table pairs fields and readers


_PREFIXES: Final = tuple((chip, f"x-{chip.lower()}-".encode()) for chip in ChipFamily)


def _update_headers(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[ChipFamily, str, bytes]]:
    for raw_name, value in headers:
        lowered = raw_name.lower()
        for chip, prefix in _PREFIXES:
            if lowered.startswith(prefix):
                yield chip, clean_bytes(lowered.removeprefix(prefix), max_len=40), value.strip()


def request_headers(request: UpdateRequest) -> tuple[tuple[str, str], ...]:
    """Return the headers that the device's client sends, named and ordered as arduino-esp32 does, without Host."""
    prefix = f"x-{request.chip}"
    optional = (
        ("STA-MAC", request.sta_mac),
        ("AP-MAC", request.ap_mac),
        ("free-space", request.free_space),
        ("sketch-size", request.sketch_size),
        ("sketch-md5", request.sketch_md5),
        ("sketch-sha256", request.sketch_sha256.upper() if request.sketch_sha256 else None),
        ("chip-size", request.chip_size),
        ("sdk-version", request.sdk_version),
        ("chip-id", request.chip_id),
        ("mode", request.mode.value),
        ("version", request.version),
    )
    return (
        ("User-Agent", f"{request.chip}-http-Update"),
        ("Cache-Control", "no-cache"),
        *((f"{prefix}-{name}", str(value)) for name, value in optional if value is not None),
    )


def pack_request(
    request: UpdateRequest, *, target: str, host: str, extra_headers: Iterable[tuple[str, str]] = ()
) -> bytes:
    """Return the bytes of the HTTP/1.0 request: the ESP32 client asks so, in order to get no chunked answer.

    `target` is path and query, `host` the value of the Host header. Raises `ValueError` on line breaks in any of them.
    """
    lines = [f"GET {target} HTTP/1.0", f"Host: {host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (*request_headers(request), *extra_headers)]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a line break inside a request line or header")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")


class UpdateOutcome(enum.Enum):
    """What the client makes of an answer. The value is its error code in `HTTPUpdate.h`; 0 and 1 are no errors."""

    NO_UPDATE = 0
    UPDATE = 1
    NOT_ENOUGH_SPACE = -100
    SIZE_NOT_REPORTED = -101
    FILE_NOT_FOUND = -102
    FORBIDDEN = -103
    WRONG_HTTP_CODE = -104
    FAULTY_MD5 = -105
    VERIFY_HEADER_FAILED = -106

    @property
    def is_failure(self) -> bool:
        """Whether the client calls it a failure; it does not try again by itself."""
        return self.value < 0


_BY_STATUS: Final[Mapping[int, UpdateOutcome]] = {
    200: UpdateOutcome.UPDATE,
    304: UpdateOutcome.NO_UPDATE,
    403: UpdateOutcome.FORBIDDEN,
    404: UpdateOutcome.FILE_NOT_FOUND,
}
"""Every other status, redirects included, is WRONG_HTTP_CODE."""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """Status and the headers of an answer that the client looks at. `x_md5` is lower-case hex."""

    status: int
    content_length: int | None = None
    x_md5: str | None = None


def judge_answer(answer: AnswerHead, *, free_space: int) -> UpdateOutcome:
    """Return what the client does with an answer, before it reads the body. `free_space` is what fits, in bytes."""
    outcome = _BY_STATUS.get(answer.status, UpdateOutcome.WRONG_HTTP_CODE)
    if outcome is not UpdateOutcome.UPDATE:
        return outcome
    if not answer.content_length or answer.content_length < 0:
        return UpdateOutcome.SIZE_NOT_REPORTED
    if answer.content_length > free_space:
        return UpdateOutcome.NOT_ENOUGH_SPACE
    return UpdateOutcome.UPDATE


def judge_first_byte(first_byte: int) -> UpdateOutcome:
    """Return UPDATE when the body starts like an app image."""
    return UpdateOutcome.UPDATE if first_byte == APP_IMAGE_MAGIC else UpdateOutcome.VERIFY_HEADER_FAILED


def judge_body(answer: AnswerHead, *, md5: str) -> UpdateOutcome:
    """Return UPDATE unless the answer announced another MD5 than that of the bytes written (lower-case hex)."""
    return UpdateOutcome.UPDATE if answer.x_md5 in (None, md5) else UpdateOutcome.FAULTY_MD5


def parse_answer_head(status: int, headers: Iterable[tuple[str, str]]) -> AnswerHead:
    """Return what the client takes from an answer's headers: names in any case, nonsense counts as absent."""
    length: int | None = None
    md5: str | None = None
    for name, value in headers:
        lowered = name.lower()
        if lowered == "content-length" and _DECIMAL.match(value.strip()):
            length = int(value.strip())
        elif lowered == "x-md5" and _MD5_ANY.match(value.strip()):
            md5 = value.strip().lower()
    return AnswerHead(status=status, content_length=length, x_md5=md5)
