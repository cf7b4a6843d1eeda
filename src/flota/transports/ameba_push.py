"""Push a file to an AmebaD board over TCP: one connection, one file, and not a word back.

The shell around `flota.protocols.ameba_push`. It keeps reading while it sends, because the device's close is the only
thing that it will ever hear. Progress is what the device's TCP has acknowledged, where the system tells.
Source: docs/reference/ameba-push.md, "On the wire".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from flota.protocols.ameba_push import STALL_LIMIT_S, PushRecord, PushStage, push_stream_start
from flota.protocols.ameba_push.sender import CLOSE_LIMIT_S, CONNECT_LIMIT_S

DISCARD_SIZE: Final = 4096
SIOCOUTQ: Final = 0x5411
"""Linux: how many bytes of a TCP socket are not acknowledged yet (tcp(7), SIOCOUTQ)."""

Progress = Callable[[int, int], None]
"""(bytes of the file that arrived as far as is known, bytes in all)."""

StageListener = Callable[[PushStage, int], None]
"""(stage reached, file descriptor of the socket); hears of `NOT_CONNECTED` when there is a socket."""


@dataclass(frozen=True, slots=True)
class PushLimits:
    """How long to wait, in seconds: for the connection, for any progress, and for the close after the last byte."""

    connect_s: float = CONNECT_LIMIT_S
    stall_s: float = STALL_LIMIT_S
    close_s: float = CLOSE_LIMIT_S


class PushConnection:
    """One push. `stage` rises as it goes; `run` returns the record and never raises for what the peer does."""

    def __init__(
        self,
        host: str,
        port: int,
        payload: bytes,
        *,
        limits: PushLimits | None = None,
        on_progress: Progress | None = None,
        on_stage: StageListener | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._payload = payload
        self._limits = limits or PushLimits()
        self._on_progress = on_progress
        self._on_stage = on_stage
        self._start = push_stream_start(payload)  # before the device is connected to: then it waits 3 s, not longer
        self._descriptor = -1
        self.stage = PushStage.NOT_CONNECTED
        self._handed = 0
        self._reset = False
        self._trouble: str | None = None

    async def run(self) -> PushRecord:
        """Connect, send everything, wait for the device to close; return how far it came."""
        loop = asyncio.get_running_loop()
        connection = await self._connect()
        if connection is None:
            return self._record()
        with connection:
            self._reach(PushStage.CONNECTED)
            closed = asyncio.ensure_future(self._read_until_closed(connection))
            sending = asyncio.ensure_future(self._send(connection))
            try:
                await asyncio.wait({closed, sending}, return_when=asyncio.FIRST_COMPLETED)
                if not sending.done() or self.stage is not PushStage.ALL_SENT:
                    return self._record(unacknowledged=_unacknowledged(connection))
                return await self._wait_for_close(connection, closed, loop.time())
            finally:
                for task in (closed, sending):
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task

    async def _connect(self) -> socket.socket | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._limits.connect_s):
                family, kind, protocol, _, address = await _resolved(loop, self._host, self._port)
                connection = socket.socket(family, kind, protocol)
                self._descriptor = connection.fileno()
                self._reach(PushStage.NOT_CONNECTED)
                try:
                    connection.setblocking(False)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    await loop.sock_connect(connection, address)
                except BaseException:
                    connection.close()
                    raise
        except TimeoutError:
            self._trouble = f"no answer within {self._limits.connect_s:g} s"
        except OSError as error:
            self._trouble = _said_by(error)
        except UnicodeError:
            self._trouble = "not a host name"
        else:
            return connection
        return None

    async def _send(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._limits.stall_s):
                await loop.sock_sendall(connection, self._start)
            self._reach(PushStage.INFO_SENT)
            await self._send_payload(loop, connection)
            self._reach(PushStage.ALL_SENT)
        except TimeoutError:
            self._trouble = f"the device took nothing for {self._limits.stall_s:g} s"
        except OSError as error:
            self._reset = isinstance(error, ConnectionResetError | BrokenPipeError)
            self._trouble = _said_by(error)

    async def _send_payload(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        """Hand over whatever the system takes, whenever it takes any. Raises `TimeoutError` or `OSError`.

        Smaller pieces, a task or a timer for each of them cost a third of the speed.
        """
        view = memoryview(self._payload)
        if not view:
            return
        ended: asyncio.Future[None] = loop.create_future()
        progressed_at = loop.time()

        def hand_over() -> None:
            nonlocal progressed_at
            try:
                self._handed += connection.send(view[self._handed :])
            except BlockingIOError:
                return
            except OSError as error:
                if not ended.done():
                    ended.set_exception(error)
                return
            progressed_at = loop.time()
            self._tell_progress(connection)
            if self._handed == len(view) and not ended.done():
                ended.set_result(None)

        loop.add_writer(connection, hand_over)
        try:
            while not ended.done():
                left_s = progressed_at + self._limits.stall_s - loop.time()
                if left_s <= 0:
                    raise TimeoutError
                await asyncio.wait({ended}, timeout=left_s)
            ended.result()
        finally:
            loop.remove_writer(connection)
            ended.cancel()

    async def _read_until_closed(self, connection: socket.socket) -> None:
        """Return when the device has closed; whatever it says is thrown away, as the vendor's sender does."""
        loop = asyncio.get_running_loop()
        try:
            while await loop.sock_recv(connection, DISCARD_SIZE):
                pass
        except OSError as error:
            self._reset = True
            self._trouble = self._trouble or _said_by(error)

    async def _wait_for_close(
        self, connection: socket.socket, closed: asyncio.Future[None], sent_at: float
    ) -> PushRecord:
        """Wait for the device's close, for as long as it still takes bytes and `close_s` after that."""
        loop = asyncio.get_running_loop()
        waiting_since, left_before = sent_at, -1
        while loop.time() - waiting_since < self._limits.close_s:
            done, _ = await asyncio.wait({closed}, timeout=min(0.25, self._limits.close_s))
            left = _unacknowledged(connection)
            self._tell_progress(connection)
            if done:
                self._reach(PushStage.CLOSED)
                return self._record(closed_after_s=loop.time() - waiting_since, unacknowledged=left)
            if left is not None and left != left_before and left > 0:
                waiting_since, left_before = loop.time(), left
        return self._record(unacknowledged=_unacknowledged(connection))

    def _reach(self, stage: PushStage) -> None:
        self.stage = stage
        if self._on_stage is not None:
            self._on_stage(stage, self._descriptor)

    def _tell_progress(self, connection: socket.socket) -> None:
        if self._on_progress is not None:
            arrived = max(0, self._handed - (_unacknowledged(connection) or 0))
            self._on_progress(arrived, len(self._payload))

    def _record(self, *, closed_after_s: float | None = None, unacknowledged: int | None = None) -> PushRecord:
        return PushRecord(
            stage=self.stage,
            sent=self._handed,
            total=len(self._payload),
            closed_after_s=closed_after_s,
            unacknowledged=unacknowledged,
            reset=self._reset,
            trouble=self._trouble,
        )


async def push(
    host: str,
    port: int,
    payload: bytes,
    *,
    limits: PushLimits | None = None,
    on_progress: Progress | None = None,
) -> PushRecord:
    """Push `payload` to the board at `host`:`port`; returns what happened (`judge_push` says what it means)."""
    return await PushConnection(host, port, payload, limits=limits, on_progress=on_progress).run()


async def _resolved(loop: asyncio.AbstractEventLoop, host: str, port: int) -> tuple[Any, ...]:
    """Return the first address of a host; a numeric one is not asked of a resolver, which would cost a thread."""
    with contextlib.suppress(OSError, UnicodeError):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return found[0]


def _said_by(error: OSError) -> str:
    """Return the system's own words: asyncio puts addresses into some of them."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return error.strerror or str(error)


def _unacknowledged(connection: socket.socket) -> int | None:
    """Return how many bytes the peer's TCP has not acknowledged, None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    import fcntl

    try:
        answer = fcntl.ioctl(connection.fileno(), SIOCOUTQ, struct.pack("i", 0))
    except OSError:
        return None
    return int(struct.unpack("i", answer)[0])
