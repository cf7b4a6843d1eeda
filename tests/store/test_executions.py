from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from flota.errors import Conflict, InvalidInput, NotFound, VersionMismatch
from flota.fleet.devices import DeviceState
from flota.fleet.executions import EXECUTION_TRANSITIONS, Basis, ExecutionChange, ExecutionState
from flota.fleet.releases import ReleaseState
from flota.fleet.rollouts import RolloutPolicy, RolloutState
from flota.fleet.scope import Scope
from flota.fleet.storage import NewRollout, Transaction
from flota.store.database import Database
from flota.store.queries import executions as executions_queries
from flota.store.tables import EXECUTION_ID_MAX
from tests.store.fleets import START, Fleet, a_fleet, a_release, at

S = ExecutionState
WRITERS = 32
ROUNDS = 5


async def change(
    database: Database, scope: Scope, execution_id: int, version: int, state: ExecutionState, seconds: float = 1
) -> None:
    async with database.transaction() as tx:
        await tx.change_execution(scope, execution_id, version, ExecutionChange(state), now=at(seconds))


async def next_id(database: Database, fleet: Fleet, device_index: int = 0) -> int | None:
    async with database.reading() as tx:
        execution = await tx.next_execution(fleet.scope, fleet.devices[device_index].id)
        return None if execution is None else execution.id


async def a_second_rollout(tx: Transaction, fleet: Fleet, name: str = "summer") -> int:
    release = await a_release(tx, fleet.scope, f"3.0.0-{name}")
    waves = (tuple(device.id for device in fleet.devices),)
    rollout = await tx.add_rollout(fleet.scope, NewRollout(name, release.id, RolloutPolicy(), waves, "all"), now=START)
    await tx.open_wave(fleet.scope, rollout.id, 1, now=START)
    return rollout.id


async def test_opening_a_wave_queues_one_execution_a_device_and_never_two(database: Database) -> None:
    fleet = await a_fleet(database)
    made = await fleet.opened(database)
    assert [e.device_name for e in made] == ["pump-1", "pump-2", "pump-3"]
    assert [(e.id, e.version, e.state) for e in made] == [(1, 1, S.QUEUED), (2, 1, S.QUEUED), (3, 1, S.QUEUED)]
    assert await fleet.opened(database) == []


async def test_opening_a_wave_passes_over_devices_that_are_not_accepted_any_more(database: Database) -> None:
    fleet = await a_fleet(database)
    async with database.transaction() as tx:
        await tx.set_device_state(fleet.scope, "pump-1", DeviceState.REFUSED, now=START)
        await tx.remove_device(fleet.scope, "pump-2", now=START)
    assert [e.device_name for e in await fleet.opened(database)] == ["pump-3"]


@pytest.mark.parametrize("state", [RolloutState.PAUSED, RolloutState.CANCELED])
async def test_a_wave_opens_only_in_an_active_rollout(database: Database, state: RolloutState) -> None:
    fleet = await a_fleet(database)
    async with database.transaction() as tx:
        await tx.set_rollout_state(fleet.scope, fleet.rollout.id, state, now=START)
    with pytest.raises(Conflict):
        await fleet.opened(database)


async def test_a_change_raises_the_version_by_one_and_keeps_the_history(database: Database) -> None:
    fleet = await a_fleet(database)
    first = (await fleet.opened(database))[0]
    async with database.transaction() as tx:
        started = await tx.change_execution(
            fleet.scope,
            first.id,
            1,
            ExecutionChange(S.IN_PROGRESS, details={"step": "download", "progress": "10"}, message="download began"),
            now=at(1),
        )
        ended = await tx.change_execution(
            fleet.scope,
            first.id,
            2,
            ExecutionChange(S.FAILED, details={"progress": None, "reason": "crash"}, basis=Basis.REPORTED),
            now=at(2),
        )
    assert (started.version, started.started_at, started.finished_at) == (2, at(1), None)
    assert (ended.version, ended.started_at, ended.finished_at) == (3, at(1), at(2))
    assert ended.details == {"step": "download", "reason": "crash"}
    assert ended.basis is Basis.REPORTED
    async with database.reading() as tx:
        assert await tx.execution(fleet.scope, first.id) == ended
        events = await tx.execution_events(fleet.scope, first.id)
    assert [(e.version, e.at, e.state, e.message, e.actor) for e in events] == [
        (1, START, S.QUEUED, "", "token:test"),
        (2, at(1), S.IN_PROGRESS, "download began", "token:test"),
        (3, at(2), S.FAILED, "", "token:test"),
    ]
    assert events[1].details == {"step": "download", "progress": "10"}


