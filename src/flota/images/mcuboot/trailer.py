"""What the end of a slot says to the boot loader, and files that fill a whole slot with it.

From the end: the 16 magic bytes, one cell each for image-ok, copy-done, swap-info and swap-size, then the swap status.
A cell is as wide as the largest write of the flash (`max_align`, at least 8 bytes).
Source: docs/reference/mcuboot.md; mcu-tools/mcuboot:boot/bootutil/src/bootutil_public.c, scripts/imgtool/image.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flota.images.model import ImageError

Buffer = bytes | memoryview

MAGIC_SIZE: Final = 16
MAGIC_8: Final = bytes.fromhex("77c295f360d2ef7f3552500f2cb67980")
"""For cells of 8 bytes."""
MAGIC_TAIL: Final = bytes.fromhex("2de15d29410b8d77679c110f1f8a")
"""Behind the u16 of the cell width, for wider cells."""
FLAG_SET: Final = 0x01
DEFAULT_MAX_ALIGN: Final = 8
ALIGNMENTS: Final = (1, 2, 4, 8, 16, 32)
MAX_ALIGNMENTS: Final = (8, 16, 32)
DEFAULT_MAX_SECTORS: Final = 128
MAX_SECTORS_LIMIT: Final = 32768
STATUS_STATES: Final = 3
"""Status cells for each sector that is swapped."""
SLOT_SIZE_MAX: Final = 256 * 1024 * 1024
"""The largest slot that we fill (bytes): far above every flash chip that these boot loaders run from."""


@dataclass(frozen=True, slots=True)
class SlotShape:
    """What of a slot decides about its trailer.

    `size` in bytes; `align` is the smallest write of the flash, `max_align` the larger one of both slots (None =
    `align`, at least 8); `max_sectors` is how many sectors a swap can have; `erased` the value of an erased byte.
    """

    size: int
    align: int = 1
    max_align: int | None = None
    max_sectors: int = DEFAULT_MAX_SECTORS
    overwrite_only: bool = False
    erased: int = 0xFF

    def __post_init__(self) -> None:
        if not 0 < self.size <= SLOT_SIZE_MAX:
            raise ImageError("bad size of a slot", expected=f"1 to {SLOT_SIZE_MAX} bytes", found=self.size)
        if self.align not in ALIGNMENTS:
            raise ImageError("bad alignment", expected=_choice(ALIGNMENTS), found=self.align)
        if self.cell not in MAX_ALIGNMENTS or self.cell < self.align:
            raise ImageError(
                "bad maximum alignment", expected=f"{_choice(MAX_ALIGNMENTS)}, at least --align", found=self.cell
            )
        if not 0 < self.max_sectors <= MAX_SECTORS_LIMIT:
            raise ImageError("bad number of sectors", expected=f"1 to {MAX_SECTORS_LIMIT}", found=self.max_sectors)
        if self.erased not in (0, 0xFF):
            raise ImageError("bad value of erased flash", expected="0 or 0xff", found=f"{self.erased:#x}")

    @property
    def cell(self) -> int:
        """Width of a flag's cell in bytes."""
        return self.max_align or max(DEFAULT_MAX_ALIGN, self.align)

    @property
    def trailer_size(self) -> int:
        """Bytes at the end of the slot that the image must leave free."""
        magic_cells = _aligned(MAGIC_SIZE, self.cell)
        if self.overwrite_only:
            return 2 * self.cell + magic_cells
        return self.max_sectors * STATUS_STATES * self.align + 4 * self.cell + magic_cells


@dataclass(frozen=True, slots=True)
class Trailer:
    """What a boot loader reads at the end of a slot. `cell` is the width of a flag's cell in bytes."""

    cell: int
    image_ok: bool
    copy_done: bool


def trailer_magic(cell: int) -> bytes:
    """Return the 16 bytes that end a slot which the boot loader is to look at."""
    return MAGIC_8 if cell == DEFAULT_MAX_ALIGN else cell.to_bytes(2, "little") + MAGIC_TAIL


def check_fits(image_size: int, slot: SlotShape) -> None:
    """Raise `ImageError` when an image of `image_size` bytes leaves no room for the slot's trailer."""
    if image_size + slot.trailer_size > slot.size:
        raise ImageError(
            "the image does not fit its slot",
            expected=f"at most {max(slot.size - slot.trailer_size, 0)} bytes"
            f" ({slot.size:#x} less {slot.trailer_size:#x} of trailer)",
            found=image_size,
        )


def fill_slot(image: bytes, slot: SlotShape, *, confirmed: bool = False) -> bytes:
    """Return `image` padded to the whole slot, its trailer asking for the update at the next boot.

    `confirmed` also sets image-ok, so that a swap is not reverted; where images are only overwritten nothing is ever
    reverted, and imgtool leaves the flag alone as we do. Raises `ImageError` when it does not fit.
    """
    check_fits(len(image), slot)
    full = bytearray(image)
    full += bytes((slot.erased,)) * (slot.size - len(image) - MAGIC_SIZE)
    full += trailer_magic(slot.cell)
    if confirmed and not slot.overwrite_only:
        full[_image_ok_offset(len(full), slot.cell)] = FLAG_SET
    return bytes(full)


def read_trailer(slot: Buffer) -> Trailer | None:
    """Return what the end of a slot says, None when no trailer magic is there. Never raises."""
    magic = bytes(slot[-MAGIC_SIZE:])
    if magic == MAGIC_8:
        cell = DEFAULT_MAX_ALIGN
    elif magic[2:] == MAGIC_TAIL:
        cell = int.from_bytes(magic[:2], "little")
        if cell not in MAX_ALIGNMENTS:
            return None
    else:
        return None
    image_ok = _image_ok_offset(len(slot), cell)
    if image_ok < cell:
        return None
    return Trailer(cell, slot[image_ok] == FLAG_SET, slot[image_ok - cell] == FLAG_SET)


def _image_ok_offset(slot_size: int, cell: int) -> int:
    return slot_size - _aligned(MAGIC_SIZE, cell) - cell


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _choice(values: tuple[int, ...]) -> str:
    return f"one of {', '.join(map(str, values))}"
