"""A named range of a flash whose map is fixed: what the maps of boards are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FlashArea:
    """The half-open range `[offset, offset + size)` of the flash, in bytes."""

    name: str
    kind: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        """First offset after the area."""
        return self.offset + self.size
