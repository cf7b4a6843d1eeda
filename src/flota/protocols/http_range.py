"""Byte ranges and validators of HTTP, both ends: what a client asks for, what a server answers.

One range per request: several ranges (which no update client sends) are answered 416, like every `bytes` range that
cannot be read, because hawkBit's clients take 416 as "already complete" and 200 as "start again". Only DDI downloads
take several, as hawkBit does (`parse_several_ranges`).

Source: docs/reference/http-update.md (section on ranges); RFC 9110 sections 8.8, 13 and 14;
docs/reference/hawkbit-ddi.md ("Downloads"); eclipse-hawkbit/hawkbit:hawkbit-rest/hawkbit-rest-core (FileStreamingUtil).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from flota.protocols.malformed import MalformedMessage

RANGE_HEADER_MAX_LEN: Final = 128
"""Characters; two numbers of 19 digits need 46. A longer header is several ranges or an attack."""

RANGES_MAX: Final = 10
"""Ranges of one request; that many fit into the longest header. hawkBit answers several ranges in parts, and
its clients may count on it; a device route that answers one range alone is safer. Few, without overlaps, is both."""

PARTS_BOUNDARY: Final = "THIS_STRING_SEPARATES_MULTIPART"
"""hawkBit's, always the same."""

_ONE_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,19})-([0-9]{0,19})[ \t]*\Z", re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)\Z")
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,19})\Z")
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Some bytes of a file, from `first` to `last`, both included, as HTTP counts them."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last:
            raise ValueError(f"not a byte range: {self.first} to {self.last}")

    @property
    def length(self) -> int:
        """Bytes in the range."""
        return self.last - self.first + 1


class RangeNotSatisfiable(MalformedMessage):
    """The answer is 416 with `Content-Range: bytes */<size>`."""

    code = "range-not-satisfiable"


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Return the range that a `Range` header asks of a file of `size` bytes; None means the whole file (200).

    `a-b`, `a-` and `-n` are understood; an end beyond the file is clamped. Another unit than bytes is ignored.
    Raises `RangeNotSatisfiable` for a start at or after the end, start > end, bad syntax, and several ranges.
    """
    if header is None:
        return None
    match = _ONE_RANGE.match(header.strip()) if len(header) <= RANGE_HEADER_MAX_LEN else None
    if match is None and not header.strip().lower().startswith("bytes="):
        return None
    if match is None or match.group(1) == match.group(2) == "":
        raise RangeNotSatisfiable("the Range header is not one byte range", found=repr(header[:RANGE_HEADER_MAX_LEN]))
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size - 1
    else:
        start, end = int(first), min(size - 1, int(last)) if last else size - 1
        if last and int(last) < start:
            raise RangeNotSatisfiable("the range ends before it starts", found=repr(header))
    if start > end:
        raise RangeNotSatisfiable("the range starts after the end", expected=f"below {size}", found=repr(header))
    return ByteRange(start, end)


def parse_several_ranges(header: str | None, size: int) -> tuple[ByteRange, ...] | None:
    """Return the ranges of a header that has at least two, by rising offset; None for any other header.

    Raises `RangeNotSatisfiable` for one that `parse_range` would refuse alone, for overlaps, and for too many.
    """
    unit, _, several = (header or "").strip().partition("=")
    if "," not in several or unit.lower() != "bytes":
        return None
    texts = several.split(",") if len(several) <= RANGE_HEADER_MAX_LEN else []
    if not 2 <= len(texts) <= RANGES_MAX:
        raise RangeNotSatisfiable("too many byte ranges", expected=f"at most {RANGES_MAX}", found=repr(several[:128]))
    found = [parse_range(f"bytes={text.strip()}", size) for text in texts]
    parts = sorted((part for part in found if part is not None), key=lambda part: part.first)
    if any(before.last >= after.first for before, after in pairwise(parts)):
        raise RangeNotSatisfiable("the byte ranges overlap", found=repr(several))
    return tuple(parts)


def part_head(part: ByteRange, size: int, media_type: str) -> bytes:
    """Return what stands before a part of a `multipart/byteranges` body."""
    lines = ("", f"--{PARTS_BOUNDARY}", f"Content-Type: {media_type}", f"Content-Range: {content_range(part, size)}")
    return "\r\n".join((*lines, "", "")).encode("ascii")


def parts_end() -> bytes:
    """Return what ends a `multipart/byteranges` body."""
    return f"\r\n--{PARTS_BOUNDARY}--\r\n".encode("ascii")


def range_header(first: int, last: int | None = None) -> str:
    """Return the value of a `Range` header for bytes from `first` to `last` included, or to the end."""
    return f"bytes={first}-" if last is None else f"bytes={first}-{last}"


def content_range(part: ByteRange, size: int) -> str:
    """Return the value of `Content-Range` of a 206."""
    return f"bytes {part.first}-{part.last}/{size}"


def unsatisfied_content_range(size: int) -> str:
    """Return the value of `Content-Range` of a 416."""
    return f"bytes */{size}"


def parse_content_range(header: str) -> tuple[ByteRange, int | None]:
    """Return which bytes a 206 brings, and of how many (None: unknown to the server). Raises `MalformedMessage`."""
    match = _CONTENT_RANGE.match(header.strip())
    if match is None:
        raise MalformedMessage("not a Content-Range", expected="bytes A-B/N", found=repr(header[:RANGE_HEADER_MAX_LEN]))
    first, last = int(match.group(1)), int(match.group(2))
    size = None if match.group(3) == "*" else int(match.group(3))
    if last < first or (size is not None and last >= size):
        raise MalformedMessage("Content-Range contradicts itself", found=repr(header))
    return ByteRange(first, last), size


def parse_unsatisfied_content_range(header: str) -> int:
    """Return the file's size from the `Content-Range` of a 416. Raises `MalformedMessage`."""
    match = _UNSATISFIED.match(header.strip())
    if match is None:
        raise MalformedMessage("not a Content-Range of a 416", found=repr(header[:RANGE_HEADER_MAX_LEN]))
    return int(match.group(1))


def none_match(header: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` header names `etag` (quoted): the answer to GET or HEAD is 304. Weak comparison."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    bare = etag.removeprefix("W/")
    return any(found.group(0).removeprefix("W/") == bare for found in _ETAG.finditer(header))


def if_match(header: str | None, etag: str) -> bool:
    """Whether an `If-Match` header allows the request; no header does. Unquoted tags count (hawkBit's clients)."""
    if header is None or header.strip() == "*":
        return True
    bare = etag.strip('"')
    return any(part.strip().strip('"') == bare for part in header.split(","))


def if_range(header: str | None, etag: str, last_modified: str | None = None) -> bool:
    """Whether `Range` may be honoured under an `If-Range` header: its ETag or date must be exactly the current one."""
    if header is None:
        return True
    value = header.strip()
    return value == etag or (last_modified is not None and value == last_modified)
