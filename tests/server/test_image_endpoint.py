from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flota.errors import FlotaError, InvalidInput, Refused
from flota.images.inspection import inspect
from flota.server.image_endpoint import (
    COPIES_KEPT,
    ImageEndpoint,
    ImageSource,
    ServedImage,
    check_version,
    lan_address,
    refuse_unfit,
    serve_image,
    service_config,
    url_for,
)
from flota.server.settings import Address
from tests.images.esp_samples import bootloader_of, merged_image, sample_app
from tests.images.merge_samples import GUIDE_TABLE
from tests.server.programs import curl
from tests.server.serving import LOOPBACK

BOTH = pytest.mark.parametrize(("option", "version"), [("--http2-prior-knowledge", "2"), ("--http1.1", "1.1")])
PROGRAM_WITHIN_S = 30


class Seen:
    """What the endpoint told its caller."""

    def __init__(self) -> None:
        self.images: list[ServedImage] = []
        self.passed_over: list[str] = []
        self.deliveries: list[str] = []


def source_of(where: Path | str, tmp_path: Path, seen: Seen, *, watch: bool = False) -> ImageSource:
    copies = tmp_path / "copies"
    copies.mkdir(exist_ok=True)
    return ImageSource(
        str(where),
        copies,
        watch=watch,
        on_change=seen.images.append,
        on_passed_over=lambda path, error: seen.passed_over.append(path.name),
    )


@contextlib.asynccontextmanager
async def serving(source: ImageSource, seen: Seen) -> AsyncIterator[str]:
    """Serve inside the block, on a free port of loopback."""
    source.refresh()
    stop, listening = asyncio.Event(), asyncio.get_running_loop().create_future()
    endpoint = ImageEndpoint(source, on_delivery=lambda peer, what: seen.deliveries.append(what))
    running = asyncio.create_task(serve_image(endpoint, LOOPBACK, stop=stop, announce=listening.set_result))
    yield url_for(await listening, source.name)
    stop.set()
    await running


def put(path: Path, data: bytes, *, age_s: int = 0) -> Path:
    path.write_bytes(data)
    moment = 1_800_000_000 - age_s
    os.utime(path, (moment, moment))
    return path


@BOTH
async def test_the_image_comes_whole_with_its_length_over_both_protocols(
    tmp_path: Path, option: str, version: str
) -> None:
    app, seen = sample_app(size=200_000), Seen()
    path = put(tmp_path / "my app.bin", app)
    async with serving(source_of(path, tmp_path, seen), seen) as url:
        answer = await curl(option, url)
        head = await curl(option, "--head", url)
        part = await curl(option, "-H", "range: bytes=100-199", url)
        missing = await curl(option, url + "x")
        removed = await curl(option, "-X", "DELETE", url)
    assert url.endswith("/my%20app.bin")
    assert (answer.status, answer.version, answer.body) == (200, version, app)
    assert answer.headers["content-length"] == str(len(app))
    assert "content-encoding" not in answer.headers
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(app)), b"")
    assert (part.status, part.body) == (206, app[100:200])
    assert (missing.status, removed.status) == (404, 405)
    assert "content-length" in missing.headers
    assert any("handed-over" in line for line in seen.deliveries)


async def test_a_file_that_the_build_replaces_is_served_anew_without_a_restart(tmp_path: Path) -> None:
    seen = Seen()
    path = put(tmp_path / "app.bin", sample_app())
    async with serving(source_of(path, tmp_path, seen), seen) as url:
        first = await curl("--http1.1", url)
        put(path, sample_app(size=9000), age_s=-5)
        second = await curl("--http1.1", url)
        put(path, merged_image(), age_s=-10)
        third = await curl("--http1.1", url)
    assert (first.body, second.body) == (sample_app(), sample_app(size=9000))
    assert first.headers["etag"] != second.headers["etag"]
    assert third.status == 422
    assert len({image.version for image in seen.images}) == 2


