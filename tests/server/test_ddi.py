"""What hawkBit clients may rely on at `/{tenant}/controller/v1/{controllerId}`."""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from flota.fleet.devices import DeviceState
from flota.fleet.executions import Basis, Execution, ExecutionChange, ExecutionState
from flota.fleet.rollouts import RolloutState
from flota.protocols.ddi import FeedbackExecution, FeedbackFinished, parse_deployment
from flota.server.api.ddi.reports import CANCEL_FEEDBACK, DEPLOYMENT_FEEDBACK
from flota.trust.manifest import parse_manifest
from flota.trust.signatures import parse_signatures, verify_manifest
from tests.server.update_fleet import KEY, START, TOKEN, UpdateFleet, an_update_fleet, image

BASE = "/DEFAULT/controller/v1/pump-1"
AUTH = {"authorization": f"TargetToken {TOKEN}"}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[UpdateFleet]:
    async with an_update_fleet(tmp_path) as made:
        await made.add_type()
        await made.add_device("pump-1")
        made.client.headers.update(AUTH)
        yield made


async def an_action(fleet: UpdateFleet, version: str = "2.0.0", **release: object) -> Execution:
    device = await fleet.device("pump-1")
    (execution,) = await fleet.roll_out(await fleet.add_release(version, **release), device)  # type: ignore[arg-type]
    return execution


async def get(fleet: UpdateFleet, path: str = "", **headers: str) -> httpx.Response:
    return await fleet.client.get(BASE + path, headers=headers)


async def feed(fleet: UpdateFleet, action: int, execution: str, finished: str = "none", **more: object) -> int:
    status = {"execution": execution, "result": {"finished": finished}, **more}
    answer = await fleet.client.post(f"{BASE}/deploymentBase/{action}/feedback", json={"status": status})
    return answer.status_code


async def cancel(fleet: UpdateFleet) -> None:
    async with fleet.database.transaction() as tx:
        await tx.set_rollout_state(fleet.scope, fleet.rollouts[-1].id, RolloutState.CANCELED, now=fleet.clock())


# polling


async def test_a_poll_with_nothing_to_do_says_when_to_come_back_and_asks_for_attributes(fleet: UpdateFleet) -> None:
    answer = await get(fleet)
    assert answer.status_code == 200
    assert answer.content == (
        b'{"config":{"polling":{"sleep":"00:05:00"}},'
        b'"_links":{"configData":{"href":"http://flota.test:8080/DEFAULT/controller/v1/pump-1/configData"}}}'
    )
    assert answer.headers["content-length"] == str(len(answer.content))


async def test_links_are_absent_when_there_is_nothing_at_all(fleet: UpdateFleet) -> None:
    await fleet.client.put(f"{BASE}/configData", json={"data": {"VIN": "1"}})
    assert (await get(fleet)).content == b'{"config":{"polling":{"sleep":"00:05:00"}}}'


