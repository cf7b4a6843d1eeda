"""The files of an action: listing, downloading, MD5SUM."""

from __future__ import annotations

from datetime import UTC
from email.utils import format_datetime
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.responses import PlainTextResponse, Response

from flota.errors import Conflict, NotFound
from flota.fleet.executions import ExecutionChange, ExecutionState
from flota.fleet.releases import Artifact, Release
from flota.fleet.storage import Transaction
from flota.protocols.ddi import MD5SUM_SUFFIX
from flota.protocols.ddi.deployment import artifact_as_json
from flota.protocols.http_range import (
    ByteRange,
    RangeNotSatisfiable,
    if_match,
    if_range,
    parse_several_ranges,
)
from flota.server.api.artifacts import ArtifactResponse
from flota.server.api.ddi.answers import json_answer
from flota.server.api.ddi.caller import Caller, path_number
from flota.server.api.ddi.rendering import artifact_of, short_name
from flota.server.api.ddi.reports import OWN_MESSAGE, STATUS_ENTRIES_MAX
from flota.server.api.ddi.several_ranges import SeveralRangesResponse
from flota.server.updates import installed_execution, open_assignment, with_retries

if TYPE_CHECKING:
    from flota.server.context import ServerContext

DISPOSITION_NAME_MAX_LEN: Final = 78
"""hawkBit cuts the name in Content-Disposition here."""

_TSPECIALS: Final = frozenset('()<>@,;:\\"/[]?= \t')


class Files:
    """Hands out what a device may have: the file of its open action, and lists that of the installed one."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def list_artifacts(self, caller: Caller) -> Response:
        """GET the files of a software module: of the open action, or of the installed one."""
        release = await self._module(caller, installed_too=True)
        files = [artifact_as_json(artifact_of(release, caller.addresses))]
        return json_answer(caller.request, msgspec.json.encode(files))

    async def download(self, caller: Caller) -> Response:
        """GET a file, whole or in part, or its MD5SUM."""
        release = await self._module(caller, installed_too=False)
        artifact = release.artifact
        asked = caller.request.path_params["filename"]
        if asked in _spellings(release, MD5SUM_SUFFIX):
            text = f"{artifact.digests.md5}  {release.filename}"
            disposition = {"content-disposition": _disposition(release.filename + MD5SUM_SUFFIX)}
            return PlainTextResponse(text, headers=disposition)
        if asked not in _spellings(release):
            raise NotFound("no such artifact", found=repr(asked[:200]))
        condition = caller.request.headers.get("if-match")
        if not if_match(condition, artifact.digests.sha1) and not if_match(condition, artifact.digests.sha256):
            return Response(status_code=412)
        if caller.request.method == "GET" and "range" not in caller.request.headers:
            await self._note_download(caller)
        path = self._context.artifacts.path(artifact.digests.sha256)
        headers = {"content-disposition": _disposition(release.filename)}
        several = _several_ranges(caller, artifact)
        if several is not None:
            headers |= {"etag": f'"{artifact.digests.sha256}"', "accept-ranges": "bytes"}
            return SeveralRangesResponse(path, several, size=artifact.digests.size, headers=headers)
        return ArtifactResponse(
            path, sha256=artifact.digests.sha256, extra_headers=headers, last_modified=artifact.created_at
        )

    async def _module(self, caller: Caller, *, installed_too: bool) -> Release:
        """Return the release with the module's number, if the device has an open action of it. Raises `NotFound`."""
        module_id = path_number(caller.request, "module_id")
        assignment = await open_assignment(self._context, caller.scope, caller.device)
        if assignment is not None and assignment.release.id == module_id and assignment.may_fetch:
            return assignment.release
        if installed_too:
            async with self._context.storage.reading() as transaction:
                installed = await installed_execution(transaction, caller.scope, caller.device)
                if installed is not None and installed.release_id == module_id:
                    return await transaction.release(caller.scope, module_id)
        raise NotFound("no such software module", found=module_id)

    async def _note_download(self, caller: Caller) -> None:
        """Add a status entry for a whole download; parts add none, they are resumed ones."""

        async def write(transaction: Transaction) -> None:
            execution = await transaction.next_execution(caller.scope, caller.device.id)
            if execution is None or execution.version >= STATUS_ENTRIES_MAX:
                return
            change = ExecutionChange(
                ExecutionState.IN_PROGRESS,
                details={"ddi-status": "DOWNLOAD"},
                message=f"{OWN_MESSAGE}Target downloads {caller.request.url.path[:500]}",
            )
            await transaction.change_execution(
                caller.scope, execution.id, execution.version, change, now=self._context.now()
            )

        try:
            await with_retries(self._context, write)
        except Conflict:  # paused or canceled since it was read: the next poll tells the device
            return


def _several_ranges(caller: Caller, artifact: Artifact) -> tuple[ByteRange, ...] | None:
    """Return the ranges of a GET for several of them, None for any other request, and for what is not satisfiable."""
    asked = caller.request.headers
    etag = f'"{artifact.digests.sha256}"'
    is_conditional = "if-none-match" in asked or "if-modified-since" in asked
    date = format_datetime(artifact.created_at.astimezone(UTC), usegmt=True)
    if caller.request.method != "GET" or is_conditional or not if_range(asked.get("if-range"), etag, date):
        return None
    try:
        return parse_several_ranges(asked.get("range"), artifact.digests.size)
    except RangeNotSatisfiable:
        return None


def _spellings(release: Release, suffix: str = "") -> tuple[str, str, str]:
    """Return a file name after one percent-decoding, with a blank sent as `+`, and as links shorten it."""
    filename = release.filename + suffix
    return filename, filename.replace(" ", "+"), short_name(release) + suffix


def _disposition(filename: str) -> str:
    """Return Content-Disposition; names with RFC 2045 specials are quoted, what is not ASCII becomes `_`."""
    name = "".join(c if " " <= c <= "~" else "_" for c in filename)[:DISPOSITION_NAME_MAX_LEN]
    if not any(c in _TSPECIALS for c in name):
        return f"attachment;filename={name}"
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'attachment;filename="{escaped}"'
