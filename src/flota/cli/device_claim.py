"""`flota device claim` and `flota device template`: devices that ask for their own certificate (fleet provisioning)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flota.cli.connection import AsJson, CaCert, Server, Token, connect
from flota.cli.output import echo, echo_json, print_table
from flota.cli.thing_files import (
    CodeCertificate,
    Csr,
    Days,
    Endpoint,
    KeyType,
    Output,
    RootCa,
    ThingOptions,
)
from flota.cli.thing_issuing import Issue, Issued, issue_credentials, show_certificates
from flota.errors import NotFound

if TYPE_CHECKING:
    from flota.client.management import ManagementClient

claims = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Claim certificates: one for many devices, to ask for their own."
)
templates = typer.Typer(
    add_completion=False, no_args_is_help=True, help="What becomes of devices with a claim certificate."
)

TemplateName = Annotated[str, typer.Argument(metavar="TEMPLATE", help="The provisioning template's name.")]


@templates.command("add")
def add_template(
    name: TemplateName,
    type_name: Annotated[str, typer.Option("--type", metavar="T", help="What its devices become.")],
    thing_name: Annotated[
        str, typer.Option("--thing-name", metavar="RULE", help="Their names; parameters of the request in braces.")
    ] = "{SerialNumber}",
    unknown_devices: Annotated[
        Literal["accept", "hold", "refuse"],
        typer.Option("--unknown-devices", help="Names that nobody registered; refuse: only registered ones."),
    ] = "hold",
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Make a provisioning template. A device that was ever seen, or has had a certificate, is never taken over.

    flota device template add meters --type meter --thing-name 'meter-{SerialNumber}' --unknown-devices accept
    """
    with connect(server, token, cacert) as client:
        made = client.add_template(name, type_name, thing_name=thing_name, unknown_devices=unknown_devices)
    if as_json:
        echo_json(made.as_dict())
        return
    echo(f"template   {made.name}: type {made.type}, names {made.thing_name}, unknown ones: {made.unknown_devices}")
    echo(f"next       flota device claim create {made.name} -o DIR")


@templates.command("list")
def list_templates(as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None) -> None:
    """List the provisioning templates.

    flota device template list
    """
    with connect(server, token, cacert) as client:
        found = client.list_templates()
    if as_json:
        echo_json([one.as_dict() for one in found])
        return
    print_table(
        ["name", "type", "thing name", "unknown devices"],
        [(one.name, one.type, one.thing_name, one.unknown_devices) for one in found],
    )


@templates.command("remove")
def remove_template(name: TemplateName, server: Server = None, token: Token = None, cacert: CaCert = None) -> None:
    """Remove a template and revoke its claim certificates; its things stay.

    flota device template remove meters
    """
    with connect(server, token, cacert) as client:
        client.remove_template(name)
    echo(f"removed {name}")


@claims.command("create")
def create_claim(
    template: TemplateName,
    csr: Csr = None,
    key_type: KeyType = "p256",
    days: Days = None,
    output: Output = None,
    endpoint: Endpoint = None,
    root_ca: RootCa = None,
    code_certificate: CodeCertificate = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Make a claim certificate and its key: what every device of a production run is built with.

    flota device claim create meters -o claim/ --days 365
    """
    options = ThingOptions(csr, key_type, output, endpoint, root_ca, None, code_certificate)

    def prepare(client: ManagementClient) -> Issue:
        its_type = next((one.type for one in client.list_templates() if one.name == template), None)
        if its_type is None:
            raise NotFound(
                "no such provisioning template", found=repr(template), hint="See: flota device template list"
            )

        def issue(csr: str) -> Issued:
            made = client.issue_claim(template, csr, days=days)
            return Issued(made, its_type, made.as_dict())

        return issue

    name = f"claim-{template}"
    issue_credentials(name, options, prepare, as_json=as_json, server=server, token=token, cacert=cacert)


@claims.command("list")
def list_claims(as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None) -> None:
    """List claim certificates, revoked ones too.

    flota device claim list
    """
    with connect(server, token, cacert) as client:
        found = client.certificates(purpose="claim")
    show_certificates(found, as_json)


@claims.command("revoke")
def revoke_claim(
    certificate: Annotated[str, typer.Argument(metavar="SHA256", help="Its fingerprint, or the beginning of it.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="For the audit trail.")] = "",
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Make a claim certificate useless for ever; things that it brought keep their own.

    flota device claim revoke 4f1c20aa
    """
    with connect(server, token, cacert) as client:
        changed = client.revoke_certificate(certificate, reason=reason)
    echo(f"revoked    {changed.fingerprint}, {changed.template}")
