"""How often a device may ask for its file, and when it is counted anew. Pure: no clock.

A round begins with a device's first request and lasts for the limit's period. Who has asked as often as it may rests
until the round is over, then it is offered the file again; a limit without a period is one for ever.
Source: docs/reference/blynk.md, "Shipments".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from flota.fleet.executions import moment_in_detail
from flota.fleet.shipments import RETRY_DETAIL, STATUS_DETAIL, DeviceStatus, ShipmentConditions

REQUESTS_DETAIL: Final = "requests"
ROUND_BEGAN_DETAIL: Final = "round-began-at"
ROUND_BASE_DETAIL: Final = "round-base"


@dataclass(frozen=True, slots=True)
class AttemptLimit:
    """`count` requests for a file from its first byte, within `period` (None: in all)."""

    count: int
    period: timedelta | None = None


def limit_of(conditions: ShipmentConditions, count: int) -> AttemptLimit:
    """Return the limit of a shipment that allows `count` requests."""
    seconds = conditions.attempt_period_s
    return AttemptLimit(count, None if seconds is None else timedelta(seconds=seconds))


@dataclass(frozen=True, slots=True)
class Attempts:
    """What an execution's details say. `requests` are all that there were, `round_base` those before this round."""

    requests: int = 0
    round_began_at: datetime | None = None
    round_base: int = 0
    retry_at: datetime | None = None
    """Until when it rests; it is set until the file was offered again."""

    def round_ends_at(self, limit: AttemptLimit) -> datetime | None:
        """Return when the requests are counted anew; None if no round has begun, or ends."""
        if limit.period is None or self.round_began_at is None:
            return None
        return self.round_began_at + limit.period

    def used(self, limit: AttemptLimit, *, now: datetime) -> int:
        """Return how many requests count against the limit at `now`."""
        if limit.period is None:
            return self.requests
        ends_at = self.round_ends_at(limit)
        return 0 if ends_at is None or now >= ends_at else self.requests - self.round_base

    def request(self, limit: AttemptLimit, *, now: datetime) -> dict[str, str | None]:
        """Return the details after one more request at `now`."""
        details: dict[str, str | None] = {REQUESTS_DETAIL: str(self.requests + 1), RETRY_DETAIL: None}
        ends_at = self.round_ends_at(limit)
        if limit.period is not None and (ends_at is None or now >= ends_at):
            details |= {ROUND_BEGAN_DETAIL: now.isoformat(), ROUND_BASE_DETAIL: str(self.requests)}
        return details

    def rest(self, limit: AttemptLimit, *, now: datetime) -> tuple[dict[str, str | None], datetime] | None:
        """Return the details of a device that has asked as often as it may, and until when it rests; else None."""
        ends_at = self.round_ends_at(limit)
        if ends_at is None or self.used(limit, now=now) < limit.count:
            return None
        details: dict[str, str | None] = {
            STATUS_DETAIL: DeviceStatus.LIMIT_REACHED.value,
            RETRY_DETAIL: ends_at.isoformat(),
        }
        return details, ends_at


NO_ATTEMPTS: Final = Attempts()


def attempts_in(details: Mapping[str, str]) -> Attempts:
    """Return what an execution's details say; what cannot be read counts as absent."""
    requests = _count(details.get(REQUESTS_DETAIL))
    return Attempts(
        requests=requests,
        round_began_at=moment_in_detail(details.get(ROUND_BEGAN_DETAIL)),
        round_base=min(_count(details.get(ROUND_BASE_DETAIL)), requests),
        retry_at=moment_in_detail(details.get(RETRY_DETAIL)),
    )


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) <= 9 else 0
