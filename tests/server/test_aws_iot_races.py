"""A thing's report while something else ends its execution."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from flota.fleet.executions import ExecutionChange, ExecutionState
from flota.fleet.job_executions import JobExecution
from flota.fleet.scope import Scope
from flota.server.settings import DataDirectory, ServerSettings
from flota.server.updates import report
from flota.store.database import Database
from flota.store.queries.jobs import JobQueries
from tests.server.aws_iot_bench import Bench, a_bench_over, job_id
from tests.server.update_fleet import a_fleet_over


@pytest.fixture
async def bench(database: Database, tmp_path: Path) -> AsyncIterator[Bench]:
    async with a_fleet_over(database, ServerSettings(data=DataDirectory(tmp_path))) as fleet:
        await fleet.add_type()
        async with a_bench_over(fleet) as made:
            yield made


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # on SQLite a writer is alone
async def test_a_report_during_which_the_execution_ends_is_not_told_that_there_is_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pump = await bench.fleet.add_device("pump-1")
    _, execution = await bench.roll_out(pump)
    thing = await bench.connect()
    jobs_now, ended = JobQueries.open_jobs, []

    async def jobs_after_the_end(
        tx: JobQueries, scope: Scope, device_ids: Sequence[int]
    ) -> Mapping[int, Sequence[JobExecution]]:
        if not ended:
            async with bench.fleet.database.transaction() as other:
                change = ExecutionChange(ExecutionState.FAILED)
                ended.append(await report(other, scope, execution, change, now=bench.fleet.clock()))
        return await jobs_now(tx, scope, device_ids)

    monkeypatch.setattr(JobQueries, "open_jobs", jobs_after_the_end)
    lost = await thing.rejected(f"{job_id(bench)}/update", {"status": "SUCCEEDED"})
    assert lost["code"] == "InvalidStateTransition"
    assert lost["executionState"] == {"status": "FAILED", "versionNumber": ended[0].version}
    assert len(ended) == 1
