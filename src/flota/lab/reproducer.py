"""One line says how a promise was broken, and is all that is needed to see it again.

    flota-cuts-1 board=esp32 agent=micro-rdk rollback=off image=65536 scenario=two-updates cuts=12:half,3:before

`cuts` are made one after another, each counted from the power-on before it; `every=50*12:half` is made at each of
fifty power-ons. A replay makes real cuts: the power goes inside the operation and the code dies there, without any
snapshot.

Source: docs/reference/power-cuts.md, "Reproducers".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from flota.errors import InvalidInput
from flota.lab.cut_moments import CutMoment, parse_moment
from flota.lab.esp_sweep_device import SweepAgent
from flota.lab.power_cuts import CUT_BOOTS_MAX, AimedPlan, Journey, PlannedCut, Verdict
from flota.lab.sweep_subjects import SweepSubject, build_of, rollback_word

LINE_START: Final = "flota-cuts-1"
LINE_MAX_CHARS: Final = 4096
CUTS_MAX: Final = 64
OWN_TABLE: Final = "full"
"""In place of an image size: the board's own partition table, its slots filled."""


@dataclass(frozen=True, slots=True)
class Reproducer:
    """A life with cuts: `cuts` one after another, or the first of them at each of the first `every` power-ons."""

    subject: SweepSubject
    cuts: tuple[CutMoment, ...]
    every: int = 0

    def __str__(self) -> str:
        """Return the line."""
        subject = self.subject
        size = OWN_TABLE if subject.image_size is None else subject.image_size
        cuts = f"every={self.every}*{self.cuts[0]}" if self.every else f"cuts={','.join(str(cut) for cut in self.cuts)}"
        return (
            f"{LINE_START} board={subject.board} agent={subject.agent.value} rollback={rollback_word(subject.build)}"
            f" image={size} scenario={subject.scenario} {cuts}"
        )


def parse_line(line: str) -> Reproducer:
    """Return the reproducer written in `line`. Raises `InvalidInput` for anything that is none."""
    words = line[: LINE_MAX_CHARS + 1].split()
    if len(line) > LINE_MAX_CHARS or not words or words[0] != LINE_START:
        raise InvalidInput("not a reproducer line", expected=f"{LINE_START} board=… cuts=…", found=repr(line[:60]))
    fields: dict[str, str] = {}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals or not value or name in fields:
            raise InvalidInput("not a field of a reproducer line", expected="name=value, once", found=repr(word[:60]))
        fields[name] = value
    wanted = {"board", "agent", "rollback", "image", "scenario"}
    how = set(fields) - wanted
    if not wanted <= set(fields) or len(how) != 1 or not how <= {"cuts", "every"}:
        expected = f"{', '.join(sorted(wanted))} and cuts or every"
        raise InvalidInput("the fields of the reproducer line are wrong", expected=expected, found=", ".join(fields))
    text = fields[how.pop()]
    every = 0
    if "every" in fields:
        count, _, text = text.partition("*")
        if not count.isdecimal() or not 0 < int(count[:9]) <= CUT_BOOTS_MAX or "," in text:
            expected = f"N*OPERATION:MOMENT, N from 1 to {CUT_BOOTS_MAX}"
            raise InvalidInput("not a cut at every power-on", expected=expected, found=repr(fields["every"][:60]))
        every = int(count)
    cuts = tuple(parse_moment(one) for one in text.split(","))
    if len(cuts) > CUTS_MAX:
        raise InvalidInput("too many cuts", expected=CUTS_MAX, found=len(cuts))
    subject = SweepSubject(
        fields["board"],
        _agent(fields["agent"]),
        build_of(fields["rollback"]),
        _size(fields["image"]),
        fields["scenario"],
    )
    return Reproducer(subject, cuts, every)


def replay(reproducer: Reproducer, tell: Callable[[str], None] | None = None) -> Verdict:
    """Live the life once more, with real cuts, and return how it ended; `tell` hears of every boot and cut.

    Raises `InvalidInput` or `NotFound` for a device, scenario or moment that there is not.
    """
    device = reproducer.subject.device()
    plans: Iterable[AimedPlan] = [PlannedCut(cut) for cut in reproducer.cuts]
    if reproducer.every:
        plans = itertools.repeat(PlannedCut(reproducer.cuts[0], lenient=True), reproducer.every)
    return Journey(device, device.oracle(), plans=plans, tell=tell).run()


def minimised(reproducer: Reproducer, verdict: Verdict) -> Reproducer:
    """Return a reproducer with as few cuts as break the same promise; the same one if it has one already."""
    promises = {broken.promise for broken in verdict.broken}
    shortest = reproducer
    position = 0
    while not shortest.every and len(shortest.cuts) > 1 and position < len(shortest.cuts):
        shorter = replace(shortest, cuts=shortest.cuts[:position] + shortest.cuts[position + 1 :])
        if promises & {broken.promise for broken in replay(shorter).broken}:
            shortest = shorter
        else:
            position += 1
    return shortest


def _agent(word: str) -> SweepAgent:
    try:
        return SweepAgent(word)
    except ValueError:
        names = ", ".join(agent.value for agent in SweepAgent)
        raise InvalidInput("no such agent in sweeps", expected=names, found=repr(word[:40])) from None


def _size(word: str) -> int | None:
    if word == OWN_TABLE:
        return None
    if not word.isdecimal() or len(word) > 9:
        raise InvalidInput("not an image size", expected=f"bytes, or {OWN_TABLE}", found=repr(word[:40]))
    return int(word)
