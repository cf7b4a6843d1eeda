"""Recorded exchanges of real hawkBit clients, as far as they use the core (docs/reference/hawkbit-ddi.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flota.fleet.executions import ExecutionState
from flota.protocols.ddi import parse_deployment, parse_poll_answer
from tests.server.update_fleet import TOKEN, UpdateFleet, an_update_fleet, image


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[UpdateFleet]:
    async with an_update_fleet(tmp_path) as made:
        await made.add_type()
        await made.add_device("swu-1")
        made.client.headers.update({"authorization": f"TargetToken {TOKEN}"})
        yield made


async def test_swupdate_2022_12_updates_as_recorded(fleet: UpdateFleet) -> None:
    device = await fleet.device("swu-1")
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0", filename="update.swu"), device)
    client = fleet.client
    client.headers.update({"content-type": "application/json", "accept": "application/json", "charsets": "utf-8"})
    base = "/DEFAULT/controller/v1/swu-1"

    async def say(body: str) -> None:
        answer = await client.post(f"{base}/deploymentBase/{execution.id}/feedback", content=body)
        assert (answer.status_code, answer.content) == (200, b"")

    poll = parse_poll_answer((await client.get(base)).content)
    assert poll.deployment_base
    assert poll.config_data
    await client.get(poll.deployment_base)
    answer = await client.put(
        poll.config_data,
        content='{ "id": "", "time": "20261120T145906", "status": { "result": { "finished": "success" }, '
        '"execution": "closed", "details" : [ "" ] }, "data" : { "sn": "0001","board": "m487" } }',
    )
    assert answer.status_code == 200
    deployment = parse_deployment((await client.get(poll.deployment_base)).content)
    await say(
        f'{{ "id": {execution.id}, "time": "20261120T145906", "status": {{ "result": {{ "progress": '
        '{ "cnt" : 0, "of" : 1 }, "finished": "none" }, "execution": "proceeding", '
        '"details" : [ "Installing Update Chunk Artifacts." ] } }'
    )
    href = deployment.chunks[0].artifacts[0].download_http
    assert href
    assert (await client.get(href)).content == image("2.0.0")
    lines = ", ".join(f'"[TRACE] : SWUPDATE running : step {number}"' for number in range(48))
    for text in (lines, '"Installed Chunk."', '"All Chunks Installed."', " "):
        await say(
            f'{{ "id": {execution.id}, "time": "20261120T145907", "status": {{ "result": {{ "progress": '
            f'{{ "cnt" : 1, "of" : 1 }}, "finished": "none" }}, "execution": "proceeding", "details" : [{text}] }} }}'
        )
    assert await fleet.state(execution) is ExecutionState.IN_PROGRESS
    assert (await client.get(poll.deployment_base)).status_code == 200, "without a stored state it installs again"
    await say(
        f'{{ "id": {execution.id}, "time": "20261120T150001", "status": {{ "result": {{ "finished": "success" }}, '
        '"execution": "closed", "details" : [ "Update Installed." ] } }'
    )
    assert await fleet.state(execution) is ExecutionState.SUCCEEDED
    assert (await fleet.device("swu-1")).attributes == {"sn": "0001", "board": "m487"}


async def test_rauc_hawkbit_updater_1_4_updates_as_recorded(fleet: UpdateFleet) -> None:
    device = await fleet.device("swu-1")
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0", filename="bundle.raucb"), device)
    client = fleet.client
    media = "application/json;charset=UTF-8"
    client.headers.update({"accept": media, "content-type": media, "user-agent": "rauc-hawkbit-c-agent/1.0"})
    base = "/DEFAULT/controller/v1/swu-1"

    poll = parse_poll_answer((await client.get(base)).content)
    assert (await client.put(poll.config_data or "", content='{"mode":"merge","data":{"hw":"1"}}')).status_code == 200
    deployment = parse_deployment((await client.get(poll.deployment_base or "")).content)
    (chunk,) = deployment.chunks
    (artifact,) = chunk.artifacts
    half = await client.get(artifact.download_http or "", headers={"range": "bytes=2500-"})
    assert half.status_code == 206
    for number, text in enumerate(["Download complete. 122.75 MB/s", "File checksum OK.", "  5% Installing"]):
        answer = await client.post(
            f"{base}/deploymentBase/{execution.id}/feedback",
            json={
                "id": str(execution.id),
                "time": "20261120T145907",
                "status": {
                    "result": {"finished": "none", "progress": {"cnt": str(number), "of": "3"}},
                    "execution": "proceeding",
                    "details": [text],
                },
            },
        )
        assert answer.status_code == 200
    assert (await fleet.execution(execution)).details["progress"] == "2/3", "rauc-hawkbit sends strings"
    done = {
        "result": {"finished": "success"},
        "execution": "closed",
        "details": ["Software bundle installed successfully."],
    }
    answer = await client.post(
        f"{base}/deploymentBase/{execution.id}/feedback", json={"id": str(execution.id), "status": done}
    )
    assert answer.status_code == 200
    assert await fleet.state(execution) is ExecutionState.SUCCEEDED


async def test_old_zephyr_finds_what_it_searches_for(fleet: UpdateFleet) -> None:
    device = await fleet.device("swu-1")
    await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    answer = await fleet.client.get("/default/controller/v1/swu-1")
    assert int(answer.headers["content-length"]) == len(answer.content)
    poll = parse_poll_answer(answer.content)
    kept = (poll.deployment_base or "").partition("/deploymentBase/")
    assert len("deploymentBase/" + kept[2]) <= 49
    (chunk,) = parse_deployment((await fleet.client.get(poll.deployment_base or "")).content).chunks
    assert chunk.part == "bApp"
    (artifact,) = chunk.artifacts
    _, marker, tail = (artifact.download_http or "").partition("/DEFAULT/controller/v1")
    assert marker
    assert len(marker + tail) <= 199
    assert len(artifact.download_http or "") < 300
