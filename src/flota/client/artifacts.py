"""The management API's operations on artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from flota.client.schemas import Artifact
from flota.client.wire import WireClient, percent_encoded
from flota.errors import InvalidInput

UPLOAD_CHUNK_BYTES: Final = 256 * 1024

Progress = Callable[[int, int], None]
"""Called with (bytes sent, bytes in all) while a file goes up."""


class ArtifactCalls(WireClient):
    """Files into the artifact store."""

    def upload_artifact(self, path: Path, *, filename: str | None = None, progress: Progress | None = None) -> Artifact:
        """Stream the file at `path` into the artifact store; returns what was stored and read out of it.

        The same bytes twice are one artifact: then `already_stored` is set.
        """
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(0)
                return self._upload(_chunks(file, size, progress), size, filename or path.name)
        except OSError as error:
            raise InvalidInput(
                f"cannot read {path}", found=error.strerror or str(error), hint="Check the path and its permissions."
            ) from error

    def upload_bytes(self, data: bytes, filename: str) -> Artifact:
        """Like `upload_artifact`, for bytes in memory."""
        pieces = (data[start : start + UPLOAD_CHUNK_BYTES] for start in range(0, len(data), UPLOAD_CHUNK_BYTES))
        return self._upload(pieces, len(data), filename)

    def _upload(self, pieces: Iterable[bytes], size: int, filename: str) -> Artifact:
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(size),
            "x-filename": percent_encoded(filename, what="a file name", hint="Rename the file."),
        }
        return self._ask("POST", "/artifacts", Artifact, content=pieces, headers=headers)


def _chunks(file: BinaryIO, size: int, progress: Progress | None) -> Iterator[bytes]:
    sent = 0
    while sent < size and (piece := file.read(min(UPLOAD_CHUNK_BYTES, size - sent))):
        yield piece
        sent += len(piece)
        if progress is not None:
            progress(sent, size)
