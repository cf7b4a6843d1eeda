"""The boot programs of the M487 as they are shipped: LDROM loader and Cloner, decision by decision. Pure.

The loader looks at seven bytes. The Cloner looks at flag and addresses, never at a signature, a checksum or the backup
bank, and ignores what erasing and programming return: a dead SPI flash is copied like a good one.
Source: docs/reference/nuvoton.md, "Loader and Cloner". Checked against vectors made by running the vendor's.
"""

from __future__ import annotations

from typing import Final

from flota.images.nuvoton import (
    DESCRIPTOR_SIZE,
    MAGIC,
    Descriptor,
    ImageFlag,
    cloned_pages,
    has_magic,
    parse_descriptor,
)
from flota.images.nuvoton.descriptor import FLAG_OFFSET
from flota.images.nuvoton.flash_map import APP_ADDR, CLONER_ADDR, DESCRIPTOR_ADDR, DESCRIPTOR_LIMIT, PAGE_SIZE
from flota.virtual.boot.nuvoton_parts import (
    FlashController,
    Handover,
    ResetKind,
    SpiBus,
    program_page,
    read_spi,
    start_spi,
)

HEAD_SIZE: Final = 8
"""What the loader reads of the descriptor: magic and flag."""

CRC_FAILED: Final = 0xFFFF_FFFF

_STRAY: Final = b"\xb0\x09\x10"
"""What stands in RAM behind the eight bytes that the loader prints as a string."""


def run_ldrom(controller: FlashController) -> Handover:
    """Return where the LDROM loader goes: to the Cloner if the descriptor's magic is there, else to the app."""
    head = controller.read(DESCRIPTOR_ADDR, HEAD_SIZE)
    lines = ["Boot from LDROM successful", f"read Magic code: {printed(head + _STRAY)}"]
    to_cloner = head.startswith(MAGIC)
    target = CLONER_ADDR if to_cloner else APP_ADDR
    lines += [f"Jump to APROM {'Cloner' if to_cloner else 'AWS'}", f"Will boot from 0x{target:08x}"]
    controller.map_vectors(target)
    return Handover(tuple(lines), target, ResetKind.CPU if to_cloner else ResetKind.CHIP)


def run_cloner(controller: FlashController, spi: SpiBus) -> Handover:
    """Return how the Cloner ends; it always asks for a chip reset, so that CONFIG0 says what starts."""
    lines = [start_spi(spi).line, "Boot to AWS Cloner"]
    raw = controller.read(DESCRIPTOR_ADDR, DESCRIPTOR_SIZE)
    descriptor = whatever_is_there(raw)
    lines += field_lines(raw, descriptor)
    wrong = "magic code" if not has_magic(raw) else first_wrong_field(descriptor)
    if wrong is not None:
        lines += [f"Wrong {wrong}!!", "Check OTA image fail!!"]
        controller.map_vectors(APP_ADDR)
        return Handover(tuple(lines), APP_ADDR, ResetKind.CHIP)
    lines.append("Check OTA image success")
    if descriptor.flag == ImageFlag.VALID:
        lines.append("OTA image is valid")
    else:
        _clone(controller, spi, cloned_pages(descriptor.start, descriptor.end), lines)
    lines.append(f"Jump to Execute address 0x{descriptor.execute:08X}")
    controller.map_vectors(descriptor.execute)
    return Handover(tuple(lines), descriptor.execute, ResetKind.CHIP)


def whatever_is_there(raw: bytes) -> Descriptor:
    """Return the fields of 32 bytes whatever their magic is."""
    return parse_descriptor(MAGIC + raw[len(MAGIC) :])


def first_wrong_field(descriptor: Descriptor) -> str | None:
    """Return the name of the first field behind the magic that fails its check, None if the Cloner takes it."""
    checks = (
        ("image flag", descriptor.flag in (ImageFlag.NEW, ImageFlag.VALID)),
        ("start address", descriptor.start < DESCRIPTOR_LIMIT),
        ("end address", descriptor.end < DESCRIPTOR_LIMIT),
        ("execute address", descriptor.start <= descriptor.execute <= descriptor.end),
    )
    return next((name for name, holds in checks if not holds), None)


def field_lines(raw: bytes, descriptor: Descriptor) -> list[str]:
    """Return the eight lines that show a descriptor; the magic is printed up to the first zero byte."""
    numbers = (
        ("Sequence Num", descriptor.sequence),
        ("Start addr", descriptor.start),
        ("End addr", descriptor.end),
        ("Exec addr", descriptor.execute),
        ("Hardware ID", descriptor.hardware_id),
        ("Reserved data", descriptor.reserved),
    )
    return [
        f"read {'Magic code':<15}: {printed(raw)}",
        f"read {'Image flag':<15}: 0x{descriptor.flag:02X}",
        *(f"read {name:<15}: 0x{number:08X}" for name, number in numbers),
    ]


def printed(raw: bytes) -> str:
    """Return bytes as a console shows them when C prints them as a string."""
    return raw.partition(b"\0")[0].decode("latin-1")


def _clone(controller: FlashController, spi: SpiBus, pages: int, lines: list[str]) -> None:
    lines += ["Clone OTA image from SPI Flash to APROM", f"page_num: 0x{pages:x}"]
    copy_pages(controller, spi, 0, pages, lines)
    length = pages * PAGE_SIZE
    crc = controller.crc32(APP_ADDR, length)
    if crc == CRC_FAILED:
        lines.append("Failed on checksum!")
        return
    lines += [f"Checksum OK. CRC32: 0x{crc:X}", "Update OTA header ..."]
    page = bytearray(controller.read(DESCRIPTOR_ADDR, PAGE_SIZE))
    page[FLAG_OFFSET] = ImageFlag.PENDING_COMMIT
    controller.erase_page(DESCRIPTOR_ADDR)
    program_page(controller, DESCRIPTOR_ADDR, bytes(page))


def copy_pages(controller: FlashController, spi: SpiBus, source: int, pages: int, lines: list[str]) -> None:
    """Erase `pages` pages of APROM from 0 on, then fill them from SPI flash at `source`; failures go unnoticed."""
    lines.append("Erasing APROM ...")
    for page in range(pages):
        lines.append(f"Erasing page_num = 0x{page * PAGE_SIZE:x}")
        controller.erase_page(page * PAGE_SIZE)
    lines.append("Clone APROM ...")
    for page in range(pages):
        program_page(controller, page * PAGE_SIZE, read_spi(spi, source + page * PAGE_SIZE, PAGE_SIZE))
    lines.append("Clone done.")
