"""DDI: confirmation, maintenance windows, urgency, what is only downloaded, CBOR, links that fit small buffers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from flota.errors import Conflict
from flota.fleet.executions import Basis, Execution, ExecutionChange, ExecutionState
from flota.fleet.rollouts import RolloutPolicy, RolloutState
from flota.fleet.update_rules import Urgency
from flota.protocols.cbor import pack_cbor, parse_cbor
from flota.protocols.ddi import parse_auto_confirm, parse_confirmation
from flota.server.agreements import agree
from tests.server.update_fleet import START, TOKEN, UpdateFleet, an_update_fleet, image

BASE = "/DEFAULT/controller/v1/pump-1"
# START is Sunday, 2026-03-01, 12:00 UTC
OPEN_NOW = "sun 11:00 2h UTC"
OPEN_AT_14 = "sun 14:00 2h UTC"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[UpdateFleet]:
    async with an_update_fleet(tmp_path) as made:
        await made.add_type()
        await made.add_device("pump-1")
        made.client.headers.update({"authorization": f"TargetToken {TOKEN}"})
        yield made


async def an_action(fleet: UpdateFleet, **policy: Any) -> Execution:
    device = await fleet.device("pump-1")
    number = len(fleet.rollouts) + 1
    release = await fleet.add_release(f"{number}.0.0")
    (execution,) = await fleet.roll_out(release, device, policy=RolloutPolicy(**policy))
    return execution


async def type_rules(fleet: UpdateFleet, **rules: Any) -> None:
    async with fleet.database.transaction() as tx:
        await tx.set_update_rules(fleet.scope, "pump", now=fleet.clock(), **rules)


async def poll(fleet: UpdateFleet) -> dict[str, Any]:
    answer = await fleet.client.get(BASE)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def links(fleet: UpdateFleet) -> set[str]:
    return set((await poll(fleet)).get("_links", {})) - {"configData", "installedBase"}


async def get(fleet: UpdateFleet, path: str) -> httpx.Response:
    return await fleet.client.get(BASE + path)


async def post(fleet: UpdateFleet, path: str, body: object = None) -> int:
    content = b"" if body is None else json.dumps(body).encode()
    return (await fleet.client.post(BASE + path, content=content)).status_code


def feedback(execution: str, finished: str = "none", *details: str) -> dict[str, object]:
    return {"status": {"execution": execution, "result": {"finished": finished}, "details": list(details)}}


# confirmation


async def test_a_device_is_not_asked_unless_somebody_wants_it(fleet: UpdateFleet) -> None:
    action = await an_action(fleet)
    assert await links(fleet) == {"deploymentBase"}
    assert (await get(fleet, f"/confirmationBase/{action.id}")).status_code == 404
    assert await post(fleet, f"/confirmationBase/{action.id}/feedback", {"confirmation": "confirmed"}) == 404


@pytest.mark.parametrize("by_type", [True, False])
async def test_an_action_waits_for_the_devices_agreement(fleet: UpdateFleet, by_type: bool) -> None:
    if by_type:
        await type_rules(fleet, confirm=True)
    action = await an_action(fleet, **({} if by_type else {"confirm": True}))
    path = f"/deploymentBase/{action.id}"
    assert await links(fleet) == {"confirmationBase"}
    for closed in (path, f"/softwaremodules/{action.release_id}/artifacts/pump.bin"):
        assert (await get(fleet, closed)).status_code == 404
    assert await post(fleet, f"{path}/feedback", feedback("closed", "success")) == 404
    href = (await poll(fleet))["_links"]["confirmationBase"]["href"]
    assert len(href[href.index("confirmationBase/") :]) <= 51
    asked = await get(fleet, f"/confirmationBase/{action.id}?actionHistory=1")
    message = asked.json()
    assert list(message) == ["id", "confirmation", "actionHistory"]
    assert message["actionHistory"]["status"] == "WAIT_FOR_CONFIRMATION"
    assert parse_confirmation(asked.content).chunks[0].version == "1.0.0"
    assert await fleet.state(action) is ExecutionState.QUEUED

    answer = f"/confirmationBase/{action.id}/feedback"
    assert await post(fleet, answer, {"confirmation": "denied", "code": 10, "details": ["not now"]}) == 200
    assert await links(fleet) == {"confirmationBase"}
    denied = await fleet.execution(action)
    assert (denied.details["confirmation"], denied.details["ddi-code"]) == ("denied", "10")
    assert await post(fleet, answer, {"confirmation": "confirmed"}) == 200
    assert await links(fleet) == {"deploymentBase"}
    assert await post(fleet, answer, {"confirmation": "confirmed"}) == 404
    assert (await get(fleet, path)).status_code == 200
    assert await post(fleet, f"{path}/feedback", feedback("closed", "success")) == 200
    assert await post(fleet, answer, {"confirmation": "confirmed"}) == 410


async def test_an_operator_may_agree_in_the_devices_place_but_not_against_it(fleet: UpdateFleet) -> None:
    action = await an_action(fleet, confirm=True)
    assert await links(fleet) == {"confirmationBase"}
    await post(fleet, f"/confirmationBase/{action.id}/feedback", {"confirmation": "denied"})
    with pytest.raises(Conflict, match="refused"):
        await agree(fleet.context, fleet.scope, "pump-1")
    assert await links(fleet) == {"confirmationBase"}
    async with fleet.database.transaction() as tx:
        await tx.set_rollout_state(fleet.scope, fleet.rollouts[0].id, RolloutState.CANCELED, now=fleet.clock())
        waiting = await tx.execution(fleet.scope, action.id)
        ended = ExecutionChange(ExecutionState.CANCELED, basis=Basis.OPERATOR)
        if waiting.is_open:
            await tx.change_execution(fleet.scope, action.id, waiting.version, ended, now=fleet.clock())
    await an_action(fleet, confirm=True)
    assert await links(fleet) == {"confirmationBase"}
    await agree(fleet.context, fleet.scope, "pump-1")
    assert await links(fleet) == {"deploymentBase"}


async def test_a_device_may_agree_to_everything_by_itself(fleet: UpdateFleet) -> None:
    await type_rules(fleet, confirm=True)
    await an_action(fleet)
    state = await get(fleet, "/confirmationBase")
    assert state.json()["autoConfirm"] == {"active": False}
    assert set(state.json()["_links"]) == {"activateAutoConfirm", "confirmationBase"}
    asked = {"initiator": "owner", "remark": "always\nwelcome"}
    assert await post(fleet, "/confirmationBase/activateAutoConfirm", asked) == 200
    assert await post(fleet, "/confirmationBase/activateAutoConfirm") == 409
    state = await get(fleet, "/confirmationBase")
    assert set(state.json()["_links"]) == {"deactivateAutoConfirm"}
    known = parse_auto_confirm(state.content)
    assert (known.active, known.initiator) == (True, "owner")
    assert "\n" not in (known.remark or "")
    assert known.activated_at_ms == int(START.timestamp() * 1000)
    assert await links(fleet) == {"deploymentBase"}
    assert await post(fleet, "/confirmationBase/deactivateAutoConfirm") == 200
    assert await post(fleet, "/confirmationBase/deactivateAutoConfirm") == 200
    assert await links(fleet) == {"confirmationBase"}


async def test_a_cancellation_is_shown_instead_of_the_question(fleet: UpdateFleet) -> None:
    action = await an_action(fleet, confirm=True)
    assert await post(fleet, f"/confirmationBase/{action.id}/feedback", {"confirmation": "denied"}) == 200
    async with fleet.database.transaction() as tx:
        await tx.set_rollout_state(fleet.scope, fleet.rollouts[0].id, RolloutState.CANCELED, now=fleet.clock())
    assert await links(fleet) == {"cancelAction"}
    assert (await get(fleet, f"/confirmationBase/{action.id}")).status_code == 404
    assert await post(fleet, f"/cancelAction/{action.id}/feedback", feedback("closed", "success")) == 200
    assert await fleet.state(action) is ExecutionState.CANCELED


# maintenance windows


async def test_in_a_closed_window_nothing_is_shown(fleet: UpdateFleet) -> None:
    action = await an_action(fleet, maintenance=OPEN_AT_14)
    assert await links(fleet) == set()
    assert (await get(fleet, f"/deploymentBase/{action.id}")).status_code == 404
    assert (await get(fleet, f"/softwaremodules/{action.release_id}/artifacts/pump.bin")).status_code == 404
    assert await post(fleet, f"/deploymentBase/{action.id}/feedback", feedback("proceeding")) == 404
    assert await fleet.state(action) is ExecutionState.QUEUED
    fleet.clock.advance(2 * 3600)
    assert await links(fleet) == {"deploymentBase"}
    deployment = (await get(fleet, f"/deploymentBase/{action.id}")).json()["deployment"]
    assert (deployment["update"], deployment["maintenanceWindow"]) == ("forced", "available")


async def test_the_types_window_counts_for_rollouts_at_work_and_a_rollout_may_have_none(fleet: UpdateFleet) -> None:
    await an_action(fleet)
    assert await links(fleet) == {"deploymentBase"}
    await type_rules(fleet, maintenance=OPEN_AT_14)
    assert await links(fleet) == set()
    await type_rules(fleet, maintenance="none")
    assert await links(fleet) == {"deploymentBase"}
    await type_rules(fleet, maintenance=OPEN_AT_14)
    async with fleet.database.transaction() as tx:
        await tx.set_rollout_state(fleet.scope, fleet.rollouts[0].id, RolloutState.CANCELED, now=fleet.clock())
    await an_action(fleet, maintenance="none")
    assert await links(fleet) == {"deploymentBase"}


async def test_a_window_in_local_time_is_that_of_the_devices_label_from_the_next_poll_on(fleet: UpdateFleet) -> None:
    await an_action(fleet, maintenance="daily 00:00 6h local")  # the clock stands at noon, UTC
    assert await links(fleet) == set()
    await set_zone(fleet, timezone="Pacific/Auckland")
    assert await links(fleet) == {"deploymentBase"}
    await set_zone(fleet, timezone="Europe/Berlin")
    assert await links(fleet) == set()
    await set_zone(fleet)
    fleet.clock.advance(12 * 3600)
    assert await links(fleet) == {"deploymentBase"}, "without a label it is in UTC"


async def set_zone(fleet: UpdateFleet, **labels: str) -> None:
    async with fleet.database.transaction() as transaction:
        await transaction.set_device_labels(fleet.scope, "pump-1", labels, now=fleet.clock())


async def test_a_device_that_may_download_ahead_is_told_not_to_install(fleet: UpdateFleet) -> None:
    await type_rules(fleet, download_ahead=True)
    action = await an_action(fleet, maintenance=OPEN_AT_14)
    href = (await poll(fleet))["_links"]["deploymentBase"]["href"]
    deployment = (await get(fleet, f"/deploymentBase/{action.id}")).json()["deployment"]
    assert list(deployment) == ["download", "update", "maintenanceWindow", "chunks"]
    assert (deployment["download"], deployment["update"]) == ("forced", "skip")
    assert deployment["maintenanceWindow"] == "unavailable"
    answer = await get(fleet, f"/softwaremodules/{action.release_id}/artifacts/pump.bin")
    assert answer.content == image("1.0.0")
    assert await post(fleet, f"/deploymentBase/{action.id}/feedback", feedback("downloaded")) == 200
    assert await fleet.state(action) is ExecutionState.IN_PROGRESS
    fleet.clock.advance(2 * 3600)
    opened = (await poll(fleet))["_links"]["deploymentBase"]["href"]
    assert opened != href  # its `c`: the poll and its ETag change with the window
    assert opened.partition("?")[0] == href.partition("?")[0]


async def test_swupdates_skip_notice_is_no_success(fleet: UpdateFleet) -> None:
    """Told `skip`, it reports closed and success at once, with nothing installed."""
    await type_rules(fleet, download_ahead=True)
    action = await an_action(fleet, maintenance=OPEN_AT_14)
    path = f"/deploymentBase/{action.id}/feedback"
    assert await post(fleet, path, feedback("closed", "success", "Skipped Update.")) == 200
    assert await fleet.state(action) is ExecutionState.IN_PROGRESS
    fleet.clock.advance(2 * 3600)
    assert await post(fleet, path, feedback("closed", "success", "Update Installed.")) == 200
    assert await fleet.state(action) is ExecutionState.SUCCEEDED


async def test_what_has_begun_may_finish_after_its_window_has_closed(fleet: UpdateFleet) -> None:
    action = await an_action(fleet, maintenance=OPEN_NOW)
    assert (await get(fleet, f"/deploymentBase/{action.id}")).status_code == 200
    fleet.clock.advance(2 * 3600)
    assert await links(fleet) == set()
    path = f"/softwaremodules/{action.release_id}/artifacts/pump.bin"
    answer = await fleet.client.get(BASE + path, headers={"range": "bytes=10-"})
    assert answer.status_code == 206
    assert await post(fleet, f"/deploymentBase/{action.id}/feedback", feedback("closed", "success")) == 200
    assert await fleet.state(action) is ExecutionState.SUCCEEDED


@pytest.mark.parametrize(
    ("seconds_left", "sleep"), [(7200, "00:05:00"), (600, "00:03:20"), (300, "00:01:40"), (45, "00:00:30")]
)
async def test_the_sleep_leads_to_the_windows_start(fleet: UpdateFleet, seconds_left: int, sleep: str) -> None:
    await an_action(fleet, maintenance=OPEN_AT_14)
    assert await links(fleet) == set()
    fleet.clock.advance(7200 - seconds_left)
    assert (await poll(fleet))["config"]["polling"]["sleep"] == sleep


# urgency


async def test_a_soft_action_is_an_attempt_and_becomes_forced_in_time(fleet: UpdateFleet) -> None:
    at = fleet.clock() + timedelta(hours=1)
    action = await an_action(fleet, urgency=Urgency.TIMEFORCED, forced_at=at)
    before = (await poll(fleet))["_links"]["deploymentBase"]["href"]
    deployment = (await get(fleet, f"/deploymentBase/{action.id}")).json()["deployment"]
    assert (deployment["download"], deployment["update"]) == ("attempt", "attempt")
    assert "maintenanceWindow" not in deployment
    fleet.clock.advance(3600)
    assert (await poll(fleet))["_links"]["deploymentBase"]["href"] != before
    deployment = (await get(fleet, f"/deploymentBase/{action.id}")).json()["deployment"]
    assert (deployment["download"], deployment["update"]) == ("forced", "forced")


async def test_what_is_only_to_be_downloaded_ends_with_the_download(fleet: UpdateFleet) -> None:
    await fleet.client.put(f"{BASE}/configData", json={"data": {"VIN": "1"}})
    action = await an_action(fleet, urgency=Urgency.DOWNLOADONLY)
    deployment = (await get(fleet, f"/deploymentBase/{action.id}")).json()["deployment"]
    assert (deployment["download"], deployment["update"]) == ("forced", "skip")
    path = f"/deploymentBase/{action.id}/feedback"
    assert await post(fleet, path, feedback("download")) == 200
    assert await fleet.state(action) is ExecutionState.IN_PROGRESS
    assert await post(fleet, path, feedback("downloaded")) == 200
    assert await fleet.state(action) is ExecutionState.SUCCEEDED
    assert (await fleet.device("pump-1")).running_version is None
    assert set((await poll(fleet))["_links"]) == {"configData"}  # nothing is installed
    assert await post(fleet, path, feedback("proceeding")) == 410
    assert await post(fleet, path, feedback("closed", "success")) == 200  # one that comes later is still taken
    assert (await fleet.device("pump-1")).running_version == "1.0.0"


# installed without us


async def test_a_device_tells_what_is_installed(fleet: UpdateFleet) -> None:
    await fleet.add_release("7.0.0")
    body = {"name": "pump", "version": "7.0.0"}
    assert (await fleet.client.put(f"{BASE}/installedBase", json=body)).status_code == 201
    assert (await fleet.client.put(f"{BASE}/installedBase", json=body)).status_code == 200
    device = await fleet.device("pump-1")
    assert device.running_version == "7.0.0"
    for wrong in ({"name": "pump", "version": "8.0.0"}, {"name": "valve", "version": "7.0.0"}):
        assert (await fleet.client.put(f"{BASE}/installedBase", json=wrong)).status_code == 404
    for malformed in ({"name": "pump"}, {"name": "", "version": "1"}, {"name": "pump", "version": "x" * 300}, []):
        assert (await fleet.client.put(f"{BASE}/installedBase", json=malformed)).status_code == 400
    assert (await fleet.device("pump-1")).running_version == "7.0.0"


# representation


async def test_everything_can_be_said_in_cbor(fleet: UpdateFleet) -> None:
    action = await an_action(fleet)
    wants = {"accept": "application/cbor"}
    answer = await fleet.client.get(BASE, headers=wants)
    assert answer.headers["content-type"] == "application/cbor"
    assert parse_cbor(answer.content) == await poll(fleet)
    json_etag = (await fleet.client.get(BASE)).headers["etag"]
    assert answer.headers["etag"] != json_etag
    unchanged = await fleet.client.get(BASE, headers={**wants, "if-none-match": answer.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    answer = await fleet.client.get(f"{BASE}/deploymentBase/{action.id}", headers=wants)
    assert parse_cbor(answer.content)["deployment"]["update"] == "forced"  # type: ignore[index,call-overload]

    async def send(method: str, path: str, body: object) -> int:
        headers = {"content-type": "application/cbor"}
        answer = await fleet.client.request(method, BASE + path, content=pack_cbor(body), headers=headers)
        return answer.status_code

    assert await send("PUT", "/configData", {"data": {"VIN": "1"}, "mode": "replace"}) == 200
    assert (await fleet.device("pump-1")).attributes == {"VIN": "1"}
    assert await send("PUT", "/configData", {"data": 5}) == 400
    assert await send("POST", f"/deploymentBase/{action.id}/feedback", feedback("closed", "success")) == 200
    assert await fleet.state(action) is ExecutionState.SUCCEEDED


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/json, application/hal+json", "application/json"),
        ("application/json;q=0.5, application/hal+json", "application/hal+json"),
        ("application/cbor, */*;q=0.1", "application/cbor"),
        ("application/cbor;q=0, application/json", "application/json"),
        ("application/json;q=nonsense", "application/hal+json"),
        ("", "application/hal+json"),
        ("," * 4000, "application/hal+json"),
    ],
)
async def test_the_wanted_form_is_the_given_one(fleet: UpdateFleet, accept: str, media_type: str) -> None:
    answer = await fleet.client.get(BASE, headers={"accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)


async def test_a_download_link_fits_the_smallest_buffer(fleet: UpdateFleet) -> None:
    name = "n" * 128
    device = await fleet.add_device(name)
    release = await fleet.add_release("9.0.0", filename="a rather long name of a file" * 5 + ".bin")
    (execution,) = await fleet.roll_out(release, device)
    base = f"/DEFAULT/controller/v1/{name}"
    message = (await fleet.client.get(f"{base}/deploymentBase/{execution.id}")).json()
    (artifact,) = message["deployment"]["chunks"][0]["artifacts"]
    href = artifact["_links"]["download-http"]["href"]
    assert len(href[href.index("/DEFAULT") :]) <= 199
    assert artifact["filename"] == release.filename
    assert (await fleet.client.get(href)).content == image("9.0.0")
    md5sum = await fleet.client.get(artifact["_links"]["md5sum-http"]["href"])
    assert md5sum.text == f"{artifact['hashes']['md5']}  {release.filename}"


async def test_if_range_takes_the_etag_or_the_date_of_the_same_file_only(fleet: UpdateFleet) -> None:
    action = await an_action(fleet)
    path = f"{BASE}/softwaremodules/{action.release_id}/artifacts/pump.bin"
    whole = await fleet.client.get(path)
    for value, status in (
        (whole.headers["etag"], 206),
        (whole.headers["last-modified"], 206),
        ('"another"', 200),
        ("Sun, 01 Mar 2020 12:00:00 GMT", 200),
    ):
        answer = await fleet.client.get(path, headers={"range": "bytes=5-", "if-range": value})
        assert answer.status_code == status, value
    for ranges in ("bytes=0-4,4-5", "bytes=0-1,5-2", "bytes=5-2", "bytes=x", f"bytes={len(whole.content)}-"):
        answer = await fleet.client.get(path, headers={"range": ranges})
        assert (answer.status_code, answer.content) == (416, b""), ranges
        assert answer.headers["content-range"] == f"bytes */{len(whole.content)}"
    sha1 = (await get(fleet, f"/deploymentBase/{action.id}")).json()
    sha1 = sha1["deployment"]["chunks"][0]["artifacts"][0]["hashes"]["sha1"]
    for condition, status in ((sha1, 200), (f'"{sha1}"', 200), ("*", 200), (f"x, {sha1}", 200), ("nothing", 412)):
        answer = await fleet.client.get(path, headers={"if-match": condition})
        assert answer.status_code == status, condition
