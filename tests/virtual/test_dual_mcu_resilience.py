"""Everything that can go wrong with an update through an NCP, on both strategies: power, storage, noise, resets."""

from __future__ import annotations

import itertools
import random

import pytest

from flota.lab.simulated_mcu import texts
from flota.protocols.blynk.catalogue import PrefetchStatus
from flota.protocols.blynk.frames import FrameReader, pack_frame
from flota.protocols.blynk.messages import Invoke, Result, Status, parse_message
from flota.protocols.blynk.ncp import Reported
from flota.protocols.blynk.ncp_job import CONFIRM_WINDOW_S, SETTLE_S, Outcome, Progressed
from flota.protocols.blynk.ncp_states import UpdateState
from flota.virtual.agents.blynk_app import SUSPEND_S
from flota.virtual.agents.blynk_firmware import Conditions, McuBuild
from flota.virtual.events import EventKind
from flota.virtual.flash import TEARS, Cut, CutPhase, FlashOperation
from flota.virtual.uart_line import LineFaults
from tests.protocols.blynk.vectors import frames
from tests.virtual.dual_mcu_bench import AB, BOTH, NCP, RESULT, SIZE, DualMcuBench, image

NEW = image("2.0.0")
WRITE = b"\xaa\xbc\x67\x42\x04"
SLOT_BYTES = 0xF_0000

both = pytest.mark.parametrize("board", BOTH)


def up(board: str, **changes: object) -> DualMcuBench:
    bench = DualMcuBench(board, **changes)  # type: ignore[arg-type]
    bench.settle()
    assert bench.runs == "1.0.0"
    return bench


def updated(bench: DualMcuBench, data: bytes = NEW) -> bool:
    return bench.runs == "2.0.0" and bench.mcu.confirmed and bench.running_bytes == data


# --- R1 power ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("suspends", [False, True])
def test_r1_with_a_low_battery_the_update_waits_until_the_level_is_back(board: str, suspends: bool) -> None:
    bench = up(board, build=McuBuild(speed=20, suspends=suspends), conditions=Conditions(battery_percent=12))
    bench.offer(NEW)
    bench.run(900)
    assert UpdateState.STREAMING not in bench.states
    assert bench.mcu.boots == ["1.0.0"]
    assert bench.ncp.update.is_open
    bench.conditions.battery_percent = 80
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench)


def test_r1_the_reference_begins_with_an_empty_battery() -> None:
    bench = up(AB, build=McuBuild(speed=20, is_strict=True), conditions=Conditions(battery_percent=1))
    bench.offer(NEW)
    assert bench.outcome() is Outcome.SUCCEEDED


# --- R2 storage -------------------------------------------------------------------------------------------------------


@both
def test_r2_an_image_larger_than_the_slot_is_declined_and_one_that_fills_it_is_taken(board: str) -> None:
    bench = up(board, build=McuBuild(speed=10_000, raises_to=2_000_000))
    bench.offer(bytes(SLOT_BYTES + 1))
    assert bench.outcome() is Outcome.DECLINED
    assert bench.mcu.boots == ["1.0.0"]
    whole = image("2.0.0", size=SLOT_BYTES)
    bench.offer(whole)
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench, whole)


@both
def test_r2_an_image_larger_than_the_room_that_is_left_is_declined(board: str) -> None:
    bench = up(board, conditions=Conditions(room_bytes=SIZE - 1))
    bench.offer(NEW)
    assert bench.outcome() is Outcome.DECLINED
    bench.conditions.room_bytes = SIZE
    bench.offer(NEW)
    assert bench.outcome() is Outcome.SUCCEEDED


@pytest.mark.parametrize("status", [PrefetchStatus.NO_SPACE, PrefetchStatus.WRITE_FAILED])
def test_r2_a_boot_loader_is_not_entered_when_the_ncp_has_no_room_for_the_file(status: PrefetchStatus) -> None:
    bench = up(NCP, prefetch=status)
    bench.offer(NEW, prefetched=False)
    bench.run(300)
    assert bench.mcu.boots == ["1.0.0"]
    assert any(status.name.lower() in text for text in texts(bench.mcu.told, EventKind.TROUBLE))
    bench.prefetch = PrefetchStatus.DONE
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench)


