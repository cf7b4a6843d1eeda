"""Reading the arguments that several `flota lab` commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flota.images.esp_partitions import PartitionTable

State = Annotated[
    Path, typer.Option("--state", metavar="DIR", help="The device's directory: its flash and its memory.")
]


def choice(kind: Any, text: str, option: str) -> Any:
    """Return the member of an enumeration that `text` names. Raises `BadParameter` with all names."""
    try:
        return kind(text)
    except ValueError:
        names = ", ".join(member.value for member in kind)
        raise typer.BadParameter(f"{text!r} is not one of {names}", param_hint=option) from None


def read_file(path: Path) -> bytes:
    """Return what a file holds. Raises `InvalidInput`."""
    from flota.errors import InvalidInput

    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}", found=error.strerror) from error


def boot_keys(board: str, path: Path | None, state: Path) -> Any:
    """Return the keys for a boot loader: the one given, else the board's own for its sample firmware."""
    from flota.boards.catalogue import board as board_named
    from flota.boards.model import BOOT_MCUBOOT_OVERWRITE
    from flota.errors import InvalidInput
    from flota.lab.nuvoton_programmer import OWN_BOOT_KEY_FILE, own_boot_key
    from flota.trust.image_keys import ImagePublicKey

    if board_named(board).boot != BOOT_MCUBOOT_OVERWRITE:
        if path is not None:
            raise InvalidInput(f"{board} has no boot loader with keys", hint="Leave out --boot-key.")
        return ()
    if path is not None:
        return (ImagePublicKey.from_pem(read_file(path)),)
    return (own_boot_key(state).public,) if (state / OWN_BOOT_KEY_FILE).exists() else ()


def read_table(board: str, path: Path | None) -> PartitionTable | None:
    """Return the partition table in a CSV, as the board needs it; None without one. Raises `InvalidInput`."""
    from flota.boards.catalogue import board as board_named
    from flota.lab.programmer import read_partitions

    if path is None:
        return None
    declared = board_named(board)
    return read_partitions(path, declared.bootloader_offset)
