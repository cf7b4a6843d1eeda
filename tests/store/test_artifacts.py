from __future__ import annotations

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flota.digests import digests_of
from flota.errors import InvalidInput, NotFound, StorageFull
from flota.store import artifacts
from flota.store.artifacts import ArtifactStore


def files_under(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def stored(store: ArtifactStore, data: bytes) -> str:
    with store.upload(len(data)) as upload:
        upload.write(data)
        return upload.finish().sha256


def test_what_was_uploaded_in_pieces_is_found_by_its_digest(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with store.upload() as upload:
        upload.write(b"firm")
        upload.write(memoryview(b"ware"))
        assert upload.size == 8
        digests = upload.finish()
    assert digests == digests_of(b"firmware")
    assert store.read(digests.sha256) == b"firmware"
    assert store.contains(digests.sha256.upper())
    sha = digests.sha256
    assert store.path(sha) == tmp_path / "objects" / sha[:2] / sha[2:4] / sha
    assert files_under(tmp_path) == [f"objects/{sha[:2]}/{sha[2:4]}/{sha}"]


def test_the_same_bytes_twice_are_one_file_that_is_not_touched_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    sha = stored(store, b"firmware")
    before = store.path(sha).stat()
    assert stored(store, b"firmware") == sha
    assert store.path(sha).stat() == before
    assert len(files_under(tmp_path)) == 1


def test_concurrent_uploads_of_the_same_and_of_other_bytes_all_arrive(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    bodies = [bytes([number % 4]) * 100_000 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        shas = list(pool.map(lambda body: stored(store, body), bodies))
    assert [store.read(sha) for sha in shas] == bodies
    assert len(files_under(tmp_path)) == 4


def test_an_empty_file_is_an_artifact_too(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    assert store.read(stored(store, b"")) == b""


@pytest.mark.parametrize("announced", [7, 9])
def test_a_body_of_another_length_than_announced_is_refused_and_leaves_nothing(tmp_path: Path, announced: int) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(InvalidInput) as caught, store.upload(announced) as upload:
        upload.write(b"firm")
        upload.write(b"ware")
        upload.finish()
    assert caught.value.offset == min(announced, 8)
    assert files_under(tmp_path) == []


def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(ConnectionResetError), store.upload() as upload:
        upload.write(b"firm")
        raise ConnectionResetError
    with store.upload() as upload:
        upload.write(b"firm")
    assert files_under(tmp_path) == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "ab" * 31, "ab" * 33, "zz" * 32, "ab\0" + "ab" * 30])
def test_only_digests_are_names(tmp_path: Path, name: str) -> None:
    store = ArtifactStore(tmp_path)
    for ask in (store.path, store.read, store.contains):
        with pytest.raises(InvalidInput):
            ask(name)


def test_a_digest_that_is_not_here_is_not_found(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    assert not store.contains("00" * 32)
    with pytest.raises(NotFound):
        store.read("00" * 32)


def test_partial_uploads_of_a_dead_process_are_cleaned_at_start_up(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    sha = stored(store, b"firmware")
    for number in range(3):
        (tmp_path / "incoming" / f"left-{number}.partial").write_bytes(b"half")
    assert ArtifactStore(tmp_path).clean_partial_uploads() == 3
    assert store.read(sha) == b"firmware"
    assert len(files_under(tmp_path)) == 1


def test_an_upload_that_the_disk_cannot_take_is_refused_before_it_begins(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(StorageFull) as caught, store.upload(1 << 60):
        pytest.fail("the upload began")
    assert caught.value.hint
    assert files_under(tmp_path) == []


def test_uploads_under_way_count_against_the_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=artifacts.SPARE_BYTES + 100)
    monkeypatch.setattr(artifacts.shutil, "disk_usage", lambda _: usage)
    store = ArtifactStore(tmp_path)
    with store.upload(60), pytest.raises(StorageFull), store.upload(60):
        pytest.fail("both were let in")
    with store.upload(60):
        pass  # the first one's reservation is gone


@pytest.mark.parametrize("operation", ["write", "fsync"])
def test_a_disk_that_fills_up_on_the_way_is_storage_full_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    store = ArtifactStore(tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageFull), store.upload() as upload:
        if operation == "write":
            monkeypatch.setattr(upload._writer._file, "write", full, raising=False)
        else:
            monkeypatch.setattr("os.fsync", full)
        upload.write(b"x" * 100_000)
        upload.finish()
    monkeypatch.undo()
    assert files_under(tmp_path) == []
    assert store.read(stored(store, b"afterwards")) == b"afterwards"


def test_a_real_full_file_system_is_storage_full_and_leaves_nothing(tmp_path: Path) -> None:
    """`/dev/full` answers every write as a full disk does."""
    store = ArtifactStore(tmp_path)
    with pytest.raises(StorageFull), store.upload() as upload:
        os.dup2(os.open("/dev/full", os.O_WRONLY), upload._writer._file.fileno())
        upload.write(b"x" * 100_000)
        upload.finish()
    assert files_under(tmp_path) == []