# --- R3 corruption ----------------------------------------------------------------------------------------------------


def changed_once(frames_to_change: int, offset: int) -> LineFaults:
    """Faults that lose the first frames of a chunk at `offset`: what a flipped bit makes of them."""
    left = itertools.count()

    def loses(frame: bytes) -> bool:
        hit = frame.startswith(WRITE) and len(frame) > 500
        return hit and next(left) in range(offset, offset + frames_to_change)

    return LineFaults(loses=loses)


@both
def test_r3_a_damaged_frame_is_dropped_and_sent_again(board: str) -> None:
    bench = up(board, to_mcu=changed_once(2, 5))
    bench.offer(NEW)
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench)


@both
def test_r3_a_chunk_with_a_flipped_byte_in_a_sound_frame_is_refused_and_sent_again(board: str) -> None:
    """Its CRC-8 is right and its CRC-32 is not: the MCU says false."""
    bench = up(board)
    writes = itertools.count()
    flipped: list[bytes] = []

    def flips(frame: bytes) -> bool:
        if not frame.startswith(WRITE) or next(writes) != 3:
            return False
        (payload,) = FrameReader().feed(frame)
        changed = pack_frame(payload[:40] + bytes([payload[40] ^ 1]) + payload[41:])
        flipped.append(changed)
        bench.ncp_end.wire.send(changed, now=bench.now)
        return True

    bench.ncp_end.wire.faults = LineFaults(loses=flips)
    bench.offer(NEW)
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench)
    assert len(flipped) == 1
    refused = [event for event in bench.events if isinstance(event, Progressed)]
    assert len(refused) == -(-SIZE // 1024), "each chunk counts once, the refused one too"


def test_r3_an_image_wrong_at_its_source_is_discarded_and_the_next_offer_starts_from_zero() -> None:
    bench = up(AB)
    bench.offer(NEW)
    bench.image = NEW[:9000] + bytes([NEW[9000] ^ 1]) + NEW[9001:]
    assert bench.outcome() is Outcome.FAILED
    assert bench.mcu.boots == ["1.0.0"]
    bench.asked.clear()
    bench.offer(NEW)
    assert bench.outcome() is Outcome.SUCCEEDED
    assert bench.asked[0][1] == 0
    assert updated(bench)


def test_r3_a_boot_loader_does_not_start_an_image_that_is_wrong_and_asks_until_it_is_right() -> None:
    bench = up(NCP)
    bench.offer(NEW)
    bench.image = NEW[:9000] + bytes([NEW[9000] ^ 1]) + NEW[9001:]
    bench.run(120)
    assert bench.mcu.boots == ["1.0.0", "boot loader"]
    assert len(texts(bench.mcu.told, EventKind.UPDATE_FAILED)) > 2
    bench.image = NEW
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench)


# --- R4 malfunction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["never-confirm", "crash", "lose-network", "fail-self-test"])
def test_r4_an_image_that_does_not_confirm_itself_is_rolled_back(behaviour: str) -> None:
    bench = up(AB, settle_s=SETTLE_S)
    bench.offer(image("2.0.0", behaviour))
    assert bench.outcome() is Outcome.ROLLED_BACK
    bench.settle()
    assert bench.runs == "1.0.0"
    tries = 1 if behaviour == "fail-self-test" else 3
    assert bench.mcu.boots == ["1.0.0", *["2.0.0"] * tries, "1.0.0"]


def test_r4_an_image_that_never_confirms_reports_again_before_it_would_pass_for_one_that_stays() -> None:
    """Its reports lie further apart than its 60 s: settling for no longer than that would call it a success."""
    bench = up(AB, build=McuBuild(), settle_s=SETTLE_S)
    heard: list[float] = []
    keep = bench.ncp_end.handles

    def handles(event: object, now: float) -> None:
        if isinstance(event, Reported) and event.info.version == "2.0.0":
            heard.append(now)
        keep(event, now)

    bench.ncp_end.handles = handles
    bench.offer(image("2.0.0", "never-confirm"))
    assert bench.outcome() is Outcome.ROLLED_BACK
    assert len(heard) == 3
    assert all(CONFIRM_WINDOW_S < later - earlier < SETTLE_S for earlier, later in itertools.pairwise(heard))
    assert bench.now - heard[-1] < SETTLE_S, "it is known as soon as the old version reports"


