"""How often one address may connect: a token bucket for each, in bounded memory. Pure: the time comes in."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

CONNECTS_PER_S: Final = 200.0
CONNECT_BURST: Final = 4_000
"""A site whose devices share one address and all come back after a power cut."""

ADDRESSES_MAX: Final = 20_000
"""Buckets kept; the one used longest ago gives way."""


class ConnectRates:
    """One bucket for each address."""

    def __init__(
        self, *, per_s: float = CONNECTS_PER_S, burst: int = CONNECT_BURST, addresses_max: int = ADDRESSES_MAX
    ) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._addresses_max = addresses_max
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str, *, now: float) -> bool:
        """Count one connection from `address`; returns whether it is allowed. `now` in seconds."""
        left, since = self._buckets.pop(address, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - since) * self._per_s)
        allowed = left >= 1
        self._buckets[address] = (left - 1 if allowed else left, now)
        if len(self._buckets) > self._addresses_max:
            self._buckets.popitem(last=False)
        return allowed
