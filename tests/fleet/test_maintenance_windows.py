"""Maintenance windows are what people write, on every day of the year, the two strange nights included."""

from __future__ import annotations

import contextlib
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flota.errors import InvalidInput
from flota.fleet.maintenance_windows import (
    DURATION_MAX_MINUTES,
    DURATION_MIN_MINUTES,
    SLEEP_MIN_S,
    MaintenanceSchedule,
    parse_schedule,
    sleep_before_window,
    window_state,
)

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia")


@st.composite
def schedules(draw: st.DrawFn) -> MaintenanceSchedule:
    return MaintenanceSchedule(
        weekdays=draw(st.frozensets(st.integers(0, 6), min_size=1)),
        opens_at=time(draw(st.integers(0, 23)), draw(st.integers(0, 59))),
        duration_minutes=draw(st.integers(DURATION_MIN_MINUTES, DURATION_MAX_MINUTES)),
        zone=draw(st.sampled_from(ZONES)),
    )


FIRST, LAST = datetime(2020, 1, 1), datetime(2035, 1, 1)  # noqa: DTZ001 - Hypothesis adds the zone
moments = st.datetimes(FIRST, LAST, timezones=st.just(UTC)).map(lambda moment: moment.replace(microsecond=0))


def is_open_by_the_book(schedule: MaintenanceSchedule, now: datetime) -> bool:
    """The definition: some window's opening lies no more than its duration back."""
    zone = ZoneInfo(schedule.zone)
    for back in range(-1, 4):
        day: date = (now - timedelta(days=back)).astimezone(zone).date()
        if day.weekday() in schedule.weekdays:
            opens = datetime.combine(day, schedule.opens_at, zone).astimezone(UTC)
            if opens <= now < opens + timedelta(minutes=schedule.duration_minutes):
                return True
    return False


@given(schedules())
def test_what_is_written_is_read_again(schedule: MaintenanceSchedule) -> None:
    assert parse_schedule(str(schedule)) == schedule


@given(schedules(), moments)
@settings(max_examples=300)
def test_a_window_is_open_exactly_when_the_definition_says_so(schedule: MaintenanceSchedule, now: datetime) -> None:
    assert window_state(schedule, now=now).is_open == is_open_by_the_book(schedule, now)


@given(schedules(), moments)
@settings(max_examples=300)
def test_a_state_holds_until_it_says_and_not_a_moment_longer(schedule: MaintenanceSchedule, now: datetime) -> None:
    state = window_state(schedule, now=now)
    assert now < state.until <= now + timedelta(days=10)
    just_before = window_state(schedule, now=state.until - timedelta(microseconds=1))
    assert just_before.is_open == state.is_open
    after = window_state(schedule, now=state.until)
    always = schedule.duration_minutes == DURATION_MAX_MINUTES
    assert after.is_open != state.is_open or (state.is_open and always)


@given(schedules(), moments)
def test_an_hour_that_is_left_out_or_comes_twice_changes_no_duration(
    schedule: MaintenanceSchedule, now: datetime
) -> None:
    state = window_state(schedule, now=now)
    if state.is_open:
        return
    opened = window_state(schedule, now=state.until)
    assert opened.is_open
    assert opened.until - state.until >= timedelta(minutes=schedule.duration_minutes)


def test_the_night_in_which_an_hour_is_left_out() -> None:
    schedule = parse_schedule("sun 02:30 1h Europe/Berlin")
    closed = window_state(schedule, now=datetime(2026, 3, 29, 0, 0, tzinfo=UTC))
    assert closed.until == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)  # 03:30 by the new time
    assert window_state(schedule, now=closed.until).until == datetime(2026, 3, 29, 2, 30, tzinfo=UTC)


def test_the_night_in_which_an_hour_comes_twice() -> None:
    schedule = parse_schedule("sun 02:30 1h Europe/Berlin")
    closed = window_state(schedule, now=datetime(2026, 10, 25, 0, 0, tzinfo=UTC))
    assert closed.until == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)  # the first 02:30
    state = window_state(schedule, now=closed.until)
    assert (state.is_open, state.until) == (True, datetime(2026, 10, 25, 1, 30, tzinfo=UTC))
    assert not window_state(schedule, now=state.until).is_open  # not again at the second 02:30


