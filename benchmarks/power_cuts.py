"""How many power cuts a second a sweep judges, at images of 64 KiB, 512 KiB and 3.5 MiB, on both cores.

Goals: at least 300 cuts/s at 64 KiB on two cores, and at 3.5 MiB at least a twentieth of the rate at 64 KiB. A rate
counts every case of depth 1, duplicates too; the second column counts only the states of their own. The processes run
and have recorded the life before the clock starts. The peer is what a sweep without snapshots would do: the same cuts
replayed one by one, each from the factory state.
"""

from __future__ import annotations

# ruff: noqa: E402
import sys
from pathlib import Path

# This directory holds a file called like a module of the standard library: it must not be searched by what follows.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import concurrent.futures
import multiprocessing
import os
import time

from flota.lab.cut_moments import CutMoment, moments_of
from flota.lab.esp_sweep_device import SweepAgent
from flota.lab.reproducer import Reproducer, replay
from flota.lab.sweep import Effort, Part, Pass, _reference, run_part
from flota.lab.sweep_subjects import SweepSubject
from flota.virtual.boot.esp_idf import BootBuild

KIB = 1024
SIZES = (64 * KIB, 512 * KIB, 3584 * KIB)
JOBS = 2
GOAL_RATE = 300.0
GOAL_SHARE = 1 / 20
PIECES = 16
OPERATIONS_MAX = 480
"""Operations judged at the larger sizes: an even choice of blocks of the whole life."""

REPLAYS = 12


def subject_of(size: int, agent: SweepAgent) -> SweepSubject:
    board = "esp32" if agent is SweepAgent.MICRO_RDK else "esp32-c3"
    return SweepSubject(board, agent, BootBuild.PLAIN, size, "two-updates")


def rate(subject: SweepSubject) -> tuple[float, float, int]:
    """Cases and distinct states a second of wall clock on two processes, and the operations that were judged."""
    count = len(_reference(subject).moments)
    block = max(min(count, OPERATIONS_MAX) // PIECES, 1)
    starts = [piece * count // PIECES for piece in range(PIECES)]
    parts = [Part(subject, Effort(), Pass.ONCE, range(start, min(start + block, count))) for start in starts]
    nothing = Part(subject, Effort(), Pass.ONCE, range(0))
    with concurrent.futures.ProcessPoolExecutor(JOBS, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(run_part, [nothing] * JOBS * 4))
        start = time.perf_counter()
        results = list(pool.map(run_part, parts))
        spent = time.perf_counter() - start
    assert not any(result.failed for result in results)
    cases = sum(result.cases for result in results)
    return cases / spent, sum(len(result.seen) for result in results) / spent, sum(len(part.share) for part in parts)


def replay_rate(subject: SweepSubject) -> float:
    """Cuts a second when every cut is a whole life with a real cut, on one core, times the cores."""
    moments = _reference(subject).moments
    chosen = moments[:: max(len(moments) // REPLAYS, 1)][:REPLAYS]
    start = time.perf_counter()
    for moment in chosen:
        name = moments_of(moment.operation, number=1)[1]
        assert not replay(Reproducer(subject, (CutMoment(moment.operation.number, name),))).broken
    return len(chosen) / (time.perf_counter() - start) * JOBS


def main() -> int:
    """Print the figures; 0 if the goals are met."""
    print(f"{os.cpu_count()} cores, {JOBS} processes, load {os.getloadavg()[0]:.1f}")
    heads = f"{'operations':>10} {'cuts/s':>8} {'distinct/s':>10} {'by replay/s':>11} {'share':>6}"
    print(f"{'agent':14} {'image':>9} {heads}")
    met = True
    for agent in (SweepAgent.MICRO_RDK, SweepAgent.ESP_HTTPS_OTA):
        first = 0.0
        for size in SIZES:
            cuts, distinct, operations = rate(subject_of(size, agent))
            first = first or cuts
            share = cuts / first
            peer = replay_rate(subject_of(size, agent))
            figures = f"{operations:>10} {cuts:8.0f} {distinct:10.0f} {peer:11.1f} {share:6.2f}"
            print(f"{agent.value:14} {size // KIB:>5} KiB {figures}", flush=True)
            met &= share >= GOAL_SHARE
        met &= first >= GOAL_RATE
    print(f"goals (300 cuts/s at 64 KiB, a twentieth of it at 3.5 MiB): {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
