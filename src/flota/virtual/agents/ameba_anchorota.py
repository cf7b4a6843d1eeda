"""The agent of the third party's sketch for BW16: the bare image by TCP, chosen and written in an order of its own.

It writes the signature with the image. Until the second core's part is there too, the boot loader finds a slot that is
half an image: a power cut in that time is a brick when the slot is OTA2, which is looked at first.
Source: docs/reference/ameba-push.md, "The anchorota sketch"; MXV3A/BW16-OTA-Updates.
"""

from __future__ import annotations

from typing import Final

from flota.images.ameba.ota_file import byte_sum
from flota.images.ameba.segment import IMAGE2_SIGNATURE
from flota.protocols.ameba_push import BodyBytes, EraseTarget, ImageComplete, ReceiverEvent, ReceiverFailed
from flota.protocols.ameba_push.anchorota import AnchorotaReceiver
from flota.virtual.agents.ameba_push import AmebaPushAgent
from flota.virtual.agents.ameba_update import REBOOT_AFTER_S, Read
from flota.virtual.ameba_board import AmebaSlots
from flota.virtual.ameba_ota import CLEARED_WORD, READ_BYTES_PER_S, AmebaUpdate
from flota.virtual.device import AppContext
from flota.virtual.events import EventKind
from flota.virtual.slots import ResetReason, Restart

BOARD: Final = "ameba_rtl8720dn"
"""What the sketch announces; its announced port is the real one."""


class AnchorotaAgent(AmebaPushAgent):
    """Listens as the vendor's does; prints nothing that is known."""

    async def take(self, context: AppContext, read: Read) -> None:
        """Take one update. Raises `Restart` after a good one."""
        await AnchorotaUpdate(context).take(read)

    def say(self, context: AppContext, *texts: str) -> None:
        """Say nothing: the sketch's lines are its author's."""


class AnchorotaUpdate:
    """One update: erase, write everything, compare the sum, write the signature again, retire the other slot."""

    def __init__(self, context: AppContext) -> None:
        slots = context.slots
        assert isinstance(slots, AmebaSlots)
        self._context = context
        self._flash = slots.hardware.flash
        self._layout = slots.hardware.layout
        held = self._flash.read(self._layout.ota2, len(IMAGE2_SIGNATURE)) == IMAGE2_SIGNATURE
        self._current = 2 if held else 1  # by the signatures, whatever runs
        self._update = AmebaUpdate(self._flash, self._layout, self._current, context.pace)

    async def take(self, read: Read) -> None:
        """Take what `read` gives until the update is over. Raises `Restart` after a good one."""
        receiver = AnchorotaReceiver()
        while not receiver.is_done:
            data = await read()
            for event in list(receiver.feed(data) if data else receiver.end_of_stream()):
                await self._obey(event)

    async def _obey(self, event: ReceiverEvent) -> None:
        match event:
            case EraseTarget(length):
                text = f"an image of {length} bytes for OTA{self._update.target}"
                self._context.tell(EventKind.OFFER, text, size=length)
                await self._update.erase(length)
            case BodyBytes(offset, data):
                await self._update.write(offset, data)
            case ImageComplete():
                await self._finish(event)
            case ReceiverFailed(reason):
                self._give_back()
                self._context.tell(EventKind.UPDATE_FAILED, f"the update failed: {reason}", reason=reason)

    async def _finish(self, image: ImageComplete) -> None:
        context, base = self._context, self._update.target_address
        await context.pace.spend(image.length / READ_BYTES_PER_S)
        found = byte_sum(self._flash.read(base, min(image.length, self._flash.size - base)))
        if found != image.checksum:
            self._give_back()
            sums = f"calculated 0x{found:x}, announced 0x{image.checksum:x}"
            context.tell(EventKind.UPDATE_FAILED, f"the sum is wrong: {sums}", reason="checksum")
            return
        context.tell(EventKind.VERIFIED, "the sum of the image is right")
        self._flash.program(base, IMAGE2_SIGNATURE)
        self._flash.program(self._layout.slot_offset(self._current), CLEARED_WORD)
        await context.pace.pay()
        target = self._update.target
        context.tell(EventKind.INSTALLED, f"OTA{target} has the new image", slot=f"ota{target}")
        await context.pace.spend(REBOOT_AFTER_S)
        raise Restart(ResetReason.SOFTWARE, "to start the update")

    def _give_back(self) -> None:
        """Break the new signature and write the old one again, as the sketch does when anything failed."""
        self._flash.program(self._update.target_address, CLEARED_WORD)
        self._flash.program(self._layout.slot_offset(self._current), IMAGE2_SIGNATURE)
