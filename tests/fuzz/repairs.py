"""Checksums put right after a mutation, so that what lies behind them is reached too. Each works in place."""

from __future__ import annotations

import hashlib
import struct
import zlib

from flota.errors import FlotaError
from flota.images.esp_app import image_checksum, walk_image
from flota.images.esp_secure_boot import BLOCK_SIZE, SIGNATURE_SECTOR_SIZE

_CRC = struct.Struct("<I")
NVS_PAGE, NVS_ENTRIES, NVS_ENTRY = 4096, 64, 32
_INVERTED = 0xFFFF_FFFF


def repair_esp_image(data: bytearray) -> None:
    """Checksum and appended hash of an ESP image, as far as its walk still ends inside the file."""
    try:
        layout = walk_image(bytes(data))
        data[layout.checksum_offset] = image_checksum(bytes(data), layout)
    except FlotaError:
        return
    end = layout.checksum_offset + 1
    if layout.header.hash_appended and end + 32 <= len(data):
        data[end : end + 32] = hashlib.sha256(data[:end]).digest()


def repair_table(data: bytearray) -> None:
    """MD5 row of a partition table."""
    for place in range(0, len(data) - 31, 32):
        if data[place : place + 2] == b"\xeb\xeb":
            digest = hashlib.md5(data[:place], usedforsecurity=False).digest()
            data[place : place + 32] = b"\xeb\xeb" + b"\xff" * 14 + digest
            return


def repair_otadata(data: bytearray) -> None:
    """CRC of each entry."""
    for place in (0, 0x1000):
        if place + 32 <= len(data):
            _CRC.pack_into(data, place + 28, zlib.crc32(data[place : place + 4], _INVERTED))


def repair_nvs(data: bytearray) -> None:
    """CRCs of the page headers and of each entry."""
    for page in range(0, len(data) - NVS_PAGE + 1, NVS_PAGE):
        if data[page : page + 4] == b"\xff\xff\xff\xff":
            continue
        _CRC.pack_into(data, page + 28, zlib.crc32(data[page + 4 : page + 28], _INVERTED))
        for entry in range(page + NVS_ENTRIES, page + NVS_ENTRIES + 12 * NVS_ENTRY, NVS_ENTRY):
            crc = zlib.crc32(data[entry : entry + 4], _INVERTED)
            _CRC.pack_into(data, entry + 4, zlib.crc32(data[entry + 8 : entry + 32], crc))


def repair_signature_block(data: bytearray) -> None:
    """CRC of a Secure Boot v2 block that begins the data."""
    if len(data) >= BLOCK_SIZE:
        _CRC.pack_into(data, 1196, zlib.crc32(data[:1196]))


def repair_signed_image(data: bytearray) -> None:
    """CRC of each block in the signature sector."""
    for start in range(SIGNATURE_SECTOR_SIZE, len(data) - BLOCK_SIZE + 1, SIGNATURE_SECTOR_SIZE):
        for place in range(start, min(start + 3 * BLOCK_SIZE, len(data) - BLOCK_SIZE + 1), BLOCK_SIZE):
            if data[place] == 0xE7:
                _CRC.pack_into(data, place + 1196, zlib.crc32(data[place : place + 1196]))


def repair_hex(data: bytearray) -> None:
    """Length and checksum of each record of an Intel HEX file whose digits can still be read."""
    lines = bytes(data).split(b"\n")
    for number, line in enumerate(lines):
        try:
            raw = bytes.fromhex(line.strip().removeprefix(b":").decode("ascii"))
        except ValueError:
            continue
        if 5 <= len(raw) <= 260:
            record = bytes([len(raw) - 5]) + raw[1:-1]
            lines[number] = b":" + (record + bytes([-sum(record) & 0xFF])).hex().upper().encode()
    data[:] = b"\n".join(lines)


def repair_ota_file(data: bytearray) -> None:
    """Length and sum in the one sub-header of an AmebaD OTA file."""
    if len(data) > 32:
        struct.pack_into("<II", data, 16, sum(data[32:]) & 0xFFFF_FFFF, len(data) - 32)
