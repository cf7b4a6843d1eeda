"""Blynk's upload and shipment API, and the shipment view: others' JSON over our releases and rollouts."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Mount

from flota.errors import NotFound
from flota.fleet.scope import Role
from flota.fleet.shipments import COUNTERS
from flota.images.blynk_tag import pack_tag
from flota.protocols.blynk.shipments import UPLOAD_MAX_BYTES
from flota.server.api.blynk import shipments
from flota.server.api.management import build_management_api
from flota.server.auth import digest_of_secret, new_secret
from flota.server.engine import Engine
from tests.server.blynk_bench import PRODUCT, another_tenant, tagged_image
from tests.server.management_api import Api, an_api
from tests.server.serving import app_of

API = "/blynk/api/v1/organization"


@dataclass
class Desk:
    """The shipment API and the management API over one server, with two devices of the product."""

    api: Api
    http: httpx.AsyncClient

    async def ask(self, method: str, path: str, *, role: Role = Role.OPERATOR, **request: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.api.secrets[role]}", **request.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **request)

    async def done(self, method: str, path: str, **request: Any) -> Any:
        answer = await self.ask(method, path, **request)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, status: int, method: str, path: str, **request: Any) -> str:
        answer = await self.ask(method, path, **request)
        assert answer.status_code == status, answer.text
        assert list(answer.json()) == ["error"]
        return str(answer.json()["error"]["message"])

    async def upload(self, data: bytes, name: str = "mill.bin", **form: str) -> httpx.Response:
        fields = {"type": "FIRMWARE", **form}
        return await self.ask("POST", "/blynk/api/upload", data=fields, files={"upfile": (name, data)})

    async def published(self) -> Any:
        """Return the answer to an upload whose release was signed and published."""
        uploaded = (await self.upload(tagged_image())).json()
        number = uploaded["release"]["id"]
        assert (await self.api.sign(number)).is_success
        await self.api.post(f"/releases/{number}/publish")
        return uploaded

    async def order(self, uploaded: Any, title: str = "spring", **more: Any) -> dict[str, Any]:
        devices = (await self.api.get("/devices"))["items"]
        (product,) = (one["id"] for one in (await self.api.get("/types"))["items"] if one["name"] == PRODUCT)
        ids = [device["id"] for device in devices]
        return {
            "orgId": (await self.api.scope()).tenant_id,
            "productId": product,
            "title": title,
            "pathToFirmware": uploaded["path"],
            "deviceIds": ids,
            **more,
        }


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with an_api(tmp_path) as api:
        await api.post("/types", {"name": PRODUCT, "board": "dual-mcu-ab", "signers": [api.key.public_pem]})
        await api.add_devices("mill-1", "mill-2", type_name=PRODUCT)
        app = app_of(api.context, [*shipments.routes(api.context), Mount("/api/v1", build_management_api(api.context))])
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://flota.test") as http:
            yield Desk(api, http)


async def test_an_upload_says_what_its_tag_says_and_becomes_a_draft(desk: Desk) -> None:
    data = tagged_image()
    answer = (await desk.upload(data)).json()
    assert answer["path"] == f"/blynk/files/{hashlib.sha256(data).hexdigest()}/mill.bin"
    assert answer["firmwareInfo"] == {
        "version": "1.2.4",
        "blynkVersion": "",
        "fwType": PRODUCT,
        "boardType": "Other",
        "buildDate": "Jan  5 2024 10:00:00",
        "md5Hash": hashlib.md5(data, usedforsecurity=False).hexdigest().upper(),
        "sha256Hash": base64.b64encode(hashlib.sha256(data).digest()).decode(),
        "type": "MCU",
        "fileSize": len(data),
    }
    assert answer["release"]["state"] == "draft"
    assert (await desk.upload(data)).json()["release"] == answer["release"], "the same file is the same release"


async def test_an_upload_without_a_tag_is_kept_and_says_what_to_do(desk: Desk) -> None:
    answer = (await desk.upload(b"no tag in here")).json()
    assert (answer["firmwareInfo"], answer["release"]) == (None, None)
    assert "by hand" in answer["note"]
    other = bytes(64) + pack_tag([("mcu", "1.0"), ("fw-type", "TMPLunknown")])
    assert "TMPLunknown" in (await desk.upload(other)).json()["note"]


BODY = bytes(range(256)) * 16
TAG = pack_tag([("mcu", "2.0"), ("fw-type", PRODUCT), ("build", "Jan  5 2024 10:00:00")])


@pytest.mark.parametrize(
    ("data", "version"),
    [
        (BODY + TAG, "2.0"),
        (BODY + TAG[:-1], None),
        (BODY + TAG[:16] + TAG, "2.0"),
        (BODY + TAG + pack_tag([("mcu", "3.0"), ("fw-type", PRODUCT)]), "2.0"),
        (BODY + TAG.replace(b"mcu\x002.0\0", b"mcu\x002.0\0mcu\x009.9\0"), "2.0"),
        (BODY + b"blnkinf\0fw-type\0TMPLx\0\0", None),
        (bytes(4096 - 20) + TAG, "2.0"),
        (gzip.compress(BODY + TAG), "2.0"),
    ],
    ids=[
        "at the end",
        "cut",
        "a cut one before",
        "two tags",
        "a key twice",
        "without a version",
        "over a page",
        "packed",
    ],
)
async def test_what_an_upload_says_of_a_tag_is_what_can_be_read_of_it(
    desk: Desk, data: bytes, version: str | None
) -> None:
    answer = await desk.upload(data, "mill.bin")
    assert answer.status_code == 200, answer.text
    info = answer.json()["firmwareInfo"]
    assert (None if info is None else info["version"]) == version
    assert (answer.json()["release"] is None) is (version is None)


@pytest.mark.parametrize(
    ("name", "form"), [("mill.exe", {}), ("mill", {}), ("mill.bin", {"type": "IMAGE"}), ("..", {})], ids=str
)
async def test_what_is_no_firmware_is_not_uploaded(desk: Desk, name: str, form: dict[str, str]) -> None:
    answer = await desk.upload(b"x", name, **form)
    assert answer.status_code == 400
    assert "message" in answer.json()["error"]


async def test_what_is_unsigned_is_not_shipped_and_the_error_says_how_to_sign(desk: Desk) -> None:
    uploaded = (await desk.upload(tagged_image())).json()
    order = await desk.order(uploaded)
    number = uploaded["release"]["id"]
    text = await desk.refused(422, "POST", f"{API}/shipment/create", json=order)
    assert f"flota release sign {number} --key" in text
    assert (await desk.api.sign(number)).is_success
    text = await desk.refused(422, "POST", f"{API}/shipment/create", json=order)
    assert f"flota release publish {number}" in text
    untagged = (await desk.upload(b"no tag in here")).json()
    text = await desk.refused(422, "POST", f"{API}/shipment/create", json=await desk.order(untagged))
    assert "flota release create" in text
    assert await desk.done("GET", f"{API}/shipments") == []


async def test_a_shipment_is_created_shown_stopped_and_deleted(desk: Desk) -> None:
    order = await desk.order(await desk.published(), attemptsLimit=5, compareField="NO_CONDITION")
    made = await desk.done("POST", f"{API}/shipment/create", json=order)
    assert {name: made[name] for name in ("title", "productName", "status", "attemptsLimit", "finishedAt")} == {
        "title": "spring",
        "productName": PRODUCT,
        "status": "RUN",
        "attemptsLimit": 5,
        "finishedAt": 0,
    }
    assert (made["compareField"], made["startedBy"]) == ("NO_CONDITION", "token:operator")
    assert made["deviceIds"] == order["deviceIds"]
    await Engine(desk.api.context.storage, now=desk.api.context.now).tick()
    number = made["id"]
    shown = await desk.done("GET", f"{API}/shipment?shipmentId={number}&orgId={made['orgId']}")
    assert shown["shipmentProgress"]["started"] == 2
    assert await desk.done("GET", f"{API}/shipments") == [shown]
    await desk.refused(409, "DELETE", f"{API}/shipment?shipmentId={number}")
    paused = await desk.api.post(f"/rollouts/{number}/pause")
    assert paused["state"] == "paused"
    assert (await desk.done("GET", f"{API}/shipment?shipmentId={number}"))["status"] == "PAUSE"
    stopped = await desk.done("PUT", f"{API}/shipment/stop?shipmentId={number}")
    assert (stopped["status"], stopped["finishedAt"] > 0) == ("CANCEL", True)
    await desk.refused(409, "PUT", f"{API}/shipment/stop?shipmentId={number}")
    assert await desk.done("DELETE", f"{API}/shipment?shipmentId={number}") == {}
    assert await desk.done("GET", f"{API}/shipments") == []
    await desk.refused(404, "GET", f"{API}/shipment?shipmentId={number}")
    assert (await desk.api.get(f"/rollouts/{number}"))["state"] == "canceled", "the rollout stays, as history"


async def test_a_shipment_has_every_member_of_the_vendors_with_its_type(desk: Desk) -> None:
    order = await desk.order(await desk.published(), shipmentTime="NIGHT", isCritical=True)
    made = await desk.done("POST", f"{API}/shipment/create", json=order)
    kinds = {name: type(value).__name__ for name, value in made.items()}
    numbers = ("id", "productId", "startedByUserId", "startedAt", "finishedAt", "attemptsLimit", "attemptResetPeriodMs")
    texts = ("productName", "title", "status", "shipmentTime", "pathToFirmware", "firmwareOriginalFileName", "host")
    flags = ("isSecure", "skipFwTypeCheck", "isCritical", "sendPush")
    expected = dict.fromkeys(numbers, "int") | dict.fromkeys((*texts, "compareField"), "str")
    expected |= dict.fromkeys(flags, "bool") | {"deviceIds": "list", "firmwareInfo": "dict", "shipmentProgress": "dict"}
    assert {name: kinds.get(name) for name in expected} == expected
    assert sorted(made["shipmentProgress"]) == sorted([*COUNTERS, "updatedAt"])
    tokens = {one["id"]: one["name"] for one in (await desk.api.get("/tokens"))["items"]}
    assert tokens[made["startedByUserId"]] == "operator"
    assert (made["shipmentTime"], made["isCritical"], made["host"]) == ("NIGHT", True, "flota.test")


@pytest.mark.parametrize("time", ["NIGHT", "MORNING", "AFTERNOON", "EVENING"])
async def test_a_time_of_day_is_a_maintenance_window_in_each_devices_own_time(desk: Desk, time: str) -> None:
    desk.api.context.settings = replace(desk.api.context.settings, time_zone="Europe/Berlin")
    order = await desk.order(await desk.published(), shipmentTime=time)
    made = await desk.done("POST", f"{API}/shipment/create", json=order)
    assert made["shipmentTime"] == time
    opens = {"NIGHT": "00", "MORNING": "06", "AFTERNOON": "12", "EVENING": "18"}[time]
    policy = (await desk.api.get(f"/rollouts/{made['id']}"))["policy"]
    assert policy["maintenance"] == f"daily {opens}:00 6h local/Europe/Berlin"


@pytest.mark.parametrize(
    ("given", "period_ms", "silence_s"),
    [
        ({}, 86_400_000, 86_400),
        ({"attemptResetPeriodMs": 0}, 0, 3600),
        ({"attemptResetPeriodMs": 60_000}, 60_000, 3600),
    ],
    ids=["the vendor's default", "never", "a minute"],
)
async def test_attempts_are_counted_anew_after_the_period_of_the_shipment(
    desk: Desk, given: dict[str, int], period_ms: int, silence_s: int
) -> None:
    made = await desk.done("POST", f"{API}/shipment/create", json={**await desk.order(await desk.published()), **given})
    assert (made["attemptsLimit"], made["attemptResetPeriodMs"]) == (3, period_ms)
    assert (await desk.api.get(f"/rollouts/{made['id']}"))["policy"]["silence_limit_s"] == silence_s
    view = await desk.api.get(f"/rollouts/{made['id']}/shipment")
    assert view["attempt_period_s"] == (period_ms // 1000 or None)


async def test_a_device_is_labelled_with_a_zone_that_exists(desk: Desk) -> None:
    await desk.api.post("/devices/mill-1/labels", {"labels": {"timezone": "Asia/Kathmandu"}})
    refused = await desk.api.ask("POST", "/devices/mill-1/labels", json={"labels": {"timezone": "Mars/Olympus"}})
    assert refused.status_code == 400
    assert "time zone" in refused.json()["detail"]
    assert (await desk.api.get("/devices/mill-1"))["labels"] == {"timezone": "Asia/Kathmandu"}


async def test_a_file_above_the_vendors_limit_is_refused_and_nothing_is_kept(desk: Desk) -> None:
    answer = await desk.upload(bytes(UPLOAD_MAX_BYTES + 1))
    assert answer.status_code == 413
    assert "too large" in answer.json()["error"]["message"]
    much_more = await desk.ask(
        "POST",
        "/blynk/api/upload",
        content=bytes(UPLOAD_MAX_BYTES + (1 << 20)),
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert much_more.status_code == 413
    async with desk.api.context.storage.reading() as transaction:
        with pytest.raises(NotFound):
            digest = hashlib.sha256(bytes(UPLOAD_MAX_BYTES + 1)).hexdigest()
            await transaction.artifact(await desk.api.scope(), digest)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nno end"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data; name=type\r\n\r\nFIRMWARE\r\n--x--",
        ),
        ("multipart/form-data; boundary=" + "y" * 500, b"--x--"),
    ],
    ids=range(6),
)
async def test_a_form_that_cannot_be_read_is_refused(desk: Desk, content_type: str, body: bytes) -> None:
    await desk.refused(400, "POST", "/blynk/api/upload", content=body, headers={"content-type": content_type})


async def test_the_shipment_view_shows_any_rollout(desk: Desk) -> None:
    uploaded = await desk.published()
    made = await desk.api.post("/rollouts", {"release": f"{PRODUCT}@1.2.4", "devices": ["mill-1"], "name": "try"})
    view = await desk.api.get(f"/rollouts/{made['id']}/shipment")
    assert (view["status"], view["compare_field"], view["started_by"]) == ("RUN", "NO_CONDITION", "")
    assert view["devices"] == [
        {"device": "mill-1", "status": "waiting", "execution": None, "changed_at": None, "reason": ""}
    ]
    assert uploaded["release"]["id"]
    assert [one["title"] for one in await desk.done("GET", f"{API}/shipments")] == ["try"]


async def test_no_device_means_all_of_the_product_and_who_joins_later(desk: Desk) -> None:
    order = await desk.order(await desk.published(), deviceIds=[])
    made = await desk.done("POST", f"{API}/shipment/create", json=order)
    assert len(made["deviceIds"]) == 2
    assert (await desk.api.get(f"/rollouts/{made['id']}"))["policy"]["continuous"] is True


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"attemptsLimit": 0}, 400, "attemptsLimit"),
        ({"attemptLimit": 3}, 400, "attemptLimit"),
        ({"compareField": "LATEST_BLYNK_VERSION"}, 422, "library"),
        ({"isSecure": True}, 422, "scheme"),
        ({"host": "elsewhere.example"}, 422, "address"),
        ({"orgId": 99}, 404, "organization"),
        ({"firmwareInfo": {"version": "9.9.9"}}, 400, "firmwareInfo"),
        ({"title": "x" * 41}, 400, "title"),
        ({"title": ""}, 400, "title"),
        ({"title": "12"}, 400, "number"),
        ({"productId": 99_999}, 404, "product"),
        ({"deviceIds": [99_999]}, 404, "device"),
        ({"pathToFirmware": "/blynk/files/" + "0" * 64 + "/x.bin"}, 404, "artifact"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    desk: Desk, change: dict[str, Any], status: int, word: str
) -> None:
    order = await desk.order(await desk.published(), **change)
    assert word in await desk.refused(status, "POST", f"{API}/shipment/create", json=order)
    assert await desk.done("GET", f"{API}/shipments") == []


async def test_a_title_is_taken_once(desk: Desk) -> None:
    order = await desk.order(await desk.published())
    await desk.done("POST", f"{API}/shipment/create", json=order)
    await desk.refused(409, "POST", f"{API}/shipment/create", json=order)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"title":"a","title":"b"}', b"[" * 100_000, b"\xff"], ids=range(7)
)
async def test_a_body_that_is_no_order_is_refused(desk: Desk, body: bytes) -> None:
    await desk.refused(400, "POST", f"{API}/shipment/create", content=body)


@pytest.mark.parametrize("number", ["", "x", "-1", "1.5", "9" * 40, "%00"])
async def test_a_shipment_that_cannot_be_is_refused(desk: Desk, number: str) -> None:
    await desk.refused(400, "GET", f"{API}/shipment?shipmentId={number}")


async def test_tokens_decide_and_other_tenants_see_nothing(desk: Desk) -> None:
    order = await desk.order(await desk.published())
    made = await desk.done("POST", f"{API}/shipment/create", json=order)
    await desk.refused(403, "POST", f"{API}/shipment/create", json=order, role=Role.VIEWER)
    await desk.refused(403, "PUT", f"{API}/shipment/stop?shipmentId={made['id']}", role=Role.VIEWER)
    await desk.refused(403, "DELETE", f"{API}/shipment?shipmentId={made['id']}", role=Role.VIEWER)
    await desk.refused(403, "POST", "/blynk/api/upload", content=b"", role=Role.VIEWER)
    await desk.refused(401, "GET", f"{API}/shipments", headers={"authorization": "Bearer wrong"})
    await desk.refused(404, "GET", f"{API}/shipments?orgId=99")
    context = desk.api.context
    other, secret = await another_tenant(context), new_secret()
    async with context.storage.transaction() as transaction:
        await transaction.add_access_token(other, "them", Role.ADMIN, digest_of_secret(secret), now=context.now())
    stranger = {"authorization": f"Bearer {secret}"}
    assert await desk.done("GET", f"{API}/shipments", headers=stranger) == []
    for method, path in (("GET", "shipment"), ("PUT", "shipment/stop"), ("DELETE", "shipment")):
        await desk.refused(404, method, f"{API}/{path}?shipmentId={made['id']}", headers=stranger)
    await desk.refused(404, "POST", f"{API}/shipment/create", json={**order, "orgId": None}, headers=stranger)
