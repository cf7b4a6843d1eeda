"""Import structlog without rich, which it loads for pretty tracebacks where rich is installed.

rich and pygments are for the commands that draw; in a server that runs for years they would be 12 MiB for nothing.
Source: structlog's structlog/dev.py and structlog/tracebacks.py, which do without rich when it cannot be imported.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast


def import_structlog_alone() -> None:
    """Load structlog, pretending for so long that rich is absent; nothing if either is loaded already."""
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    sys.modules["rich"] = cast("ModuleType", None)  # what makes the import system raise ImportError
    try:
        import structlog.dev  # noqa: F401
    finally:
        del sys.modules["rich"]
