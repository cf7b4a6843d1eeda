"""Things that connect again and again and never come to work: agents that restart for ever.

An agent whose image is on trial, and whose job is not in self-test, restarts its board at once or when its timer runs
out; the board says nothing of it, so only its connections show. Pure.
Source: docs/reference/aws-iot.md, "Things that restart for ever"; docs/reference/nuvoton.md, "Power cuts".
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

CONNECTIONS_MIN: Final = 8
"""A board whose self-test timer of 16 s runs out restarts about three times a minute."""

WITHIN: Final = timedelta(minutes=10)
TOLD_AGAIN_AFTER: Final = timedelta(hours=1)


@dataclass(slots=True)
class _Connections:
    """The last connections of a thing that has not come to work since."""

    moments: deque[datetime] = field(default_factory=lambda: deque(maxlen=CONNECTIONS_MIN))
    told_at: datetime | None = None


class RestartWatch:
    """Counts. It remembers things for as long as `WITHIN` and `TOLD_AGAIN_AFTER` need them."""

    def __init__(self) -> None:
        self._things: OrderedDict[int, _Connections] = OrderedDict()

    def __len__(self) -> int:
        """How many things are remembered."""
        return len(self._things)

    def connected(self, device_id: int, *, now: datetime) -> timedelta | None:
        """Count a connection; return in what time the last `CONNECTIONS_MIN` came, if that is to be told now."""
        found = self._things.setdefault(device_id, _Connections())
        self._things.move_to_end(device_id)
        self._drop_old(now)
        found.moments.append(now)
        span = now - found.moments[0]
        if len(found.moments) < CONNECTIONS_MIN or span > WITHIN:
            return None
        if found.told_at is not None and now - found.told_at < TOLD_AGAIN_AFTER:
            return None
        found.told_at = now
        return span

    def at_work(self, device_id: int) -> None:
        """Forget a thing that asks for blocks or reports: it goes on."""
        self._things.pop(device_id, None)

    def _drop_old(self, now: datetime) -> None:
        while self._things:
            device_id, oldest = next(iter(self._things.items()))
            if not oldest.moments or now - oldest.moments[-1] <= TOLD_AGAIN_AFTER:
                return
            del self._things[device_id]