def test_r4_the_reference_has_one_try_and_keeps_an_image_without_network() -> None:
    strict = McuBuild(speed=20, is_strict=True)
    bench = up(AB, build=strict, settle_s=60.0)
    bench.mcu.hardware.trial_boots = 1  # type: ignore[union-attr]
    bench.offer(image("2.0.0", "crash"))
    assert bench.outcome() is Outcome.ROLLED_BACK
    assert bench.mcu.boots == ["1.0.0", "2.0.0", "1.0.0"]
    other = up(AB, build=strict, report_limit_s=60.0)
    other.offer(image("2.0.0", "lose-network"))
    assert other.outcome() is Outcome.FAILED
    assert other.runs == "2.0.0"


def test_r4_with_one_bank_a_crashing_image_is_ended_by_another_update() -> None:
    bench = up(NCP, report_limit_s=60.0)
    bench.offer(image("2.0.0", "crash"))
    assert bench.outcome() is Outcome.FAILED
    assert bench.mcu.boots[-1] == "boot loader"
    better = image("3.0.0")
    bench.offer(better, "3.0.0")
    assert bench.outcome() is Outcome.SUCCEEDED
    assert bench.running_bytes == better


# --- R5 power loss ----------------------------------------------------------------------------------------------------


@both
def test_r5_a_power_cut_at_every_flash_operation_leaves_a_device_that_ends_with_the_old_or_the_new_image(
    board: str,
) -> None:
    small = image("2.0.0", size=9_000)
    old = image("1.0.0", size=9_000)
    finished = False
    for number in itertools.count():
        bench = up(board, first=old, build=McuBuild(speed=10_000))
        counted = itertools.count()
        cuts: list[FlashOperation] = []
        moment = Cut(CutPhase.INSIDE, tuple(TEARS.values())[number % len(TEARS)])

        def plan(operation: FlashOperation, number: int = number, moment: Cut = moment) -> Cut | None:
            if next(counted) == number:  # noqa: B023 - used up within this round
                cuts.append(operation)  # noqa: B023
                return moment
            return None

        bench.mcu.hardware.flash.plan = plan
        bench.offer(small)
        outcome = bench.outcome(3000)
        bench.settle()
        if not cuts:
            finished = True
            assert number > 6
            break
        assert bench.running_bytes in (old, small), number
        assert bench.mcu.confirmed
        assert board == AB or (outcome is Outcome.SUCCEEDED and bench.running_bytes == small), number
    assert finished


# --- R6 and R7 resets -------------------------------------------------------------------------------------------------


@both
def test_r6_an_mcu_reset_in_mid_stream_completes(board: str) -> None:
    bench = up(board)
    bench.offer(NEW)
    bench.until_written(8_000)
    bench.mcu.reset(now=bench.now)
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench)


def test_r6_a_boot_loader_without_power_for_hours_completes() -> None:
    bench = up(NCP)
    bench.offer(NEW)
    bench.until_written(8_000)
    bench.mcu.cut_power(now=bench.now, for_s=20_000)
    bench.outcome(40_000)
    bench.run(200, lambda: updated(bench))
    assert updated(bench)


@both
def test_r7_an_ncp_reset_in_mid_stream_offers_again_and_completes(board: str) -> None:
    bench = up(board)
    bench.offer(NEW)
    bench.until_written(8_000)
    bench.restart_ncp()
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench)


