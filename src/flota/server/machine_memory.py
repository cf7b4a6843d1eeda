"""How much memory this process may use: that of the machine, or less, where a container or a service has a limit.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst ("memory.max") and cgroup-v1/memory.rst; man 7 cgroups.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

UNKNOWN_MACHINE_BYTES: Final = 1 << 30
"""What is assumed where the system does not tell."""

_V1_CONTROLLER: Final = "memory"


def memory_limit(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process may use; `root` is where /proc and /sys are."""
    limits = [_machine_bytes()]
    for directory, name in _limit_files(root):
        for place in (directory, *directory.parents):
            if not place.is_relative_to(root / "sys/fs/cgroup"):
                break
            limit = _number_in(place / name)
            if limit is not None:
                limits.append(limit)
    return min(limits)


def _machine_bytes() -> int:
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return UNKNOWN_MACHINE_BYTES
    return found if found > 0 else UNKNOWN_MACHINE_BYTES


def _limit_files(root: Path) -> list[tuple[Path, str]]:
    """Return where this process's control groups are, and the name of the file that may limit its memory there."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    base, found = root / "sys/fs/cgroup", []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if ".." in path.split("/"):  # a group outside our namespace
            path = ""
        if number == "0" and not controllers:
            found.append((base / path.lstrip("/"), "memory.max"))
        elif _V1_CONTROLLER in controllers.split(","):
            found.append((base / _V1_CONTROLLER / path.lstrip("/"), "memory.limit_in_bytes"))
    return found


def _number_in(file: Path) -> int | None:
    """Return the number in a file; None if there is none: no such file, or the word `max`."""
    try:
        text = file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None
