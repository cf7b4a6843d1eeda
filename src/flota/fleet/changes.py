"""What a transaction changed for devices: how those who keep answers ready learn which of them are out of date."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self


@dataclass(frozen=True, slots=True)
class Changes:
    """Whom a committed transaction concerns. Ids; empty sets and False: nobody.

    `work`: devices that may have something else to do now. `identity`: devices that may have to be let in, or kept out,
    in another way now; their work counts as changed too. `tenants`: all devices of these. `everything`: all devices.
    """

    work: frozenset[int] = frozenset()
    identity: frozenset[int] = frozenset()
    tenants: frozenset[int] = frozenset()
    everything: bool = False

    def __or__(self, other: Changes) -> Changes:
        """Return whom either concerns."""
        return Changes(
            self.work | other.work,
            self.identity | other.identity,
            self.tenants | other.tenants,
            self.everything or other.everything,
        )

    def __bool__(self) -> bool:
        """Whether anybody is concerned."""
        return bool(self.everything or self.work or self.identity or self.tenants)

    @classmethod
    def of_work(cls, *device_ids: int) -> Self:
        """Return the change of what these devices are to do."""
        return cls(work=frozenset(device_ids))


NO_CHANGES: Final = Changes()
EVERYTHING: Final = Changes(everything=True)
