"""Whole updates between an NCP and an MCU, on a line that takes its time and makes mistakes. Simulated time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from flota.protocols.blynk.catalogue import PrefetchStatus
from flota.protocols.blynk.frames import pack_frame
from flota.protocols.blynk.mcu import LinkUp, McuSettings
from flota.protocols.blynk.mcu_states import REFERENCE, ChunkArrived, Discarded, McuState, PrefetchEnded
from flota.protocols.blynk.messages import Invoke, Result, pack_message
from flota.protocols.blynk.ncp import McuLost, NcpSettings, RateFellBack
from flota.protocols.blynk.ncp_job import NcpUpdateSettings, NeedBytes, Outcome, PrefetchWanted, Remark
from flota.protocols.blynk.ncp_states import UpdateState
from flota.virtual.uart_line import LineFaults
from tests.protocols.blynk.bench import IMAGE, NEW, OLD, RESULT, Bench, digests_of

WRITE_FRAME = b"\xaa\xbc\x67\x42\x04"
REFERENCE_MCU = McuSettings(OLD, template_name="Demo", like_the_driver=True)


def loses_results(numbers: set[int], *, frame: bytes = RESULT) -> Callable[[bytes], bool]:
    """Lose the n-th of the frames that begin so, from 1."""
    count = itertools.count(1)
    return lambda found: found.startswith(frame) and next(count) in numbers


def test_an_update_goes_through() -> None:
    bench = Bench()
    bench.offer()
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert bench.applied == [IMAGE]
    assert bench.ncp.firmware == NEW


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 2048, 70_001])
def test_images_of_any_size_arrive(size: int) -> None:
    image = random.Random(size).randbytes(size)
    bench = Bench(image=image)
    bench.offer()
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert bench.applied == [image]


def test_the_vendors_reference_is_updated_too() -> None:
    bench = Bench(policy=REFERENCE, mcu_settings=REFERENCE_MCU)
    bench.offer()
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert bench.applied == [IMAGE]


def test_all_chunks_but_the_last_are_of_the_size_that_the_mcu_suggests() -> None:
    bench = Bench(policy=replace(Bench().policy, chunk=1000))
    bench.offer()
    bench.run_to_the_end()
    chunks = [event for event in bench.mcu_events if isinstance(event, ChunkArrived)]
    assert [len(one.data) for one in chunks] == [1000] * 20 + [82]


@pytest.mark.parametrize(("suggested", "used"), [(1520, 1520), (1521, 1520), (65_535, 1520), (64, 64)])
def test_no_chunk_is_larger_than_what_fits_a_frame(suggested: int, used: int) -> None:
    bench = Bench(policy=replace(Bench().policy, chunk=suggested))
    bench.offer()
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert max(event.length for event in bench.events if isinstance(event, NeedBytes)) == used


@pytest.mark.parametrize("policy", ["careful", "reference"])
@pytest.mark.parametrize("lost", [{1}, {2}, {20}, {21}, {20, 21}, {3, 9, 20}])
def test_lost_answers_cost_time_and_nothing_else(policy: str, lost: set[int]) -> None:
    """Number 20 is the last chunk's answer, 21 that of Finish: 1 is the answer to the first chunk."""
    strict = policy == "reference"
    answers = itertools.count(1)
    armed = []

    def loses(frame: bytes) -> bool:
        if not armed or not frame.startswith(RESULT):
            return False
        return next(answers) in lost

    bench = Bench(
        to_ncp=LineFaults(loses=loses), **({"policy": REFERENCE, "mcu_settings": REFERENCE_MCU} if strict else {})
    )
    bench.offer()
    bench.run(30, done=lambda: UpdateState.STREAMING in bench.states)
    armed.append(True)
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert bench.applied == [IMAGE]


@pytest.mark.parametrize("number", range(12))
def test_the_reference_is_updated_over_a_line_that_loses_results(number: int) -> None:
    rng = random.Random(number)
    faults = LineFaults(loses=lambda frame: frame.startswith(RESULT) and rng.random() < 0.05)
    bench = Bench(policy=REFERENCE, mcu_settings=REFERENCE_MCU, to_ncp=faults, number=number)
    bench.offer()
    assert bench.run_to_the_end(5000) is Outcome.SUCCEEDED
    assert bench.applied == [IMAGE]


