"""`flota image nvs`: read and write one string of an NVS partition, such as the version tag of micro-RDK."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flota.cli.image_files import parse_size, read_file, write_file
from flota.cli.output import echo
from flota.errors import Refused

app = typer.Typer(no_args_is_help=True, help="Read and write one string of an NVS partition.")

Source = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The partition's bytes.", metavar="FILE")]
Namespace = Annotated[str, typer.Argument(help="E.g. VIAM_NS.")]
Key = Annotated[str, typer.Argument(help="E.g. OTA_VERSION.")]
Value = Annotated[str, typer.Argument(help="The string; - reads it from standard input.")]
Output = Annotated[Path, typer.Option("-o", "--output", dir_okay=False, help="Where the result goes.", metavar="OUT")]


@app.command("get")
def get_string(file: Source, namespace: Namespace, key: Key) -> None:
    """Print one string. Of VIAM_NS only OTA_VERSION: everything else there is a credential.

    Example: flota image nvs get nvs.bin VIAM_NS OTA_VERSION
    """
    from flota.images.esp_nvs import VIAM_NAMESPACE, VIAM_VERSION_KEY, read_string
    from flota.images.text import cleaned_text

    if namespace == VIAM_NAMESPACE and key != VIAM_VERSION_KEY:
        raise Refused(f"values of {VIAM_NAMESPACE} other than {VIAM_VERSION_KEY} are credentials and are never shown")
    echo(cleaned_text(read_string(read_file(file), namespace, key), max_chars=4000))


@app.command("set")
def set_string(file: Source, namespace: Namespace, key: Key, value: Value, output: Output) -> None:
    """Write one string as a device does; all other values stay.

    Example: flota image nvs set nvs.bin VIAM_NS OTA_VERSION v1.2.3 -o new.bin
    """
    from flota.images.esp_nvs_writing import write_string

    written = write_string(read_file(file), namespace, key, _value(value))
    write_file(output, written)
    echo(f"{output}: {len(written)} bytes")


@app.command("create")
def create(
    size: Annotated[str, typer.Argument(help="Size of the partition, e.g. 24K.")],
    namespace: Namespace,
    key: Key,
    value: Value,
    output: Output,
) -> None:
    """Make a new NVS partition with one string.

    Example: flota image nvs create 24K VIAM_NS OTA_VERSION v1.2.3 -o nvs.bin
    """
    from flota.images.esp_nvs_writing import create_nvs

    written = create_nvs(parse_size(size), {namespace: {key: _value(value)}})
    write_file(output, written)
    echo(f"{output}: {len(written)} bytes")


def _value(text: str) -> str:
    return sys.stdin.read().removesuffix("\n") if text == "-" else text
