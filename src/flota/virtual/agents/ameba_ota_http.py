"""The agent of the vendor's example `OTA_Http`: posts its state, waits for a trigger, fetches over HTTP.

Three things run beside one another, as the example's threads do: the post about every 3.5 s, the listener that is
looked at every 10 s, and the download. After a failed download the state stays where it is until a reset.
Source: docs/reference/ameba-push.md, "Pulling over HTTP"; Ameba-AIoT/ameba-arduino-d: OTA.cpp, OTA_Http.ino.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from flota.protocols.ameba_http import (
    TRIGGER,
    TRIGGER_PORT,
    UI_PORT,
    UPLOAD_PATH,
    OtaState,
    StatePost,
    pack_state_request,
)
from flota.virtual.agents.ameba_pull import PullSource, connected, pull
from flota.virtual.agents.ameba_push import Announce, silent
from flota.virtual.agents.ameba_update import REBOOT_AFTER_S
from flota.virtual.device import AppContext
from flota.virtual.events import EventKind
from flota.virtual.slots import ResetReason, Restart

POST_PERIOD_S: Final = 3.5
POST_WAIT_S: Final = 0.5
"""How long the device waits for an answer that it does not read."""

LOOK_PERIOD_S: Final = 10.0
TRIGGER_READ_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class OtaHttpSettings:
    """The server (host, TCP port), where the trigger is listened for (port 0 takes a free one).

    `tells_version`: the app adds its version to the post, which the vendor's example does not.
    """

    server_host: str
    server_port: int = UI_PORT
    host: str = "127.0.0.1"
    port: int = TRIGGER_PORT
    tells_version: bool = False


class OtaHttpAgent:
    """Runs as long as the app does; `on_listening` hears of the trigger's address once it can be connected to."""

    def __init__(
        self,
        settings: OtaHttpSettings,
        *,
        announce: Announce = silent,
        on_listening: Callable[[str, int], None] | None = None,
    ) -> None:
        self._settings = settings
        self._announce = announce
        self._on_listening = on_listening

    async def run(self, context: AppContext) -> None:
        """Live; ends by `Restart` after a good update."""
        life = _Life(context, self._settings)
        settings = self._settings
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            try:
                listener.bind((settings.host, settings.port))
                listener.listen()
            except OSError as error:
                where = f"{settings.host}:{settings.port}"
                context.tell(EventKind.TROUBLE, f"cannot listen on {where}: {error.strerror or error}")
                await context.pace.wait_for_ever()
            host, port = listener.getsockname()[:2]
            if self._on_listening is not None:
                self._on_listening(host, port)
            async with self._announce(context, host, port):
                await _first_to_end(life.keep_posting(), life.keep_looking(listener))


class _Life:
    """What the threads of one boot share."""

    def __init__(self, context: AppContext, settings: OtaHttpSettings) -> None:
        self._context = context
        self._settings = settings
        self._state = OtaState.IDLE

    async def keep_posting(self) -> None:
        """Post the state for ever; a server that is not there is no trouble."""
        while True:
            await self.post()
            await self._context.pace.spend(POST_PERIOD_S)

    async def post(self) -> None:
        """Post the state once."""
        settings = self._settings
        version = self._context.slots.running.version if settings.tells_version else None
        with contextlib.suppress(OSError, TimeoutError):
            async with connected(settings.server_host, settings.server_port, _own(settings.host)) as link:
                request = pack_state_request(settings.server_host, StatePost(self._state.value, version))
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(link, request)
                async with asyncio.timeout(POST_WAIT_S):
                    await loop.sock_recv(link, 1)

    async def keep_looking(self, listener: socket.socket) -> None:
        """Look for somebody who connected, echo what he says, and fetch when it is the trigger."""
        loop = asyncio.get_running_loop()
        while True:
            link, _ = await loop.sock_accept(listener)
            await self._context.pace.spend(LOOK_PERIOD_S * self._context.rng.random())
            with link:
                said = await _echoed(link)
            if TRIGGER not in said:
                continue
            if self._state is not OtaState.IDLE:
                self._context.tell(EventKind.TROUBLE, f"a trigger is ignored in state {self._state.value}")
                continue
            await self._download()

    async def _download(self) -> None:
        settings, context = self._settings, self._context
        self._state = OtaState.DOWNLOADING
        await self.post()
        resource = UPLOAD_PATH.removeprefix("/")
        source = PullSource(settings.server_host, settings.server_port, resource, _own(settings.host))
        good = await pull(context, source)
        self._state = OtaState.COMPLETED
        await self.post()
        if good:
            self._state = OtaState.REBOOT
            await self.post()
            await context.pace.spend(REBOOT_AFTER_S)
            raise Restart(ResetReason.WATCHDOG, "the update's watchdog reset")


async def _echoed(link: socket.socket) -> bytes:
    """Return what a peer says, sent back to it as it is; nothing if it says nothing."""
    loop = asyncio.get_running_loop()
    link.setblocking(False)
    try:
        async with asyncio.timeout(POST_PERIOD_S):
            said = await loop.sock_recv(link, TRIGGER_READ_BYTES)
            await loop.sock_sendall(link, said)
    except (OSError, TimeoutError):
        return b""
    return said


async def _first_to_end(*works: Coroutine[Any, Any, None]) -> None:
    """Run endless works side by side; what one raises ends them all."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Restart):
                await task


def _own(host: str) -> str | None:
    """Return the address that connections come from: the device's, unless it listens everywhere."""
    return None if host in {"0.0.0.0", "::"} else host  # noqa: S104 - compared, not bound
