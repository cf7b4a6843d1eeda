"""Digests of a file, computed in one pass while it streams."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from flota.errors import InvalidInput

SHA256_HEX_LEN: Final = 64
_SHA256_HEX = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class FileDigests:
    """Size (bytes) and lower-case hex digests of the same bytes.

    hawkBit clients check SHA-1, SHA-256 or MD5 depending on the client (docs/reference/hawkbit-ddi.md), HTTPUpdate
    checks MD5 (docs/reference/http-update.md): so all three are kept for each artifact.
    """

    size: int
    sha256: str
    sha1: str
    md5: str


class DigestAccumulator:
    """Feed bytes with `update`, read the result with `finish`."""

    def __init__(self) -> None:
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._md5 = hashlib.md5(usedforsecurity=False)

    @property
    def size(self) -> int:
        """Bytes seen so far."""
        return self._size

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the file, in order."""
        self._size += len(data)
        self._sha256.update(data)
        self._sha1.update(data)
        self._md5.update(data)

    def finish(self) -> FileDigests:
        """Return the digests of everything seen so far; more may follow."""
        return FileDigests(
            size=self._size,
            sha256=self._sha256.hexdigest(),
            sha1=self._sha1.hexdigest(),
            md5=self._md5.hexdigest(),
        )


def digests_of(data: bytes | memoryview) -> FileDigests:
    """Return the digests of `data`."""
    accumulator = DigestAccumulator()
    accumulator.update(data)
    return accumulator.finish()


def is_sha256_hex(text: str) -> bool:
    """Whether `text` is a SHA-256 in lower-case hex."""
    return _SHA256_HEX.match(text) is not None


def parse_sha256_hex(text: str) -> str:
    """Return `text` as lower-case hex of 64 characters; raises `InvalidInput` otherwise."""
    lowered = text.lower()
    if not _SHA256_HEX.match(lowered):
        raise InvalidInput("not a SHA-256", expected="64 hex digits", found=repr(text[: SHA256_HEX_LEN + 8]))
    return lowered
