"""Artifacts and releases over the API: stored, inspected, fitted, signed, published, withdrawn."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flota.digests import digests_of
from flota.fleet.scope import Role
from flota.trust.keys import PrivateKey
from flota.trust.manifest import parse_manifest
from tests.server.management_api import Api, an_api, an_esp_app, assert_problem

CLASSIC_ESP32 = 0

SMALL_SLOTS = """\
nvs,      data, nvs,   0x9000,  0x6000,
otadata,  data, ota,   0xf000,  0x2000,
phy_init, data, phy,   0x11000, 0x1000,
ota_0,    app,  ota_0, 0x20000, 0x10000,
ota_1,    app,  ota_1, 0x30000, 0x10000,
"""


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(tmp_path) as one:
        yield one


def _stored_files(api: Api) -> list[Path]:
    return [path for path in api.context.settings.data.artifacts.rglob("*") if path.is_file()]


async def test_an_upload_is_stored_under_its_digest_and_looked_into(api: Api) -> None:
    data = an_esp_app("1.2.3")
    artifact = await api.upload(data, "pump%20%C3%A9.bin")
    digests = digests_of(data)
    assert (artifact["sha256"], artifact["md5"], artifact["size"]) == (digests.sha256, digests.md5, len(data))
    assert artifact["filename"] == "pump é.bin"
    assert (artifact["format"], artifact["image_version"]) == ("esp-app", "1.2.3")
    assert artifact["inspection"]["chip"] == "esp32-c3"
    assert api.context.artifacts.read(digests.sha256) == data
    assert (await api.get(f"/artifacts/{digests.sha256}"))["validation_hash"] == artifact["validation_hash"]


async def test_the_same_bytes_twice_are_one_artifact_and_the_answer_says_so(api: Api) -> None:
    first = await api.ask("POST", "/artifacts", content=b"same bytes", headers={"x-filename": "a.bin"})
    second = await api.ask("POST", "/artifacts", content=b"same bytes", headers={"x-filename": "b.bin"})
    assert (first.status_code, first.json()["already_stored"]) == (201, False)
    assert (second.status_code, second.json()["already_stored"]) == (200, True)
    assert second.json()["sha256"] == first.json()["sha256"]
    assert second.json()["filename"] == "a.bin"
    assert len(_stored_files(api)) == 1


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("..%2F..%2Fetc%2Fpasswd", 201),
        ("C%3A%5Cfw%5Capp.bin", 201),
        ("%00", 400),
        ("a%0Ab", 400),
        ("%FF%FE.bin", 400),
        ("..", 400),
        ("%20", 400),
    ],
)
async def test_a_file_name_is_a_label_and_never_a_path(api: Api, name: str, status: int) -> None:
    answer = await api.ask("POST", "/artifacts", content=b"bytes", headers={"x-filename": name})
    assert answer.status_code == status, answer.text
    if status == 201:
        assert answer.json()["filename"] in ("passwd", "app.bin")
    else:
        assert_problem(answer, 400, "invalid-input")
        assert _stored_files(api) == []


async def test_an_empty_body_is_refused_and_nothing_is_stored(api: Api) -> None:
    assert_problem(await api.ask("POST", "/artifacts", content=b""), 400, "invalid-input")
    assert _stored_files(api) == []


async def test_a_file_over_the_limit_is_refused_at_its_header_or_in_its_middle(tmp_path: Path) -> None:
    async with an_api(tmp_path) as api:
        object.__setattr__(api.context.settings, "max_artifact_bytes", 1000)

        async def unannounced() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield bytes(100)

        assert_problem(await api.ask("POST", "/artifacts", content=bytes(1001)), 413, "too-large")
        assert_problem(await api.ask("POST", "/artifacts", content=unannounced()), 413, "too-large")
        assert _stored_files(api) == []
        assert (await api.ask("POST", "/artifacts", content=bytes(1000))).status_code == 201


async def test_a_body_shorter_than_announced_is_refused_and_nothing_stays(api: Api) -> None:
    async def short() -> AsyncIterator[bytes]:
        yield b"only this"

    answer = await api.ask("POST", "/artifacts", content=short(), headers={"content-length": "1000"})
    problem = assert_problem(answer, 400, "invalid-input")
    assert (problem["expected"], problem["found"]) == ("1000 bytes", "9 bytes")
    assert _stored_files(api) == []


async def test_a_full_disk_is_said_and_nothing_stays(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert_problem(await api.ask("POST", "/artifacts", content=b"x" * 5000), 507, "storage-full")
    monkeypatch.undo()
    assert _stored_files(api) == []


async def test_a_draft_states_the_artifact_the_version_and_a_rising_sequence(api: Api) -> None:
    first = await api.draft("1.0")
    second = await api.draft("1.1")
    assert (first["state"], first["sequence"], second["sequence"]) == ("draft", 1, 2)
    manifest = parse_manifest((await api.ask("GET", f"/releases/{second['id']}/manifest")).content)
    assert (manifest.device_type, manifest.board, manifest.version, manifest.sequence) == (
        "generic-linux",
        "generic-linux",
        "1.1",
        2,
    )
    assert manifest.components[0].sha256 == second["artifact"]["sha256"]
    assert (await api.get("/releases/generic-linux@1.1"))["id"] == second["id"]


async def test_a_second_release_of_one_version_is_refused_until_the_first_is_withdrawn(api: Api) -> None:
    first = await api.draft("1.0", data=b"first")
    other = await api.upload(b"second")
    body = {"type": "generic-linux", "version": "1.0", "artifact": other["sha256"]}
    problem = assert_problem(await api.ask("POST", "/releases", json=body), 409, "conflict")
    assert f"release {first['id']}" in problem["found"]
    await api.post(f"/releases/{first['id']}/withdraw", {"reason": "wrong file"})
    assert (await api.post("/releases", body))["sequence"] == 2


async def test_what_does_not_fit_is_refused_with_every_reason(api: Api) -> None:
    await api.post("/types", {"name": "pump", "board": "esp32-c3", "partition_csv": SMALL_SLOTS})
    artifact = await api.upload(an_esp_app("1.0", chip_id=CLASSIC_ESP32, size=0x20000))
    body = {"type": "pump", "version": "1.0", "artifact": artifact["sha256"]}
    problem = assert_problem(await api.ask("POST", "/releases", json=body), 422, "does-not-fit")
    assert len(problem["reasons"]) >= 2
    assert "expected" in problem
    assert "found" in problem
    assert (await api.get("/releases"))["items"] == []


async def test_a_version_that_disagrees_with_the_image_is_a_warning(api: Api) -> None:
    artifact = await api.upload(an_esp_app("1.0"))
    draft = await api.post("/releases", {"type": "esp32-c3", "version": "2.0", "artifact": artifact["sha256"]})
    (warning,) = draft["warnings"]
    assert "1.0" in warning
    assert "2.0" in warning


async def test_what_the_inspection_warns_of_is_a_warning_of_the_release(api: Api) -> None:
    artifact = await api.upload(an_esp_app("2.0") + b"left over by a build script")
    draft = await api.post("/releases", {"type": "esp32-c3", "version": "2.0", "artifact": artifact["sha256"]})
    told = [one["text"] for one in artifact["inspection"]["findings"] if one["level"] == "warning"]
    assert told
    assert all(any(text in warning for warning in draft["warnings"]) for text in told)
    assert (await api.get(f"/releases/{draft['id']}"))["warnings"] == draft["warnings"]


async def test_each_release_of_the_same_bytes_has_its_own_file_name(api: Api) -> None:
    artifact = await api.upload(b"same bytes", "firmware.bin")
    body = {"type": "generic-linux", "artifact": artifact["sha256"]}
    plain = await api.post("/releases", {**body, "version": "1.0"})
    named = await api.post("/releases", {**body, "version": "1.1", "filename": "build/out/update.swu"})
    assert (plain["filename"], named["filename"]) == ("firmware.bin", "update.swu")
    assert [one["filename"] for one in (await api.get("/releases"))["items"]] == ["firmware.bin", "update.swu"]
    for bad in ("", "..", "a\nb", "x\x00"):
        answer = await api.ask("POST", "/releases", json={**body, "version": "1.2", "filename": bad})
        assert answer.status_code in (400, 422), bad


async def test_a_version_that_disagrees_is_refused_where_the_image_decides(api: Api) -> None:
    await api.post("/types", {"name": "pump", "board": "esp32-c3", "version_from": "app_desc"})
    artifact = await api.upload(an_esp_app("1.0"))
    body = {"type": "pump", "version": "2.0", "artifact": artifact["sha256"]}
    assert_problem(await api.ask("POST", "/releases", json=body), 422, "does-not-fit")
    assert (await api.post("/releases", {**body, "version": "1.0"}))["warnings"] == []


@pytest.mark.parametrize("version", ["", " ", "a\nb", "x" * 129, "\x00"])
async def test_a_version_that_no_route_can_carry_is_refused(api: Api, version: str) -> None:
    artifact = await api.upload(b"bytes")
    body = {"type": "generic-linux", "version": version, "artifact": artifact["sha256"]}
    assert_problem(await api.ask("POST", "/releases", json=body), 400, "invalid-input")


async def test_unknown_types_and_artifacts_are_named(api: Api) -> None:
    artifact = await api.upload(b"bytes")
    body = {"type": "nonesuch", "version": "1", "artifact": artifact["sha256"]}
    assert "flota type" in assert_problem(await api.ask("POST", "/releases", json=body), 404, "not-found")["hint"]
    body = {"type": "generic-linux", "version": "1", "artifact": "0" * 64}
    assert "Upload" in assert_problem(await api.ask("POST", "/releases", json=body), 404, "not-found")["hint"]
    body["expires_at"] = "2001-01-01T00:00:00Z"
    assert_problem(await api.ask("POST", "/releases", json=body), 400, "invalid-input")


async def test_only_a_trusted_keys_signature_of_these_very_bytes_counts(api: Api) -> None:
    draft = await api.draft("1.0")
    problem = assert_problem(await api.sign(draft["id"]), 422, "refused")
    assert "flota type trust generic-linux" in problem["hint"]
    await api.post("/types/generic-linux/trust", {"public_keys": [api.key.public_pem]})
    other = await api.draft("1.1")
    signature = api.key.sign((await api.ask("GET", f"/releases/{other['id']}/manifest")).content)
    import base64

    body = {"key_id": signature.key_id, "algorithm": signature.algorithm}
    body["signature"] = base64.b64encode(signature.signature).decode()
    wrong = await api.ask("POST", f"/releases/{draft['id']}/signatures", json=body)
    assert_problem(wrong, 422, "signature-wrong")
    body["signature"] = "not base64!"
    assert_problem(await api.ask("POST", f"/releases/{draft['id']}/signatures", json=body), 400, "invalid-input")
    assert (await api.get(f"/releases/{draft['id']}"))["state"] == "draft"
    assert (await api.sign(draft["id"])).json()["state"] == "signed"


async def test_publishing_needs_as_many_different_signers_as_the_type_says(api: Api) -> None:
    second = PrivateKey.generate("p256")
    keys = [api.key.public_pem, second.public_pem]
    await api.post("/types", {"name": "pump", "board": "generic-linux", "signers": keys, "signature_threshold": 2})
    draft = await api.draft("1.0", type_name="pump")
    assert_problem(await api.ask("POST", f"/releases/{draft['id']}/publish"), 422, "refused")
    for _ in range(2):
        assert (await api.sign(draft["id"])).json()["state"] == "draft"
    assert_problem(await api.ask("POST", f"/releases/{draft['id']}/publish"), 422, "refused")
    assert (await api.sign(draft["id"], second)).json()["state"] == "signed"
    published = await api.post(f"/releases/{draft['id']}/publish")
    assert (published["state"], len(published["signatures"])) == ("published", 2)
    assert (await api.post(f"/releases/{draft['id']}/publish"))["state"] == "published"
    assert_problem(await api.sign(draft["id"]), 409, "conflict")


async def test_withdrawing_is_for_ever_and_cancels_the_rollouts(api: Api) -> None:
    release = await api.publish("1.0")
    await api.add_devices("dev-1")
    rollout = await api.post("/rollouts", {"release": "generic-linux@1.0", "devices": ["dev-1"]})
    await api.post(f"/releases/{release['id']}/withdraw", {"reason": "stalls"})
    after = await api.get(f"/rollouts/{rollout['id']}")
    assert (after["state"], after["reason"]) == ("canceled", "the release was withdrawn: stalls")
    assert_problem(await api.ask("POST", f"/releases/{release['id']}/publish"), 409, "conflict")
    body = {"release": str(release["id"]), "devices": ["dev-1"]}
    assert_problem(await api.ask("POST", "/rollouts", json=body), 422, "refused")


async def test_a_private_key_is_never_taken_as_a_signer(api: Api) -> None:
    pem = api.key.to_pem().decode()
    answer = await api.ask("POST", "/types/generic-linux/trust", json={"public_keys": [pem]})
    problem = assert_problem(answer, 400, "invalid-input")
    assert pem not in answer.text
    assert "private" in problem["detail"]


async def test_only_an_administrator_says_whose_signatures_count(api: Api) -> None:
    body = {"public_keys": [api.key.public_pem]}
    answer = await api.ask("POST", "/types/generic-linux/trust", role=Role.OPERATOR, json=body)
    assert_problem(answer, 403, "forbidden")


async def test_every_step_of_a_release_is_in_the_audit_trail(api: Api) -> None:
    release = await api.publish("1.0")
    entries = (await api.get("/audit?limit=1000"))["items"]
    assert [one["sequence"] for one in entries] == list(range(1, len(entries) + 1))
    subject = f"release:{release['id']}"
    told = [one["action"] for one in entries if one["subject"] == subject]
    assert told == ["release.created", "release.signature-added", "release.signed", "release.published"]
    assert {one["actor"] for one in entries if one["subject"] == subject} == {"token:admin"}
