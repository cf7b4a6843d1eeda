"""Files on their way in: stored first, inspected as stored, recorded; the same bytes twice are one artifact."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from flota.digests import FileDigests
from flota.errors import InvalidInput, NotFound, TooLarge
from flota.fleet.releases import Artifact
from flota.images.inspection import inspect, inspection_as_dict
from flota.images.model import Inspection

if TYPE_CHECKING:
    from pathlib import Path

    from flota.fleet.scope import Scope
    from flota.fleet.storage import Transaction
    from flota.server.context import ServerContext
    from flota.store.artifacts import ArtifactUpload

WRITE_BATCH_BYTES: Final = 1024 * 1024
"""Bytes collected before they are hashed and written by a worker thread: larger steps cost less switching."""

FILENAME_MAX_LEN: Final = 255


async def store_artifact(
    context: ServerContext,
    scope: Scope,
    body: AsyncIterator[bytes],
    *,
    filename: str,
    announced_size: int | None,
) -> tuple[Artifact, bool]:
    """Stream `body` into the store, inspect what was stored, record it; returns the artifact and whether it is new.

    Raises `TooLarge`, `StorageFull`, and `InvalidInput` when the body ends before or after the announced size (bytes):
    nothing stays behind then.
    """
    limit = context.settings.max_artifact_bytes
    if announced_size is not None and announced_size > limit:
        raise _too_large(limit, announced_size)
    async with contextlib.AsyncExitStack() as recorded:
        digests = await _stream_into_store(context, body, recorded, limit=limit, announced_size=announced_size)
        return await _record_artifact(context, scope, digests, filename)


async def _record_artifact(
    context: ServerContext, scope: Scope, digests: FileDigests, filename: str
) -> tuple[Artifact, bool]:
    """Look into a stored file and record it, unless it is known: then only note that it was uploaded again."""
    async with context.storage.reading() as transaction:
        known = await _find_artifact(transaction, scope, digests.sha256)
    if known is not None:
        async with context.storage.transaction() as transaction:
            return await transaction.add_artifact(scope, replace(known, created_at=context.now()))
    inspection = await asyncio.to_thread(inspect_file, context.artifacts.path(digests.sha256), filename)
    artifact = Artifact(
        digests=digests,
        filename=filename,
        format=str(inspection.format),
        image_version=inspection.version,
        validation_hash=inspection.validation_hash,
        inspection=inspection_as_dict(inspection),
        created_at=context.now(),
    )
    async with context.storage.transaction() as transaction:
        return await transaction.add_artifact(scope, artifact)


async def _stream_into_store(
    context: ServerContext,
    body: AsyncIterator[bytes],
    recorded: contextlib.AsyncExitStack,
    *,
    limit: int,
    announced_size: int | None,
) -> FileDigests:
    """Return the digests of the stored body; until `recorded` is closed the clean-up keeps away from it."""
    with context.artifacts.upload(expected_size=announced_size) as upload:
        received = 0
        batch: list[bytes] = []
        batched = 0
        async for piece in body:
            received += len(piece)
            if received > limit:
                raise _too_large(limit, received)
            batch.append(piece)
            batched += len(piece)
            if batched >= WRITE_BATCH_BYTES:
                await asyncio.to_thread(_write_all, upload, batch)
                batch, batched = [], 0
        if received == 0:
            raise InvalidInput("the file is empty", expected="at least one byte", found="0 bytes")
        await asyncio.to_thread(_write_all, upload, batch)
        await recorded.enter_async_context(context.recording_gate.recording())
        return await asyncio.to_thread(upload.finish)


def _write_all(upload: ArtifactUpload, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        upload.write(piece)


def inspect_file(path: Path, name: str) -> Inspection:
    """Return what is read out of a stored file ; a map of it, so that it need not fit into memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            return inspect(view, name=name)
        finally:
            view.release()


async def _find_artifact(transaction: Transaction, scope: Scope, sha256: str) -> Artifact | None:
    try:
        return await transaction.artifact(scope, sha256)
    except NotFound:
        return None


def parse_filename(text: str) -> str:
    """Return a label for uploaded bytes: the last path component, printable, at most 255 characters.

    It names nothing on the server's disk. Raises `InvalidInput` for control characters and for nothing at all.
    """
    name = text.replace("\\", "/").rsplit("/", 1)[-1].strip()
    if not name or name in (".", "..") or not name.isprintable():
        raise InvalidInput("not a file name", expected="printable text", found=repr(text[:FILENAME_MAX_LEN]))
    return name[:FILENAME_MAX_LEN]


def _too_large(limit: int, found: int) -> TooLarge:
    return TooLarge(
        "the file is too large",
        expected=f"at most {limit} bytes",
        found=f"{found} bytes",
        hint="The server's limit is --max-artifact-bytes of `flota up`.",
    )


async def recorded_artifact(transaction: Transaction, scope: Scope, sha256: str) -> Artifact:
    """Return the tenant's artifact with this SHA-256; raises `NotFound` that says how it gets there."""
    try:
        return await transaction.artifact(scope, sha256)
    except NotFound:
        raise NotFound(
            "there is no such artifact", found=sha256, hint="Upload the file first (POST /api/v1/artifacts)."
        ) from None
