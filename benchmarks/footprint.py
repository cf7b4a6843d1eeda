"""What Flota costs while it does nothing: CPU of `flota --help`, resident memory of an idle `flota up`.

Run: python benchmarks/footprint.py [--rounds 5].
"""

from __future__ import annotations

import sys

if not __package__:
    sys.path[0] += "/.."  # not this directory: benchmarks/inspect.py is no replacement for the standard library's

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
import time

from benchmarks._side_by_side import resident_mb

HELP_GOAL_S = 0.3
IDLE_GOAL_MB = 120
SETTLE_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    ours, bare = [], []
    for _ in range(rounds):
        ours.append(cpu_s([sys.executable, "-m", "flota", "--help"]))
        bare.append(cpu_s([sys.executable, "-c", "pass"]))
    help_s = statistics.median(ours)
    ratio = help_s / statistics.median(bare)
    report(
        "flota --help, CPU",
        f"{help_s:.3f} s, {ratio:.1f} times an empty Python",
        f"< {HELP_GOAL_S} s",
        help_s < HELP_GOAL_S,
    )
    idle = idle_mb()
    report("flota up, idle", f"{idle:.0f} MB resident", f"<= {IDLE_GOAL_MB} MB", idle <= IDLE_GOAL_MB)


def cpu_s(command: list[str]) -> float:
    """Run a command and return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def idle_mb() -> float:
    """Start a server in an empty data directory and return its resident memory once it is quiet."""
    with tempfile.TemporaryDirectory(prefix="flota-bench-") as directory:
        command = [
            sys.executable,
            "-m",
            "flota",
            "up",
            "--data",
            f"{directory}/data",
            "--http",
            ":0",
            "--https",
            ":0",
            "--json",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert process.stdout is not None
            json.loads(process.stdout.readline())
            time.sleep(SETTLE_S)
            return resident_mb(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def report(what: str, found: str, goal: str, met: bool) -> None:
    """Print a figure beside its goal."""
    print(f"{what}: {found} (goal {goal}: {'met' if met else 'NOT MET'})", flush=True)


if __name__ == "__main__":
    main()
