"""Bodies from files: the same bytes as ever, in pieces that grow only while there is room, and what a stalled reader
costs."""

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
from flota.server.api.file_bodies import (
    FILE_BODIES,
    FIRST_PIECE_BYTES,
    LARGEST_PIECE_BYTES,
    LARGEST_WATCHED_PIECE_BYTES,
    PIECES_HELD,
    QUICK_S,
    ROOM_MAX_BYTES,
    TAIL_BYTES,
    FileBodies,
    Pace,
    Room,
)
from flota.server.listeners import HTTP2_SEND_BUFFER_BYTES, Listener
from tests.server.programs import curl
from tests.server.serving import listening, url_of

IMAGE = random.Random(3).randbytes((4 << 20) + 12_345)
SHA256 = hashlib.sha256(IMAGE).hexdigest()
QUICKLY, SLOWLY = 0.0, QUICK_S + 1
STALLED = 20
STATM = Path("/proc/self/statm")
WIDEST_WINDOW = (1 << 31) - 1

paces = st.lists(st.sampled_from([QUICKLY, SLOWLY]), max_size=60)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(IMAGE)
    return path


def sizes_of(pace: Pace, length: int, took: list[float], *, first: int = 0) -> list[int]:
    """Return the sizes of the pieces that a reader gets who takes each in so many seconds, the last for ever."""
    sizes: list[int] = []
    while (done := sum(sizes)) < length:
        sizes.append(pace.next(first + done, length - done))
        pace.taken(took[min(len(sizes), len(took)) - 1])
    return sizes


def test_pieces_grow_for_a_reader_who_takes_them_shrink_for_one_who_is_slow_and_end_small() -> None:
    quick = sizes_of(Pace(Room(ROOM_MAX_BYTES)), 1 << 20, [QUICKLY])
    assert [size >> 10 for size in quick] == [16, 64, 256, 176, 384] + [16] * 8
    slow_once = sizes_of(Pace(Room(ROOM_MAX_BYTES)), 4 << 20, [QUICKLY] * 5 + [SLOWLY, QUICKLY])
    assert [size >> 10 for size in slow_once[:9]] == [16, 64, 256, 176, 512, 512, 128, 384, 512]


def test_a_reader_who_takes_nothing_never_gets_more_than_the_first_size() -> None:
    room = Room(ROOM_MAX_BYTES)
    assert set(sizes_of(Pace(room), 4 << 20, [SLOWLY])) == {FIRST_PIECE_BYTES}
    assert room.free == ROOM_MAX_BYTES


def test_where_the_end_is_reported_all_pieces_held_are_less_than_an_image_of_1_mib() -> None:
    sizes = sizes_of(Pace(Room(ROOM_MAX_BYTES), LARGEST_WATCHED_PIECE_BYTES), 4 << 20, [QUICKLY])
    assert max(sizes) * PIECES_HELD < 1 << 20


def test_without_room_nobody_grows_and_who_ends_leaves_room_for_the_next() -> None:
    room = Room((LARGEST_PIECE_BYTES - FIRST_PIECE_BYTES) * PIECES_HELD)
    first, second = Pace(room), Pace(room)
    for number in range(20):
        first.next(number * LARGEST_PIECE_BYTES, 1 << 30)
        first.taken(QUICKLY)
    assert room.free == 0
    assert set(sizes_of(second, 4 << 20, [QUICKLY])) == {FIRST_PIECE_BYTES}
    first.end()
    assert max(sizes_of(second, 4 << 20, [QUICKLY])) == LARGEST_PIECE_BYTES


def test_what_is_still_in_memory_when_the_last_piece_was_taken_over_is_small() -> None:
    """Nobody tells when the reader has had it, so it must not have been in large pieces."""
    room = Room(ROOM_MAX_BYTES)
    sizes = sizes_of(Pace(room), 4 << 20, [QUICKLY])
    assert sum(sizes[-PIECES_HELD:]) <= TAIL_BYTES
    assert room.free == ROOM_MAX_BYTES


