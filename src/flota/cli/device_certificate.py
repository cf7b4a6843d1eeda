"""`flota device certificate`: what lets things in: made here or by another authority, replaced, revoked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flota.cli.connection import AsJson, CaCert, Server, Token, connect, parse_lifetime, read_text_file
from flota.cli.output import echo, echo_json
from flota.cli.thing_files import (
    ClientId,
    CodeCertificate,
    Csr,
    Days,
    Endpoint,
    KeyType,
    Output,
    RootCa,
    ThingOptions,
)
from flota.cli.thing_issuing import Issue, Issued, describe, issue_credentials, show_certificates
from flota.errors import InvalidInput

if TYPE_CHECKING:
    from flota.client.management import ManagementClient

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Client certificates of things.")

SOURCE_MAX_BYTES: Final = 256 * 1024

Name = Annotated[str, typer.Argument(metavar="NAME", help="The device's name.")]
Overlap = Annotated[
    str, typer.Option("--overlap", metavar="12h|7d", help="How long the old ones work too, unless the new one is used.")
]


@app.command("list")
def list_certificates(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of this device only.")] = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """List certificates, revoked ones too, oldest first.

    flota device certificate list

    flota device certificate list pump-17
    """
    with connect(server, token, cacert) as client:
        found = client.device_certificates(name) if name is not None else client.certificates(purpose="thing")
    show_certificates(found, as_json)


@app.command("issue")
def issue(
    name: Name,
    csr: Csr = None,
    key_type: KeyType = "p256",
    days: Days = None,
    output: Output = None,
    endpoint: Endpoint = None,
    root_ca: RootCa = None,
    client_id: ClientId = None,
    code_certificate: CodeCertificate = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Make one more certificate for a device; those that it has go on working.

    flota device certificate issue pump-17 -o pump-17/

    flota device certificate issue pump-17 --csr pump-17.csr -o pump-17/
    """
    options = ThingOptions(csr, key_type, output, endpoint, root_ca, client_id, code_certificate)
    _make(name, options, days, None, as_json, server, token, cacert)


@app.command("rotate")
def rotate(
    name: Name,
    csr: Csr = None,
    key_type: KeyType = "p256",
    days: Days = None,
    overlap: Overlap = "24h",
    output: Output = None,
    endpoint: Endpoint = None,
    root_ca: RootCa = None,
    client_id: ClientId = None,
    code_certificate: CodeCertificate = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Make a new certificate; the old ones end when the device has used it, or after 24 hours.

    flota device certificate rotate pump-17 -o pump-17-new/ --overlap 7d
    """
    options = ThingOptions(csr, key_type, output, endpoint, root_ca, client_id, code_certificate)
    _make(name, options, days, int(parse_lifetime(overlap).total_seconds()), as_json, server, token, cacert)


@app.command("register")
def register(
    name: Name,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The device's certificate in PEM, or its aws_credentials.c.")
    ],
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Let a device in by the certificate that it has already, whoever issued it: AWS, a factory, a secure element.

    Who shows it has to have its private key; who issued it is not asked.

    flota device certificate register pump-17 4f1c-certificate.pem.crt

    flota device certificate register pump-17 configs/aws_credentials.c
    """
    text = read_text_file(file, max_bytes=SOURCE_MAX_BYTES)
    if "-----BEGIN CERTIFICATE-----" not in text.lstrip()[:64] and "char" in text:
        from flota.trust.thing_credentials import parse_credentials_source

        arrays = parse_credentials_source(text)
        if "aws_deviceCrt" not in arrays:
            raise InvalidInput("the source has no certificate of a device", expected="aws_deviceCrt[]", found=str(file))
        text = arrays["aws_deviceCrt"]
    with connect(server, token, cacert) as client:
        made = client.register_certificate(name, text)
    if as_json:
        echo_json(made.as_dict())
    else:
        echo(describe(made))


@app.command("revoke")
def revoke(
    certificate: Annotated[
        str, typer.Argument(metavar="SHA256", help="Its fingerprint, or at least 8 digits of its beginning.")
    ],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="For the audit trail.")] = "",
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Make a certificate useless for ever; a device that is connected with it is cut off.

    flota device certificate revoke 4f1c20aa --reason "stolen in Lyon"
    """
    with connect(server, token, cacert) as client:
        changed = client.revoke_certificate(certificate, reason=reason)
    if as_json:
        echo_json(changed.as_dict())
    else:
        echo(f"revoked    {changed.fingerprint}, {changed.device or changed.template or changed.subject}")


def _make(
    name: str,
    options: ThingOptions,
    days: int | None,
    overlap_s: int | None,
    as_json: bool,
    server: str | None,
    token: str | None,
    cacert: str | None,
) -> None:
    def prepare(client: ManagementClient) -> Issue:
        device = client.device(name)

        def issue(csr: str) -> Issued:
            made = client.issue_certificate(name, csr, days=days, overlap_s=overlap_s)
            return Issued(made, device.type, made.as_dict())

        return issue

    issue_credentials(name, options, prepare, as_json=as_json, server=server, token=token, cacert=cacert)
