"""The agent that mirrors ESP-IDF's esp_https_ota: one URL, three ways to fetch, an app that compares versions.

Plain: one GET. Resumption: `Range: bytes=N-` from the bytes kept in NVS, even for N = 0. Partial: HEAD, then pieces.
Source: docs/reference/http-update.md, "esp_https_ota"; espressif/esp-idf:components/esp_https_ota/src/esp_https_ota.c
and examples/system/ota/advanced_https_ota.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import httpx

from flota.errors import FlotaError, PeerError
from flota.images.esp_app import MINIMUM_APP_SIZE, parse_header
from flota.images.esp_chips import CHIPS
from flota.images.esp_desc import APP_DESC_FILE_OFFSET, has_app_desc, parse_app_desc
from flota.images.model import ImageError
from flota.protocols.http_range import parse_content_range, range_header
from flota.virtual.device import AppContext
from flota.virtual.esp_slots import EspSlots
from flota.virtual.events import EventKind
from flota.virtual.hardware import ImageNote, ImageNotes
from flota.virtual.slots import BadImage, ResetReason, Restart, SlotWriter

USER_AGENT: Final = "ESP32 HTTP Client/1.0"
TIME_OUT_S: Final = 5.0
"""esp_http_client's default, on the wall clock."""

FIRST_READ_BYTES: Final = 1024
PIECE_BYTES: Final = 64 * 1024
DEFAULT_PERIOD_S: Final = 60.0
PERIOD_JITTER: Final = 0.1
TRIES: Final = 5
"""Connections in a row without progress before the app waits for its next period."""

RETRY_DELAY_S: Final = 1.0
SAVE_EVERY_BYTES: Final = 32 * 1024
PROGRESS_KEY: Final = "https_ota"
JUDGED_KEY: Final = "https_ota_judged"


class FetchMode(enum.StrEnum):
    """How the app configured esp_https_ota."""

    PLAIN = "plain"
    RESUME = "resume"
    PARTIAL = "partial"


@dataclass(frozen=True, slots=True)
class Progress:
    """What resumption keeps in NVS: bytes known to be in the slot, of a file with this ETag."""

    slot: str
    written: int
    etag: str | None


class NothingToDo(Exception):
    """The app decided against the image offered, for the reason given; `etag` is what it saw."""

    def __init__(self, reason: str, etag: str | None) -> None:
        super().__init__(reason)
        self.etag = etag


class StartAgain(Exception):
    """The server would not resume: once more from the first byte, without Range."""


