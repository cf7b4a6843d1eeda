"""A thing's pending jobs: what it may be shown now, in Jobs' order. Read for many things at once.

Source: docs/reference/aws-iot.md, "Which jobs a thing is shown".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

from flota.fleet.devices import DeviceType
from flota.fleet.executions import ExecutionState
from flota.fleet.job_executions import JobExecution, end_of_time
from flota.fleet.releases import Release
from flota.fleet.scope import Scope
from flota.fleet.storage import Transaction
from flota.fleet.update_rules import Handling, Stage
from flota.server.updates import is_expired, showing_of


@dataclass(frozen=True, slots=True)
class ShownJob:
    """A job that its thing is shown, and the release that it brings."""

    job: JobExecution
    release: Release

    @property
    def is_in_progress(self) -> bool:
        """Whether the thing is at work on it."""
        return self.job.execution.state is ExecutionState.IN_PROGRESS


@dataclass(frozen=True, slots=True)
class PendingJobs:
    """A thing's pending jobs, in order: the one in progress, then those queued.

    By time alone nothing changes before `valid_until` (None: never).
    """

    jobs: tuple[ShownJob, ...] = ()
    valid_until: datetime | None = None

    @property
    def next(self) -> ShownJob | None:
        """What Jobs calls `$next`."""
        return self.jobs[0] if self.jobs else None

    @property
    def in_progress(self) -> tuple[ShownJob, ...]:
        """The one that is in progress, or none."""
        return tuple(job for job in self.jobs if job.is_in_progress)

    @property
    def queued(self) -> tuple[ShownJob, ...]:
        """Those that are queued."""
        return tuple(job for job in self.jobs if not job.is_in_progress)

    def find(self, job_id: str) -> ShownJob | None:
        """Return the pending job of this id."""
        return next((one for one in self.jobs if one.job.job_id == job_id), None)


NOTHING_PENDING = PendingJobs()


async def read_pending(
    transaction: Transaction, scope: Scope, device_ids: Sequence[int], *, now: datetime
) -> Mapping[int, PendingJobs]:
    """Return by device id what each is shown at `now`; devices without an open job are left out."""
    found = await transaction.open_jobs(scope, device_ids)
    jobs = list(chain.from_iterable(found.values()))
    releases = {key: await transaction.release(scope, key) for key in {job.execution.release_id for job in jobs}}
    types = {key: await transaction.device_type(scope, key) for key in {job.type_name for job in jobs}}
    return {device_id: shown_of(one, releases, types, now=now) for device_id, one in found.items()}


def shown_of(
    jobs: Sequence[JobExecution],
    releases: Mapping[int, Release],
    types: Mapping[str, DeviceType],
    *,
    now: datetime,
) -> PendingJobs:
    """Return which of a device's open `jobs` it is shown at `now`, and until when that stays so by itself."""
    shown: list[ShownJob] = []
    moments: list[datetime] = []
    for job in jobs:
        execution, release = job.execution, releases[job.execution.release_id]
        if end_of_time(execution, now=now) is not None:
            continue  # it is over; the engine is about to write that
        if execution.step_expires_at is not None:
            moments.append(execution.step_expires_at)
        if execution.state is ExecutionState.IN_PROGRESS:
            shown.append(ShownJob(job, release))
            continue
        if is_expired(release, now):
            continue
        if release.expires_at is not None:
            moments.append(release.expires_at)
        showing = showing_of(execution, job.policy, types[job.type_name], job, now=now)
        if showing.valid_until is not None:
            moments.append(showing.valid_until)
        if showing.stage is Stage.TELL and showing.update is not Handling.SKIP:  # these devices cannot only download
            shown.append(ShownJob(job, release))
    return PendingJobs(tuple(shown), min(moments, default=None))
