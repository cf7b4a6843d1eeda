"""Programs for the M487 as the boards take them: the bytes of APROM from address 0, with no header at all.

What makes them recognisable is the vector table of the Cortex-M core: where the stack begins, where the program starts.
The loader and the Cloner are such programs too, linked for other places.
Source: docs/reference/nuvoton.md, "The file"; ARM DDI 0403 (ARMv7-M), B1.5.3, the vector table.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from flota.images.model import ImageError, TruncatedImage
from flota.images.nuvoton.flash_map import (
    APP_SIZE,
    APROM_SIZE,
    CLONER_ADDR,
    CLONER_SIZE,
    KVSTORE_ADDR,
    LDROM_ADDR,
    LDROM_SIZE,
    PAGE_SIZE,
    RAM_ADDR,
    RAM_SIZE,
)

Buffer = bytes | memoryview

VECTORS_SIZE: Final = 64
"""The initial stack pointer and the fifteen exceptions of the core; interrupts of the chip follow."""
_VECTORS: Final = struct.Struct("<16I")
assert _VECTORS.size == VECTORS_SIZE

_RESET: Final = 1
_RESERVED: Final = (7, 8, 9, 10, 13)
"""Entries that mean nothing on this core. Other makers put sums there."""
_MUST_BE_SET: Final = (1, 2, 3)
"""Reset, NMI and HardFault, without which no program is worth starting."""
_PAD_BYTE: Final = b"\xff"


class Place(enum.StrEnum):
    """What a program is linked for."""

    APP = "application"
    CLONER = "Cloner"
    LOADER = "LDROM loader"


PLACES: Final = {
    Place.APP: (0, APROM_SIZE),
    Place.CLONER: (CLONER_ADDR, CLONER_SIZE),
    Place.LOADER: (LDROM_ADDR, LDROM_SIZE),
}
"""Place -> first address and room in bytes."""


class NotAProgram(ImageError):
    """The bytes do not begin with a vector table that an M487 could start from."""

    code = "nuvoton-vectors"


class EntryBeyondImage(ImageError):
    """The program, or one of its handlers, starts behind the end of the file, which is cut off."""

    code = "nuvoton-entry"


class NotTheApplication(ImageError):
    """The program is one of the loaders, which only a programmer writes."""

    code = "nuvoton-place"


class TooLongForAprom(ImageError):
    """The program reaches the KVStore: the Cloner would copy it over the device's key and certificates."""

    code = "too-large"


@dataclass(frozen=True, slots=True)
class ApromProgram:
    """A program with a sound vector table. `initial_stack` and `entry` are addresses; `size` in bytes.

    `entry` is that of the first instruction; the vector has its lowest bit set, for Thumb.
    """

    place: Place
    initial_stack: int
    entry: int
    vectors: tuple[int, ...]
    size: int


def parse_program(data: Buffer) -> ApromProgram:
    """Return what the vector table at the start of `data` says; the rest is the program's own.

    Raises `TruncatedImage` below 64 bytes, `NotAProgram` when this core could not start from it or it is linked for no
    place of an M487, `EntryBeyondImage` when the file ends before where one of its vectors leads.
    """
    if len(data) < VECTORS_SIZE:
        raise TruncatedImage(
            "the file ends inside the vector table", offset=len(data), expected=f"{VECTORS_SIZE} bytes", found=len(data)
        )
    vectors = _VECTORS.unpack_from(data)
    stack, reset = vectors[0], vectors[1]
    if not RAM_ADDR < stack <= RAM_ADDR + RAM_SIZE or stack % 4:
        raise NotAProgram(
            "the first word is no address of an M487's RAM for the stack",
            offset=0,
            expected=f"{RAM_ADDR + 4:#010x} to {RAM_ADDR + RAM_SIZE:#010x}",
            found=f"{stack:#010x}",
        )
    place = _place_of(reset, len(data))
    if place is None:
        raise NotAProgram(
            "the program does not start at an address of APROM or LDROM",
            offset=4,
            expected=f"an odd address below {APROM_SIZE:#x}, or in LDROM",
            found=f"{reset:#010x}",
        )
    start, room = PLACES[place]
    for number, vector in enumerate(vectors[1:], 1):
        if number in _RESERVED:
            sound, expected = vector == 0, "0"
        else:
            sound = (vector == 0 and number not in _MUST_BE_SET) or (vector % 2 == 1 and start < vector < start + room)
            expected = f"an odd address from {start:#x} to {start + room - 1:#x}"
        if not sound:
            raise NotAProgram(
                f"vector {number} leads nowhere", offset=4 * number, expected=expected, found=f"{vector:#010x}"
            )
    end = start + len(data)
    for number, vector in enumerate(vectors[1:], 1):
        if vector >= end:
            raise EntryBeyondImage(
                "the program starts behind the end of the file"
                if number == _RESET
                else f"vector {number} leads behind the end of the file",
                offset=4 * number,
                expected=f"an address below {end:#x}",
                found=f"{vector - 1:#x}",
                hint="The file is cut off: copy it again, or take it from the build once more.",
            )
    return ApromProgram(place, stack, reset - 1, vectors, len(data))


def looks_like_program(data: Buffer) -> bool:
    """Say whether `data` begins with the vector table of a program for an M487, whole or cut off."""
    try:
        parse_program(data)
    except EntryBeyondImage:
        return True
    except ImageError:
        return False
    return True


def pack_app(program: bytes) -> bytes:
    """Return the file that M487 boards take: `program`, the bytes from address 0, padded to whole pages.

    Raises what `parse_program` raises, `NotTheApplication` and `TooLongForAprom`.
    """
    found = parse_program(program)
    if found.place is not Place.APP:
        raise NotTheApplication(
            f"this is the {found.place}, which only a programmer writes",
            offset=4,
            expected="a program for address 0",
            found=f"an entry at {found.entry:#x}",
        )
    if len(program) > APP_SIZE:
        raise TooLongForAprom(
            "the program does not fit its place in APROM",
            offset=APP_SIZE,
            expected=f"at most {APP_SIZE} bytes",
            found=f"{len(program)} bytes",
            hint=f"The Cloner would copy it over the device's key and certificates at {KVSTORE_ADDR:#x}.",
        )
    return pad_to_page(program)


def pad_to_page(image: bytes) -> bytes:
    """Return `image` with FF up to a multiple of 4 KiB: the Cloner copies whole pages, and loses a byte otherwise."""
    return image + _PAD_BYTE * (-len(image) % PAGE_SIZE)


def cloned_pages(start: int, end: int) -> int:
    """Return how many pages the Cloner copies for the descriptor's `start` and `end` address (inclusive, u32).

    It counts from the difference, not from the length: a file of k x 4096 + 1 bytes gives k, without its last byte.
    """
    return (((end - start) & 0xFFFF_FFFF) + PAGE_SIZE - 1 & 0xFFFF_FFFF) >> 12


def loses_last_byte(size: int) -> bool:
    """Say whether the Cloner leaves out the last byte of a file of `size` bytes."""
    return size > 0 and size % PAGE_SIZE == 1


def _place_of(reset: int, size: int) -> Place | None:
    if reset % 2 == 0:
        return None
    # An application may be so long that its code reaches where the Cloner lies: then the file holds that address.
    for place in (Place.LOADER, Place.CLONER):
        start, room = PLACES[place]
        if reset >= size and start < reset < start + min(room, size):
            return place
    return Place.APP if VECTORS_SIZE < reset < APROM_SIZE else None
