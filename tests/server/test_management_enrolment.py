"""Gateway tokens, expiry, rotation and update rules at the management API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flota.fleet.devices import IdentityConflict
from flota.fleet.scope import Role
from tests.server.management_api import Api, an_api, assert_problem


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(tmp_path) as made:
        yield made


async def test_only_an_administrator_makes_gateway_tokens(api: Api) -> None:
    for role in (Role.VIEWER, Role.OPERATOR):
        answer = await api.ask("POST", "/gateway-tokens", role=role, json={"name": "g", "all_devices": True})
        assert_problem(answer, 403, "forbidden")
        assert_problem(await api.ask("GET", "/gateway-tokens", role=role), 403, "forbidden")


@pytest.mark.parametrize(
    "body",
    [
        {"name": "g"},
        {"name": "g", "devices": []},
        {"name": "g", "devices": ["a"], "all_devices": True},
        {"name": "g", "devices": ["../a"]},
        {"name": "g", "select": "nonsense"},
        {"name": "g g", "all_devices": True},
        {"name": "g", "all_devices": True, "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "g", "all_devices": True, "expires_at": "2099-01-01T00:00:00"},
        {"name": "g", "all_devices": True, "role": "admin"},
    ],
)
async def test_a_gateway_token_that_makes_no_sense_is_not_made(api: Api, body: dict[str, object]) -> None:
    assert (await api.ask("POST", "/gateway-tokens", json=body)).status_code == 400
    assert (await api.get("/gateway-tokens"))["items"] == []


async def test_a_gateway_token_is_shown_without_its_secret_and_revoked_once(api: Api) -> None:
    made = await api.post("/gateway-tokens", {"name": "g", "devices": ["a", "a", "b"], "type": "generic-linux"})
    assert (made["device_count"], made["type"]) == (2, "generic-linux")
    (listed,) = (await api.get("/gateway-tokens"))["items"]
    assert listed == {**made, "secret": None}
    for _ in range(2):
        assert (await api.ask("DELETE", f"/gateway-tokens/{made['id']}")).status_code == 204
    (listed,) = (await api.get("/gateway-tokens"))["items"]
    assert listed["revoked_at"] is not None
    for number in (0, -1, 999, 2**40):
        assert_problem(await api.ask("DELETE", f"/gateway-tokens/{number}"), 404, "not-found")
    assert_problem(
        await api.ask("POST", "/gateway-tokens", json={"name": "h", "all_devices": True, "type": "none"}),
        404,
        "not-found",
    )


async def test_an_expired_token_is_as_good_as_none(api: Api) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = await api.post("/tokens", {"name": "short", "role": "viewer", "expires_at": soon})
    headers = {"authorization": f"Bearer {made['secret']}"}
    assert (await api.http.get("/api/v1/whoami", headers=headers)).status_code == 200
    real = api.context.now
    api.context.now = lambda: real() + timedelta(hours=2)
    assert_problem(await api.http.get("/api/v1/whoami", headers=headers), 401, "unauthenticated")


async def test_an_administrators_token_that_expires_does_not_count_as_the_last(api: Api) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    await api.post("/tokens", {"name": "short", "role": "admin", "expires_at": soon})
    (admin,) = [one for one in (await api.get("/tokens"))["items"] if one["name"] == "admin"]
    assert_problem(await api.ask("DELETE", f"/tokens/{admin['id']}"), 409, "conflict")


async def test_update_rules_change_one_by_one(api: Api) -> None:
    await api.post("/types", {"name": "pump", "board": "generic-linux", "maintenance": "daily 02:00 3h UTC"})
    changed = await api.post("/types/pump/update-rules", {"confirm": True})
    assert (changed["confirm"], changed["maintenance"]) == (True, "daily 02:00 3h UTC")
    changed = await api.post("/types/pump/update-rules", {"maintenance": "none", "download_ahead": True})
    assert (changed["confirm"], changed["maintenance"], changed["download_ahead"]) == (True, None, True)
    for wrong in ({"maintenance": "x"}, {"maintenance": ""}, {"confirm": "perhaps"}, {"window": "none"}):
        assert (await api.ask("POST", "/types/pump/update-rules", json=wrong)).status_code == 400
    assert (await api.get("/types/pump"))["download_ahead"] is True
    answer = await api.ask("POST", "/types/pump/update-rules", role=Role.OPERATOR, json={"confirm": False})
    assert_problem(answer, 403, "forbidden")


async def test_a_rollout_keeps_its_rules(api: Api) -> None:
    await api.add_devices("box-1")
    await api.publish("1.0")
    body = {"release": "generic-linux@1.0", "devices": ["box-1"]}
    for wrong in (
        {"urgency": "timeforced"},
        {"forced_at": "2099-01-01T00:00:00Z"},
        {"maintenance": "sometimes"},
        {"urgency": "now"},
    ):
        assert (await api.ask("POST", "/rollouts", json={**body, **wrong})).status_code == 400, wrong
    made = await api.post(
        "/rollouts",
        {**body, "urgency": "timeforced", "forced_at": "2099-01-01T00:00:00Z", "confirm": True, "maintenance": "none"},
    )
    policy = made["policy"]
    assert (policy["urgency"], policy["confirm"], policy["maintenance"]) == ("timeforced", True, "none")
    assert policy["forced_at"].startswith("2099-01-01T00:00:00")


async def test_a_conflict_about_a_devices_identity_is_shown_until_its_token_is_new(api: Api) -> None:
    await api.add_devices("box-1")
    scope, now = await api.scope(), api.context.now()
    async with api.context.storage.transaction() as tx:
        device = await tx.device(scope, "box-1")
        await tx.note_identity_conflict(scope, device.id, IdentityConflict("address", ("10.0.0.1", "10.0.0.2"), now))
    shown = await api.get("/devices/box-1")
    assert (shown["identity_conflict"]["trait"], shown["identity_conflict"]["seen"]) == (
        "address",
        ["10.0.0.1", "10.0.0.2"],
    )
    await api.post("/devices/box-1/token", {"overlap_s": 60})
    assert (await api.get("/devices/box-1"))["identity_conflict"] is None
