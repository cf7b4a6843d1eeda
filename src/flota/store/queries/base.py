"""What all queries share: the connection, the audit entries still to be written, and unique inserts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from flota.errors import Conflict
from flota.fleet.audit import canonical_json
from flota.fleet.changes import Changes
from flota.fleet.scope import Scope
from flota.store.change_notes import concerning

T = TypeVar("T")

VALUES_PER_QUERY: Final = 10_000
"""Most values in one IN list: SQLite takes 32,766 parameters in a statement, asyncpg 32,767."""


@dataclass(frozen=True, slots=True)
class PendingAudit:
    """An audit entry that has no place in the chain yet. `details` is canonical JSON."""

    actor: str
    action: str
    subject: str
    details: str
    at: datetime


class Queries:
    """One transaction's connection. Audit entries are collected and written by `flush_audit`, just before the commit.

    Writing them last means that the tenant's row, which hands out the sequence, is the last lock any writer takes: on
    PostgreSQL two writers cannot wait for each other because of it, and hold each other up only while they commit.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._pending_audit: dict[int, list[PendingAudit]] = {}
        self._audited_tenants: set[int] = set()

    def _audit(self, scope: Scope, action: str, subject: str, details: Mapping[str, object], *, now: datetime) -> None:
        entry = PendingAudit(scope.actor, action, subject, canonical_json(details), now)
        self._pending_audit.setdefault(scope.tenant_id, []).append(entry)

    async def _rows(self, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        rows: Sequence[sa.Row[Any]] = (await self._connection.execute(statement)).all()
        return rows

    async def _row(self, statement: sa.Select[Any]) -> sa.Row[Any] | None:
        row: sa.Row[Any] | None = (await self._connection.execute(statement)).one_or_none()
        return row

    async def _insert_unique(
        self, table: sa.Table, values: Mapping[str, object], conflict: Conflict, *, concerns: Changes | None = None
    ) -> int:
        """Insert one row and return its id; raises `conflict` if a unique constraint refuses it.

        `concerns`: whom, where a new row of this table concerns somebody.

        The transaction stays usable after a refusal: the row is passed over, nothing has failed.
        """
        insert = postgresql.insert if self._connection.dialect.name == "postgresql" else sqlite.insert
        statement = insert(table).values(**values).on_conflict_do_nothing().returning(table.c.id)
        options = {} if concerns is None else concerning(concerns)
        new_id = (await self._connection.execute(statement, execution_options=options)).scalar_one_or_none()
        if new_id is None:
            raise conflict
        return int(new_id)


def in_batches(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield `values` in order, at most `VALUES_PER_QUERY` at a time; nothing for none."""
    for start in range(0, len(values), VALUES_PER_QUERY):
        yield values[start : start + VALUES_PER_QUERY]


def filled(values: Sequence[T]) -> Sequence[T]:
    """Return `values` for an IN list, the last one repeated up to a power of two.

    SQLite's driver keeps compiled what it ran lately, and each length of a list is a statement of its own.
    """
    missing = (1 << (len(values) - 1).bit_length()) - len(values) if values else 0
    return [*values, *[values[-1]] * missing] if missing else values
