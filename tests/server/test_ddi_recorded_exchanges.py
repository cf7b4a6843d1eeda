"""Exchanges recorded from real clients (SWUpdate 2022.12, rauc-hawkbit-updater 1.4, Zephyr), byte for byte.

The requests are what these programs sent, with this server's tokens and numbers put in; the answers must fit what they
read. Source: docs/reference/hawkbit-ddi.md, "Recorded exchanges".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flota.fleet.executions import Execution, ExecutionState
from flota.fleet.rollouts import RolloutState
from flota.server.api import ddi
from tests.server.serving import app_of, listening
from tests.server.update_fleet import TOKEN, UpdateFleet, an_update_fleet, image


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    interim: bytes = b""


class Wire:
    """One connection on which bytes are sent as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.reader, self.writer, self.host = reader, writer, host

    async def send(self, request: str, body: bytes = b"", *, expect: bool = False) -> Answer:
        """Send a request's header lines (joined by line breaks) and body; with `expect` the body waits for a 100."""
        lines = [line.strip() for line in request.strip().splitlines()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        interim = b""
        if expect:
            await self.writer.drain()
            interim = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        self.writer.write(body)
        await self.writer.drain()
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1")
        first, *rest = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in rest)}
        assert "transfer-encoding" not in headers
        content = b""
        if not lines[0].startswith("HEAD"):
            content = await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), 10)
        return Answer(int(first.split()[1]), headers, content, interim)


@dataclass
class Bench:
    fleet: UpdateFleet
    wire: Wire
    execution: Execution

    async def state(self) -> ExecutionState:
        return await self.fleet.state(self.execution)

    async def messages(self) -> list[str]:
        async with self.fleet.database.reading() as tx:
            return [one.message for one in await tx.execution_events(self.fleet.scope, self.execution.id)]


@contextlib.asynccontextmanager
async def a_bench(directory: Path, device: str) -> AsyncIterator[Bench]:
    async with an_update_fleet(directory) as fleet:
        await fleet.add_type()
        registered = await fleet.add_device(device)
        (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), registered)
        async with listening(app_of(fleet.context, ddi.routes(fleet.context))) as listener:
            reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
            try:
                yield Bench(fleet, Wire(reader, writer, str(listener.address)), execution)
            finally:
                writer.close()


async def test_swupdate(tmp_path: Path) -> None:
    async with a_bench(tmp_path, "swu-1") as bench:
        wire, host, base = bench.wire, bench.wire.host, "/DEFAULT/controller/v1/swu-1"

        def get(path: str) -> str:
            return f"""GET {path} HTTP/1.1
                Host: {host}
                User-Agent: SWUpdate/2022.12
                Accept: application/json
                Content-Type: application/json
                charsets: utf-8
                Authorization: TargetToken {TOKEN}"""

        answer = await wire.send(get(base))
        assert answer.status == 200
        links = json.loads(answer.body)["_links"]
        assert list(links) == ["deploymentBase", "configData"]
        deployment_path = links["deploymentBase"]["href"].removeprefix(f"http://{host}")
        assert len(deployment_path.removeprefix(f"{base}/")) <= 49

        config = (
            b'{ "id": "", "time": "20261120T145905", "status": { "result": { "finished": "success" }, "execution": '
            b'"closed", "details" : [ "" ] }, "data" : { "sn": "0001","board": "m487" } }'
        )
        answer = await wire.send(
            f"""PUT {base}/configData HTTP/1.1
            Host: {host}
            User-Agent: SWUpdate/2022.12
            Accept: application/json
            Content-Type: application/json
            charsets: utf-8
            Authorization: TargetToken {TOKEN}
            Content-Length: {len(config)}
            Expect: 100-continue""",
            config,
            expect=True,
        )
        assert answer.interim.startswith(b"HTTP/1.1 100")
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")
        assert (await bench.fleet.device("swu-1")).attributes == {"sn": "0001", "board": "m487"}

        answer = await wire.send(get(deployment_path))
        message = json.loads(answer.body)
        assert list(message) == ["id", "deployment"]
        assert list(message["deployment"]) == ["download", "update", "chunks"]
        (artifact,) = message["deployment"]["chunks"][0]["artifacts"]
        assert isinstance(artifact["size"], int)
        number = message["id"]
        assert (await wire.send(get(deployment_path))).body == answer.body  # it reads it twice

        async def post(details: str, execution: str = "proceeding", finished: str = "none", done: int = 0) -> int:
            body = (
                f'{{ "id": {number}, "time": "20261120T145906", "status": {{ "result": {{ "progress": '
                f'{{ "cnt" : {done}, "of" : 1 }}, "finished": "{finished}" }}, "execution": "{execution}", '
                f'"details" : [ {details} ] }} }}'
            ).encode()
            answer = await wire.send(
                f"""POST {base}/deploymentBase/{number}/feedback HTTP/1.1
                Host: {host}
                User-Agent: SWUpdate/2022.12
                Accept: application/json
                Content-Type: application/json
                charsets: utf-8
                Authorization: TargetToken {TOKEN}
                Content-Length: {len(body)}""",
                body,
            )
            assert answer.body == b""
            return answer.status

        assert await post('"Installing Update Chunk Artifacts."') == 200
        path = artifact["_links"]["download-http"]["href"].removeprefix(f"http://{host}")
        answer = await wire.send(get(path))
        assert (answer.status, answer.body) == (200, image("2.0.0"))
        resumed = await wire.send(get(path) + "\nRange: bytes=1000-")
        assert (resumed.status, resumed.body) == (206, image("2.0.0")[1000:])
        assert resumed.headers["content-range"] == f"bytes 1000-{len(answer.body) - 1}/{len(answer.body)}"
        lines = ", ".join(f'"[extract_files] : Found file {number}"' for number in range(48))
        assert await post(lines) == 200
        assert await post('"Installed Chunk."', done=1) == 200
        assert await post('"All Chunks Installed."', done=1) == 200
        assert await post(" ", done=1) == 200  # a list with a lone blank
        assert await bench.state() is ExecutionState.IN_PROGRESS
        assert await post('"Update Installed."', "closed", "success", 1) == 200
        assert await bench.state() is ExecutionState.SUCCEEDED
        assert await post('"Update Installed."', "closed", "success", 1) == 410
        assert any("Found file 47" in message or "Found file 1" in message for message in await bench.messages())


