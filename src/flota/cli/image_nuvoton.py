"""`flota image pack m487` and `m2354`: the files that these boards take over the air."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flota.cli.image_convert import memory_of
from flota.cli.image_files import parse_size, read_file, write_file
from flota.cli.output import echo, echo_json, warn

if TYPE_CHECKING:
    from flota.images.memory_map import MemoryMap

BUILD_EPOCH: Final = datetime(2020, 1, 1, tzinfo=UTC)
"""From when on mbed-os counts the seconds that make a build number."""
HEADER_SIZES: Final = (0x400, 0x1000)
"""What imports of TF-M in mbed-os had; an ELF or HEX file tells which."""


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


def pack_m2354(
    program: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="Plain binary, Intel HEX or ELF.", metavar="FILE")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", dir_okay=False, help="Where it goes, e.g. app_update_V1.0.1.bin.", metavar="OUT"
        ),
    ],
    key: Annotated[
        str | None, typer.Option(help="RSA-3072 key that the boot loader knows: a file or a named one.", metavar="KEY")
    ] = None,
    signer: Annotated[str | None, typer.Option(help="exec:COMMAND: a program signs.", metavar="SIGNER")] = None,
    public_key: Annotated[str | None, typer.Option(help="--signer's public key.", metavar="PUB")] = None,
    password_prompt: Annotated[bool, typer.Option("--password-prompt", help="Ask for the key's password.")] = False,
    password_file: Annotated[Path | None, typer.Option(help="The password is this file's first line.")] = None,
    build: Annotated[
        int | None, typer.Option(help="Build number in the header; default: seconds since 2020.", min=0, max=2**32 - 1)
    ] = None,
    header_size: Annotated[
        str | None, typer.Option(help="0x400 unless the firmware says another.", metavar="SIZE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was written, as data.")] = False,
) -> None:
    """Sign the application of an M2354 into the update that the board takes, as mbed-os's build script does.

    Example: flota image pack m2354 app.bin --key mcuboot -o app_update_V1.0.1.bin
    """
    from flota.cli.signers import image_signer_from_options
    from flota.errors import InvalidInput
    from flota.images.mcuboot import ImageKeyKind, check_fits, pack_image, sign_image
    from flota.images.memory_map import flatten
    from flota.images.nuvoton.flash_map import NON_SECURE_SIZE
    from flota.images.nuvoton.update import SLOT_SHAPE, build_update, update_version

    data = read_file(program)
    held = memory_of(data, program)
    plain = data if held is None else flatten(held, size_max=NON_SECURE_SIZE)
    size = parse_size(header_size) if header_size else _header_size(held)
    number = int((datetime.now(UTC) - BUILD_EPOCH).total_seconds()) if build is None else build
    image = build_update(plain, update_version(number), header_size=size)
    image_signer = image_signer_from_options(
        key=key, signer=signer, public_key=public_key, password_prompt=password_prompt, password_file=password_file
    )
    if image_signer.kind is not ImageKeyKind.RSA_3072:
        raise InvalidInput(
            "the board's boot loader checks RSA-3072 only",
            expected="rsa-3072",
            found=image_signer.kind.value,
            hint="Make one: flota key create NAME --kind rsa-3072. Its public half goes into the boot loader.",
        )
    packed = pack_image(sign_image(image, image_signer, full_key=True))
    check_fits(len(packed), SLOT_SHAPE)
    write_file(output, packed)
    if as_json:
        echo_json({"file": str(output), "size": len(packed), "version": str(image.version), "header_size": size})
        return
    echo(f"{output}: {len(packed)} bytes, version {image.version} in its header")


def _header_size(held: MemoryMap | None) -> int:
    """Return the header that the firmware leaves room for, by where it lies; the usual one for plain bytes."""
    from flota.images.nuvoton.update import CODE_START

    return next(
        (size for size in HEADER_SIZES if held is not None and held.start == CODE_START + size), HEADER_SIZES[0]
    )
