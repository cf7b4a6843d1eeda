"""`flota token`: access tokens of the management API."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flota.cli.connection import AsJson, CaCert, Server, Token, comma_list, connect, parse_lifetime
from flota.cli.output import echo, echo_json, print_table, warn

if TYPE_CHECKING:
    from flota.client.schemas import GatewayToken

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Access tokens of the management API, and of gateways."
)

Expires = Annotated[
    str | None, typer.Option("--expires", metavar="12h|90d", help="Useless after this time; for ever if not given.")
]


@app.command("create")
def create(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Who or what will use it; stands in the audit trail.")
    ] = None,
    role: Annotated[
        Literal["viewer", "operator", "admin"] | None,
        typer.Option(
            "--role",
            help="viewer looks; operator ships and rolls out; admin declares types, keys and tokens. [operator]",
        ),
    ] = None,
    expires: Expires = None,
    gateway: Annotated[
        str | None, typer.Option("--gateway", metavar="NAME", help="A token with which a gateway asks for devices.")
    ] = None,
    devices: Annotated[
        str | None, typer.Option("--devices", metavar="A,B", help="The gateway's devices, known or not yet.")
    ] = None,
    select: Annotated[
        str | None, typer.Option("--select", metavar="EXPR", help="Those that match whenever the gateway asks.")
    ] = None,
    all_devices: Annotated[
        bool, typer.Option("--all-devices", help="Every device of the tenant. Think twice: see below.")
    ] = False,
    type_name: Annotated[
        str | None,
        typer.Option("--type", metavar="T", help="What devices become that nobody registered, by its policy."),
    ] = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Make a token; its secret is printed this once.

    flota token create ci --role operator --expires 90d

    A gateway's token is for devices: the gateway sends `Authorization: GatewayToken SECRET` at their DDI addresses. It
    stands for the devices that it lists. With --all-devices whoever has it can be any device: name them if you can.

    flota token create --gateway hall-3 --devices pump-1,pump-2

    flota token create --gateway hall-3 --select label.hall=3 --expires 365d
    """
    from datetime import UTC

    expires_at = None if expires is None else datetime.now(UTC) + parse_lifetime(expires)
    if gateway is not None:
        if name is not None or role is not None:
            raise typer.BadParameter("a gateway's token has no role, and its name stands after --gateway")
        if (devices is not None) + (select is not None) + all_devices != 1:
            raise typer.BadParameter("give one of --devices A,B, --select EXPR and --all-devices")
        with connect(server, token, cacert) as client:
            made_for_gateway = client.create_gateway_token(
                gateway,
                devices=comma_list(devices),
                select=select,
                all_devices=all_devices,
                type_name=type_name,
                expires_at=expires_at,
            )
        _show_gateway(made_for_gateway, as_json)
        return
    if name is None:
        raise typer.BadParameter("give the token's NAME, or --gateway NAME")
    if devices is not None or select is not None or all_devices or type_name is not None:
        raise typer.BadParameter("--devices, --select, --all-devices and --type belong to --gateway NAME")
    with connect(server, token, cacert) as client:
        made = client.create_token(name, role or "operator", expires_at=expires_at)
    if as_json:
        echo_json(made.as_dict())
        return
    echo(f"token      {made.name} ({made.id}), {made.role}{_until(made.expires_at)}")
    echo(f"secret     {made.secret}   (shown this once)")


def _show_gateway(made: GatewayToken, as_json: bool) -> None:
    if as_json:
        echo_json(made.as_dict())
    else:
        echo(f"gateway    {made.name} ({made.id}), for {_covered(made)}{_until(made.expires_at)}")
        echo(f"secret     {made.secret}   (shown this once)")
    if made.all_devices:
        warn("whoever has this token can be any device of the tenant; --devices or --select would limit it")


def _covered(one: GatewayToken) -> str:
    if one.all_devices:
        return "all devices"
    return f"devices with {one.selector}" if one.selector is not None else f"{one.device_count} devices"


def _until(expires_at: datetime | None) -> str:
    return f", until {expires_at.isoformat(' ', 'seconds')}" if expires_at else ""


@app.command("list")
def list_tokens(
    gateway: Annotated[bool, typer.Option("--gateway", help="The gateways' tokens instead.")] = False,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """List tokens, revoked ones included; nobody can read their secrets.

    flota token list

    flota token list --gateway
    """
    if gateway:
        _list_gateway_tokens(as_json, server, token, cacert)
        return
    with connect(server, token, cacert) as client:
        found = client.list_tokens()
    if as_json:
        echo_json([one.as_dict() for one in found])
        return
    print_table(
        ["id", "name", "role", "created", "expires", "revoked"],
        [
            (
                one.id,
                one.name,
                one.role,
                one.created_at.isoformat(" ", "seconds"),
                one.expires_at.isoformat(" ", "seconds") if one.expires_at else None,
                one.revoked_at.isoformat(" ", "seconds") if one.revoked_at else None,
            )
            for one in found
        ],
    )


def _list_gateway_tokens(as_json: bool, server: str | None, token: str | None, cacert: str | None) -> None:
    with connect(server, token, cacert) as client:
        found = client.list_gateway_tokens()
    if as_json:
        echo_json([one.as_dict() for one in found])
        return
    print_table(
        ["id", "name", "for", "unknown become", "created", "expires", "revoked"],
        [
            (
                one.id,
                one.name,
                _covered(one),
                one.type or "nothing",
                one.created_at.isoformat(" ", "seconds"),
                one.expires_at.isoformat(" ", "seconds") if one.expires_at else None,
                one.revoked_at.isoformat(" ", "seconds") if one.revoked_at else None,
            )
            for one in found
        ],
    )


@app.command("revoke")
def revoke(
    token_id: Annotated[int, typer.Argument(metavar="ID", help="Its number in `flota token list`.")],
    gateway: Annotated[bool, typer.Option("--gateway", help="Its number in `flota token list --gateway`.")] = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Make a token useless from now on.

    flota token revoke 4

    flota token revoke --gateway 2
    """
    with connect(server, token, cacert) as client:
        if gateway:
            client.revoke_gateway_token(token_id)
        else:
            client.revoke_token(token_id)
    echo(f"revoked token {token_id}")