class EspHttpsOtaAgent:
    """Asks `url` every `period_s` of device time, fetching as `mode` says with the HTTP/1.1 client `client`."""

    def __init__(
        self,
        url: str,
        client: httpx.AsyncClient,
        *,
        mode: FetchMode = FetchMode.RESUME,
        period_s: float = DEFAULT_PERIOD_S,
        chip: str = "esp32-c3",
    ) -> None:
        self._url = url
        self._client = client
        self._mode = mode
        self._period_s = period_s
        self._chip = chip

    async def run(self, context: AppContext) -> None:
        """Ask for ever; ends by `Restart` when an update is in place."""
        while True:
            await self.ask_once(context)
            await context.pace.spend(self._period_s * (1 + PERIOD_JITTER * (2 * context.rng.random() - 1)))

    async def ask_once(self, context: AppContext) -> None:
        """Look for an update and install it. Raises `Restart` after an update."""
        failures = 0
        use_range = True
        while failures < TRIES:
            before = self._progress(context)
            try:
                await self._update(context, use_range=use_range)
            except NothingToDo as decision:
                if decision.etag is not None:
                    context.nvs.set(JUDGED_KEY, {"etag": decision.etag, "running": context.slots.running.sha256})
                context.tell(EventKind.POLL, str(decision))
                return
            except StartAgain as again:
                context.nvs.set(PROGRESS_KEY, None)
                context.tell(EventKind.BREAK, str(again))
                use_range = False
                failures += 1
                continue
            except (httpx.TransportError, PeerError) as error:
                after = self._progress(context)
                failures = 1 if after is not None and after != before else failures + 1
                context.tell(EventKind.BREAK, f"{type(error).__name__}: {error}".rstrip(": "))
                if self._mode is FetchMode.PLAIN:
                    return
                await context.pace.wait_for_peer(RETRY_DELAY_S * (0.5 + context.rng.random()))
            except FlotaError as error:
                context.nvs.set(PROGRESS_KEY, None)
                context.tell(EventKind.UPDATE_FAILED, str(error))
                return

    async def _update(self, context: AppContext, *, use_range: bool) -> None:
        progress = self._progress(context) if self._mode is FetchMode.RESUME and use_range else None
        start = progress.written if progress is not None else 0
        fetch = _Fetch(self._client, self._url, self._headers(context), progress.etag if progress is not None else None)
        pieces = {
            FetchMode.PLAIN: fetch.whole,
            FetchMode.RESUME: fetch.rest if use_range else fetch.whole,
            FetchMode.PARTIAL: fetch.pieces,
        }[self._mode](start)
        try:
            await self._install(context, fetch, pieces, progress)
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]  # all three are generators

    async def _install(
        self, context: AppContext, fetch: _Fetch, pieces: AsyncIterator[bytes], progress: Progress | None
    ) -> None:
        slots = context.slots
        slot = slots.next_slot()
        writer: SlotWriter | None = None
        noted = 0
        if progress is not None and progress.written and progress.slot == slot:
            writer = await slots.resume(slot, 0, progress.written)
            noted = progress.written
            context.tell(EventKind.RESUMED, f"goes on at {progress.written}", at=progress.written)
        try:
            if writer is None:
                head = await self._first_bytes(pieces)
                self._judge(context, head, fetch)
                size = fetch.size if fetch.size is not None else "an unknown number of"
                context.tell(EventKind.OFFER, f"{size} bytes offered for {slot}", size=fetch.size)
                writer = await slots.begin(slot, fetch.size or 0)
                await writer.write(head)
            await self._write_all(context, fetch, pieces, writer, noted)
            await writer.finish()
        except BaseException:
            if writer is not None:
                writer.abandon()
            raise
        context.nvs.set(PROGRESS_KEY, None)
        if fetch.size is not None:
            digest = hashlib.sha256(slots.read(slot, fetch.size)).hexdigest()
            ImageNotes(context.nvs).add(ImageNote("", fetch.size, digest))
        slots.set_boot(slot)
        await context.pace.pay()
        context.tell(EventKind.INSTALLED, f"image in {slot}, chosen for the next boot", slot=slot)
        raise Restart(ResetReason.SOFTWARE, "to start the update")

    async def _first_bytes(self, pieces: AsyncIterator[bytes]) -> bytes:
        """Return at least the first 1024 bytes."""
        head = bytearray()
        async for data in pieces:
            head += data
            if len(head) >= FIRST_READ_BYTES:
                return bytes(head)
        raise BadImage("the file is too short for an app image", expected=f"{FIRST_READ_BYTES} bytes", found=len(head))

    async def _write_all(
        self, context: AppContext, fetch: _Fetch, pieces: AsyncIterator[bytes], writer: SlotWriter, noted: int
    ) -> None:
        """Write the rest of the file; what is durable is noted for resumption every 32 KiB, from `noted` bytes on."""
        saved = self._save_progress(context, fetch, writer, noted)
        async for data in pieces:
            await writer.write(data)
            saved = self._save_progress(context, fetch, writer, saved)

    def _save_progress(self, context: AppContext, fetch: _Fetch, writer: SlotWriter, saved: int) -> int:
        """Note what is durable if that is worth a write; returns what is noted."""
        if self._mode is not FetchMode.RESUME or writer.durable - saved < SAVE_EVERY_BYTES:
            return saved
        context.nvs.set(PROGRESS_KEY, {"slot": writer.slot, "written": writer.durable, "etag": fetch.etag})
        _tell_quarters(context, saved, writer.durable, fetch.size)
        return writer.durable

    def _judge(self, context: AppContext, head: bytes, fetch: _Fetch) -> None:
        """Decide on the first 1024 bytes: right chip, and a version that is neither running nor rolled back before."""
        try:
            header, _ = parse_header(head)
        except ImageError as error:
            raise BadImage(f"not an app image: {error}") from error
        chip = CHIPS.get(header.chip_id)
        if chip is None or chip.name != self._chip:
            raise BadImage("the image is for another chip", offset=12, expected=self._chip, found=header.chip_id)
        raw = head[APP_DESC_FILE_OFFSET:]
        if not has_app_desc(raw):
            raise BadImage("the image has no app descriptor", offset=APP_DESC_FILE_OFFSET)
        version = parse_app_desc(raw).version
        running = context.slots.running
        if version == running.version:
            raise NothingToDo(f"version {version} runs already", fetch.etag)
        if version == self._rolled_back_version(context):
            raise NothingToDo(f"version {version} was rolled back before", fetch.etag)

    def _rolled_back_version(self, context: AppContext) -> str | None:
        if not isinstance(context.slots, EspSlots):
            return None
        slot = context.slots.last_rejected()
        if slot is None:
            return None
        raw = context.slots.read(slot, MINIMUM_APP_SIZE)[APP_DESC_FILE_OFFSET:]
        return parse_app_desc(raw).version if has_app_desc(raw) else None

    def _headers(self, context: AppContext) -> dict[str, str]:
        """Return what the app adds to its requests: what it runs, and the image that it has already decided against."""
        headers = {}
        if context.slots.running.validation_hash is not None:
            headers["x-ESP32-sketch-sha256"] = context.slots.running.validation_hash.upper()
        judged = context.nvs.get_record(JUDGED_KEY)
        if judged is not None and judged.get("running") == context.slots.running.sha256:
            headers["if-none-match"] = str(judged.get("etag"))
        return headers

    def _progress(self, context: AppContext) -> Progress | None:
        record = context.nvs.get_record(PROGRESS_KEY)
        if record is None:
            return None
        etag = record.get("etag")
        return Progress(str(record.get("slot")), int(str(record.get("written"))), None if etag is None else str(etag))


