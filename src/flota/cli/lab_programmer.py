"""`flota lab flash`, `read-slot`, `reset` and `power-cut`: what a person does to a board on the bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flota.cli.lab_arguments import State, boot_keys, choice, read_file, read_table
from flota.cli.output import echo, warn

if TYPE_CHECKING:
    from flota.images.model import ImageFormat


def flash(
    board: Annotated[str, typer.Argument(help="Board name.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="App image, merged image, partition table, or anything with --at.")
    ],
    state: State,
    at: Annotated[str | None, typer.Option("--at", metavar="ADDR", help="Flash address, e.g. 0x10000.")] = None,
    erase: Annotated[bool, typer.Option("--erase", help="Erase everything first.")] = False,
    partitions: Annotated[
        Path | None, typer.Option("--partitions", metavar="CSV", help="Write this table too.")
    ] = None,
    boot_key: Annotated[
        Path | None,
        typer.Option("--boot-key", metavar="FILE", help="m2354: public key that its boot loader is built with (PEM)."),
    ] = None,
    build: Annotated[
        str | None,
        typer.Option("--boot-build", help="m487: plain (the vendor's loader and Cloner) or rollback."),
    ] = None,
) -> None:
    """Write a file to a device that is not running, as a programmer would over its cable.

    An app image goes to the first app slot, a merged image to 0x0, a partition table to its place. On an m487 a loader
    goes to LDROM, a Cloner to 0x72000, and an app to 0x0, with boot programs around it if there are none; APROM is
    erased from the address on to its end, as the vendor's tool does. Like a programmer it writes what it is given, and
    warns when the board could not start it.

    Examples:
        flota lab flash esp32-c3 app.bin --state ./pump-1 --partitions partitions.csv

        flota lab flash esp32-c3 factory.bin --state ./pump-1 --at 0x10000 --erase

        flota lab flash m487 app_V1.0.0.bin --state ./pump-2
    """
    from flota.boards.catalogue import board as board_named
    from flota.images.inspection import inspect
    from flota.lab.programmer import flash_file, flash_size_for
    from flota.lab.state_directory import StateDirectory
    from flota.virtual.boot.esp_idf import BootBuild

    directory = StateDirectory(state)
    data = read_file(file)
    inspection = inspect(data)
    chip = board_named(board).chip
    if inspection.chip is not None and chip is not None and inspection.chip != chip:
        warn(f"warning: this image is for {inspection.chip}, the board is an {chip}: its boot loader will refuse it")
    if at is None and _is_for_another_board(inspection.format, board):
        warn(f"warning: a file of kind {inspection.format.value} is none that {board} starts")
    for finding in inspection.errors:
        warn(f"warning: {finding.text}")
    with directory:
        table = read_table(board, partitions)
        record = directory.introduce(
            board,
            build=None if build is None else choice(BootBuild, build, "--boot-build"),
            flash_size=flash_size_for(table, board_named(board).flash_size),
        )
        where = flash_file(
            directory,
            record,
            data,
            address=None if at is None else _address(at),
            erase=erase,
            table=table,
            boot_keys=boot_keys(board, boot_key, state),
        )
    echo(where)


def read_slot(
    state: State,
    slot: Annotated[str, typer.Option("--slot", help="ota_0, ota_1, a, b, …, or running.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where the image goes.")],
) -> None:
    """Write exactly the image file in a slot to FILE, without the erased rest of the slot.

    Example:
        flota lab read-slot --state ./pump-1 --slot running -o running.bin
    """
    from flota.durable_files import write_durably
    from flota.lab import programmer
    from flota.lab.state_directory import StateDirectory

    name, image = programmer.read_slot(StateDirectory(state), slot)
    write_durably(output, image)
    echo(f"{len(image)} bytes of {name} to {output}")


def reset(state: State) -> None:
    """Press the reset button of a running device."""
    import signal

    from flota.lab.state_directory import StateDirectory

    pid = StateDirectory(state).send(signal.SIGHUP)
    echo(f"reset (process {pid})")


def power_cut(state: State) -> None:
    """Pull the plug of a running device: its process dies at once. `flota lab run` puts it back in."""
    import signal

    from flota.lab.state_directory import StateDirectory

    pid = StateDirectory(state).send(signal.SIGKILL)
    echo(f"power cut (process {pid})")


def _is_for_another_board(kind: ImageFormat, board: str) -> bool:
    """Return whether the kind of a file is another board's, and not one that programmers write to this one."""
    from flota.boards.catalogue import BOARDS
    from flota.boards.catalogue import board as board_named

    others = {each for one in BOARDS.values() for each in one.formats}
    return kind in others and kind not in board_named(board).formats


def _address(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a flash address such as 0x10000", param_hint="--at") from None
