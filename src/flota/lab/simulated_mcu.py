"""A whole primary MCU at an end of a simulated line: power, boot loader, app, restarts, on the line's clock.

Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flota.protocols.blynk.mcu import FIRST_BAUDS
from flota.protocols.blynk.ncp import LinkCommand, SwitchRate
from flota.virtual.agents.blynk_firmware import Conditions, LineParty, McuBuild
from flota.virtual.agents.blynk_loader import NcpLoader
from flota.virtual.agents.blynk_mcu import app_of
from flota.virtual.device import Behaviour, behaviour_of
from flota.virtual.dual_bank_board import DualBankHardware
from flota.virtual.events import EventKind
from flota.virtual.flash import PowerCut
from flota.virtual.hardware import BootReport
from flota.virtual.one_bank_board import OneBankHardware, OneBankSlots
from flota.virtual.pace import PANIC_AFTER_S
from flota.virtual.slots import ResetReason, RunningApp

BOOT_S: Final = 0.2
"""From a reset to the first byte on the line."""
POWER_OFF_S: Final = 1.0

PrimaryMcu = DualBankHardware | OneBankHardware


class SimulatedMcu:
    """A party (`flota.virtual.uart_line.Party`) that never ends. `told` is everything that an observer would hear."""

    def __init__(
        self,
        hardware: PrimaryMcu,
        build: McuBuild | None = None,
        conditions: Conditions | None = None,
        *,
        now: float = 0.0,
    ) -> None:
        self.hardware = hardware
        self.build = build or McuBuild()
        self.conditions = conditions or Conditions()
        self.told: list[tuple[float, EventKind, str]] = []
        self.firmware: LineParty | None = None
        self.app: RunningApp | None = None
        self.confirmed = False
        self.boots: list[str] = []
        """Of each boot what it started: a version, or `boot loader`."""
        self.off_s = 0.0
        """How much longer than usual the power stays away after the next cut."""
        self._now = now
        self._start_at: float | None = now
        self._panics_at: float | None = None
        self._commands: list[LinkCommand] = []

    # --- the line -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, *, now: float) -> Sequence[object]:
        """Take bytes; without power, or before it has booted, they are lost."""
        self._now = now
        if self.firmware is not None:
            try:
                self.firmware.receive(data, now=now)
            except PowerCut as cut:
                self._cut(cut, now)
            self._look(now)
        return ()

    def deadline_passed(self, *, now: float) -> Sequence[object]:
        """Do what is due: boot, panic, or what the firmware has to do."""
        self._now = now
        try:
            if self._start_at is not None and now >= self._start_at:
                self._boot(now)
            elif self._panics_at is not None and now >= self._panics_at:
                self._restart(ResetReason.PANIC, "it crashed", now)
            elif self.firmware is not None:
                self.firmware.deadline_passed(now=now)
        except PowerCut as cut:
            self._cut(cut, now)
        self._look(now)
        return ()

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        if self._start_at is not None:
            return self._start_at
        if self._panics_at is not None:
            return self._panics_at
        return None if self.firmware is None else self.firmware.next_deadline()

    def link_commands(self) -> list[LinkCommand]:
        """Return what is to be done with the line; after a reset the UART is at its first rate."""
        commands, self._commands = self._commands, []
        return commands if self.firmware is None else [*commands, *self.firmware.link_commands()]

    # --- what happens to it -------------------------------------------------------------------------------------------

    def reset(self, *, now: float) -> None:
        """Press the reset button."""
        self._restart(ResetReason.EXTERNAL, "the reset button", now)

    def cut_power(self, *, now: float, for_s: float = POWER_OFF_S) -> None:
        """Pull the plug for so long."""
        self.off_s = max(0.0, for_s - POWER_OFF_S)
        self._cut(PowerCut("the plug was pulled"), now)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _boot(self, now: float) -> None:
        self._start_at = self._panics_at = None
        self._commands = [SwitchRate(FIRST_BAUDS[0])]
        self.app, self.confirmed = None, False
        self.hardware.power_on()
        report: BootReport = self.hardware.boot()
        for text in report.refused:
            self._tell(EventKind.REFUSED_IMAGE, text)
        if report.app is not None and report.slots is not None:
            self.app = report.app
            self.boots.append(report.app.version)
            self._tell(EventKind.BOOT, f"version {report.app.version}")
            if behaviour_of(report.app) is Behaviour.CRASH:
                self._panics_at = now + PANIC_AFTER_S
                return
            self.firmware = app_of(
                report.slots, self.build, self.conditions, tell=self._tell, now=now, on_confirmed=self._confirmed
            )
        elif isinstance(report.slots, OneBankSlots):
            self.boots.append("boot loader")
            self.firmware = NcpLoader(report.slots, self.build, tell=self._tell, now=now)
        else:
            self.boots.append("nothing")
            self._tell(EventKind.NOTHING_BOOTS, "nothing boots")

    def _look(self, now: float) -> None:
        ending = None if self.firmware is None else self.firmware.ending
        if ending is not None:
            self._restart(ending.reason, str(ending), now)

    def _restart(self, reason: ResetReason, text: str, now: float) -> None:
        self._tell(EventKind.RESTART, text, reason=reason.value)
        self.firmware = self.app = self._panics_at = None
        self.confirmed = False
        self._start_at = now + BOOT_S

    def _cut(self, cut: PowerCut, now: float) -> None:
        self._tell(EventKind.POWER_CUT, str(cut))
        self.hardware.power_off()
        self.firmware = self.app = self._panics_at = None
        self.confirmed = False
        self._start_at = now + POWER_OFF_S + self.off_s + BOOT_S
        self.off_s = 0.0

    def _confirmed(self) -> None:
        self.confirmed = True

    def _tell(self, kind: EventKind, text: str, **facts: str | int | None) -> None:
        self.told.append((self._now, kind, text))


def texts(told: Sequence[tuple[float, EventKind, str]], kind: EventKind) -> list[str]:
    """Return the texts of one kind of event."""
    return [text for _, each, text in told if each is kind]
