"""`flota image pack ameba`: the `OTA_All.bin` of an AmebaD board."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flota.cli.image_files import read_file, write_file
from flota.cli.output import echo, echo_json
from flota.errors import NotFound, WrongUse

if TYPE_CHECKING:
    from collections.abc import Mapping

ANY_VERSION = "0xFFFFFFFF"


def pack_ameba(
    image2: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, help="km0_km4_image2.bin, from the build.", metavar="IMAGE2"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", dir_okay=False, help="Where it goes.", metavar="OUT")
    ] = None,
    km0: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="km0_image2_all.bin alone.")] = None,
    km4: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="km4_image2_all.bin alone.")] = None,
    version: Annotated[str, typer.Option(help="For people; no device reads it.", metavar="U32")] = ANY_VERSION,
    opaque: Annotated[
        bool, typer.Option("--opaque", help="The image is encrypted for the flash: do not look into it.")
    ] = False,
    arduino: Annotated[
        bool, typer.Option("--arduino", help="Put it where the Arduino core's network upload takes it from.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was written, as data.")] = False,
) -> None:
    """Pack the firmware of both cores into the file that AmebaD devices take over the air.

    Example: flota image pack ameba km0_km4_image2.bin -o OTA_All.bin
    Example: flota image pack ameba --km0 km0_image2_all.bin --km4 km4_image2_all.bin -o OTA_All.bin
    """
    from flota.images.ameba.image2 import join_cores
    from flota.images.ameba.ota_file import byte_sum, pack_ota_file

    if (image2 is None) == (km0 is None and km4 is None):
        raise WrongUse("give either IMAGE2, or --km0 and --km4")
    if (km0 is None) != (km4 is None):
        raise WrongUse("--km0 and --km4 belong together: a device starts both cores from one image")
    if not (output or arduino):
        raise WrongUse("say where the result goes: -o OUT, or --arduino")
    if opaque and image2 is None:
        raise WrongUse("encrypted images cannot be joined: give the joined IMAGE2 with --opaque")
    image = read_file(image2) if image2 else join_cores(read_file(_given(km0)), read_file(_given(km4)))
    packed = pack_ota_file(image, version=_u32(version), opaque=opaque)
    places = [output] if output else []
    if arduino:
        places += arduino_upload_files(sys.platform, os.environ, Path.home())
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_file(place, packed)
    if as_json:
        facts = {"size": len(packed), "checksum": byte_sum(image), "file_checksum": byte_sum(packed)}
        echo_json({"files": [str(place) for place in places], **facts})
        return
    for place in places:
        echo(f"{place}: {len(packed)} bytes, checksum of the image {byte_sum(image):#010x}")


def arduino_upload_files(platform: str, environment: Mapping[str, str], home: Path) -> list[Path]:
    """Return `misc/OTA_All.bin` of every installed version of the core's tools, as the network upload expects it.

    `platform` as `sys.platform`. Raises `NotFound` when the core is not installed for this user.
    Source: docs/reference/ameba-images.md, "Where the Arduino core expects it".
    """
    tools = [root / "tools" / "ameba_d_tools" for root in _core_directories(platform, environment, home)]
    versions = sorted(path for folder in tools if folder.is_dir() for path in folder.iterdir() if path.is_dir())
    if not versions:
        raise NotFound(
            "the AmebaD tools of the Arduino core are not installed here",
            expected=" or ".join(str(folder) for folder in tools),
            hint="Install the boards package in the Arduino IDE, or name the file with -o.",
        )
    return [version / "misc" / "OTA_All.bin" for version in versions]


def _core_directories(platform: str, environment: Mapping[str, str], home: Path) -> list[Path]:
    if platform == "win32":
        local = environment.get("LOCALAPPDATA")
        base = (Path(local) if local else home / "AppData" / "Local") / "Arduino15"
    else:
        base = home / "Library" / "Arduino15" if platform == "darwin" else home / ".arduino15"
    packages = base / "packages"
    return [packages / name for name in ("realtek", "Realtek")]


def _given(path: Path | None) -> Path:
    assert path is not None
    return path


def _u32(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise WrongUse("--version is no number", expected="such as 0x00010002", found=repr(text[:40])) from None
    if not 0 <= value <= 0xFFFF_FFFF:
        raise WrongUse("--version does not fit 32 bits", expected="0 to 0xFFFFFFFF", found=text[:40])
    return value
