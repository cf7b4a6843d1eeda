"""The agent of an AmebaD app: the Arduino library's `beginOTA`, once per boot, with its serial lines.

It announces itself, waits for one connection, takes one update, and is deaf afterwards until the board is reset.
Source: docs/reference/ameba-push.md, "The device"; Ameba-AIoT/ameba-arduino-d: OTA.cpp, OTA_Basic.ino.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final

from flota.protocols.ameba_push.receiver import READ_SIZE, RECEIVE_LIMIT_S
from flota.virtual.agents.ameba_update import BEGIN_OTA, Read, UpdateTask
from flota.virtual.device import AppContext
from flota.virtual.events import EventKind

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
        try:
            bound = self._listen()
        except OSError as error:
            self.say(context, "Alloc buffer Init", "Alloc buffer Succeed", "[Error] Socket connect failed")
            context.tell(EventKind.SERIAL, "[ota_accept_socket] [ERROR] Accept connection failed")
            self.say(context, "Update task exit")
            where = f"{self._settings.host}:{self._settings.port}"
            context.tell(EventKind.TROUBLE, f"cannot listen on {where}: {error.strerror or error}")
            await context.pace.wait_for_ever()
            return
        with bound as listener:
            port = listener.getsockname()[1]
            async with self._announce(context, self._settings.host, port):
                self.say(context, "Alloc buffer Init", "Alloc buffer Succeed")
                self.say(context, "<Arduino>", f"Listening on port {port}.", "Waiting for client ...")
                if self._on_listening is not None:
                    self._on_listening(*listener.getsockname()[:2])
                loop = asyncio.get_running_loop()
                connection, peer = await loop.sock_accept(listener)
                with connection:
                    await self._update(context, connection, peer)
                self.say(context, "Update task exit")
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
        context.tell(EventKind.SERIAL, "[ota_accept_socket] [INFO] Accept connection successfully")
        self.say(context, "OTA server connected to this client :", f"[PORT]: {peer[1]}", f"[IP]:{peer[0]}")
        await self.take(context, partial(self.read, connection))

    async def take(self, context: AppContext, read: Read) -> None:
        """Take one update. Raises `Restart` after a good one."""
        settings = self._settings
        task = UpdateTask(context, modern_log=settings.modern_log, legacy_target_bug=settings.legacy_target_bug)
        await task.take(read)

    async def read(self, connection: socket.socket) -> bytes | None:
        """Return the next bytes, b"" after the peer's close, None after silence or an error of the link."""
        try:
            async with asyncio.timeout(self._settings.receive_limit_s):
                return await asyncio.get_running_loop().sock_recv(connection, READ_SIZE)
        except (TimeoutError, OSError):  # a reset link is an error of the read, as a time-out is
            return None

    def say(self, context: AppContext, *texts: str) -> None:
        """Tell lines on the serial console, with the library's prefix."""
        for text in texts:
            context.tell(EventKind.SERIAL, f"{BEGIN_OTA} {text}")
