"""AWS's own SDK, paho, gmqtt and mosquitto's programs go through the whole exchange with a server process.

Each subscribes to what its users subscribe to, hears of the job, reads the file block by block and reports the end.
"""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from flota.client.management import ManagementClient
from flota.lab.local_server import LocalServer
from flota.protocols.aws_streams import Block, StreamFormat, missing_bitmap, pack_block_request, parse_block
from flota.protocols.aws_streams import BlockRequest as Wanted
from flota.trust.keys import PrivateKey
from tests.scenarios.conftest import wait_until
from tests.scenarios.releases import publish

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]

BLOCK_BYTES = 4096
IMAGE = bytes(range(256)) * 150 + b"the end"
WITHIN_S = 20.0
THING = "meter-1"
JOB = "AFR_OTA-spring"
PREFIX = f"$aws/things/{THING}"


@dataclass
class Site:
    """A server with one thing that waits for work."""

    server: LocalServer
    client: ManagementClient
    key: PrivateKey
    token: str

    @property
    def port(self) -> int:
        assert self.server.address.mqtt is not None
        return int(self.server.address.mqtt.rpartition(":")[2])

    def roll_out(self, version: str = "2.0.0") -> int:
        publish(self.client, self.key, "meter", version, IMAGE)
        return self.client.create_rollout(f"meter@{version}", devices=[THING], name="spring").id

    def outcome(self, rollout: int) -> tuple[str, str | None, dict[str, str]]:
        wait_until(lambda: self.client.rollout(rollout).is_final, within_s=WITHIN_S, what="the rollout ends")
        (execution,) = self.client.executions(rollout)
        return execution.state, execution.basis, dict(execution.details)


@pytest.fixture
def site(server: LocalServer, client: ManagementClient, key: PrivateKey) -> Site:
    client.add_type("meter", "generic-linux", signers=[key.public_pem])
    token = client.add_device(THING, "meter").token
    assert token is not None
    return Site(server, client, key, token)


class Messages(Protocol):
    """A connected client of any make."""

    def subscribe(self, topic: str, qos: int) -> None: ...
    def publish(self, topic: str, payload: bytes, qos: int) -> None: ...
    def next(self) -> tuple[str, bytes]: ...


def update_over(device: Messages, site: Site) -> None:
    """Do what the C agent does: notify-next is all that it subscribes to, besides the blocks of its file."""
    device.subscribe(f"{PREFIX}/jobs/notify-next", 1)
    device.publish(f"{PREFIX}/jobs/$next/get", b'{"clientToken":"0:t1"}', 1)
    topic, payload = device.next()
    assert topic == f"{PREFIX}/jobs/$next/get/accepted"
    assert set(json.loads(payload)) == {"clientToken", "timestamp"}
    rollout = site.roll_out()
    topic, payload = device.next()
    assert topic == f"{PREFIX}/jobs/notify-next"
    device.publish(f"{PREFIX}/jobs/$next/get", b'{"clientToken":"1:t1"}', 1)
    topic, payload = device.next()
    assert topic == f"{PREFIX}/jobs/$next/get/accepted"
    execution = json.loads(payload)["execution"]
    assert execution["jobId"] == JOB
    ota = execution["jobDocument"]["afr_ota"]
    stream, size = f"{PREFIX}/streams/{ota['streamname']}", ota["files"][0]["filesize"]
    device.subscribe(f"{stream}/data/cbor", 0)
    assert _download(device, stream, size) == IMAGE
    update = f"{PREFIX}/jobs/{execution['jobId']}/update"
    for report in (
        {"status": "IN_PROGRESS", "statusDetails": {"self_test": "ready", "updatedBy": "0x01000000"}},
        {"status": "SUCCEEDED", "statusDetails": {"reason": "accepted  v2.0.0", "updatedBy": "  v1.0.0"}},
    ):
        device.publish(update, json.dumps(report).encode(), 1)
        topic, payload = device.next()
        if topic == f"{PREFIX}/jobs/notify-next":  # that there is no next job may be told before the answer
            topic, payload = device.next()
        assert topic == f"{update}/accepted", payload
    state, basis, details = site.outcome(rollout)
    assert (state, basis, details["reason"]) == ("SUCCEEDED", "reported", "accepted  v2.0.0")
    wait_until(
        lambda: site.client.device(THING).running_version == "2.0.0", within_s=5, what="its version is known"
    )  # written with other sightings, up to 50 ms after the execution's end


