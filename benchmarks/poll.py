"""Polls of hawkBit clients: how many a second, how late, at what memory; server and fleet share this machine's CPUs.

Run: python benchmarks/poll.py [--devices 10000] [--many 100000] [--rounds 5]. Beside each rate of unchanged polls
stands that of a handler on the same server that looks at nothing: their ratio is what the handling costs anywhere.
"""

from __future__ import annotations

import sys

if not __package__:
    sys.path[0] += "/.."  # not this directory: benchmarks/inspect.py is no replacement for the standard library's

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from benchmarks._poll_load import Figures, Plan, device_name, secret_of
from benchmarks._side_by_side import Rival, resident_mb

if TYPE_CHECKING:
    from flota.digests import FileDigests
    from flota.fleet.releases import Release
    from flota.fleet.scope import Scope
    from flota.fleet.storage import Transaction

ROOT = Path(__file__).parent.parent
BATCH = 5000
POLLS = 60_000
TLS_POLLS = 4000
TLS_DEVICES = 1000
REGISTRATIONS = 3000

RATE_GOAL = 12_000.0
P99_GOAL_MS = 50.0
CEILING_GOAL = 0.3
TLS_GOAL = 1000.0
MANY_GOAL = 0.8
UPDATE_GOAL = 1000.0
REGISTRATION_GOAL = 500.0
RESIDENT_GOAL_MB = 250.0


