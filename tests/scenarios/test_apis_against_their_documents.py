"""Both OpenAPI documents against the server that serves them: whatever the documents allow, and what they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flota.client.management import ManagementClient
from flota.fleet.executions import ExecutionState
from flota.lab.local_server import LocalServer
from flota.trust.keys import PrivateKey
from tests.scenarios.releases import publish

schemathesis = pytest.importorskip("schemathesis", reason="not run: schemathesis is not installed")

pytestmark = pytest.mark.scenario

EXAMPLES = 5
"""Of each kind, valid and not, for every operation."""

TOKEN = "a-device-token"
NOT_TO_BE_CALLED = frozenset({("delete", "/tokens/{token_id}"), ("get", "/events")})
"""The one would take the test's own token away, the other never ends."""


def operations(document: Mapping[str, Any]) -> list[Any]:
    schema = schemathesis.openapi.from_dict(document)
    return [result.ok() for result in schema.get_all_operations()]


def attack(operation: Any, send: Callable[[Any, int], Any]) -> None:
    """Send examples of an operation's requests, as documented and not, and look at every answer."""
    checks = schemathesis.checks
    for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

        @given(case=operation.as_strategy(generation_mode=mode), number=st.integers(0, 3))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def one(case: Any, number: int) -> None:
            response = send(case, number)
            if response is None:
                return
            case.validate_response(
                response,
                checks=[checks.not_a_server_error, checks.response_schema_conformance],
            )

        try:
            one()
        except Exception as error:
            if type(error).__name__ in ("Unsatisfiable", "SkipTest"):  # there is no way to get it wrong
                continue
            raise


@pytest.mark.timeout(180)
def test_the_device_api(server: LocalServer, client: ManagementClient, key: PrivateKey) -> None:
    client.add_type("pump", "generic-linux", signers=[key.public_pem], confirm=False)
    client.add_device("pump-1", "pump", token=TOKEN)
    for number in range(1, 4):
        client.create_rollout(
            publish(client, key, "pump", f"{number}.0", bytes([number]) * 2000).id,
            devices=["pump-1"],
            confirm=number == 2,
        )
    base = server.address.http
    document = httpx.get(f"{base}/api/ddi/openapi.json").json()
    documented = {
        (path, method): set(operation["responses"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    seen: set[int] = set()
    with httpx.Client(base_url=base) as http:

        def send(case: Any, number: int) -> Any:
            values = dict(case.path_parameters or {})
            if number:  # the device that there is, and numbers that it may have
                values |= {"tenant": "DEFAULT", "controller_id": "pump-1"}
                values |= {name: number for name in ("action_id", "module_id") if name in values}
            case.path_parameters = values
            case.headers = {**(case.headers or {}), "Authorization": f"TargetToken {TOKEN}"}
            response = case.call(base_url=base)
            seen.add(response.status_code)
            assert response.status_code < 500, (case.method, case.path, response.status_code, response.text)
            if number and response.status_code != 400:
                assert str(response.status_code) in documented[case.path, case.method.lower()], (
                    case.method,
                    case.path,
                    response.status_code,
                )
            return response

        for operation in operations(document):
            attack(operation, send)
        assert {200, 400, 401, 404} <= seen
        states = {ExecutionState(one.state) for one in client.device_executions("pump-1")}
        assert states <= set(ExecutionState)
        assert http.get("/healthz").status_code == 200
    assert client.device("pump-1").state == "accepted"


@pytest.mark.timeout(240)
def test_the_management_api(server: LocalServer, client: ManagementClient, key: PrivateKey) -> None:
    client.add_type("pump", "generic-linux", signers=[key.public_pem])
    client.add_device("pump-1", "pump", token=TOKEN)
    client.create_rollout(publish(client, key, "pump", "1.0", b"\1" * 2000).id, devices=["pump-1"])
    base = f"{server.address.http}/api/v1"
    document = httpx.get(f"{base}/openapi.json").json()
    headers = {"Authorization": f"Bearer {server.address.token}"}
    known = {"name": "pump-1", "type": "pump", "reference": "1", "execution_id": 1, "token_id": 999, "sha256": "0" * 64}
    seen: set[int] = set()

    def send(case: Any, number: int) -> Any:
        if number == 1 and case.path_parameters:
            case.path_parameters = {name: known.get(name, value) for name, value in dict(case.path_parameters).items()}
        case.headers = {**(case.headers or {}), **headers}
        response = case.call(base_url=base)
        seen.add(response.status_code)
        assert response.status_code < 500, (case.method, case.path, response.status_code, response.text[:500])
        if response.status_code >= 400 and response.content and case.method != "HEAD":
            assert response.headers["content-type"][0].startswith("application/problem+json")
            assert "Traceback" not in response.text
        return response if response.status_code < 300 else None

    for operation in operations(document):
        if (operation.method.lower(), operation.path) not in NOT_TO_BE_CALLED:
            attack(operation, send)
    assert {200, 400, 404} <= seen
    assert client.whoami().role == "admin"
