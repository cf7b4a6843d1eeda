"""The agent of an ESP app with ArduinoOTA: it waits for an invitation by UDP and fetches the image by TCP.

Source: docs/reference/espota.md, "The device"; espressif/arduino-esp32:libraries/ArduinoOTA/src/ArduinoOTA.cpp.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from flota.errors import FlotaError
from flota.protocols.espota import (
    AUTHENTICATION_FAILED,
    DATAGRAM_MAX_BYTES,
    DEVICE_READ_SIZE,
    DEVICE_REPEATS,
    DEVICE_SILENCE_S,
    ESP32_PORT,
    OK,
    AuthProtocol,
    Invitation,
    PasswordHash,
    UpdateCommand,
    auth_holds,
    pack_nonce,
    parse_auth,
    parse_invitation,
)
from flota.virtual.device import AppContext
from flota.virtual.events import EventKind
from flota.virtual.slots import ResetReason, Restart, SlotWriter

RESTART_AFTER_S: Final = 0.1
CONNECT_LIMIT_S: Final = 3.0
MD5_FAILED: Final = "MD5 Check Failed"
NONCE_BYTES: Final = {AuthProtocol.MD5: 16, AuthProtocol.PBKDF2: 32}

Announce = Callable[[AppContext, str, int], AbstractAsyncContextManager[object]]
"""Make the app known on the network, for as long as the context is open; gets the host and UDP port."""

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class EspotaSettings:
    """Where to listen (UDP; port 0 takes a free one), and what is asked of a sender.

    `auth` is the protocol of the core: MD5 before 3.3.1, PBKDF2 since; `stored_as` how the sketch gives its password.
    """

    host: str = "127.0.0.1"
    port: int = ESP32_PORT
    password: str | None = None
    auth: AuthProtocol = AuthProtocol.PBKDF2
    stored_as: PasswordHash = PasswordHash.SHA256
    silence_s: float = DEVICE_SILENCE_S


def silent(_context: AppContext, _host: str, _port: int) -> AbstractAsyncContextManager[None]:
    """Announce nothing."""
    return contextlib.nullcontext()


class EspotaAgent:
    """Waits for ever, one invitation after another; `on_listening` hears of the address once it can be asked."""

    def __init__(
        self,
        settings: EspotaSettings | None = None,
        *,
        announce: Announce = silent,
        on_listening: Callable[[str, int], None] | None = None,
    ) -> None:
        self._settings = settings or EspotaSettings()
        self._announce = announce
        self._on_listening = on_listening

    async def run(self, context: AppContext) -> None:
        """Take invitations; ends by `Restart` when an update is in place."""
        settings = self._settings
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as link:
            link.setblocking(False)
            try:
                link.bind((settings.host, settings.port))
            except OSError as error:
                where = f"{settings.host}:{settings.port}"
                context.tell(EventKind.TROUBLE, f"cannot listen on UDP {where}: {error.strerror or error}")
                await context.pace.wait_for_ever()
            host, port = link.getsockname()[:2]
            async with self._announce(context, host, port):
                if self._on_listening is not None:
                    self._on_listening(host, port)
                while True:
                    await self._one_invitation(context, link)

    async def _one_invitation(self, context: AppContext, link: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        datagram, sender = await loop.sock_recvfrom(link, DATAGRAM_MAX_BYTES)
        invitation = parse_invitation(datagram)
        if invitation is None:
            return  # a device meets with silence what is no invitation
        if self._settings.password is not None:
            nonce = context.rng.randbytes(NONCE_BYTES[self._settings.auth]).hex()
            await loop.sock_sendto(link, pack_nonce(nonce), sender)
            datagram, sender = await loop.sock_recvfrom(link, DATAGRAM_MAX_BYTES)  # perhaps from another port
            answer = parse_auth(datagram, nonce)
            if answer is None:
                return
            if not auth_holds(self._settings.password, nonce, answer, stored_as=self._settings.stored_as):
                context.tell(EventKind.UPDATE_FAILED, "a sender does not know the password", reason="password")
                await loop.sock_sendto(link, AUTHENTICATION_FAILED, sender)
                return
        await loop.sock_sendto(link, OK, sender)
        await self._update(context, invitation, sender)

    async def _update(self, context: AppContext, invitation: Invitation, sender: Address) -> None:
        slots = context.slots
        slot = slots.next_slot()
        context.tell(EventKind.OFFER, f"{invitation.size} bytes offered for {slot}", size=invitation.size)
        if invitation.command != UpdateCommand.FIRMWARE or not 0 < invitation.size <= slots.capacity(slot):
            context.tell(EventKind.UPDATE_FAILED, "there is no room for it: the device does not connect", reason="size")
            return
        writer = await slots.begin(slot, invitation.size)
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in sender[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            try:
                async with asyncio.timeout(CONNECT_LIMIT_S):
                    await loop.sock_connect(connection, (sender[0], invitation.tcp_port))
                await self._fetch(context, connection, invitation, writer)
            except (FlotaError, OSError, TimeoutError) as error:
                writer.abandon()
                told = str(error) or "the sender is silent"
                context.tell(EventKind.UPDATE_FAILED, f"the update failed: {told}", reason=told)
                with contextlib.suppress(OSError):
                    await loop.sock_sendall(connection, f"{told}\r\n".encode())
                return
            except BaseException:
                writer.abandon()
                raise
            slots.set_boot(slot)
            await context.pace.pay()
            with contextlib.suppress(OSError):
                await loop.sock_sendall(connection, OK)
        context.tell(EventKind.INSTALLED, f"image in {slot}, chosen for the next boot", slot=slot)
        await context.pace.spend(RESTART_AFTER_S)
        raise Restart(ResetReason.SOFTWARE, "to start the update")

    async def _fetch(
        self, context: AppContext, connection: socket.socket, invitation: Invitation, writer: SlotWriter
    ) -> None:
        """Read the image, answering each read with its count. Raises `FlotaError`, `OSError` or `TimeoutError`."""
        loop = asyncio.get_running_loop()
        digest = hashlib.md5(usedforsecurity=False)
        left, last, repeats = invitation.size, 0, 0
        while left:
            try:
                async with asyncio.timeout(self._settings.silence_s):
                    data = await loop.sock_recv(connection, min(DEVICE_READ_SIZE, left))
            except TimeoutError:
                repeats += 1
                if repeats > DEVICE_REPEATS:
                    raise
                await loop.sock_sendall(connection, str(last).encode())
                continue
            if not data:
                raise FlotaError("the sender closed early", expected=f"{left} more bytes")
            repeats, last = 0, len(data)
            digest.update(data)
            await writer.write(data)
            left -= len(data)
            await loop.sock_sendall(connection, str(last).encode())
            done = invitation.size - left
            if done * 4 // invitation.size != (done - last) * 4 // invitation.size and left:
                context.tell(EventKind.PROGRESS, f"{done * 100 // invitation.size} %", done=done, of=invitation.size)
        if digest.hexdigest() != invitation.md5:
            raise FlotaError(MD5_FAILED)
        await writer.finish()
