"""Version labels: any vendor's text, cleaned, with an order that people expect.

A version label is text, never trusted to be a number. What decides about rollback is the release's sequence number;
the order here is only for display and for warnings.
"""

from __future__ import annotations

import re
from typing import Final

from flota.errors import InvalidInput

VERSION_MAX_BYTES: Final = 128
"""The longest label any route carries: Viam's micro-RDK takes up to 128 bytes (docs/reference/esp-image.md)."""

_NUMBERS_THEN_REST = re.compile(r"[vV]?(\d+(?:\.\d+)*)?(.*)", re.DOTALL)
_PIECES = re.compile(r"\d+|[^\W\d_]+")

VersionKey = tuple[tuple[int, int, str], ...]


def parse_version(text: str) -> str:
    """Return `text` as a version label, surrounding white space removed.

    Raises `InvalidInput` if it is empty, longer than 128 bytes in UTF-8, or has control characters.
    """
    label = text.strip()
    if not label:
        raise InvalidInput("the version is empty", hint="Give a version such as 1.2.0.")
    if not label.isprintable():
        raise InvalidInput("the version has control characters", found=repr(label[:VERSION_MAX_BYTES]))
    length = len(label.encode("utf-8", "replace"))
    if length > VERSION_MAX_BYTES:
        raise InvalidInput(
            "the version is too long", expected=f"at most {VERSION_MAX_BYTES} bytes", found=f"{length} bytes"
        )
    return label


def version_order(label: str) -> VersionKey:
    """Return a sort key: numbers by value, words by text, and a pre-release (`1.0-rc1`) before its release (`1.0`).

    Every pair of labels compares; `v1.2`, `1.2` and `1.2.0` are equal, and build metadata after `+` is ignored.
    """
    match = _NUMBERS_THEN_REST.match(label.strip().split("+", 1)[0])
    numbers, rest = (match.group(1) or "", match.group(2)) if match else ("", label)
    values = [int(piece) for piece in numbers.split(".") if piece]
    while values and values[-1] == 0:
        values.pop()
    return (*((1, value, "") for value in values), *map(_rank, _PIECES.findall(rest)), (0, 0, ""))


def _rank(piece: str) -> tuple[int, int, str]:
    if piece.isdecimal():
        return (1, int(piece), "")
    return (-1, 0, piece.lower())
