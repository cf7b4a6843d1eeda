"""Whatever happens between two polls, an answer from memory is the one that the database would give at that moment."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from flota.errors import Conflict, FlotaError
from flota.fleet.changes import EVERYTHING
from flota.fleet.devices import AutoConfirmation, DeviceState
from flota.fleet.releases import ReleaseState
from flota.fleet.rollouts import RolloutPolicy, RolloutState
from flota.fleet.storage import NewGatewayToken
from flota.fleet.update_rules import Urgency
from flota.server.auth import digest_of_secret
from flota.server.engine import Engine
from tests.server.update_fleet import TOKEN, UpdateFleet, an_update_fleet

NAMES = ("pump-1", "pump-2", "valve-1")
TOKENS = (TOKEN, "another", "a-third")

names = st.sampled_from(NAMES)
tokens = st.sampled_from([f"TargetToken {token}" for token in TOKENS] + ["GatewayToken gateway"])
pauses = st.sampled_from([0.5, 5, 31, 290, 600, 3600, 5 * 3600])
schedules = st.sampled_from(["none", "daily 14:00 1h UTC", "daily 12:30 10m UTC", "sun 11:00 3h UTC"])
policies = st.builds(
    RolloutPolicy,
    confirm=st.sampled_from([None, True]),
    maintenance=st.sampled_from([None, "none", "daily 13:00 30m UTC"]),
    urgency=st.sampled_from([Urgency.FORCED, Urgency.SOFT, Urgency.DOWNLOADONLY]),
)


class PollsFromMemory(RuleBasedStateMachine):
    """Two servers over one database: one remembers, the other is made to forget before each poll."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.releases: list[int] = []
        self.etags: dict[str, str] = {}
        self.last_let_in: dict[str, tuple[str, dict[str, str]]] = {}
        """By device: the path and the headers of the latest poll that got an answer, which is the one remembered."""

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()

    @initialize()
    def begin(self) -> None:
        self.runner.run(self._begin())
        self.poll_all_as_usual()

    async def _begin(self) -> None:
        directory = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="flota-polls-"))
        self.fleet: UpdateFleet = await self.stack.enter_async_context(an_update_fleet(Path(directory)))
        context = self.fleet.context
        context.settings = replace(context.settings, poll_jitter_percent=10)
        self.forgetful = self.fleet.restarted()
        await self.stack.enter_async_context(self.forgetful.client)
        self.engine = Engine(self.fleet.database, now=self.fleet.clock)
        await self.fleet.add_type("pump")
        await self.fleet.add_type("valve", poll_interval_s=60)
        for name in NAMES:
            await self.fleet.add_device(name, type_name=name.partition("-")[0])

    # polls

    @rule(
        name=names,
        token=tokens,
        tenant=st.sampled_from(["DEFAULT", "default"]),
        accept=st.sampled_from(["*/*", "*/*", "application/json"]),
        knows=st.booleans(),
    )
    def poll(self, name: str, token: str, tenant: str, accept: str, knows: bool) -> None:
        self.runner.run(self._poll(name, token, tenant, accept, knows=knows))

    @rule()
    def poll_all_as_usual(self) -> None:
        for name in NAMES:
            self.runner.run(self._poll(name, f"TargetToken {TOKEN}", "DEFAULT", "*/*", knows=False))

    @invariant()
    def what_is_remembered_is_what_is_true(self) -> None:
        for path, headers in self.last_let_in.values():
            self.runner.run(self._compare(path, headers))

    async def _poll(self, name: str, token: str, tenant: str, accept: str, *, knows: bool) -> None:
        headers = {"authorization": token, "accept": accept}
        if knows and name in self.etags:
            headers["if-none-match"] = self.etags[name]
        path = f"/{tenant}/controller/v1/{name}"
        remembered = await self._compare(path, headers)
        if remembered.status_code == 200:
            self.etags[name] = remembered.headers["etag"]
            self.last_let_in[name] = path, headers

    async def _compare(self, path: str, headers: dict[str, str]) -> httpx.Response:
        remembered = await self.fleet.client.get(path, headers=headers)
        self.forgetful.context.poll_answers.forget(EVERYTHING)
        asked = await self.forgetful.client.get(path, headers=headers)
        assert told(remembered) == told(asked)
        return remembered

    # what devices do

    @rule(name=names, verb=st.sampled_from(["deploymentBase", "cancelAction"]), work=st.data())
    def report(self, name: str, verb: str, work: st.DataObject) -> None:
        execution = work.draw(st.sampled_from(["proceeding", "closed", "downloaded", "rejected", "canceled"]))
        finished = work.draw(st.sampled_from(["success", "failure", "none"]))
        action = work.draw(st.integers(1, 6))
        self.runner.run(self._report(name, f"{verb}/{action}", execution, finished))

    async def _report(self, name: str, action: str, execution: str, finished: str) -> None:
        path = f"/DEFAULT/controller/v1/{name}/{action}"
        headers = {"authorization": f"TargetToken {TOKEN}"}
        await self.fleet.client.get(path, headers=headers)
        status = {"execution": execution, "result": {"finished": finished}}
        answer = await self.fleet.client.post(f"{path}/feedback", json={"status": status}, headers=headers)
        assert answer.status_code < 500

    @rule(name=names, value=st.sampled_from(["1", "2"]))
    def tell_attributes(self, name: str, value: str) -> None:
        path = f"/DEFAULT/controller/v1/{name}/configData"
        headers = {"authorization": f"TargetToken {TOKEN}"}
        self.runner.run(self.fleet.client.put(path, json={"data": {"VIN": value}}, headers=headers))

    # what operators do

    @rule(chosen=st.sets(names, min_size=1), policy=policies, hours=st.sampled_from([None, 1, 4]))
    def roll_out(self, chosen: set[str], policy: RolloutPolicy, hours: int | None) -> None:
        self.runner.run(self._roll_out(chosen, policy, hours))

    async def _roll_out(self, chosen: set[str], policy: RolloutPolicy, hours: int | None) -> None:
        for type_name in ("pump", "valve"):
            devices = [await self._device(name) for name in sorted(chosen) if name.startswith(type_name)]
            if not devices:
                continue
            expires_at = None if hours is None else self.fleet.clock() + timedelta(hours=hours)
            version = f"2.{len(self.releases)}.0"
            release = await self.fleet.add_release(version, type_name=type_name, expires_at=expires_at)
            self.releases.append(release.id)
            await self.fleet.roll_out(release, *devices, policy=policy)

    @rule(state=st.sampled_from([RolloutState.PAUSED, RolloutState.ACTIVE, RolloutState.CANCELED]), work=st.data())
    def set_rollout(self, state: RolloutState, work: st.DataObject) -> None:
        if self.fleet.rollouts:
            rollout = work.draw(st.sampled_from(self.fleet.rollouts))
            self._change(lambda tx, now: tx.set_rollout_state(self.fleet.scope, rollout.id, state, now=now))

    @rule(work=st.data())
    def withdraw(self, work: st.DataObject) -> None:
        if self.releases:
            release = work.draw(st.sampled_from(self.releases))
            withdrawn = ReleaseState.WITHDRAWN
            self._change(lambda tx, now: tx.set_release_state(self.fleet.scope, release, withdrawn, now=now))

    @rule()
    def let_the_engine_look(self) -> None:
        self.runner.run(self.engine.tick())

    @rule(name=names, token=st.sampled_from(TOKENS), minutes=st.sampled_from([None, 8, 90]))
    def set_token(self, name: str, token: str, minutes: int | None) -> None:
        until = None if minutes is None else self.fleet.clock() + timedelta(minutes=minutes)
        digest = digest_of_secret(token)
        self._change(lambda tx, now: tx.set_device_token(self.fleet.scope, name, digest, now=now, previous_until=until))

    @rule(name=names, state=st.sampled_from(list(DeviceState)))
    def set_state(self, name: str, state: DeviceState) -> None:
        self._change(lambda tx, now: tx.set_device_state(self.fleet.scope, name, state, now=now))

    @rule(name=names)
    def replace_device(self, name: str) -> None:
        self._change(lambda tx, now: tx.remove_device(self.fleet.scope, name, now=now))
        self.runner.run(self.fleet.add_device(name, type_name=name.partition("-")[0]))

    @rule(name=names, site=st.sampled_from(["north", "south"]))
    def set_labels(self, name: str, site: str) -> None:
        self._change(lambda tx, now: tx.set_device_labels(self.fleet.scope, name, {"site": site}, now=now))

    @rule(minutes=st.sampled_from([None, 20, 90]), everything=st.booleans())
    def add_gateway(self, minutes: int | None, everything: bool) -> None:
        new = NewGatewayToken(
            "gateway",
            digest_of_secret("gateway"),
            selector=None if everything else "label.site=north",
            all_devices=everything,
            expires_at=None if minutes is None else self.fleet.clock() + timedelta(minutes=minutes),
        )
        self._change(lambda tx, now: tx.add_gateway_token(self.fleet.scope, new, now=now))

    @rule()
    def revoke_gateways(self) -> None:
        self.runner.run(self._revoke_gateways())

    async def _revoke_gateways(self) -> None:
        async with self.fleet.database.transaction() as tx:
            for token in await tx.list_gateway_tokens(self.fleet.scope):
                if token.revoked_at is None:
                    await tx.revoke_gateway_token(self.fleet.scope, token.id, now=self.fleet.clock())

    @rule(
        type_name=st.sampled_from(["pump", "valve"]), maintenance=schedules, confirm=st.booleans(), ahead=st.booleans()
    )
    def set_rules(self, type_name: str, maintenance: str, confirm: bool, ahead: bool) -> None:
        self._change(
            lambda tx, now: tx.set_update_rules(
                self.fleet.scope, type_name, confirm=confirm, maintenance=maintenance, download_ahead=ahead, now=now
            )
        )

    @rule(name=names, agrees=st.booleans())
    def set_auto_confirm(self, name: str, agrees: bool) -> None:
        device = self.runner.run(self._device(name))
        activation = AutoConfirmation(self.fleet.clock()) if agrees else None
        self._change(lambda tx, now: tx.set_auto_confirm(self.fleet.scope, device.id, activation, now=now))

    @rule(seconds=pauses)
    def let_time_pass(self, seconds: float) -> None:
        self.fleet.clock.advance(seconds)

    @rule()
    def write_sightings(self) -> None:
        self.runner.run(self.fleet.context.sightings.flush())

    async def _device(self, name):  # type: ignore[no-untyped-def]
        async with self.fleet.database.reading() as tx:
            return await tx.device(self.fleet.scope, name)

    def _change(self, change) -> None:  # type: ignore[no-untyped-def]
        async def commit() -> None:
            async with self.fleet.database.transaction() as tx:
                await change(tx, self.fleet.clock())

        try:
            self.runner.run(commit())
        except (Conflict, FlotaError):
            return


def told(answer: httpx.Response) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return everything of an answer."""
    return answer.status_code, sorted(answer.headers.raw), answer.content


TestPollsFromMemory = pytest.mark.timeout(300)(PollsFromMemory.TestCase)
TestPollsFromMemory.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
