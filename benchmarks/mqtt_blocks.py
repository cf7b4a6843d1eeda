"""Blocks of a file over MQTT: Flota's own endpoint, on uvloop and on plain asyncio, beside mosquitto with a gmqtt
responder, all in the same run and asked by the same generator; server and generator share this machine's CPUs.

Run: python benchmarks/mqtt_blocks.py [--devices 50] [--per-request 4] [--seconds 5] [--rounds 3]. Real things with real
jobs ask the real server; requests and blocks go at the QoS named. CPU is that of all processes that serve.
"""

from __future__ import annotations

import sys

if not __package__:
    sys.path[0] += "/.."  # not this directory: benchmarks/inspect.py is no replacement for the standard library's

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass

from benchmarks._mqtt_fleet import ROOT, a_directory, add_things, flota_up, mosquitto
from benchmarks._mqtt_load import BEGIN, Figures, Plan

GOALS = {("uvloop", 0): 1.0, ("uvloop", 1): 1.0, ("asyncio", 0): 0.5, ("asyncio", 1): 1.0}
"""(Loop, QoS) -> blocks/s as a share of the peer's."""


@dataclass(frozen=True)
class Run:
    """Blocks a second as the devices saw them, and a second of the serving processes' CPU."""

    per_s: float
    per_cpu_s: float
    generator_share: float

    def __str__(self) -> str:
        return f"{self.per_s:.0f}/s, {self.per_cpu_s:.0f} a CPU second (generator {self.generator_share:.0%} of a core)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--per-request", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with a_directory() as directory:
        with flota_up(directory) as up:
            add_things(up, options.devices)
            up.ship("2.0.0")
        runs: dict[tuple[str, int], list[Run]] = {}
        for _ in range(options.rounds):
            for qos in (0, 1):
                plan = Plan(
                    "127.0.0.1",
                    0,
                    options.seconds,
                    qos,
                    str(directory / "file.bin"),
                    devices=options.devices,
                    per_request=options.per_request,
                )
                for loop in ("uvloop", "asyncio"):
                    with flota_up(directory, uvloop=loop == "uvloop") as up:
                        found = measure(plan, up.mqtt[1], lambda up=up: up.cpu_s)
                    runs.setdefault((loop, qos), []).append(found)
                with mosquitto(directory, qos) as peer:
                    found = measure(plan, peer.port, lambda peer=peer: peer.cpu_s, stream="any")
                runs.setdefault(("mosquitto", qos), []).append(found)
    for qos in (0, 1):
        report(qos, runs)


def measure(plan: Plan, port: int, cpu_s: Callable[[], float], *, stream: str = "") -> Run:
    """Let the generator fetch; returns what it saw and what the serving processes used meanwhile."""
    members = asdict(plan) | {"port": port, "stream": stream}
    command = [sys.executable, "-m", "benchmarks._mqtt_load", json.dumps(members)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as generator:
        assert generator.stdout is not None
        if generator.stdout.readline().strip() != BEGIN:
            sys.exit("the load generator did not begin")
        before = cpu_s()
        output = generator.stdout.read()
        used = cpu_s() - before
    figures = Figures(**json.loads(output))
    if figures.wrong:
        sys.exit(f"{figures.wrong} blocks were wrong")
    return Run(figures.per_s, figures.blocks / used, figures.cpu_s / figures.seconds)


def report(qos: int, runs: dict[tuple[str, int], list[Run]]) -> None:
    peers = runs["mosquitto", qos]
    print(f"\nQoS {qos}: mosquitto and gmqtt", "; ".join(map(str, peers)))
    for loop in ("uvloop", "asyncio"):
        ours = runs[loop, qos]
        ratio = statistics.median(one.per_s / peer.per_s for one, peer in zip(ours, peers, strict=True))
        cpu = statistics.median(one.per_cpu_s / peer.per_cpu_s for one, peer in zip(ours, peers, strict=True))
        goal = GOALS[loop, qos]
        print(f"    {loop}", "; ".join(map(str, ours)))
        met = "met" if ratio >= goal else "NOT MET"
        print(f"    {loop}: {ratio:.2f} of its blocks/s, {cpu:.2f} a CPU second (goal {goal}: {met})", flush=True)


if __name__ == "__main__":
    main()
