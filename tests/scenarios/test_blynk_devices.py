"""paho-mqtt as a Blynk device against a real `flota up`: uploaded and shipped by the shipment API, signed apart."""

from __future__ import annotations

import base64
import hashlib
import json
import queue
import subprocess
import sys
from collections.abc import Iterator
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
OLD = ("1.2.3", "Nov 16 2023 20:35:55")
NEW = ("1.2.4", "Jan  5 2024 10:00:00")
WITHIN_S = 20.0
API = "/blynk/api/v1/organization"


def image(version: str, build: str) -> bytes:
    tag = pack_tag([("mcu", version), ("fw-type", PRODUCT), ("build", build), ("blynk", "0.6.4")])
    return bytes(range(256)) * 300 + tag


class Device:
    """A device with the vendor's MQTT habits: user `device`, clean session, `info/mcu` first, nothing subscribed."""

    def __init__(self, server: LocalServer, token: str, firmware: tuple[str, str]) -> None:
        self.offers: queue.Queue[Any] = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="", protocol=paho.MQTTv311)
        self.client.username_pw_set("device", token)
        self.client.on_message = lambda _c, _u, message: self.offers.put((message.topic, message.qos, message.payload))
        assert server.address.mqtt is not None
        self.client.connect("127.0.0.1", int(server.address.mqtt.rpartition(":")[2]), keepalive=45)
        self.client.loop_start()
        told = {"tmpl": PRODUCT, "ver": firmware[0], "build": firmware[1], "type": PRODUCT, "rxbuff": 1024}
        self.client.publish("info/mcu", json.dumps(told)).wait_for_publish(WITHIN_S)

    def offer(self) -> dict[str, Any]:
        topic, qos, payload = self.offers.get(timeout=WITHIN_S)
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

    def flota(self, *arguments: str) -> str:
        environment = {"FLOTA_SERVER": self.server.address.http, "FLOTA_TOKEN": self.server.address.token}
        command = [sys.executable, "-m", "flota", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shipment(self, number: int) -> Any:
        return self.ask("GET", f"{API}/shipment?shipmentId={number}")


@pytest.fixture
def site(server: LocalServer, client: ManagementClient, key: PrivateKey) -> Iterator[Site]:
    client.add_type(PRODUCT, "dual-mcu-ab", signers=[key.public_pem])
    tokens = {}
    for name in ("mill-1", "mill-2"):
        token = client.add_device(name, PRODUCT).token
        assert token is not None
        tokens[name] = token
    secret = server.address.token
    with httpx.Client(base_url=server.address.http, headers={"authorization": f"Bearer {secret}"}) as http:
        yield Site(server, client, key, http, tokens)


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
