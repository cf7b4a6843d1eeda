"""Device types and devices over the API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flota.boards.catalogue import BOARDS
from flota.errors import NotFound
from flota.fleet.devices import DeviceState
from flota.fleet.storage import NewDevice
from flota.server.auth import digest_of_secret
from flota.server.device_registry import device_type_or_builtin
from tests.server.management_api import Api, an_api, assert_problem
from tests.server.test_management_releases import SMALL_SLOTS


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(tmp_path) as one:
        yield one


async def test_every_board_is_a_type_before_anybody_has_used_it(api: Api) -> None:
    listed = {one["name"]: one for one in (await api.get("/types"))["items"]}
    assert set(listed) == set(BOARDS)
    assert all(one["builtin"] and one["id"] is None for one in listed.values())
    assert (await api.get("/types/esp32-c3"))["slots"][0]["name"] == "ota_0"
    await api.add_devices("dev-1", type_name="esp32-c3")
    used = {one["name"]: one for one in (await api.get("/types"))["items"]}
    assert set(used) == set(BOARDS)
    assert used["esp32-c3"]["id"] is not None


async def test_a_board_becomes_a_type_when_a_device_api_first_needs_it(api: Api) -> None:
    scope = await api.scope()
    async with api.context.storage.transaction() as transaction:
        made = await device_type_or_builtin(transaction, scope, "esp32-c3", api.context.now())
        again = await device_type_or_builtin(transaction, scope, "esp32-c3", api.context.now())
        assert made == again
        with pytest.raises(NotFound):
            await device_type_or_builtin(transaction, scope, "toaster", api.context.now())


async def test_a_product_has_its_own_partition_table(api: Api) -> None:
    made = await api.post("/types", {"name": "pump", "board": "esp32-c3", "partition_csv": SMALL_SLOTS})
    assert [(slot["name"], slot["size"]) for slot in made["slots"]] == [("ota_0", 0x10000), ("ota_1", 0x10000)]
    assert made["partition_csv"] == SMALL_SLOTS
    assert not made["builtin"]


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"name": "esp32-c3"}, 409, "conflict"),
        ({"name": "a/b"}, 400, "invalid-input"),
        ({"name": "a@b"}, 400, "invalid-input"),
        ({"board": "toaster"}, 404, "not-found"),
        ({"board": "generic-linux", "partition_csv": SMALL_SLOTS}, 400, "invalid-input"),
        ({"partition_csv": "nvs, data, nvs, 0x9000, 0x6000,\n"}, 400, "invalid-input"),
        ({"signers": ["no key"]}, 400, None),
        ({"signature_threshold": 0}, 400, "invalid-input"),
        ({"unknown_devices": "perhaps"}, 400, "invalid-input"),
        ({"id": 7}, 400, "invalid-input"),
    ],
)
async def test_a_wrong_declaration_is_refused(api: Api, change: dict[str, object], status: int, code: str) -> None:
    answer = await api.ask("POST", "/types", json={"name": "pump", "board": "esp32-c3", **change})
    assert_problem(answer, status, code or answer.json()["code"])
    assert all(one["builtin"] for one in (await api.get("/types"))["items"])


async def test_a_bad_partition_table_is_refused_with_expected_and_found(api: Api) -> None:
    table = SMALL_SLOTS.replace("0x30000", "0x28000")
    answer = await api.ask("POST", "/types", json={"name": "pump", "board": "esp32-c3", "partition_csv": table})
    problem = assert_problem(answer, 400, answer.json()["code"])
    assert {"expected", "found"} <= set(problem)


async def test_a_threshold_cannot_be_above_the_number_of_signers(api: Api) -> None:
    body = {"public_keys": [api.key.public_pem], "threshold": 2}
    assert_problem(await api.ask("POST", "/types/generic-linux/trust", json=body), 400, "invalid-input")
    body["threshold"] = 1
    assert (await api.post("/types/generic-linux/trust", body))["signature_threshold"] == 1
    assert len((await api.post("/types/generic-linux/trust", body))["signers"]) == 1


async def test_a_new_devices_token_is_shown_once_and_kept_as_a_digest(api: Api) -> None:
    made = await api.post("/devices", {"name": "dev-1", "type": "generic-linux", "labels": {"site": "berlin"}})
    assert made["state"] == "accepted"
    assert made["labels"] == {"site": "berlin"}
    scope = await api.scope()
    async with api.context.storage.reading() as transaction:
        assert await transaction.device_token_sha256(scope, "dev-1") == digest_of_secret(made["token"])
    for path in ("/devices/dev-1", "/devices", "/audit?limit=1000"):
        assert made["token"] not in (await api.ask("GET", path)).text


async def test_a_new_token_replaces_the_old_one(api: Api) -> None:
    made = await api.post("/devices", {"name": "dev-1", "type": "generic-linux"})
    drawn = (await api.post("/devices/dev-1/token"))["token"]
    assert drawn != made["token"]
    assert (await api.post("/devices/dev-1/token", {"token": "given-by-the-factory"}))[
        "token"
    ] == "given-by-the-factory"
    scope = await api.scope()
    async with api.context.storage.reading() as transaction:
        assert await transaction.device_token_sha256(scope, "dev-1") == digest_of_secret("given-by-the-factory")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"name": ""},
        {"name": "a b"},
        {"name": "é"},
        {"name": "x" * 129},
        {"mac": "AA:BB"},
        {"token": "short"},
        {"token": "with space in it"},
        {"labels": {"a b": "c"}},
        {"labels": {"a": "b\n"}},
        {"labels": {"a": 1}},
        {"state": "accepted"},
    ],
)
async def test_a_device_that_no_dialect_could_name_is_refused(api: Api, change: dict[str, object]) -> None:
    answer = await api.ask("POST", "/devices", json={"name": "dev-1", "type": "generic-linux", **change})
    assert_problem(answer, 400, "invalid-input")
    if "token" in change:
        assert str(change["token"]) not in answer.text


async def test_names_and_macs_belong_to_one_device(api: Api) -> None:
    body = {"name": "dev-1", "type": "esp32-c3", "mac": "aa-bb-cc-dd-ee-01"}
    assert (await api.post("/devices", body))["mac"] == "AA:BB:CC:DD:EE:01"
    assert_problem(await api.ask("POST", "/devices", json=body), 409, "conflict")
    problem = assert_problem(await api.ask("POST", "/devices", json={**body, "name": "dev-2"}), 409, "conflict")
    assert problem["found"] == "dev-1"


async def test_registering_a_device_that_waits_accepts_it(api: Api) -> None:
    await api.add_devices("other", type_name="esp32-c3")
    scope = await api.scope()
    async with api.context.storage.transaction() as transaction:
        new = NewDevice("AA:BB:CC:DD:EE:02", "esp32-c3", DeviceState.PENDING, mac="AA:BB:CC:DD:EE:02")
        await transaction.add_device(scope, new, now=api.context.now())
    assert [one["name"] for one in (await api.get("/devices?state=pending"))["items"]] == ["AA:BB:CC:DD:EE:02"]
    made = await api.post("/devices", {"name": "AA:BB:CC:DD:EE:02", "type": "esp32-c3", "labels": {"site": "x"}})
    assert (made["state"], made["labels"], bool(made["token"])) == ("accepted", {"site": "x"}, True)


async def test_devices_are_accepted_refused_labelled_and_removed(api: Api) -> None:
    await api.add_devices("dev-1")
    assert (await api.post("/devices/dev-1/refuse"))["state"] == "refused"
    assert (await api.post("/devices/dev-1/accept"))["state"] == "accepted"
    assert (await api.post("/devices/dev-1/labels", {"labels": {"site": "x"}}))["labels"] == {"site": "x"}
    assert (await api.ask("DELETE", "/devices/dev-1")).status_code == 204
    assert_problem(await api.ask("GET", "/devices/dev-1"), 404, "not-found")
    await api.add_devices("dev-1")


async def test_devices_are_listed_by_page_and_by_selector(api: Api) -> None:
    await api.add_devices(*(f"dev-{number}" for number in range(5)))
    await api.add_devices("pump-1", type_name="esp32-c3")
    await api.post("/devices/dev-3/labels", {"labels": {"site": "berlin"}})
    first = await api.get("/devices?limit=4")
    second = await api.get(f"/devices?limit=4&after={first['next']}")
    assert [one["name"] for one in first["items"] + second["items"]] == [
        *(f"dev-{number}" for number in range(5)),
        "pump-1",
    ]
    assert (first["total"], second["next"]) == (6, None)

    async def names(query: str) -> list[str]:
        return [one["name"] for one in (await api.get("/devices?" + query))["items"]]

    assert await names("select=label.site%3Dberlin") == ["dev-3"]
    assert await names("type=esp32-c3") == ["pump-1"]
    assert await names("text=PUMP") == ["pump-1"]
    assert await names("text=%25") == []
    answer = await api.ask("GET", "/devices?select=type%3Desp32-c3&type=generic-linux")
    assert_problem(answer, 400, "invalid-input")
    assert_problem(await api.ask("GET", "/devices?select=colour%3Dred"), 400, "invalid-input")
