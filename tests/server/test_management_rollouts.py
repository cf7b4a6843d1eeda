"""Rollouts over the API: what an operator asks for, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flota.fleet.executions import ExecutionChange, ExecutionState
from flota.fleet.scope import Scope
from tests.server.management_api import Api, an_api, assert_problem


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(tmp_path) as one:
        await one.publish("1.0")
        yield one


async def _open_wave(api: Api, rollout_id: int, number: int) -> None:
    """Do what the engine does when it comes by."""
    scope = await api.scope()
    async with api.context.storage.transaction() as transaction:
        await transaction.open_wave(Scope(scope.tenant_id, "engine"), rollout_id, number, now=api.context.now())


async def test_a_rollout_is_a_snapshot_in_waves(api: Api) -> None:
    await api.add_devices(*(f"dev-{number}" for number in range(5)))
    made = await api.post(
        "/rollouts",
        {"release": "generic-linux@1.0", "select": "type=generic-linux", "waves": "2,100%", "abort_after_failures": 2},
    )
    await api.add_devices("late")
    assert [wave["size"] for wave in made["waves"]] == [2, 3]
    assert (made["name"], made["state"], made["selector"]) == ("generic-linux-1.0", "active", "type=generic-linux")
    assert made["policy"]["abort_after_failures"] == 2
    await _open_wave(api, made["id"], 1)
    executions = (await api.get(f"/rollouts/{made['id']}/executions"))["items"]
    assert [(one["device"], one["wave"], one["state"]) for one in executions] == [
        ("dev-0", 1, "QUEUED"),
        ("dev-1", 1, "QUEUED"),
    ]
    assert (await api.get("/rollouts/generic-linux-1.0"))["waves"][0]["counts"] == {"QUEUED": 2}
    (event,) = (await api.get(f"/executions/{executions[0]['id']}/events"))["items"]
    assert (event["version"], event["state"]) == (1, "QUEUED")
    assert (await api.get("/devices/dev-0/executions"))["items"] == [executions[0]]


async def test_named_devices_keep_their_order(api: Api) -> None:
    await api.add_devices("a", "b", "c")
    made = await api.post("/rollouts", {"release": "generic-linux@1.0", "devices": ["c", "a"], "waves": "1,100%"})
    await _open_wave(api, made["id"], 1)
    (first,) = (await api.get(f"/rollouts/{made['id']}/executions"))["items"]
    assert first["device"] == "c"
    assert made["selector"] == "c, a"


async def test_names_are_free_or_refused(api: Api) -> None:
    await api.add_devices("a")
    body = {"release": "generic-linux@1.0", "devices": ["a"]}
    names = [(await api.post("/rollouts", body))["name"] for _ in range(3)]
    assert names == ["generic-linux-1.0", "generic-linux-1.0-2", "generic-linux-1.0-3"]
    assert (await api.post("/rollouts", {**body, "name": "mine"}))["name"] == "mine"
    assert_problem(await api.ask("POST", "/rollouts", json={**body, "name": "mine"}), 409, "conflict")
    assert_problem(await api.ask("POST", "/rollouts", json={**body, "name": "17"}), 400, "invalid-input")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({}, 400, "invalid-input"),
        ({"devices": ["a"], "select": "all"}, 400, "invalid-input"),
        ({"devices": []}, 400, "invalid-input"),
        ({"devices": ["a", "a"]}, 400, "invalid-input"),
        ({"devices": ["nobody"]}, 404, "not-found"),
        ({"devices": ["chip"]}, 422, "refused"),
        ({"devices": ["out"]}, 422, "refused"),
        ({"select": "name=out"}, 422, "refused"),
        ({"select": "type=esp32-c3"}, 422, "refused"),
        ({"select": "colour=red"}, 400, "invalid-input"),
        ({"devices": ["a"], "waves": "none"}, 400, "invalid-input"),
        ({"devices": ["a"], "waves": ""}, 400, "invalid-input"),
        ({"devices": ["a"], "abort_after_failures": 0}, 400, "invalid-input"),
        ({"devices": ["a"], "state": "succeeded"}, 400, "invalid-input"),
        ({"devices": ["a"], "release": "generic-linux@9"}, 404, "not-found"),
        ({"devices": ["a"], "release": "999999999999"}, 404, "not-found"),
    ],
)
async def test_a_wrong_rollout_is_refused(api: Api, change: dict[str, object], status: int, code: str) -> None:
    await api.add_devices("a", "out")
    await api.add_devices("chip", type_name="esp32-c3")
    await api.post("/devices/out/refuse")
    answer = await api.ask("POST", "/rollouts", json={"release": "generic-linux@1.0", **change})
    assert_problem(answer, status, code)
    assert (await api.get("/rollouts"))["items"] == []


async def test_an_unpublished_release_says_what_to_do_next(api: Api) -> None:
    await api.add_devices("a")
    draft = await api.draft("2.0")
    body = {"release": str(draft["id"]), "devices": ["a"]}
    problem = assert_problem(await api.ask("POST", "/rollouts", json=body), 422, "refused")
    assert f"flota release sign {draft['id']}" in problem["hint"]
    await api.sign(draft["id"])
    problem = assert_problem(await api.ask("POST", "/rollouts", json=body), 422, "refused")
    assert f"flota release publish {draft['id']}" in problem["hint"]


async def test_a_rollout_is_paused_resumed_and_canceled(api: Api) -> None:
    await api.add_devices("a", "b", "c")
    made = await api.post(
        "/rollouts", {"release": "generic-linux@1.0", "devices": ["a", "b", "c"], "waves": "2,100%", "name": "r"}
    )
    assert (await api.post("/rollouts/r/pause", {"reason": "lunch"}))["reason"] == "lunch"
    assert (await api.post("/rollouts/r/pause"))["state"] == "paused"
    assert (await api.post("/rollouts/r/resume"))["state"] == "active"
    await _open_wave(api, made["id"], 1)
    scope = await api.scope()
    working, _ = (await api.get("/rollouts/r/executions"))["items"]
    async with api.context.storage.transaction() as transaction:
        change = ExecutionChange(ExecutionState.IN_PROGRESS)
        await transaction.change_execution(scope, working["id"], 1, change, now=api.context.now())
    ended = await api.post("/rollouts/r/cancel", {"reason": "enough"})
    assert (ended["state"], ended["reason"]) == ("canceled", "enough")
    assert [wave["state"] for wave in ended["waves"]] == ["canceled", "not-opened"]
    first, second = (await api.get("/rollouts/r/executions"))["items"]
    assert (first["state"], first["cancel_requested_at"] is not None) == ("IN_PROGRESS", True)
    assert second["state"] == "CANCELED"
    assert_problem(await api.ask("POST", "/rollouts/r/resume"), 409, "conflict")
    assert (await api.get("/rollouts?open=true"))["items"] == []


async def test_the_audit_trail_is_read_in_stretches(api: Api) -> None:
    page = await api.get("/audit?limit=3")
    assert [one["sequence"] for one in page["items"]] == [1, 2, 3]
    rest = await api.get("/audit?limit=1000&after=3")
    assert rest["items"][0]["sequence"] == 4
    assert rest["items"][-1]["sequence"] == rest["last"] == page["last"]
