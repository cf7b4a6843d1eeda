"""`flota image convert`: Intel HEX and ELF in, plain binary and Intel HEX out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flota.cli.image_files import parse_size, read_file, write_file
from flota.cli.output import echo
from flota.errors import InvalidInput

if TYPE_CHECKING:
    from flota.images.memory_map import MemoryMap

Format = Literal["bin", "hex"]
HEX_SUFFIXES = (".hex", ".ihex", ".ihx")


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="ELF, Intel HEX or plain bytes; told by content.", metavar="IN"
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", dir_okay=False, help="Where it goes.", metavar="OUT")],
    output_format: Annotated[
        Format | None, typer.Option("--format", help="What to make; else OUT's ending decides (.hex: Intel HEX).")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="Address of the first byte: of plain bytes going in or coming out.", metavar="ADDR"),
    ] = None,
    gap_fill: Annotated[str, typer.Option(help="Byte between pieces in a plain file.", metavar="BYTE")] = "0xff",
) -> None:
    """Convert between ELF, Intel HEX and plain binary files.

    Plain bytes have no address: --at gives it. Going out, the file begins at the lowest address, or at --at.

    Example: flota image convert firmware.hex -o firmware.bin --at 0x8000000
    """
    from flota.images.intel_hex import pack_hex
    from flota.images.memory_map import MemoryBlock, MemoryMap, flatten

    made: Format = output_format or ("hex" if output.suffix.lower() in HEX_SUFFIXES else "bin")
    start = None if at is None else parse_size(at)
    fill = parse_size(gap_fill)
    data = read_file(source)
    held = memory_of(data, source)
    if held is None:
        if made == "bin":
            raise InvalidInput(
                "nothing to convert: plain bytes in, plain bytes out",
                hint="Give --format hex, or an OUT ending in .hex.",
            )
        if start is None:
            raise typer.BadParameter("plain bytes need the address that they go to", param_hint="--at")
        held = MemoryMap((MemoryBlock(start, data),))
    elif made == "hex" and start is not None:
        raise typer.BadParameter("the file has its own addresses", param_hint="--at")
    result = pack_hex(held) if made == "hex" else flatten(held, at=start, gap_fill=fill)
    write_file(output, result)
    place = f"{held.start if made == 'hex' or start is None else start:#x} to {held.end:#x}"
    echo(f"{output}: {len(result)} bytes, {place}, {held.size} of data")


def memory_of(data: bytes, path: Path) -> MemoryMap | None:
    """Return what an ELF or HEX file holds, None for plain bytes. Raises `ImageError` for a broken one.

    A first record with the right sum makes it Intel HEX, or the name's ending, so that a damaged one is not taken for
    plain bytes.
    """
    from flota.images.elf_file import is_elf, parse_elf
    from flota.images.intel_hex import looks_like_hex, parse_hex

    if is_elf(data):
        return parse_elf(data)
    return parse_hex(data) if looks_like_hex(data) or path.suffix.lower() in HEX_SUFFIXES else None