async def test_only_steps_of_the_table_are_stored(database: Database) -> None:
    pairs = [(before, to) for before in (S.QUEUED, S.IN_PROGRESS, S.SUCCEEDED, S.CANCELED) for to in S]
    fleet = await a_fleet(database, size=len(pairs))
    for (before, to), execution in zip(pairs, await fleet.opened(database), strict=True):
        version = 1
        if before is not S.QUEUED:
            await change(database, fleet.scope, execution.id, version, before)
            version = 2
        if to in EXECUTION_TRANSITIONS[before]:
            await change(database, fleet.scope, execution.id, version, to)
            continue
        with pytest.raises(Conflict) as caught:
            await change(database, fleet.scope, execution.id, version, to)
        assert not isinstance(caught.value, VersionMismatch), (before, to)
        async with database.reading() as tx:
            assert (await tx.execution(fleet.scope, execution.id)).state is before


async def test_a_stale_version_loses_and_is_told_the_present_state(database: Database) -> None:
    fleet = await a_fleet(database)
    execution = (await fleet.opened(database))[0]
    await change(database, fleet.scope, execution.id, 1, S.IN_PROGRESS)
    with pytest.raises(VersionMismatch) as caught:
        await change(database, fleet.scope, execution.id, 1, S.CANCELED)
    assert caught.value.found == "version 2, IN_PROGRESS"


async def test_an_amendment_of_what_has_moved_on_loses_so_that_its_writer_looks_again(database: Database) -> None:
    fleet = await a_fleet(database)
    execution = (await fleet.opened(database))[0]
    noted = replace(execution, version=2, details={"seen": "once"})
    async with database.transaction() as tx:
        assert await tx.amend_execution(fleet.scope, noted, "seen") == noted
        with pytest.raises(Conflict, match="is QUEUED") as caught:
            await tx.amend_execution(fleet.scope, replace(noted, version=3, state=S.CANCELED), "ended")
        assert not isinstance(caught.value, VersionMismatch)
    await change(database, fleet.scope, execution.id, 2, S.IN_PROGRESS)
    async with database.transaction() as tx:
        with pytest.raises(VersionMismatch):
            await tx.amend_execution(fleet.scope, replace(noted, version=3), "seen again")


async def test_of_many_concurrent_writers_exactly_one_wins_each_version(database: Database) -> None:
    fleet = await a_fleet(database, size=1)
    execution = (await fleet.opened(database))[0]
    for version in range(1, ROUNDS + 1):
        barrier = asyncio.Barrier(WRITERS)

        async def write(number: int, version: int = version, barrier: asyncio.Barrier = barrier) -> bool:
            await barrier.wait()
            try:
                async with database.transaction() as tx:
                    await tx.change_execution(
                        fleet.scope,
                        execution.id,
                        version,
                        ExecutionChange(S.IN_PROGRESS, details={"winner": str(number)}),
                        now=at(version),
                    )
            except VersionMismatch:
                return False
            return True

        results = await asyncio.gather(*(write(number) for number in range(WRITERS)))
        assert sum(results) == 1
        async with database.reading() as tx:
            present = await tx.execution(fleet.scope, execution.id)
        assert present.version == version + 1
        assert present.details["winner"] == str(results.index(True))
    async with database.reading() as tx:
        assert len(await tx.execution_events(fleet.scope, execution.id)) == ROUNDS + 1


async def test_a_device_is_at_work_on_one_execution_only(database: Database) -> None:
    fleet = await a_fleet(database, size=1)
    first = (await fleet.opened(database))[0]
    async with database.transaction() as tx:
        await a_second_rollout(tx, fleet)
    await change(database, fleet.scope, first.id, 1, S.IN_PROGRESS)
    with pytest.raises(Conflict, match="at work on another execution") as caught:
        await change(database, fleet.scope, first.id + 1, 1, S.IN_PROGRESS)
    assert not isinstance(caught.value, VersionMismatch)
    await change(database, fleet.scope, first.id, 2, S.SUCCEEDED)
    await change(database, fleet.scope, first.id + 1, 1, S.IN_PROGRESS)


