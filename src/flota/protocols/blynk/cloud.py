"""The cloud link of a Blynk device: what it says about itself over MQTT, and what it is told. Pure.

Source: docs/reference/blynk.md, "Cloud link".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Final

from flota.protocols.json_text import parse_json
from flota.protocols.malformed import MalformedMessage
from flota.protocols.peer_text import clean_text

USER_NAME: Final = "device"
"""The user name of every Blynk device; its token is the password."""

INFO_TOPIC: Final = "info/mcu"
OTA_TOPIC: Final = "downlink/ota/json"
REBOOT_TOPIC: Final = "downlink/reboot"
PING_TOPIC: Final = "downlink/ping"
REDIRECT_TOPIC: Final = "downlink/redirect"
DOWNLINK_PREFIX: Final = "downlink/"

INFO_MAX_BYTES: Final = 4096
"""Five short members; the vendor's firmware stays below 300 bytes."""

TEXT_MAX_LEN: Final = 128
"""Characters kept of a member's text."""

RXBUFF_MAX: Final = 1 << 31

HEADER_SHA256: Final = "x-sha256"
HEADER_MD5: Final = "x-md5"
HEADER_TYPE: Final = "x-fw-type"
HEADER_VERSION: Final = "x-fw-ver"
HEADER_BUILD: Final = "x-fw-build"

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_BUILD_TIME: Final = re.compile(rf"({'|'.join(_MONTHS)}) ([ 0-3]?\d) (\d{{4}}) (\d\d):(\d\d):(\d\d)\Z", flags=re.ASCII)

BuildTime = tuple[int, int, int, int, int, int]
"""Year, month, day, hour, minute, second; without a zone."""


@dataclass(frozen=True, slots=True)
class FirmwareInfo:
    """What runs on a device, in its own cleaned words; empty text is what it did not say.

    `template` is the product that it was provisioned for, `fw_type` the type of its firmware: mostly the same.
    `receive_buffer` is how many bytes of a message it can take, None untold.
    """

    version: str
    build: str = ""
    fw_type: str = ""
    template: str = ""
    receive_buffer: int | None = None


def parse_info(payload: bytes) -> FirmwareInfo:
    """Return what a device published to `info/mcu`. Raises `MalformedMessage`; members that nobody knows are passed by.

    A firmware that has no version (the vendor's tag was not kept by its linker) says an empty one.
    """
    if len(payload) > INFO_MAX_BYTES:
        raise MalformedMessage(
            "the device's information is too long", expected=f"at most {INFO_MAX_BYTES} bytes", found=len(payload)
        )
    members = parse_json(payload)
    if not isinstance(members, dict):
        raise MalformedMessage("the device's information is no JSON object", found=type(members).__name__)
    return FirmwareInfo(
        version=_text(members, "ver"),
        build=_text(members, "build"),
        fw_type=_text(members, "type"),
        template=_text(members, "tmpl"),
        receive_buffer=_size(members, "rxbuff"),
    )


def _text(members: dict[str, object], name: str) -> str:
    value = members.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedMessage(f"{name} is no text", expected="text", found=type(value).__name__)
    return clean_text(value, max_len=TEXT_MAX_LEN)


def _size(members: dict[str, object], name: str) -> int | None:
    value = members.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < RXBUFF_MAX:
        raise MalformedMessage(f"{name} is no size", expected=f"0 to {RXBUFF_MAX - 1}", found=repr(value)[:40])
    return value


@dataclass(frozen=True, slots=True)
class UpdateAnnouncement:
    """An update for one device: where it is, its size in bytes, and what its tag says (None: there is none)."""

    url: str
    size: int
    fw_type: str | None = None
    version: str | None = None
    build: str | None = None


def pack_announcement(update: UpdateAnnouncement) -> bytes:
    """Return the payload of `downlink/ota/json`. What no tag says is left out."""
    told = {
        "url": update.url,
        "size": update.size,
        "type": update.fw_type,
        "ver": update.version,
        "build": update.build,
    }
    present = {name: value for name, value in told.items() if value is not None}
    return json.dumps(present, separators=(",", ":")).encode("utf-8")


def fitted_announcement(update: UpdateAnnouncement, receive_buffer: int | None) -> UpdateAnnouncement | None:
    """Return the announcement, or as much of it as a device with a buffer of so many bytes can take; None if it cannot.

    The buffer has to hold the whole MQTT packet. None or 0 for a device that does not say how large its buffer is.
    What is missed least is left out first: the file's headers say it too.
    """
    without_build = replace(update, build=None)
    without_type = replace(without_build, fw_type=None)
    for one in (update, without_build, without_type, replace(without_type, version=None)):
        if not receive_buffer or _packet_bytes(pack_announcement(one)) <= receive_buffer:
            return one
    return None


def _packet_bytes(payload: bytes) -> int:
    """Return the size of a PUBLISH of QoS 0 with this payload (MQTT 3.1.1, 3.3)."""
    body = 2 + len(OTA_TOPIC) + len(payload)
    return 1 + (1 if body < 1 << 7 else 2 if body < 1 << 14 else 3) + body


def parse_announcement(payload: bytes) -> UpdateAnnouncement:
    """Return what `pack_announcement` packed, as a device reads it. Raises `MalformedMessage`."""
    members = parse_json(payload)
    if not isinstance(members, dict):
        raise MalformedMessage("the announcement is no JSON object", found=type(members).__name__)
    url, size = members.get("url"), members.get("size")
    if not isinstance(url, str) or isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise MalformedMessage("the announcement has no url or no size")
    texts = {name: members.get(name) for name in ("type", "ver", "build")}
    if any(value is not None and not isinstance(value, str) for value in texts.values()):
        raise MalformedMessage("the announcement's type, version or build is no text")
    return UpdateAnnouncement(url, size, texts["type"], texts["ver"], texts["build"])


def pack_redirect(host: str, port: int) -> bytes:
    """Return the payload of `downlink/redirect`: where the device is to connect from now on, `host:port`."""
    return f"[{host}]:{port}".encode("ascii") if ":" in host else f"{host}:{port}".encode("ascii")


def parse_build_moment(text: str) -> BuildTime | None:
    """Return a build time as something that compares; None for text that is none. The day is padded or not."""
    found = _BUILD_TIME.match(text)
    if found is None:
        return None
    month, day, year, *clock = found.groups()
    hour, minute, second = map(int, clock)
    return (int(year), _MONTHS.index(month) + 1, int(day), hour, minute, second)
