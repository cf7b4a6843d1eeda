"""A model of DDI: two devices of one name in two tenants, and nothing of the one is seen or moved by the other."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from flota.fleet.executions import EXECUTION_TRANSITIONS, Execution, ExecutionState
from flota.fleet.rollouts import OPEN_ROLLOUT_STATES, RolloutPolicy, RolloutState
from flota.fleet.scope import Scope
from flota.protocols.ddi import FeedbackExecution, FeedbackFinished
from flota.server.api.ddi.reports import CANCEL_FEEDBACK, DEPLOYMENT_FEEDBACK
from tests.server.update_fleet import UpdateFleet, an_update_fleet

TENANTS = ("DEFAULT", "OTHER")
DEVICE = "pump-1"
FINAL = {state for state, following in EXECUTION_TRANSITIONS.items() if not following}
T = TypeVar("T")

tenants = st.sampled_from(TENANTS)
numbers = st.integers(1, 8)
executions = st.sampled_from(list(FeedbackExecution))
results = st.sampled_from(list(FeedbackFinished))


@dataclass
class Side:
    """One tenant: its fleet, its device's token, what the model knows of its executions."""

    fleet: UpdateFleet
    token: str
    secret: str
    states: dict[int, ExecutionState] = field(default_factory=dict)
    modules: set[int] = field(default_factory=set)


