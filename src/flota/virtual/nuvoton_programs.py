"""The boot programs of an M487 that a virtual device knows when it finds them in its flash.

A virtual device runs no machine code: what LDROM and Cloner do is `flota.virtual.boot`. Which of them is there says the
flash. Flota's stand-ins are a vector table and a marker; of the vendor's files the digests are known, so a device that
was programmed with those behaves as `stock`. Anything else is a program that nobody here can run.
Source: docs/reference/nuvoton.md, "Rollback".
"""

from __future__ import annotations

import enum
import hashlib
import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flota.images.markers import find_markers, pack_marker
from flota.images.nuvoton.aprom import PLACES, VECTORS_SIZE, Place
from flota.images.nuvoton.flash_map import RAM_ADDR, RAM_SIZE

MARKER_KEY: Final = "boot-program"
PROFILE_KEY: Final = "profile"

_HALT: Final = bytes.fromhex("fee7")
"""A branch to itself: what a processor would do that starts a stand-in."""
_PROGRAM: Final = struct.Struct("<16I")
assert _PROGRAM.size == VECTORS_SIZE

_MARKED_AS: Final = MappingProxyType({Place.LOADER: "ldrom", Place.CLONER: "cloner"})


class BootProfile(enum.StrEnum):
    """Whose boot programs they are."""

    STOCK = "stock"
    """As shipped by the vendor: nothing is undone."""
    ROLLBACK = "rollback"
    """Flota's design: LDROM first, one trial boot, the backup is restored."""


@dataclass(frozen=True, slots=True)
class BootProgram:
    """A boot program: where it belongs, and how it behaves."""

    place: Place
    profile: BootProfile


_VENDORS: Final = MappingProxyType(
    {
        "3df1be6a541868f1c364e4d8014191ac4ab4ec30e95060278ab21d8aa9dc40c7": (2524, Place.LOADER),
        "8a2ce5fd560c9df42503689679a9e3a798c289bc137e8a22540c6eba83c2124a": (7800, Place.CLONER),
    }
)
"""SHA-256 of the vendor's file -> its length in bytes, its place.

Source: OpenNuvoton/NuMaker-mbed-AWS-IoT-CSDK-OTA-example:bootloader/.
"""


def stand_in(program: BootProgram) -> bytes:
    """Return the file that stands for a boot program: vectors of its place, a loop, the marker."""
    start, _ = PLACES[program.place]
    entry = start + VECTORS_SIZE | 1
    vectors = (RAM_ADDR + RAM_SIZE, *([entry] * 3), *([0] * 12))
    marker = pack_marker({MARKER_KEY: _MARKED_AS[program.place], PROFILE_KEY: program.profile.value})
    file = _PROGRAM.pack(*vectors) + _HALT + marker
    return file + b"\xff" * (-len(file) % 8)


def program_in(flash: bytes, place: Place) -> BootProgram | None:
    """Return the boot program at the start of `flash`, the whole area of `place`; None if nobody knows it."""
    for digest, (length, where) in _VENDORS.items():
        if where is place and hashlib.sha256(flash[:length]).hexdigest() == digest:
            return BootProgram(place, BootProfile.STOCK)
    markers = find_markers(flash, 0, 512)
    if markers.get(MARKER_KEY) != _MARKED_AS[place]:
        return None
    try:
        return BootProgram(place, BootProfile(markers.get(PROFILE_KEY, "")))
    except ValueError:
        return None
