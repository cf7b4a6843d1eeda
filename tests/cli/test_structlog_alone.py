"""A server does not carry what only drawing commands need."""

from __future__ import annotations

import subprocess
import sys

ALONE = """
import sys
from flota.cli.structlog_alone import import_structlog_alone
import_structlog_alone()
import structlog
assert structlog.dev.ConsoleRenderer is not None
assert not [name for name in sys.modules if name.split(".")[0] in ("rich", "pygments")]
import rich.console
import_structlog_alone()
assert rich.console.Console is not None
"""


def test_structlog_comes_without_rich_which_can_be_had_afterwards() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", ALONE], check=True, timeout=60)
