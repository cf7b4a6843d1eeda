"""Verdicts on devices that only say what they run."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from flota.fleet.executions import Basis, ExecutionState
from flota.fleet.verdicts import (
    VERDICTS,
    Deliveries,
    DeliveryStage,
    ImageIdentity,
    Judgement,
    RunningImage,
    judge_running_image,
    running_image,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OLD = ImageIdentity(frozenset({"01"}), "aa", 10)
NEW = ImageIdentity(frozenset({"02", "03"}), "bb", 20)
OTHER = ImageIdentity(frozenset({"04"}), "cc", 30)
SILENT = ImageIdentity()
IMAGES = {
    RunningImage.OFFERED: NEW,
    RunningImage.PREVIOUS: OLD,
    RunningImage.UNKNOWN: OTHER,
    RunningImage.UNTOLD: SILENT,
}


def judge(running: ImageIdentity, stage: DeliveryStage, *, cancel: bool = False, **more: object) -> Judgement:
    previous = more.pop("previous", OLD)
    deliveries = Deliveries(stage, 1, previous, NOW)  # type: ignore[arg-type]
    now = NOW + timedelta(seconds=int(more.pop("after_s", 10)))  # type: ignore[call-overload]
    return judge_running_image(running, NEW, deliveries, cancel_requested=cancel, silence_limit_s=3600, now=now)


def test_the_table_has_every_pair() -> None:
    assert set(VERDICTS) == set(itertools.product(RunningImage, DeliveryStage))


@pytest.mark.parametrize("stage", DeliveryStage)
def test_the_offered_image_is_always_success_as_reported(stage: DeliveryStage) -> None:
    for running in (NEW, ImageIdentity(frozenset({"03"})), ImageIdentity(md5="bb")):
        judgement = judge(running, stage)
        assert (judgement.state, judgement.basis) == (ExecutionState.SUCCEEDED, Basis.REPORTED)


@pytest.mark.parametrize("running", [OLD, OTHER, SILENT])
@pytest.mark.parametrize("stage", [DeliveryStage.NONE, DeliveryStage.CUT, DeliveryStage.WHOLE])
def test_with_attempts_left_the_image_is_offered_again(running: ImageIdentity, stage: DeliveryStage) -> None:
    assert judge(running, stage).is_offer


@pytest.mark.parametrize("running", [OLD, OTHER])
def test_a_device_that_does_not_run_the_image_in_the_end_has_failed(running: ImageIdentity) -> None:
    judgement = judge(running, DeliveryStage.USED_UP)
    assert (judgement.state, judgement.basis) == (ExecutionState.FAILED, Basis.REPORTED)
    assert judgement.image is (RunningImage.PREVIOUS if running is OLD else RunningImage.UNKNOWN)


@pytest.mark.parametrize("stage", [DeliveryStage.NONE, DeliveryStage.CUT])
@pytest.mark.parametrize("running", [OLD, OTHER, SILENT])
def test_a_cancelled_execution_without_a_whole_delivery_is_cancelled(
    running: ImageIdentity, stage: DeliveryStage
) -> None:
    assert judge(running, stage, cancel=True).state is ExecutionState.CANCELED


@pytest.mark.parametrize("stage", [DeliveryStage.WHOLE, DeliveryStage.USED_UP])
def test_a_cancelled_execution_with_a_whole_delivery_ends_as_what_runs_shows(stage: DeliveryStage) -> None:
    assert judge(OLD, stage, cancel=True).state is ExecutionState.FAILED
    assert judge(NEW, stage, cancel=True).state is ExecutionState.SUCCEEDED


@pytest.mark.parametrize("running", IMAGES.values())
@pytest.mark.parametrize("stage", DeliveryStage)
def test_a_cancelled_execution_is_never_offered(running: ImageIdentity, stage: DeliveryStage) -> None:
    assert not judge(running, stage, cancel=True).is_offer


def test_before_the_first_delivery_whatever_runs_is_the_previous_image() -> None:
    assert running_image(OTHER, NEW, ImageIdentity()) is RunningImage.PREVIOUS


def test_what_a_silent_device_runs_is_inferred_from_its_size_or_from_time_only() -> None:
    used_up = DeliveryStage.USED_UP
    assert judge(SILENT, used_up) == Judgement(None, RunningImage.UNTOLD)
    by_size = judge(ImageIdentity(size=20), used_up)
    assert (by_size.state, by_size.basis) == (ExecutionState.SUCCEEDED, Basis.INFERRED)
    same_size_as_before = judge(ImageIdentity(size=20), used_up, previous=ImageIdentity(size=20))
    assert same_size_as_before.state is None
    by_time = judge(SILENT, used_up, after_s=3601)
    assert (by_time.state, by_time.basis) == (ExecutionState.TIMED_OUT, Basis.INFERRED)
