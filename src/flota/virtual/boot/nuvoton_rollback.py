"""A loader and a Cloner for the M487 that undo what did not prove itself: the `rollback` profile. Pure.

The published Cloner never reads the backup bank. These two work on the same data: CONFIG0 starts LDROM first, every
hand-over is a CPU reset, a new image has one boot to commit itself, and a rejected one is replaced by the backup.
What is copied is checked before anything is erased, and after it was written.

| flag | the Cloner does |
|---|---|
| new | checks the staged image, saves the app if nobody has, copies, sets pending, then as below |
| pending, trial not used | notes the trial, starts the app |
| pending, trial used | sets invalid, then as below |
| invalid with a usable backup | copies the backup, sets valid without a backup, starts the app |
| invalid without one, valid, no descriptor | starts the app |

Source: docs/reference/nuvoton.md, "Rollback": our design on the vendor's data, not the vendor's code.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Final

from flota.images.nuvoton import DESCRIPTOR_SIZE, Descriptor, ImageFlag, has_magic, parse_descriptor
from flota.images.nuvoton.flash_map import (
    APP_ADDR,
    APP_SIZE,
    BACKUP_ADDR,
    CLONER_ADDR,
    PAGE_SIZE,
    PROGRAM_UNIT,
    STAGING_ADDR,
    TRIAL_ADDR,
    backup_image_addr,
)
from flota.virtual.boot.nuvoton_journal import (
    NO_CRC,
    RECORD_SIZE,
    Record,
    current_descriptor,
    finish_writing,
    parse_record,
    present_record,
    write_descriptor,
)
from flota.virtual.boot.nuvoton_parts import (
    FlashController,
    Handover,
    ResetKind,
    SpiBus,
    SpiStart,
    erase_spi_block,
    program_spi,
    read_spi,
    start_spi,
)
from flota.virtual.boot.nuvoton_stock import field_lines

COPIES_MAX: Final = 2
"""How often an image is copied that does not read back as it should."""

CRC_PIECE_BYTES: Final = 64 * 1024
"""What is read at once for a checksum; the processor has 160 KiB of RAM."""

BLANK_UNIT: Final = b"\xff" * PROGRAM_UNIT
TRIAL_UNUSED: Final = BLANK_UNIT
TRIAL_USED: Final = bytes(PROGRAM_UNIT)

SPI_PAGE_SIZE: Final = 256
BACKUP_HEADER_SIZE: Final = RECORD_SIZE
"""A descriptor with the sums of a `Record`; applications of the vendor's write the descriptor alone."""