async def test_an_action_is_linked_with_a_32_bit_id_and_a_change_number(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    href = (await get(fleet)).json()["_links"]["deploymentBase"]["href"]
    tail = href.removeprefix("http://flota.test:8080/DEFAULT/controller/v1/pump-1/")
    match = re.fullmatch(r"deploymentBase/(\d+)\?c=(-?\d+)", tail)
    assert match
    assert int(match.group(1)) == execution.id
    assert -(1 << 31) <= int(match.group(2)) < 1 << 31
    assert len(tail) <= 49


async def test_the_links_keep_the_requests_tenant_and_downloads_have_it_upper_case(fleet: UpdateFleet) -> None:
    await an_action(fleet)
    answer = await fleet.client.get("/default/controller/v1/pump-1")
    href = answer.json()["_links"]["deploymentBase"]["href"]
    assert "/default/controller/v1/pump-1/" in href
    deployment = parse_deployment((await fleet.client.get(href)).content)
    assert "/DEFAULT/controller/v1/pump-1/" in (deployment.chunks[0].artifacts[0].download_http or "")


async def test_the_configured_public_url_wins_over_the_requests_host(tmp_path: Path) -> None:
    async with an_update_fleet(tmp_path, public_url="https://ota.example.org/flota") as fleet:
        await fleet.add_type()
        await fleet.add_device("pump-1")
        fleet.client.headers.update(AUTH)
        await an_action(fleet)
        links = (await get(fleet)).json()["_links"]
        assert links["configData"]["href"] == f"https://ota.example.org/flota{BASE}/configData"
        (artifact,) = (await get(fleet, "/deploymentBase/1")).json()["deployment"]["chunks"][0]["artifacts"]
        assert set(artifact["_links"]) == {"download", "md5sum", "download-http", "md5sum-http"}


async def test_forwarded_headers_of_strangers_are_not_believed(fleet: UpdateFleet) -> None:
    answer = await get(fleet, **{"x-forwarded-host": "evil.example", "x-forwarded-proto": "https"})
    assert "evil" not in answer.text


async def test_a_host_header_that_is_none_is_400(fleet: UpdateFleet) -> None:
    assert (await get(fleet, host='a"b')).status_code == 400


@pytest.mark.parametrize(
    ("seconds", "sleep"), [(1, "00:00:01"), (300, "00:05:00"), (90_000, "23:59:59"), (86_399, "23:59:59")]
)
async def test_sleep_has_eight_characters(fleet: UpdateFleet, seconds: int, sleep: str) -> None:
    await fleet.add_type("valve", poll_interval_s=seconds)
    await fleet.add_device("valve-1", type_name="valve")
    answer = await fleet.client.get("/DEFAULT/controller/v1/valve-1")
    assert answer.json()["config"]["polling"]["sleep"] == sleep


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/hal+json", "application/hal+json"),
        ("application/json", "application/json"),
        ("application/json;charset=UTF-8", "application/json"),
        ("*/*", "application/hal+json"),
        ("text/something-else", "application/hal+json"),
    ],
)
async def test_the_media_type_is_the_accepted_one(fleet: UpdateFleet, accept: str, media_type: str) -> None:
    answer = await get(fleet, accept=accept)
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)


async def test_a_poll_has_an_etag_and_gives_304_for_it_until_something_changes(fleet: UpdateFleet) -> None:
    etag = (await get(fleet)).headers["etag"]
    assert re.fullmatch(r'"0[0-9a-f]{32}"', etag)
    again = await get(fleet, **{"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")
    await an_action(fleet)
    assert (await get(fleet, **{"if-none-match": etag})).status_code == 200


async def test_a_poll_is_a_sign_of_life(fleet: UpdateFleet) -> None:
    fleet.clock.advance(60)
    await get(fleet)
    device = await fleet.device("pump-1")
    assert (device.last_seen_at, device.last_route) == (START + timedelta(seconds=60), "ddi")


# authentication


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "TargetToken wrong",
        f"targettoken {TOKEN}",
        f"TargetToken  {TOKEN}",
        f"GatewayToken {TOKEN}",
        f"Bearer {TOKEN}",
        TOKEN,
    ],
)
async def test_anything_but_the_devices_own_token_is_401_with_an_empty_body(
    fleet: UpdateFleet, authorization: str | None
) -> None:
    execution = await an_action(fleet)
    del fleet.client.headers["authorization"]
    headers = {} if authorization is None else {"authorization": authorization}
    for method, path in (
        ("GET", ""),
        ("GET", f"/deploymentBase/{execution.id}"),
        ("POST", f"/deploymentBase/{execution.id}/feedback"),
        ("GET", f"/cancelAction/{execution.id}"),
        ("POST", f"/cancelAction/{execution.id}/feedback"),
        ("PUT", "/configData"),
        ("GET", f"/installedBase/{execution.id}"),
        ("GET", f"/softwaremodules/{execution.release_id}/artifacts"),
        ("GET", f"/softwaremodules/{execution.release_id}/artifacts/pump.bin"),
    ):
        answer = await fleet.client.request(method, BASE + path, headers=headers)
        assert (answer.status_code, answer.content) == (401, b""), (method, path)
    assert await fleet.state(execution) is ExecutionState.QUEUED


