"""How the demo looks: a live table on a terminal, one line per change elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flota.cli.output import echo, warn

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from flota.lab.demo import FleetView, Screen

FRAMES_PER_SECOND = 8
COLUMN_WIDTHS = {"device": 13, "route": 11, "slot": 5, "runs": 5, "": 8, "update": 11}
"""Characters; they leave room for a few words of "now" on a terminal of 80."""


@contextlib.contextmanager
def live_screen(*, quiet: bool) -> Iterator[Screen]:
    """Return the screen that fits where stdout goes; `quiet` keeps stdout free and speaks on stderr."""
    if not quiet and sys.stdout.isatty():
        terminal = TerminalScreen()
        try:
            yield terminal
        finally:
            terminal.settle()
    else:
        yield LineScreen(warn if quiet else echo)


class LineScreen:
    """One line per step, and one per change of a device: for pipes and logs."""

    def __init__(self, say: object) -> None:
        self._say = say if callable(say) else echo
        self._last: dict[str, str] = {}

    def step(self, text: str) -> None:
        """Say what happens next."""
        self._say(f"==> {text}")

    def show(self, view: FleetView) -> None:
        """Say what changed since the last look."""
        for device in view.devices:
            execution = view.executions.get(device.name)
            state = execution.state if execution else "-"
            line = f"{device.name:<14} {device.slot or '-':<6} runs {device.running_version or '-':<6} update {state}"
            if self._last.get(device.name) != line:
                self._last[device.name] = line
                self._say(f"    {line}")

    def settle(self) -> None:
        """Nothing is pending: every line is out."""


class TerminalScreen:
    """A table that is redrawn in place while something is under way."""

    def __init__(self) -> None:
        self._live: Live | None = None

    def step(self, text: str) -> None:
        """Say what happens next, above the table."""
        self.settle()
        echo(f"==> {text}")

    def show(self, view: FleetView) -> None:
        """Draw the fleet."""
        from rich.live import Live

        if self._live is None:
            self._live = Live(refresh_per_second=FRAMES_PER_SECOND, transient=False)
            self._live.start()
        self._live.update(fleet_table(view))

    def settle(self) -> None:
        """Leave the last picture and end the redrawing."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def fleet_table(view: FleetView) -> Table:
    """Return the fleet as a table: what each device does, runs, and how its update stands."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    colours = {"SUCCEEDED": "green", "FAILED": "red", "IN_PROGRESS": "yellow", "QUEUED": "cyan", "CANCELED": "magenta"}
    table = Table(box=None, pad_edge=False)
    for head, width in COLUMN_WIDTHS.items():
        table.add_column(head, no_wrap=True, min_width=width, max_width=width)
    left_over = shutil.get_terminal_size().columns - sum(COLUMN_WIDTHS.values()) - 2 * len(COLUMN_WIDTHS) - 1
    table.add_column("now", no_wrap=True)
    for device in view.devices:
        execution = view.executions.get(device.name)
        state = execution.state if execution else "-"
        colour = colours.get(state, "dim")
        width = COLUMN_WIDTHS[""]
        bar = ProgressBar(total=100, completed=device.progress_percent, width=width) if device.progress_percent else ""
        table.add_row(
            device.name,
            device.route,
            device.slot or "-",
            device.running_version or "-",
            bar,
            f"[{colour}]{state}[/{colour}]",
            device.doing[: max(0, left_over)],
        )
    return table
