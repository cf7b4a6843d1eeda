"""`flota image layout`: what lies where in a flash, as text, data or a picture."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flota.cli.connection import CaCert, Server, Token, connect
from flota.cli.image_files import parse_size, read_file, write_file
from flota.cli.output import EXIT_FAILED, EXIT_WRONG_USE, echo, echo_json, warn
from flota.errors import InvalidInput, NotFound, PeerError, Unauthenticated, WrongUse

if TYPE_CHECKING:
    from flota.boards.model import Board
    from flota.images.esp_chips import EspChip
    from flota.images.flash_layout import FlashLayout, FlashRegion
    from flota.images.model import Finding

BAR_MIN_COLUMNS: Final = 20
BAR_MAX_COLUMNS: Final = 100
TABLE_MAGIC: Final = b"\xaa\x50"
CSV_SUFFIX: Final = ".csv"
RED: Final = "\x1b[31m"
PLAIN: Final = "\x1b[0m"
OVERLAP_LETTER: Final = "!"

_LETTERS: Final = {
    "app": "A",
    "bootloader": "B",
    "partition-table": "P",
    "otadata": "o",
    "nvs": "n",
    "data": "d",
    "padding": "-",
    "staging": "S",
    "backup": "K",
    "secure": "s",
    "free": ".",
}
"""Region kind -> its letter in the bar; all other kinds (of files that are no flash) are `x`."""


def layout(
    file: Annotated[
        Path | None,
        typer.Argument(help="A firmware file, a table as CSV or binary, or a board's name.", metavar="FILE|CSV|BOARD"),
    ] = None,
    board: Annotated[str, typer.Option(help="The board: its flash, and its default table without FILE.")] = "",
    type_name: Annotated[
        str,
        typer.Option("--type", metavar="T", help="A device type of the server (or a board): its table, its flash."),
    ] = "",
    flash_size: Annotated[str | None, typer.Option(help="E.g. 8MB.", metavar="SIZE")] = None,
    table_offset: Annotated[str, typer.Option(help="Where a table lies in flash.", metavar="ADDR")] = "0x8000",
    as_json: Annotated[bool, typer.Option("--json", help="The same as data.")] = False,
    svg: Annotated[Path | None, typer.Option(dir_okay=False, help="Also draw it, into this file.")] = None,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Show what lies where: every region, free space, overlaps (red). Boards that stage updates elsewhere: every step.

    Exit status 1 when something overlaps, lies beyond the flash, or is wrong with the file.

    Example: flota image layout partitions.csv --flash-size 8MB --svg layout.svg

    Example: flota image layout --type pump

    Example: flota image layout m487 --svg m487.svg
    """
    from flota.images.flash_layout import layout_as_dict, size_text
    from flota.images.flash_layout_svg import layout_svg
    from flota.images.text import cleaned_text

    if file is not None and not file.exists() and not board and not type_name and _is_board(str(file)):
        file, board = None, str(file)
    if file is not None and not file.is_file():
        raise typer.BadParameter(f"there is no file {str(file)!r}", param_hint="FILE|CSV|BOARD")
    if file is None and not board and not type_name:
        warn("name a FILE, a --type to see its flash, or a --board to see its default table")
        raise typer.Exit(EXIT_WRONG_USE)
    if board and type_name:
        raise WrongUse("a type names its board itself", hint="Give --board or --type, not both.")
    size = parse_size(flash_size) if flash_size else None
    its_type = find_type(type_name, server, token, cacert) if type_name else None
    hardware = its_type or (_HardwareOf(_board(board)) if board else None)
    title = cleaned_text(file.name if file else type_name or board, max_chars=64)
    if hardware is not None and _pictures(hardware.board, file, title, svg, as_json=as_json):
        return
    found = _layout(file, hardware, size, parse_size(table_offset))
    if found.size is not None:
        title = f"{title}: {size_text(found.size)}"
    if svg:
        write_file(svg, layout_svg(found, title=title).encode("utf-8"))
    if as_json:
        echo_json(layout_as_dict(found))
    else:
        show_layout(title, found, colour=sys.stdout.isatty())
    if any(finding.level == "error" for finding in found.findings) or found.overlaps:
        raise typer.Exit(EXIT_FAILED)


