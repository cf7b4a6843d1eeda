"""`flota up`: the whole server with a data directory."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from flota.cli.output import EXIT_FAILED, EXIT_WRONG_USE, echo, fail, warn
from flota.cli.structlog_alone import import_structlog_alone
from flota.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from flota.cli.local_gateway import LocalGateway
    from flota.server.running import RunningServer
    from flota.server.settings import ServerSettings

app = typer.Typer(add_completion=False)

EPILOG = """Settings also come from DATA/flota.toml (or --config) and from FLOTA_* variables; flags win.

Examples: flota up --data ./flota-data · flota up --data /var/lib/flota --https 0.0.0.0:8443
--public-url https://updates.example.net:8443 --name updates.example.net"""


@app.command(epilog=EPILOG)
def up(
    data: Path | None = typer.Option(None, "--data", help="Data directory, made when absent. [FLOTA_DATA]"),
    config: Path | None = typer.Option(None, "--config", help="Settings file instead of DATA/flota.toml."),
    http: str | None = typer.Option(None, "--http", metavar="H:P", help="HTTP/1.1 and h2c. [127.0.0.1:8080]"),
    no_http: bool = typer.Option(False, "--no-http", help="No plain listener."),
    https: str | None = typer.Option(None, "--https", metavar="H:P", help="TLS: h2 too. [127.0.0.1:8443]"),
    no_https: bool = typer.Option(False, "--no-https", help="No TLS listener."),
    mqtt: str | None = typer.Option(None, "--mqtt", metavar="H:P", help="MQTT, plain. [127.0.0.1:1883]"),
    no_mqtt: bool = typer.Option(False, "--no-mqtt", help="No plain MQTT."),
    mqtts: str | None = typer.Option(None, "--mqtts", metavar="H:P", help="MQTT over TLS. [127.0.0.1:8883]"),
    mqtt_bridge: str | None = typer.Option(
        None,
        "--mqtt-bridge",
        metavar="URL",
        help="Another broker for devices' own topics: mqtt[s]://[USER:PASSWORD@]HOST[:PORT][?ca=FILE].",
    ),
    mqtt_bridge_rule: list[str] = typer.Option(
        [],
        "--mqtt-bridge-rule",
        metavar="[out:|in:]LOCAL/[=REMOTE/]",
        help="Which topics, and what they are called there; {thing} is the device's name. Repeatable. [{thing}/]",
    ),
    mqtt_broker: str | None = typer.Option(
        None,
        "--mqtt-broker",
        metavar="URL",
        help="Answer devices at this broker (see flota mqtt acl), instead of listening for MQTT.",
    ),
    no_mqtts: bool = typer.Option(False, "--no-mqtts", help="No MQTT over TLS."),
    public_url: str | None = typer.Option(None, "--public-url", metavar="URL", help="What devices are given."),
    name: list[str] | None = typer.Option(None, "--name", metavar="HOST|IP", help="Certificate name; repeatable."),
    tls_cert: Path | None = typer.Option(None, "--tls-cert", help="Your own certificate chain (PEM), reloaded live."),
    tls_key: Path | None = typer.Option(None, "--tls-key", help="Its key (PEM, PKCS#8)."),
    database: str | None = typer.Option(None, "--database", metavar="URL", help="SQLAlchemy URL. [SQLite in DATA]"),
    max_artifact_mib: float | None = typer.Option(None, "--max-artifact-mib", help="Largest upload, MiB. [256]"),
    trusted_proxy: list[str] | None = typer.Option(
        None, "--trusted-proxy", metavar="ADDR", help="Believe X-Forwarded-* of this proxy; repeatable."
    ),
    proxy_client_cert: list[str] | None = typer.Option(
        None, "--proxy-client-cert", metavar="ADDR", help="Believe this proxy's X-Controller-Id too; repeatable."
    ),
    proxy_authority: list[str] | None = typer.Option(
        None, "--proxy-authority", metavar="[TENANT=]HASH", help="Issuer of device certificates; repeatable."
    ),
    proxy_device_type: str | None = typer.Option(
        None, "--proxy-device-type", metavar="T", help="What unknown devices with such a certificate become."
    ),
    no_gateway: bool = typer.Option(
        False, "--no-gateway", help="No gateway for boards of the local network (see docs/how-to/gateway.md)."
    ),
    stop_grace_s: float | None = typer.Option(None, "--stop-grace-s", help="Seconds to finish responses in. [30]"),
    with_parent: bool = typer.Option(False, "--with-parent", hidden=True, help="Stop when standard input ends."),
    as_json: bool = typer.Option(False, "--json", help="One JSON line on stdout when ready."),
    log_json: bool = typer.Option(False, "--log-json", help="Log as JSON lines."),
    log_level: str = typer.Option("info", "--log-level", help="debug, info, warning or error."),
) -> None:
    """Start the whole server with a data directory. Listens on loopback unless told otherwise."""
    flags: dict[str, object] = {
        "http": "off" if no_http else http,
        "https": "off" if no_https else https,
        "mqtt": "off" if no_mqtt else mqtt,
        "mqtts": "off" if no_mqtts else mqtts,
        "mqtt_bridge": mqtt_bridge,
        "mqtt_bridge_rule": mqtt_bridge_rule or None,
        "mqtt_broker": mqtt_broker,
        "public_url": public_url,
        "name": name or None,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "database": database,
        "max_artifact_mib": max_artifact_mib,
        "trusted_proxy": trusted_proxy or None,
        "proxy_client_cert": proxy_client_cert or None,
        "proxy_authority": proxy_authority or None,
        "proxy_device_type": proxy_device_type,
        "stop_grace_s": stop_grace_s,
    }
    import_structlog_alone()
    try:
        settings = _settings(data, config, flags, log_level)
    except InvalidInput as error:
        fail(error)
        raise typer.Exit(EXIT_WRONG_USE) from error
    from flota.server.logs import configure_logs
    from flota.server.running import run_server

    configure_logs(json=log_json, level=log_level)
    if with_parent:
        from flota.cli.with_parent import stop_with_parent

        stop_with_parent()
    announce = _announce_json if as_json else _announce
    gateway = None if no_gateway else _local_gateway(settings, log_json=log_json, log_level=log_level)

    def announce_and_begin(server: RunningServer) -> None:
        _spare_the_collector()
        announce(server)
        url = server.http or server.https
        if gateway is not None and url is not None and server.token_file is not None:
            gateway.start(url, server.ca if url == server.https else None, server.token_file)

    try:
        finished = _run(lambda: run_server(settings, announce=announce_and_begin))
    finally:
        if gateway is not None:
            gateway.stop()
    if not finished:
        warn(f"some responses were cut off after {settings.stop_grace_s:g} s")
        os._exit(EXIT_FAILED)  # their threads still run, and would run into the interpreter's end


