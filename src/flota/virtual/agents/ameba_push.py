"""The agent of an AmebaD app: the Arduino library's `beginOTA`, once per boot, with its serial lines.

It announces itself, waits for one connection, takes one update, and is deaf afterwards until the board is reset.
Source: docs/reference/ameba-push.md, "The device"; Ameba-AIoT/ameba-arduino-d: OTA.cpp, OTA_Basic.ino.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from flota.images.ameba.flash_map import FLASH_BASE
from flota.protocols.ameba_push import (
    BodyBytes,
    EraseTarget,
    ImageComplete,
    PushReceiver,
    ReceiverEvent,
    ReceiverFailed,
    SerialLine,
    UndefinedBehaviour,
)
from flota.protocols.ameba_push.receiver import READ_SIZE, RECEIVE_LIMIT_S
from flota.virtual.ameba_board import AmebaSlots, slot_number
from flota.virtual.ameba_ota import AmebaUpdate
from flota.virtual.device import AppContext
from flota.virtual.events import EventKind
from flota.virtual.slots import ResetReason, Restart

REBOOT_AFTER_S: Final = 0.15
"""A delay of 100 ticks, then a watchdog of 50 ms."""

BACKLOG: Final = 10
RECEIVE_WINDOW_BYTES: Final = 16 * 1024
"""The device reads nothing while it erases: what waits in its stack is small."""

Announce = Callable[[AppContext, str, int], AbstractAsyncContextManager[object]]
"""Make the app known on the network, for as long as the context is open; gets the host and port that take updates."""


@dataclass(frozen=True, slots=True)
class PushSettings:
    """`host` and `port` to listen on; port 0 takes a free one. `modern_log`: lines that cores print since 10/2024."""

    host: str = "127.0.0.1"
    port: int = 8082
    modern_log: bool = True
    legacy_target_bug: bool = False
    receive_limit_s: float = RECEIVE_LIMIT_S


def silent(_context: AppContext, _host: str, _port: int) -> AbstractAsyncContextManager[None]:
    """Announce nothing."""
    return contextlib.nullcontext()


class AmebaPushAgent:
    """Runs as long as the app does; `on_listening` hears of the address once it can be connected to."""

    def __init__(
        self,
        settings: PushSettings | None = None,
        *,
        announce: Announce = silent,
        on_listening: Callable[[str, int], None] | None = None,
    ) -> None:
        self._settings = settings or PushSettings()
        self._announce = announce
        self._on_listening = on_listening

    async def run(self, context: AppContext) -> None:
        """Do one update; whatever comes of it, nothing more happens until a reset."""
        with self._listen() as listener:
            port = listener.getsockname()[1]
            async with self._announce(context, self._settings.host, port):
                self._say(context, "Alloc buffer Init", "Alloc buffer Succeed")
                self._say(context, "<Arduino>", f"Listening on port {port}.", "Waiting for client ...")
                if self._on_listening is not None:
                    self._on_listening(*listener.getsockname()[:2])
                loop = asyncio.get_running_loop()
                connection, peer = await loop.sock_accept(listener)
                with connection:
                    await self._update(context, connection, peer)
                self._say(context, "Update task exit")
        await context.pace.wait_for_ever()

    def _listen(self) -> socket.socket:
        settings = self._settings
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_WINDOW_BYTES)
            listener.setblocking(False)
            listener.bind((settings.host, settings.port))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener

    async def _update(self, context: AppContext, connection: socket.socket, peer: tuple[str, int]) -> None:
        connection.setblocking(False)
        self._serial(context, "[ota_accept_socket] [INFO] Accept connection successfully")
        self._say(context, "OTA server connected to this client :", f"[PORT]: {peer[1]}", f"[IP]:{peer[0]}")
        slots = context.slots
        assert isinstance(slots, AmebaSlots)
        hardware = slots.hardware
        update = AmebaUpdate(
            hardware.flash,
            hardware.layout,
            slot_number(slots.running.slot),
            context.pace,
            legacy_target_bug=self._settings.legacy_target_bug,
        )
        self._serial(context, f"[syncOTAAddr] OTA_INDEX_{update.target - 1} will be upgraded")
        if self._settings.modern_log:
            self._say(context, f"Current index = {update.running}, Target index = {update.target}")
        receiver = PushReceiver()
        while not receiver.is_done:
            await self._obey(context, update, await self._next_events(connection, receiver))

    async def _next_events(self, connection: socket.socket, receiver: PushReceiver) -> Iterable[ReceiverEvent]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._settings.receive_limit_s):
                data = await loop.sock_recv(connection, READ_SIZE)
        except (TimeoutError, OSError):  # a reset link is an error of the read, as a time-out is
            return list(receiver.timed_out())
        return list(receiver.feed(data) if data else receiver.end_of_stream())

    async def _obey(self, context: AppContext, update: AmebaUpdate, events: Iterable[ReceiverEvent]) -> None:
        for event in events:
            match event:
                case SerialLine(text):
                    self._serial(context, text)
                case EraseTarget(length):
                    self._say(context, "\tErase is ongoing...")
                    if self._settings.modern_log:
                        self._say(context, f"Erasing OTA target flash index {update.target}...")
                    context.tell(EventKind.OFFER, f"an image of {length} bytes for OTA{update.target}", size=length)
                    await update.erase(length)
                case BodyBytes(offset, data):
                    await update.write(offset, data)
                case ImageComplete():
                    await self._finish(context, update, event)
                case ReceiverFailed(reason):
                    context.tell(EventKind.UPDATE_FAILED, f"the update failed: {reason}", reason=reason)
                case UndefinedBehaviour(reason):
                    context.tell(EventKind.TROUBLE, f"the device's memory is overrun: {reason}", reason=reason)
                    await context.pace.wait_for_ever()

    async def _finish(self, context: AppContext, update: AmebaUpdate, image: ImageComplete) -> None:
        address = f"{FLASH_BASE + update.target_address:08x}"
        self._say(context, f"Update file size: {image.written} bytes, start addr:{address}")
        self._say(context, "Download new firmware done")
        check = await update.add_up(image.length, image.signature, image.checksum)
        if not check.holds:
            self._serial(context, f"OTA image({address}) checksum error!!!")
            sums = f"Calculated checksum 0x{check.calculated:x}, host checksum 0x{check.expected:x}"
            self._serial(context, sums)
            context.tell(EventKind.UPDATE_FAILED, f"the sum is wrong: {sums}", reason="checksum")
            return
        self._serial(context, f"OTA image({address}) checksum ok!!!")
        context.tell(EventKind.VERIFIED, "the sum of the image is right")
        await update.switch(image.signature)
        self._serial(context, "[change_ota_signature] Update OTA success!")
        self._say(context, "Update OTA signature done", "Ready to reboot", "Update task exit")
        context.tell(EventKind.INSTALLED, f"OTA{update.target} has the new image", slot=f"ota{update.target}")
        await context.pace.spend(REBOOT_AFTER_S)
        raise Restart(ResetReason.WATCHDOG, "the update's watchdog reset")

    def _say(self, context: AppContext, *texts: str) -> None:
        for text in texts:
            self._serial(context, f"[beginOTA] {text}")

    def _serial(self, context: AppContext, text: str) -> None:
        context.tell(EventKind.SERIAL, text)
