"""`flota token`: access tokens of the management API."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from flota.cli.connection import AsJson, CaCert, Server, Token, connect
from flota.cli.output import echo, echo_json, print_table

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Access tokens of the management API.")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what will use it; stands in the audit trail.")],
    role: Annotated[
        Literal["viewer", "operator", "admin"],
        typer.Option(
            "--role",
            help="viewer looks; operator ships and rolls out; admin declares types, keys and tokens.",
        ),
    ] = "operator",
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Make a token; its secret is printed this once.

    flota token create ci --role operator
    """
    with connect(server, token, cacert) as client:
        made = client.create_token(name, role)
    if as_json:
        echo_json(made.as_dict())
        return
    echo(f"token      {made.name} ({made.id}), {made.role}")
    echo(f"secret     {made.secret}   (shown this once)")


@app.command("list")
def list_tokens(as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None) -> None:
    """List tokens, revoked ones included; nobody can read their secrets.

    flota token list
    """
    with connect(server, token, cacert) as client:
        found = client.list_tokens()
    if as_json:
        echo_json([one.as_dict() for one in found])
        return
    print_table(
        ["id", "name", "role", "created", "revoked"],
        [
            (
                one.id,
                one.name,
                one.role,
                one.created_at.isoformat(" ", "seconds"),
                one.revoked_at.isoformat(" ", "seconds") if one.revoked_at else None,
            )
            for one in found
        ],
    )


@app.command("revoke")
def revoke(
    token_id: Annotated[int, typer.Argument(metavar="ID", help="Its number in `flota token list`.")],
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Make a token useless from now on.

    flota token revoke 4
    """
    with connect(server, token, cacert) as client:
        client.revoke_token(token_id)
    echo(f"revoked token {token_id}")