@both
def test_r7_an_mcu_discards_a_stream_that_stalls_for_a_minute(board: str) -> None:
    bench = up(board, supplies=lambda offset: offset < 6_000)
    bench.ncp_end.wire.faults = LineFaults(loses=lambda frame: frame.startswith(b"\xaa\xbc\x67\x44\x04"))
    bench.offer(NEW)
    bench.until_written(5_000)
    bench.run(55)
    assert not any("minute" in text for *_, text in bench.mcu.told)
    bench.run(6)
    assert any("minute" in text for *_, text in bench.mcu.told)
    if board == AB:
        assert bench.runs == "1.0.0"
        return
    bench.supplies = lambda offset: True
    bench.run(100, lambda: updated(bench))
    assert updated(bench), "its boot loader asks again"


# --- R8 network -------------------------------------------------------------------------------------------------------


def test_r8_without_a_prefetch_a_loss_of_the_network_cancels_the_update() -> None:
    bench = up(AB, supplies=lambda offset: offset < 6_000, build=McuBuild(speed=20, prefetches=False))
    bench.offer(NEW, prefetched=False)
    assert bench.outcome() is Outcome.FAILED
    bench.run(1)
    assert any("canceled" in text for text in texts(bench.mcu.told, EventKind.UPDATE_FAILED))
    assert bench.runs == "1.0.0"


@both
def test_r8_after_a_prefetch_the_network_does_not_matter(board: str) -> None:
    bench = up(board)
    bench.offer(NEW)
    bench.run(5, lambda: UpdateState.ACCEPTED in bench.states)
    bench._told(bench.ncp.cloud(False, now=bench.now))
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench)


# --- R9 to R11 the line -----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("number", range(6))
def test_r9_noise_never_makes_a_wrong_image(board: str, number: int) -> None:
    noise = LineFaults(lose_byte=1e-3, flip_bit=1e-3, double_frame=1e-3, delay_frame=1e-3, delay_s=0.3)
    bench = DualMcuBench(board, number=number, build=McuBuild(speed=20, chunk=256))
    bench.settle()
    bench.mcu_end.wire.faults = bench.ncp_end.wire.faults = noise
    bench.offer(NEW)
    outcome = bench.outcome(10_000)
    bench.mcu_end.wire.faults = bench.ncp_end.wire.faults = LineFaults()
    bench.run(400, lambda: bench.mcu.confirmed)
    assert outcome is not None
    assert bench.running_bytes in (NEW, bench.first)
    assert board == AB or bench.running_bytes == NEW
    if outcome is Outcome.SUCCEEDED:
        assert bench.running_bytes == NEW


def loses_results(numbers: set[int]) -> LineFaults:
    counted = itertools.count()
    return LineFaults(loses=lambda frame: frame.startswith(RESULT) and next(counted) in numbers)


@both
@pytest.mark.parametrize("strict", [False, True])
def test_r10_the_lost_answer_of_any_call_costs_time_and_nothing_else(board: str, strict: bool) -> None:
    chunks = -(-SIZE // 1024)
    for number in range(chunks + 2):  # the answers to the offer, to each chunk, and to Finish
        bench = up(board, build=McuBuild(speed=20, is_strict=strict))
        bench.mcu_end.wire.faults = loses_results({number})
        bench.offer(NEW)
        assert bench.outcome() is Outcome.SUCCEEDED, number
        assert updated(bench), number


@both
@pytest.mark.parametrize("number", range(5))
def test_r10_the_reference_is_updated_over_a_line_that_loses_one_result_in_a_hundred(board: str, number: int) -> None:
    """Must show 4: with the answers to the last chunk and to Finish lost too."""
    rng = random.Random(number)
    bench = up(board, build=McuBuild(speed=20, is_strict=True), number=number)
    results = itertools.count()
    big = image("2.0.0", size=100_000)
    last = 1 + -(-100_000 // 1024)
    lost: list[int] = []

    def loses(frame: bytes) -> bool:
        if not frame.startswith(RESULT):
            return False
        place = next(results)
        if rng.random() < 0.01 or place in (last - 1, last):
            lost.append(place)
            return True
        return False

    bench.mcu_end.wire.faults = LineFaults(loses=loses)
    bench.offer(big)
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench, big)
    assert len(lost) >= 2


@both
def test_r11_a_stale_answer_never_acknowledges_another_chunk(board: str) -> None:
    bench = up(board, build=McuBuild(speed=20, is_strict=True))
    bench.offer(NEW)
    bench.until_written(4_000)
    before = bench.stored
    stale = bytes.fromhex("aa12a502000001f9bb")  # true for number 2, which was another call
    bench.run(0.5, lambda: bench.stored > before)
    bench.mcu_end.wire.send(stale, now=bench.now)
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench)
    assert bench.ncp.rpc.counts.unexpected_results >= 1