@pytest.mark.parametrize("number", range(12))
def test_noise_never_makes_a_wrong_image(number: int) -> None:
    faults = LineFaults(lose_byte=1e-4, flip_bit=1e-4, double_frame=1e-2, delay_frame=1e-2, delay_s=0.5)
    bench = Bench(to_ncp=faults, to_mcu=faults, number=number)
    bench.offer()
    outcome = bench.run_to_the_end(5000)
    assert outcome in (Outcome.SUCCEEDED, Outcome.FAILED)
    assert all(image == IMAGE for image in bench.applied)
    assert outcome is Outcome.FAILED or bench.applied


def test_a_chunk_that_is_damaged_behind_the_frame_is_sent_again() -> None:
    """Its CRC-32 is wrong: the MCU says false."""
    bench = Bench()
    damaged = []

    def spoil(frame: bytes) -> bool:
        if frame.startswith(WRITE_FRAME) and not damaged:
            damaged.append(frame)
            write = Invoke(0x0442, 999, bytes(4) + b"\x01\0x" + bytes(4))
            bench.mcu.receive(pack_frame(pack_message(write)), now=bench.now)
            return False
        return False

    bench.ncp_end.wire.faults = LineFaults(loses=spoil)
    bench.offer()
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert damaged
    assert bench.applied == [IMAGE]


def test_an_image_that_is_wrong_at_its_source_is_discarded() -> None:
    wrong = IMAGE[:5000] + bytes([IMAGE[5000] ^ 1]) + IMAGE[5001:]
    bench = Bench(source=wrong)
    bench.offer()
    assert bench.run_to_the_end() is Outcome.FAILED
    assert "discarded" in bench.ended[0].reason
    assert not bench.applied
    assert bench.mcu.update.state is McuState.IDLE
    bench.source, bench.ended = None, []
    bench.offer()
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert bench.applied == [IMAGE]


def test_an_mcu_that_declines_is_not_asked_again() -> None:
    bench = Bench(takes=lambda offer: False)
    bench.offer()
    assert bench.run_to_the_end() is Outcome.DECLINED
    bench.run(700)
    assert bench.states.count(UpdateState.OFFERED) == 1


def test_a_release_that_never_stays_is_a_rollback() -> None:
    bench = Bench(update=NcpUpdateSettings(settle_s=60.0))
    bench.offer()
    bench.run(100, done=lambda: UpdateState.SETTLING in bench.states)
    bench.run(20)
    bench.restart_mcu(OLD)
    assert bench.run_to_the_end() is Outcome.ROLLED_BACK
    assert "after running version 1.2.4" in bench.ended[0].reason


def test_an_mcu_that_boots_the_old_image_at_once_has_rolled_back() -> None:
    bench = Bench(boots=OLD)
    bench.offer()
    assert bench.run_to_the_end() is Outcome.ROLLED_BACK


def test_a_new_version_that_falls_silent_has_not_succeeded() -> None:
    bench = Bench(update=NcpUpdateSettings(settle_s=50.0))
    bench.offer()
    bench.run(100, done=lambda: UpdateState.SETTLING in bench.states)
    bench.run(2)
    bench.mcu_end.wire.faults = LineFaults(loses=lambda frame: True)
    assert bench.run_to_the_end() is Outcome.FAILED
    assert "fell silent" in bench.ended[0].reason


def test_without_a_report_of_a_version_the_update_has_failed() -> None:
    bench = Bench()
    bench.offer()
    bench.run(100, done=lambda: UpdateState.APPLIED in bench.states)
    bench.mcu_end.wire.faults = LineFaults(loses=lambda frame: True)
    assert bench.run_to_the_end() is Outcome.FAILED
    assert "reported no version within 600 s" in bench.ended[0].reason


def test_an_mcu_that_resets_in_mid_stream_starts_again_from_the_first_byte() -> None:
    bench = Bench()
    bench.offer()
    bench.run(100, done=lambda: len(bench.flash) > 5000)
    bench.restart_mcu(OLD)
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert bench.applied == [IMAGE]
    assert bench.states.count(UpdateState.OFFERED) == 2, "its app had forgotten the first offer"


def test_a_boot_loader_that_resets_in_mid_stream_asks_for_the_stream_again() -> None:
    bench = Bench(update=NcpUpdateSettings(settle_s=0, left_to_boot_loader=True), begins=False)
    bench.offer()
    bench.run(30, done=lambda: UpdateState.ACCEPTED in bench.states)
    for _ in range(3):
        bench.restart_mcu(OLD, is_boot_loader=True)
        bench.run(30, done=lambda: isinstance(bench.mcu_events[-1], LinkUp))
        bench.mcu.resume(len(IMAGE), now=bench.now)
        bench.run(1.0)
        assert bench.mcu.update.state is McuState.RECEIVE
    bench.mcu_settings = replace(bench.mcu_settings, is_boot_loader=False)
    bench.run(60, done=lambda: bool(bench.applied))
    bench.restart_mcu(NEW, is_boot_loader=False)
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert bench.applied[0] == IMAGE
    assert any("first byte" in event.text for event in bench.events if isinstance(event, Remark))


