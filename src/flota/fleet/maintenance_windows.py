"""Maintenance windows: the hours of a week in which devices may install. Pure; the time comes in.

A schedule is written as people say it: `sat,sun 02:00 3h Europe/Berlin` - the weekdays on which a window opens
(`daily`, `mon-fri`, `sat,sun`), the local time at which it opens, how long it stays open, and the time zone.

The opening is a local time, the duration is time that passes: in the night in which clocks change, a window of three
hours still lasts three hours. An opening that falls into the hour that is left out comes that much later; one in the
hour that comes twice is the first of the two.

The zone `local` is each device's own: its label `timezone`, UTC for a device without one; `local/Europe/Berlin` takes
Europe/Berlin for those. A label that names no zone counts as none.

Source: docs/reference/hawkbit-ddi.md, "Maintenance windows"; time zone rules: the system's database (IANA).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from flota.errors import InvalidInput

WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""In the order of `datetime.date.weekday`."""

DURATION_MIN_MINUTES: Final = 5
"""Shorter than a usual poll interval, a window could pass without any device having asked."""

DURATION_MAX_MINUTES: Final = 24 * 60
SCHEDULE_MAX_LEN: Final = 120
"""Characters of a written schedule."""

UTC_ZONE: Final = "UTC"
LOCAL_ZONE: Final = "local"
"""The device's own zone; `local/ZONE` says what counts for devices that have none."""

ZONE_LABEL: Final = "timezone"
"""The device's label that names its zone."""

RULE: Final = (
    "WEEKDAYS HH:MM DURATION ZONE, for example: sat,sun 02:00 3h Europe/Berlin (or local: each device's own zone)"
)

_HORIZON_DAYS: Final = 8
"""Every schedule opens at least once in so many days."""

_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])\Z")
_DURATION = re.compile(r"(?:([0-9]{1,2})h)?(?:([0-9]{1,4})m)?\Z")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}\Z")


@dataclass(frozen=True, slots=True)
class MaintenanceSchedule:
    """When windows open: `weekdays` (0 is Monday), `opens_at` in local time of `zone`, for `duration_minutes`."""

    weekdays: frozenset[int]
    opens_at: time
    duration_minutes: int
    zone: str

    def __post_init__(self) -> None:
        if not self.weekdays or not self.weekdays <= frozenset(range(7)):
            raise InvalidInput("a maintenance window without a weekday", expected=RULE)
        if not DURATION_MIN_MINUTES <= self.duration_minutes <= DURATION_MAX_MINUTES:
            raise InvalidInput(
                "a maintenance window's duration is out of bounds",
                expected=f"{DURATION_MIN_MINUTES}m to {DURATION_MAX_MINUTES // 60}h",
                found=f"{self.duration_minutes}m",
            )
        if self.opens_at.tzinfo is not None or self.opens_at.second or self.opens_at.microsecond:
            raise InvalidInput("a maintenance window opens at a local minute", expected="HH:MM")
        if self.is_local:
            if self.zone != LOCAL_ZONE:
                _zone(self.zone.partition("/")[2])
        else:
            _zone(self.zone)

    @property
    def is_local(self) -> bool:
        """Whether it opens by each device's own clock."""
        return self.zone.partition("/")[0] == LOCAL_ZONE

    def for_device(self, labels: Mapping[str, str]) -> MaintenanceSchedule:
        """Return the schedule in the zone of a device with these labels."""
        if not self.is_local:
            return self
        own = labels.get(ZONE_LABEL, "")
        if own and is_zone(own):
            return replace(self, zone=own)
        return replace(self, zone=self.zone.partition("/")[2] or UTC_ZONE)

    def __str__(self) -> str:
        """Return the schedule as `parse_schedule` reads it."""
        hours, minutes = divmod(self.duration_minutes, 60)
        duration = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")
        days = "daily" if len(self.weekdays) == 7 else ",".join(WEEKDAYS[day] for day in sorted(self.weekdays))
        return f"{days} {self.opens_at:%H:%M} {duration} {self.zone}"


@dataclass(frozen=True, slots=True)
class WindowState:
    """Whether a window is open, and the moment from which on this may be otherwise (UTC)."""

    is_open: bool
    until: datetime