def _download(device: Messages, stream: str, size: int) -> bytes:
    blocks, got = -(-size // BLOCK_BYTES), dict[int, bytes]()
    while len(got) < blocks:
        request = Wanted(0, BLOCK_BYTES, 0, 4, missing_bitmap(got.keys() | set(), blocks), token="rdy")
        device.publish(f"{stream}/get/cbor", pack_block_request(request, StreamFormat.CBOR), 0)
        for _ in range(min(4, blocks - len(got))):
            topic, payload = device.next()
            assert topic == f"{stream}/data/cbor"
            block: Block = parse_block(payload, StreamFormat.CBOR)
            got[block.number] = block.payload
    return b"".join(got[number] for number in range(blocks))


class PahoMessages:
    """paho-mqtt with its own thread."""

    def __init__(self, site: Site) -> None:
        paho = pytest.importorskip("paho.mqtt.client")
        self._arrived: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._granted: queue.Queue[Any] = queue.Queue()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="paho", protocol=paho.MQTTv311)
        self.client.username_pw_set(THING, site.token)
        self.client.on_message = lambda _c, _u, message: self._arrived.put((message.topic, message.payload))
        self.client.on_subscribe = lambda _c, _u, _m, codes, _p: self._granted.put(codes)
        self.client.connect("127.0.0.1", site.port, keepalive=60)
        self.client.loop_start()

    def subscribe(self, topic: str, qos: int) -> None:
        self.client.subscribe(topic, qos)
        (code,) = self._granted.get(timeout=WITHIN_S)
        assert code.value == qos

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        self.client.publish(topic, payload, qos).wait_for_publish(WITHIN_S)

    def next(self) -> tuple[str, bytes]:
        return self._arrived.get(timeout=WITHIN_S)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def test_paho_updates_a_thing(site: Site) -> None:
    device = PahoMessages(site)
    try:
        update_over(device, site)
    finally:
        device.close()


class GmqttMessages:
    """gmqtt on a loop of its own thread."""

    def __init__(self, site: Site, loop: asyncio.AbstractEventLoop) -> None:
        gmqtt = pytest.importorskip("gmqtt")
        self._loop = loop
        self._version = gmqtt.constants.MQTTv311
        self._arrived: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._granted: queue.Queue[int] = queue.Queue()
        self._site = site
        self.client = gmqtt.Client("gmqtt", clean_session=True)
        self.client.set_auth_credentials(THING, site.token)
        self.client.on_message = self._on_message
        self.client.on_subscribe = lambda _c, _mid, qos, _properties: self._granted.put(qos)
        self._run(self.client.connect("127.0.0.1", site.port, version=self._version))

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WITHIN_S)

    async def _on_message(self, _client: Any, topic: str, payload: bytes, _qos: int, _properties: Any) -> int:
        self._arrived.put((topic, payload))
        return 0

    async def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        function(*arguments, **options)

    def subscribe(self, topic: str, qos: int) -> None:
        self._run(self._call(self.client.subscribe, topic, qos=qos))
        self._granted.get(timeout=WITHIN_S)

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        self._run(self._call(self.client.publish, topic, payload, qos=qos))

    def next(self) -> tuple[str, bytes]:
        return self._arrived.get(timeout=WITHIN_S)

    def close(self) -> None:
        self._run(self.client.disconnect())
        self._run(asyncio.sleep(0.1))  # it does not wait for its socket to close


def test_gmqtt_updates_a_thing(site: Site) -> None:
    import threading

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        device = GmqttMessages(site, loop)
        update_over(device, site)
        device.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (make test-deps)")
    return found


