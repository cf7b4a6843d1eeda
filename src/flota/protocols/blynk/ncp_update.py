"""The NCP's part of an update: offer, wait, stream, finish, and what the MCU reports then. No IO, no clock.

The machine asks for bytes (`NeedBytes`) and gets them (`supply`), so it does not matter whether a file is whole yet.
Every verdict is an event; the caller keeps the job on a disk. This module says what comes when; `ncp_offer`,
`ncp_delivery` and `ncp_outcome` do it. Source: docs/reference/blynk.md, "What the NCP does".
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
from flota.protocols.blynk.ncp_course import UpdateCourse
from flota.protocols.blynk.ncp_delivery import SOURCE_LIMIT_S, NcpDelivery
from flota.protocols.blynk.ncp_job import FileDigests, FirmwareInfo, NcpUpdateSettings, UpdateJob
from flota.protocols.blynk.ncp_offer import NcpOffer
from flota.protocols.blynk.ncp_outcome import NcpOutcome
from flota.protocols.blynk.ncp_states import UpdateInput, UpdateState
from flota.protocols.blynk.rpc import Answered, Called, CallFailed, RpcEndpoint

_S, _I = UpdateState, UpdateInput

SERVED: Final = frozenset(
    procedure.uid for procedure in (OTA_START, OTA_GET_CRC32, OTA_GET_MD5, OTA_GET_SHA256, OTA_PREFETCH, OTA_SUSPEND)
)

_KEPT: Final = {
    **dict.fromkeys((_S.APPLIED, _S.SETTLING, _S.FINISHING), _I.JOB_KEPT_APPLIED),
    **dict.fromkeys((_S.ACCEPTED, _S.PREFETCHING, _S.STREAMING), _I.JOB_KEPT_ACCEPTED),
}
"""How a job goes on that was in this state when the NCP died; any other is offered anew."""
_OFFERED_ANEW: Final = frozenset({_S.ACCEPTED, _S.PREFETCHING, _S.STREAMING, _S.OFFERED})
"""What an app that starts has forgotten."""
_BROKEN_BY_RESTART: Final = frozenset({_S.OFFERED, _S.ACCEPTED, _S.PREFETCHING, _S.STREAMING, _S.FINISHING})
_MAY_BE_WITHDRAWN: Final = frozenset({_S.PENDING, _S.OFFERED, _S.ACCEPTED})


class NcpUpdate(UpdateCourse):
    """One update after the other over an endpoint. Drain `events` after every call."""

    def __init__(self, rpc: RpcEndpoint, settings: NcpUpdateSettings) -> None:
        super().__init__(rpc, settings)
        self._offer = NcpOffer(self)
        self._delivery = NcpDelivery(self)
        self._outcome = NcpOutcome(self)
        self._suspended_until: float | None = None

    # --- what the NCP is told -----------------------------------------------------------------------------------------

    @property
    def is_suspended(self) -> bool:
        """Whether the MCU asked for a pause."""
        return self._suspended_until is not None

    def offer(self, job: UpdateJob, *, now: float) -> None:
        """Take a job. Raises `Conflict` while another is under way."""
        if self.is_open:
            raise Conflict("another update is under way")
        self._take(job, now)
        self.go(_I.JOB_GIVEN)

    def keep(self, job: UpdateJob, state: UpdateState, *, verdict_given: bool = False, now: float) -> None:
        """Take a job up again that was kept over the NCP's own restart; `state` is the last that was told.

        The MCU may be in the middle of the old stream: it may start again at any moment, or discard it after a minute.
        """
        self._take(job, now)
        self.verdict_given = verdict_given
        self._offer.ncp_restarted(now)
        if not verdict_given:
            self.go(_KEPT.get(state, _I.JOB_GIVEN))

    def withdraw(self, *, now: float) -> bool:
        """Give the job up if the MCU has not begun with it; returns whether it is given up."""
        if self.job is None or self.state not in _MAY_BE_WITHDRAWN:
            return False
        if self.settings.left_to_boot_loader and self.job.was_accepted:
            return False  # its app may be gone: nothing but this image brings it back
        tell = self.state is not _S.PENDING
        self.rpc.abandon(now)
        self.go(_I.WITHDRAWN)
        self.job, self.verdict_given = None, True
        self.owes_cancel = tell
        self.step(now=now)
        return True

    def supply(self, offset: int, data: bytes, *, now: float) -> None:
        """Give the bytes that `NeedBytes` asked for; those of a stream that is over are not taken."""
        if self._delivery.supply(offset, data):
            self.step(now=now)

    def source_failed(self, reason: str, *, now: float) -> None:
        """Take note that the image cannot be had: a stream under way is canceled."""
        if self.state in (_S.STREAMING, _S.FINISHING):
            self.fail(reason, now, cancel=True)
            self.step(now=now)

    def prefetched(self, status: PrefetchStatus, *, now: float) -> None:
        """Say how the prefetch went; also after the answer was given because it took too long."""
        self._delivery.prefetched(status, now)

    def digests_known(self, digests: FileDigests) -> None:
        """Take the digests of the whole file, once somebody has them."""
        if self.job is not None:
            self.job = replace(self.job, digests=digests)

    # --- what the MCU does --------------------------------------------------------------------------------------------

    def reported(self, info: FirmwareInfo, *, now: float) -> None:
        """Take the MCU's report of what it runs."""
        if self._outcome.reported(info, now):
            self._delivery.mcu_restarted()

    def mcu_lost(self, *, now: float) -> None:
        """Take note that the MCU is silent for good."""
        self._outcome.mcu_lost(now)

    def initialized(self, *, now: float) -> None:
        """Take note that the MCU's app has started: whatever it had accepted before is forgotten there."""
        if self.state in _OFFERED_ANEW:
            self.rpc.abandon(now)
            self._delivery.mcu_restarted()
            self.go(_I.MCU_RESTARTED)
            self._offer.mcu_restarted(now)
            self._suspended_until = None
        elif self.state is _S.FINISHING:
            self.rpc.abandon(now)
            self.go(_I.MCU_RESTARTED)
            self.waiting_since = now

    def ncp_restarted(self, *, now: float) -> None:
        """Take note that the NCP itself restarts (the MCU asked it to): what is open is over, the job stays."""
        self.rpc.abandon(now)
        self._delivery.mcu_restarted()
        self._offer.ncp_restarted(now)
        if self.state in _BROKEN_BY_RESTART:
            self.go(_I.NCP_RESTARTED)
            self.waiting_since = now

    def called(self, called: Called, *, now: float) -> None:
        """Serve one of the procedures in `SERVED`."""
        _SERVE[called.procedure.uid](self, called, now)

    def answered(self, event: Answered | CallFailed, *, now: float) -> None:
        """Take the end of a call that this machine made."""
        if event.procedure is OTA_WRITE and self.state is _S.STREAMING:
            self._delivery.write_ended(event)
        elif event.procedure is OTA_AVAILABLE:
            self._offer.ended(event, now)
        elif event.procedure is OTA_FINISH and self.state is _S.FINISHING and not event.is_late:
            self._delivery.finish_ended(event, now)
        if not event.is_late:  # what is open is waited for first: the MCU never gets two calls at once
            self.step(now=now)

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self, *, mcu_is_ready: bool) -> float | None:
        """Return when `deadline_passed` is to be called, None for never."""
        limits = [limit for limit, _ in self._limits()]
        if self._suspended_until is not None:
            limits.append(self._suspended_until)
        elif self.state is _S.PENDING and mcu_is_ready and self.rpc.is_free:
            limits.append(self._offer.due_at())
        if self._delivery.prefetch_deadline is not None:
            limits.append(self._delivery.prefetch_deadline)
        return min(limits, default=None)

    def deadline_passed(self, *, mcu_is_ready: bool, now: float) -> None:
        """Do what is due now."""
        if self._suspended_until is not None and now >= self._suspended_until:
            self._resume(now)
        prefetch_deadline = self._delivery.prefetch_deadline
        if prefetch_deadline is not None and now >= prefetch_deadline:
            self._delivery.answer_prefetch(PrefetchStatus.TIMEOUT, now)
        for limit, due in self._limits():
            if now >= limit:
                due(now)
                break
        self.step(now=now, mcu_is_ready=mcu_is_ready)

    def _limits(self) -> list[tuple[float, Callable[[float], None]]]:
        """Return until when this state may last, and what ends it."""
        if self._suspended_until is not None:
            return []
        if self.state is _S.STREAMING:
            limit = self._delivery.source_deadline
            return [] if limit is None else [(limit, self._source_is_silent)]
        waits: dict[UpdateState, tuple[float, Callable[[float], None]]] = {
            _S.ACCEPTED: (self.settings.start_wait_s, self._offer.never_started),
            _S.APPLIED: (self.settings.report_limit_s, self._outcome.no_report),
            _S.SETTLING: (self.settings.settle_s, self._outcome.settled),
        }
        if self.state not in waits:
            return []
        waits_s, ends = waits[self.state]
        return [(self.waiting_since + waits_s, ends)]

    def _source_is_silent(self, now: float) -> None:
        self.fail(f"the image did not come for {SOURCE_LIMIT_S:.0f} s", now, cancel=True)

    def step(self, *, now: float, mcu_is_ready: bool = False) -> None:
        """Make the next call if one may be made now."""
        if not self.rpc.is_free:
            return
        if self.owes_cancel:
            self.owes_cancel = False
            self.rpc.call(OTA_CANCEL, now=now)
        elif self._suspended_until is not None:
            return
        elif self.state is _S.PENDING:
            if mcu_is_ready and now >= self._offer.due_at():
                self._offer.send(now)
        elif self.state is _S.STREAMING:
            if not self._delivery.send(now):
                self.step(now=now)  # the MCU is told that it was given up
        elif self.state is _S.FINISHING:
            self._delivery.finish(now)

    # --- calls of the MCU ---------------------------------------------------------------------------------------------

    def _start(self, called: Called, now: float) -> None:
        if self._delivery.start(called, now):
            self._suspended_until = None
            self.step(now=now)

    def _suspend(self, called: Called, now: float) -> None:
        seconds = int(called.args[0])
        self.rpc.answer(called, True, now=now)
        if seconds:
            self._suspended_until = now + seconds
        elif self._suspended_until is not None:
            self._resume(now)

    def _resume(self, now: float) -> None:
        self._suspended_until = None
        self.waiting_since = now
        self._delivery.resumed(now)
        self.step(now=now)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _take(self, job: UpdateJob, now: float) -> None:
        self.job, self.verdict_given = job, False
        self.waiting_since = now
        self._offer.begin(now)
        self._delivery.begin()


_SERVE: Final[dict[int, Callable[[NcpUpdate, Called, float], None]]] = {
    OTA_START.uid: NcpUpdate._start,
    OTA_PREFETCH.uid: lambda update, called, now: update._delivery.prefetch(called, now),
    OTA_SUSPEND.uid: NcpUpdate._suspend,
    OTA_GET_CRC32.uid: lambda update, called, now: update._delivery.crc32(called, now),
    OTA_GET_MD5.uid: lambda update, called, now: update._delivery.md5(called, now),
    OTA_GET_SHA256.uid: lambda update, called, now: update._delivery.sha256(called, now),
}
assert frozenset(_SERVE) == SERVED
