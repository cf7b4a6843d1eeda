"""What a power-cut sweep needs of a device: chips that can be saved and loaded, a boot loader, an app's life.

Source: docs/reference/power-cuts.md, "Adding a board".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flota.lab.known_limits import KnownLimit
from flota.lab.oracle import Broken, Oracle, Reason, Region, Released
from flota.virtual.flash import Cut, FlashOperation, Power


class Chip(Protocol):
    """Something that outlives the power: flash, fuses, a store."""

    def save(self) -> object:
        """Return a value that `load` takes back."""

    def load(self, snapshot: object, /) -> None:
        """Become what it was."""

    def fingerprint(self) -> int:
        """Return a number that tells contents apart."""

    def leave(self, operation: FlashOperation, cut: Cut, /) -> None:
        """Become what a cut of the operation leaves."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the server offers at one stage of the life. `released` is how the oracle knows it."""

    released: Released
    version: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Boot:
    """What the boot loader did: the slot that it started (None = nothing), the slots that it refused before.

    `handle` is the device's own; `unconfirmed` says that the app is on trial.
    """

    slot: str | None
    refused: tuple[str, ...] = ()
    handle: object = None
    unconfirmed: bool = False


@dataclass(frozen=True, slots=True)
class LifeEnd:
    """How an app's life ended: by a restart, or at rest with nothing more to do, and why if it runs an old image."""

    at_rest: bool
    reason: Reason | None = None
    installed: bool = False
    """Whether this life installed what was offered."""


Milestone = Callable[[str], None]
"""Called by a device where all that follows depends on its chips, the running slot, the offer and the name alone.

While it boots no slot runs yet: a boot loader that copies has milestones where the chips and the name decide.
"""


class SweptDevice(Protocol):
    """A device that a sweep can interrupt. See docs/reference/power-cuts.md, "Adding a board"."""

    @property
    def power(self) -> Power:
        """The one power supply of all its chips."""

    @property
    def chips(self) -> Mapping[str, Chip]:
        """Everything that outlives the power, by the name that its operations carry."""

    @property
    def regions(self) -> Sequence[Region]:
        """The slots."""

    @property
    def offers(self) -> Sequence[Offer]:
        """What is offered, one after another."""

    @property
    def writes_slots_while_booting(self) -> bool:
        """Whether the boot loader copies images."""

    def oracle(self) -> Oracle:
        """Return a judge that knows everything that was ever released for the device."""

    def boot(self, milestone: Milestone) -> Boot:
        """Run the boot loader once, with RAM that holds nothing of before."""

    def live(self, boot: Boot, offer: Offer, milestone: Milestone) -> LifeEnd:
        """Live as the app that was started, until it restarts or has nothing more to do."""

    def counter(self) -> int | None:
        """Return the anti-rollback counter, None if there is none."""

    def limit(self, broken: Broken) -> KnownLimit | None:
        """Return the limit of the board that a promise ran into, as the chips are now; None: it ought to have held."""


def save(device: SweptDevice) -> dict[str, object]:
    """Return what all chips hold."""
    return {name: chip.save() for name, chip in device.chips.items()}


def load(device: SweptDevice, snapshot: Mapping[str, object]) -> None:
    """Give all chips back what they held; there is power, and no plan to cut it."""
    for name, chip in device.chips.items():
        chip.load(snapshot[name])
    device.power.on, device.power.number, device.power.plan = True, 0, None


def fingerprint(device: SweptDevice) -> tuple[int, ...]:
    """Return numbers that tell states of the device apart."""
    return tuple(chip.fingerprint() for chip in device.chips.values())