def test_mosquittos_programs_update_a_thing(site: Site, tmp_path: Path) -> None:
    """mosquitto_sub hears of it, mosquitto_rr asks, mosquitto_pub reports."""
    login = ["-h", "127.0.0.1", "-p", str(site.port), "-u", THING, "-P", site.token, "-V", "mqttv311"]

    def ask(topic: str, answer: str, payload: str) -> Any:
        """Return the answer that one program gets on the connection that asked."""
        command = [_program("mosquitto_rr"), *login, "-q", "1", "-t", topic, "-e", answer, "-m", payload, "-W", "10"]
        return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=WITHIN_S).stdout)

    sub = [_program("mosquitto_sub"), *login, "-i", "sub", "-q", "1", "-t", f"{PREFIX}/jobs/notify-next", "-C", "1"]
    by_lines = [_program("stdbuf"), "-oL"]
    with subprocess.Popen([*by_lines, *sub, "-W", "60", "-d"], stdout=subprocess.PIPE, text=True) as listening:
        assert listening.stdout is not None
        for line in listening.stdout:
            if "SUBACK" in line or line.startswith("Subscribed"):
                break
        rollout = site.roll_out()
        told = next(line for line in listening.stdout if line.startswith("{"))
        listening.communicate(timeout=WITHIN_S)
    job = json.loads(told)["execution"]["jobId"]
    topic = f"{PREFIX}/jobs/$next/get"
    execution = ask(topic, f"{topic}/accepted", '{"clientToken":"mosquitto"}')["execution"]
    assert execution["jobId"] == job
    ota = execution["jobDocument"]["afr_ota"]
    stream = f"{PREFIX}/streams/{ota['streamname']}"
    content = b""
    for number in range(-(-len(IMAGE) // 16_384)):
        request = json.dumps({"s": 1, "f": 0, "l": 16_384, "o": number, "n": 1})
        block = ask(f"{stream}/get/json", f"{stream}/data/json", request)
        assert (block["i"], block["f"]) == (number, 0)
        content += base64.b64decode(block["p"])
    assert content == IMAGE
    report = '{"status":"SUCCEEDED","statusDetails":{"reason":"by hand"}}'
    pub = [_program("mosquitto_pub"), *login, "-q", "1", "-t", f"{PREFIX}/jobs/{job}/update", "-m", report]
    subprocess.run(pub, check=True, timeout=WITHIN_S)
    state, _, details = site.outcome(rollout)
    assert (state, details["reason"]) == ("SUCCEEDED", "by hand")


@contextmanager
def _sdk_connection(site: Site) -> Iterator[Any]:
    pytest.importorskip("awsiot")
    from awscrt import io, mqtt

    bootstrap = io.ClientBootstrap(io.EventLoopGroup(1), io.DefaultHostResolver(io.EventLoopGroup(1)))
    connection = mqtt.Connection(
        mqtt.Client(bootstrap),
        host_name="127.0.0.1",
        port=site.port,
        client_id="sdk",
        clean_session=True,
        keep_alive_secs=60,
        username=THING,
        password=site.token,
    )
    connection.connect().result(WITHIN_S)
    try:
        yield connection
    finally:
        connection.disconnect().result(WITHIN_S)


def test_awss_sdk_works_through_its_jobs_with_its_first_client(site: Site) -> None:
    """awsiotsdk's `IotJobsClient`: notify, get pending, describe, start-next, update, and a rejection."""
    pytest.importorskip("awsiot")
    from awscrt import mqtt
    from awsiot import iotjobs

    with _sdk_connection(site) as connection:
        jobs = iotjobs.IotJobsClient(connection)
        heard: dict[str, queue.Queue[Any]] = {}

        def listen(name: str, request: Any) -> None:
            heard[name] = queue.Queue()
            done: tuple[Future[Any], str] = getattr(jobs, f"subscribe_to_{name}")(
                request=request, qos=mqtt.QoS.AT_LEAST_ONCE, callback=heard[name].put
            )
            done[0].result(WITHIN_S)

        def heard_of(name: str) -> Any:
            return heard[name].get(timeout=WITHIN_S)

        listen("job_executions_changed_events", iotjobs.JobExecutionsChangedSubscriptionRequest(thing_name=THING))
        listen(
            "next_job_execution_changed_events", iotjobs.NextJobExecutionChangedSubscriptionRequest(thing_name=THING)
        )
        pending = iotjobs.GetPendingJobExecutionsSubscriptionRequest(thing_name=THING)
        listen("get_pending_job_executions_accepted", pending)
        start = iotjobs.StartNextPendingJobExecutionSubscriptionRequest(thing_name=THING)
        listen("start_next_pending_job_execution_accepted", start)
        describe = iotjobs.DescribeJobExecutionSubscriptionRequest(thing_name=THING, job_id="$next")
        listen("describe_job_execution_accepted", describe)
        rollout = site.roll_out()
        changed = heard_of("job_executions_changed_events")
        assert [one.job_id for one in changed.jobs["QUEUED"]] == [JOB]
        told = heard_of("next_job_execution_changed_events").execution
        qos = mqtt.QoS.AT_LEAST_ONCE
        jobs.publish_get_pending_job_executions(
            iotjobs.GetPendingJobExecutionsRequest(thing_name=THING, client_token="p"), qos
        ).result(WITHIN_S)
        listed = heard_of("get_pending_job_executions_accepted")
        assert (listed.client_token, [one.job_id for one in listed.queued_jobs]) == ("p", [told.job_id])
        jobs.publish_describe_job_execution(
            iotjobs.DescribeJobExecutionRequest(thing_name=THING, job_id="$next", include_job_document=True), qos
        ).result(WITHIN_S)
        found = heard_of("describe_job_execution_accepted").execution
        assert found.job_document["afr_ota"]["files"][0]["filesize"] == len(IMAGE)
        jobs.publish_start_next_pending_job_execution(
            iotjobs.StartNextPendingJobExecutionRequest(
                thing_name=THING, status_details={"step": "one"}, step_timeout_in_minutes=5
            ),
            qos,
        ).result(WITHIN_S)
        started = heard_of("start_next_pending_job_execution_accepted").execution
        assert (started.status, started.version_number, started.status_details) == ("IN_PROGRESS", 2, {"step": "one"})
        update = iotjobs.UpdateJobExecutionSubscriptionRequest(thing_name=THING, job_id=started.job_id)
        listen("update_job_execution_accepted", update)
        listen("update_job_execution_rejected", update)
        for expected in (1, 2):
            jobs.publish_update_job_execution(
                iotjobs.UpdateJobExecutionRequest(
                    thing_name=THING,
                    job_id=started.job_id,
                    status=iotjobs.JobStatus.SUCCEEDED,
                    expected_version=expected,
                    include_job_execution_state=True,
                ),
                qos,
            ).result(WITHIN_S)
        assert heard_of("update_job_execution_rejected").code == "VersionMismatch"
        accepted = heard_of("update_job_execution_accepted").execution_state
        assert (accepted.status, accepted.version_number) == ("SUCCEEDED", 3)
        assert heard_of("next_job_execution_changed_events").execution is None
    assert site.outcome(rollout)[0] == "SUCCEEDED"
