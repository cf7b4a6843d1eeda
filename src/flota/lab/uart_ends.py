"""The MCU's end of a line for virtual devices: a serial port that is there, or a pseudo-terminal that is made.

A pseudo-terminal has no rate: both ends hear each other whatever they are set to.
Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Final

from flota.errors import InvalidInput
from flota.transports.uart import ByteLink, SerialLine

READ_BYTES: Final = 65_536


class PseudoTerminal:
    """A pseudo-terminal whose far end is at `path`, a symbolic link that goes with it.

    It outlives the restarts of the device, as a UART does: what comes while nobody listens is lost. `made_before`: a
    link that is there is of a life of this device that was killed. Raises `InvalidInput` if something else is there.
    """

    def __init__(self, path: Path, *, made_before: bool = False) -> None:
        self.path = path
        if path.exists() and not (made_before and path.is_symlink()):
            raise InvalidInput(f"{path} is in the way", expected="a serial line, or nothing", found="another file")
        self._near, self._far = os.openpty()  # the far end stays open here too: nobody hangs up when its user dies
        tty.setraw(self._near)
        tty.setraw(self._far)
        os.set_blocking(self._near, False)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(os.ttyname(self._far))

    async def open(self, on_data: Callable[[bytes], None], on_lost: Callable[[str], None], baud: int) -> ByteLink:
        """Return the near end; what came before is lost."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._near, READ_BYTES):
                pass
        return _NearEnd(self._near, on_data)

    def close(self) -> None:
        """Take the pseudo-terminal and its link away."""
        with contextlib.suppress(OSError):
            if self.path.is_symlink() and str(self.path.readlink()) == os.ttyname(self._far):
                self.path.unlink()
        os.close(self._near)
        os.close(self._far)


class _NearEnd:
    def __init__(self, descriptor: int, on_data: Callable[[bytes], None]) -> None:
        self._descriptor = descriptor
        self._on_data = on_data
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._readable)

    def write(self, data: bytes) -> None:
        """Send what there is room for: nobody reads, and a UART would lose the rest too."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                return

    async def set_baud(self, baud: int) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Listen no more."""
        self._loop.remove_reader(self._descriptor)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._on_data(os.read(self._descriptor, READ_BYTES))


def is_serial_port(path: Path) -> bool:
    """Return whether a line is at `path` already, or behind a link there, so that none is to be made."""
    return path.is_char_device()


async def open_port(
    path: Path, on_data: Callable[[bytes], None], on_lost: Callable[[str], None], baud: int
) -> ByteLink:
    """Return a serial port that is there. Raises `LineUnusable`."""
    return await SerialLine.open(str(path), baud, on_data=on_data, on_lost=on_lost)
