"""`flota device`: registering, importing, accepting, labelling."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flota.cli.connection import AsJson, CaCert, Server, Token, connect, parse_lifetime, read_text_file
from flota.cli.device_certificate import app as certificate_app
from flota.cli.device_claim import claims, templates
from flota.cli.device_command import add_commands
from flota.cli.output import echo, echo_json, print_table
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
from flota.cli.thing_issuing import Issue, Issued, issue_credentials
from flota.errors import NotFound, WrongUse

if TYPE_CHECKING:
    from flota.client.management import ManagementClient
    from flota.client.schemas import Device

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Devices: add, import, accept, list.")

app.add_typer(certificate_app, name="certificate")
app.add_typer(claims, name="claim")
app.add_typer(templates, name="template")

IMPORT_MAX_BYTES = 16 * 1024 * 1024

Name = Annotated[str, typer.Argument(metavar="NAME", help="The device's name.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME…", help="The devices' names.")]
DeviceToken = Annotated[
    str | None, typer.Option("--device-token", metavar="SECRET", help="The token it will show; drawn if not given.")
]


@app.command("add")
def add(
    name: Name,
    type_name: Annotated[str, typer.Option("--type", metavar="T", help="Its device type, or a board's name.")],
    mac: Annotated[str | None, typer.Option("--mac", metavar="AA:BB:CC:DD:EE:FF")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="For selectors; repeat it.")
    ] = None,
    device_token: DeviceToken = None,
    certificate: Annotated[
        bool,
        typer.Option(
            "--certificate", help="A client certificate instead of a token (AWS IoT).", rich_help_panel="Certificate"
        ),
    ] = False,
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
    """Register a device. Its token is printed this once: nobody can read it again.

    flota device add pump-17 --type pump --label site=berlin

    With --certificate it is a thing that connects over MQTT: what goes into its aws_credentials.c and aws_config.h is
    printed, or written to a directory with the same in PEM. The private key is made on this machine and stays here.

    flota device add meter-3 --type aws-reference --certificate -o meter-3/

    flota device add meter-4 --type aws-reference --certificate --csr meter-4.csr -o meter-4/
    """
    labels = _labels(label or [])
    options = ThingOptions(csr, key_type, output, endpoint, root_ca, client_id, code_certificate)
    if not certificate and (options != ThingOptions() or days is not None):
        raise WrongUse("options for a certificate, but none is asked for", hint="Give --certificate too.")
    if certificate:
        if device_token is not None:
            raise WrongUse("a thing with a certificate has no token", hint="Leave out --device-token.")
        _add_thing(name, type_name, options, days, mac, labels, as_json, server, token, cacert)
        return
    with connect(server, token, cacert) as client:
        made = client.add_device(name, type_name, mac=mac, labels=labels, token=device_token)
    if as_json:
        echo_json(made.as_dict())
        return
    echo(f"device     {made.name}, type {made.type}, {made.state}")
    echo(f"token      {made.token}   (shown this once)")


@app.command("import")
def import_devices(
    file: Annotated[Path, typer.Argument(metavar="CSV", help="Header name,type,mac,token,labels; - for stdin.")],
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Register many devices from a CSV file: all of them, or none if any line is wrong.

    Columns: name and type; mac, token and labels (KEY=VALUE KEY=VALUE) if there are any. Tokens that the file does
    not give are drawn and printed this once.

    flota device import pumps.csv > tokens.txt
    """
    path = Path("/dev/stdin") if str(file) == "-" else file
    text = read_text_file(path, max_bytes=IMPORT_MAX_BYTES)
    with connect(server, token, cacert) as client:
        made = client.import_devices(text)
    if as_json:
        echo_json([one.as_dict() for one in made])
        return
    print_table(["name", "token"], [(one.name, one.token or "as given") for one in made])
    echo(f"imported {len(made)} devices")


