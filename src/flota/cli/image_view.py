"""What `flota image inspect` shows: a table of facts, the memory-layout bar, findings."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from flota.cli.output import echo, print_table

if TYPE_CHECKING:
    from flota.boards.model import Unfit
    from flota.images.model import Finding, Inspection, Region

BAR_MIN_COLUMNS: Final = 20
BAR_MAX_COLUMNS: Final = 100

_SYMBOLS: Final = {
    "header": "H",
    "flash-data": "D",
    "flash-code": "C",
    "flash": "F",
    "ram": "R",
    "padding": "·",
    "checksum": "c",
    "hash": "#",
    "signature": "S",
    "trailing": "?",
    "bootloader": "B",
    "partition-table": "P",
    "app": "A",
    "data": "d",
    "segment": "s",
    "otadata": "o",
    "tlv": "T",
    "trailer": "t",
    "raw": "▒",
}
"""Region kind -> its letter in the bar. Colours only repeat what the letters say."""
_GAP: Final = " "
_COLOURS: Final = {
    "H": 37,
    "D": 34,
    "C": 32,
    "F": 36,
    "R": 33,
    "#": 35,
    "c": 35,
    "S": 35,
    "B": 33,
    "P": 36,
    "A": 32,
    "d": 34,
    "?": 31,
}


def show_inspection(name: str, found: Inspection, *, colour: bool = False) -> None:
    """Print everything `found` says about the file called `name`."""
    echo(f"{name}: {found.format.value}, {found.file_size} bytes")
    facts = [(row.name, row.value) for row in found.properties]
    if found.validation_hash:
        facts.append(("hash that a device reports", found.validation_hash))
    facts += [(f"marker {key}", value) for key, value in found.markers.items()]
    if facts:
        echo()
        width = max(len(key) for key, _ in facts)
        for key, value in facts:
            echo(f"  {key:<{width}}  {value}")
    if found.regions:
        echo()
        columns = min(max(shutil.get_terminal_size().columns - 4, BAR_MIN_COLUMNS), BAR_MAX_COLUMNS)
        echo(f"  [{memory_bar(found.regions, found.file_size, columns, colour=colour)}]")
        echo()
        print_table(
            ("", "region", "offset", "size", "address"),
            [
                (
                    _SYMBOLS.get(region.kind, "x"),
                    region.name,
                    f"{region.start:#x}",
                    region.size,
                    None if region.address is None else f"{region.address:#010x}",
                )
                for region in found.regions
            ],
        )
    if found.findings:
        echo()
        for finding in found.findings:
            show_finding(finding)


def memory_bar(regions: Sequence[Region], size: int, columns: int, *, colour: bool = False) -> str:
    """Return the file of `size` bytes as `columns` letters, each for the region that has most of its share.

    Blank = in no region. Regions too small for a letter of their own give way.
    """
    letters: list[str] = []
    for column in range(columns):
        start, end = size * column // columns, max(size * (column + 1) // columns, size * column // columns + 1)
        best, share = _GAP, 0
        for region in regions:
            common = min(region.end, end) - max(region.start, start)
            if common > share:
                best, share = _SYMBOLS.get(region.kind, "x"), common
        letters.append(best)
    if not colour:
        return "".join(letters)
    return "".join(f"\x1b[{_COLOURS[letter]}m{letter}\x1b[0m" if letter in _COLOURS else letter for letter in letters)


def show_finding(finding: Finding | Unfit, *, level: str | None = None) -> None:
    """Print one finding or reason: what, then where, what was expected, what was found, what to do."""
    echo(f"{level or getattr(finding, 'level', 'error')}: {finding.text}")
    for name in ("offset", "expected", "found"):
        value = getattr(finding, name)
        if value is not None:
            echo(f"  {name + ':':<10}{f'{value:#x} ({value})' if name == 'offset' else value}")
    if finding.hint:
        echo(f"  {finding.hint}")


def show_fit(what: str, reasons: Sequence[Unfit]) -> None:
    """Print whether a file suits `what`, with every reason against it."""
    blocked = any(reason.blocking for reason in reasons)
    echo()
    echo(f"{what}: {'does not fit' if blocked else 'fits'}")
    for reason in reasons:
        show_finding(reason, level="error" if reason.blocking else "warning")
