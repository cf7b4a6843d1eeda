"""Downloads: what every dialect promises about an artifact's bytes, seen by curl and by raw sockets."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h2.connection
import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from flota.errors import NotFound
from flota.fleet.releases import Artifact
from flota.fleet.scope import Role
from flota.fleet.scope import Scope as FleetScope
from flota.server.api.artifacts import ArtifactApi, DeliveryOutcome, send_artifact
from flota.server.app import wrap
from flota.server.auth import digest_of_secret
from flota.server.context import ServerContext
from flota.server.listeners import Listener
from tests.server.programs import Answer, curl
from tests.server.serving import a_context, a_scope, listening, make_tls_files, url_of

IMAGE = random.Random(2).randbytes(1 << 20)
SHA256 = hashlib.sha256(IMAGE).hexdigest()
MD5 = hashlib.md5(IMAGE, usedforsecurity=False).hexdigest()
ETAG = f'"{SHA256}"'
CHANGED = datetime(2026, 11, 20, 9, 30, 15, 250_000, UTC)

ALL = 1 << 30

PROTOCOLS = {
    "1.0": ["--http1.0"],
    "1.1": ["--http1.1"],
    "2 by prior knowledge": ["--http2-prior-knowledge"],
    "2 over TLS": ["--http2"],
}


class Downloads:
    """An application with one file; it remembers how deliveries ended."""

    def __init__(self, path: Path, *, use_pathsend: bool = True, allow_range: bool = True) -> None:
        self.path = path
        self.use_pathsend = use_pathsend
        self.allow_range = allow_range
        self.outcomes: asyncio.Queue[DeliveryOutcome] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_artifact(
            scope, receive, send, self.path, sha256=SHA256, extra_headers={"x-MD5": MD5}, last_modified=CHANGED,
            use_pathsend=self.use_pathsend, allow_range=self.allow_range, on_finished=self.outcomes.put_nowait,
        )  # fmt: skip


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(IMAGE)
    return path


@pytest.fixture(params=[True, False], ids=["pathsend", "chunks"])
def downloads(request: pytest.FixtureRequest, image: Path) -> Downloads:
    return Downloads(image, use_pathsend=request.param)


class Ask:
    """Asks for the file with curl over one protocol."""

    def __init__(self, listener: Listener, flags: list[str]) -> None:
        self.listener = listener
        self.flags = flags

    async def __call__(self, *arguments: str) -> Answer:
        answer = await curl(*self.flags, *arguments, url_of(self.listener, "/image"))
        assert answer.headers["etag"] == ETAG, "every answer names the file"
        assert answer.headers["x-md5"] == MD5
        assert "transfer-encoding" not in answer.headers
        assert "content-encoding" not in answer.headers
        return answer


@pytest.fixture(params=list(PROTOCOLS))
async def ask(request: pytest.FixtureRequest, tmp_path: Path, downloads: Downloads) -> AsyncIterator[Ask]:
    tls = make_tls_files(tmp_path / "ca") if "TLS" in request.param else None
    async with listening(downloads, tls) as listener:
        flags = [*PROTOCOLS[request.param], "--cacert", str(tmp_path / "ca" / "root.crt")]
        yield Ask(listener, flags if tls else flags[:-2])


@pytest.mark.program
async def test_the_whole_file_comes_with_its_length_uncompressed_even_when_compression_is_offered(ask: Ask) -> None:
    answer = await ask("-H", "accept-encoding: gzip, br")
    assert (answer.status, answer.body) == (200, IMAGE)
    assert answer.headers["content-length"] == str(len(IMAGE))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["last-modified"] == "Fri, 20 Nov 2026 09:30:15 GMT"


@pytest.mark.program
async def test_head_tells_the_same_as_get_without_the_bytes(ask: Ask) -> None:
    got, head = await ask(), await ask("-I")
    assert (head.status, head.body) == (200, b"")
    assert head.headers == {**got.headers, "date": head.headers["date"]}


@pytest.mark.program
@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, len(IMAGE) - 1),
        ("bytes=1024-", 1024, len(IMAGE) - 1),
        ("bytes=65536-131071", 65536, 131071),
        ("bytes=0-1048576", 0, len(IMAGE) - 1),
        ("bytes=-16", len(IMAGE) - 16, len(IMAGE) - 1),
        ("bytes=1048575-99999999999", len(IMAGE) - 1, len(IMAGE) - 1),
    ],
)
async def test_one_range_gives_206_with_exactly_its_bytes(ask: Ask, header: str, first: int, last: int) -> None:
    answer = await ask("-H", f"range: {header}")
    assert (answer.status, answer.body) == (206, IMAGE[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(IMAGE)}"
    assert answer.headers["content-length"] == str(last - first + 1)


@pytest.mark.program
@pytest.mark.parametrize("header", ["bytes=1048576-", "bytes=99999999-", "bytes=-0", "bytes=0-0,2-2", "bytes=5-2"])
async def test_a_range_without_a_byte_of_the_file_gives_416_with_the_size(ask: Ask, header: str) -> None:
    answer = await ask("-H", f"range: {header}")
    assert (answer.status, answer.body) == (416, b"")
    assert answer.headers["content-range"] == f"bytes */{len(IMAGE)}"
    assert answer.headers["content-length"] == "0"


@pytest.mark.program
async def test_who_has_the_file_already_gets_304_without_a_body(ask: Ask) -> None:
    for condition in (ETAG, f'"x", W/{ETAG}', "*"):
        answer = await ask("-H", f"if-none-match: {condition}")
        assert (answer.status, answer.body) == (304, b"")
        assert "content-length" not in answer.headers, "parsers that wait for a body after 304 must not be misled"
    assert (await ask("-H", 'if-none-match: "another"')).status == 200
    assert (await ask("-H", "if-modified-since: Fri, 20 Nov 2026 09:30:15 GMT")).status == 304
    assert (await ask("-H", "if-modified-since: Fri, 20 Nov 2026 09:30:14 GMT")).status == 200
    assert (await ask("-H", "if-modified-since: yesterday")).status == 200


@pytest.mark.program
async def test_a_resume_of_another_file_starts_again_from_the_beginning(ask: Ask) -> None:
    part = await ask("-H", "range: bytes=1000-", "-H", f"if-range: {ETAG}")
    assert (part.status, part.body) == (206, IMAGE[1000:])
    for condition in ('"another"', f"W/{ETAG}", "Thu, 19 Nov 2026 09:30:15 GMT"):
        whole = await ask("-H", "range: bytes=1000-", "-H", f"if-range: {condition}")
        assert (whole.status, whole.body) == (200, IMAGE), condition


@pytest.mark.program
async def test_curl_itself_resumes_a_broken_download(ask: Ask, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    partial.write_bytes(IMAGE[:300_000])
    url = url_of(ask.listener, "/image")
    flags = [flag for flag in ask.flags if flag != "--http1.0"]
    process = await asyncio.create_subprocess_exec("curl", "-s", *flags, "-C", "-", "-o", str(partial), url)
    assert await process.wait() == 0
    assert partial.read_bytes() == IMAGE


@pytest.mark.program
async def test_where_ranges_are_off_the_whole_file_comes(image: Path) -> None:
    async with listening(Downloads(image, allow_range=False)) as listener:
        answer = await curl("-H", "range: bytes=5-9", url_of(listener, "/"))
    assert (answer.status, len(answer.body), answer.headers["accept-ranges"]) == (200, len(IMAGE), "none")


async def test_the_first_data_frame_holds_at_least_the_esp_image_header(downloads: Downloads) -> None:
    async with listening(downloads) as listener:
        sizes = await data_frame_sizes(listener)
    assert sizes[0] >= 288
    assert sum(sizes) == len(IMAGE)


async def test_a_peer_that_goes_away_in_the_middle_of_a_small_image_is_noticed(image: Path) -> None:
    downloads = Downloads(image, use_pathsend=False)
    async with listening(downloads) as listener:
        await read_some_and_leave(listener, 100_000)
        assert await downloads.outcomes.get() is DeliveryOutcome.INTERRUPTED


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells what a peer has acknowledged")
@pytest.mark.parametrize("bytes_read", [1000, 300_000, 900_000])
async def test_what_waits_in_the_kernel_when_a_slow_reader_leaves_was_not_handed_over(
    image: Path, bytes_read: int
) -> None:
    downloads = Downloads(image, use_pathsend=False)
    async with listening(downloads) as listener:
        await read_some_and_leave(listener, bytes_read, stalls_s=0.5)  # the kernel takes all of the image meanwhile
        assert await downloads.outcomes.get() is DeliveryOutcome.INTERRUPTED


async def test_a_body_that_was_taken_whole_is_handed_over(downloads: Downloads) -> None:
    async with listening(downloads) as listener:
        await read_some_and_leave(listener)
        assert await downloads.outcomes.get() is DeliveryOutcome.HANDED_OVER
        assert downloads.outcomes.empty()


async def test_answers_without_a_body_report_no_delivery(downloads: Downloads) -> None:
    async with listening(downloads) as listener:
        await read_some_and_leave(listener, method="HEAD")
        await read_some_and_leave(listener, headers=f"if-none-match: {ETAG}\r\n")
        await read_some_and_leave(listener, headers="range: bytes=9999999-\r\n")
    assert downloads.outcomes.empty()


async def test_a_missing_file_is_not_found_before_anything_is_sent(tmp_path: Path) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(NotFound):
        await send_artifact(a_get(), nobody_leaves, send, tmp_path / "absent", sha256=SHA256)
    assert sent == []


@given(start=st.integers(0, 200_000), length=st.integers(1, 200_000))
async def test_any_range_is_sent_exactly(start: int, length: int) -> None:
    body = bytearray()

    async def send(message: Message) -> None:
        body.extend(message.get("body", b""))

    path = Path(__file__)
    content = path.read_bytes()  # noqa: ASYNC240 - a small file
    scope = a_get((b"range", f"bytes={start}-{start + length - 1}".encode()))
    await send_artifact(scope, nobody_leaves, send, path, sha256=SHA256)
    assert bytes(body) == content[start : start + length]


@pytest.mark.program
async def test_the_artifact_api_wants_a_token_for_exactly_this_artifact(tmp_path: Path) -> None:
    async with a_context(tmp_path) as context:
        stored = await store_image(context)
        tokens, now = context.download_tokens, context.now()
        good = tokens.issue(stored, device_id=7, now=now)
        over = tokens.issue(stored, device_id=7, now=now - timedelta(days=2))
        other = tokens.issue("0" * 64, device_id=7, now=now)
        async with listening(wrap(ArtifactApi(context), context)) as listener:
            url = url_of(listener, f"/artifacts/{stored}")
            answer = await curl("-r", "0-99", f"{url}?token={good}")
            assert (answer.status, answer.body) == (206, IMAGE[:100])
            for wrong in (over, other, good[:-1] + "!", "x", "1.2.3"):
                refused = await curl(f"{url}?token={wrong}")
                assert refused.status == 401, wrong
                assert refused.headers["content-type"] == "application/problem+json"
            assert (await curl(url)).status == 401
            assert (await curl(url_of(listener, "/artifacts/not-a-digest"))).status == 404


@pytest.mark.program
async def test_a_management_token_reads_the_artifacts_of_its_own_tenant_only(tmp_path: Path) -> None:
    async with a_context(tmp_path) as context:
        stored, ours = await store_image(context), await a_scope(context)
        async with context.storage.transaction() as transaction:
            other = await transaction.add_tenant("OTHER", now=context.now())
            for scope, secret in ((ours, "ours"), (FleetScope(other.id, "test"), "theirs")):
                digest = digest_of_secret(secret)
                await transaction.add_access_token(scope, secret, Role.VIEWER, digest, now=context.now())
        async with listening(wrap(ArtifactApi(context), context)) as listener:
            url = url_of(listener, f"/artifacts/{stored}")
            assert (await curl("-H", "authorization: Bearer ours", url)).body == IMAGE
            assert (await curl("-H", "authorization: Bearer theirs", url)).status == 404
            assert (await curl("-H", "authorization: Bearer nobody's", url)).status == 401


async def store_image(context: ServerContext) -> str:
    with context.artifacts.upload() as upload:
        upload.write(IMAGE)
        digests = upload.finish()
    artifact = Artifact(digests, "image.bin", "binary", None, None, {}, context.now())
    async with context.storage.transaction() as transaction:
        await transaction.add_artifact(await a_scope(context), artifact)
    return digests.sha256


async def data_frame_sizes(listener: Listener) -> list[int]:
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
    request = {":method": "GET", ":path": "/", ":scheme": "http", ":authority": "x"}
    connection.send_headers(1, list(request.items()), end_stream=True)
    writer.write(connection.data_to_send())
    sizes: list[int] = []
    ended = False
    while not ended:
        for event in connection.receive_data(await reader.read(65536)):
            if isinstance(event, h2.events.DataReceived):
                sizes.append(len(event.data))
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            ended = ended or isinstance(event, h2.events.StreamEnded)
        writer.write(connection.data_to_send())
    writer.close()
    return sizes


async def read_some_and_leave(
    listener: Listener, bytes_to_read: int = ALL, *, method: str = "GET", headers: str = "", stalls_s: float = 0
) -> None:
    """Read like a microcontroller, through a small window; then, after a while, close the connection."""
    address = (listener.address.host, listener.address.port)

    def client() -> None:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            connection.connect(address)
            connection.sendall(f"{method} / HTTP/1.0\r\n{headers}\r\n".encode())
            left = bytes_to_read
            while left > 0 and (data := connection.recv(4096)):
                left -= len(data)
            time.sleep(stalls_s)

    await asyncio.to_thread(client)


def a_get(*headers: tuple[bytes, bytes]) -> Scope:
    return {"type": "http", "method": "GET", "path": "/", "headers": list(headers), "extensions": {}}


async def nobody_leaves() -> Message:
    await asyncio.Event().wait()
    raise AssertionError
