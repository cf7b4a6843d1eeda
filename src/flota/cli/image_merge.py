"""`flota image merge`: boot loader, partition table and app in one file for a programmer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from flota.cli.image_files import parse_size, read_file, write_file
from flota.cli.image_layout import finding_line
from flota.cli.output import echo, warn

KEEP = "keep"


def merge(
    chip: Annotated[str, typer.Option(help="The chip, e.g. esp32-c3.")],
    bootloader: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The boot loader image.")],
    partitions: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The table, as CSV or binary.")],
    app: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The app image.")],
    output: Annotated[Path, typer.Option("-o", "--output", dir_okay=False, help="Where it goes.", metavar="OUT")],
    otadata: Annotated[
        Literal["blank", "boot_app0"], typer.Option(help="blank as ESP-IDF flashes it, boot_app0 as Arduino does.")
    ] = "blank",
    flash_mode: Annotated[str, typer.Option(help="keep, qio, qout, dio or dout.")] = KEEP,
    flash_size: Annotated[str, typer.Option(help="keep, or 1MB to 128MB.")] = KEEP,
    flash_freq: Annotated[str, typer.Option(help="keep, or the chip's: e.g. 80m, 40m.")] = KEEP,
    table_offset: Annotated[str, typer.Option(help="Where the table lies in flash.", metavar="ADDR")] = "0x8000",
    pad_to: Annotated[str | None, typer.Option(help="Fill with 0xFF up to this length, e.g. 8MB.")] = None,
) -> None:
    """Make the file that a programmer writes to flash address 0 of a new board. It is no update image.

    --flash-* go into the boot loader's header; its hash is made anew.

    Example: flota image merge --chip esp32 --bootloader bootloader.bin --partitions partitions.csv --app app.bin
    -o merged.bin --pad-to 8MB --flash-size 8MB
    """
    from flota.images.esp_chips import chip_named
    from flota.images.esp_merge import FlashSettings
    from flota.images.esp_merge import merge as merge_pieces
    from flota.images.esp_partitions import pack_table, parse_csv
    from flota.images.esp_partitions.errors import BeyondFlash
    from flota.images.flash_layout import layout_of_file

    esp, place = chip_named(chip), parse_size(table_offset)
    table = read_file(partitions)
    if not table.startswith(b"\xaa\x50"):
        table = pack_table(parse_csv(table, table_offset=place, bootloader_offset=esp.bootloader_offset))
    flash = FlashSettings(
        mode=_setting(flash_mode.lower()), size=_setting(flash_size.upper()), speed=_setting(flash_freq.lower())
    )
    merged = merge_pieces(
        esp,
        read_file(bootloader),
        table,
        read_file(app),
        otadata=otadata,
        flash=flash,
        table_offset=place,
        pad_to=parse_size(pad_to) if pad_to else None,
    )
    write_file(output, merged)
    for region in (layout := layout_of_file(merged)).regions:
        if region.used:
            echo(f"{region.start:#08x}  {region.used:>8} bytes  {region.name}")
    for finding in layout.findings:
        warn(finding_line(replace(finding, level="warning")))  # the file is made as it was asked for
        if finding.code == BeyondFlash.code:
            warn("  The flash size is the one in the boot loader's header: set it with --flash-size.")
    echo(f"{output}: {len(merged)} bytes, for flash address 0")


def _setting(text: str) -> str | None:
    return None if text.lower() == KEEP else text
