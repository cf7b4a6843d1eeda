"""How often one device may ask: a token bucket for each, in bounded memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from datetime import datetime
from typing import Final

from flota.errors import TooManyRequests

BURST: Final = 120
"""Requests at once: an hour of a device that asks every 30 s after it was cut off, or a user at the bench."""

PEERS_MAX: Final = 50_000
"""Buckets kept; the one used longest ago gives way, which can only be to its advantage."""


class DeviceRates:
    """One bucket for each key (a MAC, a device's name, an address)."""

    def __init__(self, *, refill_per_s: float, burst: int = BURST, peers_max: int = PEERS_MAX) -> None:
        self._burst = burst
        self._refill_per_s = refill_per_s
        self._peers_max = peers_max
        self._buckets: OrderedDict[str, tuple[float, datetime]] = OrderedDict()

    def take(self, key: str, *, now: datetime) -> None:
        """Count one request of `key`. Raises `TooManyRequests` with the seconds after which the next is welcome."""
        left, since = self._buckets.pop(key, (float(self._burst), now))
        left = min(float(self._burst), left + max(0.0, (now - since).total_seconds()) * self._refill_per_s)
        allowed = left >= 1
        self._buckets[key] = (left - 1 if allowed else left, now)
        if len(self._buckets) > self._peers_max:
            self._buckets.popitem(last=False)
        if not allowed:
            wait_s = max(1, math.ceil((1 - left) / self._refill_per_s))
            raise TooManyRequests("this device asks too often", retry_after_s=wait_s)
