"""A flash layout as a picture: a bar to scale beside the table of what lies where."""

from __future__ import annotations

from html import escape
from typing import Final

from flota.images.flash_layout import FREE, FlashLayout, FlashRegion, size_text

WIDTH: Final = 760
ROW_HEIGHT: Final = 28
TOP: Final = 64
BAR_LEFT: Final = 20
BAR_WIDTH: Final = 90
ROWS_LEFT: Final = 180
NAME_MAX_CHARS: Final = 32
MARK: Final = "#cf222e"

_FILLS: Final = {
    "app": "#aceebb",
    "bootloader": "#fae17d",
    "partition-table": "#b6e3ff",
    "otadata": "#d8b9ff",
    "nvs": "#ffd8b5",
    "data": "#dde4ea",
    "padding": "#eaeef2",
    "staging": "#b6e3ff",
    "backup": "#ffd8b5",
    "secure": "#ffcecb",
    FREE: "#ffffff",
}
_OTHER_FILL: Final = "#dde4ea"
_COLUMNS: Final = (("start", 0), ("end", 90), ("size", 180), ("what", 270))


def layout_svg(layout: FlashLayout, *, title: str) -> str:
    """Return the layout as an SVG document; overlaps, and what lies beyond the flash, are marked in red.

    `title` is shown above it and told to screen readers. Names are escaped and cut to 32 characters.
    """
    rows = layout.rows
    notes = [f"{one.first} and {one.second} overlap: {one.start:#x} to {one.end:#x}" for one in layout.overlaps]
    if layout.size is not None and layout.claimed_end > layout.size:
        notes.append(f"the flash ends at {layout.size:#x}, the last region at {layout.claimed_end:#x}")
    bar_height = max(len(rows), 1) * ROW_HEIGHT
    height = TOP + bar_height + 20 + ROW_HEIGHT * len(notes)
    name = escape(_cut(title, 80))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">',
        "  <style>text { font-family: ui-monospace, monospace; font-size: 13px }</style>",
        f"  <title>{name}</title>",
        f'  <rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        f'  <text x="{BAR_LEFT}" y="26" font-weight="bold" fill="#1f2328">{name}</text>',
        *(f'  <text x="{ROWS_LEFT + 14 + x}" y="52" fill="#57606a">{text}</text>' for text, x in _COLUMNS),
    ]
    for index, region in enumerate(rows):
        parts += _region(layout, region, index, bar_height)
    for overlap in layout.overlaps:
        top, bottom = _place(layout, overlap.start, bar_height), _place(layout, overlap.end, bar_height)
        parts.append(_rect(BAR_LEFT, top, BAR_WIDTH, max(bottom - top, 2), f'fill="{MARK}" fill-opacity="0.6"'))
    parts.append(_rect(BAR_LEFT, TOP, BAR_WIDTH, bar_height, 'fill="none" stroke="#57606a"'))
    for index, note in enumerate(notes):
        y = TOP + bar_height + 20 + ROW_HEIGHT * index + 8
        parts.append(f'  <text x="{BAR_LEFT}" y="{y}" fill="{MARK}" font-weight="bold">{escape(_cut(note, 90))}</text>')
    return "\n".join([*parts, "</svg>", ""])


def fill_of(kind: str) -> str:
    """Return the colour of a region of that kind."""
    return _FILLS.get(kind, _OTHER_FILL)


def _region(layout: FlashLayout, region: FlashRegion, index: int, bar_height: int) -> list[str]:
    """Return the region's piece of the bar, its row, and the wedge that leads from one to the other."""
    top, bottom = _place(layout, region.start, bar_height), _place(layout, region.end, bar_height)
    row_top = TOP + index * ROW_HEIGHT
    row_bottom = row_top + ROW_HEIGHT - 4
    fill = fill_of(region.kind)
    wrong = layout.clashes(region)
    ink = MARK if wrong else "#8c959f" if region.kind == FREE else "#1f2328"
    right = BAR_LEFT + BAR_WIDTH
    texts = (f"{region.start:#x}", f"{region.end:#x}", size_text(region.size), _what(region))
    wedge = f"M{right} {top:.2f} L{ROWS_LEFT} {row_top} V{row_bottom} L{right} {bottom:.2f} z"
    width, edge = WIDTH - ROWS_LEFT - 20, MARK if wrong else "#d0d7de"
    parts = [
        _rect(BAR_LEFT, top, BAR_WIDTH, bottom - top, f'fill="{fill}" stroke="#8c959f" stroke-width="0.4"'),
        f'  <path d="{wedge}" fill="{fill}" fill-opacity="0.45" stroke="#d0d7de" stroke-width="0.6"/>',
        _rect(ROWS_LEFT, row_top, width, row_bottom - row_top, f'rx="3" fill="{fill}" stroke="{edge}"'),
    ]
    parts += [
        f'  <text x="{ROWS_LEFT + 14 + x}" y="{row_top + 17}" fill="{ink}">{escape(text)}</text>'
        for text, (_, x) in zip(texts, _COLUMNS, strict=True)
    ]
    return parts


def _rect(left: int, top: float, width: int, height: float, look: str) -> str:
    return f'  <rect x="{left}" y="{top:.2f}" width="{width}" height="{height:.2f}" {look}/>'


def _what(region: FlashRegion) -> str:
    used = f" ({region.used} B used)" if region.used else ""
    return _cut(region.name, NAME_MAX_CHARS if not used else 16) + used


def _place(layout: FlashLayout, offset: int, bar_height: int) -> float:
    return TOP + bar_height * min(offset, layout.extent) / layout.extent


def _cut(text: str, max_chars: int) -> str:
    """Return text that may stand in XML: no control characters or lone surrogates, not longer than that."""
    shown = "".join(char if char.isprintable() else "\ufffd" for char in text)
    return shown if len(shown) <= max_chars else shown[: max_chars - 1] + "…"
