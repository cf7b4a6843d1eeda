"""Where the real vendor files are. They are third-party binaries, so they are not part of the repository.

Directory: the environment variable `FLOTA_VENDOR_DATA`, else `../shared/data` beside the repository.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def vendor_directory() -> Path:
    named = os.environ.get("FLOTA_VENDOR_DATA")
    return Path(named) if named else REPOSITORY.parent / "shared" / "data"


def vendor_file(name: str) -> Path:
    """The path of a vendor file, such as `esp32/parsed.json`; skips the test by name when it is absent."""
    path = vendor_directory() / name
    if not path.exists():
        pytest.skip(f"vendor file {name} is absent (set FLOTA_VENDOR_DATA)")
    return path


def vendor_bytes(name: str) -> bytes:
    return vendor_file(name).read_bytes()


def vendor_json(name: str) -> Any:
    return json.loads(vendor_file(name).read_text("utf-8"))


def vendor_names(pattern: str) -> list[str]:
    """Names of the vendor files that match, for parametrising; one placeholder that skips when there are none."""
    directory = vendor_directory()
    found = sorted(str(path.relative_to(directory)) for path in directory.glob(pattern)) if directory.exists() else []
    return found or [pattern]