# --- R12 to R14 -------------------------------------------------------------------------------------------------------


def test_r12_with_one_bank_three_failing_downloads_leave_the_app_alone_and_a_fourth_that_works_succeeds() -> None:
    bench = up(NCP, prefetch=PrefetchStatus.CONNECT_FAILED)
    bench.offer(NEW, prefetched=False)
    bench.run(150)
    failed = [text for text in texts(bench.mcu.told, EventKind.TROUBLE) if "connect_failed" in text]
    assert len(failed) == 3, "it asks again every minute"
    assert bench.mcu.boots == ["1.0.0"]
    bench.prefetch = PrefetchStatus.DONE
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench)


def test_r12_three_failing_downloads_are_three_failures_and_a_fourth_that_works_succeeds() -> None:
    bench = up(AB, supplies=lambda offset: offset < 6_000)
    for _ in range(3):
        bench.offer(NEW)
        assert bench.outcome() is Outcome.FAILED
        assert bench.runs == "1.0.0"
    bench.supplies = lambda offset: True
    bench.run(100)
    bench.offer(NEW)
    assert bench.outcome() is Outcome.SUCCEEDED


def test_r13_while_the_device_is_busy_nothing_is_written_and_then_it_goes_on_where_it_was() -> None:
    bench = up(AB, build=McuBuild(speed=1))
    bench.offer(image("2.0.0", size=60_000))
    bench.until_written(20_000)
    bench.conditions.is_busy = True
    bench.run(3)
    stored, asked = bench.stored, len(bench.asked)
    bench.run(SUSPEND_S / 2)
    assert bench.stored == stored
    assert len(bench.asked) <= asked + 1
    bench.conditions.is_busy = False
    bench.run(3)
    assert bench.stored > stored
    assert [offset for _, offset in bench.asked].count(0) == 1
    assert bench.outcome() is Outcome.SUCCEEDED


@both
def test_r13_a_suspension_that_runs_out_lets_the_stream_go_on_where_it_was(board: str) -> None:
    bench = up(board, build=McuBuild(speed=1))
    bench.offer(image("2.0.0", size=60_000))
    bench.until_written(20_000)
    assert bench.mcu.firmware is not None
    bench.mcu.firmware.mcu.suspend(200, now=bench.now)  # type: ignore[attr-defined]
    bench.run(3)
    stored = bench.stored
    bench.run(190)
    assert bench.stored == stored
    bench.run(9)
    assert bench.stored > stored
    assert [offset for _, offset in bench.asked].count(0) == 1


@both
@pytest.mark.parametrize("unable", ["mcu", "ncp"])
def test_r14_a_rate_that_one_side_cannot_do_is_given_up_within_a_minute_and_the_update_is_made(
    board: str, unable: str
) -> None:
    """Both agree on it, and then the UART of one stays where it is."""
    slow = frozenset({38_400, 115_200})
    bench = DualMcuBench(board, build=McuBuild(speed=20, raises_to=921_600, bauds=slow if unable == "mcu" else None))
    bench.ncp_end.bauds = slow if unable == "ncp" else None
    bench.run(5, lambda: bench.ncp.baud == 921_600)
    bench.run(0.1)
    assert bench.ncp_end.baud != bench.mcu_end.baud
    bench.run(60, lambda: bench.ncp.is_initialized)
    assert bench.ncp.is_initialized
    assert bench.ncp_end.baud == bench.mcu_end.baud == 38_400
    bench.offer(NEW)
    assert bench.outcome() is Outcome.SUCCEEDED
    assert updated(bench)


