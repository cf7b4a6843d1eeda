"""The device shell: power, boot, the app's life, restart, again. What the app does is its agent's business.

A virtual device runs no machine code. Its app is healthy unless the image carries a marker of our sample firmware:
`behaviour=crash` panics before it confirms itself, `never-confirm` hangs in its self-test until the watchdog bites,
`lose-network` cannot reach anything and rejects itself, `fail-self-test` rejects itself for its own reasons.

Source: docs/reference/virtual-devices.md, "A life".
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

from flota.errors import FlotaError
from flota.virtual.events import DeviceEvent, EventKind, Listener
from flota.virtual.flash import PowerCut
from flota.virtual.hardware import BootReport, Hardware
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.pace import PANIC_AFTER_S, REBOOT_S, SELF_TEST_LIMIT_S, SELF_TEST_S, Pace
from flota.virtual.slots import DeviceSlots, ResetReason, Restart, RunningApp

LAST_PANIC_KEY: Final = "last_failure"
"""Why the app before this one ended, for the report: written by the dying app as a core dump would be."""


class Behaviour(enum.StrEnum):
    """What the image in a slot does when it runs; the words of the marker `behaviour`."""

    HEALTHY = "healthy"
    CRASH = "crash"
    NEVER_CONFIRM = "never-confirm"
    LOSE_NETWORK = "lose-network"
    FAIL_SELF_TEST = "fail-self-test"
    """Its own test of itself finds it wanting, and it says so."""


def behaviour_of(app: RunningApp) -> Behaviour:
    """Return how the app behaves; without a marker, or with an unknown one, it is healthy."""
    try:
        return Behaviour(app.markers.get("behaviour", Behaviour.HEALTHY))
    except ValueError:
        return Behaviour.HEALTHY


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the device says it is. `mac` as AA:BB:CC:DD:EE:FF."""

    name: str
    board: str
    mac: str
    device_type: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class AppContext:
    """What a running app's agent may use."""

    identity: Identity
    slots: DeviceSlots
    nvs: NonVolatileStore
    pace: Pace
    rng: random.Random
    reset_reason: ResetReason
    emit: Callable[[EventKind, str, Mapping[str, str | int | None]], None]
    on_confirmed: Callable[[], None] = lambda: None
    """Called by an agent that tests the app itself, when it has confirmed it."""

    def tell(self, kind: EventKind, text: str, **facts: str | int | None) -> None:
        """Tell the observer of an event."""
        self.emit(kind, text, facts)


class Agent(Protocol):
    """An update agent: runs as long as the app does, ends only by `Restart`."""

    async def run(self, context: AppContext) -> None:
        """Look for updates and install them, for ever."""


@runtime_checkable
class SelfTestingAgent(Agent, Protocol):
    """An agent that begins its work before the app is confirmed: test, confirmation and way back are its own."""

    @property
    def tests_the_app(self) -> bool:
        """Whether it does."""


@runtime_checkable
class LoadingAgent(Agent, Protocol):
    """An agent of a device whose boot loader talks to a peer before there is an app."""

    async def load(self, context: AppContext) -> None:
        """Live as the boot loader; ends only by `Restart`."""


