"""Executions as Jobs shows them, on both databases: their order, who sees them, their ids, their timers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from flota.errors import VersionMismatch
from flota.fleet.devices import DeviceState
from flota.fleet.executions import ExecutionChange, ExecutionState, StepTimer
from flota.fleet.releases import ReleaseState
from flota.fleet.rollouts import RolloutPolicy, RolloutState
from flota.fleet.storage import NewRollout
from flota.store.database import Database
from flota.store.tables import rollouts
from tests.store.fleets import START, Fleet, a_fleet, a_release, at

S = ExecutionState


async def _another(database: Database, fleet: Fleet, name: str, version: str) -> int:
    """Return the rollout of one more release to all devices of the fleet, its wave open."""
    async with database.transaction() as tx:
        release = await a_release(tx, fleet.scope, version)
        waves = (tuple(device.id for device in fleet.devices),)
        new = NewRollout(name, release.id, RolloutPolicy(attempts=3), waves, "type=pump")
        rollout = await tx.add_rollout(fleet.scope, new, now=START)
        await tx.open_wave(fleet.scope, rollout.id, 1, now=START)
    return rollout.id


async def test_open_jobs_come_in_progress_first_then_by_age_for_many_devices_at_once(database: Database) -> None:
    fleet = await a_fleet(database, size=3)
    await fleet.opened(database)
    await _another(database, fleet, "summer", "2.1.0")
    ids = [device.id for device in fleet.devices]
    async with database.transaction() as tx:
        later = (await tx.open_jobs(fleet.scope, ids))[ids[1]][1].execution
        await tx.change_execution(fleet.scope, later.id, 1, ExecutionChange(S.IN_PROGRESS), now=at(1))
    async with database.reading() as tx:
        found = await tx.open_jobs(fleet.scope, [*ids, 4711])
    assert set(found) == set(ids)
    assert [job.job_id for job in found[ids[0]]] == ["AFR_OTA-spring", "AFR_OTA-summer"]
    assert [(job.job_id, job.execution.state) for job in found[ids[1]]] == [
        ("AFR_OTA-summer", S.IN_PROGRESS),
        ("AFR_OTA-spring", S.QUEUED),
    ]
    assert [job.policy.attempts for job in found[ids[0]]] == [1, 3]
    assert all(job.may_start for jobs in found.values() for job in jobs)


async def test_what_may_not_start_is_not_listed_and_what_is_at_work_always_is(database: Database) -> None:
    fleet = await a_fleet(database, size=2)
    executions = await fleet.opened(database)
    ids = [device.id for device in fleet.devices]
    async with database.transaction() as tx:
        await tx.change_execution(fleet.scope, executions[0].id, 1, ExecutionChange(S.IN_PROGRESS), now=at(1))
        await tx.set_rollout_state(fleet.scope, fleet.rollout.id, RolloutState.PAUSED, now=at(2))
        found = await tx.open_jobs(fleet.scope, ids)
        assert list(found) == [ids[0]]
        assert not found[ids[0]][0].may_start
        await tx.set_device_state(fleet.scope, fleet.devices[0].name, DeviceState.PENDING, now=at(3))
        assert not await tx.open_jobs(fleet.scope, ids)


async def test_a_withdrawn_releases_jobs_are_gone(database: Database) -> None:
    fleet = await a_fleet(database, size=1)
    (execution,) = await fleet.opened(database)
    async with database.transaction() as tx:
        await tx.set_release_state(fleet.scope, fleet.release.id, ReleaseState.WITHDRAWN, now=at(1))
        assert not await tx.open_jobs(fleet.scope, [execution.device_id])


async def test_a_job_is_found_by_its_id_in_any_state_by_its_own_device_alone(database: Database) -> None:
    fleet = await a_fleet(database, size=2)
    other = await a_fleet(database, tenant="OTHER", size=1)
    await other.opened(database)
    first, _ = await fleet.opened(database)
    async with database.transaction() as tx:
        await tx.change_execution(fleet.scope, first.id, 1, ExecutionChange(S.FAILED), now=at(1))
        found = await tx.job_of_device(fleet.scope, first.device_id, "AFR_OTA-spring")
        assert found is not None
        assert (found.execution.id, found.execution.state, found.job_id) == (first.id, S.FAILED, "AFR_OTA-spring")
        foreign = other.devices[0].id
        for device_id, job_id in (
            (first.device_id, "AFR_OTA-Spring"),
            (first.device_id, "spring"),
            (first.device_id, f"AFR_OTA-{fleet.rollout.id}"),
            (first.device_id, "AFR_OTA-99999999999999"),
            (first.device_id, "AFR_OTA-"),
            (foreign, "AFR_OTA-spring"),
            (4711, "AFR_OTA-spring"),
        ):
            assert await tx.job_of_device(fleet.scope, device_id, job_id) is None


async def test_a_rollout_from_before_jobs_is_found_by_its_number(database: Database) -> None:
    fleet = await a_fleet(database, size=1)
    (execution,) = await fleet.opened(database)
    async with database.transaction() as tx:
        await tx._connection.execute(sa.update(rollouts).values(job_id=None))  # type: ignore[attr-defined]
        for job_id in (f"AFR_OTA-{fleet.rollout.id}", f"AFR_OTA-0{fleet.rollout.id}"):
            found = await tx.job_of_device(fleet.scope, execution.device_id, job_id)
            assert (found is not None) == (job_id == f"AFR_OTA-{fleet.rollout.id}")
        listed = (await tx.open_jobs(fleet.scope, [execution.device_id]))[execution.device_id]
        assert [job.job_id for job in listed] == [f"AFR_OTA-{fleet.rollout.id}"]


async def test_a_step_timer_is_set_without_a_new_version_and_ends_with_its_execution(database: Database) -> None:
    fleet = await a_fleet(database, size=1)
    (execution,) = await fleet.opened(database)
    async with database.transaction() as tx:
        with pytest.raises(VersionMismatch):
            await tx.set_step_timer(fleet.scope, execution.id, 1, at(60))
        begun = ExecutionChange(S.IN_PROGRESS, step_timer=StepTimer(at(30)))
        started = await tx.change_execution(fleet.scope, execution.id, 1, begun, now=at(1))
        assert started.step_expires_at == at(30)
        await tx.set_step_timer(fleet.scope, execution.id, 2, at(60))
        with pytest.raises(VersionMismatch):
            await tx.set_step_timer(fleet.scope, execution.id, 1, at(90))
        assert await tx.execution(fleet.scope, execution.id) == replace(started, step_expires_at=at(60))
        ended = await tx.change_execution(fleet.scope, execution.id, 2, ExecutionChange(S.FAILED), now=at(2))
        assert ended.step_expires_at is None
        assert (await tx.execution(fleet.scope, execution.id)).step_expires_at is None
