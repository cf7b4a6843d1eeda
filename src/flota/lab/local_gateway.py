"""A `flota gateway run` of one's own on this machine, for boards on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STOP_WITHIN_S: Final = 20.0
LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What the gateway is given: `devices` is its name for each, with what `--device` takes behind the `=`."""

    server: str
    token: str
    trust: bytes
    devices: Mapping[str, str]
    options: Sequence[str] = ()


@contextmanager
def local_gateway(directory: Path, given: GatewayOptions) -> Iterator[None]:
    """Run a gateway as a process as long as the context is open; its state, log, token and trust file are kept.

    It ends with this process, too, however that ends.
    """
    directory.mkdir(parents=True, exist_ok=True)
    token, trust = directory / "token", directory / "trust.json"
    token.touch(mode=0o600)
    token.write_text(given.token)
    trust.write_bytes(given.trust)
    command = [sys.executable, "-m", "flota", "gateway", "run", "--server", given.server]
    command += ["--token-file", str(token), "--trust", str(trust), "--state", str(directory / "state")]
    command += ["--interface", LOOPBACK, "--with-parent", *given.options]
    for name, place in given.devices.items():
        command += ["--device", f"{name}={place}"]
    with (directory / "gateway.log").open("ab") as log:
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
