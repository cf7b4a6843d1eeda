"""Fuzz every reader: `make fuzz`, or `python -m tests.fuzz --help`.

Atheris follows the code's branches and finds more; the built-in fuzzer needs nothing, makes the same inputs each time,
and also finds what is slow or greedy.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.builtin import Report, fuzz, write_reproducer
from tests.fuzz.model import Target
from tests.fuzz.table import BY_NAME, TARGETS

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = ROOT / "build" / "fuzz"
_DONE = re.compile(r"Done (\d+) runs|stat::number_of_executed_units: (\d+)")


def main() -> int:
    options = _options()
    if options.input is not None:
        return _reproduce(options.only, options.input)
    targets = [target for target in TARGETS if options.only in target.name]
    if not targets:
        print(f"no reader's name contains {options.only!r}", file=sys.stderr)
        return 2
    engine = options.engine
    if engine == "auto":
        engine = "atheris" if find_spec("atheris") else "built-in"
        print(f"engine: {engine}" + ("" if engine == "atheris" else " (Atheris is not installed)"), flush=True)
    if engine == "atheris":
        return _with_atheris(targets, options.runs, options.seconds)
    report = fuzz(targets, runs=options.runs, series=options.series, seconds=options.seconds)
    return _tell(report, targets)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz everything that reads bytes.")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs in all, shared among the readers")
    parser.add_argument("--seconds", type=float, default=None, help="stop after so long, the rest shared out evenly")
    parser.add_argument("--series", type=int, default=1, help="another number makes other inputs (built-in)")
    parser.add_argument("--only", default="", metavar="TEXT", help="readers whose name contains TEXT")
    parser.add_argument("--engine", choices=["auto", "built-in", "atheris"], default="auto")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run one file through the reader --only names")
    return parser.parse_args()


def _tell(report: Report, targets: Sequence[Target]) -> int:
    for target in targets:
        print(f"{report.counts[target.name]:>9,} inputs {report.taken[target.name]:>9,} taken  {target.name}")
    print(f"slowest {report.slowest[0]:.2f} s: {report.slowest[1]}")
    print(f"most memory {report.greediest[0]:.0f} MiB: {report.greediest[1]}")
    for finding in report.findings:
        path = write_reproducer(finding, FINDINGS)
        print(f"FINDING {finding.target} input {finding.index}: {finding.what}  {finding.where}")
        print(f"  python -m tests.fuzz --only '{finding.target}' --input {path}")
    print(report.closing_line())
    return 1 if report.findings else 0


def _reproduce(name: str, path: Path) -> int:
    if name not in BY_NAME:
        print(f"--only has to name one reader exactly, not {name!r}", file=sys.stderr)
        return 2
    print("taken" if BY_NAME[name].run(path.read_bytes()) else "refused")
    return 0


def _with_atheris(targets: Sequence[Target], runs: int, seconds: float | None) -> int:
    begun, total, crashed = time.monotonic(), 0, []
    FINDINGS.mkdir(parents=True, exist_ok=True)
    for number, target in enumerate(targets):
        if seconds is not None and time.monotonic() > begun + seconds:
            print(f"  not run  {target.name} (no time left)")
            continue
        limits = [f"-runs={max(1, runs // len(targets))}"]
        if seconds is not None:
            left = max(1.0, begun + seconds - time.monotonic()) / (len(targets) - number)
            limits.append(f"-max_total_time={max(1, int(left))}")
        with tempfile.TemporaryDirectory() as directory:
            for place, start in enumerate(target.starts):
                (Path(directory) / f"{place:02}").write_bytes(start)
            command = [sys.executable, "-m", "tests.fuzz.coverage_guided", target.name, *limits, "-max_len=65536"]
            command += ["-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"]
            command += [f"-artifact_prefix={FINDINGS}/{target.name}-", directory]
            ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, errors="replace")
        done = max((int(a or b) for a, b in _DONE.findall(ran.stderr)), default=0)
        total += done
        print(f"{done:>9,} inputs  {target.name}", flush=True)
        if ran.returncode:
            crashed.append(target.name)
            print(f"FINDING {target.name}\n{(ran.stdout + ran.stderr)[-3000:]}", flush=True)
    took = time.monotonic() - begun
    print(f"{total:,} inputs over {len(targets)} readers in {took:.0f} s with Atheris: {len(crashed)} findings")
    return 1 if crashed else 0


if __name__ == "__main__":
    raise SystemExit(main())
