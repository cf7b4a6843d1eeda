"""Sweeps: every cut moment of every flash operation of a life, on all processors, with a count of everything.

Depth 1 is exhaustive: each operation, each moment. The same cut at every power-on follows for each operation. Depth 2
draws second cuts in what follows a first one, and storms of many cuts. What leaves the device in a state that was
judged before is counted as a duplicate and not judged again.

Source: docs/reference/power-cuts.md.
"""

from __future__ import annotations

import collections
import concurrent.futures
import enum
import functools
import multiprocessing
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from flota.lab.cut_moments import BEFORE, CutMoment, cut_of, moments_of
from flota.lab.known_limits import KnownLimit
from flota.lab.oracle import Broken, Oracle, Promise
from flota.lab.power_cuts import (
    CUT_BOOTS_MAX,
    AimedPlan,
    Journey,
    Known,
    Moment,
    PlannedCut,
    Position,
    Verdict,
    is_in_a_slot,
)
from flota.lab.reproducer import Reproducer, minimised
from flota.lab.sweep_subjects import SweepSubject
from flota.lab.swept_device import SweptDevice, fingerprint, load, save
from flota.virtual.flash import Cut, CutPhase, FlashOperation

FAILURES_KEPT: Final = 10
"""Of each part of a sweep; all are counted."""

PARTS_PER_JOB: Final = 4
SECOND_CUTS_PER_FIRST: Final = 8
STORM_LENGTHS: Final = (5, 50)
EVERY_BOOT_OPERATIONS_MAX: Final = 200
"""Operations that are cut at every power-on: all that decide, and of those that write image bytes at most so many."""

_NEVER: Final = CutMoment(10**9, BEFORE)
"""A cut that no life reaches: the reproducer of a life that ends badly without any."""

State = tuple[object, ...]


class Pass(enum.StrEnum):
    """The kinds of cases."""

    ONCE = "once"
    EVERY_BOOT = "every-boot"
    TWICE = "twice"
    STORM = "storm"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is tried.

    `samples` second cuts at depth 2; `draw` begins every random sequence of the sweep; the same cut is made at
    `cut_boots` power-ons.
    """

    depth: int = 1
    samples: int = 1000
    draw: int = 0
    harsh: bool = False
    cut_boots: int = CUT_BOOTS_MAX


@dataclass(frozen=True, slots=True)
class Part:
    """A share of a sweep that one process does: which operations (or samples) of which pass."""

    subject: SweepSubject
    effort: Effort
    kind: Pass
    share: range


@dataclass(frozen=True, slots=True)
class Failure:
    """A broken promise with the line that shows it again."""

    broken: Broken
    line: str


@dataclass(slots=True)
class LimitMet:
    """How often the lives after cuts ran into a limit of the board, and a line that shows it again."""

    line: str
    count: int = 0


@dataclass(slots=True)
class PartResult:
    """What came of a part. `seen` are the states that the cuts left."""

    cases: int = 0
    seen: set[State] = field(default_factory=set)
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[Failure] = field(default_factory=list)
    failed: int = 0
    covered: set[int] = field(default_factory=set)
    limits: dict[KnownLimit, LimitMet] = field(default_factory=dict)


@dataclass(slots=True)
class SweepResult:
    """What a sweep of one subject found."""

    subject: SweepSubject
    operations: int
    covered: int = 0
    cases: int = 0
    distinct: int = 0
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[Failure] = field(default_factory=list)
    failed: int = 0
    limits: dict[KnownLimit, LimitMet] = field(default_factory=dict)

    @property
    def duplicates(self) -> int:
        """Cases that left the device as another case did."""
        return self.cases - self.distinct

    @property
    def broken_promises(self) -> dict[str, int]:
        """How many of the kept failures broke which promise."""
        return dict(collections.Counter(failure.broken.promise.value for failure in self.failures))


@dataclass(slots=True)
class Reference:
    """An uninterrupted life: its operations with snapshots, and what is known from it.

    `known` learns from the lives after cuts too, `known_uncut` does not: where second cuts are to be made, a life
    after a first one must not be passed over.
    """

    device: SweptDevice
    oracle: Oracle
    moments: list[Moment]
    known: Known
    known_uncut: Known
    verdict: Verdict
    factory: dict[str, object]


def live_uninterrupted(subject: SweepSubject) -> Reference:
    """Return the recorded life of a new device."""
    device = subject.device()
    oracle = device.oracle()
    factory = save(device)
    moments: list[Moment] = []
    known = Known()
    verdict = Journey(device, oracle, known=known, record=moments.append, remember_milestones=True).run()
    return Reference(device, oracle, moments, known, known.copy(), verdict, factory)


def sweep(
    subject: SweepSubject,
    effort: Effort | None = None,
    *,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Return what the cuts of a whole life did to a device; `progress` hears of parts done and of all parts."""
    effort = effort or Effort()
    reference = _reference(subject)
    result = SweepResult(subject, len(reference.moments))
    for broken in reference.verdict.broken:
        result.failed += 1
        result.failures.append(Failure(broken, str(Reproducer(subject, (_NEVER,)))))
    if result.failed:
        return result
    parts = _parts(subject, effort, reference, jobs)
    seen: set[State] = set()
    covered: set[int] = set()
    for done, part in enumerate(_run(parts, jobs), start=1):
        result.cases += part.cases
        result.outcomes += part.outcomes
        result.failed += part.failed
        result.failures += part.failures
        for limit, met in part.limits.items():
            result.limits.setdefault(limit, LimitMet(met.line)).count += met.count
        seen |= part.seen
        covered |= part.covered
        if progress is not None:
            progress(done, len(parts))
    result.distinct = len(seen)
    result.covered = len(covered)
    result.failures = [_shortest(failure) for failure in result.failures[:FAILURES_KEPT]]
    return result


