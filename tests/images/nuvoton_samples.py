"""Small programs for an M487, made from their description."""

from __future__ import annotations

import struct

HANDLER = 0x101
"""Where every exception of a sample goes: an odd address, for Thumb."""
VECTORS = (0x2002_8000, *[HANDLER] * 6, 0, 0, 0, 0, HANDLER, HANDLER, 0, HANDLER, HANDLER)
M2354_VECTORS = (0x3004_0000, *[0x1007_0501] * 15)


def program(size: int = 4096, *, base: int = 0, changed: dict[int, int] | None = None, fill: int = 0x42) -> bytes:
    """A program of `size` bytes for the address `base`, with some of its sixteen vectors `changed`."""
    vectors = [VECTORS[0], *(vector + base if vector else 0 for vector in VECTORS[1:])]
    for number, value in (changed or {}).items():
        vectors[number] = value
    return struct.pack("<16I", *vectors).ljust(size, bytes((fill,)))[:size]


def m2354_program(size: int = 4096) -> bytes:
    """A program for the M2354's non-secure slot, behind a header of 0x400 bytes."""
    return struct.pack("<16I", *M2354_VECTORS).ljust(size, b"\x42")
