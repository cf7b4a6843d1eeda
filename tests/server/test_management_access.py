"""Who may do what: default deny, roles, tokens, and one shape of error for everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI

from flota.fleet.scope import Role, Scope
from flota.server.api.management import OPENAPI_PATH, PUBLIC_PATHS, build_management_api
from flota.server.api.management.guard import GuardedRoute, UndeclaredPermissionError, needs, refuse_unguarded
from flota.server.auth import PERMISSIONS, Permission, digest_of_secret, new_secret
from flota.server.first_start import ensure_admin_token
from tests.server.management_api import Api, an_api, assert_problem


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(tmp_path) as one:
        yield one


def _guarded_routes(api: Api) -> list[tuple[str, str, Permission]]:
    application = build_management_api(api.context)
    return [
        (method, route.path, route.permission)
        for route in application.routes
        if isinstance(route, GuardedRoute)
        for method in sorted(route.methods)
    ]


def _example(path: str) -> str:
    return (
        path.replace("{execution_id}", "1")
        .replace("{token_id}", "99999")
        .replace("{sha256}", "0" * 64)
        .replace("{name}", "x")
        .replace("{reference}", "1")
    )


async def test_every_route_is_guarded_but_the_description_of_the_api(api: Api) -> None:
    application = build_management_api(api.context)
    refuse_unguarded(list(application.routes), public_paths=PUBLIC_PATHS)
    assert {OPENAPI_PATH} == PUBLIC_PATHS
    assert len(_guarded_routes(api)) >= 30


def test_a_route_without_a_permission_fails_at_start_up() -> None:
    router = APIRouter(route_class=GuardedRoute)
    with pytest.raises(UndeclaredPermissionError, match="/forgotten"):

        @router.get("/forgotten")
        async def forgotten() -> None:
            """Says nothing about who may ask."""


def test_a_route_of_another_class_fails_at_start_up() -> None:
    application = FastAPI(docs_url=None, redoc_url=None)

    @application.get("/back-door")
    @needs(Permission.SELF_READ)
    async def back_door() -> None:
        """Says what it needs, but nothing enforces it."""

    with pytest.raises(UndeclaredPermissionError, match="/back-door"):
        refuse_unguarded(list(application.routes), public_paths=PUBLIC_PATHS)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic eDp5", "Bearer a b"])
async def test_every_operation_refuses_callers_without_a_valid_token(api: Api, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    for method, path, _ in _guarded_routes(api):
        answer = await api.http.request(method, "/api/v1" + _example(path), headers=headers, content=b"{not json")
        problem = assert_problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert "hint" in problem


async def test_every_operation_refuses_roles_without_its_permission(api: Api) -> None:
    checked = 0
    for method, path, permission in _guarded_routes(api):
        for role in Role:
            answer = await api.ask(method, _example(path), role=role, content=b"{not json")
            if permission in PERMISSIONS[role]:
                assert answer.status_code not in (401, 403), (method, path, role)
            else:
                assert_problem(answer, 403, "forbidden")
            checked += 1
    assert checked >= 90


async def test_a_revoked_token_is_as_good_as_none(api: Api) -> None:
    made = await api.post("/tokens", {"name": "ci", "role": "viewer"})
    headers = {"authorization": f"Bearer {made['secret']}"}
    assert (await api.http.get("/api/v1/whoami", headers=headers)).json()["actor"] == "token:ci"
    assert (await api.ask("DELETE", f"/tokens/{made['id']}")).status_code == 204
    assert_problem(await api.http.get("/api/v1/whoami", headers=headers), 401, "unauthenticated")


async def test_the_last_administrators_token_cannot_be_revoked(api: Api) -> None:
    (admin,) = [one for one in (await api.get("/tokens"))["items"] if one["role"] == "admin"]
    assert_problem(await api.ask("DELETE", f"/tokens/{admin['id']}"), 409, "conflict")
    await api.post("/tokens", {"name": "second", "role": "admin"})
    assert (await api.ask("DELETE", f"/tokens/{admin['id']}")).status_code == 204


async def test_secrets_are_shown_once_and_never_listed(api: Api) -> None:
    made = await api.post("/tokens", {"name": "ci", "role": "viewer"})
    listed = (await api.ask("GET", "/tokens")).text
    assert made["secret"] not in listed
    assert digest_of_secret(made["secret"]) not in listed
    trail = (await api.ask("GET", "/audit")).text
    assert made["secret"] not in trail


async def test_one_tenant_neither_sees_nor_changes_what_is_anothers(api: Api) -> None:
    release = await api.publish("1.0")
    await api.add_devices("dev-1")
    rollout = await api.post("/rollouts", {"release": str(release["id"]), "devices": ["dev-1"]})
    secret = new_secret()
    async with api.context.storage.transaction() as transaction:
        other = await transaction.add_tenant("OTHER", now=api.context.now())
        await transaction.add_access_token(
            Scope(other.id, "test"), "admin", Role.ADMIN, digest_of_secret(secret), now=api.context.now()
        )
    before = await api.get("/audit?limit=1000")
    api.secrets[Role.ADMIN], ours = secret, api.secrets[Role.ADMIN]
    for method, path in (
        ("GET", f"/releases/{release['id']}"),
        ("GET", f"/releases/{release['id']}/manifest"),
        ("POST", f"/releases/{release['id']}/withdraw"),
        ("GET", f"/artifacts/{release['artifact']['sha256']}"),
        ("GET", "/devices/dev-1"),
        ("DELETE", "/devices/dev-1"),
        ("POST", "/devices/dev-1/refuse"),
        ("POST", "/devices/dev-1/token"),
        ("GET", f"/rollouts/{rollout['id']}"),
        ("POST", f"/rollouts/{rollout['id']}/cancel"),
        ("GET", f"/rollouts/{rollout['id']}/executions"),
        ("DELETE", "/tokens/1"),
    ):
        assert_problem(await api.ask(method, path), 404, "not-found")
    for path in ("/releases", "/devices", "/rollouts"):
        assert (await api.get(path))["items"] == []
    api.secrets[Role.ADMIN] = ours
    assert await api.get("/audit?limit=1000") == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "x", "role": "owner"}, "role"),
        ({"name": "x", "role": "viewer", "tenant_id": 2}, "tenant_id"),
        ({"name": "../x", "role": "viewer"}, "name"),
        ({"name": "\ud800", "role": "viewer"}, "name"),
        ({"role": "viewer"}, "name"),
        ([], "body"),
    ],
)
async def test_input_that_is_not_declared_is_refused_with_the_fields_name(api: Api, body: object, field: str) -> None:
    import json

    answer = await api.ask(
        "POST", "/tokens", content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    problem = assert_problem(answer, 400, "invalid-input")
    assert any(line.startswith(f"{field}:") for line in problem["errors"]), problem


async def test_faults_of_input_are_told_in_our_own_words(api: Api) -> None:
    body = {"type": "esp32-c3", "version": "", "artifact": "no-digest", "colour": 1, "expires_at": "soon"}
    problem = assert_problem(await api.ask("POST", "/releases", json=body), 400, "invalid-input")
    assert sorted(problem["errors"]) == [
        "artifact: does not match ^[0-9a-fA-F]{64}$",
        "colour: there is no such field",
        "expires_at: not a time in ISO 8601",
        "version: too short, at least 1 characters",
    ]


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"name": "x", "role": NaN}', b""])
async def test_bodies_that_are_no_json_are_refused(api: Api, body: bytes) -> None:
    answer = await api.ask("POST", "/tokens", content=body, headers={"content-type": "application/json"})
    assert_problem(answer, 400, answer.json()["code"])


async def test_a_body_that_is_too_large_is_refused_before_it_is_parsed(api: Api) -> None:
    answer = await api.ask("POST", "/tokens", content=b" " * (3 << 20), headers={"content-type": "application/json"})
    assert_problem(answer, 413, "too-large")


async def test_unknown_paths_and_methods_are_problems_too(api: Api) -> None:
    assert_problem(await api.ask("GET", "/nothing"), 404, "not-found")
    assert_problem(await api.ask("PUT", "/types"), 405, "method-not-allowed")
    assert_problem(await api.ask("GET", "/devices?nonsense=1"), 400, "invalid-input")
    assert_problem(await api.ask("GET", f"/releases/{2**70}"), 404, "not-found")
    assert_problem(await api.ask("GET", f"/executions/{2**70}"), 404, "not-found")


async def test_the_openapi_document_names_every_operation_and_its_permission(api: Api) -> None:
    document = (await api.http.get("/api/v1/openapi.json")).json()
    described = {
        (method.upper(), path): operation["x-permission"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert described == {(method, path): str(permission) for method, path, permission in _guarded_routes(api)}
    references = {word for word in str(document).split("'") if word.startswith("#/components/schemas/")}
    assert {one.rsplit("/", 1)[1] for one in references} <= set(document["components"]["schemas"])


async def test_a_revoked_first_token_does_not_come_back_with_the_next_start(api: Api, tmp_path: Path) -> None:
    (tenant,) = await api.context.storage.list_tenants()
    path = tmp_path / "admin.token"
    now = api.context.now()
    path.write_text(api.secrets[Role.ADMIN])
    assert await ensure_admin_token(api.context.storage, tenant, path, now=now)
    (admin,) = [one for one in (await api.get("/tokens"))["items"] if one["role"] == "admin"]
    second = await api.post("/tokens", {"name": "second", "role": "admin"})
    assert (await api.ask("DELETE", f"/tokens/{admin['id']}")).status_code == 204
    assert not await ensure_admin_token(api.context.storage, tenant, path, now=now)
    assert_problem(await api.ask("GET", "/whoami"), 401, "unauthenticated")
    headers = {"authorization": f"Bearer {second['secret']}"}
    assert (await api.http.get("/api/v1/whoami", headers=headers)).status_code == 200
