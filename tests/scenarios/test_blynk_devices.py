"""paho-mqtt as a Blynk device against a real `flota up`: uploaded and shipped by the shipment API, signed apart."""

from __future__ import annotations

import base64
import hashlib
import json
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from flota.client.management import ManagementClient
from flota.images.blynk_tag import pack_tag
from flota.lab.local_server import LocalServer
from flota.trust.keys import PrivateKey
from tests.scenarios.conftest import wait_until

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]

PRODUCT = "TMPLabcd1234"
DOUBLE, SINGLE = "TMPLdouble01", "TMPLsingle01"
OLD = ("1.2.3", "Nov 16 2023 20:35:55")
NEW = ("1.2.4", "Jan  5 2024 10:00:00")
WITHIN_S = 20.0
API = "/blynk/api/v1/organization"


PERIOD_MS = 6000
"""Long enough for three broken downloads and a look at what became of them."""


def image(version: str, build: str, *, product: str = PRODUCT) -> bytes:
    tag = pack_tag([("mcu", version), ("fw-type", product), ("build", build), ("blynk", "0.6.4")])
    return bytes(range(256)) * 1600 + tag


class Device:
    """A device with the vendor's MQTT habits: user `device`, clean session, `info/mcu` first, nothing subscribed."""

    def __init__(self, server: LocalServer, token: str, firmware: tuple[str, str], *, product: str = PRODUCT) -> None:
        self.offers: queue.Queue[Any] = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="", protocol=paho.MQTTv311)
        self.client.username_pw_set("device", token)
        self.client.on_message = lambda _c, _u, message: self.offers.put((message.topic, message.qos, message.payload))
        assert server.address.mqtt is not None
        self.client.connect("127.0.0.1", int(server.address.mqtt.rpartition(":")[2]), keepalive=45)
        self.client.loop_start()
        told = {"tmpl": product, "ver": firmware[0], "build": firmware[1], "type": product, "rxbuff": 1024}
        self.client.publish("info/mcu", json.dumps(told)).wait_for_publish(WITHIN_S)

    def message(self) -> tuple[str, int, bytes]:
        topic, qos, payload = self.offers.get(timeout=WITHIN_S)
        return topic, qos, payload

    def offer(self) -> dict[str, Any]:
        topic, qos, payload = self.message()
        assert (topic, qos) == ("downlink/ota/json", 0)
        told: dict[str, Any] = json.loads(payload)
        return told

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@dataclass
class Site:
    server: LocalServer
    client: ManagementClient
    key: PrivateKey
    http: httpx.Client
    tokens: dict[str, str]

    def ask(self, method: str, path: str, status: int = 200, **request: Any) -> Any:
        answer = self.http.request(method, path, **request)
        assert answer.status_code == status, answer.text
        return answer.json()

    def upload(self, data: bytes, name: str = "firmware.bin") -> Any:
        return self.ask("POST", "/blynk/api/upload", data={"type": "FIRMWARE"}, files={"upfile": (name, data)})

    def sign(self, release: int) -> None:
        signature = self.key.sign(self.client.manifest(release))
        text = base64.b64encode(signature.signature).decode()
        self.client.add_signature(release, signature.key_id, signature.algorithm, text)
        self.client.publish(release)

    def order(self, uploaded: Any, title: str, **more: Any) -> dict[str, Any]:
        devices = [self.client.device(name).id for name in ("mill-1", "mill-2")]
        (product,) = (one.id for one in self.client.list_types() if one.name == PRODUCT)
        return {
            "productId": product,
            "title": title,
            "pathToFirmware": uploaded["path"],
            "firmwareOriginalFileName": "firmware.bin",
            "firmwareInfo": uploaded["firmwareInfo"],
            "deviceIds": devices,
            **more,
        }

    def flota(self, *arguments: str, status: int = 0) -> str:
        environment = {"FLOTA_SERVER": self.server.address.http, "FLOTA_TOKEN": self.server.address.token}
        command = [sys.executable, "-m", "flota", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    def shipment(self, number: int) -> Any:
        return self.ask("GET", f"{API}/shipment?shipmentId={number}")


DEVICES = {"mill-1": PRODUCT, "mill-2": PRODUCT, "press-1": DOUBLE, "lathe-1": SINGLE}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One server for all tests here: each has devices and titles of its own."""
    server, key, tokens = LocalServer(tmp_path_factory.mktemp("blynk") / "server"), PrivateKey.generate("p256"), {}
    server.start()
    try:
        headers = {"authorization": f"Bearer {server.address.token}"}
        with server.client() as client, httpx.Client(base_url=server.address.http, headers=headers) as http:
            for product, board in ((PRODUCT, "dual-mcu-ab"), (DOUBLE, "dual-mcu-ab"), (SINGLE, "dual-mcu-ncp")):
                client.add_type(product, board, signers=[key.public_pem])
            for name, product in DEVICES.items():
                token = client.add_device(name, product).token
                assert token is not None
                tokens[name] = token
            yield Site(server, client, key, http, tokens)
    finally:
        server.kill()


def test_a_shipment_reaches_devices_that_are_connected_and_devices_that_come_later(site: Site) -> None:
    uploaded = site.upload(image(*NEW))
    assert uploaded["firmwareInfo"]["version"] == NEW[0]
    assert uploaded["firmwareInfo"]["fwType"] == PRODUCT
    assert uploaded["release"]["state"] == "draft"
    refused = site.ask("POST", f"{API}/shipment/create", 422, json=site.order(uploaded, "spring"))
    assert f"flota release sign {uploaded['release']['id']}" in refused["error"]["message"]
    site.sign(uploaded["release"]["id"])

    first = Device(site.server, site.tokens["mill-1"], OLD)
    made = site.ask("POST", f"{API}/shipment/create", json=site.order(uploaded, "spring"))
    assert (made["status"], made["attemptsLimit"], made["compareField"]) == ("RUN", 3, "BUILD_DATE_DIFFERS")
    offer = first.offer()
    assert (offer["size"], offer["type"], offer["ver"], offer["build"]) == (len(image(*NEW)), PRODUCT, *NEW)
    fetch_and_check(offer)
    first.close()
    again = Device(site.server, site.tokens["mill-1"], NEW)

    second = Device(site.server, site.tokens["mill-2"], OLD)
    fetch_and_check(second.offer())
    second.close()
    wait_until(
        lambda: site.shipment(made["id"])["shipmentProgress"]["firmwareUploaded"] == 1,
        within_s=WITHIN_S,
        what="the file counts as handed over",
    )
    assert site.shipment(made["id"])["status"] == "RUN", "that it was downloaded is no success"
    second = Device(site.server, site.tokens["mill-2"], NEW)
    wait_until(lambda: site.shipment(made["id"])["status"] == "FINISH", within_s=WITHIN_S, what="the shipment finishes")
    finished = site.shipment(made["id"])
    assert finished["shipmentProgress"]["success"] == 2
    assert finished["finishedAt"] > finished["startedAt"]
    again.close()
    second.close()

    back = Device(site.server, site.tokens["mill-2"], OLD)
    wait_until(
        lambda: site.shipment(made["id"])["shipmentProgress"]["rollback"] == 1,
        within_s=WITHIN_S,
        what="old, new, old is a rollback",
    )
    back.close()
    shown = site.client.shipment(made["id"])
    assert {one.device: one.status for one in shown.devices} == {"mill-1": "success", "mill-2": "rollback"}
    text = site.flota("rollout", "show", "spring", "--as", "shipment")
    assert "FINISH" in text
    assert "1 success, 1 rollback" in text
    assert "BUILD_DATE_DIFFERS, same firmware type, 3 attempts in 24 h, whenever the type allows" in text
    told = json.loads(site.flota("rollout", "show", "spring", "--as", "shipment", "--json"))
    assert told["progress"] == shown.progress
    assert site.ask("DELETE", f"{API}/shipment?shipmentId={made['id']}") == {}
    assert site.ask("GET", f"{API}/shipments") == []


def fetch_and_check(offer: dict[str, Any]) -> None:
    """Fetch as the vendor's client does, broken off once and gone on with."""
    data = image(*NEW)
    part = httpx.get(offer["url"], headers={"range": "bytes=1000-1999"})
    assert (part.status_code, part.content) == (206, data[1000:2000])
    whole = httpx.get(offer["url"])
    assert whole.status_code == 200
    assert whole.headers["content-length"] == str(len(data))
    assert base64.b64decode(whole.headers["x-sha256"]) == hashlib.sha256(whole.content).digest()
    assert whole.headers["x-md5"] == hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert (whole.headers["x-fw-type"], whole.headers["x-fw-ver"], whole.headers["x-fw-build"]) == (PRODUCT, *NEW)
    assert whole.content == data


def test_an_operator_has_a_device_restart_answer_and_connect_elsewhere(site: Site) -> None:
    assert "not connected" in site.flota("device", "ping", "mill-1", status=1)
    device = Device(site.server, site.tokens["mill-1"], OLD)
    assert "sent to mill-1: restart" in site.flota("device", "reboot", "mill-1")
    assert device.message() == ("downlink/reboot", 0, b"")
    answered = site.client.ping_device("mill-1")
    assert answered.answered, "paho acknowledges by itself, as every MQTT client does"
    assert device.message() == ("downlink/ping", 1, b"")
    site.client.redirect_device("mill-1", "updates-2.example.net:8883")
    assert device.message() == ("downlink/redirect", 0, b"updates-2.example.net:8883")
    device.close()


def test_r12_over_the_whole_path_three_broken_downloads_reach_the_limit_and_after_the_period_it_is_tried_again(
    site: Site,
) -> None:
    """For both strategies at once: a device type of each, an NCP of each with the vendor's MQTT habits."""
    shipments, devices = {}, {}
    for name in ("press-1", "lathe-1"):
        product = DEVICES[name]
        uploaded = site.upload(image(*NEW, product=product), f"{name}.bin")
        site.sign(uploaded["release"]["id"])
        order = site.order(uploaded, f"{name} in spring", attemptsLimit=3, attemptResetPeriodMs=PERIOD_MS)
        numbers = {one.name: one.id for one in site.client.list_types()}
        order |= {"productId": numbers[product], "deviceIds": [site.client.device(name).id]}
        devices[name] = Device(site.server, site.tokens[name], OLD, product=product)
        shipments[name] = site.ask("POST", f"{API}/shipment/create", json=order)["id"]

    def count(name: str, counter: str) -> Callable[[], bool]:
        return lambda: site.shipment(shipments[name])["shipmentProgress"][counter] == 1

    for name, device in devices.items():
        offer = device.offer()
        for _ in range(3):
            break_off(offer["url"])
        wait_until(count(name, "downloadLimitReached"), within_s=WITHIN_S, what="three broken downloads are the limit")
        refused = httpx.get(offer["url"])
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= PERIOD_MS // 1000
        assert site.shipment(shipments[name])["status"] == "RUN"
    for name, device in devices.items():
        product = DEVICES[name]
        whole = httpx.get(device.offer()["url"])
        assert whole.content == image(*NEW, product=product)
        device.close()
        devices[name] = Device(site.server, site.tokens[name], NEW, product=product)
    for name, device in devices.items():
        wait_until(count(name, "success"), within_s=WITHIN_S, what="it reports the new firmware")
        device.close()


def break_off(url: str) -> None:
    """Ask for the file from its first byte, and go away before its last."""
    with httpx.Client() as client, client.stream("GET", url) as answer:
        assert answer.status_code == 200
        next(answer.iter_raw(1024))