async def test_a_watched_directory_serves_its_newest_fit_image_under_one_url(tmp_path: Path) -> None:
    seen, build = Seen(), tmp_path / "build"
    build.mkdir()
    put(build / "old.bin", sample_app(), age_s=60)
    put(build / "merged.bin", merged_image(), age_s=10)
    async with serving(source_of(build, tmp_path, seen, watch=True), seen) as url:
        first = await curl("--http1.1", url)
        put(build / "new.bin", sample_app(size=9000))
        second = await curl("--http2-prior-knowledge", url)
    assert url.endswith("/latest.bin")
    assert (first.body, second.body) == (sample_app(), sample_app(size=9000))
    assert seen.passed_over == ["merged.bin"]


async def test_a_half_written_image_never_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    seen = Seen()
    put(tmp_path / "whole.bin", sample_app(), age_s=60)
    put(tmp_path / "half.bin", sample_app(size=9000)[:-40])
    async with serving(source_of(tmp_path / "*.bin", tmp_path, seen, watch=True), seen) as url:
        answer = await curl("--http1.1", url)
    assert answer.body == sample_app()
    assert seen.passed_over == ["half.bin"]


def test_copies_of_builds_do_not_pile_up(tmp_path: Path) -> None:
    seen = Seen()
    source = source_of(tmp_path / "app.bin", tmp_path, seen)
    for number in range(COPIES_KEPT + 3):
        put(tmp_path / "app.bin", sample_app(size=1000 + 600 * number), age_s=-number)
        source.refresh()
    assert len(list((tmp_path / "copies").iterdir())) == COPIES_KEPT
    assert source.current is not None
    assert source.current.path.exists()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (merged_image(), "is a merged image: it must not be hosted"),
        (bootloader_of("esp32-c3"), "is no update"),
        (GUIDE_TABLE, "is no update"),
        (sample_app()[:-1], "is damaged"),
        (b"short", "too short"),
    ],
)
def test_what_devices_must_not_get_is_refused_with_the_reason(data: bytes, text: str) -> None:
    with pytest.raises(Refused, match=text):
        refuse_unfit(inspect(data), "file.bin")


def test_a_merged_image_s_refusal_says_where_the_app_lies() -> None:
    with pytest.raises(Refused) as refused:
        refuse_unfit(inspect(merged_image()), "merged.bin")
    assert "0x20000" in (refused.value.hint or "")


def test_a_directory_needs_watch(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as error:
        source_of(tmp_path, tmp_path, Seen()).refresh()
    assert "--watch" in (error.value.hint or "")


def test_urls_name_the_port_and_an_address_that_others_can_use() -> None:
    assert url_for(Address("192.168.1.5", 3001), "a b.bin") == "http://192.168.1.5:3001/a%20b.bin"
    assert url_for(Address("0.0.0.0", 3001), "a.bin") == f"http://{lan_address()}:3001/a.bin"
    assert url_for(Address("::1", 80), "a.bin") == "http://[::1]:80/a.bin"


def test_the_service_entry_is_the_one_that_micro_rdk_reads() -> None:
    assert service_config("http://h:1/a", "v1") == {
        "name": "OTA",
        "namespace": "rdk",
        "type": "generic",
        "model": "ota_service",
        "attributes": {"url": "http://h:1/a", "version": "v1"},
    }


def test_a_version_that_micro_rdk_does_not_take_is_refused() -> None:
    check_version("v" * 128)
    with pytest.raises(FlotaError):
        check_version("ü" * 65)


@pytest.mark.scenario
async def test_the_command_prints_a_url_that_works_and_the_service_entry(tmp_path: Path) -> None:
    path = put(tmp_path / "app.bin", sample_app())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flota", "image", "serve", str(path), "--port", "0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(PROGRAM_WITHIN_S):
        said = (await process.stdout.readuntil(b"\n}\n")).decode()
        entry = json.loads(said[said.index("{") :])
        url = re.search(r"^at +(http://\S+)$", said, re.MULTILINE)
        assert url is not None
        answer = await curl("--http2-prior-knowledge", url.group(1))
        process.send_signal(signal.SIGTERM)
        await process.stdout.read()
        assert await process.wait() == 0
    assert answer.body == sample_app()
    assert entry["attributes"]["url"] == url.group(1)
    assert entry["attributes"]["version"].startswith("1.2.3+")


@pytest.mark.scenario
async def test_the_command_refuses_a_merged_image(tmp_path: Path) -> None:
    path = put(tmp_path / "merged.bin", merged_image())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flota", "image", "serve", str(path), stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert b"must not be hosted" in said
