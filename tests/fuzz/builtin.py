"""The built-in fuzzer: deterministic inputs, every reader, and what counts as a finding.

A finding is an error that the reader may not raise, more than a second of processor time for an input below 1 MiB, or
memory out of proportion to the input.
"""

from __future__ import annotations

import hashlib
import resource
import signal
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz.model import Target
from tests.fuzz.mutation import BIG_EVERY, mutated_input

CPU_LIMIT_S = 1.0
"""Processor time for one input."""
STUCK_AFTER_S = 20.0
"""Processor time after which a reader is interrupted."""
ADDRESS_SPACE_HEADROOM = 512 << 20
MEMORY_BASE, MEMORY_PER_BYTE = 16 << 20, 48
"""Bytes that Python may hold at once for an input: so many, and so many for each of its bytes."""
MEASURED_EVERY = 40
"""Of one input in so many (and of all long ones) the memory is measured; measuring is slow."""


class Stuck(BaseException):
    """The reader did not come back in time."""


@dataclass(frozen=True)
class Finding:
    """One thing that must not be: which input of which reader, and what happened."""

    target: str
    index: int
    what: str
    where: str
    data: bytes = field(repr=False)


@dataclass
class Report:
    """What a run did; `findings` has one of each kind and place."""

    counts: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    greediest: tuple[float, str] = (0.0, "")
    seconds: float = 0.0

    def add(self, finding: Finding) -> None:
        kind = f"{finding.target}: {finding.what.split(':', 1)[0]} {finding.where}"
        self.repeated[kind] += 1
        if self.repeated[kind] == 1:
            self.findings.append(finding)

    @property
    def inputs(self) -> int:
        return self.counts.total()

    def closing_line(self) -> str:
        return (
            f"{self.inputs:,} inputs over {len(self.counts)} readers in {self.seconds:.0f} s, "
            f"{self.taken.total():,} taken: {len(self.findings)} findings"
        )


def fuzz(targets: Sequence[Target], *, runs: int, series: int = 1, seconds: float | None = None) -> Report:
    """Give every target its share of `runs` inputs, the same for the same `series`; `seconds` ends it early."""
    report, begun = Report(), time.monotonic()
    each, rest = divmod(runs, len(targets))
    with limited_address_space(), interrupted_when_stuck():
        for number, target in enumerate(targets):
            # What is left of the time is shared among what is left of the readers.
            share = None
            if seconds is not None:
                share = max(0.0, begun + seconds - time.monotonic()) / (len(targets) - number)
            _fuzz_one(target, each + (number < rest), series, share, report)
    report.seconds = time.monotonic() - begun
    return report


def _fuzz_one(target: Target, runs: int, series: int, seconds: float | None, report: Report) -> None:
    end = None if seconds is None else time.monotonic() + seconds
    report.counts[target.name] += 0
    for index in range(runs):
        if end is not None and index % 16 == 0 and time.monotonic() > end:
            return
        data = target.starts[index] if index < len(target.starts) else mutated_input(target, series, index)
        report.counts[target.name] += 1
        measure = index % MEASURED_EVERY == 0 or index % BIG_EVERY == BIG_EVERY - 1
        _try(target, index, data, report, measure=measure)


def _try(target: Target, index: int, data: bytes, report: Report, *, measure: bool) -> None:
    if measure:
        tracemalloc.start()
    begun = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, STUCK_AFTER_S)
    what, where = "", ""
    try:
        report.taken[target.name] += target.run(data)
    except (Exception, Stuck) as error:  # noqa: BLE001 - finding out which ones is the purpose
        what, where = f"{type(error).__name__}: {str(error)[:300]}", _place_in_product(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    took = time.process_time() - begun
    if measure:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        took /= 4  # measuring makes everything several times as slow
        report.greediest = max(report.greediest, (peak / (1 << 20), f"{target.name} {len(data)} bytes"))
        if not what and peak > MEMORY_BASE + MEMORY_PER_BYTE * len(data) + target.may_hold:
            what = f"memory: {peak >> 20} MiB for {len(data)} bytes"
    report.slowest = max(report.slowest, (took, f"{target.name} {len(data)} bytes"))
    if not what and took > CPU_LIMIT_S:
        what = f"slow: {took:.1f} s for {len(data)} bytes"
    if what:
        report.add(Finding(target.name, index, what, where, data))


def _place_in_product(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/flota/" in frame.filename]
    if not frames:
        return ""
    last = frames[-1]
    return f"{last.filename.rsplit('/flota/', 1)[-1]}:{last.lineno} {last.name}"


def write_reproducer(finding: Finding, directory: Path) -> Path:
    """Write the input of a finding; returns its path, which is the same for the same input."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{finding.target}-{hashlib.sha256(finding.data).hexdigest()[:12]}.bin"
    path.write_bytes(finding.data)
    return path


@contextmanager
def limited_address_space() -> Iterator[None]:
    """Let this process grow by `ADDRESS_SPACE_HEADROOM` only: a hostile count becomes a `MemoryError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    wanted = pages * resource.getpagesize() + ADDRESS_SPACE_HEADROOM
    if hard == resource.RLIM_INFINITY or wanted <= hard:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def interrupted_when_stuck() -> Iterator[None]:
    """Turn the timer that `_try` sets into `Stuck`."""

    def raise_stuck(signal_number: int, frame: FrameType | None) -> None:
        raise Stuck(f"not done after {STUCK_AFTER_S:.0f} s")

    before = signal.signal(signal.SIGPROF, raise_stuck)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)