class VirtualDevice:
    """One device. `run` boots it again and again until `stop` is set or the task is cancelled (a power cut)."""

    def __init__(
        self,
        identity: Identity,
        hardware: Hardware,
        nvs: NonVolatileStore,
        agent: Agent | None,
        *,
        pace: Pace,
        rng: random.Random,
        listener: Listener,
    ) -> None:
        self.identity = identity
        self.hardware = hardware
        self.nvs = nvs
        self.app: RunningApp | None = None
        self.confirmed = False
        self._agent = agent
        self._pace = pace
        self._rng = rng
        self._listener = listener
        self._interruption: asyncio.Future[BaseException] | None = None

    def press_reset(self) -> None:
        """Restart the chip now, as its reset button does."""
        self._interrupt(Restart(ResetReason.EXTERNAL, "the reset button"))

    def cut_power(self) -> None:
        """Take the power away now; it comes back after a moment."""
        self.hardware.power_off()
        self._interrupt(PowerCut("the plug was pulled"))

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Live until `stop` is set."""
        life = asyncio.ensure_future(self._live())
        if stop is None:
            await life
            return
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({life, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                life.result()
        finally:
            for task in (life, stopping):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _live(self) -> None:
        reason = ResetReason.POWER_ON
        while True:
            reason = await self.one_boot(reason)
            await self._pace.spend(REBOOT_S)

    async def one_boot(self, reason: ResetReason) -> ResetReason:
        """Boot once and live until the next reset; returns that reset's reason."""
        self._interruption = asyncio.get_running_loop().create_future()
        self.hardware.power_on()
        try:
            report = self.hardware.boot()
            self._tell_boot(report, reason)
            await self._pace.pay()
            await self._until_interrupted(self.run_app(report, reason))
        except Restart as restart:
            self._tell(EventKind.RESTART, f"restart: {restart}", reason=restart.reason.value)
            return restart.reason
        except PowerCut as cut:
            self._tell(EventKind.POWER_CUT, f"power cut: {cut}")
            return ResetReason.POWER_ON
        finally:
            self.app = None
            self.confirmed = False
        raise AssertionError("an app ended without a reset")

    async def _until_interrupted(self, work: Coroutine[object, object, None]) -> None:
        """Run the app until it ends by itself (by raising), or the outside interrupts it."""
        assert self._interruption is not None
        app = asyncio.create_task(work)
        try:
            both: list[asyncio.Future[Any]] = [app, self._interruption]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if self._interruption.done():
                raise self._interruption.result()
            app.result()
        finally:
            app.cancel()
            with contextlib.suppress(asyncio.CancelledError, Restart, PowerCut):
                await app

    async def run_app(self, report: BootReport, reason: ResetReason) -> None:
        """Live through what one boot started: self-test, confirmation, agent. Ends by `Restart`, or not at all.

        It waits for nothing but the pace and what the agent waits for: the same code runs in a fleet and in a sweep.
        """
        if report.app is None and report.slots is not None and isinstance(self._agent, LoadingAgent):
            await self._agent.load(
                AppContext(self.identity, report.slots, self.nvs, self._pace, self._rng, reason, self._emit)
            )
            return
        if report.app is None or report.slots is None:
            await self._pace.wait_for_ever()  # a reset loop without effect: only a programmer or the plug can help
            return
        app, slots = report.app, report.slots
        self.app = app
        context = AppContext(
            self.identity, slots, self.nvs, self._pace, self._rng, reason, self._emit, self._note_confirmed
        )
        behaviour = behaviour_of(app)
        if behaviour is Behaviour.CRASH:
            await self._panic(app)
        if app.awaits_confirmation and isinstance(self._agent, SelfTestingAgent) and self._agent.tests_the_app:
            await self._agent.run(context)
            return
        if app.awaits_confirmation:
            await self._self_test(app, slots, behaviour)
        self.confirmed = True
        if behaviour is Behaviour.LOSE_NETWORK or self._agent is None:
            if behaviour is Behaviour.LOSE_NETWORK:
                self._tell(EventKind.NO_NETWORK, "the app cannot reach the network")
            await self._pace.wait_for_ever()
            return
        await self._agent.run(context)

    async def _panic(self, app: RunningApp) -> None:
        await self._pace.spend(PANIC_AFTER_S)
        text = f"version {app.version} panicked before it confirmed itself"
        self._tell(EventKind.PANIC, text, version=app.version, slot=app.slot)
        self._note_failure(app, text)
        raise Restart(ResetReason.PANIC, text)

    async def _self_test(self, app: RunningApp, slots: DeviceSlots, behaviour: Behaviour) -> None:
        self._tell(EventKind.SELF_TEST, f"self-test of version {app.version}", version=app.version)
        if behaviour is Behaviour.HEALTHY:
            await self._pace.spend(SELF_TEST_S)
            slots.confirm()
            await self._pace.pay()
            self._tell(
                EventKind.CONFIRMED, f"version {app.version} confirmed itself", version=app.version, slot=app.slot
            )
            return
        await self._pace.spend(SELF_TEST_LIMIT_S)
        if behaviour is Behaviour.NEVER_CONFIRM:
            text = f"version {app.version} did not confirm itself within {SELF_TEST_LIMIT_S:g} s"
            self._note_failure(app, text)
            raise Restart(ResetReason.WATCHDOG, text)
        text = f"version {app.version} could not reach the network within {SELF_TEST_LIMIT_S:g} s"
        if behaviour is Behaviour.FAIL_SELF_TEST:
            text = f"version {app.version} failed its self-test"
        self._note_failure(app, text)
        try:
            slots.reject()
        except FlotaError as error:
            self._tell(EventKind.TROUBLE, f"cannot roll back: {error}")
            return
        self._tell(EventKind.REJECTED, f"version {app.version} rejected itself", version=app.version, slot=app.slot)
        raise Restart(ResetReason.SOFTWARE, text)

    def _note_confirmed(self) -> None:
        self.confirmed = True

    def _note_failure(self, app: RunningApp, text: str) -> None:
        self.nvs.set(LAST_PANIC_KEY, {"slot": app.slot, "sha256": app.sha256, "text": text})

    def _tell_boot(self, report: BootReport, reason: ResetReason) -> None:
        for line in report.console:
            self._tell(EventKind.SERIAL, line)
        for text in report.refused:
            self._tell(EventKind.REFUSED_IMAGE, f"boot loader refuses {text}")
        if report.app is None:
            if report.slots is None or not isinstance(self._agent, LoadingAgent):
                self._tell(EventKind.NOTHING_BOOTS, "nothing boots")
            return
        app = report.app
        state = "to be confirmed" if app.awaits_confirmation else "confirmed"
        wrote = f" [{'; '.join(report.writes)}]" if report.writes else ""
        self._tell(
            EventKind.BOOT,
            f"boot after {reason.value}: {app.slot}, version {app.version}, {state}{wrote}",
            slot=app.slot,
            version=app.version,
            sha256=app.sha256,
            state=state,
        )

    def _tell(self, kind: EventKind, text: str, **facts: str | int | None) -> None:
        self._emit(kind, text, facts)

    def _emit(self, kind: EventKind, text: str, facts: Mapping[str, str | int | None]) -> None:
        self._listener(DeviceEvent(self.identity.name, kind, text, facts))

    def _interrupt(self, cause: BaseException) -> None:
        if self._interruption is not None and not self._interruption.done():
            self._interruption.set_result(cause)
