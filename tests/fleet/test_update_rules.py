"""The table of what a device is told, row by row, and what holds for all of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flota.errors import InvalidInput
from flota.fleet.maintenance_windows import parse_schedule
from flota.fleet.rollouts import RolloutPolicy
from flota.fleet.update_rules import Handling, Stage, UpdateRules, Urgency, Window, rules_for, show_update

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)  # a Monday
OPEN = parse_schedule("mon 11:00 2h UTC")
CLOSED = parse_schedule("tue 11:00 2h UTC")
U, H, W = Urgency, Handling, Window


@pytest.mark.parametrize(
    ("urgency", "schedule", "download", "update", "window"),
    [
        (U.FORCED, None, H.FORCED, H.FORCED, W.NONE),
        (U.SOFT, None, H.ATTEMPT, H.ATTEMPT, W.NONE),
        (U.DOWNLOADONLY, None, H.FORCED, H.SKIP, W.NONE),
        (U.FORCED, CLOSED, H.FORCED, H.SKIP, W.CLOSED),
        (U.FORCED, OPEN, H.FORCED, H.FORCED, W.OPEN),
        (U.SOFT, CLOSED, H.ATTEMPT, H.SKIP, W.CLOSED),
        (U.SOFT, OPEN, H.ATTEMPT, H.ATTEMPT, W.OPEN),
        (U.DOWNLOADONLY, CLOSED, H.FORCED, H.SKIP, W.NONE),
    ],
)
def test_the_table(urgency: Urgency, schedule: object, download: Handling, update: Handling, window: Window) -> None:
    rules = UpdateRules(urgency, maintenance=schedule, download_ahead=True)  # type: ignore[arg-type]
    showing = show_update(rules, agreed=False, now=NOON)
    assert (showing.stage, showing.download, showing.update, showing.window) == (Stage.TELL, download, update, window)


def test_timeforced_is_soft_until_its_time_and_says_until_when() -> None:
    at = NOON + timedelta(hours=1)
    rules = UpdateRules(U.TIMEFORCED, forced_at=at)
    before = show_update(rules, agreed=False, now=at - timedelta(seconds=1))
    assert (before.update, before.valid_until) == (H.ATTEMPT, at)
    after = show_update(rules, agreed=False, now=at)
    assert (after.update, after.valid_until) == (H.FORCED, None)


def test_a_closed_window_shows_nothing_unless_downloads_may_come_ahead() -> None:
    closed = show_update(UpdateRules(maintenance=CLOSED), agreed=False, now=NOON)
    assert closed.stage is Stage.WAIT
    assert closed.opens_at == closed.valid_until == datetime(2026, 3, 3, 11, tzinfo=UTC)
    assert show_update(UpdateRules(maintenance=OPEN), agreed=False, now=NOON).valid_until == NOON + timedelta(hours=1)


def test_a_device_is_asked_until_it_has_agreed() -> None:
    rules = UpdateRules(confirm=True)
    assert show_update(rules, agreed=False, now=NOON).stage is Stage.ASK
    assert show_update(rules, agreed=True, now=NOON).stage is Stage.TELL


def test_the_rollouts_rules_win_over_the_types() -> None:
    def rules(confirm: bool | None, maintenance: str | None) -> UpdateRules:
        return rules_for(
            urgency=U.FORCED,
            forced_at=None,
            rollout_confirm=confirm,
            rollout_maintenance=maintenance,
            type_confirm=True,
            type_maintenance="mon 11:00 2h UTC",
            download_ahead=False,
        )

    assert (rules(None, None).confirm, rules(None, None).maintenance) == (True, OPEN)
    assert (rules(False, "none").confirm, rules(False, "none").maintenance) == (False, None)
    assert rules(None, "tue 11:00 2h UTC").maintenance == CLOSED


@pytest.mark.parametrize(
    "wrong",
    [
        {"urgency": U.TIMEFORCED},
        {"urgency": U.FORCED, "forced_at": NOON},
        {"maintenance": "whenever"},
    ],
)
def test_rules_that_contradict_themselves_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        RolloutPolicy(**wrong)  # type: ignore[arg-type]
