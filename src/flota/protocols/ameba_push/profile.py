"""How a kind of AmebaD firmware wants to be pushed to: its port, and what goes behind the file information."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flota.errors import NotFound
from flota.images.ameba.ota_file import is_ota_file, pack_ota_file, parse_ota_file


class PushPayload(enum.StrEnum):
    """What the device takes behind the 12 bytes."""

    OTA_FILE = "ota-file"
    IMAGE2 = "image2"


@dataclass(frozen=True, slots=True)
class PushProfile:
    """A kind of receiver. `port` is where it listens (TCP); `enforces_sum`: it checks the 12 bytes' sum."""

    name: str
    port: int
    payload: PushPayload = PushPayload.OTA_FILE
    enforces_sum: bool = False


GUIDE: Final = PushProfile("guide", 8020)
"""The port of the vendor's guide; no release of the Arduino core was found that uses it."""

ARDUINO: Final = PushProfile("arduino", 8082)
"""Every release of the core: the sketch's OTA_PORT and the upload recipe."""

ANCHOROTA: Final = PushProfile("anchorota", 8082, PushPayload.IMAGE2, enforces_sum=True)
"""A third party's sketch for BW16: the bare km0_km4_image2.bin, and its sum counts."""

PROFILES: Final[Mapping[str, PushProfile]] = MappingProxyType(
    {profile.name: profile for profile in (GUIDE, ARDUINO, ANCHOROTA)}
)


def profile_named(name: str) -> PushProfile:
    """Return the profile called `name`. Raises `NotFound` with the list of names."""
    found = PROFILES.get(name.strip().lower())
    if found is None:
        raise NotFound("no such push profile", expected=", ".join(PROFILES), found=repr(name[:32]))
    return found


def payload_for(profile: PushProfile, data: bytes, *, opaque: bool = False) -> tuple[bytes, bool]:
    """Return what to send behind the file information, and whether `data` had to be packed or unpacked for it.

    `data` is an `OTA_All.bin` or a `km0_km4_image2.bin`; `opaque` does not look into the image. Raises an `ImageError`
    for what a device would take and could not start (docs/reference/ameba-images.md, "What nobody checks").
    """
    if is_ota_file(data):
        parsed = parse_ota_file(data, opaque=opaque)
        return (data, False) if profile.payload is PushPayload.OTA_FILE else (parsed.image, True)
    packed = pack_ota_file(data, opaque=opaque)
    return (packed, True) if profile.payload is PushPayload.OTA_FILE else (data, False)
