"""The hand-kept OpenAPI document and the reserved tenant names, compared with the routes that there are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from starlette.routing import BaseRoute, Mount, Route

from flota.errors import InvalidInput
from flota.fleet.scope import RESERVED_TENANT_NAMES, check_tenant_name
from flota.server import app as app_module
from flota.server.api import ddi
from flota.server.api.artifact_parts import ARTIFACTS_PREFIX
from flota.server.api.ddi.description import OPENAPI_PATH, openapi_document
from flota.server.app import PEOPLE_PREFIXES, build_app
from tests.server.update_fleet import UpdateFleet, an_update_fleet


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[UpdateFleet]:
    async with an_update_fleet(tmp_path) as made:
        yield made


async def test_the_document_describes_exactly_the_routes(fleet: UpdateFleet) -> None:
    described = {
        (path, method.upper())
        for path, operations in json.loads(openapi_document())["paths"].items()
        for method in operations
    }
    routed = {
        (route.path, method)
        for route in ddi.routes(fleet.context)
        if isinstance(route, Route) and route.path != OPENAPI_PATH
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert described == routed


async def test_the_document_is_served_to_anybody(fleet: UpdateFleet) -> None:
    answer = await fleet.client.get(OPENAPI_PATH)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json()["openapi"].startswith("3.")


def first_segments(routes: Iterable[BaseRoute]) -> set[str]:
    found = set()
    for route in routes:
        assert isinstance(route, Route | Mount), route
        found.add(route.path.split("/")[1])
    return found


async def test_no_tenant_can_be_named_like_a_path_of_the_server(
    fleet: UpdateFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BaseRoute] = []

    class Recording(app_module.Starlette):
        def __init__(self, *, routes: list[BaseRoute], **options: object) -> None:
            seen.extend(routes)
            super().__init__(routes=routes, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(app_module, "Starlette", Recording)
    build_app(fleet.context)
    segments = first_segments(seen) | {prefix.split("/")[1] for prefix in (*PEOPLE_PREFIXES, ARTIFACTS_PREFIX)}
    assert "{tenant}" in segments
    fixed = {segment for segment in segments if "{" not in segment}
    assert len(fixed) >= 5
    assert {segment.upper() for segment in fixed} <= RESERVED_TENANT_NAMES


@pytest.mark.parametrize("name", ["API", "ARTIFACTS", "", "a", "A/B", "..", "A B", "Ä", "A" * 41, "_A"])
async def test_a_tenant_has_a_name_that_addresses_can_carry(fleet: UpdateFleet, name: str) -> None:
    with pytest.raises(InvalidInput):
        check_tenant_name(name)
    with pytest.raises(InvalidInput):
        async with fleet.database.transaction() as tx:
            await tx.add_tenant(name, now=fleet.clock())
