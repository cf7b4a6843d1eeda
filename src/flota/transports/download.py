"""One resumable, verified download for everything that fetches over HTTP.

It goes on where it was after any break (`Range`, `If-Range` with the ETag), stops at the expected length, checks the
SHA-256 of the whole, and waits longer and longer between tries that bring nothing. Two versions of a file are never
mixed: when the server's file has changed, or the server will not resume, the sink starts again.

Source: RFC 9110 13.1.5, 14; docs/reference/server.md, "Artifacts".
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import httpx

from flota.errors import InvalidInput, PeerError
from flota.protocols.http_range import parse_content_range, range_header

RETRY_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_RETRY_AFTER_S: Final = 3600.0
FRESH_STARTS_MAX: Final = 3
"""A file that changes more often than this while it is fetched is not fetched."""

Sleep = Callable[[float], Awaitable[None]]


class DownloadFailed(PeerError):
    """The file could not be fetched, and trying the same again at once cannot help."""

    code = "download-failed"


class NotOffered(DownloadFailed):
    """The server says that there is no such file for this client (any 4xx but those that ask for patience)."""

    code = "not-offered"

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, found=f"HTTP {status}", hint=hint)
        self.status = status


class LengthMismatch(DownloadFailed):
    """The server's file is not as long as announced elsewhere."""

    code = "length-mismatch"


class DigestMismatch(DownloadFailed):
    """The bytes that arrived are not those whose SHA-256 was announced."""

    code = "digest-mismatch"


class RetriesUsedUp(DownloadFailed):
    """Too many tries in a row brought not one byte."""

    code = "retries-used-up"


class DownloadSink(Protocol):
    """Where the bytes go, in order."""

    async def write(self, data: bytes) -> None:
        """Take the next bytes."""

    async def restart(self) -> None:
        """Forget everything taken so far; the next bytes are the file's first."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known beforehand: size in bytes and lower-case hex SHA-256; None = unknown."""

    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again. Delays in seconds; tries without a single new byte are counted, progress resets the count."""

    first_delay_s: float = 1.0
    longest_delay_s: float = 60.0
    tries_without_progress: int = 10

    def delay_s(self, failures: int, rng: random.Random) -> float:
        """Return the wait after the n-th failure in a row (n from 1): doubling, capped, its upper half at random."""
        ceiling = min(self.longest_delay_s, self.first_delay_s * 2.0 ** min(failures - 1, 30))
        return ceiling * (0.5 + rng.random() / 2)


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A whole, verified file: `requests` made, of which `resumed` went on in the middle; the server's last ETag."""

    size: int
    sha256: str
    etag: str | None
    requests: int
    resumed: int


@dataclass(slots=True)
class ResumePoint:
    """The bytes that the sink already has: their number, a SHA-256 fed with them, and the ETag they came under."""

    offset: int = 0
    sha256: hashlib._Hash = field(default_factory=hashlib.sha256)
    etag: str | None = None


