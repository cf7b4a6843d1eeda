"""Small servers for tests: an application behind the real listeners, on free ports, in the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from flota.fleet.scope import Scope
from flota.server.app import wrap
from flota.server.certificate_authority import CertificateAuthority
from flota.server.context import ServerContext, make_context, utc_now
from flota.server.listeners import Listener, TlsFiles
from flota.server.problems import EXCEPTION_HANDLERS
from flota.server.settings import Address, DataDirectory, ServerSettings
from flota.server.short_way import AnswerAtOnce
from flota.store.artifacts import ArtifactStore
from flota.store.database import Database
from tests.empty_database import make_empty_database

LOOPBACK = Address("127.0.0.1", 0)
STOP_S = 5.0


def make_tls_files(directory: Path, names: tuple[str, ...] = (), now: datetime | None = None) -> TlsFiles:
    """Return a server certificate of our own authority in `directory`; its root is `directory/root.crt`."""
    return CertificateAuthority(directory).ensure_server_certificate(names, now=now or datetime.now(UTC))


@contextlib.asynccontextmanager
async def listening(
    app: ASGIApp, tls: TlsFiles | None = None, *, at_once: AnswerAtOnce | None = None
) -> AsyncIterator[Listener]:
    """Serve `app` inside the block."""
    listener = Listener(app, LOOPBACK, tls, at_once=at_once)
    await listener.start()
    try:
        yield listener
    finally:
        await listener.stop(STOP_S)


def url_of(listener: Listener, path: str) -> str:
    """Return the URL of `path` at a listener."""
    return f"{listener.scheme}://{listener.address}{path}"


@contextlib.asynccontextmanager
async def a_context(directory: Path, database_url: str | None = None) -> AsyncIterator[ServerContext]:
    """Give a context over a real database (SQLite unless another is named), a real artifact store, and one tenant."""
    data = DataDirectory(directory)
    settings = ServerSettings(data=data, http=LOOPBACK, database_url=database_url)
    if database_url is None and not data.database.exists():
        make_empty_database(data.database)
    async with await Database.open(settings.effective_database_url) as database:
        data.artifacts.mkdir(exist_ok=True)
        context = make_context(settings, database, ArtifactStore(data.artifacts), download_key=bytes(32))
        database.on_commit(context.journal.notify)
        async with database.transaction() as transaction:
            await transaction.add_tenant("DEFAULT", now=utc_now())
        yield context
        async with asyncio.timeout(STOP_S):
            while context.metrics.running:  # noqa: ASYNC110 - for those who have left already
                await asyncio.sleep(0.01)


async def a_scope(context: ServerContext) -> Scope:
    """Return the scope of the context's only tenant."""
    (tenant,) = await context.storage.list_tenants()
    return Scope(tenant.id, "test")


def app_of(context: ServerContext, routes: list[BaseRoute]) -> ASGIApp:
    """Return the routes as an application, with everything around them that the server puts around."""
    routed = Starlette(routes=routes, exception_handlers=dict(EXCEPTION_HANDLERS))
    routed.router.redirect_slashes = False
    return wrap(routed, context)
