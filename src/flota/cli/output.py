"""How commands speak: tables for people, JSON for scripts, one clear line on stderr for errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flota.errors import FlotaError

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_WRONG_USE = 2


def echo_json(value: object) -> None:
    """Print `value` as JSON on stdout, two-space indented, keys in the given order, non-ASCII kept."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def echo(text: str = "") -> None:
    """Print one plain line on stdout at once, so that a pipe sees progress too."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """Print one line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their column heads: aligned on a terminal, the same text in a pipe, nothing cut off."""
    cells = [[str(cell) if cell is not None else "-" for cell in row] for row in rows]
    widths = [max([len(head), *(len(row[i]) for row in cells)]) for i, head in enumerate(columns)]
    for line in ([head.upper() for head in columns], *cells):
        echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def fail(error: FlotaError) -> None:
    """Print an error to stderr: what is wrong, then offset, expected and found, then what to do next."""
    warn(f"error: {error.message}")
    for name in ("offset", "expected", "found"):
        value = getattr(error, name)
        if value is not None:
            warn(f"  {name + ':':<10}{f'{value:#x} ({value})' if name == 'offset' else value}")
    if error.hint:
        warn(f"  {error.hint}")