def test_a_boot_loader_without_power_for_long_is_waited_for() -> None:
    bench = Bench(update=NcpUpdateSettings(settle_s=0, left_to_boot_loader=True, start_wait_s=7200), begins=False)
    bench.offer()
    bench.run(30, done=lambda: UpdateState.ACCEPTED in bench.states)
    bench.restart_mcu(OLD, is_boot_loader=True)
    bench.run(30, done=lambda: isinstance(bench.mcu_events[-1], LinkUp))
    bench.mcu.resume(len(IMAGE), now=bench.now)
    bench.run(0.5)
    silent, bench.mcu_end.wire.faults = bench.mcu_end.wire.faults, LineFaults(loses=lambda frame: True)
    bench.run(900)
    assert not bench.ended
    bench.mcu_end.wire.faults = silent
    bench.restart_mcu(OLD, is_boot_loader=True)
    bench.run(30, done=lambda: isinstance(bench.mcu_events[-1], LinkUp))
    bench.mcu.resume(len(IMAGE), now=bench.now)
    bench.run(60, done=lambda: bool(bench.applied))
    assert bench.applied[0] == IMAGE


def test_an_ncp_that_restarts_in_mid_stream_offers_again_and_completes() -> None:
    bench = Bench()
    bench.offer()
    bench.run(100, done=lambda: len(bench.flash) > 5000)
    bench.restart_ncp()
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert bench.applied == [IMAGE]


def test_an_mcu_that_hears_no_more_of_a_stream_discards_it_after_a_minute() -> None:
    bench = Bench()
    bench.offer()
    bench.run(100, done=lambda: len(bench.flash) > 5000)
    began = bench.now
    bench.ncp_end.wire.faults = LineFaults(loses=lambda frame: True)
    bench.run(90, done=lambda: any(isinstance(event, Discarded) for event in bench.mcu_events))
    assert 59 < bench.now - began < 62
    assert bench.mcu.update.state is McuState.IDLE


def test_a_source_that_stalls_cancels_the_stream() -> None:
    bench = Bench(source=IMAGE[:8192])
    bench.offer()
    assert bench.run_to_the_end() is Outcome.FAILED
    assert "did not come for 30 s" in bench.ended[0].reason
    bench.run(5)
    assert any(isinstance(event, Discarded) and "canceled" in event.reason for event in bench.mcu_events)


def test_six_tries_are_made_and_no_seventh() -> None:
    sent: list[bytes] = []

    def loses(frame: bytes) -> bool:
        if frame.startswith(WRITE_FRAME):
            sent.append(frame)
            return len(sent) > 3
        return False

    bench = Bench(to_mcu=LineFaults(loses=loses))
    bench.offer()
    assert bench.run_to_the_end() is Outcome.FAILED
    assert len(sent) == 3 + 6
    assert "6 tries" in bench.ended[0].reason


def test_a_stale_answer_never_acknowledges_another_chunk() -> None:
    bench = Bench()
    bench.offer()
    bench.run(100, done=lambda: len(bench.flash) > 5000)
    before = len(bench.flash)
    for msgid in range(1, 60):
        if msgid != bench.ncp.rpc._last_msgid:
            bench.ncp.receive(pack_frame(pack_message(Result(msgid, 0, b"\1"))), now=bench.now)
    bench.run(0.05)
    assert len(bench.flash) - before <= 1024
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert bench.applied == [IMAGE]


def test_while_suspended_nothing_is_written_and_afterwards_it_goes_on_at_the_right_place() -> None:
    bench = Bench()
    bench.offer()
    bench.run(100, done=lambda: len(bench.flash) > 5000)
    bench.mcu.suspend(300, now=bench.now)
    bench.run(1)
    held = len(bench.flash)
    bench.run(200)
    assert len(bench.flash) == held
    assert not any(isinstance(event, Discarded) for event in bench.mcu_events)
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert bench.applied == [IMAGE]


