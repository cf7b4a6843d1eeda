from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.fleet.executions import (
    EXECUTION_TRANSITIONS,
    FINAL_STATES,
    Execution,
    ExecutionChange,
    ExecutionState,
    StepTimer,
    apply_change,
    merge_details,
)
from flota.fleet.inferences import SilentDelivery
from flota.fleet.job_executions import (
    AWS_IOT_ROUTE,
    DEVICE_STEPS,
    LENIENT_STEPS,
    SERVER_DETAILS,
    end_of_time,
    replacing_details,
    seconds_left,
    step_timer,
    unnamed_job_id,
    visible_details,
)
from flota.server import updates

S = ExecutionState
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AT_WORK = Execution(7, 1, 2, "pump-2", 3, 1, S.IN_PROGRESS, 2, NOW, NOW, details={"route": AWS_IOT_ROUTE})

names = st.sampled_from(sorted(SERVER_DETAILS)) | st.from_regex(r"(device:)?[A-Za-z0-9:_-]{1,12}", fullmatch=True)
maps = st.dictionaries(names, st.text(min_size=1, max_size=8), max_size=8)


@given(maps, maps, maps)
def test_a_device_finds_exactly_what_it_set_and_never_touches_what_is_not_its_own(
    ours: dict[str, str], before: dict[str, str], given_now: dict[str, str]
) -> None:
    own = {name: text for name, text in ours.items() if name in SERVER_DETAILS}
    stored = merge_details(own, replacing_details(own, before))
    assert visible_details(stored) == before
    stored = merge_details(stored, replacing_details(stored, given_now))
    assert visible_details(stored) == given_now
    assert {name: text for name, text in stored.items() if name in SERVER_DETAILS} == own
    assert merge_details(stored, replacing_details(stored, None)) == stored


def test_all_names_that_flota_uses_itself_are_known_to_be_its_own() -> None:
    used = {updates.CANCEL_DETAIL, updates.CONFIRM_DETAIL, updates.ONLY_DOWNLOADED_DETAIL}
    assert used | SilentDelivery().as_details().keys() <= SERVER_DETAILS


def test_a_device_reports_only_steps_that_executions_have() -> None:
    for table in (DEVICE_STEPS, LENIENT_STEPS):
        for state, steps in table.items():
            assert steps <= EXECUTION_TRANSITIONS[state]
    assert LENIENT_STEPS[S.IN_PROGRESS] - DEVICE_STEPS[S.IN_PROGRESS] == {S.REJECTED}


@given(st.none() | st.integers(-1, 10_080).filter(bool))
def test_a_step_timer_is_set_replaced_or_discarded(minutes: int | None) -> None:
    timer = step_timer(minutes, now=NOW)
    running = replace(AT_WORK, step_expires_at=NOW + timedelta(minutes=3))
    after = apply_change(running, 2, ExecutionChange(S.IN_PROGRESS, step_timer=timer), now=NOW)
    expected = 180 if minutes is None else None if minutes == -1 else 60 * minutes
    assert seconds_left(after, now=NOW) == expected


@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_no_timer_outlives_its_execution(state: ExecutionState) -> None:
    running = replace(AT_WORK, step_expires_at=NOW)
    assert apply_change(running, 2, ExecutionChange(state, step_timer=StepTimer(NOW)), now=NOW).step_expires_at is None


def test_what_ends_by_time_and_by_being_stopped() -> None:
    timed = replace(AT_WORK, step_expires_at=NOW)
    assert end_of_time(timed, now=NOW - timedelta(seconds=1)) is None
    end = end_of_time(timed, now=NOW)
    assert end is not None
    assert (end.state, end.details) == (S.TIMED_OUT, {"reason": "the step's time limit has passed"})
    stopped = replace(AT_WORK, cancel_requested_at=NOW)
    end = end_of_time(stopped, now=NOW)
    assert end is not None
    assert end.state is S.CANCELED
    testing = replace(stopped, details={"route": AWS_IOT_ROUTE, "self_test": "ready"})
    assert end_of_time(testing, now=NOW) is None
    end = end_of_time(replace(testing, step_expires_at=NOW), now=NOW)
    assert end is not None
    assert end.state is S.CANCELED


def test_other_dialects_devices_and_what_is_not_at_work_are_left_alone() -> None:
    assert end_of_time(replace(AT_WORK, details={}, cancel_requested_at=NOW), now=NOW) is None
    assert end_of_time(replace(AT_WORK, state=S.QUEUED, step_expires_at=NOW), now=NOW) is None
    assert end_of_time(replace(AT_WORK, state=S.FAILED, step_expires_at=NOW), now=NOW) is None


def test_a_rollout_from_before_jobs_has_its_number_as_its_name() -> None:
    assert unnamed_job_id(17) == "AFR_OTA-17"
