"""An NCP's offer of an update: when it is made, what the answer means, how often it is repeated.

Source: docs/reference/blynk.md, "What the NCP does".
"""

from __future__ import annotations

from typing import Final

from flota.protocols.blynk.catalogue import OTA_AVAILABLE
from flota.protocols.blynk.messages import Status
from flota.protocols.blynk.ncp_course import UpdateCourse
from flota.protocols.blynk.ncp_job import Outcome
from flota.protocols.blynk.ncp_states import UpdateInput, UpdateState
from flota.protocols.blynk.rpc import Answered, CallFailed

OFFER_TRIES: Final = 4
"""The first, and three more."""
OFFER_AGAIN_AFTER_S: Final = 10.0
OFFERS_AFTER_WAITING: Final = 2
"""How often an offer is repeated that was taken but never started."""
BUSY_AFTER_RESTART_S: Final = 65.0
"""An MCU that was in the middle of a stream discards it after a minute; until then it may decline as busy."""
QUIET_S: Final = 0.1
"""The line is left in peace for so long before the NCP begins something of its own."""

_NO_ANSWER: Final = {Status.TIMEOUT: "did not answer", Status.UNKNOWN_UID: "knows no updates"}


class NcpOffer:
    """The offers of one job after the other."""

    def __init__(self, course: UpdateCourse) -> None:
        self._course = course
        self._tries_left = 0
        self._waits_left = 0
        self._not_before = 0.0
        self._busy_until = 0.0
        self._numbers: set[int] = set()
        """The calls that offered this job."""

    def begin(self, now: float) -> None:
        """Begin with another job."""
        self._tries_left, self._waits_left = OFFER_TRIES, OFFERS_AFTER_WAITING
        self._not_before = now
        self._numbers.clear()

    def ncp_restarted(self, now: float) -> None:
        """Note that the stream of the NCP's last life broke: the MCU may still hold on to it."""
        self._busy_until = now + BUSY_AFTER_RESTART_S
        self._not_before = now

    def mcu_restarted(self, now: float) -> None:
        """Offer again: the MCU's app has forgotten what it had taken."""
        self._not_before = now + QUIET_S
        self._tries_left = OFFER_TRIES

    def due_at(self) -> float:
        """Return when the next offer may be made: the line has to be quiet."""
        rpc = self._course.rpc
        return max(self._not_before, max(rpc.heard_at or 0.0, rpc.spoke_at or 0.0) + QUIET_S)

    def send(self, now: float) -> None:
        """Make the offer."""
        course, job = self._course, self._course.current()
        self._tries_left -= 1
        course.go(UpdateInput.OFFER_SENT)
        number = course.rpc.call(OTA_AVAILABLE, job.filename, job.size, job.fw_type, job.version, job.build, now=now)
        self._numbers.add(number)

    def ended(self, event: Answered | CallFailed, now: float) -> None:
        """Take the answer, or its absence."""
        course = self._course
        said_yes = isinstance(event, Answered) and bool(event.values[0])
        if event.is_late:
            # An MCU that erases its whole bank inside the call may take longer than the 5 s.
            if said_yes and event.msgid in self._numbers and course.state is UpdateState.PENDING:
                course.taken_unheard(now)
            return
        if course.state is UpdateState.STREAMING:  # it started inside the call: see `NcpDelivery.start`
            if isinstance(event, Answered) and not said_yes:
                course.end(UpdateInput.OFFER_DECLINED, Outcome.DECLINED, "the MCU started the update and declined it")
            return
        if course.state is not UpdateState.OFFERED:
            return
        if said_yes:
            course.accepted(now)
            course.go(UpdateInput.OFFER_TAKEN)
        elif isinstance(event, Answered):
            self._declined(now)
        else:
            self._unanswered(event, now)

    def never_started(self, now: float) -> None:
        """Remind an MCU that took the offer and did nothing; give up after some reminders."""
        if self._waits_left > 0:
            self._waits_left -= 1
            self._tries_left = OFFER_TRIES
            self._again(now)
            return
        self._course.fail("the MCU took the update but never started it", now)

    def _declined(self, now: float) -> None:
        if self._course.current().was_accepted and now < self._busy_until:
            self._again(self._busy_until)  # it has not yet discarded the stream that broke
            return
        self._course.end(UpdateInput.OFFER_DECLINED, Outcome.DECLINED, "the MCU declined the update")

    def _unanswered(self, event: CallFailed, now: float) -> None:
        if self._tries_left > 0:
            self._again(now + OFFER_AGAIN_AFTER_S)
            return
        why = "failed to answer"
        if event.status in set(Status):
            why = _NO_ANSWER.get(Status(event.status), why)
        self._course.fail(f"the MCU {why} when it was offered the update", now)

    def _again(self, not_before: float) -> None:
        self._course.go(UpdateInput.TRY_AGAIN)
        self._not_before = not_before
        self._tries_left = max(self._tries_left, 1)
