"""A network co-processor on its side of the line: serves the MCU's bring-up, watches that it lives, carries updates.

No IO, no clock: bytes and `now` (seconds of a steady clock) in; events, bytes and changes of rate out.

    events = ncp.receive(data, now=now)      # and ncp.deadline_passed(now=now) at ncp.next_deadline()
    for command in ncp.link_commands(): ...  # bytes to send, or a rate to switch to once they are sent

Source: docs/reference/blynk.md, "Bring-up and liveness".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from flota.protocols.blynk.catalogue import (
    BY_NAME,
    GET_NCP_VERSION,
    GET_STATE,
    INITIALIZE,
    INTERFACE_VERSION,
    MCU_PING,
    NCP_PING,
    NCP_REBOOT,
    PROCEDURES,
    PROCESS_EVENT,
    SET_BAUD_RATE,
    SET_FIRMWARE_INFO,
    STATE_CHANGE,
    NcpEventCode,
    NcpState,
    PrefetchStatus,
    Side,
)
from flota.protocols.blynk.ncp_job import (
    FileDigests,
    FirmwareInfo,
    NcpUpdateSettings,
    RebootDue,
    UpdateEvent,
    UpdateJob,
)
from flota.protocols.blynk.ncp_offer import QUIET_S
from flota.protocols.blynk.ncp_states import MCU_IS_AT_WORK, MCU_MAY_BE_SILENT, UpdateState
from flota.protocols.blynk.ncp_update import SERVED, NcpUpdate
from flota.protocols.blynk.rpc import Answered, Called, CallFailed, Notified, RpcEndpoint, RpcEvent
from flota.protocols.blynk.values import Value

INITIAL_BAUD: Final = 38_400
SUPPORTED_BAUDS: Final = frozenset(
    {9600, 19_200, 28_800, 38_400, 57_600, 76_800, 115_200, 230_400, 460_800, 921_600, 1_000_000, 2_000_000}
)
"""The rates that the vendor's references scan or switch to."""

SILENCE_S: Final = 25.0
"""Without a frame from the MCU for so long, it is pinged."""
PING_EVERY_S: Final = 5.0
PINGS: Final = 6
"""The first, and five more; then the MCU is lost."""
LOST_AFTER_S: Final = SILENCE_S + PINGS * PING_EVERY_S
assert LOST_AFTER_S <= 60, "both ends have to be back at the first rate within a minute"

BOOT_LOADER_AFTER_S: Final = 20.0
"""Twice the 10 s that the vendor's slowest reference gives its bring-up."""


@dataclass(frozen=True, slots=True)
class SwitchRate:
    """Send everything before this, wait until the last bit has left, then go on at `baud`."""

    baud: int


LinkCommand = bytes | SwitchRate


@dataclass(frozen=True, slots=True)
class Reported:
    """The MCU said what it runs."""

    info: FirmwareInfo


@dataclass(frozen=True, slots=True)
class Initialized:
    """The MCU's app has started and named its template."""

    template_id: str
    template_name: str


@dataclass(frozen=True, slots=True)
class McuLost:
    """Nothing was heard of the MCU for `silent_s` seconds; it has to begin with its bring-up again."""

    silent_s: float


@dataclass(frozen=True, slots=True)
class RateFellBack:
    """Nothing was heard at the rate that the MCU asked for: back to the first."""

    baud: int


NcpEvent = UpdateEvent | Reported | Initialized | McuLost | RateFellBack


@dataclass(frozen=True, slots=True)
class NcpSettings:
    """What this NCP is. `announces_start`: it tells an MCU that runs already that it has to begin anew.

    `boot_loader_after_s`: an MCU that is heard for so long without being initialized sits in its boot loader.
    """

    version: str = INTERFACE_VERSION
    initial_baud: int = INITIAL_BAUD
    bauds: frozenset[int] = SUPPORTED_BAUDS
    announces_start: bool = True
    boot_loader_after_s: float = BOOT_LOADER_AFTER_S
    update: NcpUpdateSettings = field(default_factory=NcpUpdateSettings)


_FALSE: Final = (False,)
_TRUE: Final = (True,)
_SYSTEM_FAILED: Final = 3

