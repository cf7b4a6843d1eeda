"""Power cuts at every flash operation of `aws-reference`: image, boot record and the agent's order of doing things."""

from __future__ import annotations

import pytest

from flota.errors import InvalidInput
from flota.lab.aws_sweep_device import AwsSweepDevice, aws_geometry_for
from flota.lab.cut_moments import CutMoment
from flota.lab.cut_scenarios import SCENARIOS, scenario_named
from flota.lab.esp_sweep_device import SweepAgent
from flota.lab.power_cuts import Journey, PlannedCut
from flota.lab.reproducer import parse_line, replay
from flota.lab.sweep import Effort, live_uninterrupted, sweep
from flota.lab.sweep_subjects import SweepSubject
from flota.virtual.ab_board import AbHardware
from flota.virtual.boot.ab_record import NumberedRecord, newest, pack_record
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.boot.two_files import BootRecord

SMALL = 12 * 1024


def subject(scenario: str, size: int = SMALL) -> SweepSubject:
    return SweepSubject("aws-reference", SweepAgent.AWS_OTA, BootBuild.ROLLBACK, size, scenario)


@pytest.mark.parametrize("scenario", [one.name for one in SCENARIOS])
def test_no_cut_at_any_moment_breaks_a_promise(scenario: str) -> None:
    result = sweep(subject(scenario), Effort(cut_boots=3))
    assert [failure.line for failure in result.failures] == []
    assert result.covered == result.operations > 20
    assert result.distinct > 5 * result.operations


def test_without_a_cut_each_stage_ends_as_its_scenario_says() -> None:
    ends = {one.name: live_uninterrupted(subject(one.name)).verdict.outcomes for one in SCENARIOS}
    assert ends == {
        "two-updates": ("new", "new"),
        "refused": ("new", "old: refused", "new"),
        "crash": ("new", "old: rolled back", "new"),
    }


def test_a_boot_record_in_one_sector_only_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_one_place(self: AbHardware, record: BootRecord) -> None:
        _, current = newest(self._records())
        self.flash.erase(0, self.flash.sector_size)
        self.flash.program(0, pack_record(NumberedRecord(current.number + 1, record)))

    monkeypatch.setattr(AbHardware, "write_record", in_one_place)
    assert sweep(subject("two-updates"), Effort(cut_boots=2)).failed > 0


def test_a_failure_is_told_in_a_line_that_can_be_replayed() -> None:
    line = "flota-cuts-1 board=aws-reference agent=aws-ota rollback=on image=12288 scenario=crash cuts=5:half"
    verdict = replay(parse_line(line))
    assert (verdict.broken, verdict.cuts) == ((), 1)


def test_a_cut_between_the_report_and_the_choice_of_the_slot_ends_the_job_as_rolled_back() -> None:
    device = AwsSweepDevice(aws_geometry_for("aws-reference", SMALL), scenario_named("two-updates"))
    writes = [moment.operation for moment in live_uninterrupted(subject("two-updates")).moments]
    choice = next(operation for operation in writes if operation.number > 6 and operation.address < 0x2000)
    journey = Journey(device, device.oracle(), plans=[PlannedCut(CutMoment(choice.number, "before"))])
    verdict = journey.run()
    assert verdict.broken == ()
    assert verdict.outcomes[0] == "old: rolled back"


@pytest.mark.parametrize(
    ("agent", "build"), [(SweepAgent.AWS_OTA, BootBuild.PLAIN), (SweepAgent.MICRO_RDK, BootBuild.ROLLBACK)]
)
def test_what_the_board_does_not_have_is_refused(agent: SweepAgent, build: BootBuild) -> None:
    with pytest.raises(InvalidInput):
        SweepSubject("aws-reference", agent, build, SMALL, "two-updates").device()
