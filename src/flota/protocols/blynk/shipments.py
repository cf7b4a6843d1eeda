"""The JSON of Blynk's upload and shipment API: what is read, what is answered. Pure.

What is asked for and not done here is refused by name, never passed over.
Source: docs/reference/blynk.md, "Shipments".
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flota.errors import InvalidInput, Refused
from flota.protocols.json_text import parse_json

ANY_TIME: Final = "ANY"
SHIPMENT_TIMES: Final[Mapping[str, str]] = {
    "NIGHT": "daily 00:00 6h local",
    "MORNING": "daily 06:00 6h local",
    "AFTERNOON": "daily 12:00 6h local",
    "EVENING": "daily 18:00 6h local",
}
"""The vendor's quarters of a day, as maintenance windows in each device's own time."""

COMPARE_DEFAULT: Final = "BUILD_DATE_DIFFERS"
"""What the vendor's API takes when nothing is said; its console says LATEST_FIRMWARE_VERSION."""

LIBRARY_COMPARISON: Final = "LATEST_BLYNK_VERSION"
COMPARE_FIELDS: Final = frozenset(
    {"LATEST_FIRMWARE_VERSION", "BUILD_DATE_DIFFERS", "EARLIER_BUILD_DATE", "NO_CONDITION"}
)

ATTEMPTS_DEFAULT: Final = 3
ATTEMPTS_MAX: Final = 1000
ATTEMPT_PERIOD_DEFAULT_MS: Final = 86_400_000
ATTEMPT_PERIOD_MIN_MS: Final = 1000
ATTEMPT_PERIOD_MAX_MS: Final = 365 * 86_400_000
NUMBER_MAX: Final = (1 << 31) - 1
"""The vendor's numbers of products and devices, and of ours, have 32 bits."""

LARGE_MAX: Final = (1 << 63) - 1
DEVICES_MAX: Final = 200_000

UPLOAD_PATH_PREFIX: Final = "/blynk/files/"
"""What the `path` of an upload begins with; the SHA-256 of the bytes and their name follow."""

FIRMWARE_SUFFIXES: Final = (
    *(".bin", ".zip", ".tar", ".gz", ".hs", ".xz", ".bz2"),
    *(".tar.gz", ".ota.bin.gz", ".bin.gz", ".bin.hs", ".yml", ".yaml"),
)
UPLOAD_MAX_BYTES: Final = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ShipmentOrder:
    """What a request to create a shipment asks for. No devices: all of the product, and those that join later."""

    title: str
    product_id: int
    sha256: str
    file_name: str
    device_ids: tuple[int, ...] = ()
    compare: str = COMPARE_DEFAULT
    skip_type_check: bool = False
    attempts: int = ATTEMPTS_DEFAULT
    attempt_period_ms: int = ATTEMPT_PERIOD_DEFAULT_MS
    """After how long they are counted anew; 0: never."""
    time: str = ANY_TIME
    is_critical: bool = False
    is_secure: bool | None = None
    host: str = ""
    organisation: int | None = None
    firmware_info: Mapping[str, object] | None = None
    """What the upload was answered with, repeated."""


ORDER_MEMBERS: Final = frozenset(
    {
        *("orgId", "productId", "title", "pathToFirmware", "firmwareOriginalFileName", "firmwareInfo", "deviceIds"),
        *("shipmentTime", "host", "skipFwTypeCheck", "compareField", "attemptsLimit", "attemptResetPeriodMs"),
        *("isSecure", "isCritical", "sendPush"),
    }
)
"""What the body may have: a misspelt member would otherwise be a condition that nobody keeps to."""


def parse_shipment_order(body: bytes) -> ShipmentOrder:
    """Return what the body of `shipment/create` asks for.

    Raises `InvalidInput` for what is not well formed, `Refused` for what is and cannot be had here.
    """
    given = parse_json(body)
    if not isinstance(given, dict):
        raise InvalidInput("the shipment is no JSON object", found=type(given).__name__)
    unknown = sorted(given.keys() - ORDER_MEMBERS)
    if unknown:
        raise InvalidInput("the shipment has members that nobody knows", found=ascii(", ".join(unknown))[:200])
    fields = _Fields(given)
    sha256, name = _uploaded(fields.text("pathToFirmware"))
    if fields.flag("sendPush"):
        raise Refused("nobody is notified from here", expected="sendPush false", found="true")
    attempts = fields.number("attemptsLimit", ATTEMPTS_DEFAULT)
    if not 1 <= attempts <= ATTEMPTS_MAX:
        hint = "With 0 a device would never be offered the file."
        raise InvalidInput("attemptsLimit cannot be", expected=f"1 to {ATTEMPTS_MAX}", found=attempts, hint=hint)
    return ShipmentOrder(
        title=fields.text("title"),
        product_id=fields.number("productId"),
        sha256=sha256,
        file_name=fields.text("firmwareOriginalFileName", "") or name,
        device_ids=fields.numbers("deviceIds"),
        compare=_comparison(fields.text("compareField", COMPARE_DEFAULT)),
        skip_type_check=fields.flag("skipFwTypeCheck"),
        attempts=attempts,
        attempt_period_ms=_period(fields.number("attemptResetPeriodMs", ATTEMPT_PERIOD_DEFAULT_MS, most=LARGE_MAX)),
        time=_time(fields.text("shipmentTime", ANY_TIME)),
        is_critical=fields.flag("isCritical"),
        is_secure=fields.flag("isSecure") if given.get("isSecure") is not None else None,
        host=fields.text("host", ""),
        organisation=fields.number("orgId") if given.get("orgId") is not None else None,
        firmware_info=fields.members("firmwareInfo"),
    )