def _pictures(hardware: Board, file: Path | None, title: str, svg: Path | None, *, as_json: bool) -> bool:
    """Show the steps of an update on a board that has several memories; False for other boards.

    Leaves with status 1 when the file does not fit.
    """
    from flota.cli.image_pictures import pictures_of, show_pictures
    from flota.images.memory_pictures import pictures_as_dict
    from flota.images.memory_pictures_svg import pictures_svg

    pictures = pictures_of(hardware, file.stat().st_size if file else None)
    if not pictures:
        return False
    if file:
        title = f"{title} on {hardware.name}"
    if svg:
        write_file(svg, pictures_svg(pictures, title=title).encode("utf-8"))
    if as_json:
        echo_json({"board": hardware.name, **pictures_as_dict(pictures)})
    else:
        show_pictures(title, pictures, colour=sys.stdout.isatty())
    if any(memory.layout.findings for picture in pictures for memory in picture.memories):
        raise typer.Exit(EXIT_FAILED)
    return True


def show_layout(title: str, found: FlashLayout, *, colour: bool = False) -> None:
    """Print bar, table, overlaps and findings."""
    echo(title)
    echo()
    echo(f"  [{layout_bar(found, bar_columns(), colour=colour)}]")
    echo()
    for line in table_lines(found, colour=colour):
        echo(line)
    echo()
    free = sum(region.size for region in found.free)
    flash = "flash size not said" if found.size is None else f"size {found.size:#x}"
    echo(f"end {found.claimed_end:#x}, {flash}, free {free:#x} ({free} bytes)")
    for overlap in found.overlaps:
        text = f"overlap: {overlap.first} and {overlap.second} both claim {overlap.start:#x} to {overlap.end:#x}"
        echo(in_red(text) if colour else text)
    for finding in found.findings:
        text = finding_line(finding)
        echo(in_red(text) if colour and finding.level == "error" else text)


def bar_columns() -> int:
    """Return how many letters a bar has on this terminal."""
    return min(max(shutil.get_terminal_size().columns - 4, BAR_MIN_COLUMNS), BAR_MAX_COLUMNS)


def finding_line(finding: Finding) -> str:
    """Return a finding on one line: level, what, where it begins, what was expected and found."""
    facts = [finding.text]
    if finding.offset is not None:
        facts.append(f"at {finding.offset:#x}")
    facts += [f"{name} {value}" for name in ("expected", "found") if (value := getattr(finding, name)) is not None]
    return f"{finding.level}: {', '.join(facts)}"


