"""What an operator tells one connected Blynk device: reboot, ping, redirect; and agreement in its owner's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest
from starlette.routing import Mount

from flota.fleet.executions import ExecutionState
from flota.fleet.rollouts import RolloutPolicy
from flota.fleet.scope import Role
from flota.server.api.management import build_management_api
from flota.server.auth import digest_of_secret, new_secret
from flota.server.shipment_desk import find_shipment
from tests.server.blynk_bench import OLD, WAIT_S, BlynkBench, BlynkClient, a_blynk_bench, another_tenant
from tests.server.serving import app_of


class Operator:
    """The management API over a bench's server."""

    def __init__(self, bench: BlynkBench, http: httpx.AsyncClient) -> None:
        self.bench = bench
        self.http = http

    async def ask(
        self, path: str, *, role: Role = Role.OPERATOR, is_stranger: bool = False, to: str | None = None
    ) -> httpx.Response:
        """Return the answer to a POST with a new token of `role`."""
        context, secret = self.bench.fleet.context, new_secret()
        scope = await another_tenant(context) if is_stranger else self.bench.fleet.scope
        async with context.storage.transaction() as transaction:
            name = f"{role}-{secret[-8:]}"
            await transaction.add_access_token(scope, name, role, digest_of_secret(secret), now=context.now())
        headers = {"authorization": f"Bearer {secret}"}
        return await self.http.post(f"/api/v1/devices/{path}", json={} if to is None else {"to": to}, headers=headers)


@pytest.fixture
async def operator(tmp_path: Path) -> AsyncIterator[Operator]:
    async with a_blynk_bench(tmp_path) as bench:
        app = app_of(bench.fleet.context, [Mount("/api/v1", build_management_api(bench.fleet.context))])
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://flota.test") as http:
            yield Operator(bench, http)


async def next_message(client: BlynkClient) -> tuple[str, bytes, int]:
    async with asyncio.timeout(WAIT_S):
        message = await client.link.receive()
    return message.topic, message.payload, message.qos


async def audited(bench: BlynkBench) -> Sequence[tuple[str, str, object]]:
    async with bench.fleet.database.reading() as transaction:
        entries = await transaction.list_audit(bench.fleet.scope)
    return [(one.action, one.subject, one.details) for one in entries if one.subject == "device:mill-1"][1:]


async def test_a_reboot_reaches_the_device_and_the_audit_trail(operator: Operator) -> None:
    await operator.bench.device()
    client = await operator.bench.connect("mill-1-token")
    answer = await operator.ask("mill-1/reboot")
    assert (answer.status_code, answer.json()["name"]) == (200, "mill-1")
    assert await next_message(client) == ("downlink/reboot", b"", 0)
    assert await audited(operator.bench) == [("device.reboot-sent", "device:mill-1", {})]


async def test_a_ping_goes_out_at_qos_1_and_is_answered_by_the_clients_acknowledgement(operator: Operator) -> None:
    await operator.bench.device()
    client = await operator.bench.connect("mill-1-token")
    answer = (await operator.ask("mill-1/ping")).json()
    assert (answer["device"], answer["answered"]) == ("mill-1", True)
    assert isinstance(answer["after_ms"], int)
    assert await next_message(client) == ("downlink/ping", b"", 1)


