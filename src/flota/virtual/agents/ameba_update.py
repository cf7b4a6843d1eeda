"""One update as the vendor's library takes it, wherever its bytes come from: the events of the receiver, obeyed.

Source: docs/reference/ameba-push.md, "The device"; Ameba-AIoT/ameba-arduino-d: OTA.cpp;
ambiot/ambd_sdk: rtl8721d_ota.c.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from flota.images.ameba.flash_map import FLASH_BASE
from flota.protocols.ameba_pull import EraseSector, PullEvent
from flota.protocols.ameba_push import (
    BodyBytes,
    EraseTarget,
    ImageComplete,
    PushReceiver,
    ReceiverFailed,
    SerialLine,
    UndefinedBehaviour,
)
from flota.virtual.ameba_board import AmebaSlots, slot_number
from flota.virtual.ameba_ota import AmebaUpdate
from flota.virtual.device import AppContext
from flota.virtual.events import EventKind
from flota.virtual.slots import ResetReason, Restart

REBOOT_AFTER_S: Final = 0.15
"""A delay of 100 ticks, then a watchdog of 50 ms."""

BEGIN_OTA: Final = "[beginOTA]"
"""What the Arduino library puts before its lines."""

Read = Callable[[], Awaitable[bytes | None]]
"""The next bytes; b"" when the peer has closed, None after the time-out or an error of the link."""


@dataclass(frozen=True, slots=True)
class TaskKind:
    """Which of the vendor's update tasks it is.

    `prefix` stands before the lines that are the task's own. `restarts`: the board is reset after a good update; where
    it is not, that is left to others. `tells_index`: the target is told as the Arduino library tells it.
    """

    prefix: str
    restarts: bool = True
    tells_index: bool = True


ARDUINO_TASK: Final = TaskKind(BEGIN_OTA)
LOCAL_TASK: Final = TaskKind("[ota_update_local_task]", restarts=False, tells_index=False)
"""The SDK's `update_ota_local`."""

HTTP_TASK: Final = TaskKind("[http_update_ota]", restarts=False, tells_index=False)
"""The SDK's `http_update_ota`; whoever calls it resets the board."""


class Receiver(Protocol):
    """How a task reads its stream."""

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be read."""

    def feed(self, data: bytes) -> Iterable[PullEvent]:
        """Yield what the device does with the next bytes."""

    def end_of_stream(self) -> Iterable[PullEvent]:
        """Yield what it does when the peer has closed."""


class UpdateTask:
    """Takes one update in an app's life and tells its serial lines."""

    def __init__(
        self,
        context: AppContext,
        *,
        kind: TaskKind = ARDUINO_TASK,
        modern_log: bool = True,
        legacy_target_bug: bool = False,
    ) -> None:
        slots = context.slots
        assert isinstance(slots, AmebaSlots)
        hardware = slots.hardware
        self._context = context
        self._kind = kind
        self._modern_log = modern_log and kind.tells_index
        self._installed = False
        self._update = AmebaUpdate(
            hardware.flash,
            hardware.layout,
            slot_number(slots.running.slot),
            context.pace,
            legacy_target_bug=legacy_target_bug,
        )

    async def take(self, read: Read, receiver: Receiver | None = None) -> bool:
        """Take what `read` gives until the update is over; returns whether the new image was chosen.

        `receiver` None: the stream of a push. Raises `Restart` after a good update of a task that resets the board.
        """
        if self._kind.tells_index:
            self._serial(f"[syncOTAAddr] OTA_INDEX_{self._update.target - 1} will be upgraded")
        else:
            self.say(f"OTA{self._update.target} address space will be upgraded")
        if self._modern_log:
            self.say(f"Current index = {self._update.running}, Target index = {self._update.target}")
        receiver = receiver or PushReceiver()
        while not receiver.is_done:
            data = await read()
            if data:
                events = list(receiver.feed(data))
            elif data is None and isinstance(receiver, PushReceiver):
                events = list(receiver.timed_out())
            else:
                events = list(receiver.end_of_stream())
            await self._obey(events)
        return self._installed

    def say(self, *texts: str) -> None:
        """Tell lines with the task's prefix."""
        for text in texts:
            self._serial(f"{self._kind.prefix} {text}")

    async def _obey(self, events: Iterable[PullEvent]) -> None:
        context, update = self._context, self._update
        for event in events:
            match event:
                case SerialLine(text):
                    self._serial(text.replace(BEGIN_OTA, self._kind.prefix))
                case EraseTarget(length):
                    self.say("\tErase is ongoing..." if self._kind.tells_index else "Erase is ongoing...")
                    if self._modern_log:
                        self.say(f"Erasing OTA target flash index {update.target}...")
                    context.tell(EventKind.OFFER, f"an image of {length} bytes for OTA{update.target}", size=length)
                    await update.erase(length)
                case EraseSector(offset):
                    await update.erase_sector(offset)
                case BodyBytes(offset, data):
                    await update.write(offset, data)
                case ImageComplete():
                    await self._finish(event)
                case ReceiverFailed(reason):
                    context.tell(EventKind.UPDATE_FAILED, f"the update failed: {reason}", reason=reason)
                case UndefinedBehaviour(reason):
                    context.tell(EventKind.TROUBLE, f"the device's memory is overrun: {reason}", reason=reason)
                    await context.pace.wait_for_ever()

    async def _finish(self, image: ImageComplete) -> None:
        context, update = self._context, self._update
        address = f"{FLASH_BASE + update.target_address:08x}"
        self.say(f"Update file size: {image.written} bytes, start addr:{address}")
        self.say("Download new firmware done")
        check = await update.add_up(image.length, image.signature, image.checksum)
        if not check.holds:
            self._serial(f"OTA image({address}) checksum error!!!")
            sums = f"Calculated checksum 0x{check.calculated:x}, host checksum 0x{check.expected:x}"
            self._serial(sums)
            context.tell(EventKind.UPDATE_FAILED, f"the sum is wrong: {sums}", reason="checksum")
            return
        self._serial(f"OTA image({address}) checksum ok!!!")
        context.tell(EventKind.VERIFIED, "the sum of the image is right")
        await update.switch(image.signature)
        self._serial("[change_ota_signature] Update OTA success!")
        self.say("Update OTA signature done")
        context.tell(EventKind.INSTALLED, f"OTA{update.target} has the new image", slot=f"ota{update.target}")
        self._installed = True
        if not self._kind.restarts:
            return
        self.say("Ready to reboot", "Update task exit")
        await context.pace.spend(REBOOT_AFTER_S)
        raise Restart(ResetReason.WATCHDOG, "the update's watchdog reset")

    def _serial(self, text: str) -> None:
        self._context.tell(EventKind.SERIAL, text)