class _Fields:
    """Members of an object, read with their type."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given

    def text(self, name: str, default: str | None = None) -> str:
        value = self._given.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or len(value) > 1024 or not value.isprintable():
            raise InvalidInput(f"{name} is missing or no text", expected="text", found=ascii(value)[:60])
        return value

    def number(self, name: str, default: int | None = None, *, most: int = NUMBER_MAX) -> int:
        value = self._given.get(name)
        if value is None and default is not None:
            return default
        return self._checked(name, value, most)

    def numbers(self, name: str) -> tuple[int, ...]:
        value = self._given.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > DEVICES_MAX:
            raise InvalidInput(f"{name} is no list of numbers", expected=f"at most {DEVICES_MAX} numbers")
        return tuple(self._checked(name, one) for one in value)

    def flag(self, name: str) -> bool:
        value = self._given.get(name)
        if value is not None and not isinstance(value, bool):
            raise InvalidInput(f"{name} is neither true nor false", found=ascii(value)[:60])
        return bool(value)

    def members(self, name: str) -> Mapping[str, object] | None:
        value = self._given.get(name)
        if value is not None and not isinstance(value, dict):
            raise InvalidInput(f"{name} is no object", found=ascii(value)[:60])
        return value

    @staticmethod
    def _checked(name: str, value: object, most: int = NUMBER_MAX) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise InvalidInput(f"{name} is missing or no number", found=ascii(value)[:60])
        return value


def _uploaded(path: str) -> tuple[str, str]:
    """Return digest and name in the path that an upload was answered with."""
    digest, _, name = path.removeprefix(UPLOAD_PATH_PREFIX).partition("/")
    is_digest = len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    if not path.startswith(UPLOAD_PATH_PREFIX) or not is_digest or not name:
        raise InvalidInput(
            "pathToFirmware is not what an upload here was answered with",
            expected=f"{UPLOAD_PATH_PREFIX}SHA256/NAME",
            found=ascii(path[:120]),
            hint="Upload the file first: POST /blynk/api/upload.",
        )
    return digest, name


def _time(told: str) -> str:
    if told != ANY_TIME and told not in SHIPMENT_TIMES:
        expected = ", ".join((ANY_TIME, *SHIPMENT_TIMES))
        raise InvalidInput("there is no such shipmentTime", expected=expected, found=ascii(told[:40]))
    return told


def _period(told_ms: int) -> int:
    if told_ms and not ATTEMPT_PERIOD_MIN_MS <= told_ms <= ATTEMPT_PERIOD_MAX_MS:
        expected = f"0, or {ATTEMPT_PERIOD_MIN_MS} to {ATTEMPT_PERIOD_MAX_MS} ms"
        raise InvalidInput("attemptResetPeriodMs cannot be", expected=expected, found=told_ms)
    return told_ms


def _comparison(told: str) -> str:
    if told == LIBRARY_COMPARISON:
        expected = ", ".join(sorted(COMPARE_FIELDS))
        raise Refused("devices do not say which library they have", expected=expected, found=told)
    if told not in COMPARE_FIELDS:
        expected = ", ".join(sorted(COMPARE_FIELDS))
        raise InvalidInput("there is no such compareField", expected=expected, found=ascii(told[:40]))
    return told


INFO_COMPARED: Final = ("version", "fwType", "buildDate", "md5Hash", "sha256Hash", "fileSize")
"""Members of a repeated `firmwareInfo` that must be those of the file; others say nothing about its identity."""


def refuse_other_info(repeated: Mapping[str, object] | None, stored: Mapping[str, object] | None) -> None:
    """Raise `InvalidInput` if a repeated `firmwareInfo` is not that of the stored file."""
    for name in INFO_COMPARED:
        if repeated is None or name not in repeated:
            continue
        expected = (stored or {}).get(name, "")
        if repeated[name] != expected and repeated[name] not in (None, ""):
            raise InvalidInput(
                f"firmwareInfo's {name} is not that of the file",
                expected=ascii(expected),
                found=ascii(repeated[name])[:80],
                hint="Repeat what the upload was answered with, or leave firmwareInfo out.",
            )


@dataclass(frozen=True, slots=True)
class UploadedFirmware:
    """A stored file: digests in lower-case hex, size in bytes, and what its tag says (`tag` key -> value)."""

    sha256: str
    md5: str
    size: int
    tag: Mapping[str, str]


def firmware_info(uploaded: UploadedFirmware) -> dict[str, object] | None:
    """Return the vendor's `firmwareInfo`; None for a file without a tag. Unknown text is empty."""
    tag = uploaded.tag
    if not tag:
        return None
    return {
        "version": tag.get("mcu") or tag.get("ncp") or "",
        "blynkVersion": tag.get("blynk", ""),
        "fwType": tag.get("fw-type", ""),
        "boardType": tag.get("dev") or "Other",
        "buildDate": tag.get("build", ""),
        "md5Hash": uploaded.md5.upper(),
        "sha256Hash": base64.b64encode(bytes.fromhex(uploaded.sha256)).decode("ascii"),
        "type": "MCU" if tag.get("mcu") else "NCP",
        "fileSize": uploaded.size,
    }
