"""One thing's executions against the documented rules: a machine that does what devices, operators and time do.

The model is a list of dictionaries and a page of rules written anew from docs/reference/aws-iot.md; the other side is
the whole server behind its MQTT endpoint.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flota.fleet.devices import Device
from flota.fleet.rollouts import RolloutState
from tests.server.aws_iot_bench import Bench, Thing, a_bench, job_id

T = TypeVar("T")
OPEN = ("QUEUED", "IN_PROGRESS")
ALLOWED = {
    "QUEUED": {"IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED"},
    "IN_PROGRESS": {"IN_PROGRESS", "SUCCEEDED", "FAILED"},
}
JOBS_MAX = 5

details = st.none() | st.dictionaries(
    st.sampled_from(["self_test", "receive", "route", "cancel", "x:y"]), st.sampled_from(["a", "b", "1/2"]), max_size=3
)
steps = st.none() | st.sampled_from([-1, 1, 5, 10_080])


@dataclass
class Job:
    """What the documentation says an execution is."""

    id: str
    rollout: int
    state: str = "QUEUED"
    version: int = 1
    details: dict[str, str] = field(default_factory=dict)
    step_until: float | None = None
    paused: bool = False
    stopped: bool = False


class Executions(RuleBasedStateMachine):
    """Rules are the actions; after each, what the thing is told must be what the model says."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.directory = tempfile.TemporaryDirectory(prefix="flota-model-")
        self.jobs: list[Job] = []
        self.at = 0.0
        self.known: tuple[list[str], str | None] = ([], None)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    @initialize()
    def begin(self) -> None:
        self.bench: Bench = self.run(self.stack.enter_async_context(a_bench(Path(self.directory.name))))
        self.pump: Device = self.run(self.bench.fleet.add_device("pump-1"))
        self.thing: Thing = self.run(self.bench.listening())
        self.release = self.run(self.bench.fleet.add_release("2.0.0"))

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.loop.close()
        self.directory.cleanup()

    # --- the model's rules --------------------------------------------------------------------------------------------

    def pending(self) -> list[Job]:
        shown = [job for job in self.jobs if job.state == "IN_PROGRESS"]
        return shown + [job for job in self.jobs if job.state == "QUEUED" and not job.paused]

    def expire(self) -> None:
        for job in self.jobs:
            if job.state == "IN_PROGRESS" and job.step_until is not None and self.at >= job.step_until:
                self.end(job, "CANCELED" if job.stopped else "TIMED_OUT")
                if job.state == "TIMED_OUT":
                    job.details["reason"] = "the step's time limit has passed"

    def end(self, job: Job, state: str) -> None:
        job.state, job.step_until = state, None
        job.version += 1

    def stop(self, job: Job) -> None:
        """Whether a stopped download ends at once: unless it is in its self-test."""
        if job.state == "IN_PROGRESS" and job.stopped and "self_test" not in job.details:
            self.end(job, "CANCELED")

    def set_step(self, job: Job, minutes: int | None) -> None:
        if minutes is not None:
            job.step_until = None if minutes < 0 else self.at + 60 * minutes

    # --- actions ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.jobs) < JOBS_MAX)
    @rule()
    def queue(self) -> None:
        self.run(self.bench.fleet.roll_out(self.release, self.pump))
        self.jobs.append(Job(job_id(self.bench), self.bench.fleet.rollouts[-1].id))

    @rule(details=details, minutes=steps)
    def start_next(self, details: dict[str, str] | None, minutes: int | None) -> None:
        request = {"statusDetails": details, "stepTimeoutInMinutes": minutes}
        told = self.run(self.thing.accepted("start-next", {k: v for k, v in request.items() if v is not None}))
        pending = self.pending()
        if not pending:
            assert "execution" not in told
            return
        job = pending[0]
        if job.state == "QUEUED":
            job.state = "IN_PROGRESS"
            job.version += 1
            if details is not None:
                job.details = dict(details)
        self.set_step(job, minutes)
        assert told["execution"]["jobDocument"]["afr_ota"]["protocols"] == ["MQTT"]
        self.check_execution(told["execution"], job)

    @precondition(lambda self: self.jobs)
    @rule(
        data=st.data(),
        status=st.sampled_from(["IN_PROGRESS", "IN_PROGRESS", "IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED"]),
        details=details,
        minutes=steps,
        version=st.none() | st.sampled_from([-1, 0, 1]),
    )
    def update(
        self, data: st.DataObject, status: str, details: dict[str, str] | None, minutes: int | None, version: int | None
    ) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        expected = None if version is None else max(0, job.version + version)
        request = {
            "status": status,
            "statusDetails": details,
            "stepTimeoutInMinutes": minutes,
            "expectedVersion": expected,
            "includeJobExecutionState": True,
        }
        payload = {name: value for name, value in request.items() if value is not None}
        topic, told = self.run(self.thing.ask(f"jobs/{job.id}/update", payload))
        at_work = next((one for one in self.jobs if one.state == "IN_PROGRESS"), None)
        refusal = None
        if job.state == "QUEUED" and job.paused:
            refusal = "ResourceNotFound"
        elif expected not in (None, job.version):
            refusal = "VersionMismatch"
        elif status not in ALLOWED.get(job.state, set()) or (
            status == "IN_PROGRESS" and at_work is not None and at_work is not job
        ):
            refusal = "InvalidStateTransition"
        if refusal is None:
            job.state = status
            job.version += 1
            if details is not None:
                job.details = dict(details)
            job.step_until = job.step_until if status == "IN_PROGRESS" else None
            if status == "IN_PROGRESS":
                self.set_step(job, minutes)
        assert topic == f"jobs/{job.id}/update/{'accepted' if refusal is None else 'rejected'}", (topic, told, refusal)
        if refusal is not None:
            assert told["code"] == refusal
        if refusal != "ResourceNotFound":
            state = told["executionState"]
            assert (state["status"], state["versionNumber"]) == (job.state, job.version)
            assert state.get("statusDetails", {}) == job.details
        self.stop(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), to=st.sampled_from([RolloutState.PAUSED, RolloutState.ACTIVE, RolloutState.CANCELED]))
    def operate(self, data: st.DataObject, to: RolloutState) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        now = RolloutState.ACTIVE if not job.paused else RolloutState.PAUSED
        if job.stopped or job.state not in OPEN or to is now:
            return
        self.run(self._set(job.rollout, to))
        job.paused = to is RolloutState.PAUSED
        if to is RolloutState.CANCELED:
            job.stopped = True
            if job.state == "QUEUED":
                self.end(job, "CANCELED")
            else:
                job.version += 1  # it is asked to stop
                self.stop(job)

    async def _set(self, rollout: int, to: RolloutState) -> None:
        async with self.bench.fleet.database.transaction() as tx:
            await tx.set_rollout_state(self.bench.fleet.scope, rollout, to, now=self.bench.fleet.clock(), reason="x")
        await self.bench.settle()

    @rule(seconds=st.sampled_from([30, 60, 240, 300]))
    def wait(self, seconds: int) -> None:
        self.bench.fleet.clock.advance(seconds)
        self.at += seconds
        self.expire()
        self.run(self.bench.settle())

    # --- what must hold after each ------------------------------------------------------------------------------------

    @invariant()
    def what_the_thing_is_told_is_what_the_model_says(self) -> None:
        if not hasattr(self, "thing"):
            return
        self.run(self.bench.settle())
        ids = [job.id for job in self.pending()]
        first = ids[0] if ids else None
        expected = []
        if set(ids) != set(self.known[0]):
            expected.append("jobs/notify")
        if first != self.known[1]:
            expected.append("jobs/notify-next")
        self.known = (ids, first)
        for name in expected:
            topic, told = self.run(self.thing.told())
            assert topic == name
            if name == "jobs/notify-next":
                assert told.get("execution", {}).get("jobId") == first
            else:
                listed = [one["jobId"] for one in told["jobs"].get("IN_PROGRESS", [])]
                assert listed + [one["jobId"] for one in told["jobs"].get("QUEUED", [])] == ids
        told = self.run(self.thing.accepted("$next/get", {"clientToken": "probe"}))
        if first is None:
            assert set(told) == {"clientToken", "timestamp"}
        else:
            self.check_execution(told["execution"], self.pending()[0])
        listed = self.run(self.thing.accepted("get"))
        assert [one["jobId"] for one in (*listed["inProgressJobs"], *listed["queuedJobs"])] == ids
        self.bench.fleet.clock.advance(1)  # what a request costs of its rate
        self.at += 1
        self.expire()

    def check_execution(self, told: dict[str, Any], job: Job) -> None:
        assert (told["jobId"], told["status"], told["versionNumber"]) == (job.id, job.state, job.version)
        assert told.get("statusDetails", {}) == job.details
        left = None if job.step_until is None else int(job.step_until - self.at)
        assert told.get("approximateSecondsBeforeTimedOut") == left
        assert ("startedAt" in told) == (job.state == "IN_PROGRESS")


TestExecutions = Executions.TestCase
TestExecutions.settings = settings(
    max_examples=10, stateful_step_count=16, deadline=None, suppress_health_check=list(HealthCheck)
)
