"""What `flota image layout` shows of boards whose updates move between several memories: a picture a step."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from flota.cli.output import echo

if TYPE_CHECKING:
    from flota.boards.model import Board
    from flota.images.memory_pictures import Memory, MemoryPicture


def pictures_of(board: Board, image_size: int | None) -> tuple[MemoryPicture, ...]:
    """Return the pictures of the board for an image of `image_size` bytes (None = not said); empty if it has none."""
    from flota.boards.model import BOOT_MCUBOOT_OVERWRITE, BOOT_NUVOTON_CLONER
    from flota.images.nuvoton.pictures import m487_pictures, m2354_pictures

    if board.boot == BOOT_NUVOTON_CLONER:
        return m487_pictures(image_size)
    return m2354_pictures(image_size) if board.boot == BOOT_MCUBOOT_OVERWRITE else ()


def show_pictures(title: str, pictures: tuple[MemoryPicture, ...], *, colour: bool = False) -> None:
    """Print every picture: what happens, what moves, what each memory holds."""
    from flota.cli.image_layout import bar_columns

    echo(title)
    for picture in pictures:
        echo()
        echo(picture.title)
        for line in textwrap.wrap(picture.text, bar_columns()):
            echo(f"  {line}")
        for move in picture.moves:
            echo(f"  {move.origin}  ==>  {move.target}   ({move.by})")
        for memory in picture.memories:
            echo()
            _show_memory(memory, colour=colour)


def _show_memory(memory: Memory, *, colour: bool) -> None:
    from flota.cli.image_layout import bar_columns, finding_line, in_red, layout_bar, table_lines
    from flota.images.flash_layout import size_text

    found = memory.layout
    size = "" if found.size is None else f", {size_text(found.size)}"
    echo(f"  {memory.name}{size}")
    echo(f"  [{layout_bar(found, bar_columns(), colour=colour)}]")
    lines = table_lines(found, colour=colour)
    notes = ["", *(memory.holds.get(row.name, "") for row in found.rows)]
    width = max(len(line) for line in lines)
    for line, note in zip(lines, notes, strict=True):
        echo(f"  {line.ljust(width)}  {note}".rstrip())
    for overlap in found.overlaps:
        text = f"overlap: {overlap.first} and {overlap.second} both claim {overlap.start:#x} to {overlap.end:#x}"
        echo(f"  {in_red(text) if colour else text}")
    for finding in found.findings:
        text = finding_line(finding)
        echo(f"  {in_red(text) if colour and finding.level == 'error' else text}")
