"""The NCP's part of an update: offer, wait, stream, finish, and what the MCU reports then. No IO, no clock.

The machine asks for bytes (`NeedBytes`) and gets them (`supply`), so it does not matter whether a file is whole yet.
Every verdict is an event; the caller keeps the job on a disk. Source: docs/reference/blynk.md, "What the NCP does".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from flota.errors import Conflict
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
)
from flota.protocols.blynk.chunk_stream import ChunkStream
from flota.protocols.blynk.chunk_window import ChunkWindow
from flota.protocols.blynk.messages import Status
from flota.protocols.blynk.ncp_job import (
    FileDigests,
    FirmwareInfo,
    JobEnded,
    NcpUpdateSettings,
    Outcome,
    PrefetchWanted,
    Progressed,
    RebootDue,
    Remark,
    StateChanged,
    UpdateEvent,
    UpdateJob,
)
from flota.protocols.blynk.ncp_states import UpdateInput, UpdateState, next_state
from flota.protocols.blynk.rpc import Answered, Called, CallFailed, RpcEndpoint

OFFER_TRIES: Final = 4
"""The first, and three more."""
OFFER_AGAIN_AFTER_S: Final = 10.0
OFFERS_AFTER_WAITING: Final = 2
"""How often an offer is repeated that was taken but never started."""
SOURCE_LIMIT_S: Final = 30.0
PREFETCH_ANSWER_S: Final = 29.0
"""The caller waits for 30 s."""
BUSY_AFTER_RESTART_S: Final = 65.0
"""An MCU that was in the middle of a stream discards it after a minute; until then it may decline as busy."""
ALIVE_WITHIN_S: Final = 32.0
"""Who was heard so long ago at most is there: a silent MCU is pinged after 25 s, and again after 30 s."""
LOOK_AGAIN_S: Final = 5.0
QUIET_S: Final = 0.1
"""The line is left in peace for so long before the NCP begins something of its own."""

SERVED: Final = frozenset(
    procedure.uid for procedure in (OTA_START, OTA_GET_CRC32, OTA_GET_MD5, OTA_GET_SHA256, OTA_PREFETCH, OTA_SUSPEND)
)
_WAITS_FOR_START: Final = frozenset({UpdateState.ACCEPTED, UpdateState.PREFETCHING})


class NcpUpdate:
    """One update after the other over an endpoint. Drain `events` after every call."""

    def __init__(self, rpc: RpcEndpoint, settings: NcpUpdateSettings) -> None:
        self.state = UpdateState.IDLE
        self.job: UpdateJob | None = None
        """The job, also after it ended if a boot loader may still come for it."""
        self.events: list[UpdateEvent] = []
        self._rpc = rpc
        self._settings = settings
        self._verdict_given = True
        self._runs: FirmwareInfo | None = None
        self._offers_left = 0
        self._waits_left = 0
        self._not_before = 0.0
        self._waiting_since = 0.0
        self._suspended_until: float | None = None
        self._busy_until = 0.0
        self._stream: ChunkStream | None = None
        self._finishes = 0
        self._cancels = False
        self._prefetch: Called | None = None
        self._prefetch_deadline = 0.0

    # --- what the NCP is told -----------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether a job is under way whose verdict is not given."""
        return self.job is not None and not self._verdict_given

    @property
    def is_suspended(self) -> bool:
        """Whether the MCU asked for a pause."""
        return self._suspended_until is not None

    def offer(self, job: UpdateJob, *, now: float) -> None:
        """Take a job. Raises `Conflict` while another is under way."""
        if self.is_open:
            raise Conflict("another update is under way")
        self._take(job, now)
        self._go(UpdateInput.JOB_GIVEN)

    def keep(self, job: UpdateJob, state: UpdateState, *, verdict_given: bool = False, now: float) -> None:
        """Take a job up again that was kept over the NCP's own restart; `state` is the last that was told.

        The MCU may be in the middle of the old stream: it may start again at any moment, or discard it after a minute.
        """
        self._take(job, now)
        self._verdict_given = verdict_given
        self._busy_until = now + BUSY_AFTER_RESTART_S
        if verdict_given:
            return
        if state in (UpdateState.APPLIED, UpdateState.SETTLING, UpdateState.FINISHING):
            self._go(UpdateInput.JOB_KEPT_APPLIED)
        elif state in (UpdateState.ACCEPTED, UpdateState.PREFETCHING, UpdateState.STREAMING):
            self._go(UpdateInput.JOB_KEPT_ACCEPTED)
        else:
            self._go(UpdateInput.JOB_GIVEN)

    def withdraw(self, *, now: float) -> bool:
        """Give the job up if the MCU has not begun with it; returns whether it is given up."""
        if self.job is None or self.state not in (UpdateState.PENDING, UpdateState.OFFERED, UpdateState.ACCEPTED):
            return False
        if self._settings.left_to_boot_loader and self.job.was_accepted:
            return False  # its app may be gone: nothing but this image brings it back
        tell = self.state is not UpdateState.PENDING
        self._rpc.abandon(now)
        self._go(UpdateInput.WITHDRAWN)
        self.job, self._verdict_given = None, True
        self._cancels = tell
        self.step(now=now)
        return True

    def supply(self, offset: int, data: bytes, *, now: float) -> None:
        """Give the bytes that `NeedBytes` asked for."""
        if self._stream is None or not self._stream.supply(offset, data):
            return  # of a stream that is over
        self.step(now=now)

    def source_failed(self, reason: str, *, now: float) -> None:
        """Take note that the image cannot be had: a stream under way is canceled."""
        if self.state in (UpdateState.STREAMING, UpdateState.FINISHING):
            self._fail(reason, now, cancel=True)

    def prefetched(self, status: PrefetchStatus, *, now: float) -> None:
        """Say how the prefetch went; also after the answer was given because it took too long."""
        if self.job is not None and status is PrefetchStatus.DONE:
            self.job = replace(self.job, is_prefetched=True)
        if self._prefetch is not None:
            self._answer_prefetch(status, now)

    def digests_known(self, digests: FileDigests) -> None:
        """Take the digests of the whole file, once somebody has them."""
        if self.job is not None:
            self.job = replace(self.job, digests=digests)

    # --- what the MCU does --------------------------------------------------------------------------------------------

    def reported(self, info: FirmwareInfo, *, now: float) -> None:
        """Take the MCU's report of what it runs."""
        before, self._runs = self._runs, info
        if self.job is None:
            return
        if self._is_the_new(info):
            self._new_version_reported(info, now)
        elif self.state in (UpdateState.APPLIED, UpdateState.SETTLING):
            went_back = self.state is UpdateState.SETTLING or before is None or before.version != info.version
            words = f"it reports version {info.version}" if info.version else "it reports no version"
            self._end(
                UpdateInput.OTHER_VERSION,
                Outcome.ROLLED_BACK,
                f"after {'running' if went_back else 'applying'} version {self.job.version} {words}",
            )
            self.job = None

    def _new_version_reported(self, info: FirmwareInfo, now: float) -> None:
        if self._verdict_given:
            self.events.append(Remark(f"the MCU runs version {info.version} after all"))
            if self.state is not UpdateState.IDLE:
                self._go(UpdateInput.WITHDRAWN)
            self.job = None
            return
        if self.state is not UpdateState.SETTLING:
            self._rpc.abandon(now)
            self._prefetch = None
            self._go(UpdateInput.NEW_VERSION)
        self._waiting_since = now

    def mcu_lost(self, *, now: float) -> None:
        """Take note that the MCU is silent for good: a new version that fell silent has not succeeded."""
        if self.state is UpdateState.SETTLING:
            version = self._current().version
            self._fail(f"the MCU reported version {version} and then fell silent", now)
            self.job = None

    def initialized(self, *, now: float) -> None:
        """Take note that the MCU's app has started: whatever it had accepted before is forgotten there."""
        if self.state in (
            UpdateState.ACCEPTED,
            UpdateState.PREFETCHING,
            UpdateState.STREAMING,
            UpdateState.OFFERED,
        ):
            self._rpc.abandon(now)
            self._prefetch = None
            self._go(UpdateInput.MCU_RESTARTED)
            self._not_before = now + QUIET_S
            self._offers_left = OFFER_TRIES
            self._suspended_until = None
        elif self.state is UpdateState.FINISHING:
            self._rpc.abandon(now)
            self._go(UpdateInput.MCU_RESTARTED)
            self._waiting_since = now

    def ncp_restarted(self, *, now: float) -> None:
        """Take note that the NCP itself restarts (the MCU asked it to): what is open is over, the job stays."""
        self._rpc.abandon(now)
        self._prefetch = None
        self._busy_until = now + BUSY_AFTER_RESTART_S
        if self.state in (
            UpdateState.OFFERED,
            UpdateState.ACCEPTED,
            UpdateState.PREFETCHING,
            UpdateState.STREAMING,
            UpdateState.FINISHING,
        ):
            self._go(UpdateInput.NCP_RESTARTED)
            self._waiting_since = self._not_before = now

    def called(self, called: Called, *, now: float) -> None:
        """Serve one of the procedures in `SERVED`."""
        _SERVE[called.procedure.uid](self, called, now)

    def answered(self, event: Answered | CallFailed, *, now: float) -> None:
        """Take the end of a call that this machine made."""
        if event.procedure is OTA_WRITE:
            self._write_ended(event, now)
        elif event.is_late:
            return
        elif event.procedure is OTA_AVAILABLE and self.state is UpdateState.OFFERED:
            self._offer_ended(event, now)
        elif event.procedure is OTA_FINISH and self.state is UpdateState.FINISHING:
            self._finish_ended(event, now)

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self, *, mcu_is_ready: bool) -> float | None:
        """Return when `deadline_passed` is to be called, None for never."""
        limits = [limit for limit, _ in self._limits()]
        if self._suspended_until is not None:
            limits.append(self._suspended_until)
        elif self.state is UpdateState.PENDING and mcu_is_ready and self._rpc.is_free:
            limits.append(max(self._not_before, self._quiet_at()))
        if self._prefetch is not None:
            limits.append(self._prefetch_deadline)
        return min(limits, default=None)

    def deadline_passed(self, *, mcu_is_ready: bool, now: float) -> None:
        """Do what is due now."""
        if self._suspended_until is not None and now >= self._suspended_until:
            self._resume(now)
        if self._prefetch is not None and now >= self._prefetch_deadline:
            self._answer_prefetch(PrefetchStatus.TIMEOUT, now)
        for limit, due in self._limits():
            if now >= limit:
                due(now)
                break
        self.step(now=now, mcu_is_ready=mcu_is_ready)

    def _limits(self) -> list[tuple[float, Callable[[float], None]]]:
        """Return until when this state may last, and what ends it."""
        if self._suspended_until is not None:
            return []
        if self.state is UpdateState.ACCEPTED:
            return [(self._waiting_since + self._settings.start_wait_s, self._start_never_came)]
        if self.state is UpdateState.STREAMING and self._stream is not None and self._stream.waits_since is not None:
            return [(self._stream.waits_since + SOURCE_LIMIT_S, self._source_is_silent)]
        if self.state is UpdateState.APPLIED:
            return [(self._waiting_since + self._settings.report_limit_s, self._no_report)]
        if self.state is UpdateState.SETTLING:
            return [(self._waiting_since + self._settings.settle_s, self._settled)]
        return []

    def step(self, *, now: float, mcu_is_ready: bool = False) -> None:
        """Make the next call if one may be made now."""
        if not self._rpc.is_free:
            return
        if self._cancels:
            self._cancels = False
            self._rpc.call(OTA_CANCEL, now=now)
        elif self._suspended_until is not None:
            return
        elif self.state is UpdateState.PENDING:
            if mcu_is_ready and now >= max(self._not_before, self._quiet_at()):
                self._send_offer(now)
        elif self.state is UpdateState.STREAMING:
            self._send_chunk(now)
        elif self.state is UpdateState.FINISHING:
            self._finishes += 1
            self._rpc.call(OTA_FINISH, now=now)

    # --- the offer ----------------------------------------------------------------------------------------------------

    def _send_offer(self, now: float) -> None:
        job = self._current()
        self._offers_left -= 1
        self._go(UpdateInput.OFFER_SENT)
        self._rpc.call(OTA_AVAILABLE, job.filename, job.size, job.fw_type, job.version, job.build, now=now)

    def _offer_ended(self, event: Answered | CallFailed, now: float) -> None:
        if isinstance(event, Answered) and event.values[0]:
            self._accepted(now)
            self._go(UpdateInput.OFFER_TAKEN)
            return
        if isinstance(event, Answered):
            if self._current().was_accepted and now < self._busy_until:
                self._offer_again(self._busy_until)  # it has not yet discarded the stream that broke
                return
            self._end(UpdateInput.OFFER_DECLINED, Outcome.DECLINED, "the MCU declined the update")
            return
        if self._offers_left > 0:
            self._offer_again(now + OFFER_AGAIN_AFTER_S)
            return
        why = {Status.TIMEOUT: "did not answer", Status.UNKNOWN_UID: "knows no updates"}.get(
            Status(event.status) if event.status in set(Status) else Status.ERROR, "failed to answer"
        )
        self._fail(f"the MCU {why} when it was offered the update", now)

    def _offer_again(self, not_before: float) -> None:
        self._go(UpdateInput.TRY_AGAIN)
        self._not_before = not_before
        self._offers_left = max(self._offers_left, 1)

    def _accepted(self, now: float) -> None:
        self.job = replace(self._current(), was_accepted=True)
        self._waiting_since = now

    def _start_never_came(self, now: float) -> None:
        if self._waits_left > 0:
            self._waits_left -= 1
            self._offers_left = OFFER_TRIES
            self._offer_again(now)
            return
        self._fail("the MCU took the update but never started it", now)

    # --- calls of the MCU ---------------------------------------------------------------------------------------------

    def _start(self, called: Called, now: float) -> None:
        job, suggested = self.job, int(called.args[0])
        known = job is not None and (not self._verdict_given or job.was_accepted)
        if job is None or not known or suggested == 0 or self.state is UpdateState.SETTLING:
            self._rpc.answer(called, False, now=now)
            return
        self._rpc.abandon(now)
        self._rpc.answer(called, True, now=now)
        self._accepted(now)
        if self.state is UpdateState.STREAMING:
            self.events.append(Remark("the MCU starts again: the stream goes back to the first byte"))
        else:
            self._prefetch = None
            self._go(UpdateInput.START_ASKED)
        self._stream = ChunkStream(job.size, min(suggested, self._settings.chunk_max_bytes))
        self._cancels, self._finishes = False, 0
        self._suspended_until = None
        self.step(now=now)

    def _prefetch_asked(self, called: Called, now: float) -> None:
        job = self.job
        if job is None or (self._verdict_given and not job.was_accepted):
            self._rpc.answer(called, PrefetchStatus.ERROR, now=now)
            return
        if job.is_prefetched:
            self._waiting_since = now
            if self.state in (UpdateState.PENDING, UpdateState.OFFERED):
                self._taken_unheard(now)
            self._rpc.answer(called, PrefetchStatus.DONE, now=now)
            return
        if self.state in (UpdateState.PENDING, UpdateState.OFFERED, UpdateState.ACCEPTED):
            self._rpc.abandon(now)
            self._accepted(now)
            self._go(UpdateInput.PREFETCH_ASKED)
        elif self.state is not UpdateState.PREFETCHING:
            self._rpc.answer(called, PrefetchStatus.ERROR, now=now)
            return
        self._prefetch, self._prefetch_deadline = called, now + PREFETCH_ANSWER_S
        self.events.append(PrefetchWanted())

    def _taken_unheard(self, now: float) -> None:
        """Go on as if the answer to the offer had been heard: who prefetches has taken it."""
        self._rpc.abandon(now)
        if self.state is UpdateState.PENDING:
            self._go(UpdateInput.OFFER_SENT)
        self._accepted(now)
        self._go(UpdateInput.OFFER_TAKEN)

    def _answer_prefetch(self, status: PrefetchStatus, now: float) -> None:
        called, self._prefetch = self._prefetch, None
        assert called is not None
        self._rpc.answer(called, status, now=now)
        if self.state is UpdateState.PREFETCHING:
            self._go(UpdateInput.PREFETCH_ANSWERED)
            self._waiting_since = now

    def _suspend(self, called: Called, now: float) -> None:
        seconds = int(called.args[0])
        self._rpc.answer(called, True, now=now)
        if seconds:
            self._suspended_until = now + seconds
        elif self._suspended_until is not None:
            self._resume(now)

    def _resume(self, now: float) -> None:
        self._suspended_until = None
        self._waiting_since = now
        if self._stream is not None and self._stream.waits_since is not None:
            self._stream.waits_since = now
        self.step(now=now)

    def _get_crc(self, called: Called, now: float) -> None:
        self._touch(now)
        crc = None if self._stream is None else self._stream.crc32
        if self.job is not None and self.job.digests is not None:
            crc = self.job.digests.crc32
        self._rpc.answer(called, crc or 0, crc is not None, now=now)

    def _get_md5(self, called: Called, now: float) -> None:
        self._answer_digest(called, None if self.job is None or not self.job.digests else self.job.digests.md5, now)

    def _get_sha256(self, called: Called, now: float) -> None:
        self._answer_digest(called, None if self.job is None or not self.job.digests else self.job.digests.sha256, now)

    def _answer_digest(self, called: Called, digest: bytes | None, now: float) -> None:
        self._touch(now)
        self._rpc.answer(called, digest or b"", digest is not None, now=now)

    def _touch(self, now: float) -> None:
        """Count the wait for a start from now: the MCU is at work on the update."""
        if self.state in _WAITS_FOR_START:
            self._waiting_since = now

    # --- the stream ---------------------------------------------------------------------------------------------------

    def _send_chunk(self, now: float) -> None:
        stream = self._stream
        assert stream is not None
        if stream.window.is_used_up:
            self._used_up(stream.window, now)
        elif stream.window.is_at_the_end:
            self._go(UpdateInput.ALL_SENT)
            self.step(now=now)
        else:
            needed = stream.send(self._rpc, now=now)
            if needed is not None:
                self.events.append(needed)

    def _write_ended(self, event: Answered | CallFailed, now: float) -> None:
        stream = self._stream
        if stream is None or self.state is not UpdateState.STREAMING:
            return
        if stream.write_ended(event):
            self.events.append(Progressed(stream.window.stored, stream.window.size))
        if not event.is_late:  # what is open is waited for first: the MCU never gets two calls at once
            self.step(now=now)

    def _used_up(self, window: ChunkWindow, now: float) -> None:
        text = f"{window.failures} tries to write the bytes at offset {window.stored} of {window.size} failed"
        if self._settings.left_to_boot_loader:
            self.events.append(Remark(f"{text}; waiting for the boot loader to start again"))
            self._cancels = True
            self._go(UpdateInput.LEFT_TO_MCU)
            self._waiting_since = now
            self.step(now=now)
            return
        self._fail(text, now, cancel=True)

    def _source_is_silent(self, now: float) -> None:
        self._fail(f"the image did not come for {SOURCE_LIMIT_S:.0f} s", now, cancel=True)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _finish_ended(self, event: Answered | CallFailed, now: float) -> None:
        if isinstance(event, Answered) and event.values[0]:
            self._waiting_since = now
            self._go(UpdateInput.APPLYING)
            self.events.append(RebootDue())
        elif isinstance(event, Answered) and self._finishes == 1:
            if self._settings.left_to_boot_loader:
                self.events.append(Remark("the boot loader found the image wrong; waiting for it to start again"))
                self._go(UpdateInput.LEFT_TO_MCU)
                self._waiting_since = now
                return
            self._fail("the MCU found the image wrong and discarded it", now)
        elif self._finishes < 2:
            self.step(now=now)
        else:
            # Either it never heard of the end, or it applies the image and its answer was lost: its version will tell.
            self.events.append(Remark("nobody knows whether the MCU applies the image: waiting for its version"))
            self._waiting_since = now
            self._go(UpdateInput.FINISH_UNANSWERED)

    def _no_report(self, now: float) -> None:
        self._fail(f"the MCU reported no version within {self._settings.report_limit_s:g} s", now)

    def _settled(self, now: float) -> None:
        if now - (self._rpc.heard_at or 0.0) > ALIVE_WITHIN_S:
            self._waiting_since += LOOK_AGAIN_S  # it is being pinged: it answers, or it is lost
            return
        job = self._current()
        words = f"the MCU reports version {job.version}"
        if self._settings.settle_s:
            words += f" and has kept it for {self._settings.settle_s:g} s"
        self._end(UpdateInput.SETTLED, Outcome.SUCCEEDED, words)
        self.job = None

    def _fail(self, reason: str, now: float, *, cancel: bool = False) -> None:
        self._end(UpdateInput.FAILED, Outcome.FAILED, reason)
        if cancel:
            self._rpc.abandon(now)
            self._cancels = True
            self.step(now=now)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _take(self, job: UpdateJob, now: float) -> None:
        self.job, self._verdict_given = job, False
        self._offers_left, self._waits_left = OFFER_TRIES, OFFERS_AFTER_WAITING
        self._not_before = self._waiting_since = now
        self._stream, self._prefetch = None, None

    def _is_the_new(self, info: FirmwareInfo) -> bool:
        job = self._current()
        same_type = not job.fw_type or not info.fw_type or job.fw_type == info.fw_type
        if not job.version:
            return self.state in (UpdateState.APPLIED, UpdateState.SETTLING)
        return same_type and info.version == job.version

    def _quiet_at(self) -> float:
        return max(self._rpc.heard_at or 0.0, self._rpc.spoke_at or 0.0) + QUIET_S

    def _end(self, happened: UpdateInput, outcome: Outcome, reason: str) -> None:
        self._go(happened)
        if not self._verdict_given:
            self._verdict_given = True
            self.events.append(JobEnded(outcome, reason))
        if self.job is not None and not self.job.was_accepted:
            self.job = None

    def _go(self, happened: UpdateInput) -> None:
        self.state = next_state(self.state, happened)
        self.events.append(StateChanged(self.state))

    def _current(self) -> UpdateJob:
        assert self.job is not None
        return self.job


_SERVE: Final[dict[int, Callable[[NcpUpdate, Called, float], None]]] = {
    OTA_START.uid: NcpUpdate._start,
    OTA_PREFETCH.uid: NcpUpdate._prefetch_asked,
    OTA_SUSPEND.uid: NcpUpdate._suspend,
    OTA_GET_CRC32.uid: NcpUpdate._get_crc,
    OTA_GET_MD5.uid: NcpUpdate._get_md5,
    OTA_GET_SHA256.uid: NcpUpdate._get_sha256,
}
assert frozenset(_SERVE) == SERVED
