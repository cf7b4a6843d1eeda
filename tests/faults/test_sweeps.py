"""Every cut moment of every flash operation of a life with updates: no promise breaks, on any board, with any build."""

from __future__ import annotations

import itertools

import pytest

from flota.lab.cut_scenarios import SCENARIOS
from flota.lab.esp_sweep_device import USUAL_AGENTS, SweepAgent
from flota.lab.sweep import Effort, sweep
from flota.lab.sweep_subjects import SweepSubject
from flota.virtual.boot.esp_idf import BootBuild

IMAGE_SIZE = 32 * 1024
DISTINCT_EACH = 300
"""Ten sweeps, so that at least 3,000 cuts leave a device in a state of its own."""

SUBJECTS = [
    SweepSubject(board, USUAL_AGENTS.get(board, SweepAgent.ESP_HTTPS_OTA), build, IMAGE_SIZE, scenario.name)
    for board, build, scenario in itertools.product(
        ("esp32", "esp32-c3"), (BootBuild.PLAIN, BootBuild.ROLLBACK), SCENARIOS
    )
    if build.rolls_back or not scenario.needs_rollback
]
ANTI_ROLLBACK = SweepSubject("esp32-c3", SweepAgent.ESP_HTTPS_OTA, BootBuild.ANTI_ROLLBACK, 20 * 1024, "crash")


def subject_name(subject: SweepSubject) -> str:
    return f"{subject.board} {subject.build.value} {subject.scenario}"


def test_there_are_ten_sweeps() -> None:
    assert len(SUBJECTS) * DISTINCT_EACH >= 3_000


@pytest.mark.timeout(240)
@pytest.mark.parametrize("subject", SUBJECTS, ids=subject_name)
def test_no_cut_of_any_flash_operation_breaks_a_promise(subject: SweepSubject) -> None:
    result = sweep(subject, Effort(cut_boots=3))
    assert result.failures == []
    assert result.failed == 0
    assert result.covered == result.operations > 40
    assert result.distinct >= DISTINCT_EACH
    assert result.cases == result.distinct + result.duplicates
    assert set(result.outcomes) <= allowed_ends(subject)
    assert result.outcomes["new"] > 100


def allowed_ends(subject: SweepSubject) -> set[str]:
    ends = {"new", "at the end"}
    if subject.scenario == "refused":
        ends.add("old: refused")
    if subject.build.rolls_back:
        ends.add("old: rolled back")
        if subject.agent is SweepAgent.MICRO_RDK:
            ends.add("old: the tag names what does not run")
    return ends


@pytest.mark.timeout(240)
def test_the_anti_rollback_counter_never_rules_out_the_way_back() -> None:
    result = sweep(ANTI_ROLLBACK, Effort(cut_boots=2))
    assert result.failures == []
    assert result.covered == result.operations


@pytest.mark.timeout(240)
@pytest.mark.parametrize("board", ["esp32", "esp32-c3"])
def test_second_cuts_and_storms_of_cuts_break_no_promise_either(board: str) -> None:
    agent = USUAL_AGENTS.get(board, SweepAgent.ESP_HTTPS_OTA)
    subject = SweepSubject(board, agent, BootBuild.ROLLBACK, 20 * 1024, "two-updates")
    once = sweep(subject, Effort(cut_boots=1))
    twice = sweep(subject, Effort(depth=2, samples=200, draw=5, cut_boots=1))
    assert twice.failures == []
    assert twice.distinct > once.distinct + 50


def test_tears_that_no_check_can_see_do_break_a_promise_and_are_not_tried_unless_asked_for() -> None:
    subject = SweepSubject("esp32-c3", SweepAgent.ESP_HTTPS_OTA, BootBuild.ROLLBACK, 20 * 1024, "crash")
    result = sweep(subject, Effort(harsh=True, cut_boots=1))
    assert result.failed > 0
    assert all("words@" in failure.line for failure in result.failures)
