from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import Conflict, InvalidInput, VersionMismatch
from flota.fleet.executions import (
    DETAILS_MAX,
    EXECUTION_TRANSITIONS,
    FINAL_STATES,
    OPEN_STATES,
    Basis,
    Execution,
    ExecutionChange,
    ExecutionState,
    apply_change,
    merge_details,
)

S = ExecutionState
NOW = datetime(2026, 3, 1, tzinfo=UTC)
QUEUED = Execution(7, 1, 2, "pump-2", 3, 1, S.QUEUED, 1, NOW, NOW)


def test_every_state_has_its_row_in_the_table_and_final_states_lead_nowhere() -> None:
    assert set(EXECUTION_TRANSITIONS) == set(S)
    assert set(S) == OPEN_STATES | FINAL_STATES
    for state, steps in EXECUTION_TRANSITIONS.items():
        assert bool(steps) == (state in OPEN_STATES)
        assert S.QUEUED not in steps


@given(st.sampled_from(S), st.sampled_from(S), st.booleans())
def test_exactly_the_steps_of_the_table_are_possible(before: S, to: S, cancel: bool) -> None:
    execution = replace(QUEUED, state=before, version=4)
    change = ExecutionChange(to, request_cancel=cancel, basis=Basis.REPORTED)
    if to not in EXECUTION_TRANSITIONS[before]:
        with pytest.raises(Conflict):
            apply_change(execution, 4, change, now=NOW)
        return
    after = apply_change(execution, 4, change, now=NOW + timedelta(seconds=1))
    assert (after.state, after.version, after.changed_at) == (to, 5, NOW + timedelta(seconds=1))
    assert (after.finished_at is not None) == (to in FINAL_STATES) == (after.basis is Basis.REPORTED)
    assert (after.cancel_requested_at is not None) == (cancel and to is S.IN_PROGRESS)


@given(st.integers(1, 100), st.integers(-1, 101), st.sampled_from(S), st.sampled_from(S))
def test_a_wrong_version_always_loses_before_anything_else_is_looked_at(v: int, e: int, before: S, to: S) -> None:
    if v == e:
        return
    with pytest.raises(VersionMismatch):
        apply_change(replace(QUEUED, state=before, version=v), e, ExecutionChange(to), now=NOW)


def test_the_start_and_the_first_cancel_request_are_kept() -> None:
    change = ExecutionChange(S.IN_PROGRESS, request_cancel=True)
    started = apply_change(QUEUED, 1, change, now=NOW)
    later = apply_change(started, 2, change, now=NOW + timedelta(hours=1))
    assert (later.started_at, later.cancel_requested_at) == (NOW, NOW)


def test_details_are_replaced_key_by_key_and_none_removes_one() -> None:
    assert merge_details({"a": "1", "b": "2"}, {"b": None, "c": "3", "absent": None}) == {"a": "1", "c": "3"}


@pytest.mark.parametrize(
    "changes", [{"": "x"}, {"n" * 129: "x"}, {"n": "x" * 1025}, {str(n): "x" for n in range(DETAILS_MAX + 1)}]
)
def test_details_have_limits(changes: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        merge_details({}, changes)
