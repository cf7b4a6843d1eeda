"""`flota discover`: boards on the local network. Needs no server."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flota.cli.output import EXIT_DONE, echo, echo_json, print_table, warn
from flota.errors import WrongUse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flota.protocols.arduino_mdns import DiscoveredBoard

app = typer.Typer(add_completion=False)

COLUMNS = ("instance", "board", "address", "port", "port from", "password", "push")


@app.command()
def discover(
    as_json: Annotated[bool, typer.Option("--json", help="As data; with --watch one object a line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C, a line for every change.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="How long to look.")] = 5.0,
    interface: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Listen only on this address of this machine; repeatable."),
    ] = None,
    ameba_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where AmebaD boards take updates that announce 5000.")
    ] = 8082,
    arduino: Annotated[
        bool, typer.Option("--arduino", help="Be a pluggable discovery for Arduino IDE 2 and arduino-cli.")
    ] = False,
) -> None:
    """Find boards that announce themselves as Arduino boards do (mDNS, _arduino._tcp).

    Nothing is connected to. AmebaD boards announce a port that takes no update: theirs comes from a profile, and the
    table says so.

    Examples:
        flota discover

        flota discover --watch --json
    """
    if arduino and (watch or as_json):
        raise WrongUse("--arduino speaks its own language: leave out --watch and --json")
    if arduino:
        asyncio.run(_arduino(interface, ameba_port))
    elif watch:
        asyncio.run(_watch(interface, ameba_port, as_json=as_json))
    else:
        _once(seconds, interface, ameba_port, as_json=as_json)


def _once(seconds: float, interfaces: list[str] | None, ameba_port: int, *, as_json: bool) -> None:
    from flota.gateway.discover import board_as_dict
    from flota.gateway.discover import discover as discover_boards

    found = asyncio.run(discover_boards(seconds=seconds, interfaces=interfaces, ameba_port=ameba_port))
    if as_json:
        echo_json([board_as_dict(board) for board in found])
        return
    if not found:
        warn(f"no board announced itself within {seconds:g} s")
        warn("  Is it in the same network, and does its sketch announce it? Routers often keep mDNS from Wi-Fi guests.")
        raise typer.Exit(EXIT_DONE)
    print_table(COLUMNS, [_row(board) for board in found])


async def _watch(interfaces: list[str] | None, ameba_port: int, *, as_json: bool) -> None:
    from flota.gateway.discover import board_as_dict, watch_boards

    async for change in watch_boards(interfaces=interfaces, ameba_port=ameba_port):
        if as_json:
            facts = {"event": "gone"} if change.board is None else {"event": "found", **board_as_dict(change.board)}
            echo(json.dumps({"name": change.name, **facts}, ensure_ascii=False))
        elif change.board is None:
            echo(f"- {change.name}")
        else:
            echo("+ " + "  ".join(str(cell) for cell in _row(change.board)))


async def _arduino(interfaces: list[str] | None, ameba_port: int) -> None:
    from flota.gateway.arduino_dialogue import run_dialogue

    await run_dialogue(_lines(), echo, interfaces=interfaces, ameba_port=ameba_port)


async def _lines() -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            return
        yield line


def _row(board: DiscoveredBoard) -> tuple[object, ...]:
    return (
        board.instance,
        board.board,
        board.address,
        board.upload_port,
        board.port_basis.value,
        "yes" if board.needs_password else "no",
        board.kind.value,
    )
