"""mosquitto beside a server process: things updated over it, and a bridge to it for what they tell besides."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flota.client.management import ManagementClient
from flota.lab.local_server import LocalServer
from flota.lab.running_fleet import free_port
from flota.protocols.aws_broker_rules import mosquitto_acl
from flota.protocols.aws_streams import BlockRequest, StreamFormat, missing_bitmap, pack_block_request, parse_block
from flota.trust.keys import PrivateKey
from tests.scenarios.conftest import wait_until
from tests.scenarios.releases import publish

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]

THING, OTHER = "meter-1", "meter-2"
PREFIX = f"$aws/things/{THING}"
BLOCK_BYTES = 4096
IMAGE = bytes(range(256)) * 150 + b"the end"
WITHIN_S = 20.0
PASSWORD = "of-nobody-else"


def program(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        pytest.skip(f"{name} is not installed (make test-deps)")
    return found


@dataclass
class Mosquitto:
    """A mosquitto with users, and the rules that `flota mqtt acl` prints."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            command = [program("mosquitto"), "-c", str(self.directory / "mosquitto.conf")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._listens, within_s=10, what="mosquitto listens")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def url(self, user: str) -> str:
        return f"mqtt://{user}:{PASSWORD}@127.0.0.1:{self.port}"

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
            return True
        return False


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    directory = tmp_path / "mosquitto"
    directory.mkdir(mode=0o755)
    made = Mosquitto(directory, free_port("127.0.0.1"))
    passwords = directory / "passwords"
    passwords.touch(mode=0o600)
    for user in (THING, OTHER, "flota", "plant"):
        subprocess.run([program("mosquitto_passwd"), "-b", str(passwords), user, PASSWORD], check=True)
    rules = mosquitto_acl("flota") + "\nuser plant\ntopic readwrite plant/#\n"
    (directory / "acl").write_text(rules)
    (directory / "acl").chmod(0o600)
    (directory / "mosquitto.conf").write_text(
        f"listener {made.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n"
        f"acl_file {directory}/acl\nset_tcp_nodelay true\nmax_inflight_messages 0\nuser root\n"
    )
    made.start()
    yield made
    made.stop()


class Client:
    """paho-mqtt, which connects again by itself."""

    def __init__(self, port: int, user: str, password: str, *topics: str) -> None:
        paho = pytest.importorskip("paho.mqtt.client")
        self.arrived: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._granted: queue.Queue[Any] = queue.Queue()
        self._topics = list(topics)
        self._is_connected = threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=f"{user}-device", protocol=paho.MQTTv311)
        self.client.username_pw_set(user, password)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = self._connected
        self.client.on_message = lambda _c, _u, message: self.arrived.put((message.topic, message.payload))
        self.client.on_subscribe = lambda _c, _u, _m, codes, _p: self._granted.put(codes)
        self.client.connect("127.0.0.1", port, keepalive=60)
        self.client.loop_start()
        assert self._is_connected.wait(WITHIN_S)
        for _ in topics:
            self._granted.get(timeout=WITHIN_S)

    def _connected(self, client: Any, *_: Any) -> None:
        for topic in self._topics:
            client.subscribe(topic, 1)
        self._is_connected.set()

    def subscribe(self, topic: str) -> Any:
        self._topics.append(topic)
        self.client.subscribe(topic, 1)
        (code,) = self._granted.get(timeout=WITHIN_S)
        return code

    def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> Any:
        return self.client.publish(topic, payload, qos, retain)

    def next(self, within_s: float = WITHIN_S) -> tuple[str, bytes]:
        return self.arrived.get(timeout=within_s)

    def hears_nothing(self, within_s: float = 0.5) -> bool:
        try:
            self.arrived.get(timeout=within_s)
        except queue.Empty:
            return True
        return False

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@contextlib.contextmanager
def started(tmp_path: Path, *options: str, mqtt: bool) -> Iterator[LocalServer]:
    server = LocalServer(tmp_path / "server", options=options, https=False, mqtt=mqtt)
    server.start()
    try:
        yield server
    finally:
        server.kill()


# broker mode


