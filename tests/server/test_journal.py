"""The journal and its event stream: every entry once, in order, from where the reader left off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flota.fleet.scope import Role, Scope
from flota.server import journal as journal_module
from flota.server.api import events
from flota.server.auth import digest_of_secret
from flota.server.context import ServerContext
from flota.server.listeners import Listener
from tests.server.serving import a_context, a_scope, app_of, listening


@pytest.fixture
async def context(tmp_path: Path) -> AsyncIterator[ServerContext]:
    async with a_context(tmp_path) as made:
        async with made.storage.transaction() as transaction:
            scope, digest = await a_scope(made), digest_of_secret("secret")
            await transaction.add_access_token(scope, "reader", Role.VIEWER, digest, now=made.now())
        yield made


@pytest.fixture
async def scope(context: ServerContext) -> Scope:
    return await a_scope(context)


@pytest.fixture
async def listener(context: ServerContext) -> AsyncIterator[Listener]:
    async with listening(app_of(context, events.routes(context))) as serving:
        yield serving
        context.journal.close()


async def write(context: ServerContext, scope: Scope, *subjects: str) -> None:
    async with context.storage.transaction() as transaction:
        for subject in subjects:
            await transaction.append_audit(scope, "test.written", subject, {}, now=context.now())


async def test_a_follower_gets_the_past_and_then_everything_new(context: ServerContext, scope: Scope) -> None:
    before = await context.journal.last_sequence(scope)
    await write(context, scope, "a", "b")
    following = context.journal.follow(scope, before)
    assert [(await anext(following)).subject for _ in range(2)] == ["a", "b"]
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    assert not waiting.done()
    await write(context, scope, "c")
    entry = await waiting
    assert (entry.sequence, entry.subject) == (before + 3, "c")
    await following.aclose()  # type: ignore[attr-defined]


async def test_many_followers_of_a_busy_trail_all_get_every_entry_in_order(
    context: ServerContext, scope: Scope
) -> None:
    count = 60
    before = await context.journal.last_sequence(scope)

    async def follow() -> list[int]:
        seen = []
        async for entry in context.journal.follow(scope, before):
            seen.append(entry.sequence)
            if len(seen) == count:
                break
        return seen

    followers = [asyncio.create_task(follow()) for _ in range(8)]
    for number in range(count):
        await write(context, scope, str(number))
    expected = list(range(before + 1, before + count + 1))
    assert await asyncio.gather(*followers) == [expected] * len(followers)


async def test_a_commit_that_wakes_nobody_is_still_seen(
    context: ServerContext, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "LOOK_AGAIN_S", 0.02)
    monkeypatch.setattr(context.journal, "notify", lambda _tenants: None)  # as another replica's commit
    before = await context.journal.last_sequence(scope)
    waiting = asyncio.create_task(context.journal.next_page(scope, before))
    await write(context, scope, "elsewhere")
    page = await waiting
    assert page is not None
    assert page[0].subject == "elsewhere"


async def test_closing_ends_every_follower(context: ServerContext, scope: Scope) -> None:
    last = await context.journal.last_sequence(scope)
    waiting = [asyncio.create_task(context.journal.next_page(scope, last)) for _ in range(3)]
    await asyncio.sleep(0)
    context.journal.close()
    assert await asyncio.gather(*waiting) == [None] * 3


async def test_events_carry_the_sequence_as_id_and_go_on_after_the_last_one_seen(
    context: ServerContext, scope: Scope, listener: Listener
) -> None:
    await write(context, scope, "a", "b")
    last = await context.journal.last_sequence(scope)
    async with EventReader(listener, {"last-event-id": str(last - 1)}) as reader:
        assert b"content-type: text/event-stream" in reader.head
        identity, data = await reader.next_event()
        assert (identity, data["subject"], data["sequence"]) == (last, "b", last)
        await write(context, scope, "c")
        assert (await reader.next_event())[0] == last + 1
    async with EventReader(listener, query=f"?after={last}") as again:
        assert (await again.next_event())[1]["subject"] == "c"


async def test_without_a_starting_point_only_news_comes(
    context: ServerContext, scope: Scope, listener: Listener
) -> None:
    await write(context, scope, "old")
    async with EventReader(listener) as reader:
        assert await reader.next_line() == ": flota events"
        await write(context, scope, "new")
        assert (await reader.next_event())[1]["subject"] == "new"


async def test_a_quiet_stream_says_so_in_comments(
    context: ServerContext, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert events.COMMENT_EVERY_S == 15
    monkeypatch.setattr(events, "COMMENT_EVERY_S", 0.05)
    async with EventReader(listener) as reader:
        assert await reader.next_line() == ": flota events"
        assert await reader.next_line() == ": nothing new"


async def test_streams_end_by_themselves_when_the_server_stops(context: ServerContext, listener: Listener) -> None:
    async with EventReader(listener) as reader:
        context.journal.close()
        assert await reader.rest()


async def test_a_reader_that_leaves_is_forgotten(context: ServerContext, scope: Scope, listener: Listener) -> None:
    async with EventReader(listener) as reader:
        await reader.next_line()
        assert running(context) == 1
    while running(context):  # noqa: ASYNC110 - another thread is at work
        await asyncio.sleep(0.01)


async def test_a_look_into_the_trail_is_not_broken_off_when_its_reader_leaves(
    context: ServerContext, scope: Scope, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, go_on, ended = asyncio.Event(), asyncio.Event(), []
    entries_now = context.journal.entries

    async def entries_when_told(scope: Scope, after: int) -> object:
        looking.set()
        try:
            await go_on.wait()
            return await entries_now(scope, after)
        finally:
            ended.append(go_on.is_set())

    monkeypatch.setattr(context.journal, "entries", entries_when_told)
    async with EventReader(listener):
        await looking.wait()
    await asyncio.sleep(0.1)
    assert (ended, running(context)) == ([], 1)
    go_on.set()
    while running(context):  # noqa: ASYNC110 - another thread is at work
        await asyncio.sleep(0.01)
    assert ended == [True]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": ""}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"last-event-id": "-1"}, 400),
        ({"last-event-id": "x"}, 400),
        ({"last-event-id": "1" * 30}, 400),
    ],
)
async def test_strangers_and_nonsense_are_refused(listener: Listener, headers: dict[str, str], status: int) -> None:
    async with EventReader(listener, headers) as reader:
        assert reader.head.startswith(f"HTTP/1.0 {status} ".encode())


def running(context: ServerContext) -> float:
    value = context.metrics.registry.get_sample_value("flota_http_requests_running")
    assert value is not None
    return value


class EventReader:
    """Reads an event stream from a plain socket."""

    def __init__(self, listener: Listener, headers: dict[str, str] | None = None, query: str = "") -> None:
        self._address = listener.address
        self._headers = {"authorization": "Bearer secret", **(headers or {})}
        self._query = query
        self.head = b""

    async def __aenter__(self) -> EventReader:
        self._reader, self._writer = await asyncio.open_connection(self._address.host, self._address.port)
        fields = "".join(f"{name}: {value}\r\n" for name, value in self._headers.items())
        self._writer.write(f"GET /api/v1/events{self._query} HTTP/1.0\r\nhost: x\r\n{fields}\r\n".encode())
        self.head = await self._reader.readuntil(b"\r\n\r\n")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def next_line(self) -> str:
        """Return the next line that is not empty."""
        while not (line := (await self._reader.readline()).decode().rstrip("\n")):
            pass
        return line

    async def next_event(self) -> tuple[int, dict[str, object]]:
        while not (line := await self.next_line()).startswith("id:"):
            pass
        data = await self.next_line()
        return int(line.removeprefix("id: ")), json.loads(data.removeprefix("data: "))

    async def rest(self) -> bytes:
        return await self._reader.read()