def test_a_suspension_ends_when_the_mcu_says_so() -> None:
    bench = Bench()
    bench.offer()
    bench.run(100, done=lambda: len(bench.flash) > 5000)
    bench.mcu.suspend(60_000, now=bench.now)
    bench.run(100)
    bench.mcu.suspend(0, now=bench.now)
    began = bench.now
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert bench.now - began < 20


def test_an_mcu_that_waits_for_power_is_waited_for_and_reminded() -> None:
    bench = Bench(begins=False)
    bench.offer()
    bench.run(590)
    assert bench.ncp.update.state is UpdateState.ACCEPTED
    bench.mcu.begin(now=bench.now)
    assert bench.run_to_the_end() is Outcome.SUCCEEDED


def test_an_mcu_that_never_starts_is_offered_the_update_twice_more() -> None:
    bench = Bench(begins=False)
    bench.offer()
    assert bench.run_to_the_end(5000) is Outcome.FAILED
    assert bench.states.count(UpdateState.OFFERED) == 3
    assert bench.now == pytest.approx(1800, abs=10)


def test_a_prefetch_is_answered_when_the_file_is_here() -> None:
    bench = Bench(prefetches=True)
    bench.offer(is_prefetched=False, digests=None)
    bench.run(60, done=lambda: any(isinstance(event, PrefetchWanted) for event in bench.events))
    bench.run(10)
    bench.ncp.digests_known(digests_of(IMAGE))
    bench._told(bench.ncp.prefetched(PrefetchStatus.DONE, now=bench.now))
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    ended = next(event for event in bench.mcu_events if isinstance(event, PrefetchEnded))
    assert ended.status is PrefetchStatus.DONE


def test_a_prefetch_that_takes_too_long_is_answered_before_the_mcu_gives_up() -> None:
    bench = Bench(prefetches=True)
    bench.offer(is_prefetched=False)
    bench.run(60, done=lambda: any(isinstance(event, PrefetchEnded) for event in bench.mcu_events))
    ended = next(event for event in bench.mcu_events if isinstance(event, PrefetchEnded))
    assert ended.status is PrefetchStatus.TIMEOUT
    assert bench.run_to_the_end() is Outcome.SUCCEEDED, "it starts all the same"


def test_a_rate_that_the_mcu_cannot_hear_is_given_up_by_both_within_a_minute() -> None:
    bench = Bench(mcu_settings=McuSettings(OLD, template_name="Demo", raises_to=921_600))
    bench.mcu_end.wire.faults = LineFaults(loses=lambda frame: bench.mcu_end.wire.baud == 921_600)
    bench.run(1)
    assert bench.ncp.baud == 921_600
    bench.run(60, done=lambda: isinstance(bench.mcu_events[-1], LinkUp) if bench.mcu_events else False)
    assert any(isinstance(event, RateFellBack) for event in bench.events)
    assert bench.ncp.baud == bench.mcu.baud == 38_400
    bench.offer()
    assert bench.run_to_the_end() is Outcome.SUCCEEDED


def test_a_rate_that_the_ncp_cannot_do_is_refused_and_nothing_changes() -> None:
    slow = NcpSettings(bauds=frozenset({38_400}))
    bench = Bench(ncp_settings=slow)
    bench.offer()
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
    assert bench.ncp.baud == 38_400


def test_a_silent_mcu_is_pinged_and_then_given_up() -> None:
    bench = Bench()
    bench.run(5)
    assert bench.ncp.is_initialized
    bench.mcu_end.wire.faults = LineFaults(loses=lambda frame: True)
    bench.run(35)
    assert bench.ncp.is_initialized
    bench.run(25)
    assert any(isinstance(event, McuLost) for event in bench.events)
    assert not bench.ncp.is_initialized
    assert bench.ncp.baud == 38_400


def test_two_healthy_ends_stay_together_for_hours() -> None:
    bench = Bench()
    bench.run(4 * 3600)
    assert bench.ncp.is_initialized
    assert sum(isinstance(event, LinkUp) for event in bench.mcu_events) == 1


def test_a_job_can_be_withdrawn_until_the_stream_begins() -> None:
    bench = Bench(begins=False)
    bench.offer()
    bench.run(5)
    given_up, _ = bench.ncp.withdraw(now=bench.now)
    assert given_up
    bench.run(2)
    assert bench.mcu.update.state is McuState.IDLE
    bench.begins = True
    bench.offer()
    bench.run(100, done=lambda: len(bench.flash) > 5000)
    assert not bench.ncp.withdraw(now=bench.now)[0]
    assert bench.run_to_the_end() is Outcome.SUCCEEDED
