"""Operator events: what AWS publishes about jobs and their executions under `$aws/events/`, made from the audit trail.

Off unless it is switched on. Each change is told once, in order, by the process that runs; what happened while none ran
is not told afterwards: the audit trail has it.
Source: docs/reference/aws-iot.md, "Operator events".
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog

from flota.errors import FlotaError
from flota.fleet.executions import FINAL_STATES, ExecutionState
from flota.fleet.job_executions import EXECUTION_NUMBER, unnamed_job_id, visible_details
from flota.fleet.rollouts import RolloutState
from flota.fleet.scope import Scope
from flota.server.api.aws_iot.identity import EVENTS_PREFIX, is_operator_of
from flota.server.waiting import wait_for_any

if TYPE_CHECKING:
    from flota.fleet.audit import AuditEntry
    from flota.fleet.rollouts import Rollout
    from flota.protocols.mqtt.dialect import MqttBroker
    from flota.server.context import ServerContext

ACTOR: Final = "aws-iot-events"
REGION: Final = "local"
ACCOUNT: Final = "123456789012"
"""What stands in ARNs where AWS has an account; nothing reads it."""

PAGE_WAIT_S: Final = 5.0
RETRY_PAUSE_S: Final = 1.0

_EXECUTION_EVENTS: Final[Mapping[ExecutionState, str]] = {
    ExecutionState.SUCCEEDED: "succeeded",
    ExecutionState.FAILED: "failed",
    ExecutionState.REJECTED: "rejected",
    ExecutionState.CANCELED: "canceled",
    ExecutionState.TIMED_OUT: "timed_out",
    ExecutionState.REMOVED: "removed",
}
assert set(_EXECUTION_EVENTS) == FINAL_STATES

_JOB_EVENTS: Final[Mapping[str, tuple[str, str]]] = {
    RolloutState.SUCCEEDED.value: ("completed", "COMPLETED"),
    RolloutState.FINISHED_WITH_FAILURES.value: ("completed", "COMPLETED"),
    RolloutState.ABORTED.value: ("canceled", "CANCELED"),
    RolloutState.CANCELED.value: ("canceled", "CANCELED"),
}
"""By the state that a rollout enters: the event, and the job's status in AWS's words."""

_log = structlog.get_logger(__name__)


class OperatorEvents:
    """Follows the audit trail of every tenant and publishes what operators of AWS IoT subscribe to."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self.ready = asyncio.Event()
        """Set once what happens from now on will be told, for the tenants that there are."""

    async def run(self, stop: asyncio.Event, broker: MqttBroker | None) -> None:
        """Publish until `stop` is set; waits for it where events are off."""
        if broker is None or not self._context.settings.aws_iot_events:
            await stop.wait()
            return
        followers: dict[int, asyncio.Task[None]] = {}
        try:
            while not stop.is_set():
                for tenant in await self._context.storage.list_tenants():
                    if tenant.id not in followers:
                        scope = Scope(tenant.id, ACTOR)
                        after = await self._context.journal.last_sequence(scope)
                        followers[tenant.id] = asyncio.create_task(self._follow(scope, after, broker, stop))
                self.ready.set()
                await wait_for_any(stop, timeout_s=PAGE_WAIT_S)
        finally:
            for task in followers.values():
                task.cancel()
            await asyncio.gather(*followers.values(), return_exceptions=True)

    async def _follow(self, scope: Scope, after: int, broker: MqttBroker, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                page = await self._context.journal.next_page(scope, after, timeout_s=PAGE_WAIT_S)
                if page is None:
                    return
                for entry in page:
                    await self._tell(scope, broker, entry)
                    after = entry.sequence
            except FlotaError as error:
                _log.warning("aws_iot.events_not_told", error=str(error))
                await wait_for_any(stop, timeout_s=RETRY_PAUSE_S)

    async def _tell(self, scope: Scope, broker: MqttBroker, entry: AuditEntry) -> None:
        kind, _, number = entry.subject.partition(":")
        watches = functools.partial(is_operator_of, scope.tenant_id)
        details: Mapping[str, Any] = entry.details
        if kind == "execution" and entry.action == "execution.changed":
            state = ExecutionState(str(details["state"]))
            if state in FINAL_STATES:
                rollout = await self._rollout(scope, int(details["rollout"]))
                topic, members = _execution_event(rollout, state, entry)
                broker.publish(topic, _packed(members), qos=1, only=watches)
        elif kind == "rollout" and entry.action.removeprefix("rollout.") in _JOB_EVENTS:  # not those of its waves
            rollout = await self._rollout(scope, int(number))
            topic, members = _job_event(rollout, entry.action.removeprefix("rollout."), entry)
            broker.publish(topic, _packed(members), qos=1, only=watches)

    async def _rollout(self, scope: Scope, rollout_id: int) -> Rollout:
        async with self._context.storage.reading() as transaction:
            return await transaction.rollout(scope, rollout_id)


def _execution_event(rollout: Rollout, state: ExecutionState, entry: AuditEntry) -> tuple[str, dict[str, object]]:
    job_id, event = _job_id(rollout), _EXECUTION_EVENTS[state]
    members: dict[str, object] = {
        "eventType": "JOB_EXECUTION",
        "eventId": f"{entry.sequence}",
        "timestamp": int(entry.at.timestamp()),
        "operation": event,
        "jobId": job_id,
        "thingArn": _arn("thing", str(entry.details["device"])),
        "status": state.value,
        "executionNumber": EXECUTION_NUMBER,
        "versionNumber": entry.details["version"],
    }
    told = entry.details.get("details")
    details = visible_details(told) if isinstance(told, dict) else {}
    return f"{EVENTS_PREFIX}jobExecution/{job_id}/{event}", members | ({"statusDetails": details} if details else {})


def _job_event(rollout: Rollout, state: str, entry: AuditEntry) -> tuple[str, dict[str, object]]:
    job_id, (event, status) = _job_id(rollout), _JOB_EVENTS[state]
    counts: dict[ExecutionState, int] = {}
    for wave in rollout.waves:
        for one, count in wave.counts.items():
            counts[one] = counts.get(one, 0) + count
    process = {name: counts.get(one, 0) for one, name in _PROCESS_DETAILS.items()}
    members: dict[str, object] = {
        "eventType": "JOB",
        "eventId": f"{entry.sequence}",
        "timestamp": int(entry.at.timestamp()),
        "operation": event,
        "jobId": job_id,
        "status": status,
        "targetSelection": "CONTINUOUS" if rollout.policy.continuous else "SNAPSHOT",
        "description": rollout.name,
        "completedAt": int(entry.at.timestamp()),
        "createdAt": int(rollout.created_at.timestamp()),
        "lastUpdatedAt": int(rollout.changed_at.timestamp()),
        "jobProcessDetails": process,
    }
    return f"{EVENTS_PREFIX}job/{job_id}/{event}", members


_PROCESS_DETAILS: Final = {
    ExecutionState.CANCELED: "numberOfCanceledThings",
    ExecutionState.REJECTED: "numberOfRejectedThings",
    ExecutionState.FAILED: "numberOfFailedThings",
    ExecutionState.REMOVED: "numberOfRemovedThings",
    ExecutionState.SUCCEEDED: "numberOfSucceededThings",
    ExecutionState.TIMED_OUT: "numberOfTimedOutThings",
}


def _job_id(rollout: Rollout) -> str:
    return rollout.job_id or unnamed_job_id(rollout.id)


def _arn(kind: str, name: str) -> str:
    return f"arn:aws:iot:{REGION}:{ACCOUNT}:{kind}/{name}"


def _packed(members: Mapping[str, object]) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode("utf-8")
