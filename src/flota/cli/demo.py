"""`flota demo`: twenty-five virtual devices, a good release, and a bad one that is stopped."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flota.cli.output import EXIT_FAILED, EXIT_WRONG_USE, echo, echo_json, print_table, warn

if TYPE_CHECKING:
    from flota.lab.demo import DemoResult
    from flota.lab.local_server import LocalServer

app = typer.Typer(add_completion=False)

COLUMNS = ("device", "board", "route", "slot", "runs", "confirmed", "last update", "ended", "known by", "ok")


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server up at the end, until Ctrl-C.")] = False,
    directory: Annotated[
        Path | None, typer.Option("--data", help="Keep everything in this new directory (default: a temporary one).")
    ] = None,
    speed: Annotated[float, typer.Option(help="How much faster than real hardware the devices are.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the end state as JSON on stdout.")] = False,
) -> None:
    """Show a whole fleet update on this machine, in under a minute.

    Starts a server on free loopback ports, makes keys and releases, rolls version 2 out to 25 virtual devices by
    the routes they speak, then offers a version 3 that crashes and shows it stopped and rolled back. Exit status 0 only
    if every device runs, confirmed, what it should.

    Examples:
        flota demo

        flota demo --keep --data ./demo-data
    """
    from flota.cli.demo_screen import live_screen
    from flota.cli.with_parent import leave_on_signals
    from flota.lab.demo import Demo, DemoFailed

    if directory is not None and directory.exists() and any(directory.iterdir()):
        warn(f"error: {directory} is not empty\n  Name a new directory: the demo starts from nothing.")
        raise typer.Exit(EXIT_WRONG_USE)
    leave_on_signals()
    root = directory or Path(tempfile.mkdtemp(prefix="flota-demo-"))
    with contextlib.ExitStack() as stack:
        if directory is None:

            def remove(kind: type[BaseException] | None, _error: object, _traceback: object) -> None:
                if kind is not DemoFailed:  # its message names the log
                    shutil.rmtree(root, ignore_errors=True)

            stack.push(remove)
        screen = stack.enter_context(live_screen(quiet=as_json))
        show = Demo(root, screen, speed=speed)
        server = stack.enter_context(show.server())
        result = show.run(server)
        if as_json:
            echo_json(_as_dict(result))
        else:
            _print_end(result)
        if keep:
            _wait(server)
    if not result.good:
        raise typer.Exit(EXIT_FAILED)


def _print_end(result: DemoResult) -> None:
    print_table(COLUMNS, [_row(device) for device in _as_dict(result)["devices"]])  # type: ignore[attr-defined]
    echo()
    waves = ", ".join(f"wave {wave.number} ({wave.size}): {wave.state}" for wave in result.stopped.waves)
    echo(f"rollout '{result.stopped.name}': {result.stopped.state} - {result.stopped.reason} [{waves}]")
    for device in result.devices:
        if device.execution is not None and device.execution.state == "FAILED":
            reason = device.execution.details.get("reason", "no reason given")
            echo(f"  {device.device.name}: {reason}")
    echo()
    verdict = "Every device runs what it should." if result.good else "NOT every device is as it should be."
    echo(f"{verdict} First update after {result.first_update_s:.1f} s, all done after {result.total_s:.1f} s.")
    echo()
    flota = _program()
    echo("now yours:")
    echo(f"  {flota} up --data ./flota-data")
    echo(
        f"  {flota} key create release && {flota} type add pump --board esp32-c3 --signer release"
        f" && {flota} device add pump-1 --type pump"
    )
    echo(f"  {flota} ship your-app.bin --type pump --version 1.0 --to name=pump-1 --key release")


def _program() -> str:
    """How this program is called from here: by its name if the shell finds it, else by its path."""
    if shutil.which("flota"):
        return "flota"
    beside_python = Path(sys.executable).parent / "flota"
    if not beside_python.exists():
        return f"{sys.executable} -m flota"
    here = Path.cwd()
    return str(beside_python.relative_to(here) if beside_python.is_relative_to(here) else beside_python)


def _row(device: dict[str, object]) -> list[object]:
    return ["yes" if value is True else "NO" if value is False else value for value in device.values()][: len(COLUMNS)]


def _as_dict(result: DemoResult) -> dict[str, object]:
    devices = []
    for each in result.devices:
        last = each.execution
        devices.append(
            {
                "device": each.device.name,
                "board": each.device.board,
                "route": each.device.route,
                "slot": each.device.slot,
                "runs": each.device.running_version,
                "confirmed": each.device.confirmed,
                "last_update": each.offered_version,
                "ended": last.state if last else None,
                "known_by": last.basis if last else None,
                "ok": each.good,
                "reason": last.details.get("reason") if last else None,
            }
        )
    return {
        "devices": devices,
        "stopped_rollout": {
            "name": result.stopped.name,
            "state": result.stopped.state,
            "reason": result.stopped.reason,
        },
        "first_update_s": round(result.first_update_s, 2),
        "total_s": round(result.total_s, 2),
        "good": result.good,
    }


def _wait(server: LocalServer) -> None:
    import signal

    echo()
    echo(f"The server stays up at {server.address.http} with its data in {server.data}; Ctrl-C ends it.")
    echo(f"  flota device list --server {server.address.http} --token {server.address.token}")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
