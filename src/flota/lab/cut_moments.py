"""The cut moments of a flash operation: before, inside with each torn pattern, after; and how each is written down.

A moment is a short text, so that a failure can be told in one line: `before`, `after`, or the name of a tear, with a
number where the tear is random (`random@7`) or a mask (`words@64`).

Source: docs/reference/power-cuts.md, "Cut moments".
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flota.errors import InvalidInput
from flota.virtual.flash import (
    Cut,
    CutPhase,
    FlashOperation,
    FlashOperationKind,
    Tear,
    WeakErase,
    first_bytes,
    first_half,
    random_bits,
    random_last_unit,
    second_half,
    words,
)

BEFORE: Final = "before"
AFTER: Final = "after"
UNIT_BYTES: Final = 4
"""The smallest piece that a torn operation leaves old or new: one word, the write unit of the chips that we have."""


def _without_number(tear: Tear) -> Callable[[int], Tear]:
    return lambda _: tear


_PROGRAM: Final[dict[str, Callable[[int], Tear]]] = {
    "first-byte": _without_number(first_bytes(1)),
    "first-unit": _without_number(first_bytes(UNIT_BYTES)),
    "half": _without_number(first_half),
    "all-but-last-unit": _without_number(first_bytes(-UNIT_BYTES)),
    "all-but-last-byte": _without_number(first_bytes(-1)),
    "random-last-unit": lambda number: random_last_unit(random.Random(number), UNIT_BYTES),  # noqa: S311
}


def _only_last_unit(before: bytes, after: bytes) -> bytes:
    return before[:-UNIT_BYTES] + after[-UNIT_BYTES:]


_ERASE: Final[dict[str, Callable[[int], Tear]]] = {
    "first-half": _without_number(first_half),
    "second-half": _without_number(second_half),
    "all-but-last-unit": _without_number(first_bytes(-UNIT_BYTES)),
    "only-last-unit": _without_number(_only_last_unit),
    "random": lambda number: random_bits(random.Random(number)),  # noqa: S311
    "weak": WeakErase,
}
_NUMBERED: Final = frozenset({"random-last-unit", "random", "weak"})
_MASKED: Final = "words"
_HARSH_MASKS: Final = (1 << 6, 0xFF & ~(1 << 6))
"""Of the eight words of an otadata entry: the state alone, and all but the state. No check covers the state."""


@dataclass(frozen=True, slots=True)
class CutMoment:
    """One moment of one flash operation. `operation` counts from 0 since the power came."""

    operation: int
    moment: str

    def __str__(self) -> str:
        """Return the form that `parse_moment` reads."""
        return f"{self.operation}:{self.moment}"


def moments_of(operation: FlashOperation, *, number: int, harsh: bool = False) -> tuple[str, ...]:
    """Return the names of all cut moments of an operation; `number` is what random tears draw from.

    `harsh` adds tears that reach single words in no order: nothing on the device can see some of those.
    """
    if operation.kind is FlashOperationKind.COMMIT:
        return (BEFORE, AFTER)
    tears = _ERASE if operation.kind is FlashOperationKind.ERASE else _PROGRAM
    inside = [f"{name}@{number}" if name in _NUMBERED else name for name in tears]
    if harsh:
        inside += [f"{_MASKED}@{mask}" for mask in _HARSH_MASKS]
    return (BEFORE, *inside, AFTER)


def has_moment(kind: FlashOperationKind, moment: str) -> bool:
    """Return whether operations of that kind have the moment."""
    if moment in (BEFORE, AFTER):
        return True
    name = moment.partition("@")[0]
    known = _ERASE if kind is FlashOperationKind.ERASE else _PROGRAM
    return kind is not FlashOperationKind.COMMIT and (name in known or name == _MASKED)


def cut_of(moment: str, kind: FlashOperationKind) -> Cut:
    """Return the cut that a moment's name stands for. Raises `InvalidInput` for a name that this kind does not have."""
    if moment == BEFORE:
        return Cut(CutPhase.BEFORE)
    if moment == AFTER:
        return Cut(CutPhase.AFTER)
    name, _, number = moment.partition("@")
    known = _ERASE if kind is FlashOperationKind.ERASE else _PROGRAM if kind is FlashOperationKind.PROGRAM else {}
    if (name in known or (name == _MASKED and known)) and (name in _NUMBERED or name == _MASKED) == number.isdecimal():
        tear = words(int(number)) if name == _MASKED else known[name](int(number or 0))
        return Cut(CutPhase.INSIDE, tear)
    names = ", ".join((BEFORE, *(f"{one}@N" if one in _NUMBERED else one for one in known), AFTER))
    raise InvalidInput(f"a flash {kind.value} has no such cut moment", expected=names, found=repr(moment[:40]))


def parse_moment(text: str) -> CutMoment:
    """Return the moment written as `OPERATION:MOMENT`. Raises `InvalidInput`."""
    operation, colon, moment = text.partition(":")
    if not colon or not operation.isdecimal() or not moment or len(operation) > 12:
        raise InvalidInput("not a cut", expected="OPERATION:MOMENT, such as 12:before", found=repr(text[:60]))
    return CutMoment(int(operation), moment)
