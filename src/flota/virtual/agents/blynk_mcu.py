"""A primary MCU as the agent of a virtual device: app and boot loader on a byte link, by the event loop's clock.

Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from flota.protocols.blynk.mcu import FIRST_BAUDS
from flota.protocols.blynk.ncp import LinkCommand
from flota.transports.uart import ByteLink, LineUnusable, MachineOnLine
from flota.virtual.agents.blynk_app import McuApp
from flota.virtual.agents.blynk_firmware import Conditions, LineParty, McuBuild, Tell
from flota.virtual.agents.blynk_loader import NcpLoader
from flota.virtual.device import AppContext
from flota.virtual.dual_bank_board import DualBankSlots
from flota.virtual.events import EventKind
from flota.virtual.one_bank_board import OneBankSlots
from flota.virtual.slots import DeviceSlots

REOPEN_S: Final = 1.0
"""Between tries to open a line that cannot be opened."""

OpenLine = Callable[[Callable[[bytes], None], Callable[[str], None], int], Awaitable[ByteLink]]
"""`open_line(on_data, on_lost, baud)`; raises `LineUnusable`."""


def app_of(
    slots: DeviceSlots,
    build: McuBuild,
    conditions: Conditions,
    *,
    tell: Tell,
    now: float,
    on_confirmed: Callable[[], None] = lambda: None,
) -> McuApp:
    """Return the app that a boot started. Raises `TypeError` for another board's slots: a mistake of ours."""
    if not isinstance(slots, DualBankSlots | OneBankSlots):
        raise TypeError("this firmware is for primary MCUs")
    return McuApp(slots, build, conditions, tell=tell, now=now, on_confirmed=on_confirmed)


@dataclass(slots=True)
class BlynkMcuAgent:
    """App and boot loader of one MCU. Change `conditions` at any time."""

    open_line: OpenLine
    build: McuBuild = field(default_factory=McuBuild)
    conditions: Conditions = field(default_factory=Conditions)
    look_around: Callable[[Conditions], None] = lambda _: None
    """Called before the firmware looks at the conditions: brings them up to date."""

    @property
    def tests_the_app(self) -> bool:
        """Whether the app on trial is this agent's: it confirms itself once the NCP answers."""
        return True

    async def run(self, context: AppContext) -> None:
        """Live as the app, until it restarts."""
        app = app_of(
            context.slots,
            self.build,
            self.conditions,
            tell=context.tell,
            now=asyncio.get_running_loop().time(),
            on_confirmed=context.on_confirmed,
        )
        await self._live(app, context)

    async def load(self, context: AppContext) -> None:
        """Live as the boot loader, until it restarts."""
        slots = context.slots
        if not isinstance(slots, OneBankSlots):
            await context.pace.wait_for_ever()
            return
        loader = NcpLoader(slots, self.build, tell=context.tell, now=asyncio.get_running_loop().time())
        await self._live(loader, context)

    async def _live(self, party: LineParty, context: AppContext) -> None:
        """Run a party on the line. Raises what ends it: `Restart`, `PowerCut`."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        guarded = _Guarded(party, ended, lambda: self.look_around(self.conditions))
        machine = MachineOnLine(guarded, _ignore, on_trouble=lambda text: context.tell(EventKind.TROUBLE, text))
        holding = asyncio.ensure_future(self._hold_line(machine, context))
        try:
            await asyncio.wait({ended, holding}, return_when=asyncio.FIRST_COMPLETED)
            if holding.done():
                holding.result()
            ended.result()
        finally:
            await machine.stop()
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)

    async def _hold_line(self, machine: MachineOnLine, context: AppContext) -> None:
        """Keep the line open; when it is lost, open it again."""
        told = ""
        while True:
            lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

            def on_lost(reason: str, lost: asyncio.Future[str] = lost) -> None:
                if not lost.done():
                    lost.set_result(reason)

            try:
                line = await self.open_line(machine.received, on_lost, FIRST_BAUDS[0])
            except LineUnusable as error:
                if told != str(error):
                    told = str(error)
                    context.tell(EventKind.TROUBLE, told)
                await context.pace.wait_for_peer(REOPEN_S)
                continue
            machine.attach(line)
            try:
                context.tell(EventKind.TROUBLE, f"the line is lost: {await lost}")
            finally:
                machine.attach(None)
                await line.close()


class _Guarded:
    """A party whose end, however it comes, is the future's: callbacks of an event loop may raise nothing."""

    def __init__(self, party: LineParty, ended: asyncio.Future[None], look_around: Callable[[], None]) -> None:
        self._party = party
        self._ended = ended
        self._look_around = look_around

    def receive(self, data: bytes, *, now: float) -> Sequence[object]:
        """Take bytes, unless it has ended."""
        return self._do(lambda: self._party.receive(data, now=now))

    def deadline_passed(self, *, now: float) -> Sequence[object]:
        """Do what is due, unless it has ended."""
        self._look_around()
        return self._do(lambda: self._party.deadline_passed(now=now))

    def next_deadline(self) -> float | None:
        """Say when something is due."""
        return None if self._ended.done() else self._party.next_deadline()

    def link_commands(self) -> list[LinkCommand]:
        """Say what is to be done with the line."""
        return self._party.link_commands()

    def _do(self, work: Callable[[], Sequence[object]]) -> Sequence[object]:
        if self._ended.done():
            return ()
        try:
            work()
            if self._party.ending is not None:
                raise self._party.ending
        except BaseException as end:  # noqa: BLE001 - handed to who waits: a restart, a power cut, a broken rule
            self._ended.set_exception(end)
        return ()


def _ignore(event: object) -> None:
    """Hear nothing: the party takes its machine's events itself."""
