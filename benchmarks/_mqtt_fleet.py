"""What the MQTT benchmarks share: a `flota up` with things, a release for them, and mosquitto as the peer."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks._mqtt_load import Plan, secret_of, thing_name
from benchmarks._side_by_side import Rival, _cpu_s, free_port, program, resident_mb

ROOT = Path(__file__).parent.parent
TYPE = "aws-reference"
FILE_BYTES = 1 << 20

PLAIN_ASYNCIO = "import sys; sys.modules['uvloop'] = None; from flota.cli.app import main; main()"
"""`flota` on asyncio's own loop: uvloop cannot be imported."""

MOSQUITTO = """
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages 0
max_queued_messages 0
set_tcp_nodelay true
log_dest none
"""


@dataclass(frozen=True)
class Up:
    """A running `flota up` with its things."""

    pid: int
    directory: Path
    http: str
    mqtt: tuple[str, int]
    mqtts: tuple[str, int]

    @property
    def cpu_s(self) -> float:
        return Rival("flota", (self.pid,), {}).cpu_s()

    @property
    def resident_kb(self) -> float:
        return resident_mb(self.pid) * 1024

    def flota(self, *arguments: str | Path) -> str:
        """Run a command of ours against this server and return what it prints."""
        return _flota(self.directory, *arguments)

    def ship(self, version: str, *, to: str = "all") -> None:
        """Release the file under this version and open a rollout for it."""
        keys = ["--key", "release", "--code-key", "code", "--trust-key", "--no-wait"]
        file = self.directory / "file.bin"
        self.flota("ship", file, "--type", TYPE, "--version", version, "--to", to, *keys)


@contextlib.contextmanager
def a_directory() -> Iterator[Path]:
    """Give a directory with a file to send, a data directory's place, and keys."""
    with tempfile.TemporaryDirectory(prefix="flota-bench-") as name:
        directory = Path(name)
        (directory / "file.bin").write_bytes(random.Random(1).randbytes(FILE_BYTES))
        _flota(directory, "key", "create", "release")
        _flota(directory, "key", "create", "code", "--code-signing", "--subject", "benchmark")
        yield directory


@contextlib.contextmanager
def flota_up(directory: Path, *, uvloop: bool = True, mqtts: str = ":0") -> Iterator[Up]:
    """Run the server; its data directory stays, so that it can be started again."""
    start = [sys.executable, *(["-m", "flota"] if uvloop else ["-c", PLAIN_ASYNCIO]), "up"]
    where = ["--http", ":0", "--no-https", "--mqtt", ":0", "--mqtts", mqtts]
    command = [*start, "--data", str(directory / "data"), *where, "--no-gateway", "--json"]
    with (directory / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(f"flota up did not start: {(directory / 'server.log').read_text()[-2000:]}")
        ready = json.loads(line)
        yield Up(process.pid, directory, ready["http"], _address(ready["mqtt"]), _address(ready["mqtts"]))
    finally:
        process.terminate()
        process.wait(60)


def add_things(up: Up, count: int) -> None:
    """Register so many things with the tokens that the load generator uses."""
    plan = Plan("", 0, 0, 0, "")
    lines = ["name,type,token"]
    lines += [f"{name},{TYPE},{secret_of(name)}" for name in (thing_name(plan, number) for number in range(count))]
    file = up.directory / "things.csv"
    file.write_text("\n".join(lines) + "\n")
    up.flota("device", "import", file)


@dataclass(frozen=True)
class Peer:
    """mosquitto and the responder behind it."""

    port: int
    pids: tuple[int, ...]

    @property
    def cpu_s(self) -> float:
        return sum(_cpu_s(pid) for pid in self.pids)


@contextlib.contextmanager
def mosquitto(directory: Path, qos: int) -> Iterator[Peer]:
    """Run mosquitto with a gmqtt responder that answers at this QoS."""
    port = free_port()
    configuration = directory / "mosquitto.conf"
    configuration.write_text(MOSQUITTO.format(port=port))
    broker = subprocess.Popen([program("mosquitto"), "-c", str(configuration)])
    responder = None
    try:
        time.sleep(0.5)
        command = [sys.executable, "-m", "benchmarks._gmqtt_responder", "127.0.0.1", str(port), str(qos)]
        responder = subprocess.Popen([*command, str(directory / "file.bin")], stdout=subprocess.PIPE, cwd=ROOT)
        assert responder.stdout is not None
        assert responder.stdout.readline() == b"ready\n"
        yield Peer(port, (broker.pid, responder.pid))
    finally:
        for process in (responder, broker):
            if process is not None:
                process.terminate()
                process.wait(60)


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.partition("://")[2].rpartition(":")
    return host, int(port)


def _flota(directory: Path, *arguments: str | Path) -> str:
    environment = {**os.environ, "FLOTA_DATA": str(directory / "data"), "FLOTA_KEYS": str(directory / "keys")}
    done = subprocess.run(
        [sys.executable, "-m", "flota", *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        sys.exit(f"flota {' '.join(map(str, arguments[:2]))}: {done.stderr or done.stdout}")
    return done.stdout
