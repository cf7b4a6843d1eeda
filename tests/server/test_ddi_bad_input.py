"""Whatever a device sends at the DDI addresses: 4xx as hawkBit would, nothing changed, no 5xx."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flota.errors import FlotaError
from flota.fleet.executions import Execution, ExecutionState
from flota.protocols.ddi import (
    parse_auto_confirm_request,
    parse_config_data,
    parse_confirmation_feedback,
    parse_feedback,
    parse_installed_version,
)
from flota.server.api import ddi
from flota.server.api.ddi import reports
from tests.server.serving import app_of, listening
from tests.server.update_fleet import TOKEN, UpdateFleet, an_update_fleet

BASE = "/DEFAULT/controller/v1/pump-1"
PARSERS = (
    parse_feedback,
    parse_config_data,
    parse_confirmation_feedback,
    parse_auto_confirm_request,
    parse_installed_version,
)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[UpdateFleet]:
    async with an_update_fleet(tmp_path) as made:
        await made.add_type()
        await made.add_device("pump-1")
        made.client.headers.update({"authorization": f"TargetToken {TOKEN}"})
        yield made


async def an_action(fleet: UpdateFleet) -> Execution:
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), await fleet.device("pump-1"))
    return execution


async def everything(fleet: UpdateFleet) -> list[object]:
    async with fleet.database.reading() as tx:
        return [list(await tx.list_audit(fleet.scope, limit=1000)), await tx.list_executions(fleet.scope)]


def nested(depth: int, *, key: str = "x") -> bytes:
    return f'{{"{key}":'.encode() + b"[" * depth + b"]" * depth + b"}"


WRONG_BODIES = [
    (b"", 400),
    (b"{", 400),
    (b"null", 400),
    (b"[]", 400),
    (b'"text"', 400),
    (b"\xff\xfe{}", 400),
    (b'{"data":', 400),
    (nested(100_000), 413),
    (nested(20_000), 400),
    (b'{"a":' * 9_000 + b"1" + b"}" * 9_000, 400),
    (b"{" + b'"k":1,' * 15_000 + b'"z":0}', 413),
    (b" " * 70_000, 413),
    (b'{"status":{"execution":"closed","result":{"finished":"maybe"}},"confirmation":"perhaps","data":{"a":1}}', 400),
    (b'{"status":{"execution":"exploded","result":{"finished":"success"}},"confirmation":1,"data":[]}', 400),
    (b'{"status":{"execution":"closed"},"data":{}}', 400),
    (b'{"status":1e999,"data":{"a":NaN},"confirmation":null}', 400),
]


@pytest.mark.parametrize(("body", "status"), WRONG_BODIES)
async def test_a_body_that_is_none_changes_nothing(fleet: UpdateFleet, body: bytes, status: int) -> None:
    action = await an_action(fleet)
    await fleet.client.get(f"{BASE}/deploymentBase/{action.id}")
    before = await everything(fleet)
    for method, path in (
        ("PUT", "/configData"),
        ("POST", f"/deploymentBase/{action.id}/feedback"),
        ("POST", f"/cancelAction/{action.id}/feedback"),
        ("POST", f"/confirmationBase/{action.id}/feedback"),
        ("PUT", "/installedBase"),
    ):
        for kind in ("application/json", "application/cbor"):
            answer = await fleet.client.request(method, BASE + path, content=body, headers={"content-type": kind})
            expected = {status} if kind == "application/json" else {400, 413}
            assert answer.status_code in expected, (path, kind, answer.text)
    assert await everything(fleet) == before


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=300)
def test_any_bytes_are_a_message_or_an_error_of_ours(body: bytes, cbor: bool) -> None:
    for parse in PARSERS:
        with contextlib.suppress(FlotaError):
            parse(body, cbor=cbor)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["status", "execution", "result", "finished", "data", "mode", "details", "id", "confirmation"]
            )
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(_JSON)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_a_message_or_an_error_of_ours(value: object) -> None:
    body = json.dumps(value).encode("utf-8", "surrogatepass")
    for parse in PARSERS:
        with contextlib.suppress(FlotaError):
            parse(body)


async def test_members_that_nobody_knows_are_ignored(fleet: UpdateFleet) -> None:
    action = await an_action(fleet)
    body = {
        "id": "777",
        "time": 12,
        "extra": [{"deep": [[[[1]]]]}],
        "status": {
            "execution": "proceeding",
            "result": {"finished": "none", "progress": {"cnt": "x", "of": None}, "more": 1},
            "details": [],
            "code": "not a number",
        },
    }
    answer = await fleet.client.post(f"{BASE}/deploymentBase/{action.id}/feedback", json=body)
    assert answer.status_code == 200
    assert await fleet.state(action) is ExecutionState.IN_PROGRESS
    assert "ddi-code" not in (await fleet.execution(action)).details


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../pump-1",
        "pump-1/../pump-1",
        "./pump-1",
        "pump-1/",
        "pump-1\x00",
        "pump-1%00",
        "pump-1;x",
        "pump-1\\..",
        "PUMP-1",
        "pump-1 ",
        "ｐump-1",
        "pump%2D1",
        "%",
        "é" * 60,
        "a" * 3000,
    ],
)
async def test_no_trick_in_a_name_reaches_another_device(fleet: UpdateFleet, name: str) -> None:
    await fleet.add_device("other", token="other-token")
    for encoded in {quote(name, safe=""), quote(quote(name, safe=""), safe="")}:
        for path in ("", "/configData", "/deploymentBase/1"):
            method = "PUT" if path == "/configData" else "GET"
            answer = await fleet.client.request(method, f"/DEFAULT/controller/v1/{encoded}{path}", content=b"{}")
            assert answer.status_code in (401, 404, 414), (encoded, path)


@pytest.mark.parametrize("number", ["0", "-1", "01x", "2147483648", "9" * 40, "1.0", "%31%00", "٣", "+1", "a", "%20"])
async def test_what_is_no_number_is_404(fleet: UpdateFleet, number: str) -> None:
    await an_action(fleet)
    for path in (
        f"/deploymentBase/{number}",
        f"/cancelAction/{number}",
        f"/installedBase/{number}",
        f"/confirmationBase/{number}",
        f"/softwaremodules/{number}/artifacts",
        f"/softwaremodules/{number}/artifacts/pump.bin",
    ):
        assert (await fleet.client.get(BASE + path)).status_code == 404, path


@pytest.mark.parametrize("name", ["..%2Fpump.bin", "%2e%2e", "pump.bin%00", "pump.bin.MD5SUM.MD5SUM", "PUMP.BIN", "*"])
async def test_a_file_is_had_by_its_own_name_only(fleet: UpdateFleet, name: str) -> None:
    action = await an_action(fleet)
    answer = await fleet.client.get(f"{BASE}/softwaremodules/{action.release_id}/artifacts/{name}")
    assert answer.status_code == 404


async def test_reports_that_come_twice_late_or_out_of_order(fleet: UpdateFleet) -> None:
    action = await an_action(fleet)

    async def say(execution: str, finished: str = "none") -> int:
        body = {"status": {"execution": execution, "result": {"finished": finished}}}
        return (await fleet.client.post(f"{BASE}/deploymentBase/{action.id}/feedback", json=body)).status_code

    assert [await say("downloaded"), await say("download"), await say("proceeding"), await say("proceeding")] == [
        200
    ] * 4
    assert await say("closed", "failure") == 200
    ended = await fleet.execution(action)
    assert [await say("closed", "success"), await say("closed", "failure"), await say("proceeding")] == [410] * 3
    assert await fleet.execution(action) == ended


async def test_an_action_takes_its_quota_of_entries_and_then_only_its_end(
    fleet: UpdateFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reports.STATUS_ENTRIES_MAX == 1000
    monkeypatch.setattr(reports, "STATUS_ENTRIES_MAX", 5)
    action = await an_action(fleet)
    url = f"{BASE}/deploymentBase/{action.id}/feedback"
    proceeding = {"status": {"execution": "proceeding", "result": {"finished": "none"}}}
    answers = [(await fleet.client.post(url, json=proceeding)).status_code for _ in range(6)]
    assert answers == [200] * 4 + [429] * 2
    refused = await fleet.client.post(url, json=proceeding)
    assert refused.json()["errorCode"] == "hawkbit.server.error.quota.tooManyEntries"
    assert int(refused.headers["retry-after"]) > 0
    ended = await fleet.client.post(url, json={"status": {"execution": "closed", "result": {"finished": "success"}}})
    assert ended.status_code == 200


async def test_a_report_of_more_than_fifty_lines_is_429_and_kept_out(fleet: UpdateFleet) -> None:
    action = await an_action(fleet)
    before = await fleet.execution(action)
    status = {"execution": "proceeding", "result": {"finished": "none"}, "details": ["line"] * 51}
    answer = await fleet.client.post(f"{BASE}/deploymentBase/{action.id}/feedback", json={"status": status})
    assert answer.status_code == 429
    assert await fleet.execution(action) == before


async def test_what_a_device_writes_is_one_clean_line(fleet: UpdateFleet) -> None:
    action = await an_action(fleet)
    nasty = "\x1b[31mred\r\nInjected: yes\x00\u202e</script>" + "x" * 10_000
    status = {"execution": "closed", "result": {"finished": "failure"}, "details": [nasty]}
    answer = await fleet.client.post(f"{BASE}/deploymentBase/{action.id}/feedback", json={"status": status})
    assert answer.status_code == 200
    reason = (await fleet.execution(action)).details["reason"]
    assert reason.isprintable()
    assert len(reason) <= 256


async def test_a_client_that_stops_in_the_middle_of_a_body_changes_nothing(fleet: UpdateFleet) -> None:
    """It is cut off by its own silence; here it goes away, which ends the wait at once."""
    app = app_of(fleet.context, ddi.routes(fleet.context))
    before = await everything(fleet)
    async with listening(app) as listener:
        for _ in range(3):
            reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
            writer.write(
                f"PUT {BASE}/configData HTTP/1.1\r\nHost: x\r\nAuthorization: TargetToken {TOKEN}\r\n"
                'Content-Length: 5000\r\n\r\n{"data":{"a"'.encode()
            )
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            assert reader is not None
        reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
        writer.write(f"GET {BASE} HTTP/1.1\r\nHost: x\r\nAuthorization: TargetToken {TOKEN}\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()
    assert await everything(fleet) == before
    assert fleet.context.metrics.crashes._value.get() == 0
