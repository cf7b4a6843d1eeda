"""What a device's report of its firmware means for its execution."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from flota.fleet.attempts import AttemptLimit
from flota.fleet.executions import Execution, ExecutionState
from flota.fleet.firmware_reports import (
    APPLY_TIME,
    HANDED_OVER,
    INTERRUPTED,
    REPORTS,
    UNDER_WAY,
    Delivery,
    Firmware,
    delivery_of,
    delivery_record,
    judge_report,
    rollback_after_end,
    unmet_condition,
)
from flota.fleet.rollouts import RolloutState
from flota.fleet.shipments import (
    ALLOWED_DETAILS,
    COUNTERS,
    DEVICE_STATUS,
    NO_CONDITIONS,
    SHIPMENT_STATUS,
    STATUS_DETAIL,
    CompareField,
    DeviceStatus,
    ShipmentConditions,
    attempts_limit,
    device_status,
    progress,
)

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
OLD = Firmware("1.2.3", "Nov 16 2023 20:35:55", "TMPL1", (2023, 11, 16, 20, 35, 55))
NEW = Firmware("1.2.4", "Jan  5 2024 10:00:00", "TMPL1", (2024, 1, 5, 10, 0, 0))


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def an_execution(state: ExecutionState = ExecutionState.IN_PROGRESS, **changes: Any) -> Execution:
    details = {name.replace("_", "-"): value for name, value in changes.pop("details", {}).items()}
    return Execution(7, 1, 2, "mill-1", 3, 1, state, 4, START, START, details=details, **changes)


def judge(execution: Execution, running: Firmware = OLD, *, minutes: float, reported: float | None = None) -> Any:
    return judge_report(
        execution,
        running,
        NEW,
        conditions=NO_CONDITIONS,
        limit=AttemptLimit(3),
        reported_at=at(minutes if reported is None else reported),
        since=START,
        now=at(minutes),
    )


def told(**more: str) -> dict[str, str]:
    return {"told_at": at(1).isoformat(), **more}


def fetched(requests: int = 1) -> dict[str, str]:
    moments = {"delivery_began_at": at(2).isoformat(), "delivered_at": at(3).isoformat()}
    return told(requests=str(requests), delivery=HANDED_OVER, **moments)


def test_every_pair_of_report_and_delivery_has_a_verdict() -> None:
    assert set(REPORTS) == set(product((True, False), Delivery))


@pytest.mark.parametrize("details", [{}, told(), told(requests="1", delivery=INTERRUPTED), fetched(), fetched(3)])
def test_the_offered_firmware_in_a_report_is_success_however_it_got_there(details: dict[str, str]) -> None:
    end = judge(an_execution(details=details), NEW, minutes=20).end
    assert end.state is ExecutionState.SUCCEEDED


@pytest.mark.parametrize(
    ("details", "delivery"),
    [
        ({}, Delivery.UNTOLD),
        (told(), Delivery.TOLD),
        (told(requests="1", delivery=UNDER_WAY, delivery_began_at=at(2).isoformat()), Delivery.UNDER_WAY),
        (told(requests="1", delivery=UNDER_WAY, delivery_began_at=at(-9).isoformat()), Delivery.ASKED),
        (told(requests="1", delivery=INTERRUPTED), Delivery.ASKED),
        (told(requests="3", delivery=INTERRUPTED), Delivery.USED_UP),
        (told(requests="nonsense", delivery=INTERRUPTED), Delivery.TOLD),
        (fetched(), Delivery.FETCHED),
        (fetched(3), Delivery.FETCHED),
    ],
)
def test_how_far_a_delivery_came_is_read_from_the_details(details: dict[str, str], delivery: Delivery) -> None:
    record = delivery_record(an_execution(details=details).details)
    assert delivery_of(record, limit=AttemptLimit(3), since=START, now=at(5)) is delivery


def test_after_a_whole_delivery_the_old_firmware_counts_only_when_the_mcu_has_had_its_time() -> None:
    waiting = judge(an_execution(details=fetched()), minutes=5)
    assert (waiting.end, waiting.offer, waiting.look_at) == (None, False, at(3) + APPLY_TIME)
    assert judge(an_execution(details=fetched()), minutes=13, reported=5).offer
    end = judge(an_execution(details=fetched(3)), minutes=13, reported=5).end
    assert (end.state, end.details[STATUS_DETAIL]) == (ExecutionState.FAILED, DeviceStatus.LIMIT_REACHED)


def test_a_report_from_before_the_offer_proves_nothing_about_it() -> None:
    for details in (told(), fetched(), fetched(3), told(requests="3", delivery=INTERRUPTED)):
        judgement = judge(an_execution(details=details), minutes=20, reported=0.5)
        assert (judgement.end, judgement.offer) == (None, False)


def test_a_device_that_is_to_stop_is_offered_nothing_and_may_finish_what_it_has() -> None:
    stopping: dict[str, Any] = {"cancel_requested_at": at(4)}
    assert judge(an_execution(details=told(), **stopping), minutes=5).end.state is ExecutionState.CANCELED
    assert judge(an_execution(details=fetched(), **stopping), minutes=5).end is None
    assert judge(an_execution(details=fetched(), **stopping), NEW, minutes=5).end.state is ExecutionState.SUCCEEDED
    assert judge(an_execution(details=fetched(), **stopping), minutes=14).end.state is ExecutionState.CANCELED


@pytest.mark.parametrize(
    ("compare", "running", "is_taken"),
    [
        (CompareField.NO_CONDITION, NEW, True),
        (CompareField.LATEST_FIRMWARE_VERSION, OLD, True),
        (CompareField.LATEST_FIRMWARE_VERSION, Firmware("1.10.0"), False),
        (CompareField.LATEST_FIRMWARE_VERSION, NEW, False),
        (CompareField.BUILD_DATE_DIFFERS, OLD, True),
        (CompareField.BUILD_DATE_DIFFERS, Firmware("9", "Jan 05 2024 10:00:00", "", NEW.built_at), False),
        (CompareField.EARLIER_BUILD_DATE, OLD, True),
        (CompareField.EARLIER_BUILD_DATE, NEW, False),
        (CompareField.EARLIER_BUILD_DATE, Firmware("1.0"), False),
    ],
)
def test_conditions_compare_what_runs_with_what_is_offered(
    compare: CompareField, running: Firmware, is_taken: bool
) -> None:
    unmet = unmet_condition(running, NEW, ShipmentConditions(compare))
    assert (unmet is None) is is_taken
    assert unmet is None or unmet[0] is DeviceStatus.VERSION_MISMATCH


def test_another_firmware_type_is_a_mismatch_unless_it_is_to_be_skipped() -> None:
    other = Firmware("1.2.3", fw_type="TMPL2")
    unmet = unmet_condition(other, NEW, NO_CONDITIONS)
    assert unmet is not None
    assert unmet[0] is DeviceStatus.TYPE_MISMATCH
    assert unmet_condition(other, NEW, ShipmentConditions(skip_type_check=True)) is None
    assert unmet_condition(Firmware("1.2.3"), NEW, NO_CONDITIONS) is None


def test_a_rollback_is_old_new_old_and_is_marked_once() -> None:
    details = {"previous_version": "1.2.3", "shipment_status": "success"}
    done = an_execution(ExecutionState.SUCCEEDED, details=details)
    assert rollback_after_end(done, NEW, NEW, now=at(9)) is None
    assert rollback_after_end(done, Firmware("1.1.0"), NEW, now=at(9)) is None
    marked = rollback_after_end(done, OLD, NEW, now=at(9))
    assert marked is not None
    after, _ = marked
    assert (after.version, device_status(after)) == (5, DeviceStatus.ROLLBACK)
    assert rollback_after_end(after, OLD, NEW, now=at(10)) is None


def test_every_state_has_a_status_and_a_left_over_one_counts_no_more() -> None:
    assert set(DEVICE_STATUS) == set(ALLOWED_DETAILS) == set(ExecutionState)
    assert set(SHIPMENT_STATUS) == set(RolloutState)
    over = an_execution(ExecutionState.TIMED_OUT, details={"shipment_status": "requestSent"})
    assert device_status(over) is DeviceStatus.UPLOAD_FAILURE


def test_the_counters_are_the_vendors_and_every_device_is_counted_once() -> None:
    counts = progress([DeviceStatus.SUCCESS, DeviceStatus.SUCCESS, DeviceStatus.ROLLBACK, DeviceStatus.WAITING])
    assert tuple(counts) == COUNTERS
    assert (counts["success"], counts["rollback"], sum(counts.values())) == (2, 1, 3)


def test_a_plain_rollouts_limit_is_at_least_the_vendors_three() -> None:
    assert [attempts_limit(NO_CONDITIONS, limit) for limit in (1, 3, 5)] == [3, 3, 5]
    assert attempts_limit(ShipmentConditions(attempts=1), 5) == 1