async def test_a_transaction_goes_on_after_a_refused_start(database: Database) -> None:
    fleet = await a_fleet(database, size=1)
    first = (await fleet.opened(database))[0]
    async with database.transaction() as tx:
        await a_second_rollout(tx, fleet)
        await tx.change_execution(fleet.scope, first.id, 1, ExecutionChange(S.IN_PROGRESS), now=at(1))
        with pytest.raises(Conflict):
            await tx.change_execution(fleet.scope, first.id + 1, 1, ExecutionChange(S.IN_PROGRESS), now=at(1))
        await tx.change_execution(fleet.scope, first.id, 2, ExecutionChange(S.SUCCEEDED), now=at(2))
    async with database.reading() as tx:
        assert [e.state for e in await tx.list_executions(fleet.scope)] == [S.SUCCEEDED, S.QUEUED]


async def test_two_starts_at_once_leave_one_at_work(database: Database) -> None:
    fleet = await a_fleet(database, size=1)
    await fleet.opened(database)
    async with database.transaction() as tx:
        for number in range(7):
            await a_second_rollout(tx, fleet, f"more-{number}")
    barrier = asyncio.Barrier(8)

    async def start(execution_id: int) -> bool:
        await barrier.wait()
        try:
            await change(database, fleet.scope, execution_id, 1, S.IN_PROGRESS)
        except Conflict:
            return False
        return True

    assert sum(await asyncio.gather(*(start(number) for number in range(1, 9)))) == 1


async def test_the_next_execution_is_the_one_at_work_else_the_oldest_queued(database: Database) -> None:
    fleet = await a_fleet(database, size=1)
    first = (await fleet.opened(database))[0]
    async with database.transaction() as tx:
        await a_second_rollout(tx, fleet)
    second = first.id + 1
    assert await next_id(database, fleet) == first.id
    await change(database, fleet.scope, second, 1, S.IN_PROGRESS)
    assert await next_id(database, fleet) == second
    await change(database, fleet.scope, second, 2, S.SUCCEEDED)
    await change(database, fleet.scope, first.id, 1, S.REJECTED)
    assert await next_id(database, fleet) is None


async def test_nothing_queued_is_next_while_its_rollout_is_paused(database: Database) -> None:
    fleet = await a_fleet(database, size=2)
    made = await fleet.opened(database)
    await change(database, fleet.scope, made[1].id, 1, S.IN_PROGRESS)
    async with database.transaction() as tx:
        await tx.set_rollout_state(fleet.scope, fleet.rollout.id, RolloutState.PAUSED, now=START)
    assert await next_id(database, fleet, 0) is None
    assert await next_id(database, fleet, 1) == made[1].id
    with pytest.raises(Conflict, match="paused"):
        await change(database, fleet.scope, made[0].id, 1, S.IN_PROGRESS)
    async with database.transaction() as tx:
        await tx.set_rollout_state(fleet.scope, fleet.rollout.id, RolloutState.ACTIVE, now=START)
    assert await next_id(database, fleet, 0) == made[0].id


async def test_a_device_that_is_not_accepted_is_offered_nothing_and_asked_to_stop(database: Database) -> None:
    fleet = await a_fleet(database, size=2)
    made = await fleet.opened(database)
    await change(database, fleet.scope, made[1].id, 1, S.IN_PROGRESS)
    async with database.transaction() as tx:
        for name in ("pump-1", "pump-2"):
            await tx.set_device_state(fleet.scope, name, DeviceState.REFUSED, now=at(2))
        first, second = await tx.list_executions(fleet.scope)
    assert (first.state, second.state) == (S.CANCELED, S.IN_PROGRESS)
    assert second.cancel_requested_at == at(2)
    assert await next_id(database, fleet, 1) is None


async def test_removing_a_device_ends_its_executions_and_frees_its_name(database: Database) -> None:
    fleet = await a_fleet(database, size=2)
    made = await fleet.opened(database)
    await change(database, fleet.scope, made[0].id, 1, S.IN_PROGRESS)
    async with database.transaction() as tx:
        await tx.remove_device(fleet.scope, "pump-1", now=at(2))
        with pytest.raises(NotFound):
            await tx.device(fleet.scope, "pump-1")
        gone = await tx.execution(fleet.scope, made[0].id)
        assert (gone.state, gone.version, gone.device_name) == (S.REMOVED, 3, "pump-1")
    assert await next_id(database, fleet, 0) is None


