"""Power cuts at every flash operation of primary MCUs behind an NCP: both strategies, with a real NCP at the line."""

from __future__ import annotations

import pytest

from flota.errors import InvalidInput
from flota.lab.cut_scenarios import SCENARIOS
from flota.lab.esp_sweep_device import SweepAgent
from flota.lab.reproducer import parse_line, replay
from flota.lab.sweep import Effort, first_failure, live_uninterrupted, sweep
from flota.lab.sweep_subjects import SweepSubject
from flota.virtual import dual_bank_board, dual_mcu_flash
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.boot.ncp_assisted import FetchRecord
from flota.virtual.flash import NorFlash

SMALL = 12 * 1024


def subject(board: str, scenario: str) -> SweepSubject:
    build = BootBuild.ROLLBACK if board == "dual-mcu-ab" else BootBuild.PLAIN
    return SweepSubject(board, SweepAgent.BLYNK_NCP, build, SMALL, scenario)


@pytest.mark.parametrize("scenario", ["refused", "crash"])
def test_with_two_banks_no_cut_at_any_moment_breaks_a_promise(scenario: str) -> None:
    result = sweep(subject("dual-mcu-ab", scenario), Effort(cut_boots=3))
    assert [failure.line for failure in result.failures] == []
    assert result.covered == result.operations > 30
    assert result.distinct > 5 * result.operations


def test_with_one_bank_every_cut_ends_with_the_new_image_once_the_ncp_is_there() -> None:
    result = sweep(subject("dual-mcu-ncp", "two-updates"), Effort(cut_boots=3))
    assert [failure.line for failure in result.failures] == []
    assert result.covered == result.operations > 30
    assert set(result.outcomes) <= {"new", "at the end"}


def test_without_a_cut_each_stage_ends_as_its_scenario_says() -> None:
    ends = {one.name: live_uninterrupted(subject("dual-mcu-ab", one.name)).verdict.outcomes for one in SCENARIOS}
    assert ends == {
        "two-updates": ("new", "new"),
        "refused": ("new", "old: refused", "new"),
        "crash": ("new", "old: rolled back", "new"),
    }
    assert live_uninterrupted(subject("dual-mcu-ncp", "refused")).verdict.outcomes == ("new", "old: refused", "new")


def test_a_boot_record_in_one_sector_only_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_one_place(flash: NorFlash, current: int | None, data: bytes) -> None:
        flash.erase_sector(dual_mcu_flash.RECORD_ADDRESSES[0])
        flash.program(dual_mcu_flash.RECORD_ADDRESSES[0], data)

    monkeypatch.setattr(dual_bank_board, "write_record", in_one_place)
    assert first_failure(subject("dual-mcu-ab", "two-updates"), Effort(cut_boots=2)) is not None


def test_a_boot_loader_that_erases_before_it_says_so_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(self: FetchRecord) -> FetchRecord:
        return self

    monkeypatch.setattr(FetchRecord, "writing", forgets)
    monkeypatch.setattr("flota.virtual.agents.blynk_loader.PENDING_LIMIT_S", 0.0)
    assert first_failure(subject("dual-mcu-ncp", "two-updates"), Effort(cut_boots=2)) is not None


def test_a_failure_is_told_in_a_line_that_can_be_replayed() -> None:
    line = "flota-cuts-1 board=dual-mcu-ncp agent=blynk-ncp rollback=off image=12288 scenario=two-updates cuts=7:half"
    verdict = replay(parse_line(line))
    assert (verdict.broken, verdict.cuts, verdict.outcomes) == ((), 1, ("new", "new"))


@pytest.mark.parametrize(
    ("board", "agent", "build", "scenario"),
    [
        ("dual-mcu-ab", SweepAgent.BLYNK_NCP, BootBuild.PLAIN, "two-updates"),
        ("dual-mcu-ncp", SweepAgent.BLYNK_NCP, BootBuild.ROLLBACK, "two-updates"),
        ("dual-mcu-ncp", SweepAgent.BLYNK_NCP, BootBuild.PLAIN, "crash"),
        ("dual-mcu-ncp", SweepAgent.AWS_OTA, BootBuild.PLAIN, "two-updates"),
    ],
)
def test_what_the_boards_do_not_have_is_refused(board: str, agent: SweepAgent, build: BootBuild, scenario: str) -> None:
    with pytest.raises(InvalidInput):
        SweepSubject(board, agent, build, SMALL, scenario).device()
