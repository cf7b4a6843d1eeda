"""How often one device may ask: a token bucket for each, in bounded memory."""

from __future__ import annotations

import math
from datetime import datetime
from itertools import islice
from typing import Final

from flota.errors import TooManyRequests

BURST: Final = 120
"""Requests at once: an hour of a device that asks every 30 s after it was cut off, or a user at the bench."""

PEERS_MAX: Final = 50_000
"""Devices counted at a time. First go those that have used up nothing, then the oldest: to their advantage."""

DROPPED_AT_ONCE: Final = 20
"""At least one in so many goes when there are too many: one by one would cost a walk through all of them each."""


class DeviceRates:
    """One bucket for each key (a MAC, a device's name, an address).

    A bucket is one number: the time up to which the requests of its device have used up what was refilled (the generic
    cell rate algorithm, ITU-T I.371, annex A). A time gone by is a full bucket.
    """

    def __init__(self, *, refill_per_s: float, burst: int = BURST, peers_max: int = PEERS_MAX) -> None:
        self._each_s = 1 / refill_per_s
        self._ahead_s = burst / refill_per_s
        self._peers_max = peers_max
        self._used_until: dict[str, float] = {}

    def take(self, key: str, *, now: datetime) -> None:
        """Count one request of `key`. Raises `TooManyRequests` with the seconds after which the next is welcome."""
        at = now.timestamp()
        used = self._used_until.get(key)
        if used is None:
            if len(self._used_until) >= self._peers_max:
                self._drop(at)
            used = at
        used = min(max(used, at), at + self._ahead_s) + self._each_s
        wait_s = used - at - self._ahead_s
        if wait_s > _ROUNDING_S:
            raise TooManyRequests("this device asks too often", retry_after_s=max(1, math.ceil(wait_s)))
        self._used_until[key] = used

    def _drop(self, at: float) -> None:
        for key in [key for key, used in self._used_until.items() if used <= at]:
            del self._used_until[key]
        too_many = len(self._used_until) - self._peers_max + max(1, self._peers_max // DROPPED_AT_ONCE)
        for key in list(islice(self._used_until, max(0, too_many))):
            del self._used_until[key]


_ROUNDING_S: Final = 1e-4
"""A time since 1970 has this much precision left after a burst of additions, and more."""