_NO_SUMS: Final = b"\xff" * (RECORD_SIZE - DESCRIPTOR_SIZE)


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that may be restored: its place and size (bytes) in the SPI flash, its CRC-32 (`NO_CRC`: not known)."""

    header: Descriptor
    address: int
    size: int
    crc: int


def run_ldrom(controller: FlashController) -> Handover:
    """Return where the loader goes: to the Cloner if there is a descriptor, or one that was being written."""
    there = current_descriptor(controller) is not None
    target = CLONER_ADDR if there else APP_ADDR
    lines = (
        "Boot from LDROM successful",
        f"OTA descriptor: {'present' if there else 'none'}",
        f"Jump to APROM {'Cloner' if there else 'AWS'}",
        f"Will boot from 0x{target:08x}",
    )
    controller.map_vectors(target)
    return Handover(lines, target, ResetKind.CPU)


def run_cloner(controller: FlashController, spi: SpiBus) -> Handover:
    """Return how the Cloner ends: always at the app, by a CPU reset."""
    started = start_spi(spi)
    lines = [started.line, "Boot to Flota Cloner"]
    if finish_writing(controller):
        lines.append("OTA descriptor was interrupted: written once more")
    record = present_record(controller)
    if record is None:
        lines.append("No OTA descriptor")
    else:
        lines += field_lines(record.descriptor.pack(), record.descriptor)
        _Run(controller, spi, started, lines).obey(record)
    lines.append("Jump to APROM AWS")
    controller.map_vectors(APP_ADDR)
    return Handover(tuple(lines), APP_ADDR, ResetKind.CPU)


class _Run:
    """One run of the Cloner."""

    def __init__(self, controller: FlashController, spi: SpiBus, started: SpiStart, lines: list[str]) -> None:
        self._controller = controller
        self._spi = spi
        self._started = started
        self._lines = lines

    def obey(self, record: Record) -> None:
        """Do what the flag asks for."""
        descriptor = record.descriptor
        if descriptor.flag == ImageFlag.NEW:
            descriptor = self._take_new(record)
        if descriptor.flag == ImageFlag.PENDING_COMMIT:
            descriptor = self._try_once(descriptor)
        if descriptor.flag == ImageFlag.INVALID:
            self._undo(descriptor)

    def _set(self, record: Record) -> Descriptor:
        write_descriptor(self._controller, record)
        self._lines.append(f"OTA image flag: 0x{record.descriptor.flag:02X}")
        return record.descriptor

    def _take_new(self, record: Record) -> Descriptor:
        """Copy the staged image, unless it is not what the app verified; return the descriptor as it is then."""
        descriptor = record.descriptor
        size = descriptor.end + 1
        reason = self._why_not_staged(descriptor, size, record.image_crc)
        if reason is None and record.save_first and self._backup(descriptor.reserved) is None:
            record, reason = self._saved(record)
            descriptor = record.descriptor
        if reason is not None:
            self._lines += [f"{reason}!!", "Check OTA image fail!!"]
            return self._set(Record(replace(descriptor, flag=ImageFlag.INVALID, reserved=0)))
        self._lines.append("Check OTA image success")
        self._controller.erase_page(TRIAL_ADDR)
        copied = self._copy(STAGING_ADDR, size)
        flag = ImageFlag.PENDING_COMMIT if copied else ImageFlag.INVALID
        return self._set(replace(record, descriptor=replace(descriptor, flag=flag)))

    def _saved(self, record: Record) -> tuple[Record, str | None]:
        """Save the app that is in APROM, which nobody has touched yet; return the record that says so, or why not.

        The header goes last: what it vouches for is complete. The descriptor names the backup before APROM is erased.
        """
        self._lines.append("Save the app")
        place = backup_image_addr()
        for address in range(BACKUP_ADDR, place + APP_SIZE, PAGE_SIZE):
            erase_spi_block(self._spi, address)
        image = self._controller.read(APP_ADDR, APP_SIZE)
        for start in range(0, APP_SIZE, SPI_PAGE_SIZE):
            piece = image[start : start + SPI_PAGE_SIZE]
            if piece.count(0xFF) != len(piece):
                program_spi(self._spi, place + start, piece)
        header = Record(Descriptor(ImageFlag.VALID, APP_SIZE - 1, reserved=place), zlib.crc32(image))
        program_spi(self._spi, BACKUP_ADDR, header.pack())
        if self._backup(BACKUP_ADDR) is None:
            return record, "The app cannot be saved"
        named = replace(record, descriptor=replace(record.descriptor, reserved=BACKUP_ADDR))
        self._set(named)
        return named, None

    def _why_not_staged(self, descriptor: Descriptor, size: int, expected: int) -> str | None:
        if descriptor.start != 0 or not 0 < size <= APP_SIZE or not 0 <= descriptor.execute <= descriptor.end:
            return "Wrong addresses"
        if not self._answers():
            return "No SPI flash"
        if expected != NO_CRC and self._crc_of(STAGING_ADDR, size) != expected:
            return "Wrong checksum of the staged image"
        return None

    def _answers(self) -> bool:
        """Return whether a chip is there: an id of all zeros or all ones is nobody's."""
        return self._started.jedec_id not in (b"\0\0\0", b"\xff\xff\xff")

    def _try_once(self, descriptor: Descriptor) -> Descriptor:
        if self._controller.read(TRIAL_ADDR, PROGRAM_UNIT) == TRIAL_UNUSED:
            self._controller.program_unit(TRIAL_ADDR, TRIAL_USED)
            self._lines.append("Self-test boot")
            return descriptor
        self._lines.append("The image did not commit itself")
        return self._set(Record(replace(descriptor, flag=ImageFlag.INVALID)))

    def _undo(self, descriptor: Descriptor) -> None:
        backup = self._backup(descriptor.reserved)
        if backup is None:
            self._lines.append("No backup to restore")
            return
        self._lines.append("Restore the backup")
        if self._copy(backup.address, backup.size):
            self._set(Record(replace(backup.header, flag=ImageFlag.VALID, reserved=0)))

    def _backup(self, place: int) -> Backup | None:
        """Return the backup whose header is at `place` in the SPI flash, None if it cannot be used."""
        size_of_chip = self._started.size
        if not self._answers() or place == 0 or place + BACKUP_HEADER_SIZE > size_of_chip:
            return None
        raw = read_spi(self._spi, place, BACKUP_HEADER_SIZE)
        if not has_magic(raw):
            return None
        header = parse_descriptor(raw)
        size = header.end + 1
        address = header.reserved
        if header.flag != ImageFlag.VALID or not header.start < header.end < APP_SIZE or header.start != 0:
            return None
        if address <= place or address + size > size_of_chip:
            return None
        crc = NO_CRC
        if raw[DESCRIPTOR_SIZE:] != _NO_SUMS:
            record = parse_record(raw)
            if record is None or self._crc_of(address, size) != record.image_crc:
                return None
            crc = record.image_crc
        return Backup(header, address, size, crc)

    def _copy(self, source: int, size: int) -> bool:
        """Copy whole pages to APROM 0; returns whether they read back as they stand in the SPI flash."""
        pages = -(-size // PAGE_SIZE)
        for _ in range(COPIES_MAX):
            self._lines.append("Clone APROM ...")
            for page in range(pages):
                self._copy_page(source + page * PAGE_SIZE, page * PAGE_SIZE)
            self._lines.append("Clone done.")
            copied = zlib.crc32(self._controller.read(APP_ADDR, pages * PAGE_SIZE))
            if copied == self._crc_of(source, pages * PAGE_SIZE):
                self._lines.append(f"Checksum OK. CRC32: 0x{copied:X}")
                return True
            self._lines.append("Failed on checksum!")
        return False

    def _copy_page(self, source: int, target: int) -> None:
        """Copy a page, unless it is there already; units that stay blank are not programmed."""
        wanted = read_spi(self._spi, source, PAGE_SIZE)
        if self._controller.read(target, PAGE_SIZE) == wanted:
            return
        self._controller.erase_page(target)
        for start in range(0, PAGE_SIZE, PROGRAM_UNIT):
            unit = wanted[start : start + PROGRAM_UNIT]
            if unit != BLANK_UNIT:
                self._controller.program_unit(target + start, unit)

    def _crc_of(self, address: int, length: int) -> int:
        crc = 0
        for start in range(0, length, CRC_PIECE_BYTES):
            crc = zlib.crc32(read_spi(self._spi, address + start, min(CRC_PIECE_BYTES, length - start)), crc)
        return crc
