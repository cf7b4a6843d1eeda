"""What a type's devices boot with, declared over the API: releases that they would not start are refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flota.fleet.scope import Role
from flota.images.esp_app import EspAppImage, EspImageHeader, EspSegment, pack_app
from flota.images.esp_desc import EspAppDesc, pack_app_desc
from flota.images.esp_secure_boot import public_key_digest, signature_offset
from tests.images.signed_samples import p256_key, pem_of, signed
from tests.server.management_api import ESP32_C3, Api, an_api, assert_problem

OURS, THEIRS = (public_key_digest(pem_of(p256_key(number))) for number in (1, 2))


@pytest.fixture
async def api(tmp_path: Path, database_url: str) -> AsyncIterator[Api]:
    async with an_api(tmp_path, database_url) as one:
        yield one


def an_app(idf: str) -> bytes:
    """Return an app that says which ESP-IDF it was built with."""
    body = pack_app_desc(EspAppDesc(version="1.0", project="tests", idf_version=idf)) + bytes(4096)
    header = EspImageHeader(chip_id=ESP32_C3, entry=0x40380000)
    return pack_app(EspAppImage(header, (EspSegment(0x3C000020, body), EspSegment(0x40380000, bytes(16)))))


async def add_type(api: Api, **facts: object) -> Any:
    return await api.post("/types", {"name": "lock", "board": "esp32-c3", **facts})


async def create(api: Api, data: bytes, version: str = "1.0") -> Any:
    """Return the answer to drafting a release of the bytes."""
    artifact = await api.upload(data)
    return await api.ask("POST", "/releases", json={"type": "lock", "version": version, "artifact": artifact["sha256"]})


async def test_an_app_built_with_an_older_esp_idf_than_the_boot_loader_is_refused(api: Api) -> None:
    assert (await add_type(api, bootloader_idf_version="v5.2.1"))["bootloader_idf_version"] == "v5.2.1"
    problem = assert_problem(await create(api, an_app("v5.1.4")), 422, "does-not-fit")
    (reason,) = [one for one in problem["reasons"] if one["code"] == "idf-version"]
    assert (reason["offset"], reason["expected"], reason["found"]) == (144, "v5.2.1 or later", "v5.1.4")
    assert (await create(api, an_app("v5.2"))).status_code == 201
    assert (await create(api, an_app("v6.0"), "1.1")).status_code == 201


async def test_an_app_that_no_key_of_the_type_has_signed_is_refused(api: Api) -> None:
    made = await add_type(api, secure_boot_keys=[OURS.upper()])
    assert made["secure_boot_keys"] == [OURS]
    app = an_app("v5.2")
    for data, code, found in ((app, "not-signed", "no signature"), (signed(app, p256_key(2)), "untrusted-key", THEIRS)):
        problem = assert_problem(await create(api, data), 422, "does-not-fit")
        (reason,) = [one for one in problem["reasons"] if one["code"] == code]
        assert (reason["offset"], reason["found"]) == (signature_offset(len(app)), found)
        assert OURS in reason["expected"]
    assert (await create(api, signed(app, p256_key(1)))).status_code == 201


async def test_the_facts_can_be_changed_one_at_a_time_and_each_change_is_audited(api: Api) -> None:
    await add_type(api, bootloader_idf_version="5.1", secure_boot_keys=[OURS])
    path = "/types/lock/boot-facts"
    assert (await api.post(path, {"secure_boot_keys": [THEIRS, OURS, THEIRS]}))["bootloader_idf_version"] == "5.1"
    changed = await api.post(path, {"bootloader_idf_version": None})
    assert (changed["bootloader_idf_version"], changed["secure_boot_keys"]) == (None, sorted([OURS, THEIRS]))
    assert (await api.post(path, {}))["secure_boot_keys"] == sorted([OURS, THEIRS])
    assert (await api.post(path, {"secure_boot_keys": []}))["secure_boot_keys"] == []
    assert (await api.get("/types/lock"))["secure_boot_keys"] == []
    entries = [entry["details"] for entry in (await api.get("/audit"))["items"] if "boot-facts" in entry["action"]]
    assert entries == [
        {"secure_boot_keys": sorted([OURS, THEIRS])},
        {"bootloader_idf_version": None},
        {"secure_boot_keys": []},
    ]
    assert (await create(api, an_app("v4.4"))).status_code == 201


async def test_a_built_in_type_takes_them_too(api: Api) -> None:
    assert (await api.post("/types/esp32-c3/boot-facts", {"bootloader_idf_version": "5.1"}))["builtin"]


async def test_facts_that_cannot_be_are_refused(api: Api) -> None:
    cannot_be: list[tuple[str, dict[str, object]]] = [
        ("esp32-c3", {"bootloader_idf_version": "latest"}),
        ("esp32-c3", {"bootloader_idf_version": "5.1" + "x" * 40}),
        ("esp32-c3", {"bootloader_idf_version": ""}),
        ("esp32-c3", {"secure_boot_keys": ["ab"]}),
        ("esp32-c3", {"secure_boot_keys": [f"{number:064x}" for number in range(17)]}),
        ("amebad", {"bootloader_idf_version": "5.1"}),
        ("generic-linux", {"secure_boot_keys": [OURS]}),
    ]
    for board, facts in cannot_be:
        body = {"name": "refused", "board": board, **facts}
        assert_problem(await api.ask("POST", "/types", json=body), 400, "invalid-input")
        assert_problem(await api.ask("POST", f"/types/{board}/boot-facts", json=facts), 400, "invalid-input")
    assert all(not one["secure_boot_keys"] for one in (await api.get("/types"))["items"])


async def test_only_an_administrator_changes_them(api: Api) -> None:
    await add_type(api)
    answer = await api.ask("POST", "/types/lock/boot-facts", json={"secure_boot_keys": [OURS]}, role=Role.OPERATOR)
    assert_problem(answer, 403, "forbidden")
