"""What became of an image that an MCU applies: its reports of what it runs, and how long a new version has to stay.

Source: docs/reference/blynk.md, "What the NCP does".
"""

from __future__ import annotations

from typing import Final

from flota.protocols.blynk.ncp_course import UpdateCourse
from flota.protocols.blynk.ncp_job import FirmwareInfo, Outcome
from flota.protocols.blynk.ncp_states import UpdateInput, UpdateState

ALIVE_WITHIN_S: Final = 32.0
"""Who was heard so long ago at most is there: a silent MCU is pinged after 25 s, and again after 30 s."""
LOOK_AGAIN_S: Final = 5.0

_APPLIED: Final = (UpdateState.APPLIED, UpdateState.SETTLING)


class NcpOutcome:
    """The verdicts about one job after the other."""

    def __init__(self, course: UpdateCourse) -> None:
        self._course = course
        self._runs: FirmwareInfo | None = None

    def reported(self, info: FirmwareInfo, now: float) -> bool:
        """Take the MCU's report of what it runs; returns whether the job's version was first seen by it."""
        course = self._course
        before, self._runs = self._runs, info
        if course.job is None:
            return False
        if self._is_the_new(info):
            return self._new_version(info, now)
        if course.state in _APPLIED:
            went_back = course.state is UpdateState.SETTLING or before is None or before.version != info.version
            words = f"it reports version {info.version}" if info.version else "it reports no version"
            course.end(
                UpdateInput.OTHER_VERSION,
                Outcome.ROLLED_BACK,
                f"after {'running' if went_back else 'applying'} version {course.job.version} {words}",
            )
            course.job = None
        return False

    def _new_version(self, info: FirmwareInfo, now: float) -> bool:
        course = self._course
        if course.verdict_given:
            course.remark(f"the MCU runs version {info.version} after all")
            if course.state is not UpdateState.IDLE:
                course.go(UpdateInput.WITHDRAWN)
            course.job = None
            return False
        first = course.state is not UpdateState.SETTLING
        if first:
            course.rpc.abandon(now)
            course.go(UpdateInput.NEW_VERSION)
        course.waiting_since = now
        return first

    def _is_the_new(self, info: FirmwareInfo) -> bool:
        job = self._course.current()
        same_type = not job.fw_type or not info.fw_type or job.fw_type == info.fw_type
        if not job.version:
            return self._course.state in _APPLIED
        return same_type and info.version == job.version

    def mcu_lost(self, now: float) -> None:
        """Take note that the MCU is silent for good: a new version that fell silent has not succeeded."""
        course = self._course
        if course.state is UpdateState.SETTLING:
            course.fail(f"the MCU reported version {course.current().version} and then fell silent", now)
            course.job = None

    def no_report(self, now: float) -> None:
        """Give up an MCU that applied the image and was not heard of again."""
        self._course.fail(f"the MCU reported no version within {self._course.settings.report_limit_s:g} s", now)

    def settled(self, now: float) -> None:
        """Give the verdict that it succeeded, if the MCU is still there."""
        course = self._course
        if now - (course.rpc.heard_at or 0.0) > ALIVE_WITHIN_S:
            course.waiting_since += LOOK_AGAIN_S  # it is being pinged: it answers, or it is lost
            return
        words = f"the MCU reports version {course.current().version}"
        if course.settings.settle_s:
            words += f" and has kept it for {course.settings.settle_s:g} s"
        course.end(UpdateInput.SETTLED, Outcome.SUCCEEDED, words)
        course.job = None