@dataclass(frozen=True)
class Up:
    """A running `flota up`, or the constant answer in its place."""

    pid: int
    http: str
    https: str = ""
    token: str = ""

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far."""
        return Rival("flota", (self.pid,), {}).cpu_s()


@dataclass(frozen=True)
class Run:
    """What a fleet saw, and what it cost: CPU microseconds an answer, which other load changes little."""

    per_s: float
    p99_ms: float
    cpu_us: float
    generator_us: float

    def __str__(self) -> str:
        return f"{self.per_s:.0f}/s (CPU each: server {self.cpu_us:.0f} us, generator {self.generator_us:.0f} us)"


@dataclass
class Fleet:
    """Devices that poll one server, and what came of it: pairs of a run, and one of the constant answer after it."""

    server: Up
    devices: int
    pairs: list[tuple[Run, Run]] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        """The median rate."""
        return statistics.median(one.per_s for one, _ in self.pairs)

    def first_polls(self) -> None:
        """Let each device poll for the first time since the start."""
        first = run(self.server, plan_for(self.server.http, devices=self.devices, polls=self.devices))
        print(f"{self.devices} devices: first polls after a start {first}, p99 {first.p99_ms:.0f} ms", flush=True)

    def round(self, ceiling: Up) -> None:
        """Poll again, then the constant answer in the same way."""
        plan = plan_for(self.server.http, devices=self.devices, polls=max(POLLS, self.devices))
        self.pairs.append((run(self.server, plan), run(ceiling, replace(plan, **address(ceiling.http)))))

    def report(self) -> None:
        """Print the figures of unchanged polls."""
        p99 = statistics.median(one.p99_ms for one, _ in self.pairs)
        ratio = statistics.median(one.per_s / other.per_s for one, other in self.pairs)
        print(f"\n{self.devices} devices:", ", ".join(f"{one} : {other}" for one, other in self.pairs))
        report("unchanged polls, kept alive", f"{self.per_s:.0f}/s", f">= {RATE_GOAL:.0f}/s", self.per_s >= RATE_GOAL)
        report("    p99", f"{p99:.1f} ms", f"< {P99_GOAL_MS:.0f} ms", p99 < P99_GOAL_MS)
        report("    of a constant answer", f"{ratio:.2f}", f">= {CEILING_GOAL}", ratio >= CEILING_GOAL)

    def report_memory(self) -> None:
        """Print what the server holds."""
        resident = resident_mb(self.server.pid)
        report("resident", f"{resident:.0f} MB", f"<= {RESIDENT_GOAL_MB:.0f} MB", resident <= RESIDENT_GOAL_MB)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=100_000, help="the second fleet's devices; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with constant_answer() as ceiling, flota_up(options.devices) as server:
        few = Fleet(server, options.devices)
        if options.many:
            with flota_up(options.many) as other:
                side_by_side(few, Fleet(other, options.many), ceiling, options.rounds)
        else:
            few.first_polls()
            for _ in range(options.rounds):
                few.round(ceiling)
            few.report()
        plan = plan_for(server.https, devices=TLS_DEVICES, polls=TLS_DEVICES, tls_each=True)
        run(server, plan)  # links name the scheme: the first poll over TLS has another answer
        tls = run(server, replace(plan, polls=TLS_POLLS))
        report("    each on a fresh TLS 1.3 connection", str(tls), f">= {TLS_GOAL:.0f}/s", tls.per_s >= TLS_GOAL)
        registrations(server)
        updates(server, options.devices)
        few.report_memory()


def side_by_side(few: Fleet, many: Fleet, ceiling: Up, rounds: int) -> None:
    """Measure two fleets in turns: one after the other, what else the machine does at the time would decide."""
    for fleet in (few, many):
        fleet.first_polls()
    for _ in range(rounds):
        for fleet in (few, many):
            fleet.round(ceiling)
    few.report()
    many.report()
    many.report_memory()
    ratio = statistics.median(
        there.per_s / here.per_s for (here, _), (there, _) in zip(few.pairs, many.pairs, strict=True)
    )
    report(f"{many.devices} devices against {few.devices}", f"{ratio:.2f}", f">= {MANY_GOAL}", ratio >= MANY_GOAL)


def updates(server: Up, devices: int) -> None:
    """Open a wave for every device, then let each poll once and find it."""
    ask(server, "/rollouts", {"release": "pump@2.0.0", "select": "all", "name": "benchmark"})
    for _ in range(600):
        if ask(server, "/rollouts/benchmark")["waves"][0]["counts"].get("QUEUED", 0) == devices:
            break
        time.sleep(0.1)
    plan = plan_for(server.http, devices=devices, polls=devices, must_contain='"deploymentBase"')
    found = run(server, plan)
    report("polls that find an update", str(found), f">= {UPDATE_GOAL:.0f}/s", found.per_s >= UPDATE_GOAL)


def registrations(server: Up) -> None:
    """Let strangers poll, for whom a gateway vouches: each becomes a device that waits to be accepted."""
    plan = plan_for(server.http, devices=REGISTRATIONS, polls=REGISTRATIONS, scheme="GatewayToken", prefix="new")
    made = run(server, plan)
    report("registrations", str(made), f">= {REGISTRATION_GOAL:.0f}/s", made.per_s >= REGISTRATION_GOAL)


def plan_for(url: str, *, devices: int, polls: int, **more: object) -> Plan:
    return Plan(**{**address(url), "devices": devices, "polls": polls, **more})  # type: ignore[arg-type]


def address(url: str) -> dict[str, object]:
    parts = urlsplit(url)
    return {"host": parts.hostname, "port": parts.port}


def run(server: Up, plan: Plan) -> Run:
    """Let the fleet poll; one wrong answer ends the benchmark."""
    command = [sys.executable, "-m", "benchmarks._poll_load", json.dumps(asdict(plan))]
    before, children = server.cpu_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    figures = Figures(**json.loads(output))
    if figures.wrong:
        sys.exit(f"{figures.wrong} wrong answers: {figures.statuses}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    generator_s = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    each = 1e6 / plan.polls
    return Run(figures.per_s, figures.p99_ms, (server.cpu_s - before) * each, generator_s * each)


def report(what: str, value: str, goal: str, met: bool) -> None:
    print(f"{what}: {value} (goal {goal}: {'met' if met else 'NOT MET'})", flush=True)


def ask(server: Up, path: str, body: dict[str, object] | None = None) -> dict[str, dict[str, dict[str, int]]]:
    import httpx

    headers = {"authorization": f"Bearer {server.token}"}
    method = "GET" if body is None else "POST"
    answer = httpx.request(method, f"{server.http}/api/v1{path}", headers=headers, json=body, timeout=120)
    answer.raise_for_status()
    found: dict[str, dict[str, dict[str, int]]] = answer.json()
    return found


@contextlib.contextmanager
def flota_up(devices: int) -> Iterator[Up]:
    """Run `flota up` over a database with so many devices, a published release and a gateway's token."""
    with tempfile.TemporaryDirectory(prefix="flota-bench-") as directory:
        data = Path(directory) / "data"
        (data / "artifacts").mkdir(parents=True)
        asyncio.run(prepare(data, devices))
        command = [sys.executable, "-m", "flota", "up", "--data", str(data), "--http", ":0", "--https", ":0", "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            token = Path(ready["token_file"]).read_text().strip()
            yield Up(process.pid, ready["http"], ready["https"], token)
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def constant_answer() -> Iterator[Up]:
    """Run the handler that looks at nothing; gives where."""
    command = [sys.executable, "-m", "benchmarks._constant_answer"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield Up(process.pid, process.stdout.readline().strip())
    finally:
        process.terminate()
        process.wait(60)


async def prepare(data: Path, devices: int) -> None:
    """Write what the fleet needs straight into the database: the API would take longer than the benchmark."""
    from flota.fleet.devices import DeviceState, UnknownDevices
    from flota.fleet.releases import Artifact, ReleaseState
    from flota.fleet.scope import Scope
    from flota.fleet.storage import NewDevice, NewDeviceType, NewGatewayToken
    from flota.server.first_start import ensure_tenant
    from flota.store.artifacts import ArtifactStore
    from flota.store.database import Database

    now = datetime.now(UTC)
    with ArtifactStore(data / "artifacts").upload() as upload:
        upload.write(b"\xe9" + bytes(5000))
        digests = upload.finish()
    plan = Plan("", 0, 0, devices)
    async with await Database.open(f"sqlite+aiosqlite:///{data}/flota.sqlite3") as database:
        scope = Scope((await ensure_tenant(database, now=now)).id, "benchmark")
        async with database.transaction() as tx:
            pump = NewDeviceType("pump", "esp32-c3", unknown_devices=UnknownDevices.HOLD, signature_threshold=1)
            await tx.add_device_type(scope, pump, now=now)
            await tx.add_artifact(scope, Artifact(digests, "pump.bin", "esp-app", "2.0.0", None, {}, now))
            release = await publish(tx, scope, digests, now)
            assert release.state is ReleaseState.PUBLISHED
            gateway = NewGatewayToken("all", digest(secret_of("", "GatewayToken")), all_devices=True, type_name="pump")
            await tx.add_gateway_token(scope, gateway, now=now)
        for start in range(0, devices, BATCH):
            names = [device_name(plan, number) for number in range(start, min(devices, start + BATCH))]
            new = [
                NewDevice(name, "pump", DeviceState.ACCEPTED, digest(secret_of(name, plan.scheme))) for name in names
            ]
            async with database.transaction() as tx:
                await tx.add_devices(scope, new, now=now)


async def publish(tx: Transaction, scope: Scope, digests: FileDigests, now: datetime) -> Release:
    """Return a published release, signed by a key that is made for it."""
    from flota.fleet.devices import TrustedSigner
    from flota.fleet.releases import ReleaseSignature, ReleaseState
    from flota.fleet.storage import NewRelease
    from flota.trust.keys import PrivateKey
    from flota.trust.manifest import Manifest, ManifestComponent, pack_manifest

    key = PrivateKey.generate("ed25519")
    await tx.set_signers(scope, "pump", (TrustedSigner(key.key_id, key.public_pem),), 1, now=now)
    sequence = await tx.next_sequence(scope, "pump")
    component = ManifestComponent("app", "esp-app", digests.size, digests.sha256)
    manifest = pack_manifest(Manifest("pump", "esp32-c3", None, "2.0.0", sequence, None, (component,), issued_at=now))
    release = await tx.add_release(
        scope, NewRelease("pump", "2.0.0", sequence, digests.sha256, manifest, None, filename="pump.bin"), now=now
    )
    signature = base64.b64encode(key.sign(manifest).signature).decode()
    await tx.add_signature(scope, release.id, ReleaseSignature(key.key_id, "ed25519", signature), now=now)
    await tx.set_release_state(scope, release.id, ReleaseState.SIGNED, now=now)
    return await tx.set_release_state(scope, release.id, ReleaseState.PUBLISHED, now=now)


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


if __name__ == "__main__":
    main()
