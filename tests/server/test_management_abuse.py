"""Whatever is sent to whichever operation: an answer, never a failure of the server, and nothing half-done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flota.server.api.management import build_management_api
from flota.server.api.management.guard import GuardedRoute
from tests.server.management_api import Api, an_api


class Running:
    """An API on an event loop of its own, for tests that are not coroutines."""

    def __init__(self, runner: asyncio.Runner, api: Api) -> None:
        self.runner = runner
        self.api = api
        application = build_management_api(api.context)
        self.operations = sorted(
            (method, route.path)
            for route in application.routes
            if isinstance(route, GuardedRoute)
            for method in route.methods
        )
        document = application.openapi()
        self.fields = sorted(
            {field for schema in document["components"]["schemas"].values() for field in schema.get("properties", {})}
        )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with asyncio.Runner() as runner:
        opened = an_api(tmp_path_factory.mktemp("data"))
        api = runner.run(opened.__aenter__())
        runner.run(api.publish("1.0"))
        runner.run(api.add_devices("dev-1"))
        yield Running(runner, api)
        runner.run(opened.__aexit__(None, None, None))


KNOWN = st.sampled_from(
    ["generic-linux", "esp32-c3", "generic-linux@1.0", "dev-1", "1", "all", "type=generic-linux", "100%", "admin"]
)
TEXT = KNOWN | st.text(max_size=40) | st.sampled_from(["\x00", "..", "%", "'; --", "\ud800", "𝕏" * 200, "x" * 5000])
SCALAR = TEXT | st.none() | st.booleans() | st.integers() | st.floats() | st.just(2**63) | st.just(-(2**63) - 1)
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)


def _segment(text: str) -> str:
    return quote(text.encode("utf-8", "replace"), safe="")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_input_to_any_operation_gets_an_answer_that_is_not_a_server_error(running: Running, data: Any) -> None:
    method, path = data.draw(st.sampled_from(running.operations))
    for name in ("name", "reference", "sha256", "execution_id", "token_id"):
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", _segment(data.draw(TEXT | st.integers().map(str))) or "x")
    query = data.draw(st.dictionaries(st.sampled_from(running.fields) | TEXT, TEXT, max_size=2))
    if query:
        path += "?" + "&".join(f"{_segment(key)}={_segment(value)}" for key, value in query.items())
    body = data.draw(
        st.dictionaries(st.sampled_from(running.fields), VALUE, max_size=5).map(json.dumps).map(str.encode)
        | VALUE.map(json.dumps).map(str.encode)
        | st.binary(max_size=100)
    )
    if method == "DELETE" and path.startswith("/tokens"):
        return  # it would end the tests' own authority
    headers = {"content-type": data.draw(st.sampled_from(["application/json", "text/csv", "application/octet-stream"]))}
    answer = running.runner.run(running.api.ask(method, path, content=body, headers=headers))
    assert answer.status_code < 500, (method, path, body, answer.text)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert {"title", "status", "detail", "code"} <= set(answer.json())


def test_the_audit_trail_has_no_gap_after_all_that(running: Running) -> None:
    entries: list[Any] = []
    while page := running.runner.run(running.api.get(f"/audit?limit=1000&after={len(entries)}"))["items"]:
        entries += page
    assert [one["sequence"] for one in entries] == list(range(1, len(entries) + 1))


def test_devices_with_hostile_text_are_stored_as_text_or_not_at_all(running: Running) -> None:
    hostile = ["<script>alert(1)</script>", "' OR 1=1 --", "%s%n", "\u202egnp.exe"]
    for number, text in enumerate(hostile):
        answer = running.runner.run(
            running.api.ask(
                "POST", "/devices", json={"name": f"h-{number}", "type": "generic-linux", "labels": {"a": text}}
            )
        )
        assert answer.status_code in (201, 400)
        if answer.status_code == 201:
            assert running.runner.run(running.api.get(f"/devices/h-{number}"))["labels"] == {"a": text}