class TwoTenants(RuleBasedStateMachine):
    """Every rule acts for one tenant; the invariants look at both."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory(prefix="flota-model-")
        self.opened = an_update_fleet(Path(self.directory.name))
        self.sides: dict[str, Side] = {}
        self.acted: str | None = None

    def run(self, work: Awaitable[T]) -> T:
        async def whole() -> T:
            return await work

        return self.runner.run(whole())

    @initialize()
    def two_tenants(self) -> None:
        self.run(self._open())

    async def _open(self) -> None:
        fleet = await self.opened.__aenter__()
        async with fleet.database.transaction() as tx:
            other = await tx.add_tenant("OTHER", now=fleet.clock())
        scopes = {"DEFAULT": fleet.scope, "OTHER": Scope(other.id, "token:test")}
        for name in TENANTS:
            mine = UpdateFleet(fleet.context, fleet.database, scopes[name], fleet.clock, fleet.client)
            self.sides[name] = Side(mine, f"token-of-{name}", f"secret-of-{name}")
            await mine.add_type()
            await mine.add_device(DEVICE, token=self.sides[name].token)

    def teardown(self) -> None:
        if self.sides:
            self.run(self.opened.__aexit__(None, None, None))
        self.runner.close()
        self.directory.cleanup()

    # what happens

    def ask(
        self, tenant: str, method: str, path: str, body: object = None, *, token: str | None = None
    ) -> httpx.Response:
        """Send one request of a tenant's device; checks what holds for every answer."""
        side = self.sides[tenant]
        self.acted = tenant
        headers = {"authorization": f"TargetToken {side.token if token is None else token}"}
        url = f"/{tenant}/controller/v1/{DEVICE}{path}"
        answer = self.run(side.fleet.client.request(method, url, json=body, headers=headers))
        assert answer.status_code < 500, (method, path, answer.text)
        for other in TENANTS:
            if other != tenant and self.sides[other].secret not in path:  # what it asked for, an error may repeat
                assert self.sides[other].secret.encode() not in answer.content, (method, path)
        return answer

    @rule(tenant=tenants, confirm=st.booleans())
    def roll_out(self, tenant: str, confirm: bool) -> None:
        side = self.sides[tenant]
        if len(side.states) >= 4:
            return
        self.acted = tenant

        async def work() -> Execution:
            number = len(side.states) + 1
            data = f"{side.secret}-{number}".encode() * 20
            release = await side.fleet.add_release(f"{number}.0", data=data, filename=f"{side.secret}.bin")
            device = await side.fleet.device(DEVICE)
            (made,) = await side.fleet.roll_out(release, device, policy=RolloutPolicy(confirm=confirm))
            return made

        made = self.run(work())
        side.states[made.id] = ExecutionState.QUEUED
        side.modules.add(made.release_id)

    @rule(tenant=tenants)
    def poll(self, tenant: str) -> None:
        answer = self.ask(tenant, "GET", "")
        assert answer.status_code == 200
        links = answer.json().get("_links", {})
        assert len({"confirmationBase", "cancelAction", "deploymentBase"} & links.keys()) <= 1
        for relation in links.keys() - {"configData"}:
            number = int(links[relation]["href"].rpartition("/")[2].partition("?")[0])
            assert number in self.sides[tenant].states

    @rule(tenant=tenants, number=numbers, resource=st.sampled_from(["deploymentBase", "cancelAction", "installedBase"]))
    def read(self, tenant: str, number: int, resource: str) -> None:
        answer = self.ask(tenant, "GET", f"/{resource}/{number}?actionHistory=-1")
        assert answer.status_code in (200, 404)
        if number not in self.sides[tenant].states:
            assert answer.status_code == 404

    @rule(tenant=tenants, number=numbers, execution=executions, finished=results)
    def report(self, tenant: str, number: int, execution: FeedbackExecution, finished: FeedbackFinished) -> None:
        before = self.sides[tenant].states.get(number)
        body = {"status": {"execution": execution.value, "result": {"finished": finished.value}}}
        answer = self.ask(tenant, "POST", f"/deploymentBase/{number}/feedback", body)
        assert answer.status_code in (200, 404, 410)
        if before is None:
            assert answer.status_code == 404
        elif before in FINAL:
            assert answer.status_code == 410
        elif answer.status_code == 200:
            assert self.state_of(tenant, number) is DEPLOYMENT_FEEDBACK[execution, finished].state

    @rule(tenant=tenants, number=numbers, execution=executions, finished=results)
    def report_about_cancel(
        self, tenant: str, number: int, execution: FeedbackExecution, finished: FeedbackFinished
    ) -> None:
        body = {"status": {"execution": execution.value, "result": {"finished": finished.value}}}
        answer = self.ask(tenant, "POST", f"/cancelAction/{number}/feedback", body)
        assert answer.status_code in (200, 404, 405)
        if number not in self.sides[tenant].states:
            assert answer.status_code == 404
        if answer.status_code == 200:
            assert self.state_of(tenant, number) is CANCEL_FEEDBACK[execution, finished].state

    @rule(tenant=tenants, number=numbers, answer=st.sampled_from(["confirmed", "denied"]))
    def confirm(self, tenant: str, number: int, answer: str) -> None:
        given = self.ask(tenant, "POST", f"/confirmationBase/{number}/feedback", {"confirmation": answer})
        assert given.status_code in (200, 404, 410)
        if number not in self.sides[tenant].states:
            assert given.status_code == 404

    @rule(tenant=tenants, active=st.booleans())
    def confirm_by_itself(self, tenant: str, active: bool) -> None:
        given = self.ask(tenant, "POST", f"/confirmationBase/{'' if active else 'de'}activateAutoConfirm")
        assert given.status_code in ((200, 409) if active else (200,))

    @rule(tenant=tenants, number=numbers)
    def download(self, tenant: str, number: int) -> None:
        side = self.sides[tenant]
        for owner in TENANTS:
            path = f"/softwaremodules/{number}/artifacts/{self.sides[owner].secret}.bin"
            answer = self.ask(tenant, "GET", path)
            assert answer.status_code in (200, 404)
            if number not in side.modules or owner != tenant:
                assert answer.status_code == 404

    @rule(tenant=tenants, serial=st.sampled_from("AB"))
    def tell_attributes(self, tenant: str, serial: str) -> None:
        side = self.sides[tenant]
        body = {"mode": "replace", "data": {"serial": f"{side.secret}-{serial}"}}
        assert self.ask(tenant, "PUT", "/configData", body).status_code == 200
        assert self.run(side.fleet.device(DEVICE)).attributes == body["data"]

    @rule(tenant=tenants)
    def come_with_the_other_ones_token(self, tenant: str) -> None:
        (other,) = set(TENANTS) - {tenant}
        for method, path in (("GET", ""), ("PUT", "/configData"), ("GET", "/deploymentBase/1")):
            answer = self.ask(tenant, method, path, token=self.sides[other].token)
            assert (answer.status_code, answer.content) == (401, b"")
        self.acted = None  # nothing at all may have changed

    @rule(tenant=tenants)
    def cancel(self, tenant: str) -> None:
        side = self.sides[tenant]
        self.acted = tenant

        async def work() -> None:
            async with side.fleet.database.transaction() as tx:
                for made in side.fleet.rollouts:
                    rollout = await tx.rollout(side.fleet.scope, made.id)
                    if rollout.state in OPEN_ROLLOUT_STATES:
                        now = side.fleet.clock()
                        await tx.set_rollout_state(side.fleet.scope, made.id, RolloutState.CANCELED, now=now)
                        return

        self.run(work())

    @rule(seconds=st.integers(1, 600))
    def time_passes(self, seconds: int) -> None:
        self.sides["DEFAULT"].fleet.clock.advance(seconds)

    # what always holds

    def state_of(self, tenant: str, number: int) -> ExecutionState:
        return self.all_of(tenant)[number].state

    def all_of(self, tenant: str) -> dict[int, Execution]:
        side = self.sides[tenant]

        async def work() -> dict[int, Execution]:
            async with side.fleet.database.reading() as tx:
                return {one.id: one for one in await tx.list_executions(side.fleet.scope)}

        return self.run(work())

    @invariant()
    def every_step_is_in_the_table_and_only_the_acting_tenant_moves(self) -> None:
        for tenant, side in self.sides.items():
            found = self.all_of(tenant)
            assert found.keys() == side.states.keys()
            for number, execution in found.items():
                before = side.states[number]
                if execution.state is before:
                    continue
                assert tenant == self.acted, f"{tenant} moved while {self.acted} acted"
                steps = EXECUTION_TRANSITIONS[before]
                through_start = EXECUTION_TRANSITIONS[ExecutionState.IN_PROGRESS]
                assert execution.state in steps | (through_start if before is ExecutionState.QUEUED else set())
                side.states[number] = execution.state
            assert sum(state is ExecutionState.IN_PROGRESS for state in side.states.values()) <= 1

    @invariant()
    def the_other_tenants_trail_stays_as_it_is(self) -> None:
        for tenant, side in self.sides.items():

            async def work(scope: Scope = side.fleet.scope, side: Side = side) -> Any:
                async with side.fleet.database.reading() as tx:
                    return await tx.last_audit_sequence(scope)

            last = self.run(work())
            before = getattr(side, "_last", None)
            assert before is None or tenant == self.acted or last == before
            side._last = last  # type: ignore[attr-defined]


TwoTenants.TestCase.settings = settings(
    max_examples=8, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
test_two_tenants = TwoTenants.TestCase
