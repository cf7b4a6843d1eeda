"""A primary MCU on its side of the line: finds the rate, begins, stays alive, and is updated. No IO, no clock.

    commands = mcu.link_commands()            # bytes to send, or a rate to switch to once they are sent
    events = mcu.receive(data, now=now)       # and mcu.deadline_passed(now=now) at mcu.next_deadline()

Source: docs/reference/blynk.md, "Bring-up and liveness".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from flota.protocols.blynk.catalogue import (
    GET_NCP_VERSION,
    GET_STATE,
    INITIALIZE,
    MCU_HAS_UID,
    MCU_PING,
    MCU_REBOOT,
    NCP_HAS_UID,
    NCP_PING,
    OTA_PREFETCH,
    PIN_CHANGE,
    PROCESS_EVENT,
    SET_BAUD_RATE,
    SET_FIRMWARE_INFO,
    STATE_CHANGE,
    NcpEventCode,
    NcpState,
    Procedure,
    Side,
)
from flota.protocols.blynk.driver_frames import DriverFrameReader
from flota.protocols.blynk.mcu_states import McuPolicy, McuState, McuUpdateEvent
from flota.protocols.blynk.mcu_update import SERVED, McuUpdate
from flota.protocols.blynk.ncp import LinkCommand, SwitchRate
from flota.protocols.blynk.ncp_job import FirmwareInfo
from flota.protocols.blynk.rpc import Answered, Called, CallFailed, Notified, RpcEndpoint, RpcEvent
from flota.protocols.blynk.values import Value

FIRST_BAUDS: Final = (38_400, 115_200)
"""What NCPs begin with."""
PINGS_AT_A_RATE: Final = 2
"""Two, since the first may be lost with a frame that was cut short."""
AFTER_SWITCH_S: Final = 0.02
SCAN_PAUSE_S: Final = 0.5
"""Between one round over all rates and the next."""
STEP_TRIES: Final = 3
PING_EVERY_S: Final = 15.0
PING_AGAIN_S: Final = 1.0
PINGS_LOST: Final = 3
"""Time-outs in a row after which the MCU begins anew."""
BEGIN_AGAIN_AFTER_S: Final = 1.0
"""After the NCP said that it restarts."""


class Phase(enum.StrEnum):
    """How far the MCU is with its NCP."""

    SCAN = "scan"
    RAISE = "raise"
    SYNC = "sync"
    """At the new rate: does the NCP hear it?"""
    STEPS = "steps"
    UP = "up"


class PhaseInput(enum.StrEnum):
    """What can happen on the way."""

    HEARD = "heard"
    HEARD_AT_TARGET = "heard at the wanted rate"
    RAISED = "raised"
    NOT_RAISED = "not raised"
    SILENT = "silent"
    STEPS_DONE = "steps done"
    BEGIN_AGAIN = "begin again"


_P, _I = Phase, PhaseInput

PHASES: Final[Mapping[tuple[Phase, PhaseInput], Phase]] = MappingProxyType(
    {
        (_P.SCAN, _I.HEARD): _P.RAISE,
        (_P.SCAN, _I.HEARD_AT_TARGET): _P.STEPS,
        (_P.RAISE, _I.RAISED): _P.SYNC,
        (_P.RAISE, _I.NOT_RAISED): _P.STEPS,
        (_P.SYNC, _I.HEARD): _P.STEPS,
        (_P.SYNC, _I.HEARD_AT_TARGET): _P.STEPS,
        (_P.SYNC, _I.SILENT): _P.SCAN,
        (_P.STEPS, _I.STEPS_DONE): _P.UP,
        (_P.STEPS, _I.SILENT): _P.SCAN,
        (_P.UP, _I.SILENT): _P.SCAN,
        **{(phase, _I.BEGIN_AGAIN): _P.SCAN for phase in Phase},
    }
)
"""(phase, input) -> next phase."""


@dataclass(frozen=True, slots=True)
class McuSettings:
    """What this MCU is. `is_boot_loader`: it finds the rate and does no more. `raises_to` None: it keeps what it finds.

    `like_the_driver`: frames and unknown calls are treated as the vendor's driver does.
    """

    firmware: FirmwareInfo
    template_id: str = "TMPL00000000"
    template_name: str = "Device"
    raises_to: int | None = 115_200
    bauds: frozenset[int] | None = None
    """Rates that its UART can do; None = all."""
    is_boot_loader: bool = False
    asks_prefetch: bool = True
    """Whether it asks the NCP if it can prefetch."""
    policy: McuPolicy = field(default_factory=McuPolicy)
    like_the_driver: bool = False


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The NCP answers, and the bring-up is done; a boot loader's at once. `prefetches`: the NCP can."""

    baud: int
    ncp_version: str
    prefetches: bool


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The NCP is silent, or begins anew; the MCU looks for it."""

    reason: str


@dataclass(frozen=True, slots=True)
class NcpStateTold:
    """The NCP told its state."""

    state: int


@dataclass(frozen=True, slots=True)
class RebootAsked:
    """The NCP asks the MCU to restart; it was told true."""


McuEvent = McuUpdateEvent | LinkUp | LinkDown | NcpStateTold | RebootAsked


class Mcu:
    """One MCU with its NCP, from its start on."""

    def __init__(self, settings: McuSettings, *, now: float) -> None:
        self.settings = settings
        serves = {MCU_PING.uid, MCU_HAS_UID.uid, MCU_REBOOT.uid, STATE_CHANGE.uid, PIN_CHANGE.uid, PROCESS_EVENT.uid}
        self.rpc = RpcEndpoint(
            Side.MCU,
            serves=serves | SERVED,
            answers_unknown=not settings.like_the_driver,
            reader=DriverFrameReader() if settings.like_the_driver else None,
        )
        self.update = McuUpdate(self.rpc, settings.policy)
        self.phase = Phase.SCAN
        self.baud = FIRST_BAUDS[0]
        self.ncp_version = ""
        self.ncp_prefetches = False
        self._commands: list[LinkCommand] = []
        self._events: list[McuEvent] = []
        self._rates = self._scan_rates()
        self._rate_index = 0
        self._tries = 0
        self._raises = True
        self._steps: list[tuple[Procedure, tuple[Value, ...]]] = []
        self._act_at: float | None = now
        self._called_at = now
        self._silences = 0

    # --- the line -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, *, now: float) -> list[McuEvent]:
        """Take bytes off the line. Never raises for what the NCP sends."""
        for event in self.rpc.receive(data, now=now):
            self._take(event, now)
        return self._after(now)

    def link_commands(self) -> list[LinkCommand]:
        """Return what is to be done with the line, in order."""
        self._flush()
        commands, self._commands = self._commands, []
        return commands

    def next_deadline(self) -> float | None:
        """Return when `deadline_passed` is to be called, None for never."""
        limits = [self.rpc.next_deadline(), self.update.next_deadline()]
        if self.rpc.is_free:
            limits.append(self._act_at)
        return min((limit for limit in limits if limit is not None), default=None)

    def deadline_passed(self, *, now: float) -> list[McuEvent]:
        """Do what is due now."""
        for event in self.rpc.deadline_passed(now=now):
            self._take(event, now)
        self.update.deadline_passed(now=now)
        if self.rpc.is_free and self._act_at is not None and now >= self._act_at:
            self._act(now)
        return self._after(now)

    # --- what the firmware says; see McuUpdate ------------------------------------------------------------------------

    def decline(self, *, now: float) -> list[McuEvent]:
        """Refuse the offer."""
        self.update.decline(now=now)
        return self._after(now)

    def accept(self, *, now: float) -> list[McuEvent]:
        """Take the offer."""
        self.update.accept(now=now)
        return self._after(now)

    def prefetch(self, *, now: float) -> list[McuEvent]:
        """Have the NCP fetch the whole file."""
        self.update.prefetch(now=now)
        return self._after(now)

    def begin(self, *, now: float) -> list[McuEvent]:
        """Ask for the stream."""
        self.update.begin(now=now)
        return self._after(now)

    def resume(self, size: int, *, now: float) -> list[McuEvent]:
        """Ask for the stream of `size` bytes that a boot loader's record names."""
        self.update.resume(size, now=now)
        return self._after(now)

    def suspend(self, seconds: int, *, now: float) -> list[McuEvent]:
        """Ask the NCP to leave the update alone for so long; 0 = go on."""
        self.update.suspend(seconds, now=now)
        return self._after(now)

    def chunk_stored(self, ok: bool, *, now: float) -> list[McuEvent]:
        """Say whether the chunk is in the flash."""
        self.update.chunk_stored(ok, now=now)
        return self._after(now)

    def verified(self, ok: bool, *, now: float) -> list[McuEvent]:
        """Say whether the image in the flash is right."""
        self.update.verified(ok, now=now)
        return self._after(now)

    # --- what the NCP does --------------------------------------------------------------------------------------------

    def _take(self, event: RpcEvent, now: float) -> None:
        if isinstance(event, Called):
            if event.procedure.uid in SERVED:
                self.update.called(event, now=now)
            elif event.procedure is MCU_REBOOT:
                self.rpc.answer(event, True, now=now)
                self._events.append(RebootAsked())
            return
        if isinstance(event, Notified):
            self._notified(event, now)
            return
        if isinstance(event, Answered):
            self._silences = 0
        if event.is_late or self._is_of_update(event):
            self.update.answered(event, now=now)
            return
        self._ended(event, now)

    def _notified(self, event: Notified, now: float) -> None:
        if event.procedure is STATE_CHANGE:
            self._events.append(NcpStateTold(int(event.args[0])))
        restarts = (event.procedure is PROCESS_EVENT and event.args[0] == NcpEventCode.REBOOTING) or (
            event.procedure is STATE_CHANGE and event.args[0] == NcpState.NOT_INITIALIZED
        )
        if restarts and self.phase is Phase.UP and not self.settings.is_boot_loader:
            self._begin_again("the NCP restarts", now + BEGIN_AGAIN_AFTER_S)

    @staticmethod
    def _is_of_update(event: Answered | CallFailed) -> bool:
        return event.procedure.name.startswith("blynk.ota")

    # --- bring-up -----------------------------------------------------------------------------------------------------

    def _act(self, now: float) -> None:
        """Make the next call of this phase."""
        self._act_at, self._called_at = None, now
        if self.phase is Phase.UP and self.settings.policy.asks_state and not self.settings.is_boot_loader:
            self.rpc.call(GET_STATE, now=now)
        elif self.phase in (Phase.SCAN, Phase.SYNC, Phase.UP):
            self.rpc.call(NCP_PING, now=now)
        elif self.phase is Phase.RAISE:
            assert self.settings.raises_to is not None
            self.rpc.call(SET_BAUD_RATE, self.settings.raises_to, now=now)
        elif self._steps:
            procedure, args = self._steps[0]
            self.rpc.call(procedure, *args, now=now)

    def _ended(self, event: Answered | CallFailed, now: float) -> None:
        if self.phase is Phase.SCAN:
            self._scanned(event, now)
        elif self.phase is Phase.RAISE:
            self._raised(event, now)
        elif self.phase is Phase.SYNC:
            self._synced(event, now)
        elif self.phase is Phase.STEPS:
            self._step_ended(event, now)
        else:
            self._ping_ended(event, now)

    def _scanned(self, event: Answered | CallFailed, now: float) -> None:
        if isinstance(event, Answered):
            at_target = self.settings.raises_to in (None, self.baud) or not self._raises
            self._go(PhaseInput.HEARD_AT_TARGET if at_target else PhaseInput.HEARD)
            if at_target:
                self._begin_steps(now)
            self._act_at = now
            return
        self._tries += 1
        if self._tries < PINGS_AT_A_RATE:
            self._act_at = now
            return
        self._tries = 0
        self._rate_index = (self._rate_index + 1) % len(self._rates)
        self._switch(self._rates[self._rate_index])
        self._act_at = now + (AFTER_SWITCH_S if self._rate_index else SCAN_PAUSE_S)

    def _raised(self, event: Answered | CallFailed, now: float) -> None:
        if isinstance(event, Answered) and event.values[0]:
            assert self.settings.raises_to is not None
            self._go(PhaseInput.RAISED)
            self._tries = 0
            self._switch(self.settings.raises_to)
            self._act_at = now + AFTER_SWITCH_S
            return
        self._go(PhaseInput.NOT_RAISED)
        self._begin_steps(now)

    def _synced(self, event: Answered | CallFailed, now: float) -> None:
        if isinstance(event, Answered):
            self._go(PhaseInput.HEARD)
            self._begin_steps(now)
            return
        self._tries += 1
        if self._tries < STEP_TRIES:
            self._act_at = now
            return
        self._raises = False  # one of the two ends cannot do this rate: stay at what is found next
        self._go(PhaseInput.SILENT)
        self._scan_from_start(now)

    def _begin_steps(self, now: float) -> None:
        self._tries = 0
        self._steps = [] if self.settings.is_boot_loader else list(self._bring_up())
        self._act_at = now
        if not self._steps:
            self._up(now)

    def _bring_up(self) -> tuple[tuple[Procedure, tuple[Value, ...]], ...]:
        """Return the calls of the bring-up in their order: the firmware's identity always before initialize."""
        info = self.settings.firmware
        prefetch = ((NCP_HAS_UID, (OTA_PREFETCH.uid,)),) if self.settings.asks_prefetch else ()
        return (
            (GET_NCP_VERSION, ()),
            *prefetch,
            (SET_FIRMWARE_INFO, (info.fw_type, info.version, info.build, info.library)),
            (INITIALIZE, (self.settings.template_id, self.settings.template_name)),
            (GET_STATE, ()),
        )

    def _step_ended(self, event: Answered | CallFailed, now: float) -> None:
        procedure = self._steps[0][0] if self._steps else None
        if event.procedure is not procedure:
            return
        required = procedure in (SET_FIRMWARE_INFO, INITIALIZE)
        if isinstance(event, CallFailed) or (required and not event.values[0]):
            self._tries += 1
            if self._tries >= STEP_TRIES and (required or isinstance(event, CallFailed)):
                self._go(PhaseInput.SILENT)
                self._events.append(LinkDown(f"{event.procedure.name} failed"))
                self._scan_from_start(now)
            else:
                self._act_at = now + PING_AGAIN_S
            return
        if procedure is GET_NCP_VERSION:
            self.ncp_version = str(event.values[0])
        elif procedure is NCP_HAS_UID:
            self.ncp_prefetches = bool(event.values[0])
        self._tries = 0
        self._steps.pop(0)
        self._act_at = now
        if not self._steps:
            self._up(now)

    def _up(self, now: float) -> None:
        self._go(PhaseInput.STEPS_DONE)
        self._silences = 0
        self._act_at = now + PING_EVERY_S
        self._events.append(LinkUp(self.baud, self.ncp_version, self.ncp_prefetches))

    # --- liveness -----------------------------------------------------------------------------------------------------

    def _ping_ended(self, event: Answered | CallFailed, now: float) -> None:
        if isinstance(event, Answered) and event.values and event.values[0] == NcpState.NOT_INITIALIZED:
            self._begin_again("the NCP has restarted", now)
        elif isinstance(event, Answered):
            self._act_at = now + PING_EVERY_S
        elif self._silences + 1 < PINGS_LOST:
            self._silences += 1
            self._act_at = now + PING_AGAIN_S
        else:
            self._begin_again("the NCP is silent", now)

    def _begin_again(self, reason: str, at: float) -> None:
        self._events.append(LinkDown(reason))
        self._go(PhaseInput.BEGIN_AGAIN)
        self._raises = True
        self._scan_from_start(at)

    def _scan_from_start(self, at: float) -> None:
        self._tries = self._silences = 0
        self._rates = self._scan_rates()
        self._rate_index = 0
        self._switch(self._rates[0])
        self._act_at = at + AFTER_SWITCH_S

    def _scan_rates(self) -> tuple[int, ...]:
        """Return the rates to look for the NCP at: what NCPs begin with, and what they were told before."""
        wanted = () if self.settings.raises_to is None else (self.settings.raises_to,)
        possible = self.settings.bauds
        rates = dict.fromkeys((*FIRST_BAUDS, *wanted))
        return tuple(rate for rate in rates if possible is None or rate in possible) or (FIRST_BAUDS[0],)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _switch(self, baud: int) -> None:
        self._flush()
        self.rpc.reader.reset()
        if baud != self.baud:
            self._commands.append(SwitchRate(baud))
            self.baud = baud

    def _flush(self) -> None:
        data = self.rpc.bytes_to_send()
        if data:
            self._commands.append(data)

    def _go(self, happened: PhaseInput) -> None:
        self.phase = PHASES[self.phase, happened]

    def _after(self, now: float) -> list[McuEvent]:
        if self.phase is Phase.UP and self._act_at is not None and self.rpc.heard_at is not None:
            # While the NCP is heard there is nothing to ask it: in mid-stream a ping would only cost time.
            busy = self.update.state in (McuState.START, McuState.RECEIVE, McuState.VERIFY)
            if busy and self._silences == 0:
                self._act_at = max(self._act_at, self.rpc.heard_at + PING_EVERY_S)
        self._events += self.update.events
        self.update.events.clear()
        events, self._events = self._events, []
        return events
