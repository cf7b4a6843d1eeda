"""A `flota ncp run` of one's own on this machine, at the other end of a virtual MCU's line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flota.lab.local_gateway import STOP_WITHIN_S


@dataclass(frozen=True, slots=True)
class NcpOptions:
    """What the NCP is given; `options` are further ones of `flota ncp run`."""

    server: str
    device: str
    device_type: str
    board: str
    serial: Path
    token: str = field(repr=False)
    trust: bytes = field(repr=False)
    options: Sequence[str] = ()


@contextmanager
def local_ncp(directory: Path, given: NcpOptions) -> Iterator[None]:
    """Run an NCP as a process as long as the context is open; its state, log, token and trust file are kept.

    It ends with this process, too, however that ends.
    """
    directory.mkdir(parents=True, exist_ok=True)
    token, trust = directory / "token", directory / "trust.json"
    token.touch(mode=0o600)
    token.write_text(given.token)
    trust.write_bytes(given.trust)
    command = [sys.executable, "-m", "flota", "ncp", "run", "--serial", str(given.serial), "--server", given.server]
    command += ["--device", given.device, "--type", given.device_type, "--board", given.board]
    command += ["--token-file", str(token), "--trust", str(trust), "--state", str(directory / "state")]
    command += ["--with-parent", *given.options]
    with (directory / "ncp.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own program with our own arguments
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