FIXED_ANSWERS: Final[dict[str, tuple[Value, ...]]] = {
    "hw.initUserButton": _FALSE,  # this machine has no such button, LED or radio
    "hw.initLED": _FALSE,
    "hw.initRGB": _FALSE,
    "hw.initARGB": _FALSE,
    "hw.setLedBrightness": _FALSE,
    "hw.getWiFiMAC": ("", False),
    "hw.getEthernetMAC": ("", False),
    "blynk.setVendorPrefix": _TRUE,  # noted: nothing here depends on them
    "blynk.setVendorServer": _TRUE,
    "blynk.setConfigTimeout": _TRUE,
    "blynk.setConfigSkipLimit": _TRUE,
    "blynk.getHotspotName": ("", False),
    "blynk.configStart": _FALSE,
    "blynk.configStop": _FALSE,
    "blynk.configReset": _FALSE,
    "blynk.isConfigured": _TRUE,
    "blynk.factoryReset": _FALSE,
    "blynk.factoryTestWiFi": (0, _SYSTEM_FAILED),
    "blynk.factoryTestWiFiAP": (_SYSTEM_FAILED,),
    "blynk.factoryTestConnect": (_SYSTEM_FAILED,),
    "blynk.setTime": _FALSE,
    "blynk.getTime": ("", 0, 0, "", 0, False),
    "blynk.getLocationInfo": ("", "", "", "", False),
}
"""Procedure -> what it returns here: an honest no where there is nothing to do it with."""
_FIXED: Final = {BY_NAME[name].uid: values for name, values in FIXED_ANSWERS.items()}


