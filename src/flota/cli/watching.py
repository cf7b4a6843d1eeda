"""A rollout on the screen: one line for every change, a bar on a terminal, and how it ended."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flota.cli.output import EXIT_DONE, EXIT_FAILED, echo, warn

if TYPE_CHECKING:
    from collections.abc import Callable

    from flota.client.management import ManagementClient
    from flota.client.schemas import Rollout

_UNSUCCESSFUL = ("FAILED", "TIMED_OUT", "REJECTED")


def watch(client: ManagementClient, rollout: Rollout, *, after: int = 0) -> int:
    """Print what happens to a rollout until it has ended; returns the command's exit status."""
    from flota.client.following import describe_change, follow_rollout

    last = rollout
    with _bar(rollout) as show:
        for look in follow_rollout(client, rollout, after=after):
            if look.server_away:
                warn("the server does not answer; waiting for it")
            for entry in look.changes:
                line = describe_change(entry)
                if line is not None:
                    echo(f"{entry.at.astimezone():%H:%M:%S}  {line}")
            last = look.rollout
            show(last)
    return tell_end(client, last)


def tell_end(client: ManagementClient, rollout: Rollout) -> int:
    """Print how a rollout stands, with the reason of everything that failed; returns the exit status."""
    done = rollout.count("SUCCEEDED")
    echo(f"rollout {rollout.name}: {rollout.state}, {done} of {rollout.devices} devices run {rollout.version}")
    if rollout.state in ("succeeded", "active", "paused"):
        return EXIT_DONE
    if rollout.reason:
        warn(f"reason: {rollout.reason}")
    for execution in client.executions(rollout.id):
        if execution.state in _UNSUCCESSFUL:
            events = client.execution_events(execution.id)
            message = events[-1].message if events else ""
            warn(f"  {execution.device}  {execution.state}" + (f": {message}" if message else ""))
    untouched = sum(wave.size for wave in rollout.waves if wave.state == "not-opened")
    if untouched:
        warn(f"  {untouched} devices in later waves were never touched")
    return EXIT_FAILED


def one_line(rollout: Rollout) -> str:
    """Return how far a rollout is, in one line."""
    parts = [f"{rollout.count('SUCCEEDED')}/{rollout.devices} done"]
    running, failed = rollout.count("IN_PROGRESS"), rollout.count(*_UNSUCCESSFUL)
    if running:
        parts.append(f"{running} running")
    if failed:
        parts.append(f"{failed} failed")
    return ", ".join(parts)


@contextmanager
def _bar(rollout: Rollout) -> Iterator[Callable[[Rollout], None]]:
    """Give a function that shows how far a rollout is: a bar on a terminal, nothing elsewhere."""
    if not (sys.stderr.isatty() and sys.stdout.isatty()):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(rollout.name, total=max(rollout.devices, 1))

        def show(now: Rollout) -> None:
            ended = now.count("SUCCEEDED", *_UNSUCCESSFUL, "CANCELED", "REMOVED")
            bar.update(task, completed=ended, description=f"{now.name}  {one_line(now)}")

        yield show
