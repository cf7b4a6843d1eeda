"""Whole files over plain HTTP/2: the same bytes as ever, in pieces that grow only while there is room."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import h2.connection
import h2.settings
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flota.errors import FlotaError
from flota.server.api.artifacts import send_artifact
from flota.server.api.whole_files import (
    FIRST_PIECE_BYTES,
    LARGEST_PIECE_BYTES,
    PIECES_HELD,
    QUICK_S,
    ROOM_BYTES,
    WHOLE_FILES,
    Pace,
    Room,
    WholeFiles,
)
from flota.server.listeners import Listener
from tests.server.programs import curl
from tests.server.serving import listening, url_of

IMAGE = random.Random(3).randbytes((4 << 20) + 12_345)
SHA256 = hashlib.sha256(IMAGE).hexdigest()
QUICKLY, SLOWLY = 0.0, QUICK_S + 1

paces = st.lists(st.sampled_from([QUICKLY, SLOWLY]), max_size=60)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(IMAGE)
    return path


def sizes_of(pace: Pace, took: list[float]) -> list[int]:
    """Return the sizes of the pieces that a reader gets who takes each of them in so many seconds."""
    sizes, offset = [], 0
    for seconds in took:
        sizes.append(pace.size)
        offset += pace.size
        pace.taken(offset, seconds)
    return sizes


def test_pieces_grow_for_a_reader_who_takes_them_and_shrink_for_one_who_is_slow() -> None:
    sizes = sizes_of(Pace(Room(ROOM_BYTES)), [QUICKLY] * 5 + [SLOWLY, QUICKLY, QUICKLY])
    assert [size >> 10 for size in sizes] == [128, 128, 256, 512, 512, 512, 128, 128]


def test_a_reader_who_takes_nothing_never_gets_more_than_the_first_size() -> None:
    room = Room(ROOM_BYTES)
    assert set(sizes_of(Pace(room), [SLOWLY] * 20)) == {FIRST_PIECE_BYTES}
    assert room.free == ROOM_BYTES


def test_without_room_nobody_grows_and_who_ends_leaves_room_for_the_next() -> None:
    room = Room((LARGEST_PIECE_BYTES - FIRST_PIECE_BYTES) * PIECES_HELD)
    first, second = Pace(room), Pace(room)
    assert max(sizes_of(first, [QUICKLY] * 8)) == LARGEST_PIECE_BYTES
    assert room.free == 0
    assert set(sizes_of(second, [QUICKLY] * 8)) == {FIRST_PIECE_BYTES}
    first.end()
    assert max(sizes_of(second, [QUICKLY] * 8)) == LARGEST_PIECE_BYTES


@given(took=paces, total=st.integers(0, 4 << 20))
def test_no_piece_reaches_over_a_block_and_the_room_is_never_overdrawn(took: list[float], total: int) -> None:
    room = Room(total)
    pace = Pace(room)
    offset = 0
    for seconds in took:
        assert offset // LARGEST_PIECE_BYTES == (offset + pace.size - 1) // LARGEST_PIECE_BYTES
        assert 0 <= room.free <= total - (pace.size - FIRST_PIECE_BYTES) * PIECES_HELD
        offset += pace.size
        pace.taken(offset, seconds)
    pace.end()
    assert room.free == total


@pytest.mark.parametrize("cache", [0, 1 << 20, 16 << 20], ids=["no cache", "too small a cache", "all of it"])
@pytest.mark.parametrize("room", [0, 1 << 20, ROOM_BYTES])
async def test_every_download_has_the_files_bytes(image: Path, cache: int, room: int) -> None:
    files = WholeFiles(room=room, cache=cache)
    for _ in range(2):
        assert b"".join(await bodies_of(files, image)) == IMAGE
    assert files.room.free == room


async def test_a_disk_that_must_be_waited_for_gives_the_same_bytes(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flota.server.api.whole_files._NOWAIT", None)
    assert b"".join(await bodies_of(WholeFiles(), image)) == IMAGE


async def test_a_file_that_was_written_anew_is_not_answered_from_the_old_ones_blocks(image: Path) -> None:
    files = WholeFiles()
    await bodies_of(files, image)
    other = image.with_name("other")
    other.write_bytes(IMAGE[::-1])
    other.replace(image)
    assert b"".join(await bodies_of(files, image)) == IMAGE[::-1]


async def test_a_file_that_becomes_shorter_ends_the_download_with_our_error_and_gives_the_room_back(
    image: Path,
) -> None:
    files = WholeFiles(cache=0)

    def cut(count: int) -> None:
        if count == 4:
            os.truncate(image, 700_000)

    with pytest.raises(FlotaError, match="shorter"):
        await bodies_of(files, image, after_each=cut)
    assert files.room.free == ROOM_BYTES


async def test_a_peer_that_goes_away_ends_the_download(image: Path) -> None:
    left = asyncio.Event()

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    files, taken = WholeFiles(), []

    async def send(message: Message) -> None:
        taken.append(message)
        if len(taken) == 3:
            left.set()
        await asyncio.sleep(0)

    with image.open("rb") as file:
        assert not await files.send(receive, send, file.fileno())
    assert sum(len(message["body"]) for message in taken) < len(IMAGE)
    assert files.room.free == ROOM_BYTES


@pytest.mark.program
async def test_curl_gets_the_file_over_plain_http2_and_head_and_ranges_are_as_ever(image: Path) -> None:
    async with listening(_one_file(image)) as listener:
        url = url_of(listener, "/")
        for _ in range(2):
            answer = await curl("--http2-prior-knowledge", url)
            assert (answer.status, answer.body) == (200, IMAGE)
            assert answer.headers["content-length"] == str(len(IMAGE))
        head = await curl("--http2-prior-knowledge", "-I", url)
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(IMAGE)))
        part = await curl("--http2-prior-knowledge", "-r", "500000-600000", url)
        assert (part.status, part.body) == (206, IMAGE[500_000:600_001])


async def test_stalled_readers_leave_room_for_no_more_than_was_set_and_give_it_back_when_they_go(image: Path) -> None:
    """More readers than there is room for stop reading at once; a further one is served all the same."""
    async with listening(_one_file(image)) as listener:
        readers = await asyncio.to_thread(lambda: [_stalled_reader(listener) for _ in range(80)])
        try:
            await _until(lambda: WHOLE_FILES.room.free < ROOM_BYTES)
            assert WHOLE_FILES.room.free >= 0
            answer = await curl("--http2-prior-knowledge", url_of(listener, "/"))
            assert answer.body == IMAGE
        finally:
            for reader in readers:
                reader.close()
        await _until(lambda: WHOLE_FILES.room.free == ROOM_BYTES)


async def bodies_of(
    files: WholeFiles, path: Path, *, after_each: Callable[[int], None] = lambda _count: None
) -> list[bytes]:
    """Return the pieces of one download."""
    bodies: list[bytes] = []

    async def send(message: Message) -> None:
        assert message["type"] == "http.response.body"
        bodies.append(message["body"])
        assert message["more_body"] == (sum(map(len, bodies)) < len(IMAGE))
        after_each(len(bodies))

    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert await files.send(_nobody_leaves, send, descriptor)
    finally:
        os.close(descriptor)
    return bodies


async def _until(true: Callable[[], bool]) -> None:
    """Wait for what follows from sockets that others read: nobody tells when."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def _one_file(path: Path) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_artifact(scope, receive, send, path, sha256=SHA256)

    return app


def _stalled_reader(listener: Listener) -> socket.socket:
    """Ask with windows as wide as they go, read the answer's header, then nothing."""
    connection = h2.connection.H2Connection()
    widest = (1 << 31) - 1
    connection.local_settings = h2.settings.Settings(
        client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: widest}
    )
    connection.initiate_connection()
    connection.increment_flow_control_window(widest - 65_535)
    request = {":method": "GET", ":path": "/", ":scheme": "http", ":authority": "x"}
    connection.send_headers(1, list(request.items()), end_stream=True)
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect((listener.address.host, listener.address.port))
    reader.sendall(connection.data_to_send())
    reader.recv(64)
    return reader


async def _nobody_leaves() -> Message:
    await asyncio.Event().wait()
    raise AssertionError
