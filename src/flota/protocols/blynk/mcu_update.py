"""The MCU's part of an update: take the offer, start, receive, compare digests, apply. No IO, no clock, no flash.

What has to be done to the flash are events, and the firmware says how it went: `accept` or `decline`, `begin`,
`chunk_stored`, `verified`. What real firmware does differently stands in the `McuPolicy`.
Source: docs/reference/blynk.md, "What the MCU does" and "What the vendor's reference does".
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

from flota.protocols.blynk.catalogue import (
    OTA_AVAILABLE,
    OTA_CANCEL,
    OTA_FINISH,
    OTA_GET_CRC32,
    OTA_GET_MD5,
    OTA_GET_SHA256,
    OTA_PREFETCH,
    OTA_START,
    OTA_SUSPEND,
    OTA_WRITE,
    PrefetchStatus,
    Procedure,
)
from flota.protocols.blynk.mcu_states import (
    TRANSITIONS,
    ApplyNow,
    ChunkArrived,
    Discarded,
    McuInput,
    McuPolicy,
    McuState,
    McuUpdateEvent,
    NcpDigests,
    Offer,
    OfferMade,
    PrefetchEnded,
    ReceivingBegan,
    VerifyImage,
    WrongStep,
)
from flota.protocols.blynk.rpc import Answered, Called, CallFailed, RpcEndpoint

START_AGAIN_AFTER_S: Final = 1.0

SERVED: Final = frozenset(one.uid for one in (OTA_AVAILABLE, OTA_WRITE, OTA_FINISH, OTA_CANCEL))


_DIGEST_CALLS: Final[tuple[Procedure, ...]] = (OTA_GET_MD5, OTA_GET_SHA256, OTA_GET_CRC32)
"""In the order of the vendor's reference."""
_DIGEST_SIZES: Final = {OTA_GET_MD5.uid: 16, OTA_GET_SHA256.uid: 32}


