"""The table of stages keeps its promises whatever happens in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.gateway.update_states import IS_OVER, MAY_PUSH, TRANSITIONS, Happening, Stage, WrongHappening, next_stage


@given(st.lists(st.sampled_from(Happening), max_size=60))
def test_after_a_verdict_nothing_leads_to_a_push(happenings: list[Happening]) -> None:
    stage, decided = Stage.OFFERED, False
    for happening in happenings:
        try:
            stage = next_stage(stage, happening)
        except WrongHappening:
            continue
        decided = decided or stage in IS_OVER
        if decided:
            assert stage in IS_OVER


@pytest.mark.parametrize("stage", Stage)
def test_a_push_begins_only_after_a_look(stage: Stage) -> None:
    ways = {key for key, following in TRANSITIONS.items() if following is Stage.INTENDED}
    assert all(happening is Happening.LOOKED_AT for _, happening in ways)
    assert (stage, Happening.LOOKED_AT) in ways or stage not in MAY_PUSH


def test_a_gateway_that_died_in_a_push_looks_before_it_pushes_again() -> None:
    assert next_stage(Stage.INTENDED, Happening.GATEWAY_DIED) is Stage.DOUBTED
    assert next_stage(Stage.DOUBTED, Happening.LOOKED_AT) is Stage.INTENDED


def test_success_needs_a_sign_of_life() -> None:
    """What was only sent cannot be decided by anything but life, another version, or silence."""
    from_sent = {happening for stage, happening in TRANSITIONS if stage is Stage.SENT}
    assert from_sent == {Happening.SIGN_OF_LIFE, Happening.ANOTHER_VERSION, Happening.SILENCE}


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("happening", Happening)
def test_every_pair_has_a_next_stage_or_a_typed_error(stage: Stage, happening: Happening) -> None:
    if (stage, happening) in TRANSITIONS:
        assert next_stage(stage, happening) is TRANSITIONS[stage, happening]
    else:
        with pytest.raises(WrongHappening):
            next_stage(stage, happening)


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.TOLD])
def test_every_stage_can_reach_the_end(stage: Stage) -> None:
    reached = {stage}
    while more := {following for (start, _), following in TRANSITIONS.items() if start in reached} - reached:
        reached |= more
    assert Stage.TOLD in reached