@given(took=paces, total=st.integers(0, 4 << 20), first=st.integers(0, 1 << 20), length=st.integers(1, 6 << 20))
def test_the_room_has_what_the_pieces_held_are_beyond_the_first_size_and_is_never_overdrawn(
    took: list[float], total: int, first: int, length: int
) -> None:
    room = Room(total)
    pace = Pace(room)
    sizes: list[int] = []
    while (done := sum(sizes)) < length:
        size = pace.next(first + done, length - done)
        sizes.append(size)
        assert 0 < size <= min(length - done, LARGEST_PIECE_BYTES)
        assert size <= FIRST_PIECE_BYTES or (first + done) % LARGEST_PIECE_BYTES + size <= LARGEST_PIECE_BYTES
        held = sum(max(0, kept - FIRST_PIECE_BYTES) for kept in sizes[-PIECES_HELD:])
        assert 0 <= room.free == total - held
        pace.taken(took[len(sizes) % len(took)] if took else QUICKLY)
    assert sizes[0] >= min(length, 288)  # what a micro-RDK wants of the first frame
    pace.end()
    assert room.free == total


@pytest.mark.parametrize("cache", [0, 1 << 20, 16 << 20], ids=["no cache", "too small a cache", "all of it"])
@pytest.mark.parametrize("room", [0, 1 << 20, ROOM_MAX_BYTES])
async def test_every_download_has_the_files_bytes(image: Path, cache: int, room: int) -> None:
    files = FileBodies(room=room, cache=cache)
    for _ in range(2):
        assert b"".join(await bodies_of(files, image)) == IMAGE
    assert files.room.free == room


@pytest.mark.parametrize("cache", [0, 16 << 20], ids=["no cache", "all of it"])
@pytest.mark.parametrize(
    ("first", "length"), [(0, 100_000), (262_000, 200_000), (100, 3 << 20), (len(IMAGE) - 70_000, 70_000)]
)
async def test_every_part_has_the_files_bytes_also_over_the_ends_of_blocks(
    image: Path, cache: int, first: int, length: int
) -> None:
    assert b"".join(await bodies_of(FileBodies(cache=cache), image, first, length)) == IMAGE[first : first + length]


