"""Fetched once for many, whole or not at all, and never more than the bound."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flota.errors import TooLarge
from flota.gateway import artifact_cache
from flota.gateway.artifact_cache import ArtifactCache, Source
from flota.transports.download import DigestMismatch, NotOffered
from flota.transports.http import http_client
from tests.virtual.small_server import Answer, Request, SmallServer, file_answer, small_server


@dataclass
class Files:
    """Files by path; `cuts` break links after so many body bytes."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int | None] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    server: SmallServer | None = None

    def handle(self, request: Request) -> Answer:
        if request.headers.get("authorization") in self.refused:
            return Answer(404)
        cut = self.cuts.pop(0) if self.cuts else None
        return file_answer(request, self.files[request.path], '"1"', cut_after=cut)

    def source(self, path: str, *, who: str = "a") -> Source:
        assert self.server is not None
        data = self.files[path]
        digest = hashlib.sha256(data).hexdigest()
        return Source(f"{self.server.url}{path}", {"authorization": who}, len(data), digest)

    @property
    def asked(self) -> int:
        assert self.server is not None
        return len(self.server.requests)


@asynccontextmanager
async def opened(tmp_path: Path, files: Files, *, max_bytes: int = 10**7) -> AsyncIterator[ArtifactCache]:
    async with small_server(files.handle) as server, http_client() as client:
        files.server = server
        yield ArtifactCache(tmp_path, client, max_bytes=max_bytes, rng=random.Random(1))


async def test_fifty_devices_at_once_make_one_download(tmp_path: Path) -> None:
    files = Files({"/a": b"firmware" * 50_000})
    async with opened(tmp_path, files) as cache:
        got = await asyncio.gather(*(cache.get(files.source("/a", who=str(n))) for n in range(50)))
    assert set(got) == {files.files["/a"]}
    assert files.asked == 1
    assert cache.counts.downloads == 1


async def test_a_device_whose_look_was_slow_does_not_download_what_another_has_fetched_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, fetched, looks = Files({"/a": b"firmware"}), asyncio.Event(), []

    async def look(read: Callable[[], bytes]) -> bytes:
        looks.append(read)
        try:
            return read()
        finally:
            if len(looks) == 1:
                await fetched.wait()

    async with opened(tmp_path, files) as cache:
        monkeypatch.setattr(artifact_cache.asyncio, "to_thread", look)
        slow = asyncio.create_task(cache.get(files.source("/a", who="slow")))
        await asyncio.sleep(0)
        assert await cache.get(files.source("/a", who="quick")) == b"firmware"
        fetched.set()
        assert await slow == b"firmware"
    assert (len(looks), files.asked, cache.counts.downloads) == (3, 1, 1)


async def test_a_broken_download_goes_on_where_it_was(tmp_path: Path) -> None:
    files = Files({"/a": b"firmware" * 50_000}, cuts=[100_000, 50_000])
    async with opened(tmp_path, files) as cache:
        assert await cache.get(files.source("/a")) == files.files["/a"]
        assert files.server is not None
        assert [each.headers.get("range") for each in files.server.requests] == [
            None,
            "bytes=100000-",
            "bytes=150000-",
        ]


async def test_after_a_restart_a_download_goes_on_and_a_whole_file_is_not_fetched_again(tmp_path: Path) -> None:
    files = Files({"/a": b"firmware" * 50_000})
    digest = hashlib.sha256(files.files["/a"]).hexdigest()
    (tmp_path / f"{digest}.part").write_bytes(files.files["/a"][:70_000])
    async with opened(tmp_path, files) as cache:
        await cache.get(files.source("/a"))
        assert files.server is not None
        assert files.server.requests[0].headers["range"] == "bytes=70000-"
    async with opened(tmp_path, files) as cache:
        assert await cache.get(files.source("/a")) == files.files["/a"]
        assert files.asked == 0


async def test_a_file_that_was_damaged_on_the_disk_is_fetched_again(tmp_path: Path) -> None:
    files = Files({"/a": b"firmware" * 5000})
    digest = hashlib.sha256(files.files["/a"]).hexdigest()
    (tmp_path / digest).write_bytes(b"something else")
    async with opened(tmp_path, files) as cache:
        assert await cache.get(files.source("/a")) == files.files["/a"]


async def test_wrong_bytes_are_never_given_out_and_the_next_try_begins_anew(tmp_path: Path) -> None:
    files = Files({"/a": b"firmware" * 5000})
    right = files.source
    async with opened(tmp_path, files) as cache:
        wanted = right("/a")
        files.files["/a"] = b"Firmware" * 5000
        with pytest.raises(DigestMismatch):
            await cache.get(wanted)
        files.files["/a"] = b"firmware" * 5000
        assert await cache.get(wanted) == files.files["/a"]


async def test_one_device_that_may_not_have_the_file_does_not_keep_others_from_it(tmp_path: Path) -> None:
    files = Files({"/a": b"firmware" * 5000}, refused={"bad"})
    async with opened(tmp_path, files) as cache:
        got = await asyncio.gather(
            cache.get(files.source("/a", who="bad")), cache.get(files.source("/a", who="good")), return_exceptions=True
        )
    assert isinstance(got[0], NotOffered)
    assert got[1] == files.files["/a"]


async def test_the_directory_stays_below_its_bound_and_the_least_used_go_first(tmp_path: Path) -> None:
    files = Files({f"/{n}": bytes([n]) * 100_000 for n in range(5)})
    async with opened(tmp_path, files, max_bytes=350_000) as cache:
        for n in range(5):
            await cache.get(files.source(f"/{n}"))
            assert sum(_sizes(tmp_path).values()) <= 350_000
        assert _sizes(tmp_path).keys() == {files.source(f"/{n}").sha256 for n in (2, 3, 4)}
        assert cache.counts.evicted == 2


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir()}


async def test_a_file_larger_than_the_cache_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    files = Files({"/a": b"x" * 5000})
    async with opened(tmp_path, files, max_bytes=1000) as cache:
        with pytest.raises(TooLarge):
            await cache.get(files.source("/a"))
    assert files.asked == 0
