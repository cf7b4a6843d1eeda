"""What a sweep puts a device through: the images of its life, in order, and who offers them.

Source: docs/reference/power-cuts.md, "Scenarios".
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Final

from flota.errors import InvalidInput, NotFound
from flota.images.esp_app import EspAppImage, EspImageHeader, EspSegment, pack_app
from flota.images.esp_chips import chip_named
from flota.images.esp_desc import EspAppDesc, pack_app_desc
from flota.images.markers import pack_marker
from flota.lab.oracle import Released
from flota.lab.swept_device import Offer

IMAGE_OVERHEAD_BYTES: Final = 80
"""Header (24), segment header (8), padding and checksum (16), appended SHA-256 (32)."""

IMAGE_MIN_BYTES: Final = 8192
SMALLER_BY_BYTES: Final = 4096 + 48
"""The last image of a life is that much shorter: leftovers of the one before it must not show."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """The first image and the offers that follow: each is (version, behaviour, whether the file arrives damaged)."""

    name: str
    title: str
    offers: tuple[tuple[str, str | None, bool], ...]
    needs_rollback: bool = False


SCENARIOS: Final = (
    Scenario(
        "two-updates",
        "two good updates, one after the other",
        (("2.0.0", None, False), ("3.0.0", None, False)),
    ),
    Scenario(
        "refused",
        "a good update, a file that arrives damaged, a good update",
        (("2.0.0", None, False), ("3.0.0", None, True), ("4.0.0", None, False)),
    ),
    Scenario(
        "crash",
        "a good update, one that crashes before it confirms itself, a good one",
        (("2.0.0", None, False), ("3.0.0", "crash", False), ("4.0.0", None, False)),
        needs_rollback=True,
    ),
)


def scenario_named(name: str) -> Scenario:
    """Return the scenario. Raises `NotFound` with the names there are."""
    found = next((one for one in SCENARIOS if one.name == name), None)
    if found is None:
        raise NotFound("no such scenario", expected=", ".join(one.name for one in SCENARIOS), found=repr(name[:40]))
    return found


@functools.lru_cache(maxsize=16)
def esp_image(chip: str, version: str, size: int, behaviour: str | None = None, secure_version: int = 0) -> bytes:
    """Return an app image of exactly `size` bytes (a multiple of 16), each 4 KiB of it different for each version.

    Raises `InvalidInput` for other sizes.
    """
    if size % 16 or size < IMAGE_MIN_BYTES:
        raise InvalidInput(
            "not a size for an image", expected=f"a multiple of 16 from {IMAGE_MIN_BYTES}", found=f"{size} bytes"
        )
    kind = chip_named(chip)
    described = pack_app_desc(EspAppDesc(version=version, project="power-cuts", secure_version=secure_version))
    marker = pack_marker({"behaviour": behaviour}) if behaviour else b""
    filling = hashlib.shake_256(f"{chip} {version} {behaviour}".encode()).digest(size)
    data = (described + marker + filling)[: size - IMAGE_OVERHEAD_BYTES]
    header = EspImageHeader(chip_id=kind.chip_id, entry=kind.code_map.start + 0x20)
    image = pack_app(EspAppImage(header, (EspSegment(kind.data_map.start + 0x20, data),)))
    if len(image) != size:
        raise InvalidInput("the image came out at another size", expected=size, found=len(image))
    return image


def esp_first_image(chip: str, size: int) -> bytes:
    """Return the image that the factory put in."""
    return esp_image(chip, "1.0.0", size)


def esp_offers(scenario: Scenario, chip: str, size: int, *, secure_versions: bool = False) -> tuple[Offer, ...]:
    """Return the offers of a scenario as images for `chip`; the last one is shorter by a sector and a bit."""
    offers = []
    for number, (version, behaviour, damaged) in enumerate(scenario.offers):
        last = number == len(scenario.offers) - 1
        raised = number + 1 if secure_versions else 0
        data = esp_image(chip, version, size - SMALLER_BY_BYTES if last else size, behaviour, raised)
        if damaged:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        known = released(version, data, bootable=not damaged, lasts=behaviour is None, secure_version=raised)
        offers.append(Offer(known, version, data))
    return tuple(offers)


def released(name: str, data: bytes, *, bootable: bool = True, lasts: bool = True, secure_version: int = 0) -> Released:
    """Return how the oracle knows a file."""
    return Released(name, hashlib.sha256(data).hexdigest(), len(data), bootable, lasts, secure_version)
