"""Removes stored files that no release names: refused ones, and uploads that nobody made a release of.

An hour after its last upload such a file goes: first its row, then, if no tenant has one left, its bytes. What is to go
is marked on the disk before, so that a server that is killed in between finishes at its next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from flota.fleet.scope import Scope
from flota.server.waiting import wait_for_any

if TYPE_CHECKING:
    from flota.server.context import ServerContext

ACTOR: Final = "artifact-cleanup"

UNUSED_AFTER: Final = timedelta(hours=1)
"""How long a file waits for the release that names it, counted from its latest upload."""

PASS_EVERY_S: Final = 600.0
REMOVED_PER_PASS: Final = 1000
"""Most files of one tenant in one pass: uploads wait while a pass is at work."""

_log = logging.getLogger(__name__)


class RecordingGate:
    """Keeps the clean-up away from files that are stored but not recorded yet. For one event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._recording = 0

    @contextlib.asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Hold from before a file is put into the store until its row is committed. Any number at once."""
        async with self._lock:
            self._recording += 1
        try:
            yield
        finally:
            self._recording -= 1

    @contextlib.asynccontextmanager
    async def cleaning(self) -> AsyncIterator[bool]:
        """Give whether no file is being recorded; none begins to be until the block ends."""
        async with self._lock:
            yield self._recording == 0


class ArtifactCleanup:
    """The clean-up of one server."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def run(self, stop: asyncio.Event) -> None:
        """Clean at once, then every `PASS_EVERY_S` seconds until `stop` is set; a failing pass is tried again."""
        while True:
            try:
                await self.clean()
            except Exception:  # noqa: BLE001 - whatever it was: files that stay too long are no reason to stop
                _log.exception("an artifact clean-up failed")
            if await wait_for_any(stop, timeout_s=PASS_EVERY_S):
                return

    async def clean(self) -> int:
        """Remove what is unused, return how many files went; nothing while an upload is just being recorded."""
        async with self._context.recording_gate.cleaning() as is_quiet:
            if not is_quiet:
                return 0
            for tenant in await self._context.storage.list_tenants():
                await self._remove_rows(Scope(tenant.id, ACTOR))
            return await self._remove_files()

    async def _remove_rows(self, scope: Scope) -> None:
        now = self._context.now()
        before = now - UNUSED_AFTER
        async with self._context.storage.reading() as transaction:
            unused = await transaction.unused_artifacts(scope, before=before, limit=REMOVED_PER_PASS)
        if not unused:
            return
        await asyncio.to_thread(self._context.artifacts.mark_for_removal, unused)
        async with self._context.storage.transaction() as transaction:
            await transaction.remove_unused_artifacts(scope, unused, before=before, now=now)

    async def _remove_files(self) -> int:
        """Finish every marked removal, this pass's and those of a server that was killed."""
        artifacts = self._context.artifacts
        removed = 0
        for sha256 in await asyncio.to_thread(artifacts.marked_for_removal):
            async with self._context.storage.reading() as transaction:
                is_recorded = await transaction.is_artifact_recorded(sha256)
            await asyncio.to_thread(artifacts.finish_removal, sha256, remove=not is_recorded)
            removed += not is_recorded
        return removed