def test_windows_that_touch_are_one() -> None:
    state = window_state(parse_schedule("daily 00:00 24h"), now=datetime(2026, 6, 1, 12, tzinfo=UTC))
    assert state.is_open
    assert state.until > datetime(2026, 6, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("sat,sun 02:00 3h Europe/Berlin", "sat,sun 02:00 3h Europe/Berlin"),
        ("SAT,Sun 02:00 180m utc", "sat,sun 02:00 3h UTC"),
        ("mon-fri 22:00 90m", "mon,tue,wed,thu,fri 22:00 1h30m UTC"),
        ("fri-mon 22:00 5m", "mon,fri,sat,sun 22:00 5m UTC"),
        ("mon-sun 00:00 24h", "daily 00:00 24h UTC"),
        ("daily 23:59 1h30m America/New_York", "daily 23:59 1h30m America/New_York"),
    ],
)
def test_how_a_schedule_may_be_written(text: str, written: str) -> None:
    assert str(parse_schedule(text)) == written


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sat",
        "sat 02:00",
        "sat 2:00 3h",
        "sat 24:00 3h",
        "sat 02:60 3h",
        "sat 02:00 25h",
        "sat 02:00 4m",
        "sat 02:00 h",
        "sat 02:00 -3h",
        "blursday 02:00 3h",
        "sat- 02:00 3h",
        ", 02:00 3h",
        "sat 02:00 3h Mars/Olympus",
        "sat 02:00 3h ../../etc/passwd",
        "sat 02:00 3h /etc/localtime",
        "sat 02:00 3h Europe/Berlin now",
        "sat 02:00 3h " + "A" * 200,
        "sat ٠٢:00 3h",
    ],
)
def test_what_cannot_be_read_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_schedule(text)


@given(st.text(max_size=60))
def test_any_text_is_a_schedule_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        parse_schedule(text)


@given(st.integers(1, 3600 * 24 * 8), st.integers(1, 86_400))
def test_the_sleep_before_a_window_stays_within_its_bounds(seconds: int, interval_s: int) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    sleep_s = sleep_before_window(now + timedelta(seconds=seconds), now=now, interval_s=interval_s)
    assert min(SLEEP_MIN_S, interval_s) <= sleep_s <= interval_s
    assert sleep_s <= max(seconds // 3, min(SLEEP_MIN_S, interval_s))


@pytest.mark.parametrize(
    ("text", "labels", "zone"),
    [
        ("daily 00:00 6h local", {"timezone": "Asia/Kathmandu"}, "Asia/Kathmandu"),
        ("daily 00:00 6h local", {}, "UTC"),
        ("daily 00:00 6h local/Europe/Berlin", {}, "Europe/Berlin"),
        ("daily 00:00 6h local/Europe/Berlin", {"timezone": "Asia/Kathmandu"}, "Asia/Kathmandu"),
        ("daily 00:00 6h local/Europe/Berlin", {"timezone": "Mars/Olympus"}, "Europe/Berlin"),
        ("daily 00:00 6h local", {"timezone": "../../etc/passwd"}, "UTC"),
        ("daily 00:00 6h Europe/Berlin", {"timezone": "Asia/Kathmandu"}, "Europe/Berlin"),
    ],
)
def test_a_window_in_local_time_opens_by_each_devices_own_clock(text: str, labels: dict[str, str], zone: str) -> None:
    schedule = parse_schedule(text)
    assert str(schedule) == text
    assert schedule.for_device(labels).zone == zone


def test_midnight_comes_to_the_east_first() -> None:
    schedule = parse_schedule("daily 00:00 6h local")
    evening = datetime(2026, 3, 1, 18, 30, tzinfo=UTC)
    in_kathmandu = window_state(schedule.for_device({"timezone": "Asia/Kathmandu"}), now=evening)
    in_berlin = window_state(schedule.for_device({"timezone": "Europe/Berlin"}), now=evening)
    assert (in_kathmandu.is_open, in_kathmandu.until) == (True, datetime(2026, 3, 2, 0, 15, tzinfo=UTC))
    assert (in_berlin.is_open, in_berlin.until) == (False, datetime(2026, 3, 1, 23, tzinfo=UTC))


@pytest.mark.parametrize("text", ["daily 00:00 6h local/", "daily 00:00 6h local/Mars", "daily 00:00 6h locale"])
def test_a_local_window_with_a_fallback_that_nobody_knows_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_schedule(text)
