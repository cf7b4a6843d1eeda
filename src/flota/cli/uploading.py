"""A file on its way to the server: a bar on a terminal, a plain line elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flota.cli.output import warn

if TYPE_CHECKING:
    from pathlib import Path

    from flota.client.management import ManagementClient, Progress
    from flota.client.schemas import Artifact


def upload(client: ManagementClient, path: Path) -> Artifact:
    """Upload a file, showing how far it is on stderr; returns what the server stored."""
    with upload_progress(path.name) as progress:
        return client.upload_artifact(path, progress=progress)


@contextmanager
def upload_progress(name: str) -> Iterator[Progress]:
    """Give a function to be called with (bytes sent, bytes in all)."""
    if not sys.stderr.isatty():
        yield _plain(name)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"uploading {name}", total=None)
        yield lambda sent, size: bar.update(task, completed=sent, total=size)


def _plain(name: str) -> Progress:
    """Say one line at each quarter of files that take a while, and one at the end of others."""
    quarter_said = 0
    large_bytes = 16 * 1024 * 1024

    def progress(sent: int, size: int) -> None:
        nonlocal quarter_said
        quarter = 4 * sent // size if size else 4
        if quarter > quarter_said and (size >= large_bytes or quarter == 4):
            quarter_said = quarter
            warn(f"uploaded {sent} of {size} bytes of {name}")

    return progress