@both
def test_r14_a_rate_that_the_ncp_refuses_changes_nothing(board: str) -> None:
    bench = up(board, build=McuBuild(speed=20, raises_to=921_600), bauds=frozenset({38_400, 115_200}))
    assert bench.ncp_end.baud == 38_400
    bench.offer(image("2.0.0", size=9_000))
    assert bench.outcome() is Outcome.SUCCEEDED


# --- the table of errors ----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("strict", [False, True])
def test_an_unknown_procedure_meets_silence_at_the_reference_and_a_status_at_ours(board: str, strict: bool) -> None:
    bench = up(board, build=McuBuild(speed=20, is_strict=strict))
    assert {_UNKNOWN, _SHORT} <= {frame for _, frame in frames()}
    assert bench.mcu.firmware is not None
    rpc = bench.mcu.firmware.mcu.rpc  # type: ignore[attr-defined]
    rpc.bytes_to_send()
    rpc.receive(_UNKNOWN, now=bench.now)
    answer = rpc.bytes_to_send()
    assert bool(answer) is not strict
    if answer:
        assert status_of(answer) == Status.UNKNOWN_UID
    rpc.receive(_SHORT, now=bench.now)
    assert status_of(rpc.bytes_to_send()) == Status.ARGUMENTS_NOT_READ


_UNKNOWN = bytes.fromhex("aabc6799040b00ebbb")
_SHORT = bytes.fromhex("aabc6742040d0000000090bb".replace("0d00000000", "0d000000"))


def status_of(frame: bytes) -> int:
    (payload,) = FrameReader().feed(frame)
    message = parse_message(payload)
    assert not isinstance(message, Invoke)
    assert isinstance(message, Result)
    return int(message.status)


@both
def test_firmware_of_another_type_is_declined(board: str) -> None:
    bench = up(board)
    bench.offer(image("2.0.0", fw_type="TMPLother"), fw_type="TMPLother")
    assert bench.outcome() is Outcome.DECLINED
    assert bench.mcu.boots == ["1.0.0"]


def test_the_reference_takes_firmware_of_another_type() -> None:
    bench = up(AB, build=McuBuild(speed=20, is_strict=True))
    bench.offer(image("2.0.0", fw_type="TMPLother"), fw_type="TMPLother")
    assert bench.outcome() is Outcome.SUCCEEDED


@both
def test_the_version_that_runs_is_declined_and_a_downgrade_where_the_build_says_so(board: str) -> None:
    bench = DualMcuBench(board, first=image("2.0.0"), build=McuBuild(speed=20, takes_downgrades=False))
    bench.settle()
    for version in ("1.5.0", "2.0.0"):
        bench.offer(image(version), version)
        assert bench.outcome() in (Outcome.DECLINED, Outcome.SUCCEEDED)
    assert bench.mcu.boots == ["2.0.0"]


def test_without_a_report_of_a_version_the_update_fails() -> None:
    bench = up(AB, report_limit_s=60.0)
    bench.offer(NEW)
    bench.run(60, lambda: UpdateState.APPLIED in bench.states)
    bench.mcu.cut_power(now=bench.now, for_s=10_000)
    assert bench.outcome() is Outcome.FAILED


def test_a_blank_board_with_one_bank_takes_its_first_image_from_the_ncp() -> None:
    bench = DualMcuBench(NCP)
    bench.mcu.hardware.erase_chip()
    bench.offer(NEW)
    assert bench.outcome() is Outcome.SUCCEEDED
    assert bench.mcu.boots == ["boot loader", "2.0.0"]
    assert updated(bench)


def test_a_boot_loader_whose_ncp_has_lost_the_job_goes_back_to_the_app_that_is_still_there() -> None:
    bench = up(NCP)
    bench.offer(NEW)
    bench.run(30, lambda: "boot loader" in bench.mcu.boots)
    bench.ncp.update.job = None
    bench.run(200, lambda: bench.mcu.boots[-1] == "1.0.0")
    assert bench.mcu.boots == ["1.0.0", "boot loader", "1.0.0"]
    assert bench.running_bytes == bench.first
