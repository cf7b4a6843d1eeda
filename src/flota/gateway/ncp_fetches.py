"""How often an NCP tries to fetch the file of one update: a limit in a period, as the vendor's cloud has it.

Source: docs/reference/blynk.md, "flota ncp run".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

FETCHES: Final = 3
"""Downloads that may fail; one that goes on after a break is the same one."""
FETCH_PERIOD: Final = timedelta(hours=24)
"""From the first failure on; then they are counted anew."""


@dataclass(frozen=True, slots=True)
class FailedFetches:
    """Downloads of an action that failed; `first_at` in seconds since the epoch."""

    action_id: int
    count: int
    first_at: int

    @property
    def again_at(self) -> datetime:
        """When they are counted anew."""
        return datetime.fromtimestamp(self.first_at, UTC) + FETCH_PERIOD

    @property
    def is_at_limit(self) -> bool:
        """Whether no further one is made in this period."""
        return self.count >= FETCHES

    @property
    def words(self) -> str:
        """What people are told."""
        again = f"{self.again_at:%Y-%m-%d %H:%M} UTC"
        return f"download limit reached: {self.count} downloads failed; the next one after {again}"


def counted(kept: FailedFetches | None, action_id: int, *, now: datetime) -> FailedFetches | None:
    """Return what counts of the kept failures: None for another action's, or when their period is over.

    A clock that was set back counts as a period that is over: nobody waits for longer than one.
    """
    if kept is None or kept.action_id != action_id:
        return None
    since = now - datetime.fromtimestamp(kept.first_at, UTC)
    return kept if timedelta(0) <= since < FETCH_PERIOD else None


def after_failure(kept: FailedFetches | None, action_id: int, *, now: datetime) -> FailedFetches:
    """Return the failures after one more."""
    before = counted(kept, action_id, now=now)
    if before is None:
        return FailedFetches(action_id, 1, int(now.timestamp()))
    return FailedFetches(action_id, before.count + 1, before.first_at)
