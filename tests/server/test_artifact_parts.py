"""Small parts by signed links: answered in one step, and never otherwise than the ordinary way answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Scope

from flota.server.api.artifact_parts import KNOWN_LINKS_MAX, PART_MAX_BYTES
from flota.server.api.artifacts import ArtifactApi
from flota.server.api.part_files import LOOK_EVERY_S
from flota.server.app import wrap
from flota.server.context import ServerContext
from tests.server.serving import a_context

IMAGE = bytes(n % 251 for n in range(200_000))
SIZE = len(IMAGE)
Headers = tuple[tuple[bytes, bytes], ...]


@dataclass
class Links:
    """The artifact API twice, with the short way and without it, under a clock that the test moves."""

    context: ServerContext
    sha256: str
    path: Path
    moment: datetime
    quick: ASGIApp = field(init=False)
    ordinary: ASGIApp = field(init=False)

    def __post_init__(self) -> None:
        self.context.now = lambda: self.moment
        self.api = ArtifactApi(self.context)
        self.quick = wrap(self.api, self.context, at_once=self.api.parts.answer)
        self.ordinary = wrap(ArtifactApi(self.context), self.context)

    def link(self, device_id: int = 7) -> Scope:
        token = self.context.download_tokens.issue(self.sha256, device_id=device_id, now=self.moment)
        path = f"/artifacts/{self.sha256}"
        return {"type": "http", "method": "GET", "path": path, "query_string": b"token=" + token.encode()}

    def answers_at_once(self, scope: Scope, headers: Headers) -> bool:
        return self.api.parts.answer({**scope, "headers": list(headers)}) is not None


@pytest.fixture
async def links(tmp_path: Path) -> AsyncIterator[Links]:
    async with a_context(tmp_path) as context:
        with context.artifacts.upload() as upload:
            upload.write(IMAGE)
            sha256 = upload.finish().sha256
        yield Links(context, sha256, context.artifacts.path(sha256), context.now())


async def test_a_good_link_is_remembered_and_then_answered_at_once(links: Links) -> None:
    scope = links.link()
    headers = a_range(4096, 8191)
    assert not links.answers_at_once(scope, headers), "its token was never checked"
    before = await answer_of(links.quick, scope, headers)
    assert links.answers_at_once(scope, headers)
    assert await answer_of(links.quick, scope, headers) == before
    status, _, body = before
    assert (status, body) == (206, IMAGE[4096:8192])


REQUESTED = st.one_of(
    st.tuples(st.integers(0, SIZE + 10), st.integers(0, SIZE + 10)).map(lambda ends: b"bytes=%d-%d" % ends),
    st.tuples(st.integers(0, SIZE), st.integers(-1, 5000)).map(lambda at: b"bytes=%d-%d" % (at[0], max(0, sum(at)))),
    st.sampled_from([b"", b"bytes=", b"bytes=-5", b"bytes=5-", b"Bytes=1-2", b"bytes=1-2,4-5", b"bytes=007-0010"]),
    st.binary(max_size=30),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=REQUESTED,
    method=st.sampled_from(["GET", "GET", "GET", "HEAD", "POST"]),
    more=st.sampled_from([b"", b"", b"if-range", b"if-none-match", b"range", b"content-length", b"x-other"]),
)
async def test_both_ways_give_the_same_answer(links: Links, value: bytes, method: str, more: bytes) -> None:
    scope = links.link()
    await answer_of(links.quick, scope, ())
    headers = ((b"range", value), (more, b"5")) if more else ((b"range", value),)
    scope["method"] = method
    assert await answer_of(links.quick, scope, headers) == await answer_of(links.ordinary, scope, headers)


async def test_a_remembered_link_ends_when_its_token_does(links: Links) -> None:
    scope = links.link()
    assert (await answer_of(links.quick, scope, a_range(0, 9)))[0] == 206
    links.moment += timedelta(hours=25)
    assert (await answer_of(links.quick, scope, a_range(0, 9)))[0] == 401


async def test_a_refused_link_is_not_remembered(links: Links) -> None:
    scope = links.link()
    scope["query_string"] = scope["query_string"][:-1] + b"!"
    for _ in range(2):
        assert (await answer_of(links.quick, scope, a_range(0, 9)))[0] == 401


async def test_a_deleted_or_shortened_file_is_not_served_from_memory(links: Links) -> None:
    scope = links.link()
    assert (await answer_of(links.quick, scope, a_range(150_000, 150_009)))[0] == 206
    links.path.chmod(0o600)
    links.path.write_bytes(IMAGE[:1000])
    await asyncio.sleep(2 * LOOK_EVERY_S)
    assert (await answer_of(links.quick, scope, a_range(150_000, 150_009)))[0] == 416
    links.path.unlink()
    await asyncio.sleep(2 * LOOK_EVERY_S)
    assert (await answer_of(links.quick, scope, a_range(0, 9)))[0] == 404


async def test_large_parts_and_large_headers_go_the_ordinary_way(links: Links) -> None:
    scope = links.link()
    await answer_of(links.quick, scope, ())
    assert links.answers_at_once(scope, a_range(0, PART_MAX_BYTES - 1))
    assert not links.answers_at_once(scope, a_range(0, PART_MAX_BYTES))
    assert not links.answers_at_once(scope, (*a_range(0, 9), (b"x", bytes(16 * 1024))))
    many = (*a_range(0, 9), *((b"x", b"") for _ in range(100)))
    assert (await answer_of(links.quick, scope, many))[0] == 431


async def test_the_number_of_remembered_links_is_bounded_and_the_oldest_goes(links: Links) -> None:
    first = links.link(0)
    for device_id in range(KNOWN_LINKS_MAX + 1):
        scope = links.link(device_id)
        grant = links.context.download_tokens.check(
            scope["query_string"].removeprefix(b"token=").decode(), links.sha256, now=links.moment
        )
        links.api.parts.remember(scope, grant, links.path, [])
    assert not links.answers_at_once(first, a_range(0, 9))
    assert links.answers_at_once(links.link(1), a_range(0, 9))


async def test_answers_at_once_are_counted(links: Links) -> None:
    scope = links.link()
    for _ in range(3):
        await answer_of(links.quick, scope, a_range(0, 9))
    text, _ = links.context.metrics.exposition()
    assert b'flota_http_requests_total{group="artifacts",status="2xx"} 3.0' in text


def a_range(first: int, last: int) -> Headers:
    return ((b"range", b"bytes=%d-%d" % (first, last)),)


async def answer_of(app: ASGIApp, scope: Scope, headers: Headers) -> tuple[int, set[tuple[bytes, bytes]], bytes]:
    """Return status, header fields and body of one answer."""
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    await app({**scope, "headers": list(headers)}, receive, send)
    body = b"".join(message.get("body", b"") for message in messages)
    return messages[0]["status"], set(messages[0]["headers"]), body
