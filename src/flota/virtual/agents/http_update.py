"""The agent that mirrors Arduino's HTTPUpdate: ask, write, restart; the next request tells the server how it went.

Source: docs/reference/http-update.md; espressif/arduino-esp32:libraries/HTTPUpdate/src/HTTPUpdate.cpp.
"""

from __future__ import annotations

import hashlib
import ssl
from typing import Final
from urllib.parse import SplitResult

from flota.errors import FlotaError
from flota.protocols.http_update import (
    ESP32_TIMEOUT_S,
    AnswerHead,
    ChipFamily,
    UpdateOutcome,
    UpdateRequest,
    judge_answer,
    judge_body,
    judge_first_byte,
    pack_request,
    parse_answer_head,
)
from flota.transports.http10 import Http10Answer, LinkBroken, http10_exchange, split_url
from flota.virtual.device import AppContext
from flota.virtual.esp_slots import ArduinoUpdateWriter, EspSlots
from flota.virtual.events import EventKind
from flota.virtual.hardware import ImageNote, ImageNotes
from flota.virtual.slots import ResetReason, Restart

DEFAULT_PERIOD_S: Final = 60.0
SDK_VERSION: Final = "v5.5.1"
PERIOD_JITTER: Final = 0.1


class HttpUpdateAgent:
    """Asks `url` every `period_s` of device time. `silence_limit_s` is wall clock: it waits for the server."""

    def __init__(
        self,
        url: str,
        *,
        period_s: float = DEFAULT_PERIOD_S,
        tls: ssl.SSLContext | None = None,
        silence_limit_s: float = ESP32_TIMEOUT_S,
        chip_size: int = 4 * 1024 * 1024,
    ) -> None:
        self._url = url
        self._parts: SplitResult = split_url(url)
        self._period_s = period_s
        self._tls = tls
        self._silence_limit_s = silence_limit_s
        self._chip_size = chip_size

    async def run(self, context: AppContext) -> None:
        """Ask for ever; ends by `Restart` when an update is in place."""
        while True:
            await self.ask_once(context)
            await context.pace.spend(self._period_s * (1 + PERIOD_JITTER * (2 * context.rng.random() - 1)))

    async def ask_once(self, context: AppContext) -> UpdateOutcome | None:
        """Make one request and do what the answer says; None if the link broke. Raises `Restart` after an update."""
        slots = context.slots
        if not isinstance(slots, EspSlots):
            raise TypeError("HTTPUpdate runs on ESP boards")
        request = self._request(context, slots)
        target = (self._parts.path or "/") + (f"?{self._parts.query}" if self._parts.query else "")
        packed = pack_request(request, target=target, host=self._parts.netloc.rpartition("@")[2])
        try:
            async with http10_exchange(
                self._url, packed, silence_limit_s=self._silence_limit_s, tls=self._tls
            ) as answer:
                return await self._obey(context, slots, answer)
        except FlotaError as error:
            context.tell(EventKind.BREAK if isinstance(error, LinkBroken) else EventKind.UPDATE_FAILED, str(error))
            return None

    def _request(self, context: AppContext, slots: EspSlots) -> UpdateRequest:
        app = slots.running
        return UpdateRequest(
            chip=ChipFamily.ESP32,
            sta_mac=context.identity.mac,
            ap_mac=_ap_mac(context.identity.mac),
            free_space=slots.capacity(slots.next_slot()),
            sketch_size=app.size,
            sketch_md5=app.md5,
            sketch_sha256=app.validation_hash,
            chip_size=self._chip_size,
            sdk_version=SDK_VERSION,
            version=app.version,
        )

    async def _obey(self, context: AppContext, slots: EspSlots, answer: Http10Answer) -> UpdateOutcome:
        head = parse_answer_head(answer.status, answer.headers.items())
        slot = slots.next_slot()
        outcome = judge_answer(head, free_space=slots.capacity(slot))
        if outcome is not UpdateOutcome.UPDATE or head.content_length is None:
            text = f"HTTP {answer.status}: {outcome.name.lower().replace('_', ' ')}"
            context.tell(EventKind.UPDATE_FAILED if outcome.is_failure else EventKind.POLL, text, status=answer.status)
            return outcome
        context.tell(EventKind.OFFER, f"{head.content_length} bytes offered for {slot}", size=head.content_length)
        writer = slots.begin_arduino(slot, head.content_length)
        return await self._take(context, slots, writer, answer, head)

    async def _take(
        self,
        context: AppContext,
        slots: EspSlots,
        writer: ArduinoUpdateWriter,
        answer: Http10Answer,
        head: AnswerHead,
    ) -> UpdateOutcome:
        assert head.content_length is not None
        md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        taken = 0
        async for data in answer.body(head.content_length):
            if taken == 0 and judge_first_byte(data[0]) is not UpdateOutcome.UPDATE:
                context.tell(EventKind.UPDATE_FAILED, f"the first byte is {data[0]:#04x}: not an app image")
                return UpdateOutcome.VERIFY_HEADER_FAILED
            before = taken
            taken += len(data)
            md5.update(data)
            sha256.update(data)
            await writer.write(data)
            _tell_quarters(context, before, taken, head.content_length)
        outcome = judge_body(head, md5=md5.hexdigest())
        if outcome is not UpdateOutcome.UPDATE:
            context.tell(EventKind.UPDATE_FAILED, "the MD5 is wrong", expected=head.x_md5, found=md5.hexdigest())
            return outcome
        await writer.finish()
        ImageNotes(context.nvs).add(ImageNote("", taken, sha256.hexdigest()))
        slots.set_boot(writer.slot)
        await context.pace.pay()
        context.tell(EventKind.INSTALLED, f"{taken} bytes in {writer.slot}, chosen for the next boot", slot=writer.slot)
        raise Restart(ResetReason.SOFTWARE, "to start the update")


def _ap_mac(sta_mac: str) -> str:
    """Return the soft-AP's MAC: the station's plus one in the last byte (ESP-IDF, universally administered)."""
    head, _, last = sta_mac.rpartition(":")
    return f"{head}:{(int(last, 16) + 1) & 0xFF:02X}"


def _tell_quarters(context: AppContext, before: int, after: int, size: int) -> None:
    if before * 4 // size != after * 4 // size and after < size:
        context.tell(EventKind.PROGRESS, f"{after * 100 // size} %", done=after, of=size)