async def test_rauc_hawkbit_updater(tmp_path: Path) -> None:
    async with a_bench(tmp_path, "test-target") as bench:
        wire, host, base = bench.wire, bench.wire.host, "/DEFAULT/controller/v1/test-target"
        common = f"""Host: {host}
            User-Agent: rauc-hawkbit-c-agent/1.0
            Authorization: TargetToken {TOKEN}
            Accept: application/json;charset=UTF-8"""
        answer = await wire.send(f"GET {base} HTTP/1.1\n{common}")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        poll = json.loads(answer.body)
        assert re.fullmatch(r"\d\d:\d\d:\d\d", poll["config"]["polling"]["sleep"])

        async def send(method: str, path: str, body: bytes) -> Answer:
            return await wire.send(
                f"{method} {base}{path} HTTP/1.1\n{common}\nContent-Type: application/json;charset=UTF-8\n"
                f"Content-Length: {len(body)}",
                body,
            )

        answer = await send(
            "PUT",
            "/configData",
            b'{"mode":"merge","data":{"product":"Terminator","model":"T-1000","serialnumber":"8"}}',
        )
        assert (answer.status, answer.body) == (200, b"")
        href = poll["_links"]["deploymentBase"]["href"].removeprefix(f"http://{host}")
        message = json.loads((await wire.send(f"GET {href} HTTP/1.1\n{common}")).body)
        (chunk,) = message["deployment"]["chunks"]
        (artifact,) = chunk["artifacts"]
        path = artifact["_links"]["download-http"]["href"].removeprefix(f"http://{host}")
        answer = await wire.send(f"GET {path} HTTP/1.1\n{common}\nRange: bytes={artifact['size']}-")
        assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{artifact['size']}")
        answer = await wire.send(f"GET {path} HTTP/1.1\n{common}")
        assert (answer.status, len(answer.body)) == (200, artifact["size"])

        async def report(execution: str, finished: str, text: str) -> Answer:
            body = json.dumps(
                {
                    "id": message["id"],
                    "status": {"result": {"finished": finished}, "execution": execution, "details": [text]},
                }
            ).encode()
            return await send("POST", f"/deploymentBase/{message['id']}/feedback", body)

        assert (await report("proceeding", "none", "Download complete. 122.75 MB/s")).status == 200
        assert (await report("proceeding", "none", "File checksum OK.")).status == 200
        for percent in range(0, 101, 5):
            assert (await report("proceeding", "none", f"{percent:3}% Installing")).status == 200
        assert (await report("closed", "success", "Software bundle installed successfully.")).status == 200
        assert await bench.state() is ExecutionState.SUCCEEDED
        assert "Software bundle installed successfully." in await bench.messages()


