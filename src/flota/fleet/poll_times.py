"""When a device is told to come back: about its type's interval, a little different for each device and period.

Devices that were switched on together, or lost the server together, would otherwise ask together for ever.
Source: docs/reference/hawkbit-ddi.md, "When to come back".
"""

from __future__ import annotations

import functools
import zlib
from datetime import UTC, datetime, timedelta
from typing import Final

JITTER_PERCENT_MAX: Final = 50
JITTER_PERIOD_S: Final = 24 * 3600
"""How long a device keeps its difference: an answer that changed with every poll could never be "not modified", and
whenever it changes it is made anew, at ten times the cost. A difference that lasts spreads devices all the more."""

BEGINS_EVERY_S: Final = 60
"""Periods begin at whole minutes, so that the devices of a minute share what is kept of it."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def jittered(interval_s: int, *, device_id: int, percent: int, now: datetime) -> tuple[int, datetime | None]:
    """Return `interval_s` give or take at most `percent` of it, and until when (None: for good) it stays so.

    It depends on the device and the period alone, and periods begin at any minute of the day, by device. On average
    over devices and periods it is `interval_s`.
    """
    spread = interval_s * percent // 100
    if spread == 0:
        return interval_s, None
    begins_s = zlib.crc32(b"%d" % device_id) % (JITTER_PERIOD_S // BEGINS_EVERY_S) * BEGINS_EVERY_S
    period = (int((now - _EPOCH).total_seconds()) + begins_s) // JITTER_PERIOD_S
    offset = zlib.crc32(b"%d/%d" % (device_id, period)) % (2 * spread + 1) - spread
    return interval_s + offset, _end_of(period, begins_s)


@functools.lru_cache(maxsize=2 * JITTER_PERIOD_S // BEGINS_EVERY_S)
def _end_of(period: int, begins_s: int) -> datetime:
    return _EPOCH + timedelta(seconds=(period + 1) * JITTER_PERIOD_S - begins_s)
