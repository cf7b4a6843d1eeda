"""Files that parts are read from: open while they are asked for, never longer than they exist, never too many."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flota.server.api import part_files
from flota.server.api.part_files import BLOCK_BYTES, BLOCKS_KEPT_MAX, FILES_OPEN_MAX, LOOK_EVERY_S, PartFiles

DESCRIPTORS = Path("/proc/self/fd")


def open_below(directory: Path) -> int:
    """Return how many files of the directory are open, deleted ones too, and none of other tests."""
    found = 0
    for descriptor in DESCRIPTORS.iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found += str(descriptor.readlink()).startswith(f"{directory}/")
    return found


def remove(*paths: Path) -> None:
    for path in paths:
        path.unlink()


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.bin"
    path.write_bytes(bytes(range(256)))
    return path


async def test_a_file_is_opened_once_for_all_its_parts(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, opened, open_now = PartFiles(), [], os.open

    def counted_open(path: str, flags: int) -> int:
        opened.append(path)
        return open_now(path, flags)

    monkeypatch.setattr(part_files.os, "open", counted_open)
    assert [files.read(str(image), at, 2) for at in (0, 254, 255, 256)] == [b"\x00\x01", b"\xfe\xff", b"\xff", b""]
    assert (opened, len(files)) == ([str(image)], 1)


LARGE = bytes(n % 251 for n in range(3 * BLOCK_BYTES + 1000))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.tuples(st.integers(0, len(LARGE) + 9), st.integers(0, 2 * BLOCK_BYTES)), max_size=9))
async def test_every_part_is_that_of_the_file_wherever_blocks_begin(
    tmp_path: Path, parts: list[tuple[int, int]]
) -> None:
    path = tmp_path / "large.bin"
    if not path.exists():
        path.write_bytes(LARGE)
    files = PartFiles()
    for offset, length in parts:
        assert files.read(str(path), offset, length) == LARGE[offset : offset + length]


async def test_parts_one_after_the_other_are_read_from_the_file_a_block_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads, read_now = tmp_path / "large.bin", [], os.pread
    path.write_bytes(LARGE)

    def counted_read(descriptor: int, length: int, offset: int) -> bytes:
        reads.append(offset)
        return read_now(descriptor, length, offset)

    monkeypatch.setattr(part_files.os, "pread", counted_read)
    files = PartFiles()
    for _ in range(2):  # two devices
        parts = [files.read(str(path), offset, 4096) for offset in range(0, len(LARGE), 4096)]
        assert b"".join(parts) == LARGE
    assert reads == [0, BLOCK_BYTES, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES]


async def test_so_many_blocks_are_kept_at_most_and_none_of_a_closed_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse.bin"
    with path.open("wb") as file:
        file.truncate((BLOCKS_KEPT_MAX + 3) * BLOCK_BYTES)
    files = PartFiles()
    for number in range(BLOCKS_KEPT_MAX + 3):
        assert files.read(str(path), number * BLOCK_BYTES, 10) == bytes(10)
    assert files.blocks_kept == BLOCKS_KEPT_MAX
    remove(path)
    await asyncio.sleep(2 * LOOK_EVERY_S)
    assert (files.read(str(path), 0, 1), files.blocks_kept) == (b"", 0)


async def test_what_was_written_into_a_file_is_read_though_a_block_of_it_was_kept(image: Path) -> None:
    files = PartFiles()
    assert files.read(str(image), 0, 2) == b"\x00\x01"
    overwrite(image, b"other" * 100)
    await asyncio.sleep(2 * LOOK_EVERY_S)
    assert files.read(str(image), 0, 5) == b"other"


async def test_what_was_written_over_with_as_many_bytes_is_read_again(image: Path) -> None:
    files = PartFiles()
    assert files.read(str(image), 0, 1) == b"\x00"
    overwrite(image, bytes(reversed(range(256))))
    os.utime(image, ns=(0, 0))  # a clock of coarse steps might show the same time twice
    await asyncio.sleep(2 * LOOK_EVERY_S)
    assert files.read(str(image), 0, 1) == b"\xff"


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="the system does not show a process's descriptors")
async def test_threads_do_not_keep_more_than_the_bounds_nor_lose_a_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_files, "BLOCKS_KEPT_MAX", 1)
    monkeypatch.setattr(part_files, "FILES_OPEN_MAX", 1)
    monkeypatch.setattr(part_files, "LOOK_EVERY_S", 0.0)
    read_now, reading, together = os.pread, [], set()

    def slow_read(descriptor: int, length: int, offset: int) -> bytes:
        reading.append(offset)
        time.sleep(0.0005)  # another thread's turn, in the middle of everything
        together.add(len(reading))
        reading.pop()
        return read_now(descriptor, length, offset)

    monkeypatch.setattr(part_files.os, "pread", slow_read)
    paths = [tmp_path / name for name in ("a.bin", "b.bin")]
    for path in paths:
        overwrite(path, path.name.encode() * BLOCK_BYTES)
    files, kept = PartFiles(), set()

    def fetch(seed: int) -> None:
        for step in range(100):
            path = paths[(seed + step) % 2]
            offset = step % 32 * 4096
            expected = (path.name.encode() * (4096 + 5))[offset % 5 :][:4096]
            assert files.read(str(path), offset, 4096) == expected
            kept.add(len(files))

    await asyncio.gather(*(asyncio.to_thread(fetch, seed) for seed in range(4)))
    assert (together, kept) == ({1}, {1})
    assert open_below(tmp_path) == 1


async def test_what_is_deleted_is_not_read_and_keeps_no_room_on_the_disk(image: Path) -> None:
    files = PartFiles()
    assert files.read(str(image), 0, 1) == b"\x00"
    remove(image)
    await asyncio.sleep(2 * LOOK_EVERY_S)
    assert (files.read(str(image), 0, 1), len(files)) == (b"", 0)


async def test_what_was_put_in_its_place_is_read_instead(image: Path) -> None:
    files = PartFiles()
    assert files.read(str(image), 0, 1) == b"\x00"
    other = image.with_name("other")
    other.write_bytes(b"other")
    other.replace(image)
    await asyncio.sleep(2 * LOOK_EVERY_S)
    assert files.read(str(image), 0, 5) == b"other"


async def test_a_file_that_nobody_asks_for_any_more_is_closed(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_files, "IDLE_S", 0.05)
    files = PartFiles()
    for _ in range(4):
        assert files.read(str(image), 0, 1) == b"\x00"
        assert len(files) == 1
        await asyncio.sleep(0.02)
    while len(files):  # noqa: ASYNC110 - that it is closed is told to nobody
        await asyncio.sleep(2 * LOOK_EVERY_S)
    assert files.read(str(image), 0, 1) == b"\x00"


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="the system does not show a process's descriptors")
async def test_so_many_files_are_open_at_most_and_none_stays_open_without_its_owner(tmp_path: Path) -> None:
    files = PartFiles()
    paths = [tmp_path / f"{number}.bin" for number in range(FILES_OPEN_MAX + 5)]
    for path in paths:
        path.write_bytes(path.name.encode())
        assert files.read(str(path), 0, 99) == path.name.encode()
    assert len(files) == FILES_OPEN_MAX
    assert open_below(tmp_path) == FILES_OPEN_MAX
    remove(*paths)
    await asyncio.sleep(2 * LOOK_EVERY_S)
    assert [files.read(str(path), 0, 99) for path in paths] == [b""] * len(paths)
    assert open_below(tmp_path) == 0


async def test_what_cannot_be_opened_or_read_gives_nothing(tmp_path: Path) -> None:
    files = PartFiles()
    assert files.read(str(tmp_path / "missing"), 0, 1) == b""
    assert files.read(str(tmp_path), 0, 1) == b""  # a directory opens, but has no bytes
    assert len(files) == 0