def first_failure(subject: SweepSubject, effort: Effort | None = None) -> Failure | None:
    """Return the first broken promise that a sweep of depth 1 finds, None if it finds none; in this process."""
    effort = effort or Effort()
    reference = _reference(subject)
    if reference.verdict.broken:
        return Failure(reference.verdict.broken[0], str(Reproducer(subject, (_NEVER,))))
    for kind, count in ((Pass.ONCE, len(reference.moments)), (Pass.EVERY_BOOT, len(every_boot_operations(reference)))):
        for number in range(count):
            result = run_part(Part(subject, effort, kind, range(number, number + 1)))
            if result.failures:
                return result.failures[0]
    return None


def run_part(part: Part) -> PartResult:
    """Return what a part found. A process keeps the recorded life for its next part."""
    reference = _reference(part.subject)
    worker = _Worker(part, reference)
    {
        Pass.ONCE: worker.cut_once,
        Pass.EVERY_BOOT: worker.cut_every_boot,
        Pass.TWICE: worker.cut_twice,
        Pass.STORM: worker.storm,
    }[part.kind]()
    return worker.result


# --- sharing the work -------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _reference(subject: SweepSubject) -> Reference:
    return live_uninterrupted(subject)


def _parts(subject: SweepSubject, effort: Effort, reference: Reference, jobs: int) -> list[Part]:
    """Return the parts, neighbouring operations together, since what one leaves after is what the next finds before."""
    pieces = jobs * PARTS_PER_JOB if jobs > 1 else 1
    chosen = {Pass.ONCE: len(reference.moments), Pass.EVERY_BOOT: len(every_boot_operations(reference))}
    if effort.depth > 1:
        chosen[Pass.TWICE] = -(-effort.samples // SECOND_CUTS_PER_FIRST)
        chosen[Pass.STORM] = max(effort.samples // 50, 2)
    return [
        Part(subject, effort, kind, range(start, min(start + step, count)))
        for kind, count in chosen.items()
        for step in [-(-count // pieces) or 1]
        for start in range(0, count, step)
    ]


def _run(parts: list[Part], jobs: int) -> Iterator[PartResult]:
    if jobs <= 1:
        yield from map(run_part, parts)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=jobs, mp_context=context) as pool:
        yield from pool.map(run_part, parts)


def every_boot_operations(reference: Reference) -> list[int]:
    """Return the operations to cut at every power-on: those that decide, and an even choice of the others."""
    regions = reference.device.regions
    inside: list[int] = []
    deciding: list[int] = []
    for moment in reference.moments:
        (inside if is_in_a_slot(moment.operation, regions) else deciding).append(moment.operation.number)
    step = -(-len(inside) // EVERY_BOOT_OPERATIONS_MAX) or 1
    return sorted({*deciding, *inside[::step]})


def _shortest(failure: Failure) -> Failure:
    from flota.lab.reproducer import parse_line, replay

    reproducer = parse_line(failure.line)
    if len(reproducer.cuts) < 2:
        return failure
    shortest = minimised(reproducer, replay(reproducer))
    return Failure(failure.broken, str(shortest))


# --- the passes -------------------------------------------------------------------------------------------------------


class _Worker:
    def __init__(self, part: Part, reference: Reference) -> None:
        self._part = part
        self._effort = part.effort
        self._reference = reference
        self._device = reference.device
        self._oracle = reference.oracle
        self.result = PartResult()

    def cut_once(self) -> None:
        """Each moment of each operation of the share, from the snapshot before it."""
        for number in self._part.share:
            moment = self._reference.moments[number]
            for name in self._moments(moment.operation):
                if self._leave(moment, name):
                    self._judge(moment.position.stage, (CutMoment(moment.operation.number, name),))
            self.result.covered.add(number)

    def cut_every_boot(self) -> None:
        """Cut the same operation at each power-on, again and again; then the power stays."""
        operations = every_boot_operations(self._reference)
        for number in operations[self._part.share.start : self._part.share.stop]:
            lives: dict[State, _CutLife] = {}
            for name in self._moments(self._reference.moments[number].operation):
                cut = CutMoment(number, name)
                cuts, verdict = self._cut_again_and_again(cut, lives)
                self.result.cases += 1
                if cuts:
                    self.result.seen.add((Pass.EVERY_BOOT, number, name))
                self._note(verdict, (cut,), every=self._effort.cut_boots)

    def _cut_again_and_again(self, cut: CutMoment, lives: dict[State, _CutLife]) -> tuple[int, Verdict]:
        """Return how often the power was cut after the first time, and how it ended.

        `lives` keeps the lives up to the operation: those of its other moments begin alike. A device that comes to a
        state for the second time would only repeat itself; it gets no more cuts.
        """
        moment = self._reference.moments[cut.operation]
        load(self._device, moment.snapshot)
        self._device.chips[moment.operation.chip].leave(moment.operation, cut_of(cut.moment, moment.operation.kind))
        stage, seen = moment.position.stage, set[State]()
        outcomes: tuple[str, ...] = ()
        while len(seen) < self._effort.cut_boots - 1:
            state: State = (stage, *fingerprint(self._device))
            if state in seen:
                break
            seen.add(state)
            if state not in lives:
                lives[state] = self._life_until(cut.operation, stage)
            life = lives[state]
            outcomes += life.verdict.outcomes
            if life.operation is None:
                return len(seen) - 1, replace(life.verdict, outcomes=outcomes)
            load(self._device, life.snapshot)
            again = PlannedCut(cut, lenient=True)(life.operation)
            assert again is not None
            self._device.chips[life.operation.chip].leave(life.operation, again)
            stage = life.stage
        verdict = Journey(self._device, self._oracle, known=self._reference.known).run(
            Position(stage), interrupted=True
        )
        return len(seen), replace(verdict, outcomes=outcomes + verdict.outcomes)

    def _life_until(self, number: int, stage: int) -> _CutLife:
        """Live from power-on up to an operation, or to the end if it does not come to it."""
        plan = _Before(number)
        journey = Journey(self._device, self._oracle, plans=[plan], known=self._reference.known, stop_at_cut=True)
        verdict = journey.run(Position(stage), interrupted=True)
        return _CutLife(verdict, journey.stage, save(self._device), plan.found)

    def cut_twice(self) -> None:
        """Second cuts in what follows first ones, drawn at random; half of them where something is decided."""
        for sample in self._part.share:
            rng = random.Random(f"twice {self._effort.draw} {sample}")  # noqa: S311
            first = rng.choice(self._reference.moments)
            name = rng.choice(self._moments(first.operation))
            load(self._device, first.snapshot)
            self._device.chips[first.operation.chip].leave(first.operation, cut_of(name, first.operation.kind))
            second_moments: list[Moment] = []
            known = self._reference.known_uncut.copy()
            Journey(self._device, self._oracle, known=known, record=second_moments.append).run(
                Position(first.position.stage), interrupted=True
            )
            deciding = [one for one in second_moments if not is_in_a_slot(one.operation, self._device.regions)]
            for number in range(min(SECOND_CUTS_PER_FIRST, len(second_moments))):
                second = rng.choice(deciding if number % 2 and deciding else second_moments)
                second_name = rng.choice(self._moments(second.operation))
                if self._leave(second, second_name):
                    cuts = (CutMoment(first.operation.number, name), CutMoment(second.operation.number, second_name))
                    self._judge(second.position.stage, cuts)

    def storm(self) -> None:
        """Cut after cut at random operations, then the power stays."""
        for sample in self._part.share:
            rng = random.Random(f"storm {self._effort.draw} {sample}")  # noqa: S311
            length = STORM_LENGTHS[sample % len(STORM_LENGTHS)]
            cuts: list[CutMoment] = []
            load(self._device, self._reference.factory)
            plans = [self._anywhere(rng, cuts) for _ in range(length)]
            verdict = Journey(self._device, self._oracle, plans=plans, known=self._reference.known).run()
            self.result.cases += 1
            self.result.seen.add((Pass.STORM, *cuts))
            self._note(verdict, tuple(cuts))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _moments(self, operation: FlashOperation) -> tuple[str, ...]:
        return moments_of(operation, number=self._effort.draw + 1, harsh=self._effort.harsh)

    def _leave(self, moment: Moment, name: str) -> bool:
        """Make the device what the cut leaves; returns whether that is new."""
        self.result.cases += 1
        operation = moment.operation
        load(self._device, moment.snapshot)
        self._device.chips[operation.chip].leave(operation, cut_of(name, operation.kind))
        state = (moment.position.stage, *fingerprint(self._device))
        if state in self.result.seen:
            return False
        self.result.seen.add(state)
        return True

    def _judge(self, stage: int, cuts: tuple[CutMoment, ...]) -> None:
        journey = Journey(self._device, self._oracle, known=self._reference.known)
        self._note(journey.run(Position(stage), interrupted=True), cuts)

    def _note(self, verdict: Verdict, cuts: tuple[CutMoment, ...], *, every: int = 0) -> None:
        line = Reproducer(self._part.subject, cuts, every)
        if verdict.limit is not None:
            self.result.limits.setdefault(verdict.limit, LimitMet(str(line))).count += 1
            return
        if not verdict.broken:
            self.result.outcomes[verdict.outcomes[0] if verdict.outcomes else "at the end"] += 1
            return
        self.result.failed += 1
        if len(self.result.failures) < FAILURES_KEPT:
            self.result.failures.append(Failure(verdict.broken[0], str(line)))

    def _anywhere(self, rng: random.Random, cuts: list[CutMoment]) -> AimedPlan:
        """Return a plan that cuts at an operation drawn when the power comes, and notes the cut."""
        return _DrawnCut(rng.randrange(len(self._reference.moments)), rng, self._moments, cuts)


@dataclass(slots=True)
class _Before:
    """A power plan: the power goes before an operation, which is noted."""

    operation: int
    found: FlashOperation | None = None

    def __call__(self, operation: FlashOperation) -> Cut | None:
        if operation.number != self.operation:
            return None
        self.found = operation
        return Cut(CutPhase.BEFORE)


@dataclass(frozen=True, slots=True)
class _CutLife:
    """A life from one power-on: how it ended, or (`operation`) before which operation it was cut, and what it left."""

    verdict: Verdict
    stage: int
    snapshot: Mapping[str, object]
    operation: FlashOperation | None


@dataclass(frozen=True, slots=True)
class _DrawnCut:
    """A power plan: some moment of the operation, drawn when it comes, and noted in `cuts`."""

    operation: int
    rng: random.Random
    moments: Callable[[FlashOperation], tuple[str, ...]]
    cuts: list[CutMoment]

    def __call__(self, operation: FlashOperation) -> Cut | None:
        if operation.number != self.operation:
            return None
        name = self.rng.choice(self.moments(operation))
        self.cuts.append(CutMoment(operation.number, name))
        return cut_of(name, operation.kind)


def total(results: Iterable[SweepResult]) -> tuple[int, int, int]:
    """Return cases, distinct cases and broken promises over all results."""
    listed = list(results)
    return (
        sum(result.cases for result in listed),
        sum(result.distinct for result in listed),
        sum(result.failed for result in listed),
    )


__all__ = ["Effort", "Failure", "Promise", "SweepResult", "SweepSubject", "live_uninterrupted", "sweep", "total"]