@pytest.fixture
def responder(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[LocalServer]:
    with started(tmp_path, "--mqtt-broker", mosquitto.url("flota"), mqtt=False) as server:
        yield server


def add_thing(client: ManagementClient, key: PrivateKey) -> str:
    client.add_type("meter", "generic-linux", signers=[key.public_pem])
    token = client.add_device(THING, "meter").token
    assert token is not None
    return token


def ask(device: Client, stream: str, got: dict[int, bytes], blocks: int) -> None:
    request = BlockRequest(0, BLOCK_BYTES, 0, 2, missing_bitmap(set(got), blocks), token="rdy")
    device.publish(f"{stream}/get/cbor", pack_block_request(request, StreamFormat.CBOR), 0)
    with contextlib.suppress(queue.Empty):
        for _ in range(min(2, blocks - len(got))):
            topic, payload = device.next(2)
            if topic == f"{stream}/data/cbor":
                block = parse_block(payload, StreamFormat.CBOR)
                got[block.number] = block.payload


def test_a_thing_updates_over_mosquitto_which_is_restarted_in_mid_stream(
    responder: LocalServer, mosquitto: Mosquitto, key: PrivateKey
) -> None:
    notify = f"{PREFIX}/jobs/notify-next"
    device = Client(mosquitto.port, THING, PASSWORD, notify)
    other = Client(mosquitto.port, OTHER, PASSWORD, f"{PREFIX}/jobs/#", f"{PREFIX}/streams/#")
    try:
        with responder.client() as client:
            add_thing(client, key)
            wait_until(lambda: _is_answered(device), within_s=WITHIN_S, what="the responder knows the thing")
            publish(client, key, "meter", "2.0.0", IMAGE)
            rollout = client.create_rollout("meter@2.0.0", devices=[THING], name="to-2").id
            topic, payload = device.next()
            assert topic == notify
            execution = json.loads(payload)["execution"]
            device.publish(f"{PREFIX}/jobs/$next/get", b'{"clientToken":"1:t1"}')
            topic, payload = device.next()
            assert (topic, json.loads(payload)["execution"]["jobId"]) == (notify, execution["jobId"])
            ota = execution["jobDocument"]["afr_ota"]
            stream, size = f"{PREFIX}/streams/{ota['streamname']}", ota["files"][0]["filesize"]
            device.subscribe(f"{stream}/data/cbor")
            blocks, got = -(-size // BLOCK_BYTES), dict[int, bytes]()
            while len(got) < blocks // 2:
                ask(device, stream, got, blocks)
            mosquitto.stop()
            mosquitto.start()
            deadline = time.monotonic() + 45
            while len(got) < blocks and time.monotonic() < deadline:
                ask(device, stream, got, blocks)
            assert b"".join(got[number] for number in range(blocks)) == IMAGE
            for status in ("IN_PROGRESS", "SUCCEEDED"):
                device.publish(f"{PREFIX}/jobs/{execution['jobId']}/update", json.dumps({"status": status}).encode())
            wait_until(lambda: client.rollout(rollout).is_final, within_s=WITHIN_S, what="the rollout ends")
            (ended,) = client.executions(rollout)
            assert (ended.state, ended.basis) == ("SUCCEEDED", "reported")
        other.publish(f"{PREFIX}/jobs/$next/get", b'{"clientToken":"of somebody else"}')
        assert other.hears_nothing()
    finally:
        device.close()
        other.close()


def _is_answered(device: Client) -> bool:
    device.publish(f"{PREFIX}/jobs/$next/get", b'{"clientToken":"0:t1"}')
    with contextlib.suppress(queue.Empty):
        return json.loads(device.next(0.5)[1]).get("clientToken") == "0:t1"
    return False


def test_a_job_that_came_while_no_server_was_there_is_told_at_its_start(
    tmp_path: Path, responder: LocalServer, mosquitto: Mosquitto, key: PrivateKey
) -> None:
    with responder.client() as client:
        add_thing(client, key)
        publish(client, key, "meter", "2.0.0", IMAGE)
        client.create_rollout("meter@2.0.0", devices=[THING], name="to-2")
    responder.kill()
    device = Client(mosquitto.port, THING, PASSWORD, f"{PREFIX}/jobs/notify-next")
    try:
        responder.start()
        device.publish(f"{PREFIX}/jobs/get", b"{}")
        _, payload = device.next()
        assert json.loads(payload)["execution"]["jobDocument"]["afr_ota"]["files"][0]["filesize"] == len(IMAGE)
    finally:
        device.close()


# the bridge


def test_what_a_thing_tells_goes_to_another_broker_and_back_by_the_rules(
    tmp_path: Path, mosquitto: Mosquitto, key: PrivateKey
) -> None:
    options = [
        *("--mqtt-bridge", mosquitto.url("plant")),
        *("--mqtt-bridge-rule", "out:telemetry/{thing}/=plant/telemetry/{thing}/"),
        *("--mqtt-bridge-rule", "{thing}/=plant/things/{thing}/"),
        *("--mqtt-bridge-rule", "in:news/=plant/news/"),
    ]
    plant = Client(mosquitto.port, "plant", PASSWORD, "plant/telemetry/#")
    plant.publish("plant/news/today", b"kept there", retain=True)
    devices: list[Client] = []
    with started(tmp_path, *options, mqtt=True) as server:
        with server.client() as client:
            token = add_thing(client, key)
        assert server.address.mqtt is not None
        port = int(server.address.mqtt.rpartition(":")[2])
        device = Client(port, THING, token)
        devices.append(device)
        wait_until(lambda: "mqtt_upstream.connected" in server.log_path.read_text(), within_s=10, what="the bridge")
        assert device.subscribe(f"{THING}/orders/#").value == 1
        assert device.subscribe(f"{OTHER}/orders/#").value == 128
        assert device.subscribe("telemetry/#").value == 128
        assert device.subscribe("news/today").value == 1
        assert device.next() == ("news/today", b"kept there")
        device.publish(f"telemetry/{THING}/heat", b"21.5")
        assert plant.next() == (f"plant/telemetry/{THING}/heat", b"21.5")
        device.publish(f"telemetry/{OTHER}/heat", b"forged")
        device.publish("news/today", b"forged")
        assert plant.hears_nothing()
        plant.publish(f"plant/things/{THING}/orders/valve", b"open")
        assert device.next() == (f"{THING}/orders/valve", b"open")
        mosquitto.stop()
        device.publish(f"telemetry/{THING}/heat", b"while it was away", retain=True).wait_for_publish(WITHIN_S)
        mosquitto.start()
        assert plant.next() == (f"plant/telemetry/{THING}/heat", b"while it was away")
        wait_until(lambda: _hears(plant, device), within_s=WITHIN_S, what="the bridge subscribes again")
    for one in (plant, *devices):
        one.close()


def _hears(plant: Client, device: Client) -> bool:
    plant.publish(f"plant/things/{THING}/orders/valve", b"close")
    with contextlib.suppress(queue.Empty):
        while True:
            if device.next(0.5) == (f"{THING}/orders/valve", b"close"):
                return True
    return False
