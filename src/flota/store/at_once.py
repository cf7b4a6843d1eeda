"""Whole transactions in one hand-over to a thread, for SQLite.

The usual way hands each statement over four times (cursor, statement, rows, close), and each time two threads wake each
other for a few microseconds of SQLite. Work that waits for nothing but its transaction can run there from end to end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

_T = TypeVar("_T")

OnConnection = Callable[[AsyncConnection], Awaitable[_T]]


class AtOnce:
    """One connection and one thread. Writers have to take turns with all other writers themselves."""

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._closed = False

    async def run(self, work: OnConnection[_T], options: Mapping[str, Any] | None = None) -> _T:
        """Return what `work` returns, its transaction committed; an error of it leaves no trace.

        `work` must wait for nothing but the connection, and is told so by `RuntimeError`. `options` are the
        connection's execution options. If the caller is canceled, what was begun is done first.
        """
        doing = asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work, options or {})
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            await asyncio.wait({doing})
            if not doing.cancelled():
                doing.exception()  # looked at: whoever would hear of it is gone
            raise

    async def close(self) -> None:
        """Close the connection, after what is under way; again is nothing."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown()

    def _transaction(self, work: OnConnection[_T], options: Mapping[str, Any]) -> _T:
        with self._engine.connect() as connection:
            connection.execution_options(**options)
            with connection.begin():
                return _result_of(work(cast("AsyncConnection", _Inline(connection))))


class _Inline:
    """The part of `AsyncConnection` that queries use, on a connection of this thread: nothing ever waits."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self.dialect = connection.dialect

    async def execute(
        self,
        statement: sa.Executable,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        execution_options: Mapping[str, Any] | None = None,
    ) -> sa.CursorResult[Any]:
        return self._connection.execute(statement, parameters, execution_options=execution_options)

    @asynccontextmanager
    async def begin_nested(self) -> AsyncIterator[None]:
        with self._connection.begin_nested():
            yield


def _result_of(work: Awaitable[_T]) -> _T:
    """Return what a coroutine returns that never has to wait."""
    steps: Generator[Any, None, _T] = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        return cast("_T", end.value)
    steps.close()
    raise RuntimeError("this work waits for something else than its transaction")
