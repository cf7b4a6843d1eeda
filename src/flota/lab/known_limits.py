"""What a board as its vendor ships it does not survive: known, documented, and counted apart from broken promises.

A limit is one promise, in one state of one board, with the page that says so. The device of a sweep looks at its own
chips to tell whether a promise broke in that state; what breaks anywhere else is a broken promise.

Source: docs/reference/power-cuts.md, "Limits".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flota.lab.oracle import Promise


@dataclass(frozen=True, slots=True)
class KnownLimit:
    """A promise that a board cannot keep in one state. `page` is where that is documented."""

    name: str
    promise: Promise
    title: str
    page: str

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.name} ({self.promise.value}): {self.title} [{self.page}]"


STOCK_CLONE: Final = KnownLimit(
    "stock-clone",
    Promise.BOOTS,
    "the power went while the vendor's Cloner copied: the board stays dead until a programmer comes",
    'docs/reference/nuvoton.md, "What `stock` cannot survive"',
)
"""Power-on starts APROM directly, and nothing there leads to the Cloner, which alone could copy again."""

M2354_PENDING: Final = KnownLimit(
    "m2354-pending",
    Promise.CONVERGES,
    "the power went between the job's `active` and the commit: the record stays pending, every later job resets it",
    'docs/reference/nuvoton.md, "Power cuts"',
)
"""MCUboot that overwrites has nothing to go back to, so the vendor's platform layer refuses to reject."""
