"""NOR flash of a device under power cuts: the virtual devices' flash on memory that keeps snapshots."""

from __future__ import annotations

from flota.virtual.flash import NorFlash, Power
from flota.virtual.sector_memory import MemorySnapshot, SectorMemory


class SweptFlash(NorFlash):
    """A blank flash of `size` bytes that can be saved, loaded and told apart from others."""

    def __init__(
        self,
        size: int,
        *,
        sector_size: int = 4096,
        write_alignment: int = 4,
        power: Power | None = None,
        name: str = "flash",
    ) -> None:
        self._sectors = SectorMemory(size, sector_size=sector_size)
        super().__init__(
            self._sectors, sector_size=sector_size, write_alignment=write_alignment, power=power, name=name
        )

    def save(self) -> MemorySnapshot:
        """Return what the flash holds."""
        return self._sectors.save()

    def load(self, snapshot: object) -> None:
        """Hold what a snapshot says."""
        assert isinstance(snapshot, MemorySnapshot)
        self._sectors.load(snapshot)

    def fingerprint(self) -> int:
        """Return a number that tells contents apart."""
        return self._sectors.fingerprint()
