"""Markers: what our own sample firmware tells the virtual device that runs it.

A virtual device runs no machine code. The sample firmware (`examples/firmware`) therefore carries, anywhere in its
read-only data, the ASCII text `FLOTA-LAB{key=value;key=value}`: keys `[a-z-]+`, values `[A-Za-z0-9._-]+`.
Firmware of others has none, and behaves well.
"""

from __future__ import annotations

import re
from typing import Final

MARKER_START: Final = b"FLOTA-LAB{"
MARKER_MAX_BYTES: Final = 256
"""From the opening brace to the closing one; longer is not a marker."""
MARKERS_MAX: Final = 16
"""How many places in one file are looked at; a file full of marker starts costs no more than this."""

_BODY = re.compile(rb"([a-z-]+=[A-Za-z0-9._-]+(?:;[a-z-]+=[A-Za-z0-9._-]+)*);?\}")


def find_markers(data: bytes | memoryview, start: int = 0, end: int | None = None) -> dict[str, str]:
    """Return the keys and values of every marker in `data[start:end]`; later ones win. Empty if there is none."""
    if isinstance(data, memoryview):
        data, start, end = bytes(data[start:end]), 0, None
    end = len(data) if end is None else end
    found: dict[str, str] = {}
    if data.rfind(MARKER_START, start, end) < 0:  # backwards takes two thirds of the time, and most files have none
        return found
    position = data.find(MARKER_START, start, end)
    for _ in range(MARKERS_MAX):
        if position < 0:
            break
        after = position + len(MARKER_START)
        body = _BODY.match(data[after : min(after + MARKER_MAX_BYTES, end)])
        if body:
            pairs = (pair.split("=", 1) for pair in body.group(1).decode("ascii").split(";"))
            found.update((key, value) for key, value in pairs)
        position = data.find(MARKER_START, after, end)
    return found


def pack_marker(values: dict[str, str]) -> bytes:
    """Return the marker that `find_markers` reads as `values`; raises `ValueError` for keys or values not allowed."""
    text = ";".join(f"{key}={value}" for key, value in values.items()) + "}"
    encoded = text.encode("utf-8")
    if len(encoded) > MARKER_MAX_BYTES or not _BODY.fullmatch(encoded):
        raise ValueError(f"not a marker: {text[:MARKER_MAX_BYTES]!r}")
    return MARKER_START + encoded
