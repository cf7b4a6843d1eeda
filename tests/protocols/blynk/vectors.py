"""The frames that were captured from the vendor's C driver, and what each of them says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "golden" / "blynk_frames.txt"
TO_NCP, TO_MCU = ">", "<"


def frames(part: str = "") -> list[tuple[str, bytes]]:
    """Direction and bytes of the captured frames; `part` is documented, single or session, or all."""
    found, current = [], ""
    for line in FILE.read_text("ascii").splitlines():
        if line.startswith("# "):
            current = line[2:]
        elif not part or part == current:
            found.append((line[0], bytes.fromhex(line[2:])))
    return found


def session() -> Iterator[tuple[str, bytes]]:
    """The whole update of nine bytes, frame by frame."""
    yield from frames("session")
