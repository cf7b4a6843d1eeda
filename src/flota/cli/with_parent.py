"""Ending with whoever started this process, however that one ends: its other end of our standard input is closed."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Final, NoReturn

KILLED_BY: Final = 128
"""Exit status of a shell for a process that a signal ended, without the signal's number."""


def stop_with_parent(descriptor: int = 0) -> None:
    """Send this process SIGTERM once `descriptor` ends; what is read from it until then is thrown away."""

    def watch() -> None:
        try:
            while os.read(descriptor, 4096):
                pass
        except OSError:
            pass  # as good as its end
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def leave_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind this process, so that it ends what it has started; a second one ends it at once."""

    def asked(number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(KILLED_BY + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, asked)
