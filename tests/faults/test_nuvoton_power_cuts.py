"""Power cuts on Nuvoton boards: row by row as docs/reference/nuvoton.md has it, for both profiles, and the sweeps.

One update of a whole life, with the real agent, platform layer and boot programs; each of its flash operations is a row
of the table. What may be torn inside a unit is the sweep's business, here a unit is done or not done.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from flota.images.nuvoton.flash_map import (
    APP_SIZE,
    BACKUP_ADDR,
    DESCRIPTOR_ADDR,
    DESCRIPTOR_COPY_ADDR,
    PAGE_SIZE,
    TRAILER_ADDR,
    TRIAL_ADDR,
)
from flota.lab.cut_moments import cut_of, moments_of
from flota.lab.cut_scenarios import Scenario
from flota.lab.esp_sweep_device import SweepAgent
from flota.lab.known_limits import M2354_PENDING, STOCK_CLONE
from flota.lab.nuvoton_sweep_device import M487SweepDevice, nuvoton_geometry_for
from flota.lab.oracle import Promise
from flota.lab.power_cuts import Journey, Moment, Position, is_in_a_slot
from flota.lab.reproducer import parse_line, replay
from flota.lab.sweep import Effort, Part, Pass, every_boot_operations, live_uninterrupted, run_part
from flota.lab.sweep_subjects import SweepSubject
from flota.lab.swept_device import load
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.flash import FlashOperationKind, PowerCut
from flota.virtual.nuvoton_programs import BootProfile

SIZE = 3 * PAGE_SIZE


def no_milestone(name: str) -> None:
    """These lives are lived to their ends."""


ONE_UPDATE = Scenario("one-update", "one good update", (("2.0.0", None, False),))
STATES = {0: "unknown", 1: "pending", 2: "valid", 3: "invalid"}


@dataclass(frozen=True)
class End:
    """How a life ended: which version runs (None: dead), what the job says, how the first start after the cut was."""

    first_start: str | None
    runs: str | None
    job: str


class Life:
    """One recorded update, and what becomes of the device when it is cut somewhere."""

    def __init__(self, profile: BootProfile, *, with_backup: bool = True) -> None:
        self.device = M487SweepDevice(
            nuvoton_geometry_for("m487", SIZE), ONE_UPDATE, profile=profile, with_backup=with_backup
        )
        self.moments: list[Moment] = []
        self.statuses: list[tuple[str, dict[str, str]]] = []
        self.flags: list[int] = []
        self.verdict = Journey(self.device, self.device.oracle(), record=self._record).run()
        self.rows = [self._row(number) for number in range(len(self.moments))]

    def _record(self, moment: Moment) -> None:
        self.moments.append(moment)
        status, details = self.device._service.of("2.0.0")
        self.statuses.append((status, dict(details)))
        self.flags.append(self.device.board.chips.aprom._memory[DESCRIPTOR_ADDR + 7 : DESCRIPTOR_ADDR + 8][0])

    def cut(self, number: int, *, after: bool = False) -> End:
        """Cut before or after an operation, give the power back, and live to the end."""
        moment = self.moments[number]
        load(self.device, moment.snapshot)
        name = "after" if after else "before"
        chip = self.device.chips[moment.operation.chip]
        chip.leave(moment.operation, cut_of(name, moment.operation.kind))
        return self.end()

    def end(self) -> End:
        first = self.device.boot(no_milestone)
        first_start = None if first.handle is None else first.handle.app.version  # type: ignore[attr-defined]
        runs = first_start
        boot = first
        for _ in range(12):
            if boot.slot is None:
                return End(first_start, None, self.job())
            runs = boot.handle.app.version  # type: ignore[attr-defined]
            if self.device.live(boot, self.device.offers[0], no_milestone).at_rest:
                return End(first_start, runs, self.job())
            boot = self.device.boot(no_milestone)
        return End(first_start, runs, "no rest")

    def job(self) -> str:
        status, details = self.device._service.of("2.0.0")
        return f"{status} {details.get('reason', '')}".strip() if status != "SUCCEEDED" else status

    def _row(self, number: int) -> str:
        """The row that an operation is in; a rewrite of the descriptor is told by what the job says, and who writes."""
        moment = self.moments[number]
        operation, (status, details) = moment.operation, self.statuses[number]
        test = details.get("self_test")
        if operation.chip == "config":
            return "allow programming"
        if operation.chip == "store":
            return "note"
        if operation.chip == "spi":
            return "staging" if operation.address < BACKUP_ADDR else "backup"
        if operation.address < APP_SIZE:
            return "clone"
        place = {
            DESCRIPTOR_ADDR: "descriptor",
            TRAILER_ADDR: "trailer",
            DESCRIPTOR_COPY_ADDR: "copy",
            TRIAL_ADDR: "trial",
        }[operation.address // PAGE_SIZE * PAGE_SIZE]
        if place in ("trailer", "trial"):
            return place
        if moment.booting:
            return f"{place}, clone"
        if test is None:
            return f"{place}, new" if details else f"{place}, create"
        if test == "ready":
            return f"{place}, saved" if self._before_clone(number) else f"{place}, testing"
        return f"{place}, commit" if status == "IN_PROGRESS" else f"{place}, late"

    def _before_clone(self, number: int) -> bool:
        return all(one.operation.chip != "aprom" or one.operation.address >= APP_SIZE for one in self.moments[:number])

    def of_row(self, row: str) -> list[int]:
        return [number for number, name in enumerate(self.rows) if name == row]

    def ends(self, row: str, *, every: int = 1) -> Counter[End]:
        """Ends of cuts before the operations of a row; the first and the last always."""
        numbers = self.of_row(row)
        chosen = sorted({*numbers[::every], numbers[-1]})
        return Counter(self.cut(number) for number in chosen)


@functools.cache
def life(profile: BootProfile) -> Life:
    return Life(profile)


STOCK, ROLLBACK = BootProfile.STOCK, BootProfile.ROLLBACK
GOOD = End("1.0.0", "2.0.0", "SUCCEEDED")
GOES_ON = End("2.0.0", "2.0.0", "SUCCEEDED")
LOST = End("1.0.0", "1.0.0", "FAILED rejected: 0x00000010")
DEAD = End(None, None, "IN_PROGRESS")


@pytest.mark.parametrize("profile", [STOCK, ROLLBACK])
def test_an_update_without_a_cut_ends_well(profile: BootProfile) -> None:
    one = life(profile)
    assert one.verdict.broken == ()
    assert one.verdict.outcomes == ("new",)
    rows = set(one.rows)
    assert {"staging", "backup", "clone", "trailer", "descriptor, create", "descriptor, commit"} <= rows
    assert ("trial" in rows) == (profile is ROLLBACK)
    assert ("allow programming" in rows) == (profile is STOCK)


@pytest.mark.parametrize("profile", [STOCK, ROLLBACK])
def test_a_cut_download_starts_over_from_block_0(profile: BootProfile) -> None:
    assert set(life(profile).ends("staging", every=23)) == {GOOD}


# --- stock ------------------------------------------------------------------------------------------------------------


def test_stock_a_descriptor_that_is_lost_costs_the_update_or_nothing_but_never_the_app() -> None:
    """After the erase the magic is gone: the app starts, its state unknown, and it downloads again."""
    one = life(STOCK)
    for row in ("descriptor, create", "descriptor, new"):
        assert set(one.ends(row)) == {GOOD}
        load(one.device, one.moments[one.of_row(row)[1]].snapshot)
        assert one.device.board.controller.read(DESCRIPTOR_ADDR, 7) == b"\xff" * 7


def test_stock_after_the_flag_new_and_before_the_job_says_so_the_old_app_downloads_again() -> None:
    assert set(life(STOCK).ends("trailer", every=7)) == {GOOD}


def test_stock_a_cut_while_saving_the_old_app_loses_the_update() -> None:
    assert set(life(STOCK).ends("backup", every=97)) == {LOST}
    assert set(life(STOCK).ends("descriptor, saved")) == {LOST}


def test_stock_a_cut_after_the_backup_and_before_the_clone_loses_the_update_too() -> None:
    first = life(STOCK).of_row("clone")[0]
    assert life(STOCK).cut(first) == LOST


def test_stock_a_cut_while_cloning_kills_the_board() -> None:
    """From the first page erase to the last unit: blank vectors, or a new app that is not whole."""
    clone = life(STOCK).of_row("clone")
    for number in clone[1:]:
        ended = life(STOCK).cut(number) if number % 53 == 0 or number < clone[6] else None
        assert ended in (None, DEAD)


def test_stock_a_dead_board_stays_dead_however_often_it_is_switched_on() -> None:
    one = life(STOCK)
    assert one.cut(one.of_row("clone")[5]) == DEAD
    for _ in range(3):
        assert one.device.boot(no_milestone).slot is None


def test_stock_between_clone_and_flag_the_new_app_goes_on_normally() -> None:
    one = life(STOCK)
    assert one.cut(one.of_row("clone")[-1], after=True) == GOES_ON


def test_stock_a_flag_that_is_lost_by_the_cloner_is_a_mismatch_and_a_half_written_one_is_not() -> None:
    one = life(STOCK)
    erase, first_unit, *rest = one.of_row("descriptor, clone")
    assert one.moments[erase].operation.kind is FlashOperationKind.ERASE
    assert one.cut(first_unit) == End("2.0.0", "2.0.0", "FAILED rejected: 0x00000011")
    for number in (*rest[:4], rest[len(rest) // 2], rest[-1]):
        assert one.cut(number) == GOES_ON


def test_stock_before_active_the_new_app_tests_itself_again_and_after_it_the_job_fails_though_it_runs() -> None:
    one = life(STOCK)
    testing = one.of_row("descriptor, testing")
    assert one.cut(testing[0]) == GOES_ON
    assert one.cut(testing[1]) == End("2.0.0", "2.0.0", "FAILED rejected: 0x00000011"), "the magic is lost"
    failed = End("2.0.0", "2.0.0", "FAILED rejected: 0x00000010")
    assert one.cut(one.of_row("descriptor, commit")[0]) == failed
    assert one.device.board.controller.read(DESCRIPTOR_ADDR, 8)[7] == 0xF8


def test_stock_a_commit_that_is_cut_or_not_reported_ends_as_a_failure_of_what_runs() -> None:
    one = life(STOCK)
    failed = End("2.0.0", "2.0.0", "FAILED rejected: 0x00000010")
    commit = one.of_row("descriptor, commit")
    assert {one.cut(number) for number in commit[1:]} == {failed}
    assert one.cut(commit[-1], after=True) == failed
    assert one.device.board.controller.read(DESCRIPTOR_ADDR, 8)[7] == 0xF8


def test_stock_a_pending_image_whose_job_knows_nothing_of_a_self_test_resets_for_ever() -> None:
    """The hang case: the flag says pending, the job says receive."""
    one = life(STOCK)
    load(one.device, one.moments[one.of_row("descriptor, testing")[0]].snapshot)
    one.device._service._jobs = {"2.0.0": ("IN_PROGRESS", {"receive": "1/6"})}
    assert one.end() == End("2.0.0", "2.0.0", "no rest")


# --- rollback ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_rollback_no_cut_of_a_whole_update_kills_the_board() -> None:
    one = life(ROLLBACK)
    fast = set(one.of_row("staging")) | set(one.of_row("backup")) | set(one.of_row("clone"))
    for number in range(len(one.moments)):
        if number % (131 if number in fast else 3):
            continue
        ended = one.cut(number)
        assert ended.runs is not None, one.rows[number]
        assert ended.job != "no rest", one.rows[number]


def test_rollback_the_second_page_stands_in_for_a_descriptor_that_is_lost() -> None:
    one = life(ROLLBACK)
    for row in [name for name in set(one.rows) if name.startswith("descriptor")]:
        erase, first, *_ = one.of_row(row)
        load(one.device, one.moments[first].snapshot)
        before = one.device.board.controller.read(DESCRIPTOR_ADDR, 8)
        assert before == b"\xff" * 8, row
        one.device.board.boot()
        assert one.device.board.controller.read(DESCRIPTOR_ADDR, 7) == b"@AFRTOS", row
        assert one.moments[erase].operation.kind is FlashOperationKind.ERASE


def test_rollback_what_was_saved_or_not_is_cloned_and_tested_after_a_cut() -> None:
    one = life(ROLLBACK)
    cloned = End("2.0.0", "2.0.0", "SUCCEEDED")
    assert set(one.ends("backup", every=97)) == {cloned}
    assert one.cut(one.of_row("clone")[0]) == cloned
    assert set(one.ends("clone", every=211)) == {cloned}
    assert one.cut(one.of_row("clone")[-1], after=True) == cloned


def test_rollback_a_clone_that_no_job_knows_of_is_tried_undone_and_downloaded_again() -> None:
    one = life(ROLLBACK)
    assert one.cut(one.of_row("trailer")[3]) == End("2.0.0", "2.0.0", "SUCCEEDED")


def test_rollback_one_trial_boot_and_then_the_old_app_says_which_cut_it_was() -> None:
    one = life(ROLLBACK)
    assert one.cut(one.of_row("copy, testing")[0]) == End("1.0.0", "1.0.0", "FAILED rejected: 0x00000010")
    assert one.cut(one.of_row("copy, commit")[0]) == End("1.0.0", "1.0.0", "FAILED rejected: 0x0000000f")


def test_rollback_what_was_committed_is_never_undone() -> None:
    one = life(ROLLBACK)
    kept = End("2.0.0", "2.0.0", "FAILED rejected: 0x00000010")
    assert set(one.ends("descriptor, commit")) == {kept}
    assert one.cut(one.of_row("copy, commit")[-1], after=True) == kept


def test_rollback_a_cut_while_restoring_restores_once_more() -> None:
    one = life(ROLLBACK)
    number = one.of_row("copy, commit")[0]
    load(one.device, one.moments[number].snapshot)
    operations: list[int] = []

    def cut_at(count: int) -> Callable[[object], None]:
        def plan(operation: object) -> None:
            operations.append(1)
            if len(operations) == count:
                one.device.power.on = False
                raise PowerCut("here")

        return plan

    for count in (1, 9, 20, 100, 200):  # what is copied already is not copied again
        operations.clear()
        one.device.power.plan = cut_at(count)  # type: ignore[assignment]  # a plan that cuts by itself
        with pytest.raises(PowerCut):
            one.device.boot(no_milestone)
        one.device.power.plan = None
        one.device.power.on = True
    assert one.device.board.controller.read(DESCRIPTOR_ADDR, 8)[7] == 0xF8
    assert one.device.boot(no_milestone).handle.app.version == "1.0.0"  # type: ignore[attr-defined]


def test_without_a_backup_bank_a_rejected_image_stays() -> None:
    one = Life(ROLLBACK, with_backup=False)
    assert "backup" not in one.rows
    assert one.verdict.outcomes == ("new",)
    ended = one.cut(one.of_row("copy, commit")[0])
    assert (ended.first_start, ended.runs) == ("2.0.0", "2.0.0")


# --- the sweeps of the lab --------------------------------------------------------------------------------------------


def subject(board: str, scenario: str, build: BootBuild) -> SweepSubject:
    return SweepSubject(board, SweepAgent.AWS_OTA, build, SIZE, scenario)


def deciding(one: SweepSubject) -> list[int]:
    """The operations that write no image: descriptors and their copies, trial, trailer, notes."""
    reference = live_uninterrupted(one)
    regions = reference.device.regions
    return [number for number, moment in enumerate(reference.moments) if not is_in_a_slot(moment.operation, regions)]


@pytest.mark.timeout(240)
def test_torn_units_around_every_decision_of_an_m487_with_rollback_break_no_promise() -> None:
    """Every thirteenth operation that decides, every tear of it, with a release that crashes in between."""
    one = subject("m487", "crash", BootBuild.ROLLBACK)
    cases = 0
    for number in deciding(one)[::13]:
        result = run_part(Part(one, Effort(), Pass.ONCE, range(number, number + 1)))
        assert result.failures == []
        cases += result.cases
    assert cases > 150


def test_a_torn_clone_of_an_m487_with_rollback_is_done_once_more() -> None:
    one = subject("m487", "two-updates", BootBuild.ROLLBACK)
    moments = live_uninterrupted(one).moments
    clone = [number for number, moment in enumerate(moments) if moment.booting and moment.operation.address < APP_SIZE]
    for number in clone[:: len(clone) // 5]:
        result = run_part(Part(one, Effort(), Pass.ONCE, range(number, number + 1)))
        assert result.failures == []


def test_a_stock_board_that_dies_while_it_clones_meets_a_known_limit_and_breaks_no_promise() -> None:
    one = subject("m487", "two-updates", BootBuild.PLAIN)
    moments = live_uninterrupted(one).moments
    clone = [number for number, moment in enumerate(moments) if moment.booting and moment.operation.address < APP_SIZE]
    result = run_part(Part(one, Effort(), Pass.ONCE, range(clone[3], clone[4])))
    assert result.failures == []
    assert set(result.limits) == {STOCK_CLONE}
    assert result.limits[STOCK_CLONE].count > 5
    verdict = replay(parse_line(result.limits[STOCK_CLONE].line))
    assert (verdict.broken, verdict.limit) == ((), STOCK_CLONE)


def test_an_app_that_is_gone_without_a_clone_under_way_is_no_known_limit() -> None:
    """The same dead board, but its descriptor asks for no copy: nothing excuses that."""
    one = life(STOCK)
    load(one.device, one.moments[one.of_row("descriptor, new")[0]].snapshot)
    one.device.board.chips.aprom.erase_sector(0)
    boot = one.device.boot(no_milestone)
    assert boot.slot is None
    (broken,) = one.device.oracle().judge_boot(boot.slot, boot.refused)
    assert broken.promise is Promise.BOOTS
    assert one.device.limit(broken) is None


@pytest.mark.parametrize(
    ("build", "agent"),
    [
        (BootBuild.ROLLBACK, SweepAgent.AWS_OTA),
        (BootBuild.ROLLBACK, SweepAgent.AWS_OTA_WITHOUT_BACKUP),
        (BootBuild.PLAIN, SweepAgent.AWS_OTA),
    ],
)
def test_a_life_that_is_joined_to_a_known_one_ends_as_it_does_when_it_is_lived_to_its_end(
    build: BootBuild, agent: SweepAgent
) -> None:
    """Joined at a power-on, in the middle of a copy, of an erase of the staging bank: no matter where."""
    reference = live_uninterrupted(SweepSubject("m487", agent, build, SIZE, "two-updates"))
    device, oracle = reference.device, reference.oracle
    joined = 0
    for moment in reference.moments[:: len(reference.moments) // 25]:
        for name in moments_of(moment.operation, number=1)[1:-1:3]:
            told = []
            for known in (reference.known, None):
                load(device, moment.snapshot)
                device.chips[moment.operation.chip].leave(moment.operation, cut_of(name, moment.operation.kind))
                journey = Journey(device, oracle, known=known)
                verdict = journey.run(Position(moment.position.stage), interrupted=True)
                told.append((verdict.broken, verdict.limit, verdict.outcomes, journey.operations))
                joined += known is not None and verdict.boots < 2
            assert told[0] == told[1], f"{moment.operation.number}:{name}"
    assert joined > 5


@pytest.mark.parametrize(("build", "part"), [(BootBuild.ROLLBACK, 71), (BootBuild.PLAIN, 97)])
def test_the_same_cut_at_every_power_on_breaks_no_promise_of_an_m487(build: BootBuild, part: int) -> None:
    one = subject("m487", "two-updates", build)
    cases = 0
    for number in range(0, 350, part):
        result = run_part(Part(one, Effort(), Pass.EVERY_BOOT, range(number, number + 1)))
        assert result.failures == []
        assert set(result.limits) <= {STOCK_CLONE}
        cases += result.cases
    assert cases > 15


@pytest.mark.timeout(240)
@pytest.mark.parametrize("scenario", ["two-updates", "refused"])
def test_an_m2354_boots_a_whole_image_after_every_cut_of_every_operation(scenario: str) -> None:
    """D1 and D2 hold, and all else but for one cut, which the vendor's platform layer does not survive: see below."""
    one = subject("m2354", scenario, BootBuild.PLAIN)
    moments = live_uninterrupted(one).moments
    assert {"sd", "flash", "store"} <= {moment.operation.chip for moment in moments}
    result = run_part(Part(one, Effort(), Pass.ONCE, range(len(moments))))
    assert result.failures == []
    assert {limit: met.count for limit, met in result.limits.items()} == {M2354_PENDING: 1}
    assert result.cases > 500
    assert set(result.outcomes) <= {"new", "old: refused", "old: rolled back", "at the end"}


def test_an_m2354_that_is_cut_between_active_and_its_commit_stays_pending_and_resets_at_every_later_job() -> None:
    one = subject("m2354", "two-updates", BootBuild.PLAIN)
    moments = live_uninterrupted(one).moments
    states = (b'"image_state": 2' in moment.operation.after for moment in moments)
    commit = list(states).index(True)
    every_boot = every_boot_operations(live_uninterrupted(one)).index(commit)
    for kind, number in ((Pass.ONCE, commit), (Pass.EVERY_BOOT, every_boot)):
        result = run_part(Part(one, Effort(), kind, range(number, number + 1)))
        assert result.failures == []
        assert set(result.limits) == {M2354_PENDING}
    line = result.limits[M2354_PENDING].line
    told: list[str] = []
    assert replay(parse_line(line), told.append).limit is M2354_PENDING
    assert any("no rest" in text for text in told)
