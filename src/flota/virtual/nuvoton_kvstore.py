"""The key store in APROM: what an M487 keeps of its identity behind the application.

Where the store lies and what it is asked for are the vendor's; how its pages are laid out is ours: one record with one
checksum. What matters to updates is its place, that it survives them, and that an image which is too long destroys it.
Source: docs/reference/nuvoton.md, "The key store".
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from flota.errors import InvalidInput
from flota.images.nuvoton.flash_map import KVSTORE_ADDR, KVSTORE_SIZE
from flota.virtual.flash import NorFlash

CODE_VERIFY_KEY: Final = "Code_Verify_Key"
"""Entry with the certificate that checks releases; jobs name it in `certfile`."""

THING_NAME: Final = "thing-name"

_HEADER: Final = struct.Struct("<4sII")
assert _HEADER.size == 12
_MAGIC: Final = b"FKV1"
NO_ENTRIES: Final[Mapping[str, str]] = MappingProxyType({})


def read_entries(aprom: NorFlash) -> Mapping[str, str] | None:
    """Return the entries, None if the store is blank or destroyed."""
    magic, length, crc = _HEADER.unpack(aprom.read(KVSTORE_ADDR, _HEADER.size))
    if magic != _MAGIC or length > KVSTORE_SIZE - _HEADER.size:
        return None
    body = aprom.read(KVSTORE_ADDR + _HEADER.size, length)
    if zlib.crc32(body) != crc:
        return None
    try:
        entries = json.loads(body)
    except ValueError:
        return None
    if not isinstance(entries, dict) or not all(isinstance(text, str) for text in entries.values()):
        return None
    return entries


def write_entries(aprom: NorFlash, entries: Mapping[str, str]) -> None:
    """Erase the store and write the entries. Raises `InvalidInput` when they do not fit."""
    body = json.dumps(dict(entries), sort_keys=True).encode()
    record = _HEADER.pack(_MAGIC, len(body), zlib.crc32(body)) + body
    record += b"\xff" * (-len(record) % aprom.write_alignment)
    if len(record) > KVSTORE_SIZE:
        raise InvalidInput("the device's key store is full", expected=f"{KVSTORE_SIZE} bytes", found=len(record))
    aprom.erase(KVSTORE_ADDR, KVSTORE_SIZE)
    for start in range(0, len(record), aprom.sector_size):
        aprom.program(KVSTORE_ADDR + start, record[start : start + aprom.sector_size])
