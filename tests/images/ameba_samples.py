"""Small AmebaD images, made from their description."""

from __future__ import annotations

import struct

from flota.images.ameba.segment import IMAGE2_SIGNATURE, SECTOR_SIZE, SegmentHeader

KM0_XIP, KM0_RAM = 0x0C00_0020, 0x0008_3000
KM4_XIP, KM4_RAM, KM4_PSRAM = 0x0E00_0020, 0x1000_5000, 0x0200_0020


def segment(address: int, payload: bytes, *, secure_block: int = 0xFFFF_FFFF) -> bytes:
    return SegmentHeader(IMAGE2_SIGNATURE, len(payload), address, secure_block).pack() + payload


def ram_payload(entry: int, extra: bytes = b"") -> bytes:
    return struct.pack("<III", entry, 0, 0) + b"RTKWin\0\xff" + b"\0" * 12 + extra


def padded(image: bytes) -> bytes:
    return image + b"\xff" * (-len(image) % SECTOR_SIZE)


def km0_image(xip: bytes = b"\x11" * 16, ram: bytes = b"") -> bytes:
    return padded(segment(KM0_XIP, xip) + segment(KM0_RAM, ram_payload(0x0C00_0021, ram)))


def km4_image(xip: bytes = b"\x22" * 16, ram: bytes = b"", *, psram: bytes | None = b"") -> bytes:
    image = segment(KM4_XIP, xip) + segment(KM4_RAM, ram_payload(0x0E00_0021, ram))
    return padded(image + (b"" if psram is None else segment(KM4_PSRAM, psram)))


def image2(**km4: bytes) -> bytes:
    return km0_image() + km4_image(**km4)