@pytest.mark.parametrize("stop", ["cancel", "withdraw"])
async def test_stopping_cancels_what_is_queued_and_asks_who_is_at_work(database: Database, stop: str) -> None:
    fleet = await a_fleet(database, size=4, waves="3,100%")
    made = await fleet.opened(database)
    await change(database, fleet.scope, made[0].id, 1, S.SUCCEEDED)
    await change(database, fleet.scope, made[1].id, 1, S.IN_PROGRESS)
    async with database.transaction() as tx:
        if stop == "cancel":
            await tx.set_rollout_state(fleet.scope, fleet.rollout.id, RolloutState.CANCELED, now=at(5), reason="no")
        else:
            await tx.set_release_state(fleet.scope, fleet.release.id, ReleaseState.WITHDRAWN, now=at(5), reason="no")
        rollout = await tx.rollout(fleet.scope, fleet.rollout.id)
        executions = await tx.list_executions(fleet.scope)
    assert rollout.state is RolloutState.CANCELED
    assert [wave.state for wave in rollout.waves] == ["canceled", "not-opened"]
    assert [e.state for e in executions] == [S.SUCCEEDED, S.IN_PROGRESS, S.CANCELED]
    assert [e.cancel_requested_at for e in executions] == [None, at(5), None]
    assert await next_id(database, fleet, 1) == made[1].id  # so that the cancel can be shown
    assert await next_id(database, fleet, 2) is None
    assert await next_id(database, fleet, 3) is None


async def test_executions_are_listed_by_rollout_device_state_and_limit(database: Database) -> None:
    fleet = await a_fleet(database)
    await fleet.opened(database)
    async with database.transaction() as tx:
        other = await a_second_rollout(tx, fleet)
    await change(database, fleet.scope, 2, 1, S.IN_PROGRESS)
    async with database.reading() as tx:
        scope = fleet.scope
        assert [e.id for e in await tx.list_executions(scope, rollout_id=other)] == [4, 5, 6]
        assert [e.id for e in await tx.list_executions(scope, device_id=fleet.devices[1].id)] == [2, 5]
        assert [e.id for e in await tx.list_executions(scope, states=frozenset({S.IN_PROGRESS}))] == [2]
        assert [e.id for e in await tx.list_executions(scope, limit=2)] == [1, 2]
        wave = (await tx.rollout(scope, fleet.rollout.id)).waves[0]
    assert wave.counts == {S.QUEUED: 2, S.IN_PROGRESS: 1}


async def test_details_over_their_limits_are_refused_and_change_nothing(database: Database) -> None:
    fleet = await a_fleet(database, size=1)
    execution = (await fleet.opened(database))[0]
    with pytest.raises(InvalidInput):
        async with database.transaction() as tx:
            await tx.change_execution(
                fleet.scope, execution.id, 1, ExecutionChange(S.IN_PROGRESS, details={"x": "y" * 2000}), now=at(1)
            )
    async with database.reading() as tx:
        assert await tx.execution(fleet.scope, execution.id) == execution


def test_execution_ids_fit_a_signed_32_bit_integer() -> None:
    assert EXECUTION_ID_MAX == 2**31 - 1


@pytest.mark.parametrize("statement", [executions_queries._NEXT_EXECUTIONS, executions_queries._latest_executions("x")])
async def test_what_a_device_is_to_do_is_found_by_the_device_however_many_others_have_work(
    tmp_path: Path, statement: sa.Select[Any]
) -> None:
    async with await Database.open(f"sqlite+aiosqlite:///{tmp_path}/flota.sqlite3"):
        pass
    asked = statement.params(tenant_id=1, device_ids=[1, 2], wanted_state="SUCCEEDED")
    text = str(asked.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
    with contextlib.closing(sqlite3.connect(tmp_path / "flota.sqlite3")) as connection:
        plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {text}")]
    assert any("ix_executions_device_id_state" in step for step in plan)
    assert not any("tenant_id=?" in step for step in plan)