COLLECT_AFTER: Final = (10_000, 20, 25)
"""Python's own (700, 10, 10) has the cyclic collector walk through all that is remembered of a hundred thousand devices
again and again: a seventh of the rate of polls. Little of ours is ever in a cycle (benchmarks/poll.py)."""


def _spare_the_collector() -> None:
    """Take what a start has made out of the cyclic collector's sight, and let it look less often from now on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def default_data_directory() -> Path:
    """Return where a server keeps its data when nobody says: `FLOTA_DATA`, else the user's data directory."""
    named = os.environ.get("FLOTA_DATA")
    if named:
        return Path(named).expanduser()
    shared = os.environ.get("XDG_DATA_HOME")
    return (Path(shared) if shared else Path.home() / ".local" / "share") / "flota"


def _settings(data: Path | None, config: Path | None, flags: dict[str, object], log_level: str) -> ServerSettings:
    from flota.server.configuration import read_configuration, settings_from
    from flota.server.logs import LEVELS

    if log_level not in LEVELS:
        raise InvalidInput("no such log level", expected=", ".join(LEVELS), found=repr(log_level))
    directory = (data or default_data_directory()).absolute()
    path = config or directory / "flota.toml"
    file: dict[str, object] = {}
    try:
        file = read_configuration(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        if config is not None:
            raise InvalidInput(f"{config} does not exist") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read", found=error.strerror or str(error)) from error
    return settings_from(directory, file, os.environ, flags)


def _local_gateway(settings: ServerSettings, *, log_json: bool, log_level: str) -> LocalGateway:
    from flota.cli.local_gateway import LocalGateway

    return LocalGateway(settings.data.root, log_json=log_json, log_level=log_level)


def _run(main: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
    """Run the server's loop: uvloop where there is one, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        import asyncio

        return asyncio.run(main())
    return uvloop.run(main())


def _announce(server: RunningServer) -> None:
    echo(f"flota {server.version} is up, data in {server.data}")
    if server.http is not None:
        echo(f"  http    {server.http}   (HTTP/1.1 and h2c)")
    if server.https is not None:
        echo(f"  https   {server.https}   (TLS 1.2 and above, h2 and HTTP/1.1)")
    if server.mqtt is not None:
        echo(f"  mqtt    {server.mqtt}   (MQTT 3.1.1; user = device, password = its token)")
    if server.mqtts is not None:
        echo(f"  mqtts   {server.mqtts}   (TLS 1.2 and above, client certificates)")
    if server.public_url is not None:
        echo(f"  devices are given {server.public_url}")
    if server.ca is not None:
        echo(f"  CA      {server.ca}   (for curl --cacert and for devices)")
    if server.token_file is not None:
        echo(f"  token   {server.token_file}   (administrator; keep it secret)")


def _announce_json(server: RunningServer) -> None:
    import msgspec

    echo(msgspec.json.encode(server).decode())
