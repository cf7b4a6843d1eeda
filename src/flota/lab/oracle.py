"""The judge of a power-cut sweep: it knows the released images by digest, reads the flash itself, and trusts nobody.

It shares no code with boot loaders, agents or image formats (the import contract lets it have the kernel alone): what
it holds against a device is the bytes in flash, and which slot the boot loader started.

Source: docs/reference/power-cuts.md, "Promises".
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

VERDICTS_MAX: Final = 256
"""How many slot contents are remembered."""


class Reason(enum.StrEnum):
    """Why a device rests with another image than the one offered, as something on the device says."""

    REFUSED = "refused"
    ROLLED_BACK = "rolled back"
    TAG_ONLY = "the tag names what does not run"


class Promise(enum.StrEnum):
    """What a device keeps whatever is interrupted; the names are those of docs/reference/power-cuts.md."""

    BOOTS = "D1 boots"
    WHOLE = "D2 whole"
    ONLY_GOOD = "D3 only good"
    CONVERGES = "D4 converges"
    UNTOUCHED = "D5 untouched"
    COUNTER = "D6 counter"
    ENDS = "D7 ends"
    FLASH_RULES = "F1 flash rules"
    QUIET = "F2 quiet"
    SOUND = "F3 sound"


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that was not kept, and how."""

    promise: Promise
    text: str


@dataclass(frozen=True, slots=True)
class Released:
    """An image that somebody released: exactly `size` bytes with this SHA-256.

    `bootable` is false for a file that must never run: damaged, for another chip, unsigned. `lasts` is false for an
    image that runs but fails its trial. `secure_version` is what an anti-rollback counter may be raised to once the
    image is confirmed.
    """

    name: str
    sha256: str
    size: int
    bootable: bool = True
    lasts: bool = True
    secure_version: int = 0


@dataclass(frozen=True, slots=True)
class Region:
    """A slot: `size` bytes at `start` of the chip; behind an image it is erased to a multiple of `blank_to` bytes."""

    name: str
    start: int
    size: int
    blank_to: int
    chip: str = "flash"
    mark_size: int = 0
    """So many bytes at the start are the slot's own mark: the app that runs from it may program over it to retire."""


class Reader(Protocol):
    """A chip as the oracle sees it."""

    def read(self, address: int, length: int) -> bytes:
        """Return bytes."""

    def content_key(self, address: int, length: int) -> Hashable | None:
        """Return something equal for equal content, or None."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a slot holds: a released image, or not; `dirty` if bytes that nobody released follow it."""

    image: Released | None
    dirty: bool = False


class Oracle:
    """Judges one device: its chips, its slots, and all that was ever released for it."""

    def __init__(self, released: Sequence[Released], regions: Sequence[Region], chips: Mapping[str, Reader]) -> None:
        self._released = sorted(released, key=lambda image: image.size)
        self._regions = {region.name: region for region in regions}
        self._chips = chips
        self._verdicts: dict[Hashable, Found] = {}

    def region(self, name: str) -> Region:
        """Return the slot called `name`."""
        return self._regions[name]

    def image_in(self, name: str) -> Found:
        """Return what the slot holds, by digest alone."""
        region = self._regions[name]
        chip = self._chips[region.chip]
        content = chip.content_key(region.start, region.size)
        key = (name, content)
        if content is not None and key in self._verdicts:
            return self._verdicts[key]
        found = self._look(region, chip)
        if content is not None:
            if len(self._verdicts) >= VERDICTS_MAX:
                self._verdicts.clear()
            self._verdicts[key] = found
        return found

    def judge_boot(self, slot: str | None, refused: Sequence[str]) -> list[Broken]:
        """Return what is wrong with a boot that started `slot` (None = nothing) after refusing other slots."""
        if slot is None:
            whole = [name for name in self._regions if self._is_good(name)]
            return [Broken(Promise.BOOTS, f"nothing boots; whole images in: {', '.join(whole) or 'no slot'}")]
        broken = []
        found = self.image_in(slot)
        if found.image is None:
            broken.append(Broken(Promise.WHOLE, f"{slot} was started, which holds no released image"))
        elif not found.image.bootable:
            broken.append(Broken(Promise.ONLY_GOOD, f"{slot} was started, which holds the refused {found.image.name}"))
        elif found.dirty:
            broken.append(Broken(Promise.WHOLE, f"bytes that nobody released follow {found.image.name} in {slot}"))
        if refused and found.image is not None:
            broken.append(
                Broken(Promise.ONLY_GOOD, f"{refused[0]} was marked bootable, but the boot loader had to refuse it")
            )
        return broken

    def judge_rest(self, slot: str, offered: Released, reason: Reason | None, *, interrupted: bool) -> list[Broken]:
        """Return what is wrong with a device that runs `slot` and has nothing more to do about `offered`.

        Right is the offered image, if it is good and lasts; or another one that was released, with a reason. A good
        image may be refused never, and may be missing only after an interruption.
        """
        running = self.image_in(slot).image
        if running is None:
            return [Broken(Promise.WHOLE, f"{slot} runs, which holds no released image")]
        if not running.lasts:
            return [Broken(Promise.CONVERGES, f"rests with {running.name}, which fails its trial")]
        if running == offered:
            return []
        if offered.bootable and offered.lasts and not interrupted:
            return [Broken(Promise.CONVERGES, f"{offered.name} was never installed, though nothing was interrupted")]
        if reason is Reason.REFUSED and offered.bootable:
            return [Broken(Promise.CONVERGES, f"refuses {offered.name}, which is good")]
        if reason is None:
            return [Broken(Promise.CONVERGES, f"rests with {running.name} instead of {offered.name}, without a reason")]
        return []

    def judge_counter(self, counter: int, *, slot: str, unconfirmed: bool) -> list[Broken]:
        """Return what is wrong with an anti-rollback counter: it may rule out neither what runs nor the way back."""
        needed = [slot]
        if unconfirmed:
            others = [name for name in self._regions if name != slot and self._is_good(name)]
            needed += others[:1] if len(others) == 1 else []
        for name in needed:
            image = self.image_in(name).image
            if image is not None and image.secure_version < counter:
                return [Broken(Promise.COUNTER, f"the counter is {counter}: {image.name} in {name} is ruled out")]
        return []

    def _is_good(self, name: str) -> bool:
        image = self.image_in(name).image
        return image is not None and image.bootable and image.lasts

    def _look(self, region: Region, chip: Reader) -> Found:
        for image in self._released:
            if image.size > region.size:
                continue
            if hashlib.sha256(chip.read(region.start, image.size)).hexdigest() == image.sha256:
                end = min(-(-image.size // region.blank_to) * region.blank_to, region.size)
                rest = chip.read(region.start + image.size, end - image.size) if end > image.size else b""
                return Found(image, dirty=rest.count(0xFF) != len(rest))
        return Found(None)