def parse_schedule(text: str) -> MaintenanceSchedule:
    """Return the schedule in `text`; letters in any case. Raises `InvalidInput` saying what of it cannot be read."""
    if len(text) > SCHEDULE_MAX_LEN:
        raise InvalidInput("the maintenance window is too long a text", expected=f"at most {SCHEDULE_MAX_LEN}")
    words = text.split()
    if len(words) == 3:
        words.append(UTC_ZONE)
    if len(words) != 4:
        raise InvalidInput("not a maintenance window", expected=RULE, found=repr(text))
    days, opens, duration, zone = words
    found = _TIME.match(opens)
    if found is None:
        raise InvalidInput("not the time at which a window opens", expected="HH:MM", found=repr(opens))
    return MaintenanceSchedule(
        weekdays=frozenset(_weekdays(days.lower())),
        opens_at=time(int(found.group(1)), int(found.group(2))),
        duration_minutes=_minutes(duration.lower()),
        zone=zone if zone.upper() != UTC_ZONE else UTC_ZONE,
    )


def _weekdays(text: str) -> Iterator[int]:
    if text == "daily":
        yield from range(7)
        return
    for part in text.split(","):
        first, separator, last = part.partition("-")
        if first not in WEEKDAYS or (separator and last not in WEEKDAYS):
            raise InvalidInput("not weekdays", expected="daily, mon-fri or sat,sun", found=repr(text))
        start = WEEKDAYS.index(first)
        span = (WEEKDAYS.index(last) - start) % 7 if separator else 0
        yield from ((start + step) % 7 for step in range(span + 1))


def _minutes(text: str) -> int:
    found = _DURATION.match(text)
    if found is None or not text:
        raise InvalidInput("not a duration", expected="3h, 90m or 1h30m", found=repr(text))
    return int(found.group(1) or 0) * 60 + int(found.group(2) or 0)


def is_zone(name: str) -> bool:
    """Whether this machine knows a time zone of this name."""
    try:
        _zone(name)
    except InvalidInput:
        return False
    return True


def _zone(name: str) -> ZoneInfo:
    if not _ZONE.match(name):
        raise InvalidInput("not a time zone", expected="a name like Europe/Berlin, or UTC", found=repr(name[:60]))
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidInput(
            "this machine knows no such time zone",
            expected="a name like Europe/Berlin, or UTC",
            found=repr(name[:60]),
            hint="Names are case-sensitive. If the machine has no time zones at all: pip install tzdata.",
        ) from error


def window_state(schedule: MaintenanceSchedule, *, now: datetime) -> WindowState:
    """Return whether a window is open at `now` (aware), and until when that holds.

    Windows that touch or overlap (24 hours, every day) count as one; `until` then is the end of what was looked at.
    A schedule in devices' own time has to be a device's first (`for_device`).
    """
    zone = _zone(schedule.zone)
    today = now.astimezone(zone).date()
    duration = timedelta(minutes=schedule.duration_minutes)
    until: datetime | None = None
    for step in range(-2, _HORIZON_DAYS + 1):
        opens = _opening(schedule, today + timedelta(days=step), zone)
        if opens is None:
            continue
        closes = opens + duration
        if until is not None:
            if opens > until:
                break
            until = max(until, closes)
        elif now < opens:
            return WindowState(is_open=False, until=opens)
        elif now < closes:
            until = closes
    if until is None:  # not reached: every weekday comes within the horizon
        raise AssertionError(f"no window within {_HORIZON_DAYS} days: {schedule}")
    return WindowState(is_open=True, until=until)


def _opening(schedule: MaintenanceSchedule, day: date, zone: ZoneInfo) -> datetime | None:
    """Return when the window of a local day opens, in UTC; None on other weekdays."""
    if day.weekday() not in schedule.weekdays:
        return None
    return datetime.combine(day, schedule.opens_at, zone).astimezone(UTC)


SLEEP_PARTS: Final = 3
"""hawkBit's maintenanceWindowPollCount: how many polls a device should make until the window opens."""

SLEEP_MIN_S: Final = 30
"""hawkBit's shortest sleep; a shorter poll interval of the type stays as it is."""


def sleep_before_window(opens: datetime, *, now: datetime, interval_s: int) -> int:
    """Return how long (seconds) a device should sleep while its window is closed: a third of the rest, within bounds.

    At least 30 s (or the interval, if that is shorter), at most the interval.
    """
    share = int((opens - now).total_seconds()) // SLEEP_PARTS
    return min(max(share, min(SLEEP_MIN_S, interval_s)), interval_s)
