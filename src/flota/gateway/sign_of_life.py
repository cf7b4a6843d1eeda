"""What the silence after a push is ended by: which sightings are evidence, and of what.

A push has no answer, so the verdict comes from what is heard after it has ended. What is heard of an app that has not
been restarted yet proves nothing; what says a version says more than what only says that somebody is there.
Source: docs/reference/gateway.md, "What counts as a sign of life".
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from flota.errors import FlotaError
from flota.gateway.device_desk import DeviceDesk
from flota.gateway.driver import LastHopDriver, Sighting, SightingBasis
from flota.gateway.journal import UpdateRecord
from flota.gateway.update_states import Happening
from flota.protocols.peer_text import clean_text

_VERBS = {
    SightingBasis.ANNOUNCEMENT: "announced itself",
    SightingBasis.STATE_POST: "posted its state",
    SightingBasis.CHECK_IN: "checked in",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a sighting proves. `reason` is one sentence for people."""

    happening: Happening
    success: bool
    basis: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait for a sign of life. Times in seconds of the monotonic clock; what was heard up to `since` does not count.

    `restart_s`: so long after `since` the app that took the push may still be running, and tell its old version.
    `after_restart`: the gateway was started anew meanwhile, and `since` is its start.
    """

    version: str
    since: float
    restart_s: float
    after_restart: bool = False

    def judge(self, sighting: Sighting | None, *, is_last: bool = False) -> Finding | None:
        """Return what a sighting proves, None for nothing yet. `is_last`: the time is over, and this is all there is.

        A board that has told a version before is expected to tell it again: that it was heard counts at the end only.
        """
        if sighting is None or sighting.heard_at is None or sighting.heard_at <= self.since:
            return None
        if sighting.version is not None and sighting.version_at is not None and sighting.version_at > self.since:
            if sighting.version == self.version or is_last or sighting.version_at > self.since + self.restart_s:
                return self._from_version(sighting)
            return None
        if sighting.version is not None and not is_last:
            return None
        return self._from_coming_back(sighting, sighting.heard_at)

    def _from_version(self, sighting: Sighting) -> Finding:
        says = clean_text(sighting.version or "")
        if sighting.version == self.version:
            text = f"{name_of(sighting)} reports version {says} after the push"
            return Finding(Happening.SIGN_OF_LIFE, True, SightingBasis.CHECK_IN.value, text)
        text = f"{name_of(sighting)} reports version {says} after the push of {self.version}"
        return Finding(Happening.ANOTHER_VERSION, False, SightingBasis.CHECK_IN.value, text)

    def _from_coming_back(self, sighting: Sighting, heard_at: float) -> Finding:
        when = "after the gateway's restart" if self.after_restart else f"{heard_at - self.since:.1f} s after it closed"
        text = f"{name_of(sighting)} {_VERBS.get(sighting.basis, 'was heard')} {when}"
        return Finding(Happening.SIGN_OF_LIFE, True, sighting.basis.value, text)


async def await_sign_of_life(desk: DeviceDesk, driver: LastHopDriver, update: UpdateRecord) -> None:
    """Wait for the device to come back, and record what that says; without it, that nobody knows.

    After a restart of the gateway everything that is heard is later than the push.
    """
    patience, clock = desk.shop.patience, desk.shop.clock
    since = desk.started_at if desk.sent_at is None else desk.sent_at
    wait = Wait(update.version, since, patience.restart_s, after_restart=desk.sent_at is None)
    deadline = max(since, desk.started_at) + patience.evidence_s
    finding: Finding | None = None
    while finding is None and clock() < deadline:
        finding = wait.judge(_look(desk, driver))
        if finding is None:
            await asyncio.sleep(patience.look_s)
    finding = finding or wait.judge(_look(desk, driver), is_last=True)
    if finding is None:
        reason = f"{update.reason}. Nothing was heard of it for {patience.evidence_s:g} s: the outcome is unknown"
        finding = Finding(Happening.SILENCE, False, "unknown", reason)
    await desk.verdict(update, finding.happening, success=finding.success, basis=finding.basis, reason=finding.reason)


def says_it_runs(sighting: Sighting, version: str, *, since: float) -> bool:
    """Return whether the device told after `since` that it runs `version`."""
    return sighting.version == version and (sighting.version_at or 0.0) > since


def name_of(sighting: Sighting) -> str:
    """Return what to call the device in a sentence."""
    return f"the board at {sighting.address}"


def _look(desk: DeviceDesk, driver: LastHopDriver) -> Sighting | None:
    with contextlib.suppress(FlotaError):
        return driver.look(desk.device)
    return None
