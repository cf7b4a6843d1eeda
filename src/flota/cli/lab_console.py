"""Lines typed on standard input, for the console of a virtual device."""

from __future__ import annotations

import asyncio
import os
from typing import Final

READ_BYTES: Final = 4096
LINE_MAX_BYTES: Final = 1024


def type_lines(console: asyncio.Queue[str], descriptor: int) -> None:
    """Put what comes from a file descriptor into `console`, line by line, as long as the running loop lives.

    Lines that the device does not read in time are lost, as on a serial line. What is there at the end of the input
    without an end of line counts as a line.
    """
    loop = asyncio.get_running_loop()
    buffer = bytearray()

    def take() -> bool:
        data = os.read(descriptor, READ_BYTES)
        buffer.extend(data or b"\n")
        *lines, rest = buffer.split(b"\n")
        buffer[:] = rest[-LINE_MAX_BYTES:]
        for line in lines:
            text = line[:LINE_MAX_BYTES].decode("utf-8", "replace").strip()
            if text and not console.full():
                console.put_nowait(text)
        return bool(data)

    def readable() -> None:
        try:
            more = take()
        except OSError:
            more = False
        if not more:
            loop.remove_reader(descriptor)

    try:
        loop.add_reader(descriptor, readable)
    except PermissionError:  # a plain file is always readable, and cannot be waited for
        while take():
            pass