def _tell_quarters(context: AppContext, before: int, after: int, size: int | None) -> None:
    if size and before * 4 // size != after * 4 // size and after < size:
        context.tell(EventKind.PROGRESS, f"{after * 100 // size} %", done=after, of=size)


class _Fetch:
    """The requests of one update; `size` and `etag` are known after the first answer."""

    def __init__(self, client: httpx.AsyncClient, url: str, headers: dict[str, str], expected_etag: str | None) -> None:
        self._client = client
        self._url = url
        self._headers = headers
        self._expected_etag = expected_etag
        self.size: int | None = None
        self.etag: str | None = None

    async def whole(self, start: int) -> AsyncIterator[bytes]:
        """One GET; `start` is 0."""
        async with self._client.stream("GET", self._url, headers=self._headers) as answer:
            self._look_at(answer, wanted=200)
            self.size = int(answer.headers["content-length"]) if "content-length" in answer.headers else None
            async for data in answer.aiter_raw():
                yield data

    async def rest(self, start: int) -> AsyncIterator[bytes]:
        """One GET with `Range: bytes=start-`; anything but 206 starts again without."""
        headers = {**self._headers, "range": range_header(start)}
        async with self._client.stream("GET", self._url, headers=headers) as answer:
            if answer.status_code in (200, 416):
                raise StartAgain(f"HTTP {answer.status_code}: the server does not resume here")
            self._look_at(answer, wanted=206)
            part, self.size = parse_content_range(answer.headers.get("content-range", ""))
            if part.first != start:
                raise PeerError("the server sent another part", expected=start, found=part.first)
            if start and self._expected_etag is not None and self.etag != self._expected_etag:
                raise StartAgain("the file has changed")
            async for data in answer.aiter_raw():
                yield data

    async def pieces(self, start: int) -> AsyncIterator[bytes]:
        """HEAD for the size (or a GET of one byte), then a piece per request, the last one open-ended."""
        size = await self._find_size()
        self.size = size
        while start < size:
            # As the original: the first request may ask for one byte past the end, the last one leaves the end open.
            last = min(start + PIECE_BYTES - 1, size) if start == 0 else start + PIECE_BYTES - 1
            wanted = range_header(start, last if start == 0 or last < size - 1 else None)
            async with self._client.stream("GET", self._url, headers={"range": wanted}) as answer:
                etag = self.etag
                self._look_at(answer, wanted=206)
                if etag is not None and self.etag != etag:
                    raise StartAgain("the file has changed")
                async for data in answer.aiter_raw():
                    start += len(data)
                    yield data

    async def _find_size(self) -> int:
        answer = await self._client.head(self._url, headers=self._headers)
        if answer.status_code == 200 and "content-length" in answer.headers:
            self._look_at(answer, wanted=200)
            return int(answer.headers["content-length"])
        if answer.status_code == 304:
            raise NothingToDo("not modified", None)
        answer = await self._client.get(self._url, headers={**self._headers, "range": range_header(0, 0)})
        self._look_at(answer, wanted=206)
        _, size = parse_content_range(answer.headers.get("content-range", ""))
        if size is None:
            raise PeerError("the server did not tell the size")
        return size

    def _look_at(self, answer: httpx.Response, *, wanted: int) -> None:
        if answer.status_code == 304:
            raise NothingToDo("not modified", None)
        if answer.status_code != wanted:
            raise PeerError(
                "the server answered otherwise", expected=f"HTTP {wanted}", found=f"HTTP {answer.status_code}"
            )
        self.etag = answer.headers.get("etag")
