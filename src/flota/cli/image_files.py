"""Files and numbers as the `flota image` commands take them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import typer

from flota.errors import InvalidInput

READ_LIMIT_BYTES: Final = 1024 * 1024 * 1024
"""Larger files are refused before they are read."""


def parse_size(text: str) -> int:
    """Return a number as people write it: 0x8000, 65536, 64K, 4M, 4MB. Raises `typer.BadParameter`."""
    digits = text.strip().lower().removesuffix("b") if not text.lower().startswith("0x") else text.strip().lower()
    unit = {"k": 1024, "m": 1024 * 1024}.get(digits[-1:], 1)
    try:
        return int(digits[:-1] if unit > 1 else digits, 0) * unit
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a number such as 0x8000, 64K or 4M") from error


def read_file(path: Path) -> bytes:
    """Return the file's bytes; raises `InvalidInput` when it is too large or cannot be read."""
    try:
        size = path.stat().st_size
        if size > READ_LIMIT_BYTES:
            raise InvalidInput("the file is too large", expected=f"at most {READ_LIMIT_BYTES} bytes", found=size)
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path.name}", found=error.strerror) from error


def write_file(path: Path, data: bytes) -> None:
    """Write the result, whole or not at all; raises `InvalidInput` when it cannot be written.

    Directories are not made: one that is missing is more likely a mistyped path.
    """
    from flota.durable_files import write_durably

    if not path.parent.is_dir():
        raise InvalidInput(f"there is no directory {path.parent}", hint="Make it, or correct the path.")
    try:
        write_durably(path, data)
    except OSError as error:
        raise InvalidInput(f"cannot write {path}", found=error.strerror) from error
