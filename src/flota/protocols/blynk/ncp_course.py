"""What all parts of an NCP's update share: the job, how far it is, the verdict, and what the caller is told.

Source: docs/reference/blynk.md, "What the NCP does".
"""

from __future__ import annotations

from dataclasses import replace

from flota.protocols.blynk.ncp_job import (
    JobEnded,
    NcpUpdateSettings,
    Outcome,
    Remark,
    StateChanged,
    UpdateEvent,
    UpdateJob,
)
from flota.protocols.blynk.ncp_states import UpdateInput, UpdateState, next_state
from flota.protocols.blynk.rpc import RpcEndpoint


class UpdateCourse:
    """One update after the other over an endpoint; the parts act on it, it decides nothing. Seconds of any clock."""

    def __init__(self, rpc: RpcEndpoint, settings: NcpUpdateSettings) -> None:
        self.state = UpdateState.IDLE
        self.job: UpdateJob | None = None
        """The job, also after it ended if a boot loader may still come for it."""
        self.events: list[UpdateEvent] = []
        self.rpc = rpc
        self.settings = settings
        self.verdict_given = True
        self.waiting_since = 0.0
        """Since when the state waits for what it waits for."""
        self.owes_cancel = False
        """Whether the MCU is still to be told that the update is over."""

    @property
    def is_open(self) -> bool:
        """Whether a job is under way whose verdict is not given."""
        return self.job is not None and not self.verdict_given

    def current(self) -> UpdateJob:
        """Return the job of a state that has one."""
        assert self.job is not None
        return self.job

    def go(self, happened: UpdateInput) -> None:
        """Go to the next state and tell. Raises `WrongInput` for what cannot happen here: a mistake of ours."""
        self.state = next_state(self.state, happened)
        self.events.append(StateChanged(self.state))

    def remark(self, text: str) -> None:
        """Leave a line for the log."""
        self.events.append(Remark(text))

    def accepted(self, now: float) -> None:
        """Note that the MCU took the offer: from now on its boot loader may come for the image."""
        self.job = replace(self.current(), was_accepted=True)
        self.waiting_since = now

    def taken_unheard(self, now: float) -> None:
        """Go on as if the answer to the offer had been heard: what the MCU does next says what it was."""
        self.rpc.abandon(now)
        if self.state is UpdateState.PENDING:
            self.go(UpdateInput.OFFER_SENT)
        self.accepted(now)
        self.go(UpdateInput.OFFER_TAKEN)

    def end(self, happened: UpdateInput, outcome: Outcome, reason: str) -> None:
        """Give the verdict, once for a job; the job stays if a boot loader may still come for it."""
        self.go(happened)
        if not self.verdict_given:
            self.verdict_given = True
            self.events.append(JobEnded(outcome, reason))
        if self.job is not None and not self.job.was_accepted:
            self.job = None

    def fail(self, reason: str, now: float, *, cancel: bool = False) -> None:
        """Give the verdict that it failed; with `cancel` the MCU is to be told."""
        self.end(UpdateInput.FAILED, Outcome.FAILED, reason)
        if cancel:
            self.rpc.abandon(now)
            self.owes_cancel = True

    def leave_to_boot_loader(self, why: str, now: float) -> None:
        """Wait for the boot loader to start again: it comes back however long it takes."""
        self.remark(f"{why}; waiting for the boot loader to start again")
        self.go(UpdateInput.LEFT_TO_MCU)
        self.waiting_since = now
