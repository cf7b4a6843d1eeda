"""MCUboot that only overwrites: an image staged in the secondary slot is copied over the primary one. Pure.

The staged image is checked, hash and signature, before anything is erased; the mark that asks for the copy goes last,
after the staged header, so a cut repeats the copy. The old image is gone then: nothing reverts, nothing counts tries.
Source: docs/reference/nuvoton.md, "M2354: boot and platform layer"; mcu-tools/mcuboot:boot/bootutil/src/loader.c
(`boot_copy_image`, `boot_validate_slot`), bootutil_public.c (`boot_swap_type_multi`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, Protocol

from flota.errors import FlotaError
from flota.images.mcuboot import ImageVersion, McubootHeader, parse_header, read_trailer, walk_image
from flota.images.mcuboot.trailer import DEFAULT_MAX_ALIGN, trailer_magic
from flota.trust.image_keys import ImagePublicKey
from flota.trust.mcuboot_signatures import VerifiedImage, verify_image

COPY_BYTES: Final = 1024
"""What is copied at once (BUF_SZ of the boot loader)."""

TRAILER_BYTES: Final = 64
"""As much of a slot's end as holds its flags, however wide they are."""

SECURE_IMAGE: Final = 0
"""Number of the secure image, which this boot chain never updates but on which an application may depend."""

TRAILER_MAGIC: Final = trailer_magic(DEFAULT_MAX_ALIGN)


class SwapType(enum.StrEnum):
    """What the mark at the end of the secondary slot asks for."""

    NONE = "none"
    TEST = "test"
    PERM = "perm"


class Area(Protocol):
    """A slot: `size` bytes, erased in sectors of `sector_size`. Its calls raise `FlotaError` where there is no card."""

    @property
    def size(self) -> int:
        """Bytes of the slot."""

    @property
    def sector_size(self) -> int:
        """Bytes erased at once."""

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the slot."""

    def erase(self, offset: int, length: int) -> None:
        """Erase whole sectors."""

    def write(self, offset: int, data: bytes) -> None:
        """Write to erased sectors."""


@dataclass(frozen=True, slots=True)
class BootChain:
    """What the boot loader was built with: its keys, the secure image's version, the security counter in the chip."""

    keys: tuple[ImagePublicKey, ...]
    secure_version: ImageVersion = field(default=ImageVersion(0))
    security_counter: int = 0


@dataclass(frozen=True, slots=True)
class McubootBoot:
    """How it ended: the image that runs (None: nothing), the console, whether an image was copied or refused."""

    running: VerifiedImage | None
    console: tuple[str, ...]
    copied: bool = False
    refused: str | None = None


def run_mcuboot(primary: Area, secondary: Area, chain: BootChain) -> McubootBoot:
    """Return what a start of the boot loader makes of the two slots of the application."""
    lines = ["[INF] Starting bootloader"]
    swap = swap_type(secondary)
    lines.append(f"[INF] Swap type: {swap}")
    refused: str | None = None
    copied = False
    if swap is not SwapType.NONE:
        refused = why_not(secondary, chain)
        if refused is not None:
            lines.append("[ERR] Image in the secondary slot is not valid!")
        try:
            if refused is None:
                _overwrite(primary, secondary, lines)
                copied = True
            drop_staged(secondary)
        except FlotaError as error:  # the card was pulled: what it asked for, it asks for again when it is back
            lines.append(f"[ERR] {error.message}")
    running = _validated(primary, chain)
    if running is None:
        lines += ["[ERR] Image in the primary slot is not valid!", "[ERR] Unable to find bootable image"]
    else:
        lines += ["[INF] Bootloader chainload address offset: 0x20000", "[INF] Jumping to the first image slot"]
    return McubootBoot(running, tuple(lines), copied, refused)


def swap_type(secondary: Area) -> SwapType:
    """Return what the secondary slot's mark asks for; a card that is not there asks for nothing."""
    try:
        trailer = read_trailer(secondary.read(secondary.size - TRAILER_BYTES, TRAILER_BYTES))
    except FlotaError:
        return SwapType.NONE
    if trailer is None:
        return SwapType.NONE
    return SwapType.PERM if trailer.image_ok else SwapType.TEST


def why_not(slot: Area, chain: BootChain) -> str | None:
    """Return why the image in a slot is not valid, None if it is."""
    try:
        image = verify_image(slot_image(slot), chain.keys)
    except FlotaError as error:
        return str(error)
    for dependency in image.facts.dependencies:
        if dependency.image_id != SECURE_IMAGE or chain.secure_version < dependency.minimum:
            return f"needs image {dependency.image_id} at {dependency.minimum} or later"
    counter = image.facts.security_counter
    if counter is not None and counter < chain.security_counter:
        return f"its security counter {counter} is below {chain.security_counter}"
    return None


def slot_image(slot: Area) -> bytes:
    """Return exactly the image at the start of a slot. Raises `ImageError` if there is none, `FlotaError` otherwise."""
    parse_header(slot.read(0, COPY_BYTES))
    content = slot.read(0, slot.size)
    return content[: walk_image(content).image_size]


def header_of(slot: Area) -> McubootHeader:
    """Return the header of the image in a slot. Raises `FlotaError`."""
    return parse_header(slot.read(0, COPY_BYTES))


def ask_for_copy(secondary: Area) -> None:
    """Write the mark for which the boot loader looks at the end of the slot."""
    start = secondary.size - secondary.sector_size
    sector = secondary.read(start, secondary.sector_size)
    secondary.erase(start, secondary.sector_size)
    secondary.write(start, sector[: -len(TRAILER_MAGIC)] + TRAILER_MAGIC)


def drop_staged(secondary: Area) -> None:
    """Erase the staged image's header, then the mark: in this order nothing half gone is ever copied."""
    secondary.erase(0, secondary.sector_size)
    secondary.erase(secondary.size - secondary.sector_size, secondary.sector_size)


def _validated(primary: Area, chain: BootChain) -> VerifiedImage | None:
    try:
        return verify_image(slot_image(primary), chain.keys)
    except FlotaError:
        return None


def _overwrite(primary: Area, secondary: Area, lines: list[str]) -> None:
    """Copy piece by piece, as each is read: a card that is pulled meanwhile leaves half an image behind."""
    size = walk_image(secondary.read(0, secondary.size)).image_size
    length = -(-size // primary.sector_size) * primary.sector_size
    lines += ["[INF] Image upgrade secondary slot -> primary slot", "[INF] Erasing the primary slot"]
    primary.erase(0, length)
    lines.append(f"[INF] Copying the secondary slot to the primary slot: 0x{size:x} bytes")
    for start in range(0, size, COPY_BYTES):
        piece = secondary.read(start, COPY_BYTES)[: size - start]
        primary.write(start, piece.ljust(COPY_BYTES, b"\xff"))
