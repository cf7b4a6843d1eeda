"""`flota device reboot|ping|redirect|confirm`: what an operator tells one device beside its update."""

from __future__ import annotations

from typing import Annotated

import typer

from flota.cli.connection import AsJson, CaCert, Server, Token, connect
from flota.cli.output import echo, echo_json

NOT_DONE = 1

Name = Annotated[str, typer.Argument(metavar="NAME", help="The device's name.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME…", help="The devices' names.")]


def add_commands(app: typer.Typer) -> None:
    """Add the four commands to `flota device`."""
    for name, command in (("reboot", reboot), ("ping", ping), ("redirect", redirect), ("confirm", confirm)):
        app.command(name)(command)


def reboot(
    names: Names, as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None
) -> None:
    """Have connected Blynk devices restart. Whether one does shows when it connects again.

    flota device reboot mill-1
    """
    with connect(server, token, cacert) as client:
        told = [client.reboot_device(name) for name in names]
    if as_json:
        echo_json([one.as_dict() for one in told])
        return
    for one in told:
        echo(f"sent to {one.name}: restart")


def ping(
    name: Name, as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None
) -> None:
    """Ask a connected Blynk device for a sign of life; exits 1 if there is none within 5 s.

    flota device ping mill-1
    """
    with connect(server, token, cacert) as client:
        answer = client.ping_device(name)
    if as_json:
        echo_json(answer.as_dict())
    else:
        echo(f"{answer.device}  " + (f"answered after {answer.after_ms} ms" if answer.answered else "did not answer"))
    if not answer.answered:
        raise typer.Exit(NOT_DONE)


def redirect(
    name: Name,
    to: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The MQTT endpoint to connect to from now on.")],
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Send a connected Blynk device to another MQTT endpoint, where its token has to be known.

    flota device redirect mill-1 updates-2.example.net:8883
    """
    with connect(server, token, cacert) as client:
        told = client.redirect_device(name, to)
    if as_json:
        echo_json(told.as_dict())
    else:
        echo(f"sent to {told.name}: connect to {to}")


def confirm(
    names: Names, as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None
) -> None:
    """Agree to the update that waits for a device's agreement (types and rollouts with --confirm), in its place.

    flota device confirm mill-1
    """
    with connect(server, token, cacert) as client:
        agreed = [client.confirm_update(name) for name in names]
    if as_json:
        echo_json([one.as_dict() for one in agreed])
        return
    for one in agreed:
        echo(f"{one.device}  execution {one.id}: agreed to")
