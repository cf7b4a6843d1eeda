"""Small images that the tests bend."""

from __future__ import annotations

from dataclasses import replace

from flota.boards.catalogue import TWO_OTA_4MB_CSV
from flota.images.esp_app import EspAppImage, pack_app
from flota.images.esp_chips import chip_named
from flota.images.esp_layout import AppIdentity, MemoryPiece, PackOptions, build_app
from flota.images.esp_partitions import pack_table, parse_csv

IDENTITY = AppIdentity(version="1.2.3", project="pump")


def sample_image(chip: str = "esp32-c3", *, options: PackOptions | None = None, size: int = 600) -> EspAppImage:
    esp = chip_named(chip)
    code = esp.code_map.start + (0x2_0020 if esp.code_map.start == esp.data_map.start else 0x20)
    pieces = [
        MemoryPiece(esp.data_map.start + 0x120, bytes(range(256)) * (size // 256 + 1)),
        MemoryPiece(code, b"\x13\x00\x00\x00" * (size // 4)),
        MemoryPiece(0x4FF0_0000 if chip == "esp32-p4" else 0x4038_0000, b"ram!" * 50),
    ]
    if chip in ("esp32-s31", "esp32"):
        pieces[2] = MemoryPiece(0x2F00_0000 if chip == "esp32-s31" else 0x3FFB_0000, b"ram!" * 50)
    if chip == "esp32-s2":
        pieces[2] = MemoryPiece(0x4002_2000, b"ram!" * 50)
    return build_app(pieces, chip=esp, entry=code, identity=IDENTITY, options=options or PackOptions())


def sample_app(chip: str = "esp32-c3", **kwargs: object) -> bytes:
    return pack_app(sample_image(chip, **kwargs))  # type: ignore[arg-type]


def bootloader_of(chip: str) -> bytes:
    """An image as boot loaders are: one RAM segment with the word in it, no app descriptor."""
    image = sample_image(chip)
    segment = replace(image.segments[-1], address=0x403C_0000, data=b"2nd stage bootloader".ljust(600, b"\0"))
    return pack_app(replace(image, segments=(segment,)))


def merged_image(chip: str = "esp32-c3", *, size: int | None = None) -> bytes:
    """Boot loader, two-slot table and app, as a programmer's tool merges them."""
    flash = bytearray(b"\xff" * 0x20000)
    offset = chip_named(chip).bootloader_offset
    for place, content in (
        (offset, bootloader_of(chip)),
        (0x8000, pack_table(parse_csv(TWO_OTA_4MB_CSV))),
    ):
        flash[place : place + len(content)] = content
    merged = bytes(flash) + sample_app(chip)
    return merged if size is None else merged.ljust(size, b"\xff")
