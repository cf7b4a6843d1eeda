"""A serial line, and the one loop that runs a protocol machine on it: bytes in, deadlines, commands out.

`ByteLink` is all that the loop needs of a line, so that serialx can be replaced, and a pseudo-terminal does as well.
Source: docs/reference/blynk.md, "Line".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol, Self

import serialx

from flota.errors import PeerError
from flota.protocols.blynk.ncp import LinkCommand, SwitchRate

SHORTEST_WAIT_S: Final = 0.001
"""Between two looks at a machine's deadlines."""
ADAPTER_BYTES: Final = 16
"""A USB adapter says that all has left when the adapter has it: so many bytes, more than the answer to a change of
rate, may still go out at the old one. At 38400 baud that is 4 ms, of the 20 ms that the vendor's firmware gives us."""
BITS_A_BYTE: Final = 10
PSEUDO_TERMINALS: Final = ("/dev/pts/", "/dev/ttys")
"""Where the kernels of Linux and macOS keep them."""


class LineUnusable(PeerError):
    """The serial line cannot be opened, or cannot do what is asked of it."""

    code = "line-unusable"


class ByteLink(Protocol):
    """A line with two ends. What arrives and its loss are told to the callbacks that it was opened with."""

    def write(self, data: bytes) -> None:
        """Send bytes behind those that wait; returns at once. A lost line takes them and nothing happens."""

    async def set_baud(self, baud: int) -> None:
        """Wait until everything has left, then go on at another rate. Raises `LineUnusable`."""

    async def close(self) -> None:
        """Let the line go."""


class _Receiver(asyncio.Protocol):
    def __init__(self, on_data: Callable[[bytes], None], on_lost: Callable[[str], None]) -> None:
        self._on_data = on_data
        self._on_lost = on_lost

    def data_received(self, data: bytes) -> None:
        self._on_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost("it was closed" if exc is None else _said_by(exc))


class SerialLine:
    """A serial port of this machine: 8N1, no flow control, for us alone."""

    def __init__(self, path: str, transport: serialx.BaseSerialTransport, baud: int) -> None:
        self.path = path
        self._baud = baud
        self._transport = transport
        self._has_rate = not os.path.realpath(path).startswith(PSEUDO_TERMINALS)

    @classmethod
    async def open(
        cls, path: str, baud: int, *, on_data: Callable[[bytes], None], on_lost: Callable[[str], None]
    ) -> Self:
        """Return the opened port. `on_lost(reason)` is called once when it is gone. Raises `LineUnusable`."""
        try:
            transport, _ = await serialx.create_serial_connection(
                asyncio.get_running_loop(), lambda: _Receiver(on_data, on_lost), path, baudrate=baud
            )
        except (OSError, ValueError, serialx.UnsupportedSetting) as error:
            raise LineUnusable(f"cannot open the serial line {path}", found=_said_by(error)) from error
        return cls(path, transport, baud)

    def write(self, data: bytes) -> None:
        """Send bytes behind those that wait."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def set_baud(self, baud: int) -> None:
        """Wait until everything has left, then go on at another rate. Raises `LineUnusable`.

        A pseudo-terminal has no rate, and is left alone: serialx discards what waits in both directions, there also
        what has left but was not read yet.
        """
        if not self._has_rate:
            return
        try:
            await self._transport.flush()
            await asyncio.sleep(ADAPTER_BYTES * BITS_A_BYTE / self._baud)
            await self._transport.reconfigure_port(baudrate=baud)
        except (OSError, ValueError, serialx.UnsupportedSetting) as error:
            raise LineUnusable(f"{self.path} cannot do {baud} baud", found=_said_by(error)) from error
        self._baud = baud

    async def close(self) -> None:
        """Let the port go."""
        self._transport.abort()
        with contextlib.suppress(OSError):
            await self._transport.wait_closed()


class Machine(Protocol):
    """A protocol machine of an end of the line: `Ncp`, `Mcu`."""

    def receive(self, data: bytes, *, now: float) -> Sequence[object]:
        """Take bytes off the line."""

    def deadline_passed(self, *, now: float) -> Sequence[object]:
        """Do what is due."""

    def next_deadline(self) -> float | None:
        """Say when something is due."""

    def link_commands(self) -> list[LinkCommand]:
        """Say what is to be done with the line."""


class MachineOnLine:
    """Runs a machine on a line by the loop's clock. `handle(event)` is called with each of its events, in order.

    Give it a line with `attach`, and again after the line was lost; without one the machine's time goes on.
    `on_trouble(text)` hears of rates that the line cannot do.
    """

    def __init__(
        self, machine: Machine, handle: Callable[[object], None], *, on_trouble: Callable[[str], None] | None = None
    ) -> None:
        self._machine = machine
        self._handle = handle
        self._on_trouble = on_trouble
        self._loop = asyncio.get_running_loop()
        self._line: ByteLink | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[LinkCommand] = deque()
        self._switching: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def now(self) -> float:
        """The machine's time (seconds)."""
        return self._loop.time()

    def attach(self, line: ByteLink | None) -> None:
        """Go on with this line; None when it is lost."""
        self._line = line
        self._after([])

    def received(self, data: bytes) -> None:
        """Give the machine what came off the line."""
        if not self._stopped:
            self._after(self._machine.receive(data, now=self.now))

    def tell(self, events: Sequence[object]) -> None:
        """Carry on after the machine was told something that is not on the line; `events` is what it said to it."""
        self._after(events)

    async def stop(self) -> None:
        """Run the machine no more; what was to be sent before a change of rate is sent."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._switching is not None:
            self._switching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._switching

    def _after(self, events: Sequence[object]) -> None:
        for event in events:
            self._handle(event)
        self._waiting.extend(self._machine.link_commands())
        if self._switching is None:
            self._send()
        self._wait()

    def _send(self) -> None:
        while self._waiting and not self._stopped:
            command = self._waiting.popleft()
            if isinstance(command, SwitchRate):
                self._switching = asyncio.ensure_future(self._switch(command.baud))
                return
            if self._line is not None:
                self._line.write(command)

    async def _switch(self, baud: int) -> None:
        try:
            if self._line is not None:
                await self._line.set_baud(baud)
        except LineUnusable as error:
            if self._on_trouble is not None:
                self._on_trouble(str(error))
        finally:
            self._switching = None
        self._send()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._machine.next_deadline()
        if deadline is not None and not self._stopped:
            self._timer = self._loop.call_at(max(deadline, self.now + SHORTEST_WAIT_S), self._due)

    def _due(self) -> None:
        self._timer = None
        self._after(self._machine.deadline_passed(now=self.now))


def _said_by(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
