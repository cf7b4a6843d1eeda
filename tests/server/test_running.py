"""A server in this process, from start to end: what it waits for before it closes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from pathlib import Path

import httpx
import pytest
from starlette.types import Scope as RequestScope

from flota.fleet.audit import AuditEntry
from flota.fleet.scope import Scope
from flota.server import running
from flota.server.api.artifact_parts import ArtifactParts
from flota.server.journal import Journal
from flota.server.running import RunningServer, run_server
from flota.server.settings import DataDirectory, ServerSettings
from tests.server.serving import LOOPBACK

STOPS_AT_ONCE_S = 0.5


async def test_what_somebody_asked_for_who_has_left_is_over_before_the_database_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_to_stop, looking, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    pages: list[list[AuditEntry]] = []
    entries_now = Journal.entries

    async def entries_when_told(journal: Journal, scope: Scope, after: int) -> list[AuditEntry]:
        looking.set()
        await go_on.wait()
        pages.append(await entries_now(journal, scope, after))
        return pages[-1]

    monkeypatch.setattr(running, "_stop_signals", lambda: contextlib.nullcontext(asked_to_stop))
    monkeypatch.setattr(Journal, "entries", entries_when_told)
    settings = ServerSettings(data=DataDirectory(tmp_path), http=LOOPBACK, https=None)
    listening: asyncio.Future[RunningServer] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(run_server(settings, announce=listening.set_result))
    at = (await listening).http
    assert at is not None
    host, _, port = at.rpartition("/")[2].rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    token = settings.data.admin_token.read_text().strip()
    writer.write(f"GET /api/v1/events?after=0 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n".encode())
    await looking.wait()
    writer.close()
    asked_to_stop.set()
    await asyncio.wait({serving}, timeout=STOPS_AT_ONCE_S)
    assert not serving.done()
    go_on.set()
    assert await serving
    assert [[entry.sequence for entry in page] for page in pages] == [list(range(1, len(pages[0]) + 1))]


async def test_both_listeners_ask_first_whether_a_request_can_be_answered_without_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_to_stop, asked = asyncio.Event(), []

    def answer(_parts: ArtifactParts, scope: RequestScope) -> None:
        asked.append((scope["scheme"], threading.get_ident() == loops_thread))

    loops_thread = threading.get_ident()
    monkeypatch.setattr(running, "_stop_signals", lambda: contextlib.nullcontext(asked_to_stop))
    monkeypatch.setattr(ArtifactParts, "answer", answer)
    settings = ServerSettings(data=DataDirectory(tmp_path), http=LOOPBACK, https=LOOPBACK)
    listening: asyncio.Future[RunningServer] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(run_server(settings, announce=listening.set_result))
    server = await listening
    trusting = ssl.create_default_context(cafile=str(settings.data.certificates / "root.crt"))
    async with httpx.AsyncClient(verify=trusting, timeout=60) as client:
        for url in (server.http, server.https):
            assert (await client.get(f"{url}/artifacts/{'0' * 64}")).status_code == 404
    asked_to_stop.set()
    assert await serving
    assert asked == [("http", False), ("http", True), ("https", False), ("https", True)], "then, and only then, by call"