@app.command("list")
def list_devices(
    type_name: Annotated[str | None, typer.Option("--type", metavar="T", help="Of this type only.")] = None,
    state: Annotated[
        Literal["pending", "accepted", "refused"] | None,
        typer.Option(
            "--state",
        ),
    ] = None,
    select: Annotated[
        str | None, typer.Option("--select", metavar="EXPR", help="e.g. 'type=pump label.site=berlin'.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", metavar="PART", help="Part of the name.")] = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """List devices.

    flota device list --state pending

    flota device list --select 'type=pump label.site=berlin'
    """
    with connect(server, token, cacert) as client:
        found = client.list_devices(type_name=type_name, state=state, select=select, text=text)
    if as_json:
        echo_json([one.as_dict() for one in found])
        return
    print_table(
        ["name", "type", "state", "runs", "route", "last seen", "labels"],
        [
            (
                one.name,
                one.type,
                one.state,
                one.running_version or (one.running_hash or "")[:12] or "-",
                one.last_route,
                one.last_seen_at.isoformat(" ", "seconds") if one.last_seen_at else "never",
                " ".join(f"{key}={value}" for key, value in one.labels.items()) or "-",
            )
            for one in found
        ],
    )


@app.command("show")
def show(
    name: Name, as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None
) -> None:
    """Show a device: what it runs, what it says about itself, what it was asked to do.

    flota device show pump-17
    """
    with connect(server, token, cacert) as client:
        found = client.device(name)
        executions = client.device_executions(name)
        certificates = client.device_certificates(name)
    if as_json:
        plain = {
            "executions": [one.as_dict() for one in executions],
            "certificates": [one.as_dict() for one in certificates],
        }
        echo_json({**found.as_dict(), **plain})
        return
    _show(found)
    now = datetime.now(UTC)
    for certificate in certificates:
        state = f"{certificate.state_in_words(now=now)}, until {certificate.not_after.date()}"
        echo(f"{'certificate':<15} {certificate.fingerprint} {state}")
    for one in executions:
        reason = one.details.get("message") or one.details.get("reason") or ""
        echo(f"{'update':<15} execution {one.id}, rollout {one.rollout}: {one.state} {reason}".rstrip())


@app.command("accept")
def accept(
    names: Names, as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None
) -> None:
    """Let pending or refused devices take part.

    One that asked at its type's URL without a token is listed by its MAC address: flota device list --state pending

    flota device accept pump-17 pump-18
    """
    with connect(server, token, cacert) as client:
        changed = [_accepted(client, name) for name in names]
    _show_states(changed, as_json)


@app.command("refuse")
def refuse(
    names: Names, as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None
) -> None:
    """Keep devices out; what is queued for them is canceled.

    flota device refuse stranger-1
    """
    with connect(server, token, cacert) as client:
        changed = [client.refuse_device(name) for name in names]
    _show_states(changed, as_json)


@app.command("remove")
def remove(names: Names, server: Server = None, token: Token = None, cacert: CaCert = None) -> None:
    """Forget devices; what they did stays in the history.

    flota device remove pump-17
    """
    with connect(server, token, cacert) as client:
        for name in names:
            client.remove_device(name)
            echo(f"removed {name}")


@app.command("token")
def new_token(
    words: Annotated[
        list[str], typer.Argument(metavar="[rotate] NAME", help="The device's name; rotate: both work for a while.")
    ],
    device_token: DeviceToken = None,
    overlap: Annotated[
        str, typer.Option("--overlap", metavar="12h|7d", help="How long the old one works too, when rotating.")
    ] = "24h",
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Give a device a new token; the old one stops working at once.

    flota device token pump-17

    With `rotate` the old one goes on working until the device has used the new one, for 24 hours at most.

    flota device token rotate pump-17 --overlap 7d
    """
    *action, name = words
    if action not in ([], ["rotate"]):
        raise typer.BadParameter("give a device's NAME, or: rotate NAME")
    overlap_s = int(parse_lifetime(overlap).total_seconds()) if action else 0
    with connect(server, token, cacert) as client:
        secret = client.new_device_token(name, token=device_token, overlap_s=overlap_s)
    if as_json:
        echo_json({"name": name, "token": secret})
    else:
        echo(secret)


@app.command("label")
def label_device(
    name: Name,
    labels: Annotated[list[str], typer.Argument(metavar="KEY=VALUE…", help="Set these; KEY= removes one.")],
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Set labels of a device, for selectors; others stay.

    flota device label pump-17 site=berlin line=2

    flota device label pump-17 line=
    """
    given = _labels(labels)
    with connect(server, token, cacert) as client:
        present = {**client.device(name).labels, **given}
        changed = client.set_labels(name, {key: value for key, value in present.items() if value})
    if as_json:
        echo_json(changed.as_dict())
    else:
        echo(f"{changed.name}  " + (" ".join(f"{key}={value}" for key, value in changed.labels.items()) or "no labels"))


add_commands(app)


def _add_thing(
    name: str,
    type_name: str,
    options: ThingOptions,
    days: int | None,
    mac: str | None,
    labels: dict[str, str],
    as_json: bool,
    server: str | None,
    token: str | None,
    cacert: str | None,
) -> None:
    def prepare(client: ManagementClient) -> Issue:
        def issue(csr: str) -> Issued:
            made = client.add_thing(name, type_name, csr, days=days, mac=mac, labels=labels)
            about = f"device     {made.device.name}, type {made.device.type}, {made.device.state}"
            return Issued(made.certificate, made.device.type, made.as_dict(), about)

        return issue

    issue_credentials(name, options, prepare, as_json=as_json, server=server, token=token, cacert=cacert)


def _accepted(client: ManagementClient, name: str) -> Device:
    try:
        return client.accept_device(name)
    except NotFound as error:
        raise NotFound(
            f"there is no device {name!r}",
            hint="See who waits with `flota device list --state pending`: a device that asks at its type's URL without "
            "a token is listed by its MAC address.",
        ) from error


def _labels(words: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"not KEY=VALUE: {word!r}")
        labels[key] = value
    return labels


def _show_states(devices: list[Device], as_json: bool) -> None:
    if as_json:
        echo_json([one.as_dict() for one in devices])
        return
    for one in devices:
        echo(f"{one.name}  {one.state}")


def _show(one: Device) -> None:
    rows = [
        ("device", one.name),
        ("type", one.type),
        ("state", one.state),
        ("mac", one.mac),
        ("runs", one.running_version),
        ("running hash", one.running_hash),
        ("last seen", one.last_seen_at.isoformat(" ", "seconds") if one.last_seen_at else "never"),
        ("route", one.last_route),
        ("address", one.address),
    ]
    if one.identity_conflict is not None:
        seen = " and ".join(one.identity_conflict.seen)
        rows.append(("conflict", f"two devices with this identity? {one.identity_conflict.trait}: {seen}"))
    if one.auto_confirm:
        rows.append(("confirms", "every update, by itself"))
    rows += [("label", f"{key}={value}") for key, value in one.labels.items()]
    rows += [("says", f"{key}={value}") for key, value in one.attributes.items()]
    rows += [("look", flag) for flag in one.flags]
    for name, value in rows:
        if value is not None:
            echo(f"{name:<15} {value}")
