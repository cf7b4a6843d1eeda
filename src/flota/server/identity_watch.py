"""Two devices with one identity: the same name and token, seen to go back and forth between two addresses.

A device that moves changes its address once. Two devices that share an identity alternate: A, B, A, B, each within the
poll interval. Attributes are watched in the same way over a day, because they are sent only now and then.

Source: docs/reference/hawkbit-ddi.md, "Two devices with one identity".
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

RETURNS_MAX: Final = 3
"""Changes between the same two values, each back to the one before, that are taken for two devices."""

INTERVALS: Final = 3
"""All of these changes within so many poll intervals: two devices make them in one and a half."""

ATTRIBUTES_WITHIN: Final = timedelta(days=1)
WATCHED_MAX: Final = 10_000
"""Devices whose last changes are remembered; most never change their address, and are not among them."""


@dataclass(frozen=True, slots=True)
class Alternation:
    """The last change of a trait: from `before` to `after`; `times` are of the changes between just these two."""

    before: str
    after: str
    times: tuple[datetime, ...]


def next_alternation(
    last: Alternation | None, before: str, after: str, *, now: datetime, within: timedelta
) -> Alternation:
    """Return what is known after a change from `before` to `after`."""
    is_return = last is not None and (last.before, last.after) == (after, before)
    earlier = tuple(at for at in last.times if now - at <= within) if last is not None and is_return else ()
    return Alternation(before, after, (*earlier, now)[-RETURNS_MAX:])


def is_conflict(alternation: Alternation) -> bool:
    """Whether the changes are those of two devices."""
    return len(alternation.times) >= RETURNS_MAX


class IdentityWatch:
    """The last changes of every device that changed at all, in bounded memory, of one server process."""

    def __init__(self, *, watched_max: int = WATCHED_MAX) -> None:
        self._watched_max = watched_max
        self._last: OrderedDict[tuple[int, str], Alternation] = OrderedDict()
        self._told: OrderedDict[tuple[int, str], None] = OrderedDict()

    def changed(
        self, device_id: int, trait: str, before: str, after: str, *, now: datetime, within: timedelta
    ) -> tuple[str, str] | None:
        """Note that a trait of a device changed; returns both values, once, when it looks like two devices.

        `within` bounds the time that all the changes may take.
        """
        key = (device_id, trait)
        alternation = next_alternation(self._last.pop(key, None), before, after, now=now, within=within)
        self._last[key] = alternation
        if len(self._last) > self._watched_max:
            self._last.popitem(last=False)
        if not is_conflict(alternation):
            return None
        seen = (min(before, after), max(before, after))
        told = (device_id, f"{trait}={seen}")
        if told in self._told:
            return None
        self._told[told] = None
        if len(self._told) > self._watched_max:
            self._told.popitem(last=False)
        return seen

    def settled(self, device_id: int) -> None:
        """Forget what was told about a device: its token was replaced, so a new conflict is news again."""
        for key in [key for key in self._told if key[0] == device_id]:
            del self._told[key]