async def test_a_device_that_acknowledges_nothing_did_not_answer_and_a_late_acknowledgement_harms_nothing(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flota.server.device_lines.PING_TIMEOUT_S", 0.05)
    await operator.bench.device()
    reader, writer = await mute_device(operator.bench.port)
    try:
        answer = (await operator.ask("mill-1/ping")).json()
        assert answer == {"device": "mill-1", "answered": False, "after_ms": None}
        async with asyncio.timeout(WAIT_S):
            message = await reader.readexactly(2 + 2 + len("downlink/ping") + 2)
        assert message[0] == 0x32, "QoS 1"
        writer.write(b"\x40\x02" + message[-2:] + b"\xc0\x00")
        async with asyncio.timeout(WAIT_S):
            assert await reader.readexactly(2) == b"\xd0\x00", "the connection is good"
    finally:
        writer.close()
        await writer.wait_closed()


async def mute_device(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as the device and leave all further MQTT to the test."""
    from flota.protocols.mqtt.packets import Connect, pack_packet

    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(pack_packet(Connect("", True, 45, "device", b"mill-1-token")))
    assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
    return reader, writer


@pytest.mark.parametrize(
    ("to", "told"), [("updates-2.example.net:8883", b"updates-2.example.net:8883"), ("[::1]:1883", b"[::1]:1883")]
)
async def test_a_redirect_names_the_endpoint_as_host_and_port(operator: Operator, to: str, told: bytes) -> None:
    await operator.bench.device()
    client = await operator.bench.connect("mill-1-token")
    assert (await operator.ask("mill-1/redirect", to=to)).status_code == 200
    assert await next_message(client) == ("downlink/redirect", told, 0)
    assert await audited(operator.bench) == [("device.redirected", "device:mill-1", {"to": to})]


@pytest.mark.parametrize("to", ["", "host", "host:", ":8883", "8883", "host:0", "host:70000", "0.0.0.0:1883", "a b:1"])
async def test_an_endpoint_that_nobody_could_connect_to_is_not_sent(operator: Operator, to: str) -> None:
    await operator.bench.device()
    client = await operator.bench.connect("mill-1-token")
    assert (await operator.ask("mill-1/redirect", to=to)).status_code == 400
    await client.nothing()
    assert await audited(operator.bench) == []


@pytest.mark.parametrize("command", ["reboot", "ping", "redirect"])
async def test_who_is_not_connected_is_told_nothing_and_nothing_waits_for_it(operator: Operator, command: str) -> None:
    await operator.bench.device()
    to = "host:1883" if command == "redirect" else None
    refused = await operator.ask(f"mill-1/{command}", to=to)
    assert refused.status_code == 409
    assert "not connected" in refused.json()["detail"]
    assert (await operator.ask(f"mill-2/{command}", to=to)).status_code == 404
    assert await audited(operator.bench) == []
    client = await operator.bench.connect("mill-1-token")
    await client.nothing()


async def test_commands_are_an_operators_and_end_at_the_tenants_border(operator: Operator) -> None:
    await operator.bench.device()
    client = await operator.bench.connect("mill-1-token")
    assert (await operator.ask("mill-1/reboot", role=Role.VIEWER)).status_code == 403
    assert (await operator.ask("mill-1/reboot", role=Role.ADMIN, is_stranger=True)).status_code == 404
    await client.nothing()


async def test_of_two_connections_of_a_device_the_later_one_is_told(operator: Operator) -> None:
    await operator.bench.device()
    first = await operator.bench.connect("mill-1-token")
    second = await operator.bench.connect("mill-1-token")
    await operator.ask("mill-1/reboot")
    assert (await next_message(second))[0] == "downlink/reboot"
    await first.nothing()


async def test_an_update_that_waits_for_agreement_is_sent_once_an_operator_agrees(operator: Operator) -> None:
    bench = operator.bench
    device = await bench.device()
    assert (await operator.ask("mill-1/confirm")).status_code == 409
    execution = await bench.roll_out(device, policy=RolloutPolicy(confirm=True))
    client = await bench.connect("mill-1-token")
    await client.report(OLD)
    await client.nothing()
    shipment = await find_shipment(bench.fleet.context, bench.fleet.scope, str(execution.rollout_id))
    assert [one.status for one in shipment.devices] == ["awaitingUserAction"]
    agreed = await operator.ask("mill-1/confirm")
    assert (agreed.status_code, agreed.json()["state"]) == (200, "QUEUED")
    await bench.settle()
    assert (await client.offer()).version == "1.2.4"
    assert await bench.fleet.state(execution) is ExecutionState.IN_PROGRESS
    assert (await operator.ask("mill-1/confirm")).status_code == 200, "agreed to already"


async def test_an_update_that_asks_nobody_cannot_be_agreed_to(operator: Operator) -> None:
    await operator.bench.roll_out(await operator.bench.device())
    refused = await operator.ask("mill-1/confirm")
    assert refused.status_code == 409
    assert "--confirm" in refused.json()["expected"]