async def test_rauc_hawkbit_updater_rejects_a_cancellation_once_it_installs(tmp_path: Path) -> None:
    async with a_bench(tmp_path, "test-target") as bench:
        wire, base = bench.wire, "/DEFAULT/controller/v1/test-target"
        common = f"Host: {wire.host}\nAuthorization: TargetToken {TOKEN}\nAccept: application/json;charset=UTF-8"
        assert (await wire.send(f"GET {base}/deploymentBase/1 HTTP/1.1\n{common}")).status == 200
        async with bench.fleet.database.transaction() as tx:
            await tx.set_rollout_state(bench.fleet.scope, 1, RolloutState.CANCELED, now=bench.fleet.clock())
        poll = json.loads((await wire.send(f"GET {base} HTTP/1.1\n{common}")).body)
        assert "deploymentBase" not in poll["_links"]
        href = poll["_links"]["cancelAction"]["href"].removeprefix(f"http://{wire.host}")
        assert json.loads((await wire.send(f"GET {href} HTTP/1.1\n{common}")).body) == {
            "id": "1",
            "cancelAction": {"stopId": "1"},
        }
        body = b'{"id":"1","status":{"result":{"finished":"success"},"execution":"rejected","details":["Installing"]}}'
        answer = await wire.send(
            f"POST {base}/cancelAction/1/feedback HTTP/1.1\n{common}\nContent-Type: application/json;charset=UTF-8\n"
            f"Content-Length: {len(body)}",
            body,
        )
        assert answer.status == 200
        assert await bench.state() is ExecutionState.IN_PROGRESS


async def test_zephyr_old(tmp_path: Path) -> None:
    """It polls a lower-case tenant, looks for the upper-case one in the download link, and has small buffers."""
    async with a_bench(tmp_path, "frdm_k64f-0B1C") as bench:
        wire, base = bench.wire, "/default/controller/v1/frdm_k64f-0B1C"
        common = f"Host: {wire.host}\nConnection: close\nAuthorization: TargetToken {TOKEN}"
        common = common.replace("Connection: close\n", "")
        answer = await wire.send(f"GET {base} HTTP/1.1\n{common}")
        assert len(answer.body) <= 1100
        poll = json.loads(answer.body)
        assert len(poll["config"]["polling"]["sleep"]) == 8
        href = poll["_links"]["deploymentBase"]["href"]
        tail = href[href.index("deploymentBase/") :]
        assert len(tail) <= 49
        answer = await wire.send(f"GET {base}/{tail} HTTP/1.1\n{common}")
        message = json.loads(answer.body)
        (chunk,) = message["deployment"]["chunks"]
        assert chunk["part"] == "bApp"
        (artifact,) = chunk["artifacts"]
        download = artifact["_links"]["download-http"]["href"]
        place = download.index("/DEFAULT/controller/v1")
        assert len(download[place:]) <= 199
        answer = await wire.send(f"GET {download[place:]} HTTP/1.1\n{common}")
        assert answer.body == image("2.0.0")
        body = b'{"mode":"merge","data":{"VIN":"0B1C","hwRevision":"3"}}'
        answer = await wire.send(
            f"PUT {base}/configData HTTP/1.1\n{common}\nContent-Type: application/json;charset=UTF-8\n"
            f"Content-Length: {len(body)}",
            body,
        )
        assert answer.status == 200
        body = b'{"id":"1","status":{"result":{"finished":"success"},"execution":"closed"}}'
        answer = await wire.send(
            f"POST {base}/deploymentBase/1/feedback HTTP/1.1\n{common}\nContent-Type: application/json;charset=UTF-8\n"
            f"Content-Length: {len(body)}",
            body,
        )
        assert answer.status == 200
        assert await bench.state() is ExecutionState.SUCCEEDED


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_may_come_in_chunks(tmp_path: Path, chunked: bool) -> None:
    async with a_bench(tmp_path, "pump-1") as bench:
        wire, base = bench.wire, "/DEFAULT/controller/v1/pump-1"
        body = b'{"data":{"VIN":"1"}}'
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        answer = await wire.send(
            f"PUT {base}/configData HTTP/1.1\nHost: {wire.host}\nAuthorization: TargetToken {TOKEN}\n{framing}", sent
        )
        assert (answer.status, answer.headers["content-length"]) == (200, "0")
