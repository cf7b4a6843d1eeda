"""`flota gateway`: the last hop, for devices that cannot fetch for themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flota.cli.connection import AsJson, check_option
from flota.cli.output import echo_json, print_table
from flota.errors import WrongUse

if TYPE_CHECKING:
    from flota.gateway.configuration import GatewaySettings
    from flota.gateway.driver import AdoptedDevice

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
    metrics: Annotated[str | None, typer.Option("--metrics", metavar="H:P", help="Serve Prometheus there.")] = None,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", hidden=True, help="Stop when standard input ends: the parent is gone.")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log as JSON lines.")] = False,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option("--log-level")] = "info",
) -> None:
    """Ask the server for devices that cannot ask themselves, verify what it offers, and push it.

    A device is NAME=HOST[:PORT], or NAME=mac=AA:BB:CC:DD:EE:FF for one that is found by its announcements; more after
    commas: mac, port, profile (arduino, guide, anchorota), board (amebad, amebad-4mb), type, hardware_revision.
    Only devices named here or in the file are ever pushed to.

    Examples:
        flota gateway run --server http://127.0.0.1:8080 --token-file gw.token --trust trust.json --state gw
        --device pump-1=192.168.1.7 --device pump-2=mac=00:E0:4C:12:34:56,type=pump

        flota gateway run --config /etc/flota/gateway.toml
    """
    from flota.gateway.configuration import device_of_flag, server_url
    from flota.gateway.daemon import Gateway, run_until_signal
    from flota.gateway.logs import configure_logs

    if config is None and not device:
        raise WrongUse("no device to serve", hint="Give --device NAME=HOST, or --config FILE.")
    if server is not None:
        check_option("--server", server_url, server)
    for one in device or []:
        check_option("--device", device_of_flag, one)
    flags: dict[str, Any] = {
        "server": server,
        "token": token,
        "token_file": token_file,
        "trust": trust,
        "state": state,
        "cacert": cacert,
        "interfaces": interface,
        "mdns": False if no_mdns else None,
        "poll_s": poll_s,
        "evidence_s": evidence_s,
        "cache_mib": cache_mib,
        "metrics": metrics,
    }
    devices = [device_of_flag(one) for one in device or []]
    configure_logs(json=log_json, level=log_level)
    settings = _settings(config, flags, devices)
    gateway = Gateway(settings, reload=None if config is None else _reloading(config, flags, devices))
    asyncio.run(run_until_signal(gateway, with_parent=with_parent))


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


def _settings(config: Path | None, flags: dict[str, Any], devices: list[AdoptedDevice]) -> GatewaySettings:
    from flota.gateway.configuration import read_config, settings_from

    file = {} if config is None else read_config(config)
    return settings_from(file, flags, devices, base=Path() if config is None else config.absolute().parent)


def _reloading(
    config: Path, flags: dict[str, Any], devices: list[AdoptedDevice]
) -> Callable[[], GatewaySettings | None]:
    """Return what reads the file again when it has changed; a file that is wrong is refused once, the old one stays."""
    seen = [_state_of(config)]

    def reload() -> GatewaySettings | None:
        now = _state_of(config)
        if now == seen[0] or now is None:
            return None
        seen[0] = now
        return _settings(config, flags, devices)

    return reload


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
