"""The power-cut engine finds what is planted, names the promise, and is right about what a cut leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flota.errors import FlotaError, InvalidInput
from flota.lab.cut_moments import CutMoment, cut_of, has_moment, moments_of, parse_moment
from flota.lab.cut_scenarios import esp_image, scenario_named
from flota.lab.esp_sweep_device import SweepAgent, geometry_for
from flota.lab.oracle import Broken, Promise
from flota.lab.power_cuts import Journey, Known, Moment, PlannedCut, Position, Verdict
from flota.lab.reproducer import Reproducer, minimised, parse_line, replay
from flota.lab.sweep_subjects import SweepSubject
from flota.lab.swept_device import fingerprint, load, save
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.flash import FlashOperation, FlashOperationKind
from tests.lab.small_ab_device import SmallAbDevice

SMALL_ESP = SweepSubject("esp32-c3", SweepAgent.ESP_HTTPS_OTA, BootBuild.ROLLBACK, 20 * 1024, "two-updates")


def broken_promises(device: SmallAbDevice) -> set[Promise]:
    """Sweep a device to depth 1 and return every promise that broke."""
    oracle, moments, known = device.oracle(), [], Known()
    verdict = Journey(device, oracle, known=known, record=moments.append).run()
    broken = {one.promise for one in verdict.broken}
    for moment in moments:
        for name in moments_of(moment.operation, number=3):
            load(device, moment.snapshot)
            device.chips[moment.operation.chip].leave(moment.operation, cut_of(name, moment.operation.kind))
            verdict = Journey(device, oracle, known=known).run(Position(moment.position.stage), interrupted=True)
            broken |= {one.promise for one in verdict.broken}
    return broken


@pytest.mark.parametrize("damaged", [False, True])
def test_a_device_that_does_everything_right_keeps_every_promise(damaged: bool) -> None:
    assert broken_promises(SmallAbDevice(damaged=damaged)) == set()


@pytest.mark.parametrize(
    ("bugs", "promise"),
    [
        (("one record", "chooses first"), Promise.ONLY_GOOD),
        (("boots unverified", "chooses first"), Promise.WHOLE),
        (("chooses first",), Promise.ONLY_GOOD),
        (("writes the running slot",), Promise.UNTOUCHED),
        (("writes at every boot",), Promise.QUIET),
        (("restarts for ever",), Promise.CONVERGES),
        (("does not erase",), Promise.FLASH_RULES),
        (("erases too little",), Promise.FLASH_RULES),
        (("falls over",), Promise.SOUND),
    ],
    ids=lambda value: " + ".join(value) if isinstance(value, tuple) else value.value,
)
def test_a_planted_bug_breaks_the_promise_that_it_ought_to(bugs: tuple[str, ...], promise: Promise) -> None:
    assert promise in broken_promises(SmallAbDevice(*bugs))


def test_a_damaged_file_that_is_chosen_all_the_same_is_noticed() -> None:
    assert Promise.ONLY_GOOD in broken_promises(SmallAbDevice("chooses unverified", damaged=True))


def test_a_damaged_file_that_runs_is_noticed() -> None:
    broken = broken_promises(SmallAbDevice("chooses unverified", "boots unverified", damaged=True))
    assert Promise.ONLY_GOOD in broken


def test_resting_with_the_old_image_without_a_reason_is_noticed() -> None:
    assert Promise.CONVERGES in broken_promises(SmallAbDevice("keeps silent", damaged=True))


def test_a_slot_with_bytes_that_nobody_released_behind_the_image_is_not_whole() -> None:
    device = SmallAbDevice()
    device.flash.program(device.regions[0].start + 124, b"\x00\x00\x00\x00")
    assert [one.promise for one in device.oracle().judge_boot("a", ())] == [Promise.WHOLE]


# --- what a cut leaves ------------------------------------------------------------------------------------------------


def test_a_cut_made_on_a_snapshot_leaves_what_a_real_cut_leaves() -> None:
    """Each operation, each moment: the code really dies there, and the flash is the same."""
    device = SmallAbDevice()
    factory, moments = save(device), []
    Journey(device, device.oracle(), record=moments.append).run()
    compared = 0
    for moment in moments:
        for name in moments_of(moment.operation, number=3):
            load(device, moment.snapshot)
            device.chips["flash"].leave(moment.operation, cut_of(name, moment.operation.kind))
            expected = fingerprint(device)
            load(device, factory)
            assert left_by_a_real_cut(device, moment, name) == expected, f"{moment.operation} {name}"
            compared += 1
    assert compared > 90


def left_by_a_real_cut(device: SmallAbDevice, moment: Moment, name: str) -> tuple[int, ...]:
    states: list[tuple[int, ...]] = []

    def next_plan() -> Iterator[PlannedCut]:
        yield PlannedCut(CutMoment(moment.operation.number, name))
        states.append(fingerprint(device))

    Journey(device, device.oracle(), plans=next_plan()).run()
    assert len(states) == 1
    return states[0]


def test_what_is_known_shortens_a_life_and_changes_no_verdict() -> None:
    device = SmallAbDevice()
    oracle, moments, known = device.oracle(), [], Known()
    Journey(device, oracle, known=known, record=moments.append).run()
    for moment in moments:
        for name in moments_of(moment.operation, number=3):
            verdicts: list[Verdict] = []
            for memory in (known, None):
                load(device, moment.snapshot)
                device.chips["flash"].leave(moment.operation, cut_of(name, moment.operation.kind))
                journey = Journey(device, oracle, known=memory)
                verdicts.append(journey.run(Position(moment.position.stage), interrupted=True))
            assert verdicts[0].outcomes == verdicts[1].outcomes
            assert verdicts[0].broken == verdicts[1].broken == ()


# --- moments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(FlashOperationKind))
def test_every_moment_of_a_kind_of_operation_is_a_cut_and_is_read_back(kind: FlashOperationKind) -> None:
    operation = FlashOperation(12, kind, 0, 64)
    names = moments_of(operation, number=9, harsh=True)
    assert names[0] == "before"
    assert names[-1] == "after"
    assert len(set(names)) == len(names) >= (2 if kind is FlashOperationKind.COMMIT else 8)
    for name in names:
        assert has_moment(kind, name)
        cut_of(name, kind)
        assert parse_moment(f"12:{name}") == CutMoment(12, name)


@pytest.mark.parametrize("moment", ["half@3", "random", "weak@x", "no-such", "words", "", "words@-1"])
def test_a_moment_that_an_erase_does_not_have_is_refused(moment: str) -> None:
    with pytest.raises(InvalidInput, match="no such cut moment"):
        cut_of(moment, FlashOperationKind.ERASE)


# --- reproducers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reproducer",
    [
        Reproducer(SMALL_ESP, (CutMoment(3, "before"),)),
        Reproducer(SMALL_ESP, (CutMoment(3, "random@7"), CutMoment(0, "after"))),
        Reproducer(SMALL_ESP, (CutMoment(9, "weak@1"),), every=50),
        Reproducer(
            SweepSubject("esp32", SweepAgent.MICRO_RDK, BootBuild.PLAIN, None, "refused"), (CutMoment(1, "half"),)
        ),
    ],
    ids=str,
)
def test_a_reproducer_line_is_read_back_as_it_was(reproducer: Reproducer) -> None:
    assert parse_line(str(reproducer)) == reproducer


GOOD_LINE = str(Reproducer(SMALL_ESP, (CutMoment(3, "before"),)))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "flota-cuts-2 board=esp32",
        "flota-cuts-1",
        GOOD_LINE + " cuts=1:before",
        GOOD_LINE + " every=1*1:before",
        GOOD_LINE.replace("cuts=3:before", ""),
        GOOD_LINE.replace("3:before", "three"),
        GOOD_LINE.replace("3:before", ",".join(["1:before"] * 65)),
        GOOD_LINE.replace("cuts=3", "every=0*3"),
        GOOD_LINE.replace("cuts=3", "every=99*3"),
        GOOD_LINE.replace("rollback=on", "rollback=maybe"),
        GOOD_LINE.replace("agent=esp-https-ota", "agent=nobody"),
        GOOD_LINE.replace("image=20480", "image=big"),
        GOOD_LINE + "x" * 5000,
    ],
)
def test_a_line_that_is_no_reproducer_is_refused_with_what_was_expected(line: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_line(line)
    assert caught.value.expected


@pytest.mark.parametrize(
    "line",
    [
        GOOD_LINE.replace("esp32-c3", "no-such-board"),
        GOOD_LINE.replace("esp32-c3", "generic-linux"),
        GOOD_LINE.replace("two-updates", "no-such"),
        GOOD_LINE.replace("image=20480", "image=100"),
        GOOD_LINE.replace("image=20480", "image=99999999"),
        GOOD_LINE.replace("3:before", "0:all-but-last-byte-but-one"),
    ],
)
def test_a_line_about_what_there_is_not_is_a_clear_error(line: str) -> None:
    with pytest.raises(FlotaError):
        replay(parse_line(line))


def test_a_failure_is_seen_again_from_its_line_with_real_cuts_and_the_fewest_of_them() -> None:
    subject = SweepSubject("esp32-c3", SweepAgent.ESP_HTTPS_OTA, BootBuild.ROLLBACK, 20 * 1024, "crash")
    first = first_harsh_failure(subject)
    again = replay(parse_line(first.line))
    assert again.broken[0].promise is first.broken.promise
    with_more = Reproducer(subject, (CutMoment(2, "before"), *parse_line(first.line).cuts))
    longer = replay(with_more)
    if longer.broken:
        assert len(minimised(with_more, longer).cuts) <= 2
    told: list[str] = []
    replay(parse_line(first.line), told.append)
    assert any(text.startswith("cut ") for text in told)
    assert told[-1].startswith("BROKEN ")


def first_harsh_failure(subject: SweepSubject):  # type: ignore[no-untyped-def]
    from flota.lab.sweep import Effort, first_failure

    failure = first_failure(subject, Effort(harsh=True, cut_boots=1))
    assert failure is not None
    assert isinstance(failure.broken, Broken)
    return failure


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_slots_are_made_to_measure_and_the_own_table_is_filled() -> None:
    small = geometry_for("esp32", 64 * 1024)
    assert {row.size for row in small.table.ota_slots} == {64 * 1024 + 4096}
    own = geometry_for("esp32", None)
    assert own.image_size == 0x377000 - 4096
    assert own.board.flash_size == 8 << 20


def test_images_of_a_sweep_have_the_size_asked_for_and_differ_in_every_sector() -> None:
    one, two = esp_image("esp32", "1.0.0", 65536), esp_image("esp32", "2.0.0", 65536)
    assert len(one) == len(two) == 65536
    assert all(one[at : at + 4096] != two[at : at + 4096] for at in range(0, 65536, 4096))
    with pytest.raises(InvalidInput):
        esp_image("esp32", "1.0.0", 65537)
    assert scenario_named("crash").needs_rollback
