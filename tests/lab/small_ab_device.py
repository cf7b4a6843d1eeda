"""A tiny A/B device of a made-up kind, for the engine's own tests: what a sweep needs of a board, and nothing else.

Two slots of two sectors, a record of two copies with number, slot, state and a check byte, in one sector each. Bugs are
planted by name.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

from flota.lab.known_limits import KnownLimit
from flota.lab.oracle import Broken, Oracle, Reason, Region, Released
from flota.lab.swept_device import Boot, Chip, LifeEnd, Milestone, Offer
from flota.lab.swept_flash import SweptFlash

SECTOR = 64
SLOT_SECTORS = 2
RECORDS = (0, SECTOR)
SLOTS = {"a": 2 * SECTOR, "b": 4 * SECTOR}
IMAGE_BYTES = 100
DIGEST_BYTES = 8


def image(name: str) -> bytes:
    """Return an image that carries its own digest."""
    body = (name.encode() * IMAGE_BYTES)[: IMAGE_BYTES - DIGEST_BYTES]
    return body + hashlib.sha256(body).digest()[:DIGEST_BYTES]


def offer_of(name: str, *, damaged: bool = False) -> Offer:
    data = image(name)
    if damaged:
        data = data[:40] + b"\x00" + data[41:]
    return Offer(Released(name, hashlib.sha256(data).hexdigest(), len(data), bootable=not damaged), name, data)


class SmallAbDevice:
    """`bugs` names what is wrong with it."""

    writes_slots_while_booting = False

    def __init__(self, *bugs: str, damaged: bool = False) -> None:
        self.bugs = frozenset(bugs)
        self.flash = SweptFlash(6 * SECTOR, sector_size=SECTOR)
        self.power = self.flash.power
        self.chips: Mapping[str, Chip] = {"flash": self.flash}
        self.regions: Sequence[Region] = tuple(
            Region(name, at, SLOT_SECTORS * SECTOR, SECTOR) for name, at in SLOTS.items()
        )
        self.offers: Sequence[Offer] = (offer_of("two", damaged=damaged), offer_of("three"))
        self._first = offer_of("one")
        self._write_image("a", self._first.data)
        self._write_record(0, 1, "a")

    def oracle(self) -> Oracle:
        return Oracle(
            [self._first.released, *(one.released for one in self.offers)], self.regions, {"flash": self.flash}
        )

    def limit(self, broken: Broken) -> KnownLimit | None:
        return None

    def counter(self) -> int | None:
        return None

    def boot(self, milestone: Milestone) -> Boot:
        records = self._records()
        order = [slot for _, slot in sorted(records, reverse=True)] + list(SLOTS)
        if "writes at every boot" in self.bugs:
            self._write_record(0, max(number for number, _ in records), order[0])
        refused: list[str] = []
        for slot in dict.fromkeys(order):
            if "boots unverified" in self.bugs or self._whole(slot):
                return Boot(slot, tuple(refused))
            refused.append(slot)
        return Boot(None, tuple(refused))

    def live(self, boot: Boot, offer: Offer, milestone: Milestone) -> LifeEnd:
        assert boot.slot is not None
        if self.flash.read(SLOTS[boot.slot], len(offer.data)) == offer.data:
            return LifeEnd("restarts for ever" not in self.bugs)
        if "falls over" in self.bugs:
            raise LookupError("a bug in the app")
        target = boot.slot if "writes the running slot" in self.bugs else "b" if boot.slot == "a" else "a"
        number = max((number for number, _ in self._records()), default=0)
        copy = 0 if "one record" in self.bugs else number % 2
        if "chooses first" in self.bugs:
            self._write_record(copy, number + 1, target)
        self._write_image(target, offer.data)
        if not self._whole(target) and "chooses unverified" not in self.bugs:
            return LifeEnd(True, None if "keeps silent" in self.bugs else Reason.REFUSED)
        if "chooses first" not in self.bugs:
            self._write_record(copy, number + 1, target)
        return LifeEnd(False, installed=True)

    def _whole(self, slot: str) -> bool:
        data = self.flash.read(SLOTS[slot], IMAGE_BYTES)
        return hashlib.sha256(data[:-DIGEST_BYTES]).digest()[:DIGEST_BYTES] == data[-DIGEST_BYTES:]

    def _records(self) -> list[tuple[int, str]]:
        found = []
        for at in RECORDS:
            number, slot, check, _ = self.flash.read(at, 4)
            if chr(slot) in SLOTS and (check == (number ^ slot ^ 0x5A) or "no check" in self.bugs):
                found.append((number, chr(slot)))
        return found

    def _write_record(self, copy: int, number: int, slot: str) -> None:
        self.flash.erase_sector(RECORDS[copy])
        self.flash.program(RECORDS[copy], bytes([number, ord(slot), number ^ ord(slot) ^ 0x5A, 0]))

    def _write_image(self, slot: str, data: bytes) -> None:
        if "does not erase" not in self.bugs:
            sectors = 1 if "erases too little" in self.bugs else SLOT_SECTORS
            self.flash.erase(SLOTS[slot], sectors * SECTOR)
        for start, end in itertools.pairwise([*range(0, len(data), SECTOR), len(data)]):
            self.flash.program(SLOTS[slot] + start, data[start:end])
