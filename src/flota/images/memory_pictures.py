"""An update that moves between several memories, as pictures: what each memory holds at a moment, and what moves where.

A flash layout (`flash_layout`) shows one memory; boards that stage an image elsewhere need several, and one picture a
step. The pictures of a board are declared with its format, such as `nuvoton.pictures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from flota.images.flash_layout import FlashLayout, layout_as_dict

CLOUD: Final = "cloud"
"""Where a move may come from that is no memory of the board."""


@dataclass(frozen=True, slots=True)
class Memory:
    """One memory of a board: its name, its layout, and what is in its regions at this moment (region name -> text)."""

    name: str
    layout: FlashLayout
    holds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """A region of a memory, by their names; `memory` may be `CLOUD`, which has no regions."""

    memory: str
    region: str = ""

    def __str__(self) -> str:
        return f"{self.memory}: {self.region}" if self.region else self.memory


@dataclass(frozen=True, slots=True)
class Move:
    """Bytes that go from one place to another, and who carries them."""

    origin: Place
    target: Place
    by: str


@dataclass(frozen=True, slots=True)
class MemoryPicture:
    """One step of an update."""

    title: str
    text: str
    memories: tuple[Memory, ...]
    moves: tuple[Move, ...] = ()


def pictures_as_dict(pictures: tuple[MemoryPicture, ...]) -> dict[str, object]:
    """Return the pictures as plain data for JSON: offsets and sizes are numbers (bytes)."""
    return {
        "pictures": [
            {
                "title": picture.title,
                "text": picture.text,
                "memories": [
                    {"name": memory.name, **layout_as_dict(memory.layout), "holds": dict(memory.holds)}
                    for memory in picture.memories
                ],
                "moves": [{"from": str(move.origin), "to": str(move.target), "by": move.by} for move in picture.moves],
            }
            for picture in pictures
        ]
    }
