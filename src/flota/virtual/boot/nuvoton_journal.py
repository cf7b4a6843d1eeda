"""Writing the OTA descriptor so that no cut loses it: a copy with a checksum first, then the page itself. Pure.

The descriptor's page is erased and programmed anew at each change; between the two it says nothing. In the `rollback`
profile what is to stand there is first written to a second page, which ends with a checksum; the word behind it is
cleared once the descriptor's page is complete. A copy whose checksum holds and whose word is still blank is what the
descriptor ought to be; any boot finishes the writing. A stock application never writes the second page, and nothing
changes for it.

The copy also keeps the CRC-32 of the staged image, so that the Cloner can tell a bank that is not what was verified.
Source: docs/reference/nuvoton.md, "Rollback".
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from flota.images.nuvoton import DESCRIPTOR_SIZE, Descriptor, has_magic, parse_descriptor
from flota.images.nuvoton.flash_map import DESCRIPTOR_ADDR, DESCRIPTOR_COPY_ADDR, PROGRAM_UNIT
from flota.virtual.boot.nuvoton_parts import FlashController, program_page

NO_CRC: Final = 0xFFFF_FFFF
"""In place of an image's CRC-32: nobody said one."""

_SUMS: Final = struct.Struct("<II")
RECORD_SIZE: Final = DESCRIPTOR_SIZE + _SUMS.size
"""Descriptor, CRC-32 of the image, CRC-32 of these 36 bytes."""
assert RECORD_SIZE == 40
assert RECORD_SIZE % PROGRAM_UNIT == 0
DONE_OFFSET: Final = RECORD_SIZE
DONE: Final = bytes(PROGRAM_UNIT)
_NOT_DONE: Final = b"\xff" * PROGRAM_UNIT
_AREA_SIZE: Final = RECORD_SIZE + PROGRAM_UNIT


@dataclass(frozen=True, slots=True)
class Record:
    """A descriptor with the CRC-32 of the image that it speaks of (`NO_CRC` = not known)."""

    descriptor: Descriptor
    image_crc: int = NO_CRC

    def pack(self) -> bytes:
        """Return the 40 bytes."""
        front = self.descriptor.pack() + self.image_crc.to_bytes(4, "little")
        return front + zlib.crc32(front).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class Journal:
    """What the second page holds: a record, and whether the descriptor's page has it already."""

    record: Record
    done: bool


def parse_record(data: bytes) -> Record | None:
    """Return the record at the start of `data` (40 bytes), None if it has no magic or its checksum does not hold."""
    image_crc, crc = _SUMS.unpack_from(data, DESCRIPTOR_SIZE)
    if not has_magic(data) or zlib.crc32(data[: RECORD_SIZE - 4]) != crc:
        return None
    return Record(parse_descriptor(data), image_crc)


def read_journal(controller: FlashController) -> Journal | None:
    """Return what the second page holds, None if it is blank or was interrupted."""
    area = controller.read(DESCRIPTOR_COPY_ADDR, _AREA_SIZE)
    record = parse_record(area)
    return None if record is None else Journal(record, area[DONE_OFFSET:] != _NOT_DONE)


def read_descriptor(controller: FlashController) -> Descriptor | None:
    """Return the descriptor in its own page, None without its magic."""
    raw = controller.read(DESCRIPTOR_ADDR, DESCRIPTOR_SIZE)
    return parse_descriptor(raw) if has_magic(raw) else None


def current_descriptor(controller: FlashController) -> Descriptor | None:
    """Return what the descriptor is or is about to be; None if there is none."""
    journal = read_journal(controller)
    if journal is not None and not journal.done:
        return journal.record.descriptor
    return read_descriptor(controller)


def image_crc(controller: FlashController) -> int:
    """Return the CRC-32 of the staged image as the copy of the present descriptor has it, `NO_CRC` without one."""
    journal, descriptor = read_journal(controller), read_descriptor(controller)
    if journal is None or journal.record.descriptor != descriptor:
        return NO_CRC
    return journal.record.image_crc


def write_descriptor(controller: FlashController, record: Record) -> None:
    """Make `record` the descriptor; a cut at any moment leaves the old one or this one to be found."""
    controller.erase_page(DESCRIPTOR_COPY_ADDR)
    program_page(controller, DESCRIPTOR_COPY_ADDR, record.pack())
    _write_page(controller, record)


def finish_writing(controller: FlashController) -> bool:
    """Write a descriptor that was interrupted once more; returns whether there was one."""
    journal = read_journal(controller)
    if journal is None or journal.done:
        return False
    _write_page(controller, journal.record)
    return True


def _write_page(controller: FlashController, record: Record) -> None:
    controller.erase_page(DESCRIPTOR_ADDR)
    program_page(controller, DESCRIPTOR_ADDR, record.descriptor.pack())
    controller.program_unit(DESCRIPTOR_COPY_ADDR + DONE_OFFSET, DONE)
