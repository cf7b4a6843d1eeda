"""The engine on a real database: what rollouts do as devices report."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from flota.fleet.devices import DeviceState
from flota.fleet.executions import Basis, Execution, ExecutionChange, ExecutionState
from flota.fleet.rollouts import Rollout, RolloutPolicy, RolloutState
from flota.fleet.storage import DeviceSighting, NewDevice
from flota.server import engine as engine_module
from flota.server.engine import Engine
from flota.store.database import Database
from tests.store.fleets import START, Fleet, a_fleet, at

S, R = ExecutionState, RolloutState


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> datetime:
        return at(self.seconds)


async def state_of(database: Database, fleet: Fleet) -> tuple[Rollout, list[Execution]]:
    async with database.reading() as tx:
        rollout = await tx.rollout(fleet.scope, fleet.rollout.id)
        return rollout, list(await tx.list_executions(fleet.scope, rollout_id=rollout.id))


async def report(database: Database, fleet: Fleet, device: int, *states: S, seconds: float = 0) -> None:
    async with database.transaction() as tx:
        for state in states:
            [execution] = await tx.list_executions(fleet.scope, device_id=fleet.devices[device].id)
            change = ExecutionChange(state, basis=Basis.REPORTED)
            await tx.change_execution(fleet.scope, execution.id, execution.version, change, now=at(seconds))


def waves(rollout: Rollout) -> list[str]:
    return [wave.state.value for wave in rollout.waves]


async def test_waves_open_one_after_the_other_and_the_rollout_succeeds(database: Database) -> None:
    fleet = await a_fleet(database, size=3, waves="1,100%")
    engine = Engine(database, now=Clock())
    await engine.tick()
    rollout, executions = await state_of(database, fleet)
    assert waves(rollout) == ["open", "waiting"]
    assert [e.device_name for e in executions] == ["pump-1"]

    assert (await engine.tick()).effects == 0
    await report(database, fleet, 0, S.IN_PROGRESS, S.SUCCEEDED)
    await engine.tick()
    rollout, executions = await state_of(database, fleet)
    assert waves(rollout) == ["succeeded", "open"]
    assert [e.state for e in executions] == [S.SUCCEEDED, S.QUEUED, S.QUEUED]

    await report(database, fleet, 1, S.SUCCEEDED)
    await report(database, fleet, 2, S.IN_PROGRESS, S.SUCCEEDED)
    await engine.tick()
    rollout, _ = await state_of(database, fleet)
    assert (rollout.state, rollout.reason) == (R.SUCCEEDED, "3 succeeded")
    async with database.reading() as tx:
        entries = await tx.list_audit(fleet.scope)
    assert [(e.action, e.actor) for e in entries if e.action.startswith(("wave", "rollout.s"))] == [
        ("wave.open", "engine"),
        ("wave.succeeded", "engine"),
        ("wave.open", "engine"),
        ("wave.succeeded", "engine"),
        ("rollout.succeeded", "engine"),
    ]


async def test_at_the_threshold_the_rollout_aborts_and_later_waves_stay_untouched(database: Database) -> None:
    fleet = await a_fleet(database, size=6, waves="3,100%")
    engine = Engine(database, now=Clock())
    await engine.tick()
    await report(database, fleet, 1, S.IN_PROGRESS)
    await report(database, fleet, 0, S.IN_PROGRESS, S.FAILED)
    await engine.tick()
    rollout, executions = await state_of(database, fleet)
    assert rollout.state is R.ABORTED
    assert rollout.reason == "1 failed, and the limit is 1: pump-1"
    assert waves(rollout) == ["failed", "not-opened"]
    assert [e.state for e in executions] == [S.FAILED, S.IN_PROGRESS, S.CANCELED]
    assert executions[1].cancel_requested_at == START

    await report(database, fleet, 1, S.SUCCEEDED)
    assert (await engine.tick()).effects == 0
    rollout, executions = await state_of(database, fleet)
    assert rollout.state is R.ABORTED
    assert len(executions) == 3


async def test_a_silent_device_is_timed_out_and_one_that_is_heard_is_not(database: Database) -> None:
    fleet = await a_fleet(database, size=2, policy=RolloutPolicy(silence_limit_s=60, abort_after_failures=2))
    clock = Clock()
    engine = Engine(database, now=clock)
    await engine.tick()
    await report(database, fleet, 0, S.IN_PROGRESS)
    await report(database, fleet, 1, S.IN_PROGRESS)
    async with database.transaction() as tx:
        await tx.record_sightings(fleet.scope, [DeviceSighting(fleet.devices[1].id, at(30), "ddi")])
    clock.seconds = 60
    await engine.tick()
    rollout, executions = await state_of(database, fleet)
    assert [(e.state, e.basis) for e in executions] == [(S.TIMED_OUT, None), (S.IN_PROGRESS, None)]
    assert rollout.state is R.ACTIVE
    clock.seconds = 90
    await engine.tick()
    rollout, _ = await state_of(database, fleet)
    assert rollout.state is R.ABORTED


async def test_a_device_that_stays_silent_after_an_abort_does_not_stay_at_work_for_ever(database: Database) -> None:
    fleet = await a_fleet(database, size=2, policy=RolloutPolicy(silence_limit_s=60))
    clock = Clock()
    engine = Engine(database, now=clock)
    await engine.tick()
    await report(database, fleet, 0, S.IN_PROGRESS)
    await report(database, fleet, 1, S.IN_PROGRESS, S.FAILED)
    await engine.tick()
    clock.seconds = 61
    await engine.tick()
    _, executions = await state_of(database, fleet)
    assert [e.state for e in executions] == [S.CANCELED, S.FAILED]


async def test_an_expired_release_is_not_begun(database: Database) -> None:
    fleet = await a_fleet(database, expires_at=at(10))
    clock = Clock()
    clock.seconds = 10
    await Engine(database, now=clock).tick()
    rollout, executions = await state_of(database, fleet)
    assert (rollout.state, executions) == (R.ABORTED, [])


async def test_every_tenant_is_served_and_none_sees_the_other(database: Database) -> None:
    first = await a_fleet(database, tenant="FIRST", size=1)
    second = await a_fleet(database, tenant="SECOND", size=2)
    await Engine(database, now=Clock()).tick()
    for fleet, size in ((first, 1), (second, 2)):
        rollout, executions = await state_of(database, fleet)
        assert waves(rollout) == ["open"]
        assert len(executions) == size


async def test_two_engines_at_once_open_a_wave_once(database: Database) -> None:
    fleet = await a_fleet(database, size=5)
    engines = [Engine(database, now=Clock()) for _ in range(4)]
    await asyncio.gather(*(engine.tick() for engine in engines))
    _, executions = await state_of(database, fleet)
    assert len(executions) == 5


async def test_a_running_engine_acts_on_a_commit_and_stops_when_told(database: Database) -> None:
    engine = Engine(database, now=Clock())
    database.on_commit(engine.wake)
    stop, opened = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(engine.run(stop))
    fleet = await a_fleet(database, size=1)
    database.on_commit(lambda _: opened.set())  # the next to commit is the engine
    async with asyncio.timeout(3):
        await opened.wait()
    assert len((await state_of(database, fleet))[1]) == 1
    stop.set()
    async with asyncio.timeout(3):
        await running


async def a_continuous_fleet(database: Database, waves: str = "100%") -> tuple[Fleet, Engine, Clock]:
    """Three pumps that a selector picked; the rollout goes on for those that it picks later."""
    policy = RolloutPolicy(continuous=True, abort_after_failures=2)
    fleet = await a_fleet(database, size=3, waves=waves, policy=policy, selector="type=pump")
    clock = Clock()
    return fleet, Engine(database, now=clock), clock


async def test_a_continuous_rollout_stays_and_takes_in_who_is_selected_later(database: Database) -> None:
    fleet, engine, clock = await a_continuous_fleet(database)
    await engine.tick()
    for device in range(3):
        await report(database, fleet, device, S.IN_PROGRESS, S.SUCCEEDED)
    await engine.tick()
    rollout, _ = await state_of(database, fleet)
    assert (rollout.state, waves(rollout)) == (R.ACTIVE, ["open"])

    async with database.transaction() as tx:
        await tx.add_device(fleet.scope, NewDevice("late", "pump", DeviceState.ACCEPTED), now=at(1))
        await tx.add_device(fleet.scope, NewDevice("stranger", "pump", DeviceState.PENDING), now=at(1))
    clock.seconds = 60
    await engine.tick()
    rollout, executions = await state_of(database, fleet)
    assert [e.device_name for e in executions if e.state is S.QUEUED] == ["late"]
    assert rollout.waves[0].size == 4
    assert (await engine.tick()).effects == 0

    async with database.transaction() as tx:
        await tx.set_device_state(fleet.scope, "stranger", DeviceState.ACCEPTED, now=at(61))
    clock.seconds = 120
    await engine.tick()
    rollout, executions = await state_of(database, fleet)
    assert [e.device_name for e in executions if e.state is S.QUEUED] == ["late", "stranger"]
    async with database.transaction() as tx:
        await tx.set_rollout_state(fleet.scope, rollout.id, R.CANCELED, now=at(121), reason="enough")
    rollout, executions = await state_of(database, fleet)
    assert [e.state for e in executions] == [S.SUCCEEDED] * 3 + [S.CANCELED] * 2


async def test_who_joins_before_the_last_wave_is_open_waits_for_it(database: Database) -> None:
    fleet, engine, clock = await a_continuous_fleet(database, waves="1,100%")
    await engine.tick()
    async with database.transaction() as tx:
        await tx.add_device(fleet.scope, NewDevice("late", "pump", DeviceState.ACCEPTED), now=at(1))
    clock.seconds = 60
    await engine.tick()
    rollout, executions = await state_of(database, fleet)
    assert ([e.device_name for e in executions], [wave.size for wave in rollout.waves]) == (["pump-1"], [1, 3])
    await report(database, fleet, 0, S.IN_PROGRESS, S.SUCCEEDED)
    await engine.tick()
    _, executions = await state_of(database, fleet)
    assert [e.device_name for e in executions] == ["pump-1", "pump-2", "pump-3", "late"]


async def test_who_is_selected_no_more_leaves_a_continuous_rollout(database: Database) -> None:
    policy = RolloutPolicy(continuous=True)
    fleet = await a_fleet(database, size=3, policy=policy, selector="type=pump label.site=a")
    clock = Clock()
    engine = Engine(database, now=clock)
    async with database.transaction() as tx:
        for device in fleet.devices:
            await tx.set_device_labels(fleet.scope, device.name, {"site": "a"}, now=at(0))
    await engine.tick()
    await report(database, fleet, 1, S.IN_PROGRESS)
    async with database.transaction() as tx:
        for device in fleet.devices[:2]:
            await tx.set_device_labels(fleet.scope, device.name, {"site": "b"}, now=at(1))
    clock.seconds = 60
    await engine.tick()
    _, executions = await state_of(database, fleet)
    assert [e.state for e in executions] == [S.REMOVED, S.IN_PROGRESS, S.QUEUED]
    assert executions[1].cancel_requested_at is not None
    clock.seconds = 120
    await engine.tick()
    _, after = await state_of(database, fleet)
    assert [e.version for e in after] == [e.version for e in executions]


async def test_at_the_threshold_a_continuous_rollout_takes_in_nobody_more(database: Database) -> None:
    fleet, engine, clock = await a_continuous_fleet(database)
    await engine.tick()
    for device in range(2):
        await report(database, fleet, device, S.IN_PROGRESS, S.FAILED)
    await engine.tick()
    async with database.transaction() as tx:
        await tx.add_device(fleet.scope, NewDevice("late", "pump", DeviceState.ACCEPTED), now=at(1))
    clock.seconds = 60
    await engine.tick()
    rollout, executions = await state_of(database, fleet)
    assert rollout.state is R.ABORTED
    assert "late" not in [e.device_name for e in executions]


async def test_a_crowd_that_is_not_accepted_keeps_nobody_from_joining(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "JOINING_MAX", 2)
    fleet, engine, clock = await a_continuous_fleet(database)
    await engine.tick()
    async with database.transaction() as tx:
        for number in range(3):
            await tx.add_device(fleet.scope, NewDevice(f"stranger-{number}", "pump", DeviceState.PENDING), now=at(1))
        await tx.add_device(fleet.scope, NewDevice("late", "pump", DeviceState.ACCEPTED), now=at(1))
    clock.seconds = 60
    await engine.tick()
    _, executions = await state_of(database, fleet)
    assert [e.device_name for e in executions][3:] == ["late"]
