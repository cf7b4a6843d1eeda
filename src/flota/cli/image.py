"""`flota image`: look into firmware files, pack app images, convert partition tables. Needs no server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flota.cli.image_ameba import pack_ameba
from flota.cli.image_blynk import blynk_tag
from flota.cli.image_convert import convert
from flota.cli.image_files import parse_size as _size
from flota.cli.image_files import read_file as _read
from flota.cli.image_files import write_file as _write
from flota.cli.image_layout import layout
from flota.cli.image_mcuboot import pack_mcuboot, verify
from flota.cli.image_merge import merge
from flota.cli.image_nuvoton import pack_m487, pack_m2354
from flota.cli.image_nvs import app as nvs
from flota.cli.image_serve import serve
from flota.cli.output import EXIT_FAILED, EXIT_WRONG_USE, echo, echo_json, print_table, warn
from flota.errors import InvalidInput

if TYPE_CHECKING:
    from flota.boards.model import Unfit
    from flota.images.model import Inspection

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Look into, pack and convert firmware files.")
pack = typer.Typer(no_args_is_help=True, help="Pack firmware into an image that devices take.")
app.add_typer(pack, name="pack")
app.add_typer(nvs, name="nvs")
app.command("blynk-tag")(blynk_tag)
app.command()(convert)
app.command()(merge)
app.command()(layout)
app.command()(serve)
app.command()(verify)
pack.command("mcuboot")(pack_mcuboot)
pack.command("ameba")(pack_ameba)
pack.command("m487")(pack_m487)
pack.command("m2354")(pack_m2354)

File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The file.", metavar="FILE")]
Output = Annotated[Path, typer.Option("-o", "--output", dir_okay=False, help="Where the result goes.", metavar="OUT")]


@app.command()
def inspect(
    file: File,
    as_json: Annotated[bool, typer.Option("--json", help="The same as data.")] = False,
    board: Annotated[str, typer.Option(help="Also check whether the file suits this board.", metavar="BOARD")] = "",
    partitions: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The partition table (CSV or binary) of --board's devices."),
    ] = None,
    bootloader: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The boot loader image of --board's devices."),
    ] = None,
) -> None:
    """Say what a firmware file is, what it holds, and what is wrong with it.

    Exit status 1 when the file is damaged, or does not suit --board.

    Example: flota image inspect firmware.bin --board esp32-c3
    """
    from dataclasses import asdict

    from flota.images.inspection import NAME_MAX_CHARS, inspection_as_dict
    from flota.images.inspection import inspect as inspect_bytes
    from flota.images.text import cleaned_text

    if (partitions or bootloader) and not board:
        warn("--partitions and --bootloader need --board")
        raise typer.Exit(EXIT_WRONG_USE)
    data = _read(file)
    name = cleaned_text(file.name, max_chars=NAME_MAX_CHARS)
    found = inspect_bytes(data)
    reasons = _fit(found, file, len(data), board, partitions, bootloader) if board else ()
    blocked = any(reason.blocking for reason in reasons)
    if as_json:
        plain = {"file": name, **inspection_as_dict(found)}
        if board:
            plain["fit"] = {
                "board": board,
                "fits": not blocked,
                "reasons": [{k: v for k, v in asdict(reason).items() if v is not None} for reason in reasons],
            }
        echo_json(plain)
    else:
        from flota.cli.image_view import show_fit, show_inspection

        show_inspection(name, found, colour=sys.stdout.isatty())
        if board:
            show_fit(board, reasons)
    if found.errors or blocked:
        raise typer.Exit(EXIT_FAILED)


@pack.command("esp-app")
def pack_esp_app(
    sources: Annotated[
        list[str],
        typer.Argument(help="One ELF file, or raw pieces of memory as ADDR:FILE.", metavar="SOURCE"),
    ],
    output: Output,
    chip: Annotated[str, typer.Option(help="The chip, e.g. esp32-c3.")],
    version: Annotated[str | None, typer.Option(help="Version in the app descriptor (at most 31 bytes).")] = None,
    project: Annotated[str | None, typer.Option(help="Project name in the app descriptor.")] = None,
    secure_version: Annotated[int | None, typer.Option(help="Anti-rollback version.", min=0, max=2**32 - 1)] = None,
    entry: Annotated[str | None, typer.Option(help="Entry address, for raw pieces.", metavar="ADDR")] = None,
    flash_mode: Annotated[str, typer.Option(help="qio, qout, dio, dout, fast-read or slow-read.")] = "dio",
    flash_size: Annotated[str, typer.Option(help="1MB to 128MB.")] = "4MB",
    flash_freq: Annotated[str | None, typer.Option(help="Flash frequency, e.g. 40m.")] = None,
    min_revision: Annotated[int, typer.Option(help="Lowest chip revision, major x 100 + minor.", min=0, max=65535)] = 0,
    max_revision: Annotated[int, typer.Option(help="Highest chip revision; 65535 = any.", min=0, max=65535)] = 65535,
    page_size: Annotated[str | None, typer.Option(help="MMU page size where the chip has a choice, e.g. 32K.")] = None,
    pad_to: Annotated[str | None, typer.Option(help="Fill up to this length, e.g. 1M.", metavar="SIZE")] = None,
    append_hash: Annotated[bool, typer.Option("--hash/--no-hash", help="Append the SHA-256 of the image.")] = True,
) -> None:
    """Make an ESP app image from an ELF file or from raw pieces of memory.

    Example: flota image pack esp-app build/app.elf --chip esp32-c3 --version 1.2.0 -o app.bin
    """
    from flota.images.esp_app import pack_app
    from flota.images.esp_chips import chip_named
    from flota.images.esp_elf import app_from_elf
    from flota.images.esp_layout import AppIdentity, MemoryPiece, PackOptions, build_app

    options = PackOptions(
        spi_mode=flash_mode.lower(),
        flash_size=flash_size.upper(),
        speed=flash_freq.lower() if flash_freq else None,
        min_chip_revision=min_revision,
        max_chip_revision=max_revision,
        append_hash=append_hash,
        page_size=_size(page_size) if page_size else None,
        pad_to=_size(pad_to) if pad_to else None,
    )
    if len(sources) == 1 and Path(sources[0]).is_file():
        if entry is not None:
            raise typer.BadParameter("an ELF file has its own entry address", param_hint="--entry")
        packed = app_from_elf(
            _read(Path(sources[0])),
            chip=chip,
            version=version,
            project=project,
            secure_version=secure_version,
            options=options,
        )
    else:
        if entry is None:
            raise typer.BadParameter("raw pieces need the address where the program starts", param_hint="--entry")
        pieces = [MemoryPiece(address, _read(path)) for address, path in map(_address_and_file, sources)]
        identity = AppIdentity(version, project, secure_version)
        packed = pack_app(
            build_app(pieces, chip=chip_named(chip), entry=_size(entry), identity=identity, options=options)
        )
    _write(output, packed)
    echo(f"{output}: {len(packed)} bytes")


@app.command()
def partitions(
    table_file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A table as CSV or binary.", metavar="TABLE")
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", dir_okay=False, metavar="OUT")] = None,
    check: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Check whether this app fits every ota slot.", metavar="APP"),
    ] = None,
    chip: Annotated[str | None, typer.Option(help="Needed for boot loader rows.")] = None,
    primary_bootloader_offset: Annotated[str | None, typer.Option(help="Instead of --chip.", metavar="ADDR")] = None,
    recovery_bootloader_offset: Annotated[
        str | None, typer.Option(help="Needed for a recovery boot loader row.", metavar="ADDR")
    ] = None,
    secure_boot_v1: Annotated[bool, typer.Option("--secure-boot-v1", help="App sizes must be whole 64K.")] = False,
    table_offset: Annotated[str, typer.Option(help="Where the table lies in flash.", metavar="ADDR")] = "0x8000",
    flash_size: Annotated[str | None, typer.Option(help="E.g. 4MB: partitions must end within.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The table as data.")] = False,
) -> None:
    """Convert a partition table from CSV to binary or back, and check it.

    Example: flota image partitions partitions.csv -o partitions.bin --check app.bin
    """
    from flota.images.esp_chips import chip_named
    from flota.images.esp_partitions import check_table, csv_of, pack_table, parse_csv, parse_table, require_valid

    data = _read(table_file)
    place, flash = _size(table_offset), _size(flash_size) if flash_size else None
    if binary := data.startswith(b"\xaa\x50"):
        table = require_valid(parse_table(data), table_offset=place, flash_size=flash, secure_boot_v1=secure_boot_v1)
    else:
        primary = chip_named(chip).bootloader_offset if chip else None
        table = parse_csv(
            data,
            table_offset=place,
            bootloader_offset=_size(primary_bootloader_offset) if primary_bootloader_offset else primary,
            recovery_bootloader_offset=_size(recovery_bootloader_offset) if recovery_bootloader_offset else None,
            flash_size=flash,
            secure_boot_v1=secure_boot_v1,
        )
    if as_json:
        echo_json(
            [
                {"name": r.label, "kind": r.kind, "offset": r.offset, "size": r.size, "flags": r.flags}
                for r in table.partitions
            ]
        )
    else:
        rows = [(r.label, r.kind, f"{r.offset:#x}", f"{r.size:#x}", f"{r.end:#x}") for r in table.partitions]
        print_table(("name", "kind", "offset", "size", "end"), rows)
    for finding in check_table(table, table_offset=place, flash_size=flash):
        warn(f"{finding.level}: {finding.text}")
    if check:  # before anything is written: a build must not find a table that its app does not fit
        _check_app(check, pack_table(table), as_json=as_json)
    if output:
        _write(output, csv_of(table).encode() if binary else pack_table(table))


def _check_app(path: Path, table: bytes, *, as_json: bool) -> None:
    """Print whether the app suits the table, beside data on stderr only; leaves with status 1 when not."""
    from flota.boards.catalogue import BOARDS
    from flota.boards.fit import fit_check
    from flota.boards.model import TypeProfile
    from flota.cli.image_view import show_fit
    from flota.images.inspection import inspect as inspect_bytes

    data = _read(path)
    found = inspect_bytes(data)
    board = BOARDS.get(found.chip or "", BOARDS["esp32"])
    reasons = fit_check(TypeProfile(board, table), found, file_size=len(data), version=found.version or "")
    if not as_json:
        show_fit(f"{path.name} in every ota slot", reasons)
    for reason in reasons if as_json else ():
        facts = [f"{name} {value}" for name in ("expected", "found") if (value := getattr(reason, name)) is not None]
        warn(", ".join([f"{'error' if reason.blocking else 'warning'}: {reason.text}", *facts]))
    if any(reason.blocking for reason in reasons):
        raise typer.Exit(EXIT_FAILED)


def _fit(
    found: Inspection, file: Path, size: int, board_name: str, table_file: Path | None, bootloader_file: Path | None
) -> tuple[Unfit, ...]:
    from flota.boards.catalogue import board
    from flota.boards.fit import fit_check, version_of
    from flota.boards.model import TypeProfile
    from flota.images.esp_partitions import pack_table, parse_csv

    hardware = board(board_name)
    table = _read(table_file) if table_file else None
    if table is not None and not table.startswith(b"\xaa\x50"):
        table = pack_table(parse_csv(table, bootloader_offset=hardware.bootloader_offset))
    idf_version = _bootloader_idf_version(bootloader_file, hardware.chip) if bootloader_file else None
    profile = TypeProfile(hardware, table, bootloader_idf_version=idf_version)
    version = version_of(hardware, found, file.name)
    return fit_check(profile, found, file_size=size, version=version, filename=file.name)


def _bootloader_idf_version(path: Path, chip: str | None) -> str | None:
    """Return the ESP-IDF version of a boot loader image, None when it does not say (before ESP-IDF 5.1)."""
    from flota.images.inspection import inspect as inspect_bytes
    from flota.images.model import ImageFormat

    found = inspect_bytes(_read(path))
    if found.format is not ImageFormat.ESP_BOOTLOADER or found.chip != chip:
        raise InvalidInput(
            f"{path.name} is no boot loader for the board", expected=chip, found=f"{found.format}, {found.chip}"
        )
    if found.idf_version is None:
        warn(f"{path.name} does not say with which ESP-IDF it was built: not checked")
    return found.idf_version


def _address_and_file(text: str) -> tuple[int, Path]:
    address, colon, name = text.partition(":")
    path = Path(name)
    if not colon or not path.is_file():
        raise typer.BadParameter(f"{text!r} is neither an ELF file nor ADDR:FILE")
    return _size(address), path
