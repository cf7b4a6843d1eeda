"""Memory pictures as one SVG document: a panel a step, a column a memory, an arrow for what moves.

The boxes show order and addresses, not sizes: 4 KiB and 3 MiB would not both be seen.
"""

from __future__ import annotations

from html import escape
from typing import Final

from flota.images.flash_layout import FREE, FlashRegion
from flota.images.flash_layout_svg import MARK, fill_of
from flota.images.memory_pictures import CLOUD, Memory, MemoryPicture, Move, Place

COLUMN_WIDTH: Final = 196
COLUMN_GAP: Final = 58
PANEL_GAP: Final = 36
MARGIN: Final = 20
ROW_HEIGHT: Final = 40
ROWS_TOP: Final = 128
TEXT_CHARS_PER_LINE: Final = 60
TEXT_LINES: Final = 3
NAME_MAX_CHARS: Final = 24
INK, GREY, ARROW = "#1f2328", "#57606a", "#0969da"

Box = tuple[float, float]
"""Left edge and middle of a row."""


def pictures_svg(pictures: tuple[MemoryPicture, ...], *, title: str) -> str:
    """Return the pictures side by side as an SVG document; `title` is shown above them and told to screen readers."""
    panels = [_panel_width(picture) for picture in pictures]
    width = 2 * MARGIN + sum(panels) + PANEL_GAP * (len(panels) - 1)
    rows = max(_rows_of(picture) for picture in pictures)
    height = ROWS_TOP + rows * ROW_HEIGHT + MARGIN
    name = escape(title[:80])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        "  <style>text { font-family: ui-monospace, monospace; font-size: 12px }</style>",
        '  <defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="5" markerHeight="5" orient="auto">',
        f'    <path d="M0 0 L8 4 L0 8 z" fill="{ARROW}"/></marker></defs>',
        f"  <title>{name}</title>",
        f'  <rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        f'  <text x="{MARGIN}" y="26" font-weight="bold" fill="{INK}">{name}</text>',
    ]
    left = MARGIN
    for picture, panel in zip(pictures, panels, strict=True):
        parts += _panel(picture, left)
        left += panel + PANEL_GAP
    return "\n".join([*parts, "</svg>", ""])


def _panel_width(picture: MemoryPicture) -> int:
    columns = len(_columns(picture))
    return columns * COLUMN_WIDTH + (columns - 1) * COLUMN_GAP


def _columns(picture: MemoryPicture) -> list[list[Memory]]:
    """Return the memories in columns: the last one, where images are staged, stands alone, the others above it."""
    return [list(picture.memories[:-1]), [picture.memories[-1]]]


def _rows_of(picture: MemoryPicture) -> int:
    return max(sum(len(memory.layout.rows) + 1 for memory in column) for column in _columns(picture))


def _panel(picture: MemoryPicture, left: int) -> list[str]:
    parts = [f'  <text x="{left}" y="52" font-weight="bold" fill="{INK}">{escape(picture.title)}</text>']
    for number, line in enumerate(_lines(picture.text)):
        parts.append(f'  <text x="{left}" y="{70 + 15 * number}" fill="{GREY}">{escape(line)}</text>')
    boxes: dict[Place, Box] = {}
    for column, memories in enumerate(_columns(picture)):
        x = left + column * (COLUMN_WIDTH + COLUMN_GAP)
        y = ROWS_TOP
        for memory in memories:
            parts.append(f'  <text x="{x}" y="{y + 16}" font-weight="bold" fill="{INK}">{escape(memory.name)}</text>')
            y += 24
            for row in memory.layout.rows:
                parts += _row(memory, row, x, y)
                boxes[Place(memory.name, row.name)] = (x, y + (ROW_HEIGHT - 4) / 2)
                y += ROW_HEIGHT
            y += ROW_HEIGHT - 24
    for move in picture.moves:
        parts += _arrow(move, boxes)
    return parts


def _row(memory: Memory, row: FlashRegion, x: int, y: int) -> list[str]:
    wrong = memory.layout.clashes(row)
    holds = memory.holds.get(row.name, "")
    used = f"{row.used} B" if row.used else ""
    ink = MARK if wrong else GREY if row.kind == FREE else INK
    below = ", ".join(text for text in (f"{row.start:#x}", holds, used) if text)
    edge = MARK if wrong else "#d0d7de"
    look = f'rx="3" fill="{fill_of(row.kind)}" stroke="{edge}"'
    return [
        f'  <rect x="{x}" y="{y}" width="{COLUMN_WIDTH}" height="{ROW_HEIGHT - 4}" {look}/>',
        f'  <text x="{x + 8}" y="{y + 15}" fill="{ink}">{escape(row.name[:NAME_MAX_CHARS])}</text>',
        f'  <text x="{x + 8}" y="{y + 30}" fill="{GREY}" style="font-size: 10px">{escape(below)}</text>',
    ]


def _arrow(move: Move, boxes: dict[Place, Box]) -> list[str]:
    target = boxes[move.target]
    origin = boxes.get(move.origin)
    if origin is None:  # from outside: down from above the column
        assert move.origin.memory == CLOUD
        x = target[0] + COLUMN_WIDTH - 24
        top = ROWS_TOP - 6
        path = f"M{x} {top} V{target[1] - ROW_HEIGHT / 2 + 2}"
        label = f'  <text x="{x - 44}" y="{top}" fill="{ARROW}">{CLOUD}</text>'
        return [label, _path(path)]
    to_right = origin[0] < target[0]
    start = origin[0] + (COLUMN_WIDTH if to_right else 0)
    end = target[0] + (0 if to_right else COLUMN_WIDTH)
    middle = (start + end) / 2
    return [_path(f"M{start} {origin[1]} C{middle} {origin[1]} {middle} {target[1]} {end} {target[1]}")]


def _path(shape: str) -> str:
    return f'  <path d="{shape}" fill="none" stroke="{ARROW}" stroke-width="2" marker-end="url(#head)"/>'


def _lines(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= TEXT_CHARS_PER_LINE:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines[:TEXT_LINES]