def layout_bar(found: FlashLayout, columns: int, *, colour: bool = False) -> str:
    """Return the flash as `columns` letters, each for the region with most of its share; `!` where any overlap is."""
    letters: list[str] = []
    overlaps, rows = found.overlaps, found.rows
    for column in range(columns):
        start = found.extent * column // columns
        end = max(found.extent * (column + 1) // columns, start + 1)
        if any(one.start < end and start < one.end for one in overlaps):
            letters.append(in_red(OVERLAP_LETTER) if colour else OVERLAP_LETTER)
            continue
        best = max(rows, key=lambda row: min(row.end, end) - max(row.start, start), default=None)
        letters.append(" " if best is None else _letter(best))
    return "".join(letters)


def table_lines(found: FlashLayout, *, colour: bool) -> list[str]:
    """Return the table of regions and free space, its head first."""
    from flota.images.flash_layout import size_text

    heads = ("", "REGION", "START", "END", "SIZE", "", "USED")
    rows = [
        (
            _letter(row),
            row.name,
            f"{row.start:#x}",
            f"{row.end:#x}",
            f"{row.size:#x}",
            size_text(row.size),
            "" if row.used is None else f"{row.used} B",
        )
        for row in found.rows
    ]
    widths = [max(len(head), *(len(row[i]) for row in rows), 0) for i, head in enumerate(heads)] if rows else []
    lines = ["  ".join(text.ljust(width) for text, width in zip(heads, widths, strict=False)).rstrip()]
    for region, row in zip(found.rows, rows, strict=True):
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        lines.append(in_red(line) if colour and found.clashes(region) else line)
    return lines


def _letter(region: FlashRegion) -> str:
    return _LETTERS.get(region.kind, "x")


def in_red(text: str) -> str:
    """Return `text` as a terminal shows it in red."""
    return f"{RED}{text}{PLAIN}"


@dataclass(frozen=True, slots=True)
class _HardwareOf:
    """What a layout is drawn of: a board, and the partition table (CSV) of a type where that has one of its own."""

    board: Board
    partition_csv: str | None = None


def find_type(name: str, server: str | None, token: str | None, cacert: str | None) -> _HardwareOf:
    """Return the board and table of a device type: of the server, else of the board of that name.

    A server that cannot be asked is an error only if it was named with --server, or if no board has that name.
    """
    from flota.boards.catalogue import BOARDS

    try:
        with connect(server, token, cacert) as client:
            found = client.device_type(name)
    except (NotFound, Unauthenticated, PeerError) as error:
        known = name.strip().lower() in {alias for one in BOARDS.values() for alias in (one.name, *one.aliases)}
        if not known or (server is not None and not isinstance(error, NotFound)):
            raise
        if not isinstance(error, NotFound):
            warn(f"warning: the server was not asked ({error.message}): this is the board {name}")
        return _HardwareOf(_board(name))
    hardware = _board(found.board)
    own = found.partition_csv if found.partition_csv != hardware.partition_csv else None
    return _HardwareOf(hardware, own)


def _layout(file: Path | None, of: _HardwareOf | None, flash_size: int | None, table_offset: int) -> FlashLayout:
    from flota.images.esp_partitions import parse_csv, parse_table
    from flota.images.flash_layout import layout_of_file, layout_of_table

    chip = _chip_of(of.board) if of else None
    if file is None:
        assert of is not None
        return _layout_of_hardware(of, chip, flash_size, table_offset)
    if flash_size is None and of is not None:
        flash_size = of.board.flash_size or None
    data = read_file(file)
    if file.suffix.lower() == CSV_SUFFIX:
        start = chip.bootloader_offset if chip else None
        table = parse_csv(data, table_offset=table_offset, bootloader_offset=start, faulty_layout=True)
    elif data.startswith(TABLE_MAGIC):
        table = parse_table(data)
    else:
        return layout_of_file(data, flash_size=flash_size)
    return layout_of_table(table, chip=chip, table_offset=table_offset, flash_size=flash_size)


def _layout_of_hardware(
    of: _HardwareOf, chip: EspChip | None, flash_size: int | None, table_offset: int
) -> FlashLayout:
    from flota.images.ameba import FLASH_MAPS
    from flota.images.esp_partitions import parse_csv
    from flota.images.flash_layout import layout_of_areas, layout_of_table

    hardware = of.board
    if hardware.boot == "ameba-signature":
        areas = next(one.areas for one in FLASH_MAPS.values() if one.flash_size == hardware.flash_size)
        return layout_of_areas(areas, flash_size=flash_size or hardware.flash_size)
    csv = of.partition_csv or hardware.partition_csv
    if csv is None:
        raise InvalidInput("this board has files as slots, no flash to draw", found=hardware.name)
    table = parse_csv(csv, table_offset=table_offset, bootloader_offset=hardware.bootloader_offset)
    if flash_size is None:
        end = max((row.offset + row.size for row in table.partitions), default=0)
        # A product may have more flash than is usual on its board: then nobody knows how much.
        flash_size = hardware.flash_size if end <= hardware.flash_size else None
    return layout_of_table(table, chip=chip, table_offset=table_offset, flash_size=flash_size)


def _is_board(name: str) -> bool:
    from flota.boards.catalogue import board

    try:
        board(name)
    except NotFound:
        return False
    return True


def _board(name: str) -> Board:
    from flota.boards.catalogue import board

    return board(name)


def _chip_of(hardware: Board | None) -> EspChip | None:
    from flota.images.esp_chips import chip_named

    if hardware is None or hardware.chip is None or hardware.boot != "esp-otadata":
        return None
    return chip_named(hardware.chip)
