"""SBOMs of releases over the API: stored with the draft, shown, fetched, and fixed once the release is signed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flota.digests import digests_of
from flota.fleet.scope import Role
from flota.images.sbom import SBOM_MAX_BYTES
from flota.server.artifact_cleanup import UNUSED_AFTER, ArtifactCleanup
from flota.server.context import utc_now
from tests.images.sbom_samples import cyclonedx, spdx_2
from tests.server.management_api import Api, an_api, assert_problem

LISTED, OTHER = cyclonedx("lwip", "mbedtls"), spdx_2("lwip")


@pytest.fixture
async def api(tmp_path: Path, database_url: str) -> AsyncIterator[Api]:
    async with an_api(tmp_path, database_url) as one:
        yield one


async def draft_with(api: Api, sbom: bytes, version: str = "1.0", filename: str = "pump.cdx.json") -> Any:
    """Return a draft of a file of its own with an SBOM."""
    firmware = await api.upload(f"firmware {version}".encode())
    stored = await api.upload(sbom, filename)
    body = {"type": "generic-linux", "version": version, "artifact": firmware["sha256"]}
    return await api.post("/releases", body | {"sbom": {"artifact": stored["sha256"]}})


async def audit(api: Api, action: str) -> list[Any]:
    return [entry["details"] for entry in (await api.get("/audit"))["items"] if entry["action"] == action]


async def test_a_draft_keeps_its_sbom_and_shows_what_it_is(api: Api) -> None:
    made = await draft_with(api, LISTED)
    assert made["sbom"] == {
        "format": "cyclonedx",
        "spec_version": "1.6",
        "component_count": 2,
        "sha256": digests_of(LISTED).sha256,
        "size": len(LISTED),
        "filename": "pump.cdx.json",
    }
    assert (await api.get("/releases/generic-linux@1.0"))["sbom"] == made["sbom"]
    assert (await api.get("/releases"))["items"][0]["sbom"] == made["sbom"]
    assert (await audit(api, "release.created"))[0]["sbom_sha256"] == made["sbom"]["sha256"]


async def test_it_is_served_byte_for_byte_as_a_file_and_never_as_a_page(api: Api) -> None:
    made = await draft_with(api, LISTED, filename="pump%20%C3%A9%22.cdx.json")
    answer = await api.ask("GET", f"/releases/{made['id']}/sbom", role=Role.VIEWER)
    assert (answer.status_code, answer.content) == (200, LISTED)
    assert answer.headers["content-type"] == "application/vnd.cyclonedx+json; version=1.6"
    assert answer.headers["content-disposition"].startswith("attachment; filename*=utf-8''pump%20%C3%A9%22")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["etag"] == f'"{digests_of(LISTED).sha256}"'


async def test_a_release_without_one_says_so(api: Api) -> None:
    made = await api.draft("1.0")
    assert made["sbom"] is None
    assert_problem(await api.ask("GET", f"/releases/{made['id']}/sbom"), 404, "not-found")


async def test_a_draft_takes_another_until_it_is_signed_and_the_audit_trail_has_every_digest(api: Api) -> None:
    made = await draft_with(api, LISTED)
    await api.post("/types/generic-linux/trust", {"public_keys": [api.key.public_pem]})
    other = await api.upload(OTHER, "pump.spdx.json")
    path, body = f"/releases/{made['id']}/sbom", {"artifact": other["sha256"], "filename": "x/pump-1.spdx.json"}
    for _ in range(2):
        changed = await api.ask("PUT", path, json=body)
        assert changed.is_success, changed.text
    shown = changed.json()["sbom"]
    assert (shown["format"], shown["spec_version"], shown["filename"]) == ("spdx", "2.3", "pump-1.spdx.json")
    assert changed.json()["manifest_sha256"] == made["manifest_sha256"]
    assert await audit(api, "release.sbom-set") == [
        {
            "sha256": digests_of(OTHER).sha256,
            "filename": "pump-1.spdx.json",
            "format": "spdx 2.3",
            "replaced": digests_of(LISTED).sha256,
        }
    ]
    assert (await api.sign(made["id"])).json()["state"] == "signed"
    back = {"artifact": made["sbom"]["sha256"]}
    for state in ("signed", "published", "withdrawn"):
        problem = assert_problem(await api.ask("PUT", path, json=back), 409, "conflict")
        assert problem["found"] == state
        if state != "withdrawn":
            await api.post(f"/releases/{made['id']}/{'publish' if state == 'signed' else 'withdraw'}")
    assert (await api.ask("GET", path)).content == OTHER
    for action in ("release.signed", "release.published", "release.withdrawn"):
        assert (await audit(api, action))[0]["sbom_sha256"] == digests_of(OTHER).sha256


async def test_what_is_no_sbom_is_refused_and_no_release_is_made(api: Api) -> None:
    firmware = await api.upload(b"firmware")
    body = {"type": "generic-linux", "version": "1.0", "artifact": firmware["sha256"]}
    no_sboms = {
        b'{"some": "json"}': "unknown-sbom-format",
        b"SPDXVersion: SPDX-2.3\n": "unknown-sbom-format",
        b'{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [{}]}': "bad-sbom",
    }
    stored = {code: (await api.upload(data, "sbom.json"))["sha256"] for data, code in no_sboms.items()}
    for code, sha256 in stored.items():
        refused = await api.ask("POST", "/releases", json=body | {"sbom": {"artifact": sha256}})
        assert assert_problem(refused, 400, code)["found"]
    assert (await api.get("/releases"))["items"] == []
    draft = await api.post("/releases", body)
    for code, sha256 in stored.items():
        again = await api.ask("PUT", f"/releases/{draft['id']}/sbom", json={"artifact": sha256})
        assert_problem(again, 400, code)
    assert (await api.get(f"/releases/{draft['id']}"))["sbom"] is None


async def test_too_large_an_sbom_is_refused_without_being_read(api: Api) -> None:
    stored = await api.upload(bytes(SBOM_MAX_BYTES + 1), "sbom.json")
    draft = await api.draft("1.0")
    answer = await api.ask("PUT", f"/releases/{draft['id']}/sbom", json={"artifact": stored["sha256"]})
    assert assert_problem(answer, 413, "too-large")["expected"] == f"at most {SBOM_MAX_BYTES} bytes"


async def test_bytes_that_are_not_stored_and_callers_without_the_role_are_refused(api: Api) -> None:
    draft = await api.draft("1.0")
    path = f"/releases/{draft['id']}/sbom"
    missing = {"artifact": "ab" * 32}
    assert "Upload" in assert_problem(await api.ask("PUT", path, json=missing), 404, "not-found")["hint"]
    assert_problem(await api.ask("PUT", path, json=missing, role=Role.VIEWER), 403, "forbidden")
    assert_problem(await api.ask("PUT", path, json={"artifact": "x"}), 400, "invalid-input")
    assert_problem(await api.ask("PUT", path, json=missing | {"format": "spdx"}), 400, "invalid-input")


async def test_the_cleanup_keeps_what_a_release_lists_and_takes_what_was_replaced(api: Api) -> None:
    made = await draft_with(api, LISTED)
    other = await api.upload(OTHER)
    assert (await api.ask("PUT", f"/releases/{made['id']}/sbom", json={"artifact": other["sha256"]})).is_success
    api.context.now = lambda: utc_now() + UNUSED_AFTER + timedelta(minutes=1)
    assert await ArtifactCleanup(api.context).clean() == 1
    assert not api.context.artifacts.contains(digests_of(LISTED).sha256)
    assert (await api.ask("GET", f"/releases/{made['id']}/sbom")).content == OTHER
    assert await ArtifactCleanup(api.context).clean() == 0


async def test_one_file_can_be_the_sbom_of_several_releases_and_a_release_of_its_own(api: Api) -> None:
    first, second = await draft_with(api, LISTED, "1.0"), await draft_with(api, LISTED, "1.1")
    assert first["sbom"]["sha256"] == second["sbom"]["sha256"]
    own = await api.draft("2.0", data=LISTED)
    assert own["artifact"]["sha256"] == first["sbom"]["sha256"]
