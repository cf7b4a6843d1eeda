"""What many idle MQTT connections cost `flota up`, how soon all of them hear of a job, and are back after a restart.

Run: python benchmarks/mqtt_connections.py [--plain 10000] [--tls 2000]. The things are real ones with tokens, or with
certificates of their own; each subscribes to its jobs/notify-next. Memory is the growth of the server's resident set,
after the first tenth of the connections, for each connection. Devices and server share this machine's CPUs.
"""

from __future__ import annotations

import sys

if not __package__:
    sys.path[0] += "/.."  # not this directory: benchmarks/inspect.py is no replacement for the standard library's

import argparse
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import httpx  # here, so that its import is no part of what is timed
from benchmarks._mqtt_fleet import ROOT, TYPE, Up, a_directory, add_things, flota_up
from benchmarks._mqtt_idle import Plan
from benchmarks._mqtt_load import Plan as Load
from benchmarks._mqtt_load import thing_name

PLAIN_GOAL_KB = 12.0
TLS_GOAL_KB = 32.0
NOTIFY_GOAL_S = 3.0
RETURN_GOAL_S = 30.0
REGISTER_AT_ONCE = 8


class Devices:
    """The process of all devices."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("the devices' process ended")
        found: dict[str, float] = json.loads(line)
        return found

    def ask(self, command: str) -> dict[str, float]:
        self.tell(command)
        return self.answer()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", type=int, default=10_000)
    parser.add_argument("--tls", type=int, default=2_000)
    options = parser.parse_args()
    with a_directory() as directory:
        if options.plain:
            plain(directory, options.plain)
        if options.tls:
            mutual_tls(directory, options.tls)


def plain(directory: Path, count: int) -> None:
    with flota_up(directory) as up:
        add_things(up, count + 1)
        names = [thing_name(Load("", 0, 0, 0, ""), number) for number in range(count + 1)]
        up.ship("2.0.0", to=names[count])  # publishes the release; this one is not connected
        with devices(Plan("127.0.0.1", up.mqtt[1], names[:count])) as fleet:
            each_kb, seconds = memory(up, fleet, count)
            report(f"{count} plain connections (in {seconds:.0f} s), memory each", each_kb, "KB", PLAIN_GOAL_KB)
            fleet.ask("notify")
            asked = time.time()
            post(up, "/api/v1/rollouts", {"release": f"{TYPE}@2.0.0", "select": "all", "name": "everybody"})
            told = fleet.answer()
            report(
                f"a job announced to {told['told']:.0f}: last notify after", told["last"] - asked, "s", NOTIFY_GOAL_S
            )


def mutual_tls(directory: Path, count: int) -> None:
    certificates = directory / "certificates"
    certificates.mkdir()
    names = [f"secure-{number:05}" for number in range(count)]
    with flota_up(directory) as up:
        certify(up, names, certificates)
    with flota_up(directory) as up:
        port = up.mqtts[1]
        plan = Plan("127.0.0.1", port, names, str(certificates))
        with devices(plan) as fleet:
            each_kb, seconds = memory(up, fleet, count)
            report(f"{count} mutual-TLS connections (in {seconds:.0f} s), memory each", each_kb, "KB", TLS_GOAL_KB)
            fleet.ask("return")
            restart(directory, up, port, fleet, count)


def restart(directory: Path, up: Up, port: int, fleet: Devices, count: int) -> None:
    """End the server as a crash would, start it at the same port, and wait for everybody."""
    subprocess.run(["kill", "-KILL", str(up.pid)], check=True)
    killed = time.time()
    with flota_up(directory, mqtts=f":{port}"):
        back = fleet.answer()
        report(
            f"{back['back']:.0f} of {count} back after a kill -9, the start included",
            back["last"] - killed,
            "s",
            RETURN_GOAL_S,
        )


def memory(up: Up, fleet: Devices, count: int) -> tuple[float, float]:
    """Connect everybody; returns KB of the server for each connection, and the seconds that it took."""
    first = count // 10
    began = fleet.ask(f"connect {first}")["seconds"]
    before = up.resident_kb
    seconds = began + fleet.ask(f"connect {count - first}")["seconds"]
    return (up.resident_kb - before) / (count - first), seconds


def certify(up: Up, names: list[str], directory: Path) -> None:
    """Register a thing with a certificate for each name; one key for all of them, which no server can tell."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    from flota.trust.certificates import new_key, pack_key

    key = new_key()
    (directory / "device.key").write_bytes(pack_key(key))
    shutil.copy(up.directory / "data" / "ca" / "root.crt", directory / "root.crt")

    def register(name: str) -> None:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        pem = request.public_bytes(serialization.Encoding.PEM).decode()
        made = post(up, "/api/v1/things", {"name": name, "type": TYPE, "csr": pem})
        (directory / f"{name}.crt").write_text(str(made["certificate"]["certificate"]))

    with ThreadPoolExecutor(REGISTER_AT_ONCE) as pool:
        list(pool.map(register, names))


def post(up: Up, path: str, body: object) -> dict[str, dict[str, object]]:
    token = (up.directory / "data" / "admin.token").read_text().strip()
    answer = httpx.post(up.http + path, json=body, headers={"authorization": f"Bearer {token}"}, timeout=120)
    if answer.is_error:
        sys.exit(answer.text)
    found: dict[str, dict[str, object]] = answer.json()
    return found


@contextlib.contextmanager
def devices(plan: Plan) -> Iterator[Devices]:
    command = [sys.executable, "-m", "benchmarks._mqtt_idle"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        fleet = Devices(process)
        fleet.tell(json.dumps(asdict(plan)))
        yield fleet
        fleet.tell("quit")


def report(what: str, found: float, unit: str, goal: float) -> None:
    """Print a figure beside its goal."""
    met = "met" if found <= goal else "NOT MET"
    print(f"{what} {found:.1f} {unit} (goal <= {goal:g} {unit}: {met})", flush=True)


if __name__ == "__main__":
    main()
