"""Files that no release names go after a while, and never one that is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from flota.digests import digests_of
from flota.fleet.scope import Scope
from flota.server.artifact_cleanup import UNUSED_AFTER, ArtifactCleanup
from flota.server.context import utc_now
from tests.server.management_api import Api, an_api, assert_problem

REFUSED = b"not an ESP image"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(tmp_path) as one:
        yield one


def pass_time(api: Api, time: timedelta) -> None:
    """Move the server's clock to `time` after now."""
    api.context.now = lambda: utc_now() + time


def stored_files(api: Api) -> list[str]:
    return sorted(path.name for path in api.context.settings.data.artifacts.rglob("*") if path.is_file())


async def clean(api: Api) -> int:
    return await ArtifactCleanup(api.context).clean()


async def upload_refused(api: Api) -> str:
    artifact = await api.upload(REFUSED)
    body = {"type": "esp32-c3", "version": "1.0", "artifact": artifact["sha256"]}
    assert_problem(await api.ask("POST", "/releases", json=body), 422, "does-not-fit")
    return str(artifact["sha256"])


async def test_a_refused_file_goes_an_hour_after_its_upload(api: Api) -> None:
    sha256 = await upload_refused(api)
    assert await clean(api) == 0
    assert stored_files(api) == [sha256]
    pass_time(api, UNUSED_AFTER + timedelta(seconds=1))
    assert await clean(api) == 1
    assert stored_files(api) == []
    assert (await api.ask("GET", f"/artifacts/{sha256}")).status_code == 404
    actions = [entry["action"] for entry in (await api.get("/audit"))["items"]]
    assert actions.count("artifact.removed") == 1
    assert await clean(api) == 0


async def test_a_file_that_any_release_names_stays(api: Api) -> None:
    draft = await api.draft("1.0")
    withdrawn = await api.draft("1.1")
    await api.post(f"/releases/{withdrawn['id']}/withdraw")
    pass_time(api, timedelta(days=365))
    assert await clean(api) == 0
    assert stored_files(api) == sorted([draft["artifact"]["sha256"], withdrawn["artifact"]["sha256"]])


async def test_uploading_it_again_gives_a_file_another_hour(api: Api) -> None:
    sha256 = await upload_refused(api)
    pass_time(api, UNUSED_AFTER + timedelta(minutes=1))
    assert (await api.upload(REFUSED))["already_stored"]
    pass_time(api, 2 * UNUSED_AFTER)
    assert await clean(api) == 0
    assert stored_files(api) == [sha256]


async def test_nothing_goes_while_an_upload_is_being_recorded(api: Api) -> None:
    sha256 = await upload_refused(api)
    pass_time(api, 2 * UNUSED_AFTER)
    async with api.context.recording_gate.recording():
        assert await clean(api) == 0
        assert stored_files(api) == [sha256]
    assert await clean(api) == 1


async def test_an_upload_that_failed_does_not_hold_the_cleanup_up(api: Api) -> None:
    async def short() -> AsyncIterator[bytes]:
        yield b"only this"

    answer = await api.ask("POST", "/artifacts", content=short(), headers={"content-length": "1000"})
    assert answer.status_code == 400
    await upload_refused(api)
    pass_time(api, 2 * UNUSED_AFTER)
    assert await clean(api) == 1


async def test_a_server_killed_after_the_row_went_removes_the_file_at_its_next_start(api: Api) -> None:
    sha256 = await upload_refused(api)
    pass_time(api, 2 * UNUSED_AFTER)
    now = api.context.now()
    api.context.artifacts.mark_for_removal([sha256])
    async with api.context.storage.transaction() as transaction:
        removed = await transaction.remove_unused_artifacts(
            await api.scope(), [sha256], before=now - UNUSED_AFTER, now=now
        )
    assert (list(removed), stored_files(api)) == ([sha256], [sha256, sha256])
    assert await clean(api) == 1
    assert stored_files(api) == []


async def test_a_server_killed_before_the_row_went_keeps_what_got_a_release_meanwhile(api: Api) -> None:
    data = b"named after all"
    sha256 = (await api.upload(data))["sha256"]
    api.context.artifacts.mark_for_removal([sha256])
    await api.draft("1.0", data=data)
    pass_time(api, 2 * UNUSED_AFTER)
    assert await clean(api) == 0
    assert stored_files(api) == [sha256]


async def test_a_file_of_two_tenants_stays_while_one_of_them_needs_it(api: Api) -> None:
    sha256 = await upload_refused(api)
    async with api.context.storage.transaction() as transaction:
        other = await transaction.add_tenant("OTHER", now=utc_now())
        artifact = await transaction.artifact(await api.scope(), sha256)
    pass_time(api, 2 * UNUSED_AFTER)
    scope = Scope(other.id, "test")
    async with api.context.storage.transaction() as transaction:
        await transaction.add_artifact(scope, replace(artifact, created_at=api.context.now()))
    assert await clean(api) == 0
    assert stored_files(api) == [sha256]
    assert api.context.artifacts.read(sha256) == REFUSED
    assert digests_of(REFUSED).sha256 == sha256
