"""The short way for small parts of artifacts: what a signed link that was seen before can be given without waiting.

Devices with little memory fetch an image by ranges of a few KiB, each a request of its own. For those, walking through
limits, routing, authorisation and the general download handler costs more than the bytes. The answers here are the ones
that `send_artifact` would give, made in one step; whatever is not plain, `None` sends the ordinary way.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from flota.server.api.part_files import PartFiles
from flota.server.download_tokens import TOKEN_MAX_LEN, DownloadGrant
from flota.server.limits import HEADERS_MAX_BYTES, HEADERS_MAX_COUNT

if TYPE_CHECKING:
    from starlette.types import Message, Scope

    from flota.server.context import ServerContext

ARTIFACTS_PREFIX: Final = "/artifacts/"
"""What paths of artifacts begin with; their SHA-256 follows."""

PART_MAX_BYTES: Final = 64 * 1024
"""Read while other requests wait, and held in memory until the peer took it."""

KNOWN_LINKS_MAX: Final = 4096
"""Links that are remembered; one is about 600 bytes."""

_QUERY_MAX_LEN: Final = len("token=") + TOKEN_MAX_LEN

_FIRST_AND_LAST: Final = re.compile(rb"bytes=([0-9]{1,19})-([0-9]{1,19})\Z")
"""How devices ask; every other form, and whatever is wrong with this one, is for `flota.protocols.http_range`."""

_NOT_PLAIN: Final = frozenset(
    (b"if-none-match", b"if-modified-since", b"if-range", b"content-length", b"transfer-encoding")
)
"""Request headers that change the answer, or announce a body."""


class _Link(NamedTuple):
    """A link whose token was checked, and what does not change from one of its requests to the next."""

    expires_at: datetime
    path: str
    size: int
    headers: list[tuple[bytes, bytes]]


class ArtifactParts:
    """Remembers good links until they expire, for answers in any thread.

    A file that is deleted is gone after `part_files.LOOK_EVERY_S`, though its link is remembered.
    """

    def __init__(self, context: ServerContext) -> None:
        self._now = context.now
        self._files = PartFiles()
        self._links: dict[tuple[str, bytes], _Link] = {}

    def remember(self, scope: Scope, grant: DownloadGrant, path: Path, headers: list[tuple[bytes, bytes]]) -> None:
        """Note that this request's path and query are a good link to the file; `headers` go into every answer."""
        query: bytes = scope["query_string"]
        if len(query) > _QUERY_MAX_LEN:
            return
        try:
            size = path.stat().st_size
        except OSError:
            return
        if len(self._links) >= KNOWN_LINKS_MAX:
            del self._links[next(iter(self._links))]  # the oldest
        self._links[(scope["path"], query)] = _Link(grant.expires_at, str(path), size, headers)

    def answer(self, scope: Scope) -> tuple[Message, Message] | None:
        """Return the two messages of a 206 for a plain request for a small part, else None."""
        link = self._links.get((scope["path"], scope["query_string"]))
        if link is None or scope["method"] != "GET":
            return None
        asked = _plain_range(scope["headers"])
        if asked is None or self._now() >= link.expires_at:
            return None
        first, last = int(asked[1]), int(asked[2])
        length = last - first + 1
        if not 0 < length <= PART_MAX_BYTES or last >= link.size:
            return None
        data = self._files.read(link.path, first, length)
        if len(data) != length:
            return None
        headers = [
            *link.headers,
            (b"content-length", b"%d" % length),
            (b"content-range", b"bytes %d-%d/%d" % (first, last, link.size)),
        ]
        start: Message = {"type": "http.response.start", "status": 206, "headers": headers}
        return start, {"type": "http.response.body", "body": data, "more_body": False}


def _plain_range(headers: list[tuple[bytes, bytes]]) -> re.Match[bytes] | None:
    """Return the one range of a request without conditions, without a body and within the header limits."""
    fields = dict(headers)
    asked = fields.get(b"range")
    if (
        asked is None
        or len(fields) != len(headers)  # some header twice: it might be that one
        or not _NOT_PLAIN.isdisjoint(fields)
        or len(fields) > HEADERS_MAX_COUNT
        or sum(map(len, fields)) + sum(map(len, fields.values())) > HEADERS_MAX_BYTES
    ):
        return None
    return _FIRST_AND_LAST.match(asked)
