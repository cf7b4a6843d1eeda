"""Writing the OTA descriptor so that no cut loses it: a copy with a checksum first, then the page itself. Pure.

The descriptor's page is erased and programmed anew at each change; between the two it says nothing. In the `rollback`
profile what is to stand there is first written to a second page, which ends with a checksum; the word behind it is
cleared once the descriptor's page is complete. A copy whose checksum holds and whose word is still blank is what the
descriptor ought to be; any boot finishes the writing. A stock application never writes the second page, and nothing
changes for it.

The copy also keeps the CRC-32 of the staged image, so that the Cloner can tell a bank that is not what was verified,
and whether the app that runs is to be saved before it is overwritten.
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

NOT_SAVED: Final = 0x01
"""Option: the app was built to be overwritten without a backup. Else the Cloner saves it if nobody else has."""

_SUMS: Final = struct.Struct("<4I")
RECORD_SIZE: Final = DESCRIPTOR_SIZE + _SUMS.size
"""Descriptor, CRC-32 of the image, options, a blank word, CRC-32 of these 44 bytes."""
assert RECORD_SIZE == 48
assert RECORD_SIZE % PROGRAM_UNIT == 0
DONE_OFFSET: Final = RECORD_SIZE
DONE: Final = bytes(PROGRAM_UNIT)
_NOT_DONE: Final = b"\xff" * PROGRAM_UNIT
_AREA_SIZE: Final = RECORD_SIZE + PROGRAM_UNIT


@dataclass(frozen=True, slots=True)
class Record:
    """A descriptor with the CRC-32 of the image that it speaks of (`NO_CRC` = not known).

    `save_first`: the app in APROM is saved to the backup bank before it is overwritten, also where nothing is known.
    """

    descriptor: Descriptor
    image_crc: int = NO_CRC
    save_first: bool = True

    def pack(self) -> bytes:
        """Return the 48 bytes."""
        options = 0 if self.save_first else NOT_SAVED
        front = (self.descriptor.pack() + _SUMS.pack(self.image_crc, options, NO_CRC, 0))[:-4]
        return front + zlib.crc32(front).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class Journal:
    """What the second page holds: a record, and whether the descriptor's page has it already."""

    record: Record
    done: bool


def parse_record(data: bytes) -> Record | None:
    """Return the record at the start of `data` (48 bytes), None if it has no magic or its checksum does not hold."""
    if len(data) < RECORD_SIZE:
        return None
    image_crc, options, _, crc = _SUMS.unpack_from(data, DESCRIPTOR_SIZE)
    if not has_magic(data) or zlib.crc32(data[: RECORD_SIZE - 4]) != crc:
        return None
    return Record(parse_descriptor(data), image_crc, not options & NOT_SAVED)


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


def present_record(controller: FlashController) -> Record | None:
    """Return the copy of the present descriptor with what it knows beside it; None without a descriptor.

    A descriptor that was written without a copy, as a stock application does, is a record that knows nothing.
    """
    journal, descriptor = read_journal(controller), read_descriptor(controller)
    if descriptor is None:
        return None
    if journal is None or journal.record.descriptor != descriptor:
        return Record(descriptor)
    return journal.record


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