async def test_a_disk_that_must_be_waited_for_gives_the_same_bytes(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flota.server.api.file_bodies._NOWAIT", None)
    assert b"".join(await bodies_of(FileBodies(), image)) == IMAGE


async def test_a_file_that_was_written_anew_is_not_answered_from_the_old_ones_blocks(image: Path) -> None:
    files = FileBodies()
    await bodies_of(files, image)
    other = image.with_name("other")
    other.write_bytes(IMAGE[::-1])
    other.replace(image)
    assert b"".join(await bodies_of(files, image)) == IMAGE[::-1]


async def test_a_file_that_becomes_shorter_ends_the_download_with_our_error_and_gives_the_room_back(
    image: Path,
) -> None:
    files = FileBodies(cache=0)

    def cut(count: int) -> None:
        if count == 4:
            os.truncate(image, 900_000)

    with pytest.raises(FlotaError, match="shorter"):
        await bodies_of(files, image, after_each=cut)
    assert files.room.free == ROOM_MAX_BYTES


async def test_a_peer_that_goes_away_ends_the_download(image: Path) -> None:
    left = asyncio.Event()

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    files, taken = FileBodies(), []

    async def send(message: Message) -> None:
        taken.append(message)
        if len(taken) == 3:
            left.set()
        await asyncio.sleep(0)

    with image.open("rb") as file:
        assert not await files.send(receive, send, file.fileno(), 0, len(IMAGE), watched=False)
    assert sum(len(message["body"]) for message in taken) < len(IMAGE)
    assert files.room.free == ROOM_MAX_BYTES


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


async def test_granian_holds_as_many_pieces_as_we_reckon_with() -> None:
    """What memory a reader costs follows from this number, and another version of granian may have another."""
    taken_over, is_read = 0, True

    async def endless(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal taken_over
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while is_read:  # to a reader that has gone granian takes everything, at once
            await send({"type": "http.response.body", "body": bytes(FIRST_PIECE_BYTES), "more_body": True})
            taken_over += 1

    async with listening(endless) as listener:
        with await asyncio.to_thread(_stalled_reader, listener, window=1):  # one byte is enough to open a piece
            opened_or_queued = await _settled(lambda: taken_over)
            is_read = False
    assert opened_or_queued + 2 == PIECES_HELD  # one more waits, and when a piece is nearly sent the next is open too
    assert HTTP2_SEND_BUFFER_BYTES <= FIRST_PIECE_BYTES


@pytest.mark.skipif(not STATM.exists(), reason="the system does not tell a process's memory")
async def test_readers_with_endless_windows_who_stop_reading_cost_a_small_part_of_their_files(image: Path) -> None:
    """Measured in this process, which is the server; a further reader is served all the same."""
    files = FileBodies(room=4 << 20, cache=0)
    bound = STALLED * (TAIL_BYTES + HTTP2_SEND_BUFFER_BYTES) + (4 << 20)
    async with listening(_one_file(image, files)) as listener:
        before = _resident_bytes()
        readers = await asyncio.to_thread(lambda: [_stalled_reader(listener) for _ in range(STALLED)])
        try:
            await _settled(_resident_bytes)
            cost = _resident_bytes() - before
            assert 0 <= files.room.free < 4 << 20
            answer = await curl("--http2-prior-knowledge", url_of(listener, "/"))
        finally:
            for reader in readers:
                reader.close()
        await _until(lambda: files.room.free == 4 << 20)
    assert answer.body == IMAGE
    assert cost < 3 * bound < STALLED * len(IMAGE) / 3  # allocators round up, and keep what was freed


async def test_stalled_readers_take_no_more_room_than_there_is_and_give_it_back_when_they_go(image: Path) -> None:
    whole = FILE_BODIES.room.free
    async with listening(_one_file(image, FILE_BODIES)) as listener:
        readers = await asyncio.to_thread(lambda: [_stalled_reader(listener) for _ in range(STALLED)])
        try:
            await _until(lambda: FILE_BODIES.room.free < whole)
            assert FILE_BODIES.room.free >= 0
        finally:
            for reader in readers:
                reader.close()
        await _until(lambda: FILE_BODIES.room.free == whole)


async def bodies_of(
    files: FileBodies,
    path: Path,
    first: int = 0,
    length: int = len(IMAGE),
    *,
    after_each: Callable[[int], None] = lambda _count: None,
) -> list[bytes]:
    """Return the pieces of one download."""
    bodies: list[bytes] = []

    async def send(message: Message) -> None:
        assert message["type"] == "http.response.body"
        bodies.append(message["body"])
        assert message["more_body"] == (sum(map(len, bodies)) < length)
        after_each(len(bodies))

    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert await files.send(_nobody_leaves, send, descriptor, first, length, watched=False)
    finally:
        os.close(descriptor)
    return bodies


async def _until(true: Callable[[], bool]) -> None:
    """Wait for what follows from sockets that others read: nobody tells when."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def _settled(value: Callable[[], int]) -> int:
    """Return the value once it stays as it is."""
    last = -1
    while last != (last := value()):  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    return last


def _resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _one_file(path: Path, files: FileBodies | None = None) -> ASGIApp:
    """Return an application that sends the file: by `files`, or as `send_artifact` does."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if files is None:
            await send_artifact(scope, receive, send, path, sha256=SHA256)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with path.open("rb") as file:
            await files.send(receive, send, file.fileno(), 0, len(IMAGE), watched=False)

    return app


def _stalled_reader(listener: Listener, *, window: int = WIDEST_WINDOW) -> socket.socket:
    """Ask with a window for the connection as wide as it goes, read the answer's header, then nothing."""
    connection = h2.connection.H2Connection()
    connection.local_settings = h2.settings.Settings(
        client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
    )
    connection.initiate_connection()
    connection.increment_flow_control_window(WIDEST_WINDOW - 65_535)
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
