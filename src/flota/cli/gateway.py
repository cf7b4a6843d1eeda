"""`flota gateway`: the last hop, for devices that cannot fetch for themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flota.cli.connection import AsJson, check_option
from flota.cli.output import echo_json, print_table
from flota.errors import WrongUse

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Carry updates to boards that wait to be pushed to.")


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings and devices (TOML), read again on change.")
    ] = None,
    server: Annotated[
        str | None, typer.Option("--server", metavar="URL", envvar="FLOTA_SERVER", help="The server to ask.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", metavar="TOKEN", envvar="FLOTA_GATEWAY_TOKEN", help="A gateway's token.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="The token, in a file: ps shows flags.")
    ] = None,
    trust: Annotated[
        list[Path] | None, typer.Option("--trust", metavar="FILE", help="Whose releases are believed; repeatable.")
    ] = None,
    state: Annotated[Path | None, typer.Option("--state", metavar="DIR", help="Journal and cache.")] = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", metavar="NAME=HOST[:PORT],…", help="A device to serve; repeatable. See below."),
    ] = None,
    cacert: Annotated[
        Path | None, typer.Option("--cacert", metavar="FILE", envvar="FLOTA_CACERT", help="Authorities of the server.")
    ] = None,
    interface: Annotated[
        list[str] | None, typer.Option("--interface", metavar="ADDRESS", help="Listen by mDNS only there; repeatable.")
    ] = None,
    no_mdns: Annotated[bool, typer.Option("--no-mdns", help="Do not listen to announcements.")] = False,
    poll_s: Annotated[float | None, typer.Option("--poll-s", min=0.1, help="Seconds between polls.")] = None,
    evidence_s: Annotated[
        float | None, typer.Option("--evidence-s", min=0.1, help="How long to wait for a sign of life. [180]")
    ] = None,
    cache_mib: Annotated[float | None, typer.Option("--cache-mib", min=1, help="Largest cache, MiB. [256]")] = None,
    check_ins: Annotated[
        str | None,
        typer.Option("--check-ins", metavar="H:P", help="Take state posts and versions of boards there. [nowhere]"),
    ] = None,
    metrics: Annotated[str | None, typer.Option("--metrics", metavar="H:P", help="Serve Prometheus there.")] = None,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", hidden=True, help="Stop when standard input ends: the parent is gone.")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log as JSON lines.")] = False,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option("--log-level")] = "info",
) -> None:
    """Ask the server for devices that cannot ask themselves, verify what it offers, and push it.

    A device is NAME=HOST[:PORT], or NAME=mac=AA:BB:CC:DD:EE:FF for one that is found by its announcements; more after
    commas: mac, port, profile (arduino, guide, anchorota), board (amebad, amebad-4mb, or an ESP board with
    ArduinoOTA), driver (ameba, espota; default by board), password_file, type, hardware_revision.
    Only devices named here or in the file are ever pushed to.

    Examples:
        flota gateway run --server http://127.0.0.1:8080 --token-file gw.token --trust trust.json --state gw
        --device pump-1=192.168.1.7 --device pump-2=mac=00:E0:4C:12:34:56,type=pump

        flota gateway run --config /etc/flota/gateway.toml
    """
    from flota.gateway.configuration import device_of_flag, listen_address, read_trust_files, server_url
    from flota.gateway.starting import Start, become_gateway, settings_of

    if config is None and not device:
        raise WrongUse("no device to serve", hint="Give --device NAME=HOST, or --config FILE.")
    if server is not None:
        check_option("--server", server_url, server)
    for one in device or []:
        check_option("--device", device_of_flag, one)
    for option, place in (("--check-ins", check_ins), ("--metrics", metrics)):
        if place is not None:
            check_option(option, listen_address, place)
    told: dict[str, object] = {
        "server": server,
        "token": token,
        "token_file": _absolute(token_file),
        "trust": [_absolute(path) for path in trust or []] or None,
        "state": _absolute(state),
        "cacert": _absolute(cacert),
        "interfaces": interface or None,
        "mdns": False if no_mdns else None,
        "poll_s": poll_s,
        "evidence_s": evidence_s,
        "cache_mib": cache_mib,
        "check_ins": check_ins,
        "metrics": metrics,
    }
    start = Start(
        config=_absolute(config),
        flags={name: value for name, value in told.items() if value is not None},
        devices=list(device or []),
        log_json=log_json,
        log_level=log_level,
        with_parent=with_parent,
    )
    read_trust_files(settings_of(start).trust)
    become_gateway(start)


@app.command()
def status(
    state: Annotated[Path, typer.Option("--state", metavar="DIR", exists=True, file_okay=False, help="Its directory.")],
    as_json: AsJson = False,
) -> None:
    """Show what a gateway remembers of its devices; it may run meanwhile.

    flota gateway status --state /var/lib/flota-gateway
    """
    import msgspec

    from flota.gateway.journal import Journal

    entries = Journal(state, clean=False).all()
    if as_json:
        echo_json([msgspec.to_builtins(entry) for entry in entries])
        return
    rows = []
    for entry in entries:
        update = entry.update
        facts = (update.version, update.stage.value, update.basis, update.attempts, update.reason) if update else ()
        rows.append((entry.device, entry.accepted_version, *(facts or (None,) * 5)))
    print_table(("device", "runs", "update", "stage", "basis", "pushes", "reason"), rows)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
