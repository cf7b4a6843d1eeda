"""How the C library gives memory to the server: large pieces of downloads are kept and used again, not unmapped.

Over plain HTTP/2 every piece of a file is a block of up to 512 KiB that lives for some milliseconds. glibc as it comes
maps each such block anew and unmaps it again, or trims the heap's end behind it (mallopt(3): both thresholds begin at
128 KiB), and the kernel then clears every page before the same bytes go through it: docs/adr/0010-embedded-granian.md
has the figures. A wish only: another C library, or a glibc that refuses, serves the same bytes at more CPU.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Final

KEPT_BYTES: Final = 32 << 20
"""Up to so much at the heap's end is kept instead of given back, and blocks up to this size come from the heap. It is
the largest threshold that glibc accepts on 64 bits (mallopt(3), M_MMAP_THRESHOLD, DEFAULT_MMAP_THRESHOLD_MAX)."""

ARENAS: Final = 1
"""Heaps: one, since a piece is asked for by the loop's thread and freed by granian's. Python's own small objects do not
come from here, so that threads seldom meet at its lock."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""Numbers from glibc's malloc.h."""

WISHES: Final = ((_M_MMAP_THRESHOLD, KEPT_BYTES), (_M_TRIM_THRESHOLD, KEPT_BYTES), (_M_ARENA_MAX, ARENAS))


def keep_large_blocks() -> bool:
    """Set the process's allocator so; returns whether it took every wish. Call it before there are threads.

    False, and nothing changed, where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    taken = [mallopt(name, value) == 1 for name, value in WISHES]
    return all(taken)
