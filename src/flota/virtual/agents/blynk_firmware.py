"""What firmware of a primary MCU is, whatever it does: a machine on the line, timers, flash time, a way to restart.

No IO and no clock: it is a party at an end of a line (`receive`, `deadline_passed`, `next_deadline`, `link_commands`),
for a simulated line and for a real one alike. When `ending` is set, the MCU restarts.
Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from flota.protocols.blynk.mcu import LinkDown, Mcu, McuEvent, McuSettings, RebootAsked
from flota.protocols.blynk.mcu_states import REFERENCE, ApplyNow, McuPolicy, McuState, NcpDigests
from flota.protocols.blynk.ncp import LinkCommand
from flota.protocols.blynk.ncp_job import CONFIRM_WINDOW_S
from flota.virtual.dual_mcu_flash import FlashTime, crc32_of, md5_of, sha256_of
from flota.virtual.events import EventKind
from flota.virtual.slots import ResetReason, Restart

APPLY_AFTER_S: Final = 0.05
"""Between a true answer and the restart: the answer has to leave the UART. The vendor's code takes 10 to 100 ms."""
BATTERY_FLOOR_PERCENT: Final = 30


@dataclass(frozen=True, slots=True)
class McuBuild:
    """How firmware and boot loader are built. `is_strict`: as the vendor's reference firmware, weaknesses included.

    `chunk` in bytes; `raises_to` the rate (baud) that it asks for, `bauds` those that its UART can do (None = all).
    Below `battery_floor_percent` no stream is begun: the update waits, or with `suspends` tells the NCP to wait.
    `speed` divides the time that flash operations take; waits for the NCP are not scaled.
    """

    is_strict: bool = False
    chunk: int = 1024
    raises_to: int | None = 115_200
    bauds: frozenset[int] | None = None
    template_name: str = "Device"
    battery_floor_percent: int = BATTERY_FLOOR_PERCENT
    suspends: bool = False
    confirm_window_s: float = CONFIRM_WINDOW_S
    takes_downgrades: bool = True
    prefetches: bool = True
    speed: float = 1.0

    def policy(self, *, asks_digests_early: bool = False) -> McuPolicy:
        """Return how its part of the protocol behaves."""
        base = REFERENCE if self.is_strict else McuPolicy()
        return replace(base, chunk=self.chunk, asks_digests_early=asks_digests_early)


@dataclass(slots=True)
class Conditions:
    """The world around the device; change it at any time.

    `is_busy`: the product does something that an update must not disturb. `room_bytes`: storage left for an image where
    that is less than the slot (None: the slot).
    """

    battery_percent: int = 100
    is_busy: bool = False
    room_bytes: int | None = None


Tell = Callable[..., None]
"""`tell(kind, text, **facts)`: what an observer hears."""


class LineParty(Protocol):
    """What runs on an MCU at one time: the app, or the boot loader."""

    ending: Restart | None

    def receive(self, data: bytes, *, now: float) -> Sequence[object]:
        """Take bytes off the line."""

    def deadline_passed(self, *, now: float) -> Sequence[object]:
        """Do what is due."""

    def next_deadline(self) -> float | None:
        """Say when something is due."""

    def link_commands(self) -> list[LinkCommand]:
        """Say what is to be done with the line."""


class McuFirmware:
    """The common part. Subclasses take the machine's events in `_happened`; `now` is in seconds of a steady clock."""

    def __init__(self, settings: McuSettings, build: McuBuild, time: FlashTime, tell: Tell, *, now: float) -> None:
        self.mcu = Mcu(settings, now=now)
        self.ending: Restart | None = None
        self._build = build
        self._flash_time = time
        self._tell = tell
        self._timers: list[tuple[float, Callable[[float], None]]] = []
        self._told_percent = 0
        time.take()

    # --- the line -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, *, now: float) -> Sequence[object]:
        """Take bytes off the line."""
        self._take(self.mcu.receive(data, now=now), now)
        return ()

    def deadline_passed(self, *, now: float) -> Sequence[object]:
        """Do what is due."""
        due = [timer for timer in self._timers if timer[0] <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for _, action in sorted(due, key=lambda timer: timer[0]):
            if self.ending is None:
                action(now)
        self._take(self.mcu.deadline_passed(now=now), now)
        return ()

    def next_deadline(self) -> float | None:
        """Return when something is due, None for never."""
        moments = [at for at, _ in self._timers]
        machine = self.mcu.next_deadline()
        return min((*moments, machine) if machine is not None else moments, default=None)

    def link_commands(self) -> list[LinkCommand]:
        """Return what is to be done with the line."""
        return self.mcu.link_commands()

    # --- for subclasses -----------------------------------------------------------------------------------------------

    def _take(self, events: Sequence[McuEvent], now: float) -> None:
        """Take events of the machine, and those that follow from them, in order."""
        waiting = deque(events)
        while waiting and self.ending is None:
            waiting.extend(self._one(waiting.popleft(), now))

    def _one(self, event: McuEvent, now: float) -> Sequence[McuEvent]:
        if isinstance(event, ApplyNow):
            self._restart_at(now + APPLY_AFTER_S, ResetReason.SOFTWARE, "into the new image")
        elif isinstance(event, RebootAsked):
            self._restart_at(now + APPLY_AFTER_S, ResetReason.SOFTWARE, "the NCP asked for it")
        elif isinstance(event, LinkDown):
            self._tell(EventKind.TROUBLE, event.reason)
        return self._happened(event, now)

    def _happened(self, event: McuEvent, now: float) -> Sequence[McuEvent]:
        """Do what an event asks for; returns what the machine said to it."""
        raise NotImplementedError

    def _after(self, seconds: float, now: float, action: Callable[[float], None]) -> None:
        self._timers.append((now + seconds, action))

    def _flash_s(self) -> float:
        """Return how long the flash was at work since the last time, as this device lives."""
        return self._flash_time.take() / self._build.speed

    def _restart_at(self, at: float, reason: ResetReason, text: str) -> None:
        self._timers.append((at, lambda _: self._end(reason, text)))

    def _end(self, reason: ResetReason, text: str) -> None:
        if self.ending is None:
            self.ending = Restart(reason, text)

    def _store(self, ok: bool, now: float) -> Sequence[McuEvent]:
        """Answer a chunk once the flash is done with it."""
        cost = self._flash_s()
        if not cost:
            return self.mcu.chunk_stored(ok, now=now)
        machine = self.mcu
        self._after(cost, now, lambda later: self._take(machine.chunk_stored(ok, now=later), later))
        return ()

    def _tell_progress(self, done: int, of: int) -> None:
        percent = 100 * done // of
        if percent // 10 != self._told_percent // 10:
            self._tell(EventKind.PROGRESS, f"{percent} %", done=done, of=of)
        self._told_percent = percent

    @property
    def _is_receiving(self) -> bool:
        return self.mcu.update.state in (McuState.START, McuState.RECEIVE)


def why_wrong(data: bytes, digests: NcpDigests) -> str | None:
    """Return which digest of the NCP's does not agree with `data`; None if all that it knows do."""
    if digests.sha256 is not None and digests.sha256.hex() != sha256_of(data):
        return "SHA-256"
    if digests.md5 is not None and digests.md5 != md5_of(data):
        return "MD5"
    if digests.crc32 is not None and digests.crc32 != crc32_of(data):
        return "CRC-32"
    return None
