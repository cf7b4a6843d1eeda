"""Clients of other hands against a real `flota up`: paho, gmqtt, mosquitto's and AWS's, each to the end of a job."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gmqtt
import paho.mqtt.client as paho
import pytest
from awsiot import iotjobs
from gmqtt.mqtt.constants import MQTTv311

from flota.lab.local_server import LocalServer
from flota.protocols.aws_streams import BlockRequest, StreamFormat, pack_block_request, parse_block
from tests.scenarios.conftest import wait_until
from tests.server.programs import find_program

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(180)]

WAIT_S = 30.0
THINGS = ("paho", "gmqtt", "mosquitto", "aws")
IMAGE = b"an image " * 2000
BLOCK_SIZE = 4096
BLOCKS = -(-len(IMAGE) // BLOCK_SIZE)


@dataclass(frozen=True)
class Site:
    """A server with one thing and one job for each client."""

    server: LocalServer
    data: Path

    @property
    def mqtt(self) -> tuple[str, int]:
        return _address(self.server.address.mqtt)

    def flota(self, *arguments: str | Path) -> str:
        environment = {
            "FLOTA_DATA": str(self.data),
            "FLOTA_KEYS": str(self.data.parent / "keys"),
            "HOME": str(self.data),
        }
        command = [sys.executable, "-m", "flota", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def has_job(self, thing: str) -> bool:
        with self.server.client() as client:
            return bool(client.device_executions(thing))

    def outcome(self, thing: str) -> str:
        with self.server.client() as client:
            (execution,) = client.device_executions(thing)
            return str(execution.state)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("mqtt")
    file = directory / "image.bin"
    file.write_bytes(IMAGE)
    with LocalServer(directory / "data", options=["--no-gateway"], https=False) as server:
        site = Site(server, directory / "data")
        site.flota("key", "create", "release")
        site.flota("key", "create", "code", "--code-signing", "--subject", "test")
        with server.client() as client:
            for name in THINGS:
                client.add_device(name, "aws-reference", token=_secret(name))
        keys = ["--key", "release", "--code-key", "code", "--trust-key", "--no-wait"]
        site.flota("ship", file, "--type", "aws-reference", "--version", "2.0.0", "--to", "all", *keys)
        # these clients ask once, and wait for no announcement: the job is to be there before they do
        wait_until(lambda: all(map(site.has_job, THINGS)), within_s=WAIT_S, what="a job for each thing")
        yield site


def _secret(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:40]


def _address(url: str | None) -> tuple[str, int]:
    assert url is not None
    host, _, port = url.partition("://")[2].rpartition(":")
    return host, int(port)


def _jobs(thing: str) -> str:
    return f"$aws/things/{thing}/jobs"


def _stream_of(payload: bytes) -> tuple[str, str]:
    """Return job id and stream id of what `$next/get` answered."""
    execution = json.loads(payload)["execution"]
    return execution["jobId"], execution["jobDocument"]["afr_ota"]["streamname"]


def _request() -> bytes:
    return pack_block_request(BlockRequest(0, BLOCK_SIZE, 0, BLOCKS, token="rdy"), StreamFormat.CBOR)


def _file_of(payloads: list[bytes]) -> bytes:
    blocks = [parse_block(payload, StreamFormat.CBOR) for payload in payloads]
    assert [block.number for block in blocks] == list(range(BLOCKS)), "ascending, each once"
    return b"".join(block.payload for block in blocks)


DONE = json.dumps({"status": "SUCCEEDED", "statusDetails": {"reason": "accepted  v2.0.0"}}).encode()


class Exchange:
    """What a client does that subscribes to nothing but the announcements, as the C agent: get, blocks, update."""

    def __init__(self, thing: str, publish: Callable[[str, bytes], object]) -> None:
        self.thing, self.publish = thing, publish
        self.blocks: list[bytes] = []
        self.ended: Future[bytes] = Future()
        self.job = ""

    def begin(self) -> None:
        self.publish(f"{_jobs(self.thing)}/$next/get", b'{"clientToken":"0:t"}')

    def heard(self, topic: str, payload: bytes) -> None:
        if topic == f"{_jobs(self.thing)}/$next/get/accepted":
            self.job, stream = _stream_of(payload)
            self.publish(f"$aws/things/{self.thing}/streams/{stream}/get/cbor", _request())
        elif topic.endswith("/data/cbor"):
            self.blocks.append(payload)
            if len(self.blocks) == BLOCKS:
                self.publish(f"{_jobs(self.thing)}/{self.job}/update", DONE)
        elif topic.endswith("/update/accepted"):
            self.ended.set_result(payload)
        elif not topic.endswith(("/notify", "/notify-next")):
            self.ended.set_exception(AssertionError(f"{topic}: {payload!r}"))


def test_paho_goes_through_a_whole_update(site: Site) -> None:
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="paho", protocol=paho.MQTTv311)
    client.username_pw_set("paho", _secret("paho"))
    exchange = Exchange("paho", lambda topic, payload: client.publish(topic, payload, qos=1))
    client.on_message = lambda _client, _data, message: exchange.heard(message.topic, message.payload)
    client.on_connect = lambda *_: client.subscribe(f"{_jobs('paho')}/notify-next", 1)
    client.on_subscribe = lambda *_: exchange.begin()
    client.connect(*site.mqtt, keepalive=60)
    client.loop_start()
    try:
        exchange.ended.result(WAIT_S)
    finally:
        client.disconnect()
        client.loop_stop()
    assert _file_of(exchange.blocks) == IMAGE
    assert site.outcome("paho") == "SUCCEEDED"


async def test_gmqtt_goes_through_a_whole_update(site: Site) -> None:
    client = gmqtt.Client("gmqtt")
    client.set_auth_credentials("gmqtt", _secret("gmqtt"))
    exchange = Exchange("gmqtt", lambda topic, payload: client.publish(topic, payload, qos=1))

    def heard(_client: Any, topic: str, payload: bytes, _qos: int, _properties: Any) -> int:
        exchange.heard(topic, payload)
        return 0

    client.on_message = heard
    client.on_subscribe = lambda *_: exchange.begin()
    await client.connect(*site.mqtt, version=MQTTv311, keepalive=60)
    client.subscribe(f"{_jobs('gmqtt')}/notify-next", qos=1)
    await asyncio.wait_for(asyncio.wrap_future(exchange.ended), WAIT_S)
    await client.disconnect()
    assert _file_of(exchange.blocks) == IMAGE
    assert await asyncio.to_thread(site.outcome, "gmqtt") == "SUCCEEDED"


@pytest.mark.program
async def test_mosquitto_pub_and_sub_go_through_a_whole_update(site: Site) -> None:
    """`mosquitto_rr` publishes and waits for the answer; one that subscribes gets each answer once."""
    find_program("mosquitto_rr")
    jobs = _jobs("mosquitto")
    answer = await _ask(site, f"{jobs}/$next/get", f"{jobs}/$next/get/accepted", b"{}")
    job, stream = _stream_of(answer)
    streams = f"$aws/things/mosquitto/streams/{stream}"
    request = pack_block_request(BlockRequest(0, BLOCK_SIZE, 0, BLOCKS), StreamFormat.JSON)
    described = await _ask(site, f"{streams}/describe/json", f"{streams}/description/json", b"{}")
    assert json.loads(described)["r"] == [{"f": 0, "z": len(IMAGE)}]
    first = await _ask(site, f"{streams}/get/json", f"{streams}/data/json", request)
    assert parse_block(first, StreamFormat.JSON).payload == IMAGE[:BLOCK_SIZE]
    assert json.loads(await _ask(site, f"{jobs}/{job}/update", f"{jobs}/{job}/update/accepted", DONE))["timestamp"]
    assert await asyncio.to_thread(site.outcome, "mosquitto") == "SUCCEEDED"


@pytest.mark.program
async def test_mosquitto_sub_reaches_its_own_topics_and_no_other(site: Site) -> None:
    for topic, code in ((f"{_jobs('mosquitto')}/#", 1), (f"{_jobs('paho')}/#", 128), ("#", 128)):
        async with _program(site, "mosquitto_sub", "-t", topic, "-d", "-E") as process:
            output, _ = await process.communicate()
        assert f"Subscribed (mid: 1): {code}".encode() in output, (topic, output)


async def _ask(site: Site, topic: str, answered_on: str, payload: bytes) -> bytes:
    message = ("-m", payload.decode(), "-N", "-W", "20")
    async with _program(site, "mosquitto_rr", "-t", topic, "-e", answered_on, *message) as process:
        output, _ = await process.communicate()
    assert process.returncode == 0, output
    return output


@contextlib.asynccontextmanager
async def _program(site: Site, name: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    host, port = site.mqtt
    who = [
        "-u",
        "mosquitto",
        "-P",
        _secret("mosquitto"),
        "-i",
        f"{name}-{arguments[1][-12:]}",
        "-V",
        "mqttv311",
        "-q",
        "1",
    ]
    process = await asyncio.create_subprocess_exec(
        find_program(name), "-h", host, "-p", str(port), *who, *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()


def test_awsiotsdk_jobs_client_goes_through_a_whole_update(site: Site) -> None:
    """AWS's V1 jobs client subscribes to the answers first; it gets each of them once."""
    from awscrt import mqtt

    host, port = site.mqtt
    bootstrap = mqtt.Client()
    link = mqtt.Connection(
        bootstrap, host, port, client_id="aws", username="aws", password=_secret("aws"), keep_alive_secs=60
    )
    link.connect().result(WAIT_S)
    try:
        jobs = iotjobs.IotJobsClient(link)
        seen: list[Any] = []
        started: Future[Any] = Future()
        updated: Future[Any] = Future()

        def on_started(answer: Any) -> None:
            seen.append(answer)
            if not started.done():
                started.set_result(answer)

        subscription = iotjobs.StartNextPendingJobExecutionSubscriptionRequest(thing_name="aws")
        for subscribe, callback in (
            (jobs.subscribe_to_start_next_pending_job_execution_accepted, on_started),
            (jobs.subscribe_to_start_next_pending_job_execution_rejected, started.set_exception),
        ):
            ready, _ = subscribe(subscription, mqtt.QoS.AT_LEAST_ONCE, callback)
            ready.result(WAIT_S)
        request = iotjobs.StartNextPendingJobExecutionRequest(thing_name="aws")
        jobs.publish_start_next_pending_job_execution(request, mqtt.QoS.AT_LEAST_ONCE).result(WAIT_S)
        execution = started.result(WAIT_S).execution
        assert execution.status == "IN_PROGRESS"
        assert execution.job_document["afr_ota"]["files"][0]["filesize"] == len(IMAGE)
        about = iotjobs.UpdateJobExecutionSubscriptionRequest(thing_name="aws", job_id=execution.job_id)
        ready, _ = jobs.subscribe_to_update_job_execution_accepted(about, mqtt.QoS.AT_LEAST_ONCE, updated.set_result)
        ready.result(WAIT_S)
        update = iotjobs.UpdateJobExecutionRequest(
            thing_name="aws", job_id=execution.job_id, status="SUCCEEDED", expected_version=execution.version_number
        )
        jobs.publish_update_job_execution(update, mqtt.QoS.AT_LEAST_ONCE).result(WAIT_S)
        assert updated.result(WAIT_S).timestamp is not None
        assert len(seen) == 1, "an answer came twice"
    finally:
        link.disconnect().result(WAIT_S)
    assert site.outcome("aws") == "SUCCEEDED"
