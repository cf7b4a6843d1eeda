"""`flota lab sweep` and `flota lab replay`: pull the plug at every flash operation of an update, and look again."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flota.cli.output import EXIT_FAILED, echo, echo_json, print_table, warn

if TYPE_CHECKING:
    from flota.lab.known_limits import KnownLimit
    from flota.lab.sweep import Effort, SweepResult
    from flota.lab.sweep_subjects import SweepSubject


def sweep(
    board: Annotated[
        str, typer.Argument(help="esp32, esp32-c3, another ESP board, amebad, aws-reference, m487, dual-mcu-ab …")
    ],
    rollback: Annotated[
        str | None,
        typer.Option(
            "--rollback",
            metavar="off|on|anti",
            help="Boot loader's build; default: off and on, where there are both. m487: off is the vendor's own.",
        ),
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent",
            metavar="NAME",
            help="micro-rdk (usual on esp32), esp-https-ota (other ESP boards); m487: aws-ota, aws-ota-without-backup "
            "(default: both); other boards have one.",
        ),
    ] = None,
    scenario: Annotated[
        str | None, typer.Option("--scenario", metavar="NAME", help="two-updates, refused or crash; default: all.")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            "--image-size",
            metavar="SIZE",
            help="65536, 3.5M; or full: the board's own table, filled. Default: 64K; m487: 12K.",
        ),
    ] = None,
    depth: Annotated[int, typer.Option("--depth", min=1, max=2, help="2 adds second cuts and storms of cuts.")] = 1,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, max=10_000_000, help="Second cuts at depth 2.")
    ] = 2000,
    seed: Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Begins all random choices.")] = 0,
    harsh: Annotated[
        bool, typer.Option("--harsh", help="Add tears of single words in no order, which no check can see.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=0, max=256, help="Processes; 0: one a core.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As data.")] = False,
) -> None:
    """Cut the power at every flash operation of a life with updates, and count the promises that broke.

    Each operation is cut before, inside (every torn pattern) and after; the device then lives on until it rests. Exit
    status 1 if a promise was broken; each failure comes with a line for `flota lab replay`. What a board as its vendor
    ships it cannot survive is a limit: counted and told apart, with the page that says so, and no failure.

    Examples:
        flota lab sweep esp32

        flota lab sweep aws-reference --depth 2

        flota lab sweep m487 --rollback off

        flota lab sweep esp32-c3 --rollback on --image-size full --depth 2 --samples 5000
    """
    from flota.lab.sweep import Effort
    from flota.lab.sweep import sweep as run_sweep

    effort = Effort(depth, samples, seed, harsh)
    workers = jobs or os.cpu_count() or 1
    results: list[SweepResult] = []
    for subject in _subjects(board, rollback, agent, scenario, image_size):
        result = run_sweep(subject, effort, jobs=workers, progress=_progress(subject))
        results.append(result)
        if not as_json:
            _tell_failures(result)
    if as_json:
        echo_json(_as_data(results, effort))
    else:
        _print(results)
    if any(result.failed for result in results):
        raise typer.Exit(EXIT_FAILED)


def replay(
    line: Annotated[str, typer.Argument(metavar="'LINE'", help="A reproducer line, in quotes.")],
    as_json: Annotated[bool, typer.Option("--json", help="As data.")] = False,
) -> None:
    """Live the life of a reproducer line once more, with real cuts, and tell every boot. Exit status 1 if it fails.

    Example:
        flota lab replay 'flota-cuts-1 board=esp32 agent=micro-rdk rollback=on image=20480 scenario=crash cuts=9:half'
    """
    from flota.lab.reproducer import parse_line
    from flota.lab.reproducer import replay as replay_line

    told: list[str] = []
    verdict = replay_line(parse_line(line), told.append if as_json else echo)
    if as_json:
        echo_json(
            {
                "line": line,
                "broken": [{"promise": broken.promise.value, "text": broken.text} for broken in verdict.broken],
                "outcomes": list(verdict.outcomes),
                "limit": None if verdict.limit is None else _limit_data(verdict.limit),
                "cuts": verdict.cuts,
                "boots": verdict.boots,
                "life": told,
            }
        )
    elif verdict.limit is not None:
        echo(f"no promise broke, but the board met a limit that is known: {verdict.limit}")
    elif not verdict.broken:
        echo(f"every promise was kept: {verdict.cuts} cuts, {verdict.boots} boots")
    if verdict.broken:
        raise typer.Exit(EXIT_FAILED)


def _subjects(
    board: str, rollback: str | None, agent: str | None, scenario: str | None, image_size: str | None
) -> list[SweepSubject]:
    from flota.lab.esp_sweep_device import SweepAgent
    from flota.lab.reproducer import OWN_TABLE
    from flota.lab.sweep_subjects import SweepChoice, build_of, subjects_of

    try:
        chosen = None if agent is None else SweepAgent(agent)
    except ValueError:
        names = ", ".join(one.value for one in SweepAgent)
        raise typer.BadParameter(f"{agent!r} is not one of {names}", param_hint="--agent") from None
    full = image_size == OWN_TABLE
    choice = SweepChoice(
        None if rollback is None else build_of(rollback),
        chosen,
        scenario,
        None if full or image_size is None else _size(image_size),
        full,
    )
    return subjects_of(board, choice)


def _size(text: str) -> int:
    number, factor = text, 1
    for letter, unit in (("K", 1024), ("M", 1024 * 1024)):
        if text.upper().endswith(letter):
            number, factor = text[:-1], unit
    try:
        return int(float(number) * factor)
    except (ValueError, OverflowError):
        message = f"{text!r} is not a size such as 65536, 64K or 3.5M"
        raise typer.BadParameter(message, param_hint="--image-size") from None


def _progress(subject: SweepSubject) -> Any:
    if not sys.stderr.isatty():
        return None

    def tell(done: int, parts: int) -> None:
        end = "\n" if done == parts else ""
        sys.stderr.write(f"\r{subject.board} {subject.build.value} {subject.scenario}: {done * 100 // parts} %{end}")
        sys.stderr.flush()

    return tell


def _tell_failures(result: SweepResult) -> None:
    for failure in result.failures:
        warn(f"broken: {failure.broken.promise.value}: {failure.broken.text}")
        warn(f"  flota lab replay '{failure.line}'")


def _print(results: list[SweepResult]) -> None:
    from flota.lab.sweep import total

    print_table(
        [
            *("board", "agent", "rollback", "scenario", "operations", "cases", "distinct", "duplicates", "broken"),
            *("limits", "ends"),
        ],
        [
            [
                result.subject.board,
                result.subject.agent.value,
                _word(result),
                result.subject.scenario,
                f"{result.covered}/{result.operations}",
                result.cases,
                result.distinct,
                result.duplicates,
                result.failed,
                sum(met.count for met in result.limits.values()),
                "; ".join(f"{count} {end}" for end, count in result.outcomes.most_common()),
            ]
            for result in results
        ],
    )
    for result in results:
        for limit, met in result.limits.items():
            echo(f"limit of {result.subject.board}, met {met.count} times: {limit}")
            echo(f"  flota lab replay '{met.line}'")
    cases, distinct, failed = total(results)
    kept = "no promise broken" if not failed else f"{failed} times a promise was BROKEN"
    echo(f"{cases} cuts, {distinct} of them left a device in a state of its own: {kept}")


def _as_data(results: list[SweepResult], effort: Effort) -> dict[str, object]:
    from flota.lab.sweep import total

    cases, distinct, failed = total(results)
    return {
        "depth": effort.depth,
        "cases": cases,
        "distinct": distinct,
        "duplicates": cases - distinct,
        "broken": failed,
        "sweeps": [
            {
                "board": result.subject.board,
                "agent": result.subject.agent.value,
                "rollback": _word(result),
                "image_size": result.subject.image_size,
                "scenario": result.subject.scenario,
                "operations": result.operations,
                "covered": result.covered,
                "cases": result.cases,
                "distinct": result.distinct,
                "duplicates": result.duplicates,
                "ends": dict(result.outcomes),
                "broken": result.failed,
                "limits": [
                    {**_limit_data(limit), "count": met.count, "line": met.line} for limit, met in result.limits.items()
                ],
                "failures": [
                    {"promise": one.broken.promise.value, "text": one.broken.text, "line": one.line}
                    for one in result.failures
                ],
            }
            for result in results
        ],
    }


def _limit_data(limit: KnownLimit) -> dict[str, str]:
    return {"name": limit.name, "promise": limit.promise.value, "text": limit.title, "page": limit.page}


def _word(result: SweepResult) -> str:
    from flota.lab.sweep_subjects import rollback_word

    return rollback_word(result.subject.build)
