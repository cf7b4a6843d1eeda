"""`flota lab`: virtual devices to try things with: run one, flash it, read it, pull its plug."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flota.cli.lab_programmer import flash, power_cut, read_slot, reset
from flota.cli.lab_run import run
from flota.cli.lab_sweep import replay, sweep
from flota.cli.output import echo_json, print_table

app = typer.Typer(help="Virtual devices: run, flash, read, cut the power.", no_args_is_help=True, add_completion=False)

app.command()(sweep)
app.command()(replay)


@app.command()
def boards(as_json: Annotated[bool, typer.Option("--json", help="As data.")] = False) -> None:
    """List the boards that can be run virtually."""
    from flota.boards.catalogue import BOARDS

    rows = [_board_row(BOARDS[name]) for name in BOARDS]
    if as_json:
        echo_json(rows)
        return
    print_table(
        ["board", "boot", "flash", "slots", "dialects"],
        [[row["name"], row["boot"], row["flash"], row["slots"], row["dialects"]] for row in rows],
    )


app.command()(run)
app.command()(flash)
app.command(name="read-slot")(read_slot)
app.command()(reset)
app.command(name="power-cut")(power_cut)


def _board_row(board: Any) -> dict[str, str]:
    from flota.boards.fit import slots_of
    from flota.boards.model import TypeProfile

    slots = slots_of(TypeProfile(board))
    return {
        "name": board.name,
        "boot": board.boot,
        "flash": _size_text(board.flash_size),
        "slots": ", ".join(slot.name for slot in slots),
        "dialects": ", ".join(sorted(route.value for route in board.routes)),
    }


def _size_text(size: int) -> str:
    """Return a flash size for people: whole megabytes, else kilobytes; a dash for none."""
    if size % (1024 * 1024):
        return f"{size // 1024} KB"
    return f"{size // (1024 * 1024)} MB" if size else "-"
