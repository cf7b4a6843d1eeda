"""`flota image pack m487`: the file that a NuMaker M487 takes over the air."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flota.cli.image_convert import memory_of
from flota.cli.image_files import read_file, write_file
from flota.cli.output import echo, echo_json, warn


def pack_m487(
    program: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="Plain binary, Intel HEX or ELF.", metavar="FILE")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", dir_okay=False, help="Where it goes, e.g. app_V1.0.1.bin.", metavar="OUT")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="What was written, as data.")] = False,
) -> None:
    """Make the file that M487 boards take: the program from address 0, checked, padded to whole pages of 4 KiB.

    The boards' Cloner loses the last byte of files of k x 4096 + 1 bytes, and copies what is too long over the device's
    key: neither is written.

    Example: flota image pack m487 BUILD/NUMAKER_IOT_M487/ARMC6/app.bin -o app_V1.0.1.bin
    """
    from flota.images.markers import find_markers
    from flota.images.memory_map import flatten
    from flota.images.nuvoton.aprom import pack_app
    from flota.images.nuvoton.flash_map import APROM_SIZE
    from flota.images.nuvoton.inspection import version_inside
    from flota.images.nuvoton.version import version_in_name

    data = read_file(program)
    held = memory_of(data, program)
    plain = data if held is None else flatten(held, at=0, size_max=APROM_SIZE)
    packed = pack_app(plain)
    inside, named = version_inside(find_markers(packed)), version_in_name(output.name)
    if inside and named and inside != named:
        warn(f"warning: the file's name says version {named}, the program {inside}")
    write_file(output, packed)
    padding = len(packed) - len(plain)
    if as_json:
        echo_json({"file": str(output), "size": len(packed), "padding": padding, "version": inside or named})
        return
    echo(f"{output}: {len(packed)} bytes, {padding} of them padding")