@pytest.mark.parametrize("base", ["/DEFAULT/controller/v1/nobody", "/ELSE/controller/v1/pump-1"])
async def test_an_unknown_device_and_an_unknown_tenant_are_401(fleet: UpdateFleet, base: str) -> None:
    assert (await fleet.client.get(base)).status_code == 401


async def test_a_refused_device_is_401_and_a_pending_one_gets_nothing(fleet: UpdateFleet) -> None:
    await an_action(fleet)
    async with fleet.database.transaction() as tx:
        await tx.set_device_state(fleet.scope, "pump-1", DeviceState.PENDING, now=fleet.clock())
    assert "deploymentBase" not in (await get(fleet)).text
    async with fleet.database.transaction() as tx:
        await tx.set_device_state(fleet.scope, "pump-1", DeviceState.REFUSED, now=fleet.clock())
    assert (await get(fleet)).status_code == 401


# deployments


async def test_a_deployment_has_hawkbits_members_in_hawkbits_order(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet, filename="pump 2.bin")
    answer = await get(fleet, f"/deploymentBase/{execution.id}?c=-2129030598")
    data = image("2.0.0")
    href = f"http://flota.test:8080{BASE}/softwaremodules/{execution.release_id}/artifacts/pump%202.bin"
    message = answer.json()
    (chunk,) = message["deployment"]["chunks"]
    metadata = chunk.pop("metadata")
    expected = {
        "id": str(execution.id),
        "deployment": {
            "download": "forced",
            "update": "forced",
            "chunks": [
                {
                    "part": "bApp",
                    "version": "2.0.0",
                    "name": "pump",
                    "artifacts": [
                        {
                            "filename": "pump 2.bin",
                            "hashes": {
                                "sha1": hashlib.sha1(data).hexdigest(),
                                "md5": hashlib.md5(data).hexdigest(),
                                "sha256": hashlib.sha256(data).hexdigest(),
                            },
                            "size": len(data),
                            "_links": {
                                "download-http": {"href": href},
                                "md5sum-http": {"href": f"{href}.MD5SUM"},
                            },
                        }
                    ],
                }
            ],
        },
    }
    assert json.dumps(message) == json.dumps(expected)
    assert [entry["key"] for entry in metadata] == ["flota.manifest", "flota.signatures"]
    assert b": " not in answer.content
    assert answer.headers["content-length"] == str(len(answer.content))


