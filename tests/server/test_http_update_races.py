"""Devices and operators at the same time, on every database: one outcome, nothing doubled, no gap, no 5xx."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flota.errors import VersionMismatch
from flota.fleet.devices import UnknownDevices
from flota.fleet.executions import Execution, ExecutionChange, ExecutionState
from flota.fleet.rollouts import RolloutPolicy, RolloutState
from flota.fleet.scope import Scope
from flota.server.settings import DataDirectory, ServerSettings
from flota.server.updates import has_its_turn, report
from flota.store.database import Database
from flota.store.queries.executions import ExecutionQueries
from tests.server.test_http_update import MAC, NEW_HASH, ask, headers
from tests.server.update_fleet import TOKEN, UpdateFleet, a_fleet_over


@pytest.fixture
async def fleet(database: Database, tmp_path: Path) -> AsyncIterator[UpdateFleet]:
    async with a_fleet_over(database, ServerSettings(data=DataDirectory(tmp_path))) as made:
        await made.add_type()
        yield made


async def test_one_mac_asking_many_times_at_once_is_one_device(fleet: UpdateFleet) -> None:
    await fleet.add_type("valve", unknown=UnknownDevices.ACCEPT)
    answers = await asyncio.gather(*(fleet.client.get("/update/valve", headers=headers()) for _ in range(12)))
    assert {answer.status_code for answer in answers} == {304}
    assert len(await fleet.audited("device.created")) == 1


async def test_many_requests_of_one_device_leave_one_consistent_execution(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0", validation_hash=NEW_HASH)
    (execution,) = await fleet.roll_out(release, device, policy=RolloutPolicy(attempts=100))
    answers = await asyncio.gather(*(ask(fleet) for _ in range(10)))
    assert {answer.status_code for answer in answers} <= {200, 304}
    after = await fleet.execution(execution)
    assert after.state is ExecutionState.IN_PROGRESS
    delivered = sum(answer.status_code == 200 for answer in answers)
    assert after.details["deliveries"] == str(delivered)
    await asyncio.gather(*(ask(fleet, NEW_HASH) for _ in range(10)))
    assert await fleet.state(execution) is ExecutionState.SUCCEEDED
    async with fleet.database.reading() as tx:
        events = await tx.execution_events(fleet.scope, execution.id)
        entries = await tx.list_audit(fleet.scope, limit=10_000)
    assert [event.version for event in events] == list(range(1, len(events) + 1))
    assert sum(event.state is ExecutionState.SUCCEEDED for event in events) == 1
    assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))


async def test_of_many_final_reports_exactly_one_counts(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1")
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    url = f"/DEFAULT/controller/v1/pump-1/deploymentBase/{execution.id}/feedback"

    async def report(finished: str) -> int:
        body = {"status": {"execution": "closed", "result": {"finished": finished}}}
        answer = await fleet.client.post(url, json=body, headers={"authorization": f"TargetToken {TOKEN}"})
        return answer.status_code

    statuses = Counter(await asyncio.gather(*(report(word) for word in ("success", "failure") * 6)))
    assert statuses == {200: 1, 410: 11}


async def test_whose_turn_it_is_is_not_judged_by_an_execution_that_was_changed_since_it_was_read(
    fleet: UpdateFleet,
) -> None:
    device = await fleet.add_device("pump-1")
    (first,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    (second,) = await fleet.roll_out(await fleet.add_release("3.0.0"), device)
    async with fleet.database.transaction() as tx:
        assert await has_its_turn(tx, fleet.scope, first)
        assert not await has_its_turn(tx, fleet.scope, second)
        started = await report(tx, fleet.scope, first, ExecutionChange(ExecutionState.IN_PROGRESS), now=fleet.clock())
        await report(tx, fleet.scope, started, ExecutionChange(ExecutionState.FAILED), now=fleet.clock())
        with pytest.raises(VersionMismatch, match="has moved on"):
            await has_its_turn(tx, fleet.scope, first)
        assert await has_its_turn(tx, fleet.scope, second)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # on SQLite a writer is alone
async def test_a_report_during_which_another_ends_the_execution_is_told_that_it_is_over(
    fleet: UpdateFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = await fleet.add_device("pump-1")
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    next_now, ended = ExecutionQueries.next_execution, []

    async def next_after_the_other(tx: ExecutionQueries, scope: Scope, device_id: int) -> Execution | None:
        if not ended:
            async with fleet.database.transaction() as other:
                ended.append(
                    await report(other, scope, execution, ExecutionChange(ExecutionState.FAILED), now=fleet.clock())
                )
        return await next_now(tx, scope, device_id)

    monkeypatch.setattr(ExecutionQueries, "next_execution", next_after_the_other)
    url = f"/DEFAULT/controller/v1/pump-1/deploymentBase/{execution.id}/feedback"
    body = {"status": {"execution": "closed", "result": {"finished": "success"}}}
    answer = await fleet.client.post(url, json=body, headers={"authorization": f"TargetToken {TOKEN}"})
    assert (len(ended), answer.status_code) == (1, 410)
    assert await fleet.state(execution) is ExecutionState.FAILED


async def test_an_abort_in_the_middle_of_everything_ends_every_execution(fleet: UpdateFleet) -> None:
    macs = [f"AA:BB:CC:DD:EE:{number:02X}" for number in range(8)]
    devices = [await fleet.add_device(f"pump-{number}", mac=mac) for number, mac in enumerate(macs)]
    release = await fleet.add_release("2.0.0", validation_hash=NEW_HASH)
    executions = await fleet.roll_out(release, *devices)

    async def abort() -> None:
        async with fleet.database.transaction() as tx:
            await tx.set_rollout_state(fleet.scope, fleet.rollouts[0].id, RolloutState.ABORTED, now=fleet.clock())

    answers = await asyncio.gather(*(ask(fleet, sta_mac=mac) for mac in macs), abort())
    assert {answer.status_code for answer in answers[:-1]} <= {200, 304}
    for mac in macs:
        assert (await ask(fleet, sta_mac=mac)).status_code == 304
    ends = {await fleet.state(execution) for execution in executions}
    assert ends <= {ExecutionState.CANCELED, ExecutionState.FAILED}