class _Interrupted(Exception):
    """One request ended before the file did; worth another one after `wait_s` or the usual delay."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


class Download:
    """One download; `run` fetches until the file is whole.

    `client`: follows redirects only if it was made so. `headers`: sent with every request (authorization).
    `rng` and `sleep`: what the waits between tries use. `on_break(reason, offset, wait_s)` hears of every interruption.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        sink: DownloadSink,
        *,
        expected: Expected,
        rng: random.Random,
        sleep: Sleep,
        start: ResumePoint | None = None,
        headers: Mapping[str, str] | None = None,
        policy: RetryPolicy | None = None,
        on_break: Callable[[str, int, float], None] | None = None,
    ) -> None:
        self._client = client
        self._url = url
        self._sink = sink
        self._size = expected.size
        self._sha256 = expected.sha256
        self._rng = rng
        self._sleep = sleep
        self._at = start or ResumePoint()
        self._headers = dict(headers or {})
        self._policy = policy or RetryPolicy()
        self._on_break = on_break
        self._requests = 0
        self._resumed = 0
        self._fresh_starts = 0
        if self._size is not None and self._at.offset > self._size:
            raise InvalidInput("cannot resume behind the end", expected=f"at most {self._size}", found=self._at.offset)

    async def run(self) -> Downloaded:
        """Fetch until the file is whole and verified. Raises `DownloadFailed` and kin; a sink's errors pass through."""
        while True:
            await self._fetch_the_rest()
            digest = self._at.sha256.hexdigest()
            if self._sha256 is None or digest == self._sha256:
                return Downloaded(self._at.offset, digest, self._at.etag, self._requests, self._resumed)
            if not self._resumed:
                raise DigestMismatch("the file that arrived has another SHA-256", expected=self._sha256, found=digest)
            # Pieces of a resumed file may be of different age: once more, in one go.
            self._resumed = 0
            await self._start_again("the resumed file has another SHA-256")

    async def _fetch_the_rest(self) -> None:
        failures = 0
        while self._size is None or self._at.offset < self._size:
            before = self._at.offset
            try:
                await self._one_request()
            except _Interrupted as interruption:
                failures = 1 if self._at.offset > before else failures + 1
                if failures > self._policy.tries_without_progress:
                    raise RetriesUsedUp(
                        f"{failures} tries in a row brought nothing: {interruption.reason}", offset=self._at.offset
                    ) from interruption
                wait_s = interruption.wait_s
                if wait_s is None:
                    wait_s = self._policy.delay_s(failures, self._rng)
                if self._on_break is not None:
                    self._on_break(interruption.reason, self._at.offset, wait_s)
                await self._sleep(wait_s)

    async def _one_request(self) -> None:
        headers = dict(self._headers)
        if self._at.offset:
            headers["range"] = range_header(self._at.offset)
            if self._at.etag is not None and not self._at.etag.startswith("W/"):
                headers["if-range"] = self._at.etag
        self._requests += 1
        try:
            async with self._client.stream("GET", self._url, headers=headers) as answer:
                if await self._accept(answer):
                    await self._take_body(answer)
        except httpx.TransportError as error:
            raise _Interrupted(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        except httpx.TooManyRedirects as error:
            raise DownloadFailed("too many redirects", found=str(error)) from error

    async def _accept(self, answer: httpx.Response) -> bool:
        """Judge status and headers; True if a body follows that continues what is there."""
        encoding = answer.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise DownloadFailed("the server compressed a firmware file", expected="identity", found=encoding)
        match answer.status_code:
            case 206:
                return await self._accept_part(answer)
            case 200:
                if self._at.offset:
                    await self._start_again("the server sends the file from its start")
                self._learn_size(_content_length(answer))
                self._at.etag = answer.headers.get("etag")
                return True
            case 416:
                await self._start_again("the server has no byte where the download was")
                raise _Interrupted("range not satisfiable")
            case status if status in RETRY_STATUSES:
                raise _Interrupted(f"HTTP {status}", _retry_after_s(answer))
            case status:
                raise NotOffered(f"the server does not give out {self._url.split('?', 1)[0]}", status=status)

    async def _accept_part(self, answer: httpx.Response) -> bool:
        part, size = parse_content_range(answer.headers.get("content-range", ""))
        etag = answer.headers.get("etag")
        if self._at.etag is not None and etag is not None and etag != self._at.etag:
            await self._start_again("the file has changed")
            raise _Interrupted("the file has changed", 0.0)
        if part.first != self._at.offset:
            raise DownloadFailed("the server sent another part", expected=self._at.offset, found=part.first)
        self._learn_size(size)
        self._at.etag = etag or self._at.etag
        self._resumed += 1
        return True

    async def _take_body(self, answer: httpx.Response) -> None:
        async for data in answer.aiter_raw():
            end = self._at.offset + len(data)
            if self._size is not None and end > self._size:
                raise LengthMismatch(
                    "the server sends more than it announced", expected=self._size, found=f"at least {end}"
                )
            await self._sink.write(data)
            self._at.sha256.update(data)
            self._at.offset = end
        if self._size is None:
            self._size = self._at.offset  # a body without length that ended well is the file
        if self._at.offset < self._size:
            raise _Interrupted("the body ended early")

    async def _start_again(self, reason: str) -> None:
        self._fresh_starts += 1
        if self._fresh_starts > FRESH_STARTS_MAX:
            raise DownloadFailed(f"started again {FRESH_STARTS_MAX} times: {reason}")
        self._at = ResumePoint()
        await self._sink.restart()

    def _learn_size(self, size: int | None) -> None:
        if size is None:
            return
        if self._size is not None and size != self._size:
            raise LengthMismatch("the server's file has another length", expected=self._size, found=size)
        self._size = size


async def download(
    client: httpx.AsyncClient,
    url: str,
    sink: DownloadSink,
    *,
    expected: Expected,
    rng: random.Random,
    sleep: Sleep,
    start: ResumePoint | None = None,
    headers: Mapping[str, str] | None = None,
    policy: RetryPolicy | None = None,
    on_break: Callable[[str, int, float], None] | None = None,
) -> Downloaded:
    """Fetch `url` into `sink` until the file is whole and verified; see `Download` for the arguments."""
    return await Download(
        client,
        url,
        sink,
        expected=expected,
        rng=rng,
        sleep=sleep,
        start=start,
        headers=headers,
        policy=policy,
        on_break=on_break,
    ).run()


def _content_length(answer: httpx.Response) -> int | None:
    text = answer.headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise DownloadFailed("not a content-length", found=repr(text[:40]))
    return int(text)


def _retry_after_s(answer: httpx.Response) -> float | None:
    """Return the seconds of a `Retry-After` header; None if there is none (a date is not worth a clock here)."""
    text = answer.headers.get("retry-after", "")
    return min(float(text), LONGEST_RETRY_AFTER_S) if text.isascii() and text.isdecimal() else None
