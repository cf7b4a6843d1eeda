"""Executions as AWS IoT Jobs shows them: under the ids of their jobs, several of one device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from flota.errors import VersionMismatch
from flota.fleet.devices import DeviceState
from flota.fleet.executions import OPEN_STATES, Execution, ExecutionState
from flota.fleet.job_executions import JobExecution, unnamed_job_id
from flota.fleet.releases import ReleaseState
from flota.fleet.rollouts import RolloutPolicy, RolloutState
from flota.fleet.scope import Scope
from flota.fleet.things import JOB_ID_PREFIX
from flota.store.change_notes import concerning
from flota.store.queries.base import filled, in_batches
from flota.store.queries.executions import EXECUTION_COLUMNS, OF_DEVICES, SELECT_EXECUTION, execution_of
from flota.store.queries.rollouts import RolloutQueries, policy_of
from flota.store.tables import device_types, devices, executions, releases, rollouts

_POLICY_COLUMNS: Final = (
    "abort_after_failures",
    "silence_limit_s",
    "attempts",
    "count_inferred",
    "continuous",
    "urgency",
    "forced_at",
    "confirm",
    "maintenance",
)

_SELECT_JOB: Final = (
    SELECT_EXECUTION.add_columns(
        rollouts.c.job_id,
        rollouts.c.state.label("rollout_state"),
        releases.c.state.label("release_state"),
        device_types.c.name.label("type_name"),
        devices.c.labels,
        devices.c.auto_confirm.is_not(None).label("confirms_itself"),
        *(rollouts.c[name] for name in _POLICY_COLUMNS),
    )
    .join(rollouts, rollouts.c.id == executions.c.rollout_id)
    .join(releases, releases.c.id == executions.c.release_id)
    .join(device_types, device_types.c.id == devices.c.type_id)
)

_OPEN_JOBS: Final = _SELECT_JOB.where(
    OF_DEVICES,
    executions.c.state.in_(sorted(OPEN_STATES)),
    devices.c.state == DeviceState.ACCEPTED.value,
    devices.c.removed_at.is_(None),
    sa.or_(
        executions.c.state == ExecutionState.IN_PROGRESS.value,
        sa.and_(
            rollouts.c.state == RolloutState.ACTIVE.value,
            releases.c.state == ReleaseState.PUBLISHED.value,
        ),
    ),
).order_by(executions.c.state, executions.c.id)  # IN_PROGRESS comes before QUEUED, in the alphabet too
"""Built once: to build such a statement costs as much as to run it."""


class JobQueries(RolloutQueries):
    """What a device's jobs are. One device may have many queued."""

    async def open_jobs(self, scope: Scope, device_ids: Sequence[int]) -> Mapping[int, Sequence[JobExecution]]:
        """Return each device's open executions that it may work on: the one in progress, then queued ones by age.

        Devices that are not accepted, and those without any, are left out. Queued ones count only if their rollout is
        active and their release published; what is in progress counts whatever became of those.
        """
        found: dict[int, list[JobExecution]] = defaultdict(list)
        policies: dict[int, RolloutPolicy] = {}
        for batch in in_batches(device_ids):
            asked = {"tenant_id": scope.tenant_id, "device_ids": filled(batch)}
            for row in (await self._connection.execute(_OPEN_JOBS, asked)).all():
                execution = execution_of(row)
                policy = policies.get(execution.rollout_id)
                if policy is None:
                    policy = policies[execution.rollout_id] = policy_of(row)
                found[execution.device_id].append(_job(row, execution, policy))
        return found

    async def job_of_device(self, scope: Scope, device_id: int, job_id: str) -> JobExecution | None:
        """Return the device's execution in a job, in whatever state it is; None when the job is not for this device."""
        named = rollouts.c.job_id == job_id
        number = job_id.removeprefix(JOB_ID_PREFIX)
        if number.isascii() and number.isdecimal() and len(number) < 10 and unnamed_job_id(int(number)) == job_id:
            named = sa.or_(named, sa.and_(rollouts.c.job_id.is_(None), rollouts.c.id == int(number)))
        row = await self._row(
            _SELECT_JOB.where(
                executions.c.device_id == device_id,
                executions.c.tenant_id == scope.tenant_id,
                devices.c.state == DeviceState.ACCEPTED.value,
                devices.c.removed_at.is_(None),
                named,
            )
            .order_by(executions.c.id.desc())
            .limit(1)
        )
        return None if row is None else _job(row, execution_of(row), policy_of(row))

    async def set_step_timer(
        self, scope: Scope, execution_id: int, expected_version: int, expires_at: datetime | None
    ) -> None:
        """Let the step timer of an execution end at that time (None discards it); its version stays as it is.

        Raises `VersionMismatch` unless it is IN_PROGRESS at `expected_version`.
        """
        result = await self._connection.execute(
            sa.update(executions)
            .where(
                executions.c.id == execution_id,
                executions.c.tenant_id == scope.tenant_id,
                executions.c.version == expected_version,
                executions.c.state == ExecutionState.IN_PROGRESS.value,
            )
            .values(step_expires_at=expires_at),
            execution_options=concerning(await self.waiting_for(executions.c.id == execution_id)),
        )
        if result.rowcount != 1:
            raise VersionMismatch(f"execution {execution_id} has moved on", expected=f"version {expected_version}")


def _job(row: sa.Row[Any], execution: Execution, policy: RolloutPolicy) -> JobExecution:
    start = len(EXECUTION_COLUMNS)
    job_id, rollout_state, release_state, type_name, labels, confirms_itself = row[start : start + 6]
    may_start = rollout_state == RolloutState.ACTIVE.value and release_state == ReleaseState.PUBLISHED.value
    return JobExecution(
        execution, job_id or unnamed_job_id(execution.rollout_id), policy, may_start, type_name, labels, confirms_itself
    )
