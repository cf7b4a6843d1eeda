"""Break the boot loader, the flash and the agents on purpose, one edit at a time, and show that each is noticed.

    python tools/mutants.py [--only NAME …] [--fast] [--list]

A mutant is a named edit of one source file. It is applied to a copy of `src`, and the sweep or the tests named beside
it run against the copy: they have to fail. A mutant whose old text is no longer in the file, or is there twice, is an
error: the table would prove nothing. The table is `tests/mutants/table.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "mutants" / "table.py"
LIMIT_S = 600

JUDGE = """
import sys
from flota.lab.reproducer import parse_line
from flota.lab.sweep import Effort, first_failure
for line in sys.argv[1:]:
    failure = first_failure(parse_line(line).subject, Effort(cut_boots=3))
    if failure is not None:
        print(f"{failure.broken.promise.value}: {failure.broken.text} | {failure.line}")
        sys.exit(1)
"""


def table() -> ModuleType:
    """Return the module that lists the mutants."""
    spec = importlib.util.spec_from_file_location("mutant_table", TABLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def mutated(source: str, mutant: Any) -> str:
    """Return the source with the mutant's edit. Raises `ValueError` unless the old text is there exactly once."""
    count = source.count(mutant.old)
    if count != 1 or mutant.old == mutant.new:
        raise ValueError(f"{mutant.name}: the text to change is {count} times in {mutant.file}, once is needed")
    return source.replace(mutant.old, mutant.new)


def apply(mutant: Any, directory: Path) -> None:
    """Make `directory`/src a copy of the sources with the mutant's edit. Raises `ValueError`."""
    text = mutated((ROOT / mutant.file).read_text("utf-8"), mutant)
    shutil.copytree(ROOT / "src", directory / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (directory / mutant.file).write_text(text, "utf-8")


def how_it_is_caught(mutant: Any, directory: Path) -> str | None:
    """Return what notices the mutant that was applied in `directory`; None if nothing does."""
    environment = {**os.environ, "PYTHONPATH": str(directory / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    if mutant.lines:
        command = [sys.executable, "-c", JUDGE, *mutant.lines]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if found.returncode == 1 and found.stdout.strip():
            return f"sweep, {found.stdout.strip()}"
        if found.returncode:
            return f"sweep, the code does not run: {found.stderr.strip().splitlines()[-1]}"
    if mutant.tests:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *mutant.tests]
        found = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        if found.returncode == 1:
            failed = [line for line in found.stdout.splitlines() if line.startswith("FAILED")]
            return f"test, {failed[0].removeprefix('FAILED ')[:160] if failed else 'failed'}"
        if found.returncode:
            raise ValueError(f"{mutant.name}: its tests cannot run: {found.stdout[-400:]}")
    return None


def judge(mutant: Any) -> tuple[Any, str | None, str | None, float]:
    """Return (mutant, what caught it or None, an error or None, seconds)."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="flota-mutant-") as name:
        try:
            apply(mutant, Path(name))
            return mutant, how_it_is_caught(mutant, Path(name)), None, time.monotonic() - start
        except (ValueError, subprocess.TimeoutExpired) as error:
            return mutant, None, str(error), time.monotonic() - start


def main() -> int:
    """Judge the mutants that were asked for; 0 if every one was caught."""
    parser = argparse.ArgumentParser(description="Show that every kept mutant is caught.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--fast", action="store_true", help="only those that the suite judges too")
    parser.add_argument("--list", action="store_true", help="say what there is, and judge nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    mutants = [
        mutant
        for mutant in table().MUTANTS
        if (not arguments.only or mutant.name in arguments.only) and (not arguments.fast or mutant.fast)
    ]
    if arguments.list:
        for mutant in mutants:
            print(f"{mutant.name:36} {mutant.file}: {mutant.breaks}")
        return 0
    caught = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, how, error, seconds in pool.map(judge, mutants):
            caught += how is not None
            print(
                f"{'caught  ' if how else 'ERROR   ' if error else 'SURVIVED'} {mutant.name} ({seconds:.1f} s)", end=""
            )
            print(f": {how or error or mutant.breaks}", flush=True)
    print(f"{caught} of {len(mutants)} mutants caught" + ("" if caught == len(mutants) else ": NOT ALL"))
    return 0 if mutants and caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
