from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import InvalidInput
from flota.fleet.rollouts import (
    OPEN_ROLLOUT_STATES,
    ROLLOUT_TRANSITIONS,
    WAVE_TRANSITIONS,
    RolloutPolicy,
    RolloutState,
    WaveState,
    check_waves,
    split_waves,
)


@pytest.mark.parametrize(
    ("count", "waves", "sizes"),
    [
        (10, "100%", [10]),
        (10, "2,50%,100%", [2, 3, 5]),
        (10, " 2 , 100% ", [2, 8]),
        (10, "1,2,10", [1, 1, 8]),
        (3, "50%,100%", [2, 1]),
        (2, "2,50%,100%", None),
        (2, "1,50%,100%", [1, 1]),
        (1, "2,100%", [1]),
        (1, "1%,100%", [1]),
        (4, "99", [4]),
    ],
)
def test_waves_are_rising_totals(count: int, waves: str, sizes: list[int] | None) -> None:
    devices = list(range(1, count + 1))
    if sizes is None:
        with pytest.raises(InvalidInput, match="fall"):
            split_waves(devices, waves)
        return
    cut = split_waves(devices, waves)
    assert [len(wave) for wave in cut] == sizes
    assert [device for wave in cut for device in wave] == devices


@pytest.mark.parametrize("waves", ["", ",", "0,100%", "-1", "101%,100%", "x", "1.5,100%", "50%", "5,3,100%", "2,,9"])
def test_waves_that_cannot_be_meant_are_refused(waves: str) -> None:
    with pytest.raises(InvalidInput):
        split_waves(range(1, 10), waves)


@pytest.mark.parametrize("waves", ["", ",", "0,500%", "101%,100%", "x", "50%,20%,100%", ",".join(["1"] * 101)])
def test_waves_that_no_fleet_can_have_are_refused_without_knowing_it(waves: str) -> None:
    with pytest.raises(InvalidInput):
        check_waves(waves)


@pytest.mark.parametrize("waves", ["100%", "2,50%,100%", " 2 , 100% ", "1,2,10", "50%,5,100%"])
def test_waves_that_some_fleet_can_have_are_left_to_the_server(waves: str) -> None:
    check_waves(waves)


def test_a_rollout_needs_devices_each_once() -> None:
    with pytest.raises(InvalidInput, match="no device"):
        split_waves([])
    with pytest.raises(InvalidInput, match="twice"):
        split_waves([1, 2, 1])


@given(st.lists(st.integers(1, 500), unique=True, min_size=1, max_size=60), st.text("0123456789,% x-", max_size=12))
def test_any_text_gives_every_device_exactly_one_wave_or_an_error(devices: list[int], waves: str) -> None:
    try:
        cut = split_waves(devices, waves)
    except InvalidInput:
        return
    assert [device for wave in cut for device in wave] == devices
    assert all(cut)


def test_the_tables_cover_every_state_and_ends_are_final() -> None:
    assert set(ROLLOUT_TRANSITIONS) == set(RolloutState)
    assert set(WAVE_TRANSITIONS) == set(WaveState)
    for state, steps in ROLLOUT_TRANSITIONS.items():
        assert bool(steps) == (state in OPEN_ROLLOUT_STATES)


@pytest.mark.parametrize("name", ["abort_after_failures", "silence_limit_s", "attempts"])
def test_limits_below_one_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        RolloutPolicy(**{name: 0})
