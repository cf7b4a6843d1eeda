"""An NCP's delivery of an image: prefetch, digests, the start that the MCU asks for, the stream, and Finish.

Source: docs/reference/blynk.md, "What the NCP does" and "Lost answers".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from flota.protocols.blynk.catalogue import OTA_AVAILABLE, OTA_FINISH, PrefetchStatus
from flota.protocols.blynk.chunk_stream import ChunkStream
from flota.protocols.blynk.chunk_window import ChunkWindow
from flota.protocols.blynk.ncp_course import UpdateCourse
from flota.protocols.blynk.ncp_job import PrefetchWanted, Progressed, RebootDue
from flota.protocols.blynk.ncp_states import UpdateInput, UpdateState
from flota.protocols.blynk.rpc import Answered, Called, CallFailed

SOURCE_LIMIT_S: Final = 30.0
PREFETCH_ANSWER_S: Final = 29.0
"""The caller waits for 30 s."""
OFFER_STILL_OPEN_S: Final = 1.0
"""For the answer to the offer, once the MCU has started: firmware that starts inside the call gives it at once."""
FINISH_TRIES: Final = 2

_WAITS_FOR_START: Final = frozenset({UpdateState.ACCEPTED, UpdateState.PREFETCHING})
_PREFETCH_BEGINS: Final = frozenset({UpdateState.PENDING, UpdateState.OFFERED, UpdateState.ACCEPTED})


class NcpDelivery:
    """The deliveries of one job after the other; each start of the MCU's begins at the first byte."""

    def __init__(self, course: UpdateCourse) -> None:
        self._course = course
        self._stream: ChunkStream | None = None
        self._finishes = 0
        self._prefetch: Called | None = None
        self._prefetch_deadline = 0.0

    def begin(self) -> None:
        """Begin with another job."""
        self._stream = self._prefetch = None

    def mcu_restarted(self) -> None:
        """Forget the prefetch that is not answered yet: nobody waits for it."""
        self._prefetch = None

    # --- prefetch and digests -----------------------------------------------------------------------------------------

    @property
    def prefetch_deadline(self) -> float | None:
        """When an open prefetch has to be answered, None without one."""
        return None if self._prefetch is None else self._prefetch_deadline

    def prefetch(self, called: Called, now: float) -> None:
        """Serve otaUpdatePrefetch: at once if the file is here."""
        course, job = self._course, self._course.job
        if job is None or (course.verdict_given and not job.was_accepted):
            course.rpc.answer(called, PrefetchStatus.ERROR, now=now)
        elif job.is_prefetched:
            course.waiting_since = now
            if course.state in (UpdateState.PENDING, UpdateState.OFFERED):
                course.taken_unheard(now)
            course.rpc.answer(called, PrefetchStatus.DONE, now=now)
        elif course.state in _PREFETCH_BEGINS:
            course.rpc.abandon(now)
            course.accepted(now)
            course.go(UpdateInput.PREFETCH_ASKED)
            self._await_file(called, now)
        elif course.state is UpdateState.PREFETCHING:
            self._await_file(called, now)
        else:
            course.rpc.answer(called, PrefetchStatus.ERROR, now=now)

    def _await_file(self, called: Called, now: float) -> None:
        self._prefetch, self._prefetch_deadline = called, now + PREFETCH_ANSWER_S
        self._course.events.append(PrefetchWanted())

    def prefetched(self, status: PrefetchStatus, now: float) -> None:
        """Take how the prefetch went, in time or later."""
        course = self._course
        if course.job is not None and status is PrefetchStatus.DONE:
            course.job = replace(course.job, is_prefetched=True)
        if self._prefetch is not None:
            self.answer_prefetch(status, now)

    def answer_prefetch(self, status: PrefetchStatus, now: float) -> None:
        """Answer the open prefetch."""
        called, self._prefetch = self._prefetch, None
        assert called is not None
        self._course.rpc.answer(called, status, now=now)
        if self._course.state is UpdateState.PREFETCHING:
            self._course.go(UpdateInput.PREFETCH_ANSWERED)
            self._course.waiting_since = now

    def crc32(self, called: Called, now: float) -> None:
        """Serve otaUpdateGetCRC32; false and 0 while the whole file is not known."""
        self._touch(now)
        job = self._course.job
        crc = None if self._stream is None else self._stream.crc32
        if job is not None and job.digests is not None:
            crc = job.digests.crc32
        self._course.rpc.answer(called, crc or 0, crc is not None, now=now)

    def md5(self, called: Called, now: float) -> None:
        """Serve otaUpdateGetMD5."""
        digests = None if self._course.job is None else self._course.job.digests
        self._answer_digest(called, None if digests is None else digests.md5, now)

    def sha256(self, called: Called, now: float) -> None:
        """Serve otaUpdateGetSHA256."""
        digests = None if self._course.job is None else self._course.job.digests
        self._answer_digest(called, None if digests is None else digests.sha256, now)

    def _answer_digest(self, called: Called, digest: bytes | None, now: float) -> None:
        self._touch(now)
        self._course.rpc.answer(called, digest or b"", digest is not None, now=now)

    def _touch(self, now: float) -> None:
        """Count the wait for a start from now: the MCU is at work on the update."""
        if self._course.state in _WAITS_FOR_START:
            self._course.waiting_since = now

    # --- the stream ---------------------------------------------------------------------------------------------------

    def start(self, called: Called, now: float) -> bool:
        """Serve otaUpdateStart; returns whether a stream begins, at the first byte.

        Some of the vendor's releases start inside their handler of otaUpdateAvailable. Its answer is waited for then:
        an MCU never gets two calls at once.
        """
        course, job, suggested = self._course, self._course.job, int(called.args[0])
        known = job is not None and (not course.verdict_given or job.was_accepted)
        if job is None or not known or suggested == 0 or course.state is UpdateState.SETTLING:
            course.rpc.answer(called, False, now=now)
            return False
        if course.rpc.is_calling(OTA_AVAILABLE):
            course.rpc.hurry(now + OFFER_STILL_OPEN_S)
        else:
            course.rpc.abandon(now)
        course.rpc.answer(called, True, now=now)
        course.accepted(now)
        if course.state is UpdateState.STREAMING:
            course.remark("the MCU starts again: the stream goes back to the first byte")
        else:
            self._prefetch = None
            course.go(UpdateInput.START_ASKED)
        self._stream = ChunkStream(job.size, min(suggested, course.settings.chunk_max_bytes))
        course.owes_cancel, self._finishes = False, 0
        return True

    def supply(self, offset: int, data: bytes) -> bool:
        """Take bytes that were asked for; returns whether the stream still wants them."""
        return self._stream is not None and self._stream.supply(offset, data)

    @property
    def source_deadline(self) -> float | None:
        """Until when the bytes that are awaited have to come, None while none are."""
        stream = self._stream
        return None if stream is None or stream.waits_since is None else stream.waits_since + SOURCE_LIMIT_S

    def resumed(self, now: float) -> None:
        """Count the wait for bytes from now: the time of a suspension does not count."""
        if self._stream is not None and self._stream.waits_since is not None:
            self._stream.waits_since = now

    def send(self, now: float) -> bool:
        """Send the next chunk if its bytes are here; behind the last one, Finish. Returns False if it is given up."""
        course, stream = self._course, self._stream
        assert stream is not None
        if stream.window.is_used_up:
            self._used_up(stream.window, now)
            return False
        if stream.window.is_at_the_end:
            course.go(UpdateInput.ALL_SENT)
            self.finish(now)
        else:
            needed = stream.send(course.rpc, now=now)
            if needed is not None:
                course.events.append(needed)
        return True

    def write_ended(self, event: Answered | CallFailed) -> None:
        """Take the end of a write, late or not."""
        stream = self._stream
        if stream is not None and stream.write_ended(event):
            self._course.events.append(Progressed(stream.window.stored, stream.window.size))

    def _used_up(self, window: ChunkWindow, now: float) -> None:
        text = f"{window.failures} tries to write the bytes at offset {window.stored} of {window.size} failed"
        if self._course.settings.left_to_boot_loader:
            self._course.owes_cancel = True
            self._course.leave_to_boot_loader(text, now)
        else:
            self._course.fail(text, now, cancel=True)

    # --- Finish -------------------------------------------------------------------------------------------------------

    def finish(self, now: float) -> None:
        """Send otaUpdateFinish."""
        self._finishes += 1
        self._course.rpc.call(OTA_FINISH, now=now)

    def finish_ended(self, event: Answered | CallFailed, now: float) -> None:
        """Take the answer to Finish, or its absence: then the state stays, and it is sent again."""
        course = self._course
        if isinstance(event, Answered) and event.values[0]:
            course.waiting_since = now
            course.go(UpdateInput.APPLYING)
            course.events.append(RebootDue())
        elif isinstance(event, Answered) and self._finishes == 1:
            if course.settings.left_to_boot_loader:
                course.leave_to_boot_loader("the boot loader found the image wrong", now)
            else:
                course.fail("the MCU found the image wrong and discarded it", now)
        elif self._finishes >= FINISH_TRIES:
            # Either it never heard of the end, or it applies the image and its answer was lost: its version will tell.
            course.remark("nobody knows whether the MCU applies the image: waiting for its version")
            course.waiting_since = now
            course.go(UpdateInput.FINISH_UNANSWERED)
