"""From a command line to a running gateway: what was told, as a value that goes from one process image to the next.

The command line's own libraries take 15 MB, which a daemon on a small machine need not carry for years: `flota gateway
run` checks everything and then becomes `python -m flota.gateway` (execve: same process id, same files).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from flota.gateway.configuration import (
    GatewaySettings,
    device_of_flag,
    read_config,
    settings_from,
)

VARIABLE: Final = "FLOTA_GATEWAY_START"
MODULE: Final = "flota.gateway"
ARENAS: Final = "2"
"""glibc gives every thread heap of its own; two are enough for a loop and the threads that wait for the disk."""

MAPPED_FROM_BYTES: Final = str(64 * 1024)
"""Larger blocks, such as an image, go back to the system when they are freed; glibc would learn to keep them."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a gateway was started with. `flags` are settings by their name in the file, `devices` as they were typed.

    Paths in `flags` are absolute texts. `with_parent`: stop when standard input ends.
    """

    config: str | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    log_json: bool = False
    log_level: str = "info"
    with_parent: bool = False


def settings_of(start: Start) -> GatewaySettings:
    """Return the settings, the configuration file read now. Raises `InvalidInput`."""
    devices = [device_of_flag(text) for text in start.devices]
    if start.config is None:
        return settings_from({}, start.flags, devices, base=Path())
    path = Path(start.config)
    return settings_from(read_config(path), start.flags, devices, base=path.parent)


def reload_of(start: Start) -> Callable[[], GatewaySettings | None] | None:
    """Return what reads the file again once it has changed; a wrong one raises once, and the old settings stay."""
    if start.config is None:
        return None
    path = Path(start.config)
    seen = _state_of(path)

    def reload() -> GatewaySettings | None:
        nonlocal seen
        now = _state_of(path)
        if now == seen or now is None:
            return None
        seen = now
        return settings_of(start)

    return reload


def become_gateway(start: Start) -> NoReturn:
    """Replace this process by the gateway. Raises `OSError`."""
    sys.stdout.flush()
    sys.stderr.flush()
    memory = {"MALLOC_ARENA_MAX": ARENAS, "MALLOC_MMAP_THRESHOLD_": MAPPED_FROM_BYTES}
    environment = {**memory, **os.environ, VARIABLE: msgspec.json.encode(start).decode()}
    os.execve(sys.executable, [sys.executable, "-m", MODULE], environment)  # noqa: S606 - our own program


def start_from_environment() -> Start:
    """Return what `become_gateway` left, and remove it: it may hold a token. Raises `KeyError` if nothing is there."""
    return msgspec.json.decode(os.environ.pop(VARIABLE), type=Start)


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
