"""Files that parts are read from: open while they are asked for, never longer than they exist, never too many."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from flota.server.api import part_files
from flota.server.api.part_files import FILES_OPEN_MAX, PartFiles

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


async def test_what_is_deleted_is_not_read_and_keeps_no_room_on_the_disk(image: Path) -> None:
    files = PartFiles()
    assert files.read(str(image), 0, 1) == b"\x00"
    remove(image)
    await asyncio.sleep(0.01)
    assert (files.read(str(image), 0, 1), len(files)) == (b"", 0)


async def test_what_was_put_in_its_place_is_read_instead(image: Path) -> None:
    files = PartFiles()
    assert files.read(str(image), 0, 1) == b"\x00"
    other = image.with_name("other")
    other.write_bytes(b"other")
    other.replace(image)
    await asyncio.sleep(0.01)
    assert files.read(str(image), 0, 5) == b"other"


async def test_a_file_that_nobody_asks_for_any_more_is_closed(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_files, "IDLE_S", 0.05)
    files = PartFiles()
    for _ in range(4):
        assert files.read(str(image), 0, 1) == b"\x00"
        assert len(files) == 1
        await asyncio.sleep(0.02)
    while len(files):  # noqa: ASYNC110 - that it is closed is told to nobody
        await asyncio.sleep(0.01)
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
    await asyncio.sleep(0.01)
    assert [files.read(str(path), 0, 99) for path in paths] == [b""] * len(paths)
    assert open_below(tmp_path) == 0


async def test_what_cannot_be_opened_or_read_gives_nothing(tmp_path: Path) -> None:
    files = PartFiles()
    assert files.read(str(tmp_path / "missing"), 0, 1) == b""
    assert files.read(str(tmp_path), 0, 1) == b""  # a directory opens, but has no bytes
    assert len(files) == 0
