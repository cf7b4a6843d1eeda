"""`flota ncp`: this machine as the network co-processor of a primary MCU on a serial line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flota.cli.connection import AsJson, check_option
from flota.cli.output import echo_json, print_table
from flota.errors import WrongUse

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Be the network co-processor of an MCU (Blynk.NCP).")


@app.command()
def run(
    serial: Annotated[str, typer.Option("--serial", metavar="PATH", help="The serial line to the MCU.")],
    server: Annotated[str, typer.Option("--server", metavar="URL", envvar="FLOTA_SERVER", help="The server to ask.")],
    device: Annotated[str, typer.Option("--device", metavar="ID", help="The MCU's name at the server.")],
    state: Annotated[Path, typer.Option("--state", metavar="DIR", help="Journal and files.")],
    trust: Annotated[
        list[Path] | None, typer.Option("--trust", metavar="FILE", help="Whose releases are believed; repeatable.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", metavar="TOKEN", envvar="FLOTA_NCP_TOKEN", help="The device's token.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="The token, in a file: ps shows flags.")
    ] = None,
    gateway_token: Annotated[
        bool, typer.Option("--gateway-token", help="The token is a gateway's (`flota token create --gateway`).")
    ] = False,
    board: Annotated[
        str, typer.Option("--board", metavar="BOARD", help="dual-mcu-ab or dual-mcu-ncp.")
    ] = "dual-mcu-ab",
    device_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Its device type; without: the board's name.")
    ] = None,
    hardware_revision: Annotated[str | None, typer.Option("--hardware-revision", metavar="REV")] = None,
    tenant: Annotated[str, typer.Option("--tenant", metavar="NAME")] = "DEFAULT",
    cacert: Annotated[
        Path | None, typer.Option("--cacert", metavar="FILE", envvar="FLOTA_CACERT", help="Authorities of the server.")
    ] = None,
    baud: Annotated[int, typer.Option("--baud", help="The rate to begin at.")] = 38_400,
    max_baud: Annotated[int, typer.Option("--max-baud", help="The highest rate that the MCU may ask for.")] = 2_000_000,
    chunk: Annotated[int, typer.Option("--chunk", help="Largest chunk, bytes.", min=64, max=1520)] = 1520,
    poll_s: Annotated[float | None, typer.Option("--poll-s", min=0.1, help="Seconds between polls.")] = None,
    settle_s: Annotated[
        float | None,
        typer.Option("--settle-s", min=0.0, help="How long a new version has to stay. [90 with two banks, else 0]"),
    ] = None,
    start_wait_s: Annotated[
        float, typer.Option("--start-wait-s", min=1.0, help="How long the MCU may take to start an update.")
    ] = 600.0,
    report_limit_s: Annotated[
        float, typer.Option("--report-limit-s", min=1.0, help="How long the MCU may take to report after an update.")
    ] = 600.0,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", hidden=True, help="Stop when standard input ends: the parent is gone.")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log as JSON lines.")] = False,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option("--log-level")] = "info",
) -> None:
    """Serve the MCU on a serial line: its bring-up, its updates. A pseudo-terminal is a serial line too.

    Offers of the server are verified with the keys in --trust before the MCU hears of them, and kept over a restart.

    Example: flota ncp run --serial /dev/serial0 --server http://127.0.0.1:8080 --token-file pump-1.token
    --device pump-1 --state /var/lib/flota-ncp --trust trust.json
    """
    from flota.gateway.configuration import read_token, read_trust_files, server_url
    from flota.gateway.ncp_settings import NcpRunSettings, become_ncp

    if token is not None and token_file is not None:
        raise WrongUse("give --token or --token-file, not both")
    check_option("--server", server_url, server)
    settings = NcpRunSettings(
        serial=serial,
        server=server,
        device=device,
        state=str(state.absolute()),
        trust=[str(path.absolute()) for path in trust or []],
        token=token if token_file is None else read_token(token_file),
        is_gateway_token=gateway_token,
        tenant=tenant,
        board=board,
        device_type=device_type,
        hardware_revision=hardware_revision,
        cacert=None if cacert is None else str(cacert.absolute()),
        baud=baud,
        max_baud=max_baud,
        chunk_max_bytes=chunk,
        poll_s=poll_s,
        settle_s=settle_s,
        start_wait_s=start_wait_s,
        report_limit_s=report_limit_s,
        log_json=log_json,
        log_level=log_level,
        with_parent=with_parent,
    ).checked()
    read_trust_files(list(trust or []))
    become_ncp(settings)


@app.command()
def status(
    state: Annotated[Path, typer.Option("--state", metavar="DIR", exists=True, file_okay=False, help="Its directory.")],
    as_json: AsJson = False,
) -> None:
    """Show what an NCP remembers; it may run meanwhile.

    Example: flota ncp status --state /var/lib/flota-ncp
    """
    import msgspec

    from flota.gateway.ncp_journal import NcpJournal

    record = NcpJournal(state, clean=False).read()
    if as_json:
        echo_json(None if record is None else msgspec.to_builtins(record))
        return
    job = None if record is None else record.job
    facts = (
        (None,) * 5
        if job is None
        else (job.version, job.state.value, job.outcome or None, job.told, job.reason or None)
    )
    rows = [] if record is None else [(record.device, record.runs_version, *facts)]
    print_table(("device", "runs", "update", "state", "outcome", "told", "reason"), rows)
