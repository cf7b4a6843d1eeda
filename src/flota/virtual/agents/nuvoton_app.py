"""The vendor's example application on Nuvoton boards: what it does at its start, before and around the OTA agent.

Source: docs/reference/nuvoton.md, "Resets" and "Steps of the application".
"""

from __future__ import annotations

from typing import Final

from flota.images.nuvoton.flash_map import LDROM_ADDR
from flota.virtual.device import Agent, AppContext
from flota.virtual.events import EventKind
from flota.virtual.nuvoton_kvstore import read_entries
from flota.virtual.nuvoton_slots import M487Slots
from flota.virtual.slots import ResetReason, Restart

NO_CREDENTIALS: Final = "the key store is destroyed: no key, no certificate, no way to the server"


class M487App:
    """An M487's application around `agent`: in-application programming first, then credentials, then the agent."""

    tests_the_app = True

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def run(self, context: AppContext) -> None:
        """Live as the app until it restarts."""
        slots = context.slots
        assert isinstance(slots, M487Slots)
        board = slots.hardware
        if board.allow_programming():
            context.tell(EventKind.SERIAL, "CONFIG0 bit 6 cleared, chip reset")
            raise Restart(ResetReason.SOFTWARE, "in-application programming is allowed now")
        if read_entries(board.chips.aprom) is None:
            context.tell(EventKind.NO_NETWORK, NO_CREDENTIALS)
            await context.pace.wait_for_ever()
        try:
            await self._agent.run(context)
        except Restart as restart:
            if restart.reason is ResetReason.WATCHDOG:  # the self-test timer: its callback resets as the PAL does
                context.tell(EventKind.SERIAL, "Resetting the device.")
                board.reset.cpu_reset_to = LDROM_ADDR
            raise