class McuUpdate:
    """One update after the other over an endpoint. Drain `events` after every call."""

    def __init__(self, rpc: RpcEndpoint, policy: McuPolicy) -> None:
        self.state = McuState.IDLE
        self.events: list[McuUpdateEvent] = []
        self._rpc = rpc
        self._policy = policy
        self._size = 0
        self._received = 0
        self._last_chunk: tuple[int, int, int] | None = None
        """Offset, length and CRC-32 of the last chunk that was stored."""
        self._storing: tuple[Called, int, bytes] | None = None
        self._asked: Called | None = None
        self._finish: Called | None = None
        self._starts_left = 0
        self._start_at: float | None = None
        self._stalls_at: float | None = None
        self._suspended_until: float | None = None
        self._to_suspend: int | None = None
        self._to_prefetch = False
        self._digests: dict[int, object] = {}
        self._digest_queue: list[Procedure] = []
        self._prefetch_status = PrefetchStatus.CALL_FAILED

    # --- what the firmware says ---------------------------------------------------------------------------------------

    @property
    def received(self) -> int:
        """Bytes stored."""
        return self._received

    def decline(self, *, now: float) -> None:
        """Refuse the offer: too large, battery too low, wrong type, downgrade. Raises `WrongStep`."""
        self._answer_offer(McuInput.DECLINED, accepted=False, now=now)

    def accept(self, *, now: float) -> None:
        """Take the offer. Raises `WrongStep`."""
        self._answer_offer(McuInput.ACCEPTED, accepted=True, now=now)

    def prefetch(self, *, now: float) -> None:
        """Have the NCP fetch the whole file; `PrefetchEnded` follows. Raises `WrongStep`."""
        self._go(McuInput.PREFETCH_BEGUN)
        self._to_prefetch = True
        self.step(now=now)

    def begin(self, *, now: float) -> None:
        """Ask for the stream: the slot is ready, the battery is full. Raises `WrongStep`."""
        self._go(McuInput.START_SENT)
        self._starts_left = self._policy.start_tries
        self._start_at = now
        self.step(now=now)

    def resume(self, size: int, *, now: float) -> None:
        """Ask for the stream of `size` bytes that a boot loader's record names. Raises `WrongStep`."""
        self._size = size
        self.begin(now=now)

    def suspend(self, seconds: int, *, now: float) -> None:
        """Ask the NCP to leave the update alone for so long; 0 = go on. The stall limit pauses too."""
        self._to_suspend = seconds
        self.step(now=now)

    def chunk_stored(self, ok: bool, *, now: float) -> None:
        """Say whether the chunk of `ChunkArrived` is in the flash. Nothing happens if its update was discarded."""
        if self._storing is None:
            return
        (called, offset, data), self._storing = self._storing, None
        if ok and self.state is McuState.RECEIVE and offset == self._received:
            self._received += len(data)
            self._last_chunk = (offset, len(data), zlib.crc32(data))
            self._count_stall(now)
            self._rpc.answer(called, True, now=now)
            return
        self._rpc.answer(called, False, now=now)

    def verified(self, ok: bool, *, now: float) -> None:
        """Say whether the image in the flash is right. Raises `WrongStep`."""
        called, self._finish = self._finish, None
        if called is None:
            if self.state is not McuState.VERIFY:
                return  # canceled meanwhile
            raise WrongStep("no image is to be verified")
        self._rpc.answer(called, ok, now=now)
        if ok:
            self._go(McuInput.VERIFIED)
            self.events.append(ApplyNow())
        else:
            self._discard("the image is wrong")

    # --- what the NCP does --------------------------------------------------------------------------------------------

    def called(self, called: Called, *, now: float) -> None:
        """Serve one of the procedures in `SERVED`."""
        _SERVE[called.procedure.uid](self, called, now)

    def answered(self, event: Answered | CallFailed, *, now: float) -> None:
        """Take the end of a call that this machine made."""
        if event.is_late:
            return
        if event.procedure is OTA_START and self.state is McuState.START:
            self._start_ended(event, now)
        elif event.procedure is OTA_PREFETCH and self.state is McuState.PREFETCH:
            self._prefetch_ended(event, now)
        elif event.procedure in _DIGEST_CALLS and self._digest_queue:
            self._digest_ended(event, now)
        self.step(now=now)

    def next_deadline(self) -> float | None:
        """Return when `deadline_passed` is to be called, None for never."""
        limits = [self._suspended_until]
        if self._suspended_until is None:
            limits.append(self._stalls_at)
        if self._rpc.is_free:
            limits.append(self._start_at)
        return min((limit for limit in limits if limit is not None), default=None)

    def deadline_passed(self, *, now: float) -> None:
        """Do what is due now."""
        if self._suspended_until is not None:
            if now >= self._suspended_until:
                self._suspended_until = None
                self._count_stall(now)
        elif self._stalls_at is not None and now >= self._stalls_at:
            self._discard("no new chunk came for a minute")
        self.step(now=now)

    def step(self, *, now: float) -> None:
        """Make the next call if one may be made now."""
        if not self._rpc.is_free:
            return
        if self._digest_queue:
            self._rpc.call(self._digest_queue[0], now=now)
        elif self._to_suspend is not None:
            seconds, self._to_suspend = self._to_suspend, None
            self._suspended_until = now + seconds if seconds else None
            if not seconds:
                self._count_stall(now)
            self._rpc.call(OTA_SUSPEND, seconds, now=now)
        elif self._to_prefetch:
            self._to_prefetch = False
            self._rpc.call(OTA_PREFETCH, now=now)
        elif self._start_at is not None and now >= self._start_at:
            self._start_at = self._suspended_until = None
            self._starts_left -= 1
            self._received, self._last_chunk = 0, None
            self._count_stall(now)
            self._rpc.call(OTA_START, self._policy.chunk, now=now)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _offered(self, called: Called, now: float) -> None:
        busy = (self.state, McuInput.OFFERED) not in TRANSITIONS
        if busy or called.args[1] == 0:  # nobody takes an image of no bytes
            self._rpc.answer(called, False, now=now)
            return
        if self.state not in (McuState.IDLE, McuState.ASKED):
            self._forget()
            self.events.append(Discarded("another offer replaces it"))
        self._go(McuInput.OFFERED)
        filename, size, fw_type, version, build = called.args
        self._asked, self._size = called, int(size)
        self.events.append(OfferMade(Offer(str(filename), int(size), str(fw_type), str(version), str(build))))

    def _answer_offer(self, happened: McuInput, *, accepted: bool, now: float) -> None:
        called = self._asked
        if called is None:
            raise WrongStep("no offer is to be answered")
        self._asked = None
        self._go(happened)
        self._rpc.answer(called, accepted, now=now)

    def _start_ended(self, event: Answered | CallFailed, now: float) -> None:
        if isinstance(event, Answered) and event.values[0]:
            self._started(now)
        elif self._starts_left > 0:
            self._start_at = now + START_AGAIN_AFTER_S
        elif self._policy.stall_limit_s is not None:
            self._discard("the NCP does not start the stream")
        # The reference looks at no answer: it waits for the first chunk, or for the next offer.

    def _started(self, now: float) -> None:
        self._go(McuInput.STARTED)
        self._start_at = None
        self._count_stall(now)
        self.events.append(ReceivingBegan(self._size, self._policy.chunk))

    def _write(self, called: Called, now: float) -> None:
        offset, data, crc = int(called.args[0]), called.args[1], int(called.args[2])
        assert isinstance(data, bytes)
        if self.state is McuState.START and offset == 0:
            self._rpc.abandon(now)  # the answer to our start was lost: this chunk says that it was true
            self._started(now)
        if self.state is not McuState.RECEIVE or self._storing is not None or zlib.crc32(data) != crc:
            self._rpc.answer(called, False, now=now)
            return
        if self._policy.repeats_are_taken and (offset, len(data), crc) == self._last_chunk:
            self._rpc.answer(called, True, now=now)
            return
        fits = 0 < len(data) <= self._policy.chunk and offset + len(data) <= self._size
        if offset != self._received or not fits:
            self._rpc.answer(called, False, now=now)
            return
        self._storing = (called, offset, data)
        self.events.append(ChunkArrived(offset, data))

    def _finish_asked(self, called: Called, now: float) -> None:
        if self.state is McuState.VERIFY and self._finish is not None:
            self._finish = called  # the NCP asks once more: it gets the one answer
            return
        if self.state is McuState.APPLY:
            self._rpc.answer(called, True, now=now)  # its answer was lost
            return
        if self.state is not McuState.RECEIVE or self._received != self._size or self._storing is not None:
            self._rpc.answer(called, False, now=now)
            if self.state is McuState.RECEIVE:
                self._discard(f"it ends after {self._received} of {self._size} bytes")
            return
        self._go(McuInput.FINISH_ASKED)
        self._finish, self._stalls_at = called, None
        self._ask_digests(now)

    def _cancel(self, called: Called, now: float) -> None:
        self._rpc.answer(called, now=now)
        if self.state not in (McuState.IDLE, McuState.APPLY):
            self._discard("canceled by the NCP")

    def _prefetch_ended(self, event: Answered | CallFailed, now: float) -> None:
        status = PrefetchStatus.CALL_FAILED
        if isinstance(event, Answered) and int(event.values[0]) in set(PrefetchStatus):
            status = PrefetchStatus(int(event.values[0]))
        self._prefetch_status = status
        if status is PrefetchStatus.DONE and self._policy.asks_digests_early:
            self._ask_digests(now)
        else:
            self._digests = {}
            self._digests_are_in(now)

    def _ask_digests(self, now: float) -> None:
        self._digests = {}
        self._digest_queue = list(_DIGEST_CALLS)
        self.step(now=now)

    def _digest_ended(self, event: Answered | CallFailed, now: float) -> None:
        if event.procedure is not self._digest_queue[0]:
            return
        self._digest_queue.pop(0)
        if isinstance(event, Answered) and event.values[1]:
            self._digests[event.procedure.uid] = _digest(event.procedure, event.values[0])
        if not self._digest_queue:
            self._digests_are_in(now)

    def _digests_are_in(self, now: float) -> None:
        found = NcpDigests(
            md5=_bytes_or_none(self._digests.get(OTA_GET_MD5.uid)),
            sha256=_bytes_or_none(self._digests.get(OTA_GET_SHA256.uid)),
            crc32=_int_or_none(self._digests.get(OTA_GET_CRC32.uid)),
        )
        if self.state is McuState.PREFETCH:
            self._go(McuInput.PREFETCH_ENDED)
            self.events.append(PrefetchEnded(self._prefetch_status, found))
        elif self.state is McuState.VERIFY:
            if self._policy.needs_crc and found.crc32 is None:
                self.verified(False, now=now)
                return
            kept = {name: getattr(found, name) for name in self._policy.compares}
            self.events.append(VerifyImage(self._size, NcpDigests(**kept)))

    def _count_stall(self, now: float) -> None:
        limit = self._policy.stall_limit_s
        waits = self.state in (McuState.START, McuState.RECEIVE)
        self._stalls_at = now + limit if limit is not None and waits else None

    def _discard(self, reason: str) -> None:
        self._forget()
        self._go(McuInput.DISCARDED)
        self.events.append(Discarded(reason))

    def _forget(self) -> None:
        self._finish = self._asked = self._storing = None
        self._digest_queue, self._to_prefetch = [], False
        self._start_at = self._stalls_at = self._suspended_until = None
        self._received, self._last_chunk = 0, None

    def _go(self, happened: McuInput) -> None:
        following = TRANSITIONS.get((self.state, happened))
        if following is None:
            raise WrongStep(f"{happened.value!r} cannot happen to an update in the state {self.state.value}")
        self.state = following


def _digest(procedure: Procedure, value: object) -> object:
    """Return a digest as raw bytes; an NCP may send it as hex text too. None for one of another length."""
    if not isinstance(value, bytes):
        return value
    size = _DIGEST_SIZES[procedure.uid]
    if len(value) == 2 * size:
        try:
            return bytes.fromhex(value.decode("ascii"))
        except ValueError:
            return None
    return value if len(value) == size else None


def _bytes_or_none(value: object) -> bytes | None:
    return value if isinstance(value, bytes) else None


def _int_or_none(value: object) -> int | None:
    return value if isinstance(value, int) else None


_SERVE: Final[dict[int, Callable[[McuUpdate, Called, float], None]]] = {
    OTA_AVAILABLE.uid: McuUpdate._offered,
    OTA_WRITE.uid: McuUpdate._write,
    OTA_FINISH.uid: McuUpdate._finish_asked,
    OTA_CANCEL.uid: McuUpdate._cancel,
}
assert frozenset(_SERVE) == SERVED