class Ncp:
    """One NCP for one MCU."""

    def __init__(self, settings: NcpSettings, *, now: float) -> None:
        self.settings = settings
        self.rpc = RpcEndpoint(Side.NCP, serves=[uid for uid, one in PROCEDURES.items() if one.side is Side.NCP])
        self.update = NcpUpdate(self.rpc, settings.update)
        self.baud = settings.initial_baud
        self.firmware: FirmwareInfo | None = None
        """What the MCU said that it runs, since this NCP started."""
        self._commands: list[LinkCommand] = []
        self._events: list[NcpEvent] = []
        self._initialized = False
        self._cloud = False
        self._told_state: NcpState | None = None
        self._alive_at = now
        self._silent_from = now
        """From when on the MCU's silence counts."""
        self._watched = False
        self._heard_since: float | None = None
        self._pings = 0
        self._unproven_since: float | None = None
        self._now = now
        self._announce_at: float | None = now if settings.announces_start else None
        self._told_state = NcpState.NOT_INITIALIZED

    @property
    def state(self) -> NcpState:
        """What `blynk.getState` answers."""
        if not self._initialized:
            return NcpState.NOT_INITIALIZED
        return NcpState.CONNECTED if self._cloud else NcpState.CONNECTING_CLOUD

    @property
    def is_initialized(self) -> bool:
        """Whether the MCU's app runs, as far as is known."""
        return self._initialized

    def can_be_offered(self, *, now: float) -> bool:
        """Whether the MCU would hear of an update: its app runs, or a boot loader without an app listens."""
        self._now = now
        return self._is_ready()

    # --- what the machine around it says ------------------------------------------------------------------------------

    def cloud(self, connected: bool, *, now: float) -> list[NcpEvent]:
        """Take note whether the server answers."""
        self._cloud = connected
        return self._after(now)

    def line_opened(self, *, now: float) -> list[NcpEvent]:
        """Take note that the line is there (again): an MCU that runs already is told that it has to begin anew."""
        if not self._initialized:
            self._announce_at = now
        return self._after(now)

    def offer(self, job: UpdateJob, *, now: float) -> list[NcpEvent]:
        """Take a job for the MCU. Raises `Conflict` while another is under way."""
        self.update.offer(job, now=now)
        return self._after(now)

    def keep(self, job: UpdateJob, state: UpdateState, *, verdict_given: bool = False, now: float) -> list[NcpEvent]:
        """Take up a job from before this NCP's restart."""
        self.update.keep(job, state, verdict_given=verdict_given, now=now)
        return self._after(now)

    def withdraw(self, *, now: float) -> tuple[bool, list[NcpEvent]]:
        """Give the job up if that can still be done; returns whether it is given up."""
        given_up = self.update.withdraw(now=now)
        return given_up, self._after(now)

    def supply(self, offset: int, data: bytes, *, now: float) -> list[NcpEvent]:
        """Give the bytes that `NeedBytes` asked for."""
        self.update.supply(offset, data, now=now)
        return self._after(now)

    def source_failed(self, reason: str, *, now: float) -> list[NcpEvent]:
        """Take note that the image cannot be had."""
        self.update.source_failed(reason, now=now)
        return self._after(now)

    def prefetched(self, status: PrefetchStatus, *, now: float) -> list[NcpEvent]:
        """Say how the prefetch went that `PrefetchWanted` asked for."""
        self.update.prefetched(status, now=now)
        return self._after(now)

    def digests_known(self, digests: FileDigests) -> None:
        """Take the digests of the whole file."""
        self.update.digests_known(digests)

    # --- the line -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, *, now: float) -> list[NcpEvent]:
        """Take bytes off the line. Never raises for what the MCU sends."""
        self._now = now
        before = self.rpc.counts_of_frames
        events = self.rpc.receive(data, now=now)
        if self.rpc.counts_of_frames != before:
            self._alive_at = self._silent_from = now
            self._pings, self._unproven_since = 0, None
            if self._heard_since is None:
                self._heard_since = now
                self._announce_at = now + self.settings.boot_loader_after_s
        for event in events:
            self._take(event, now)
        return self._after(now)

    def link_commands(self) -> list[LinkCommand]:
        """Return what is to be done with the line, in order."""
        self._flush()
        commands, self._commands = self._commands, []
        return commands

    def next_deadline(self) -> float | None:
        """Return when `deadline_passed` is to be called, None for never."""
        limits = [self.rpc.next_deadline(), self.update.next_deadline(mcu_is_ready=self._is_ready()), self._watch_at()]
        if self._has_news() and self.rpc.is_free:
            limits.append(self._quiet_at())
        if self.update.state is UpdateState.PENDING and not self._is_ready():
            limits.append(self._listens_since())
        if self.rpc.is_free:
            limits.append(self._announce_at)
        return min((limit for limit in limits if limit is not None), default=None)

    def deadline_passed(self, *, now: float) -> list[NcpEvent]:
        """Do what is due now."""
        self._now = now
        for event in self.rpc.deadline_passed(now=now):
            self._take(event, now)
        watch_at = self._watch_at()
        if watch_at is not None and now >= watch_at:
            self._watch(now)
        if self._has_news() and self.rpc.is_free and now >= self._quiet_at():
            self._told_state = self.state
            self.rpc.notify(STATE_CHANGE, self.state, now=now)
        if self._announce_at is not None and self.rpc.is_free and now >= self._announce_at:
            self._announce(now)
        self.update.deadline_passed(mcu_is_ready=self._is_ready(), now=now)
        return self._after(now)

    # --- calls of the MCU ---------------------------------------------------------------------------------------------

    def _take(self, event: RpcEvent, now: float) -> None:
        if isinstance(event, Answered | CallFailed):
            self.update.answered(event, now=now)
        elif isinstance(event, Notified) or event.procedure.uid in (NCP_PING.uid, _HAS_UID):
            return  # pins and properties are the business of an application server; ping and hasUID were answered
        elif event.procedure.uid in SERVED:
            self.update.called(event, now=now)
        elif event.procedure.uid in _FIXED:
            self.rpc.answer(event, *_FIXED[event.procedure.uid], now=now)
        else:
            _SERVE[event.procedure.uid](self, event, now)

    def _announce(self, now: float) -> None:
        """Tell an MCU that is heard, but has not begun, that it has to; it may believe that nothing has happened."""
        heard = self._heard_since is not None and now - self._alive_at <= SILENCE_S
        self._announce_at = now + self.settings.boot_loader_after_s if heard and not self._initialized else None
        if not self._initialized and self.update.state not in MCU_IS_AT_WORK:
            self.rpc.notify(STATE_CHANGE, NcpState.NOT_INITIALIZED, now=now)

    def _reboot_asked(self, called: Called, now: float) -> None:
        """Restart without the announcement: firmware that restarts its NCP at each bring-up would begin for ever."""
        self.rpc.answer(called, True, now=now)
        self.update.ncp_restarted(now=now)
        self._begin_anew(now)

    def _set_baud(self, called: Called, now: float) -> None:
        baud = int(called.args[0])
        possible = baud in self.settings.bauds
        self.rpc.answer(called, possible, now=now)
        if possible and baud != self.baud:
            self._switch(baud)
            self._unproven_since = now

    def _firmware_info(self, called: Called, now: float) -> None:
        info = FirmwareInfo(*(str(value) for value in called.args))
        self.rpc.answer(called, True, now=now)
        self.firmware = info
        self._events.append(Reported(info))
        self.update.reported(info, now=now)

    def _initialize(self, called: Called, now: float) -> None:
        template_id, template_name = (str(value) for value in called.args)
        self.rpc.answer(called, True, now=now)
        self._initialized = True
        self._announce_at = None
        self._events.append(Initialized(template_id, template_name))
        self.update.initialized(now=now)

    def _version(self, called: Called, now: float) -> None:
        self.rpc.answer(called, self.settings.version, True, now=now)

    def _get_state(self, called: Called, now: float) -> None:
        self.rpc.answer(called, self.state, now=now)

    # --- liveness -----------------------------------------------------------------------------------------------------

    def _watches(self) -> bool:
        """Whether the MCU's silence means something."""
        return self._initialized and self.update.state not in MCU_MAY_BE_SILENT

    def _watch_at(self) -> float | None:
        fall_back = None if self._unproven_since is None else self._unproven_since + LOST_AFTER_S
        if not self._watches():
            away = self.baud != self.settings.initial_baud and not self._initialized
            lost = self._alive_at + LOST_AFTER_S if away else None
            return min((at for at in (fall_back, lost) if at is not None), default=None)
        ping = self._silent_from + SILENCE_S + self._pings * PING_EVERY_S
        return ping if fall_back is None else min(ping, fall_back)

    def _watch(self, now: float) -> None:
        """Ping a silent MCU; give it up, or a rate at which nothing is heard."""
        if self._unproven_since is not None and now >= self._unproven_since + LOST_AFTER_S:
            self._events.append(RateFellBack(self.baud))
            self._unproven_since = None
            self._switch(self.settings.initial_baud)
        elif not self._watches():
            self._switch(self.settings.initial_baud)
        elif self._pings >= PINGS:
            self._events.append(McuLost(now - self._alive_at))
            self.update.mcu_lost(now=now)
            self._restart(now)
        else:
            self._pings += 1
            if self.rpc.is_free:
                self.rpc.call(MCU_PING, now=now)

    def _restart(self, now: float) -> None:
        """Do what an NCP's restart looks like on the line: an announcement, the first rate, everything forgotten."""
        self.rpc.abandon(now)
        self.rpc.notify(PROCESS_EVENT, NcpEventCode.REBOOTING, now=now)
        self._begin_anew(now)

    def _begin_anew(self, now: float) -> None:
        self.rpc.abandon(now)
        self._initialized = False
        self._told_state = NcpState.NOT_INITIALIZED
        self._heard_since, self._pings, self._alive_at, self._announce_at = None, 0, now, None
        self._switch(self.settings.initial_baud)

    def _switch(self, baud: int) -> None:
        if baud == self.baud:
            return
        self._flush()
        self._commands.append(SwitchRate(baud))
        self.rpc.reader.reset()
        self.baud = baud

    # --- inside -------------------------------------------------------------------------------------------------------

    def _is_ready(self) -> bool:
        """Whether an offer may be made: the app runs, or the boot loader of an MCU with one bank listens."""
        listens_since = self._listens_since()
        return self._initialized or (listens_since is not None and self._now >= listens_since)

    def _listens_since(self) -> float | None:
        """Return from when on an MCU that is heard, but not initialized, is taken to be in its boot loader."""
        if self._initialized or not self.settings.update.left_to_boot_loader or self._heard_since is None:
            return None
        if self._now - self._alive_at > SILENCE_S:
            return None
        return self._heard_since + self.settings.boot_loader_after_s

    def _has_news(self) -> bool:
        return self._initialized and self.state is not self._told_state

    def _quiet_at(self) -> float:
        return max(self.rpc.heard_at or 0.0, self.rpc.spoke_at or 0.0) + QUIET_S

    def _flush(self) -> None:
        data = self.rpc.bytes_to_send()
        if data:
            self._commands.append(data)

    def _after(self, now: float) -> list[NcpEvent]:
        if self._watches() and not self._watched:  # it was allowed to be silent until now: ping it at once
            self._silent_from, self._pings = max(self._alive_at, now - SILENCE_S), 0
        self._watched = self._watches()
        self.update.step(now=now)
        while self.update.events:
            event = self.update.events.pop(0)
            self._events.append(event)
            if isinstance(event, RebootDue):
                self._restart(now)
        events, self._events = self._events, []
        return events


_HAS_UID: Final = BY_NAME["ncp.hasUID"].uid

_SERVE: Final[dict[int, Callable[[Ncp, Called, float], None]]] = {
    NCP_REBOOT.uid: Ncp._reboot_asked,
    SET_BAUD_RATE.uid: Ncp._set_baud,
    SET_FIRMWARE_INFO.uid: Ncp._firmware_info,
    INITIALIZE.uid: Ncp._initialize,
    GET_NCP_VERSION.uid: Ncp._version,
    GET_STATE.uid: Ncp._get_state,
}
