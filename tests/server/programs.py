"""Programs that tests run as independent clients: found, or their absence reported by name."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest


def find_program(name: str) -> str:
    """Return the program's path; skips the test, naming the program, where it is absent (FLOTA_TEST_ALL: fails)."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        if os.environ.get("FLOTA_TEST_ALL"):
            pytest.fail(f"{name} is not installed, and FLOTA_TEST_ALL forbids leaving it out")
        pytest.skip(f"not run: {name} is not installed")
    return path


@dataclass(frozen=True)
class Answer:
    """What curl received. `headers` has lower-case names; `version` is e.g. `2` or `1.1`."""

    status: int
    version: str
    headers: dict[str, str]
    body: bytes
    exit_status: int


async def curl(*arguments: str | Path) -> Answer:
    """Run curl and return the (last) answer that it got."""
    mark = b"\n--curl-says--"
    process = await asyncio.create_subprocess_exec(
        find_program("curl"), "-s", "-i", "--max-time", "20", "-w", f"{mark.decode()}%{{http_version}} %{{http_code}}",
        *map(str, arguments), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    received, _, said = output.rpartition(mark)
    version, status = said.decode().split()
    head, _, body = received.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    lines = [line.split(":", 1) for line in head.decode("latin-1").split("\r\n")[1:] if ":" in line]
    headers = {name.lower(): value.strip() for name, value in lines}
    assert process.returncode is not None
    return Answer(int(status), version, headers, body, process.returncode)