async def test_the_signed_manifest_travels_in_the_chunk_and_verifies(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    deployment = parse_deployment((await get(fleet, f"/deploymentBase/{execution.id}")).content)
    metadata = deployment.chunks[0].metadata
    manifest = base64.b64decode(metadata["flota.manifest"])
    signatures = parse_signatures(metadata["flota.signatures"])
    verified = verify_manifest(manifest, signatures, {KEY.key_id: KEY.public_pem}, 1)
    assert verified == parse_manifest(manifest)
    assert verified.components[0].sha256 == deployment.chunks[0].artifacts[0].sha256


async def test_fetching_a_deployment_starts_the_execution_once(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    for _ in range(3):
        assert (await get(fleet, f"/deploymentBase/{execution.id}")).status_code == 200
    after = await fleet.execution(execution)
    assert (after.state, after.version) == (ExecutionState.IN_PROGRESS, 2)
    async with fleet.database.reading() as tx:
        events = await tx.execution_events(fleet.scope, execution.id)
    assert [event.message for event in events][1:] == [
        "Update Server: Target retrieved update action and should start now the download."
    ]


async def test_one_action_at_a_time_in_order(fleet: UpdateFleet) -> None:
    first = await an_action(fleet)
    second = await an_action(fleet, "3.0.0")
    assert (await get(fleet, f"/deploymentBase/{second.id}")).status_code == 404
    assert await feed(fleet, second.id, "closed", "success") == 404
    await get(fleet, f"/deploymentBase/{first.id}")
    assert (await get(fleet, f"/deploymentBase/{second.id}")).status_code == 404
    assert await feed(fleet, first.id, "closed", "success") == 200
    assert (await get(fleet, f"/deploymentBase/{second.id}")).status_code == 200


async def test_the_history_has_the_devices_messages_newest_first(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    path = f"/deploymentBase/{execution.id}"
    await get(fleet, path)
    for line in ("one", "two", "three"):
        await feed(fleet, execution.id, "proceeding", details=[line])
    assert "actionHistory" not in (await get(fleet, path)).json()
    history = (await get(fleet, f"{path}?actionHistory=2")).json()["actionHistory"]
    assert history == {"status": "RUNNING", "messages": ["three", "two"]}
    assert (await get(fleet, f"{path}?actionHistory=-1")).json()["actionHistory"]["messages"] == ["three", "two", "one"]
    assert (await get(fleet, f"{path}?actionHistory=lots")).status_code == 200


@pytest.mark.parametrize("action", ["0", "-1", "x", "999999", "2147483648", "99999999999999999999", "1e3"])
async def test_an_action_id_that_is_none_is_404(fleet: UpdateFleet, action: str) -> None:
    await an_action(fleet)
    for path in (f"/deploymentBase/{action}", f"/cancelAction/{action}", f"/installedBase/{action}"):
        answer = await get(fleet, path)
        assert answer.status_code == 404
        assert answer.json()["errorCode"] == "hawkbit.server.error.repo.entityNotFound"


# feedback


@pytest.mark.parametrize(("execution", "finished"), list(DEPLOYMENT_FEEDBACK))
async def test_every_feedback_means_what_the_table_says(
    fleet: UpdateFleet, execution: FeedbackExecution, finished: FeedbackFinished
) -> None:
    meaning = DEPLOYMENT_FEEDBACK[execution, finished]
    action = await an_action(fleet)
    await get(fleet, f"/deploymentBase/{action.id}")
    assert await feed(fleet, action.id, execution, finished, details=["a reason"], code=7) == 200
    after = await fleet.execution(action)
    assert after.state is meaning.state
    assert after.basis is (None if after.is_open else Basis.REPORTED)
    assert after.details["ddi-status"] == meaning.status
    assert after.details["ddi-code"] == "7"


def test_the_tables_have_every_pair() -> None:
    pairs = {(execution, finished) for execution in FeedbackExecution for finished in FeedbackFinished}
    assert set(DEPLOYMENT_FEEDBACK) == set(CANCEL_FEEDBACK) == pairs


async def test_downloaded_is_not_success_and_rejected_stays_open(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    await get(fleet, f"/deploymentBase/{execution.id}")
    for said in ("downloaded", "rejected", "canceled", "scheduled", "resumed"):
        assert await feed(fleet, execution.id, said, "success") == 200
        assert await fleet.state(execution) is ExecutionState.IN_PROGRESS


async def test_success_is_exactly_200_with_an_empty_body(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    body = {"status": {"execution": "closed", "result": {"finished": "success"}}}
    answer = await fleet.client.post(f"{BASE}/deploymentBase/{execution.id}/feedback", json=body)
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "0", b"")
    answer = await fleet.client.put(f"{BASE}/configData", json={"data": {"a": "b"}})
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "0", b"")


async def test_success_shows_what_runs_links_the_installed_action_and_asks_for_attributes_again(
    fleet: UpdateFleet,
) -> None:
    await fleet.client.put(f"{BASE}/configData", json={"data": {"a": "b"}})
    execution = await an_action(fleet, validation_hash="4" * 64)
    assert await feed(fleet, execution.id, "closed", "success") == 200
    device = await fleet.device("pump-1")
    assert (device.running_version, device.running_hash) == ("2.0.0", "4" * 64)
    links = (await get(fleet)).json()["_links"]
    assert set(links) == {"installedBase", "configData"}
    installed = await fleet.client.get(links["installedBase"]["href"] + "?actionHistory=1")
    assert installed.json()["id"] == str(execution.id)
    assert installed.json()["actionHistory"]["status"] == "FINISHED"


async def test_failure_keeps_the_devices_reason(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    assert await feed(fleet, execution.id, "closed", "failure", details=["self-test failed: \x1b[31mpump 3\n"]) == 200
    after = await fleet.execution(execution)
    assert (after.state, after.details["reason"]) == (ExecutionState.FAILED, "self-test failed: [31mpump 3")


@pytest.mark.parametrize(
    ("finished", "line", "basis"),
    [
        ("success", "basis: announcement", Basis.INFERRED),
        ("success", "basis: state-post", Basis.INFERRED),
        ("success", "basis: check-in", Basis.REPORTED),
        ("failure", "basis: unknown", Basis.REPORTED),
        ("failure", "basis: announcement", Basis.REPORTED),
        ("success", "installed", Basis.REPORTED),
    ],
)
async def test_what_a_gateway_concluded_from_a_sign_of_life_is_inferred_and_all_else_reported(
    fleet: UpdateFleet, finished: str, line: str, basis: Basis
) -> None:
    action = await an_action(fleet)
    assert await feed(fleet, action.id, "closed", finished, details=["the board is back", line]) == 200
    assert (await fleet.execution(action)).basis is basis


async def test_feedback_about_an_action_that_is_over_is_410(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    assert await feed(fleet, execution.id, "closed", "failure") == 200
    before = await fleet.execution(execution)
    for said in ("closed", "proceeding"):
        assert await feed(fleet, execution.id, said, "success") == 410
    assert await fleet.execution(execution) == before
    assert (await get(fleet, f"/deploymentBase/{execution.id}")).status_code == 404


async def test_feedback_about_another_devices_action_is_404_and_changes_nothing(fleet: UpdateFleet) -> None:
    other = await fleet.add_device("pump-2", token="another-token")
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), other)
    before = await fleet.execution(execution)
    assert await feed(fleet, execution.id, "closed", "success") == 404
    for path in (f"/deploymentBase/{execution.id}", f"/softwaremodules/{execution.release_id}/artifacts/pump.bin"):
        assert (await get(fleet, path)).status_code == 404
    assert await fleet.execution(execution) == before


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"status":{}}',
        b'{"status":{"execution":"closed"}}',
        b'{"status":{"execution":"closed","result":{}}}',
        b'{"status":{"execution":"exploded","result":{"finished":"none"}}}',
        b'{"status":{"execution":"closed","result":{"finished":"maybe"}}}',
        b'{"status":{"execution":"closed","result":{"finished":"success"},"details":[1]}}',
        b'{"status":{"execution":"closed","result":{"finished":"success"},"details":["\xff"]}}',
        b'{"id":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
async def test_feedback_that_cannot_be_read_is_400_and_changes_nothing(fleet: UpdateFleet, body: bytes) -> None:
    execution = await an_action(fleet)
    answer = await fleet.client.post(f"{BASE}/deploymentBase/{execution.id}/feedback", content=body)
    assert answer.status_code == 400
    assert answer.json()["errorCode"] == "hawkbit.server.error.rest.body.notReadable"
    assert await fleet.state(execution) is ExecutionState.QUEUED


async def test_a_body_above_the_limit_is_413(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    answer = await fleet.client.post(f"{BASE}/deploymentBase/{execution.id}/feedback", content=b" " * 300_000)
    assert answer.status_code == 413


async def test_the_quotas_are_1000_entries_and_50_messages(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    assert await feed(fleet, execution.id, "proceeding", details=["x"] * 50) == 200
    assert await feed(fleet, execution.id, "proceeding", details=["x"] * 51) == 429
    so_far = (await fleet.execution(execution)).version
    async with fleet.database.transaction() as tx:  # the first of them as `feed` writes them, but all at once
        for version in range(so_far, 980):
            entry = ExecutionChange(ExecutionState.IN_PROGRESS, message="proceeding")
            await tx.change_execution(fleet.scope, execution.id, version, entry, now=fleet.clock())
    for _ in range(20):
        assert await feed(fleet, execution.id, "proceeding") == 200
    refused = await fleet.client.post(
        f"{BASE}/deploymentBase/{execution.id}/feedback",
        json={"status": {"execution": "proceeding", "result": {"finished": "none"}}},
    )
    assert refused.status_code == 429
    assert refused.json()["errorCode"] == "hawkbit.server.error.quota.tooManyEntries"
    assert await feed(fleet, execution.id, "closed", "success") == 200


# cancelling


async def test_a_cancelled_action_is_shown_as_cancel_action_and_confirmed_by_the_device(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    await get(fleet, f"/deploymentBase/{execution.id}")
    before = (await get(fleet)).json()["_links"]["deploymentBase"]["href"]
    assert (await get(fleet, f"/cancelAction/{execution.id}")).status_code == 404
    await cancel(fleet)
    links = (await get(fleet)).json()["_links"]
    assert "deploymentBase" not in links
    href = links["cancelAction"]["href"]
    assert href.rpartition("?c=")[2] != before.rpartition("?c=")[2]
    assert (await fleet.client.get(href)).content == (
        b'{"id":"%d","cancelAction":{"stopId":"%d"}}' % (execution.id, execution.id)
    )
    assert (await get(fleet, f"/deploymentBase/{execution.id}")).status_code == 404
    body = {"status": {"execution": "closed", "result": {"finished": "success"}}}
    answer = await fleet.client.post(f"{BASE}/cancelAction/{execution.id}/feedback", json=body)
    assert answer.status_code == 200
    assert await fleet.state(execution) is ExecutionState.CANCELED
    assert "cancelAction" not in (await get(fleet)).text


@pytest.mark.parametrize(("said", "finished"), [("rejected", "success"), ("closed", "failure")])
async def test_a_device_that_cannot_stop_goes_on_and_reports_its_end(
    fleet: UpdateFleet, said: str, finished: str
) -> None:
    execution = await an_action(fleet)
    await get(fleet, f"/deploymentBase/{execution.id}")
    await cancel(fleet)
    body = {"status": {"execution": said, "result": {"finished": finished}}}
    assert (await fleet.client.post(f"{BASE}/cancelAction/{execution.id}/feedback", json=body)).status_code == 200
    assert "deploymentBase" in (await get(fleet)).text
    assert (await get(fleet, f"/deploymentBase/{execution.id}")).status_code == 200
    assert await feed(fleet, execution.id, "closed", "success") == 200
    assert await fleet.state(execution) is ExecutionState.SUCCEEDED


@pytest.mark.parametrize("said", ["canceled", "proceeding", "downloaded"])
async def test_other_feedback_leaves_an_action_canceling(fleet: UpdateFleet, said: str) -> None:
    execution = await an_action(fleet)
    await get(fleet, f"/deploymentBase/{execution.id}")
    await cancel(fleet)
    body = {"status": {"execution": said, "result": {"finished": "none"}}}
    assert (await fleet.client.post(f"{BASE}/cancelAction/{execution.id}/feedback", json=body)).status_code == 200
    assert "cancelAction" in (await get(fleet)).text


async def test_cancel_feedback_about_an_action_that_nobody_cancels_is_405(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    body = {"status": {"execution": "closed", "result": {"finished": "success"}}}
    answer = await fleet.client.post(f"{BASE}/cancelAction/{execution.id}/feedback", json=body)
    assert (answer.status_code, answer.json()["errorCode"]) == (405, "hawkbit.server.error.action.notCancelable")
    assert (await fleet.client.post(f"{BASE}/cancelAction/999/feedback", json=body)).status_code == 404


# attributes


async def put(fleet: UpdateFleet, data: object, **more: object) -> httpx.Response:
    return await fleet.client.put(f"{BASE}/configData", json={"data": data, **more})


async def test_attributes_merge_replace_and_remove(fleet: UpdateFleet) -> None:
    async def known() -> dict[str, str]:
        return dict((await fleet.device("pump-1")).attributes)

    await put(fleet, {"VIN": "1", "hw": "2"})
    await put(fleet, {"VIN": "9", "hw": None}, mode="merge", id="", time="20261120T145907", status={})
    assert await known() == {"VIN": "9"}
    await put(fleet, {"sn": "0001", "board": "m487"}, mode="replace")
    assert await known() == {"sn": "0001", "board": "m487"}
    await put(fleet, {"sn": "whatever"}, mode="remove")
    assert await known() == {"board": "m487"}


async def test_putting_attributes_clears_the_request_even_when_nothing_changes(fleet: UpdateFleet) -> None:
    await put(fleet, {"a": "b"})
    async with fleet.database.transaction() as tx:
        device = await tx.device(fleet.scope, "pump-1")
        await tx.set_device_attributes(fleet.scope, device.id, device.attributes, requested=True, now=fleet.clock())
    assert "configData" in (await get(fleet)).text
    await put(fleet, {"a": "b"})
    assert "configData" not in (await get(fleet)).text


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        ({"k" * 129: "v"}, 400, "repo.invalidTargetAttributes"),
        ({"k": "v" * 129}, 400, "repo.invalidTargetAttributes"),
        ({"k": "naïve"}, 400, "repo.invalidTargetAttributes"),
        ({"k": "a\x00b"}, 400, "repo.invalidTargetAttributes"),
        ({"": "v"}, 400, "repo.invalidTargetAttributes"),
        ({}, 400, "repo.invalidTargetAttributes"),
        ({"k": 1}, 400, "rest.body.notReadable"),
        ([], 400, "rest.body.notReadable"),
        (None, 400, "rest.body.notReadable"),
        ({str(number): "v" for number in range(101)}, 429, "quota.tooManyEntries"),
    ],
)
async def test_attributes_that_break_a_rule_are_refused_whole(
    fleet: UpdateFleet, data: object, status: int, code: str
) -> None:
    await put(fleet, {"before": "1"})
    answer = await put(fleet, data)
    assert (answer.status_code, answer.json()["errorCode"]) == (status, f"hawkbit.server.error.{code}")
    assert (await fleet.device("pump-1")).attributes == {"before": "1"}


async def test_a_hundred_attributes_of_128_characters_are_fine(fleet: UpdateFleet) -> None:
    assert (await put(fleet, {f"{number:0>128}": "v" * 128 for number in range(100)})).status_code == 200
    assert (await put(fleet, {"one more": "v"})).status_code == 429


# files


async def test_a_download_has_hawkbits_headers_and_leaves_a_trace(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet, filename="pump.bin")
    await get(fleet, f"/deploymentBase/{execution.id}")
    answer = await get(fleet, f"/softwaremodules/{execution.release_id}/artifacts/pump.bin")
    assert answer.content == image("2.0.0")
    assert answer.headers["content-disposition"] == "attachment;filename=pump.bin"
    assert answer.headers["last-modified"] == "Sun, 01 Mar 2026 12:00:00 GMT"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-length"] == "5000"
    assert (await fleet.execution(execution)).details["ddi-status"] == "DOWNLOAD"


async def test_a_resumed_download_gets_the_rest_and_leaves_no_trace(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    await get(fleet, f"/deploymentBase/{execution.id}")
    path = f"/softwaremodules/{execution.release_id}/artifacts/pump.bin"
    version = (await fleet.execution(execution)).version
    answer = await get(fleet, path, range="bytes=4990-")
    assert (answer.status_code, answer.headers["content-range"]) == (206, "bytes 4990-4999/5000")
    complete = await get(fleet, path, range="bytes=5000-")
    assert (complete.status_code, complete.headers["content-range"]) == (416, "bytes */5000")
    assert (await fleet.execution(execution)).version == version
    changed = await get(fleet, path, **{"range": "bytes=4990-", "if-range": '"another"'})
    assert (changed.status_code, len(changed.content)) == (200, 5000)


async def test_several_ranges_come_as_multipart_byteranges(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    path = f"/softwaremodules/{execution.release_id}/artifacts/pump.bin"
    answer = await get(fleet, path, range="bytes=4990-,0-9, 100-199")
    assert answer.status_code == 206
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-type"] == "multipart/byteranges; boundary=THIS_STRING_SEPARATES_MULTIPART"
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + answer.content, policy=email.policy.HTTP).get_payload()
    whole = image("2.0.0")
    assert [(part["content-range"], part.get_payload(decode=True)) for part in parts] == [
        ("bytes 0-9/5000", whole[:10]),
        ("bytes 100-199/5000", whole[100:200]),
        ("bytes 4990-4999/5000", whole[4990:]),
    ]
    for refused in ("bytes=0-9,5-20", "bytes=0-9,5000-", "bytes=0-9,x"):
        one = await get(fleet, path, range=refused)
        assert (one.status_code, one.headers["content-range"]) == (416, "bytes */5000"), refused
    changed = await get(fleet, path, **{"range": "bytes=0-9,20-29", "if-range": '"another"'})
    assert (changed.status_code, len(changed.content)) == (200, 5000)


async def test_if_match_of_another_file_is_412(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    path = f"/softwaremodules/{execution.release_id}/artifacts/pump.bin"
    assert (await get(fleet, path, **{"if-match": "0" * 40})).status_code == 412
    sha1 = hashlib.sha1(image("2.0.0")).hexdigest()
    assert (await get(fleet, path, **{"if-match": f"{'0' * 40}, {sha1}"})).status_code == 200


async def test_the_md5sum_file_is_one_line(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    answer = await get(fleet, f"/softwaremodules/{execution.release_id}/artifacts/pump.bin.MD5SUM")
    assert answer.text == f"{hashlib.md5(image('2.0.0')).hexdigest()}  pump.bin"
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["content-disposition"] == "attachment;filename=pump.bin.MD5SUM"


async def test_bytes_uploaded_under_two_names_go_out_under_the_name_of_each_release(fleet: UpdateFleet) -> None:
    await fleet.add_release("1.9.0", data=b"same bytes", filename="firmware.bin")
    device = await fleet.device("pump-1")
    release = await fleet.add_release("2.0.0", data=b"same bytes", filename="update.swu")
    assert release.artifact.filename == "firmware.bin"
    (execution,) = await fleet.roll_out(release, device)
    deployment = (await get(fleet, f"/deploymentBase/{execution.id}")).json()["deployment"]
    (offered,) = deployment["chunks"][0]["artifacts"]
    assert offered["filename"] == "update.swu"
    path = offered["_links"]["download-http"]["href"].partition("/artifacts/")[2]
    answer = await get(fleet, f"/softwaremodules/{release.id}/artifacts/{path}")
    assert (answer.content, answer.headers["content-disposition"]) == (b"same bytes", "attachment;filename=update.swu")
    assert (await get(fleet, f"/softwaremodules/{release.id}/artifacts/firmware.bin")).status_code == 404


async def test_a_name_with_blanks_is_found_in_both_spellings_and_quoted(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet, filename='pump "2".bin')
    base = f"/softwaremodules/{execution.release_id}/artifacts"
    for name in ("pump%20%222%22.bin", "pump+%222%22.bin"):
        answer = await get(fleet, f"{base}/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-disposition"] == 'attachment;filename="pump \\"2\\".bin"'


async def test_only_the_files_of_the_devices_open_action_can_be_fetched(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet)
    unrelated = await fleet.add_release("9.0.0")
    for path in (
        f"/softwaremodules/{unrelated.id}/artifacts/pump.bin",
        f"/softwaremodules/{execution.release_id}/artifacts/other.bin",
        "/softwaremodules/x/artifacts/pump.bin",
        "/softwaremodules/0/artifacts",
    ):
        assert (await get(fleet, path)).status_code == 404, path
    listed = await get(fleet, f"/softwaremodules/{execution.release_id}/artifacts")
    assert [entry["filename"] for entry in listed.json()] == ["pump.bin"]
    await feed(fleet, execution.id, "closed", "success")
    assert (await get(fleet, f"/softwaremodules/{execution.release_id}/artifacts")).status_code == 200
    assert (await get(fleet, f"/softwaremodules/{execution.release_id}/artifacts/pump.bin")).status_code == 404


async def test_an_expired_release_is_not_linked_and_its_execution_ends(fleet: UpdateFleet) -> None:
    execution = await an_action(fleet, expires_at=START + timedelta(hours=1))
    fleet.clock.advance(3601)
    assert "deploymentBase" not in (await get(fleet)).text
    assert await fleet.state(execution) is ExecutionState.CANCELED
