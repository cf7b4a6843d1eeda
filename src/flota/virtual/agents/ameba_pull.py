"""Agents of AmebaD apps that fetch for themselves: by HTTP, and from a computer that listens, ordered on the console.

Source: docs/reference/ameba-push.md, "Pulling by TCP", "Pulling over HTTP"; ambiot/ambd_sdk: rtl8721d_ota.c.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from flota.protocols.ameba_http import pack_pull_request
from flota.protocols.ameba_pull import ConsoleCommand, PullReceiver, UpdateOrder, parse_update_order
from flota.protocols.ameba_push.receiver import READ_SIZE
from flota.protocols.malformed import MalformedMessage
from flota.virtual.agents.ameba_update import HTTP_TASK, LOCAL_TASK, REBOOT_AFTER_S, Read, UpdateTask
from flota.virtual.device import AppContext
from flota.virtual.events import EventKind
from flota.virtual.slots import ResetReason, Restart

CONNECT_LIMIT_S: Final = 20.0
"""How long the device's TCP stack tries to connect (ours; wall clock)."""

HTTP_UPDATE_TASK: Final = "[http_update_ota_task]"
OTA_FINISHED: Final = "OTA is finished. Please reset device."
TASK_RUNS: Final = "Update task has created."

ORDERS_WAITING_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class PullSource:
    """What an app was built with: the server's host and TCP port, and the resource without its leading slash.

    `own_address` is the device's, None = whatever the system takes: on loopback it tells boards apart.
    """

    host: str
    port: int
    resource: str = ""
    own_address: str | None = None


class HttpUpdateOtaAgent:
    """An app that calls `http_update_ota` once when it was switched on or reset by its button, and never else.

    What it fetches it installs, whatever version that is; after the restart that an update makes it rests.
    """

    def __init__(self, source: PullSource) -> None:
        self._source = source

    async def run(self, context: AppContext) -> None:
        """Fetch once; ends by `Restart` after a good update."""
        if context.reset_reason in {ResetReason.POWER_ON, ResetReason.EXTERNAL} and await pull(context, self._source):
            context.tell(EventKind.SERIAL, f"{HTTP_UPDATE_TASK} Ready to reboot")
            await context.pace.spend(REBOOT_AFTER_S)
            raise Restart(ResetReason.SOFTWARE, "the update's reset")
        await context.pace.wait_for_ever()


async def pull(context: AppContext, source: PullSource) -> bool:
    """Be `http_update_ota`: fetch and install; returns whether the new image was chosen for the next boot."""
    try:
        async with connected(source.host, source.port, source.own_address) as link:
            request = pack_pull_request(source.host, source.resource)
            await asyncio.get_running_loop().sock_sendall(link, request)
            return await UpdateTask(context, kind=HTTP_TASK).take(reading(link), PullReceiver())
    except (OSError, TimeoutError) as error:
        text = f"cannot fetch from {source.host}:{source.port}: {error.strerror or str(error) or 'no answer'}"
        context.tell(EventKind.UPDATE_FAILED, text, reason="connection")
        return False


class LocalUpdateAgent:
    """The SDK's console with `update_ota_local`: takes orders such as `ATWO=10.0.0.1[8082]` as long as the app runs.

    `orders` are the lines that somebody types. One update at a time, without any time-out: a server that stalls blocks
    it for ever. Nothing restarts the board; the reset button does.
    """

    def __init__(self, orders: asyncio.Queue[str], *, own_address: str | None = None) -> None:
        self._orders = orders
        self._own_address = own_address

    async def run(self, context: AppContext) -> None:
        """Obey the console."""
        task: asyncio.Task[None] | None = None
        try:
            while True:
                ordered = asyncio.ensure_future(self._orders.get())
                waiting: set[asyncio.Future[Any]] = {ordered} if task is None else {ordered, task}
                try:
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    if task is not None and task.done():
                        task.result()
                        task = None
                    if not ordered.done():
                        continue
                    order = self._read(context, ordered.result())
                finally:
                    ordered.cancel()
                if order is None:
                    continue
                if task is not None:
                    context.tell(EventKind.SERIAL, TASK_RUNS)
                    continue
                task = asyncio.ensure_future(self._update(context, order))
        finally:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def _read(self, context: AppContext, line: str) -> UpdateOrder | None:
        try:
            order = parse_update_order(line)
        except MalformedMessage as error:
            if line.strip().startswith(f"{ConsoleCommand.ATSO.value}="):
                context.tell(EventKind.SERIAL, "[ATSO] ERROR:1")
            else:
                context.tell(EventKind.TROUBLE, f"console: {error}")
            return None
        if order.command is ConsoleCommand.ATSO:
            context.tell(EventKind.SERIAL, "[ATSO] OK")
        return order

    async def _update(self, context: AppContext, order: UpdateOrder) -> None:
        task = UpdateTask(context, kind=LOCAL_TASK)
        task.say("Update task start")
        installed = False
        try:
            async with connected(order.host, order.port, self._own_address) as link:
                installed = await task.take(reading(link))
        except (OSError, TimeoutError) as error:
            text = f"cannot fetch from {order.host}:{order.port}: {error.strerror or str(error) or 'no answer'}"
            context.tell(EventKind.UPDATE_FAILED, text, reason="connection")
        task.say("Update task exit")
        if installed:
            context.tell(EventKind.SERIAL, OTA_FINISHED)


@contextlib.asynccontextmanager
async def connected(host: str, port: int, own_address: str | None) -> AsyncIterator[socket.socket]:
    """Give a connection to a server. Raises `OSError` or `TimeoutError`."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_LIMIT_S):
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise OSError(f"not a host name: {error}") from error
        family, kind, protocol, _, address = found[0]
        link = socket.socket(family, kind, protocol)
        try:
            link.setblocking(False)
            if own_address is not None:
                link.bind((own_address, 0))
            await loop.sock_connect(link, address)
        except BaseException:
            link.close()
            raise
    with link:
        yield link


def reading(link: socket.socket) -> Read:
    """Return what reads the next bytes as the device does: at most 512, None when the link broke; no time-out."""
    loop = asyncio.get_running_loop()

    async def read() -> bytes | None:
        try:
            return await loop.sock_recv(link, READ_SIZE)
        except OSError:
            return None

    return read
