"""Which chunk to send next when answers may be lost: the NCP's idea of how much of the image the MCU has.

The vendor's MCU takes a chunk only at the very offset that it has reached, and answers false to one that it has stored
already. So when an answer is lost, all repetitions are refused, and the way on is to try the next chunk: true means
that the one before had been stored. Source: docs/reference/blynk.md, "Lost answers".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

RESENDS_MAX: Final = 5
"""A chunk that failed or timed out is sent again so often; then the update ends."""


@dataclass(slots=True)
class ChunkWindow:
    """Where the stream of an image of `size` bytes in chunks of `chunk` bytes is. All offsets in bytes.

    The MCU surely has everything before `stored`, and nothing from `possible` on; `at` is what is sent next.
    `failures`: tries since the last one that is known to have succeeded.
    """

    size: int
    chunk: int
    stored: int = 0
    possible: int = 0
    at: int = 0
    failures: int = 0

    @property
    def is_at_the_end(self) -> bool:
        """Whether Finish comes next; if not everything is known to be stored, its answer decides."""
        return self.at >= self.size

    @property
    def is_used_up(self) -> bool:
        """Whether no further try is allowed."""
        return self.failures > RESENDS_MAX

    def piece(self) -> tuple[int, int]:
        """Return offset and length of the chunk to send. All chunks but the last are of full size."""
        return self.at, self.length_at(self.at)

    def length_at(self, offset: int) -> int:
        """Return the length of the chunk that begins at `offset`."""
        return max(0, min(self.chunk, self.size - offset))

    def acknowledged(self, offset: int) -> None:
        """Note a true, in time or late, for the chunk at `offset`."""
        end = offset + self.length_at(offset)
        if end <= self.stored:
            return
        self.stored = end
        self.possible = max(self.possible, end)
        self.at = max(self.at, end)
        self.failures = 0

    def timed_out(self) -> None:
        """Note that nobody answered: the chunk may be stored or not. What is known to be missing is sent again."""
        self.failures += 1
        self.possible = max(self.possible, self.at + self.length_at(self.at))
        self.at = self.stored

    def refused(self) -> None:
        """Note a false: try the next chunk if this one may have been stored before, else begin at what is known."""
        self.failures += 1
        following = self.at + self.length_at(self.at)
        self.at = following if following <= self.possible else self.stored
