"""`flota type`: products, their boards and partition tables, and whose signatures count for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flota.cli.connection import AsJson, CaCert, Server, Token, connect, read_text_file
from flota.cli.output import echo, echo_json, print_table

if TYPE_CHECKING:
    from flota.client.schemas import DeviceType

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Device types: products, their boards and partition tables."
)

PARTITION_CSV_MAX_BYTES = 64 * 1024

UnknownDevices = Annotated[
    Literal["accept", "hold", "refuse"],
    typer.Option(
        "--unknown-devices",
        help="What happens to a device that nobody registered when it asks.",
    ),
]


@app.command("add")
def add_type(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The product's name.")],
    board: Annotated[str, typer.Option("--board", metavar="BOARD", help="Its board; `flota type list` names them.")],
    partitions: Annotated[
        Path | None,
        typer.Option("--partitions", metavar="CSV", help="Its own partition table (ESP-IDF CSV); else the board's."),
    ] = None,
    hardware_revision: Annotated[
        str | None, typer.Option("--hardware-revision", metavar="REV", help="Stands in every release's manifest.")
    ] = None,
    version_from: Annotated[
        Literal["release", "app_desc"],
        typer.Option(
            "--version-from",
            help="app_desc: a release's version must equal the one inside the image.",
        ),
    ] = "release",
    unknown_devices: UnknownDevices = "hold",
    signer: Annotated[
        list[str] | None,
        typer.Option("--signer", metavar="PUB", help="A public key (file or name) whose signatures count; repeat it."),
    ] = None,
    threshold: Annotated[
        int, typer.Option("--threshold", min=1, help="How many different signers a release needs.")
    ] = 1,
    poll_interval: Annotated[
        int, typer.Option("--poll-interval", min=1, metavar="SECONDS", help="How often its devices should ask.")
    ] = 300,
    description: Annotated[str, typer.Option("--description", metavar="TEXT")] = "",
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Declare a product.

    flota type add pump --board esp32-c3 --partitions partitions.csv --signer release.pub

    flota type add valve --board esp32-s3 --version-from app_desc --unknown-devices accept
    """
    from flota.cli.signers import read_public_key

    table = read_text_file(partitions, max_bytes=PARTITION_CSV_MAX_BYTES) if partitions is not None else None
    keys = [read_public_key(one) for one in signer or []]
    with connect(server, token, cacert) as client:
        made = client.add_type(
            name,
            board,
            partition_csv=table,
            hardware_revision=hardware_revision,
            version_from=version_from,
            unknown_devices=unknown_devices,
            signers=keys,
            signature_threshold=threshold,
            poll_interval_s=poll_interval,
            description=description,
        )
    _show(made, as_json)
    if not made.signers and not as_json:
        echo(f"no signer yet: flota type trust {made.name} --key PUBLIC_KEY")


@app.command("list")
def list_types(as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None) -> None:
    """List the declared types, then the boards that can be used as they are.

    flota type list --json
    """
    with connect(server, token, cacert) as client:
        found = client.list_types()
    if as_json:
        echo_json([one.as_dict() for one in found])
        return
    print_table(
        ["name", "board", "slot", "signers", "needed", "unknown devices", "description"],
        [
            (
                one.name,
                one.board,
                _smallest_slot(one),
                len(one.signers),
                one.signature_threshold,
                one.unknown_devices,
                "(built-in) " + one.description if one.builtin else one.description,
            )
            for one in found
        ],
    )


@app.command("show")
def show_type(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Show one type: its slots, its signers, its partition table.

    flota type show pump
    """
    with connect(server, token, cacert) as client:
        found = client.device_type(name)
    _show(found, as_json)


@app.command("trust")
def trust(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device type.")],
    key: Annotated[
        list[str] | None, typer.Option("--key", metavar="PUB", help="A public key: file or name; repeat it.")
    ] = None,
    threshold: Annotated[
        int | None, typer.Option("--threshold", min=1, help="How many different signers a release needs.")
    ] = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Let a key's signatures count for a type's releases.

    flota type trust pump --key release.pub

    flota type trust pump --key second.pub --threshold 2
    """
    from flota.cli.signers import read_public_key

    if not key and threshold is None:
        raise typer.BadParameter("give --key PUB, --threshold N, or both")
    keys = [read_public_key(one) for one in key or []]
    with connect(server, token, cacert) as client:
        changed = client.trust(name, keys, threshold=threshold)
    _show(changed, as_json)


@app.command("set")
def set_policy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device type.")],
    unknown_devices: UnknownDevices,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Change what happens to devices of a type that nobody registered.

    flota type set pump --unknown-devices accept
    """
    with connect(server, token, cacert) as client:
        changed = client.set_unknown_devices(name, unknown_devices)
    _show(changed, as_json)


def _show(one: DeviceType, as_json: bool) -> None:
    if as_json:
        echo_json(one.as_dict())
        return
    rows: list[tuple[str, Any]] = [
        ("type", one.name + (" (built-in)" if one.builtin else "")),
        ("board", one.board),
        ("hardware revision", one.hardware_revision or "any"),
        ("version from", one.version_from),
        ("unknown devices", one.unknown_devices),
        ("signatures needed", one.signature_threshold),
    ]
    rows += [("signer", signer.key_id) for signer in one.signers] or [("signer", "none")]
    rows += [("slot", f"{slot.name}{_at(slot.offset)}, {slot.size} bytes") for slot in one.slots]
    for name, value in rows:
        echo(f"{name:<18} {value}")


def _at(offset: int | None) -> str:
    return f" at {offset:#x}" if offset is not None else ""


def _smallest_slot(one: DeviceType) -> str:
    return str(min((slot.size for slot in one.slots), default=0)) if one.slots else "-"
