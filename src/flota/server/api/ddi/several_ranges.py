"""Several ranges of a file in one answer, `multipart/byteranges`, as hawkBit gives them to DDI clients."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from flota.errors import FlotaError, NotFound
from flota.protocols.http_range import PARTS_BOUNDARY, ByteRange, part_head, parts_end

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

MEDIA_TYPE: Final = "application/octet-stream"
CHUNK_BYTES: Final = 64 * 1024


class SeveralRangesResponse(Response):
    """206 with `parts` of the file at `path`, of `size` bytes; they rise and do not overlap."""

    def __init__(self, path: Path, parts: tuple[ByteRange, ...], *, size: int, headers: Mapping[str, str]) -> None:
        heads = [part_head(part, size, MEDIA_TYPE) for part in parts]
        length = sum(map(len, heads)) + sum(part.length for part in parts) + len(parts_end())
        super().__init__(
            status_code=206,
            headers={**headers, "content-length": str(length)},
            media_type=f"multipart/byteranges; boundary={PARTS_BOUNDARY}",
        )
        self._path = path
        self._pieces = list(zip(heads, parts, strict=True))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Raises `NotFound` before anything is sent if there is no such file."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound("the artifact's file is missing", hint="Upload the file again.") from None
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for head, part in self._pieces:
                await _send(send, head)
                for offset in range(part.first, part.last + 1, CHUNK_BYTES):
                    length = min(CHUNK_BYTES, part.last + 1 - offset)
                    data = await asyncio.to_thread(os.pread, descriptor, length, offset)
                    if len(data) != length:
                        raise FlotaError("the artifact's file became shorter while it was sent", offset=offset)
                    await _send(send, data)
            await _send(send, parts_end(), more=False)
        finally:
            os.close(descriptor)


async def _send(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})
