"""The database: one code base for SQLite (WAL) and PostgreSQL; implements `flota.fleet.storage`.

There are two engines, one for writers and one for readers. On SQLite the writers' engine has a single connection, so
that writers of this process queue in memory instead of polling the file's lock; readers see the last committed state
and never wait.
Source: docs/adr/0008-one-database-code-base.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncTransaction

from flota.fleet.changes import Changes
from flota.fleet.scope import Tenant
from flota.fleet.storage import Transaction
from flota.store.at_once import AtOnce
from flota.store.change_notes import ChangeNotes, note_statements, noting_in
from flota.store.connections import open_engines, open_sqlite_at_once
from flota.store.failures import as_flota_error, as_opening_error
from flota.store.queries.audit import AuditQueries
from flota.store.queries.certificates import CertificateQueries
from flota.store.queries.gateway_tokens import GatewayTokenQueries
from flota.store.queries.jobs import JobQueries
from flota.store.queries.releases import ReleaseQueries
from flota.store.queries.shipments import ShipmentQueries
from flota.store.queries.tenants import TenantQueries
from flota.store.schema import bring_to_head

CommitCallback = Callable[[frozenset[int]], None]
ChangeCallback = Callable[[Changes], None]

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class DatabaseTransaction(
    TenantQueries, GatewayTokenQueries, CertificateQueries, ReleaseQueries, JobQueries, ShipmentQueries, AuditQueries
):
    """All queries on one connection; see the modules of `flota.store.queries`."""


class Database:
    """Where transactions come from. Make one with `open`."""

    def __init__(
        self, writers: AsyncEngine, readers: AsyncEngine, at_once: tuple[sa.Engine, sa.Engine] | None = None
    ) -> None:
        self._writers = writers
        self._readers = readers
        self._write_at_once = None if at_once is None else AtOnce(at_once[0], "flota-write")
        self._read_at_once = None if at_once is None else AtOnce(at_once[1], "flota-read")
        self._callbacks: list[CommitCallback] = []
        self._change_callbacks: list[ChangeCallback] = []
        note_statements(writers.sync_engine)
        if at_once is not None:
            note_statements(at_once[0])

    @classmethod
    async def open(cls, url: str) -> Self:
        """Return the database at `url`, its tables brought up to date.

        `url` is `sqlite:///FILE` or `postgresql://USER@HOST/NAME`, with or without a driver's name.

        Raises `InvalidInput` for another kind of URL, or if there is no such database, `Conflict` if a newer Flota has
        already changed the tables, `StorageFull`.
        """
        writers, readers = open_engines(url)
        try:
            await bring_to_head(writers)
        except BaseException as error:
            await writers.dispose()
            await readers.dispose()
            meant = as_opening_error(error, writers.url)
            if meant is None:
                raise
            raise meant from error
        return cls(writers, readers, open_sqlite_at_once(url))

    async def close(self) -> None:
        """Close every connection; running transactions are rolled back."""
        for at_once in (self._write_at_once, self._read_at_once):
            if at_once is not None:
                await at_once.close()
        await self._readers.dispose()
        await self._writers.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def on_commit(self, callback: CommitCallback) -> None:
        """Call `callback` after each commit that added audit entries, with the ids of the tenants that got some."""
        self._callbacks.append(callback)

    def on_change(self, callback: ChangeCallback) -> None:
        """Call `callback` after each commit that concerns devices, before whoever made it goes on.

        It is called too when it is not known whether a commit succeeded. What other processes commit is not told.
        """
        self._change_callbacks.append(callback)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Read and write; commits when the block ends without an error, else leaves no trace."""
        return self._transaction()

    def reading(self) -> AbstractAsyncContextManager[Transaction]:
        """Read one consistent state; never waits for a writer. Writing fails."""
        return self._reading()

    async def read_at_once(self, work: Callable[[Transaction], Awaitable[_T]]) -> _T:
        """Return what `work` returns of one consistent state. It waits for nothing but the transaction it is given.

        On SQLite it runs in another thread from end to end, which costs a fraction of what `reading` does.
        """
        if self._read_at_once is None:
            async with self._reading() as unit:
                return await work(unit)
        with _database_errors_as_ours():
            return await self._read_at_once.run(lambda connection: work(DatabaseTransaction(connection)))

    async def write_at_once(self, work: Callable[[Transaction], Awaitable[_T]]) -> _T:
        """Return what `work` returns, committed, as `transaction` does; what `read_at_once` says of `work` holds."""
        if self._write_at_once is None:
            async with self._transaction() as unit:
                return await work(unit)
        notes = ChangeNotes()
        tenants: frozenset[int] = frozenset()

        async def write(connection: AsyncConnection) -> _T:
            nonlocal tenants
            unit = DatabaseTransaction(connection)
            result = await work(unit)
            tenants = await unit.flush_audit()
            return result

        with _database_errors_as_ours():
            async with self._writers.connect():  # nothing is done with it: it is the turn to write
                try:
                    result = await self._write_at_once.run(write, noting_in(notes))
                finally:  # whatever went wrong, and though nobody may wait any more: it may be committed
                    self._tell_changes(notes.changes)
                    self._tell(tenants)
                return result

    async def list_tenants(self) -> Sequence[Tenant]:
        """Return every tenant, oldest first."""
        async with self._reading() as unit:
            return await unit.all_tenants()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[DatabaseTransaction]:
        with _database_errors_as_ours():
            async with self._writers.connect() as connection:
                notes = ChangeNotes()
                connection = await connection.execution_options(**noting_in(notes))
                begun = await connection.begin()
                unit = DatabaseTransaction(connection)
                try:
                    yield unit
                    tenants = await unit.flush_audit()
                except BaseException:
                    await begun.rollback()
                    raise
                await self._commit(begun, tenants, notes.changes)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[DatabaseTransaction]:
        with _database_errors_as_ours():
            async with self._readers.connect() as connection:
                yield DatabaseTransaction(connection)

    async def _commit(self, begun: AsyncTransaction, tenants: frozenset[int], changes: Changes) -> None:
        """Commit and tell the callbacks, even if the task is canceled meanwhile: who follows must not miss an entry."""
        commit = asyncio.ensure_future(begun.commit())
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait({commit})
            self._tell_changes(changes)
            if commit.exception() is None:
                self._tell(tenants)
            raise
        except BaseException:
            self._tell_changes(changes)  # it may have reached the database all the same
            raise
        self._tell_changes(changes)
        self._tell(tenants)

    def _tell(self, tenants: frozenset[int]) -> None:
        if tenants:
            _call_all(self._callbacks, tenants)

    def _tell_changes(self, changes: Changes) -> None:
        if changes:
            _call_all(self._change_callbacks, changes)


def _call_all(callbacks: Sequence[Callable[[_T], None]], value: _T) -> None:
    for callback in callbacks:
        try:
            callback(value)
        except Exception:  # noqa: BLE001 - the commit is done: a follower's defect must not look like a failed write
            _log.exception("a commit callback failed")


class _database_errors_as_ours:  # noqa: N801 - reads as a statement
    """Translate what `failures` knows; anything else is a defect and stays as it is."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DBAPIError):
            ours = as_flota_error(error)
            if ours is not None:
                raise ours from error
