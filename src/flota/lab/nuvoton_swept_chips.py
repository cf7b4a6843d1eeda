"""The chips of a Nuvoton board in a sweep, where they are more than a flash: waymarks, blind areas, card, reset latch.

A boot program that copies an image, and an app that erases a whole bank, make hundreds of operations in which nothing
is decided. `WaymarkedFlash` names a milestone at each erase of a sector there and at the first program after it: so a
life after a cut is joined to one that is known in the middle of a copy too.

Source: docs/reference/power-cuts.md, "Nuvoton boards".
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from flota.lab.swept_device import Milestone
from flota.lab.swept_flash import SweptFlash
from flota.virtual.flash import Cut, FlashOperation, Power
from flota.virtual.nuvoton_board import ResetLatch
from flota.virtual.sd_card import SdCard
from flota.virtual.sector_memory import MemorySnapshot, SectorMemory

CARD_SECTOR_BYTES: Final = 4096
NOWHERE: Final = range(0)


class WaymarkedFlash(SweptFlash):
    """A flash with areas that are copied or erased as a whole, and areas that nobody reads.

    `marked`: there each erase of a sector, and each program at a sector's start, is a milestone. That holds only where
    what is written follows from the chips alone. `blind`: areas whose content no boot and no life looks at before it
    has erased them; what stands there does not tell states apart. A read there all the same is an `AssertionError`.
    """

    def __init__(
        self,
        size: int,
        *,
        sector_size: int,
        power: Power,
        name: str,
        write_alignment: int = 4,
        marked: range = NOWHERE,
        blind: Sequence[range] = (),
    ) -> None:
        super().__init__(size, sector_size=sector_size, write_alignment=write_alignment, power=power, name=name)
        self._marked = marked
        self._blind = frozenset(address // sector_size for area in blind for address in area[::sector_size])
        self._milestone: Milestone | None = None
        self._erasures: collections.Counter[int] = collections.Counter()

    @contextmanager
    def under_way(self, milestone: Milestone) -> Iterator[None]:
        """Tell of milestones, and hold blind areas to be blind, for one boot or one life."""
        self._milestone = milestone
        self._erasures.clear()
        try:
            yield
        finally:
            self._milestone = None

    def read(self, address: int, length: int) -> bytes:
        """Return bytes. Raises `AssertionError` for a blind area that was not erased in this boot or life."""
        if self._blind and self._milestone is not None:
            sectors = range(address // self.sector_size, -(-(address + length) // self.sector_size))
            for sector in sectors:
                if sector in self._blind and not self._erasures[sector]:
                    raise AssertionError(f"{self.name} {address:#x} is read, which nobody is known to read")
        return super().read(address, length)

    def erase_sector(self, address: int) -> None:
        """Erase a sector, with its milestone before."""
        sector = address // self.sector_size
        if self._milestone is not None:
            if address in self._marked:
                self._milestone(f"{self.name} {address:#x} is to be erased after {self._erasures[sector]} times")
            self._erasures[sector] += 1
        super().erase_sector(address)

    def program(self, address: int, data: bytes) -> None:
        """Program, with a milestone before the first bytes of a sector."""
        if self._milestone is not None and not address % self.sector_size and address in self._marked:
            count = self._erasures[address // self.sector_size]
            self._milestone(f"{self.name} {address:#x} is to be programmed after {count} erasures")
        super().program(address, data)

    def fingerprint(self) -> int:
        """Return a number that tells contents apart, blind areas left out."""
        return self._sectors.fingerprint(self._blind)


class SweptCard(SdCard):
    """An SD card that can be saved, loaded and told apart."""

    def __init__(self, size: int, power: Power) -> None:
        self._sectors = SectorMemory(size, sector_size=CARD_SECTOR_BYTES)
        super().__init__(self._sectors, power=power)

    def save(self) -> MemorySnapshot:
        """Return what the card holds."""
        return self._sectors.save()

    def load(self, snapshot: object) -> None:
        """Hold what a snapshot says."""
        assert isinstance(snapshot, MemorySnapshot)
        self._sectors.load(snapshot)

    def fingerprint(self) -> int:
        """Return a number that tells contents apart."""
        return self._sectors.fingerprint()


class SweptLatch(ResetLatch):
    """The reset that software asked for, as a chip without operations: no snapshot of an operation holds one."""

    def save(self) -> object:
        """Return what is asked for."""
        return self.cpu_reset_to

    def load(self, snapshot: object) -> None:
        """Become what it was."""
        assert snapshot is None or isinstance(snapshot, int)
        self.cpu_reset_to = snapshot

    def fingerprint(self) -> int:
        """Return a number that tells resets apart."""
        return -1 if self.cpu_reset_to is None else self.cpu_reset_to

    def leave(self, operation: FlashOperation, cut: Cut) -> None:
        """Raise: no operation is this latch's."""
        raise AssertionError("a reset is no flash operation")
