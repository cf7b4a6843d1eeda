"""The format of NVS, ESP-IDF's key-value store in flash: pages, entries, their checks, and what can be wrong with them.

Reading is in `esp_nvs`, writing in `esp_nvs_writing`.
Source: docs/reference/esp-nvs.md; espressif/esp-idf:components/nvs_flash/src/nvs_page.hpp and nvs_types.hpp.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import Final

from flota.images.model import ImageError

Buffer = bytes | bytearray | memoryview

PAGE_SIZE: Final = 0x1000
BITMAP_OFFSET: Final = 32
BITMAP_SIZE: Final = 32
ENTRIES_OFFSET: Final = 64
ENTRY_SIZE: Final = 32
ENTRIES_PER_PAGE: Final = 126
assert ENTRIES_OFFSET + ENTRY_SIZE * ENTRIES_PER_PAGE == PAGE_SIZE

PAGES_MAX: Final = 4096
"""16 MiB: more than any chip gives to NVS. Larger inputs are refused before they are walked."""
KEY_MAX_BYTES: Final = 15
STRING_MAX_BYTES: Final = 4000
"""Longest string, its terminating NUL included."""
NAMESPACES_INDEX: Final = 0
"""Entries of this namespace index are the namespaces themselves."""
NAMESPACES_MAX: Final = 254

VERSION_1: Final = 0xFF
VERSION_2: Final = 0xFE

PAGE_HEADER: Final = struct.Struct("<IIB19sI")
"""State, sequence number, version, unused (0xFF), CRC over sequence number, version and unused."""
ENTRY_HEADER: Final = struct.Struct("<BBBBI16s8s")
"""Namespace index, type, span, chunk index, CRC, key, data."""
ENTRY_CRC: Final = struct.Struct("<I")
STRING_DATA: Final = struct.Struct("<HHI")
"""Size with NUL, 0xFFFF, CRC of the string with NUL."""
assert PAGE_HEADER.size == BITMAP_OFFSET
assert ENTRY_HEADER.size == ENTRY_SIZE


class PageState(enum.IntEnum):
    """The state word of a page; each state is reached from the one above by clearing bits."""

    EMPTY = 0xFFFF_FFFF
    ACTIVE = 0xFFFF_FFFE
    FULL = 0xFFFF_FFFC
    FREEING = 0xFFFF_FFF8
    CORRUPT = 0xFFFF_FFF0
    INVALID = 0


class EntryState(enum.IntEnum):
    """Two bits of the bitmap for each entry."""

    ERASED = 0
    ILLEGAL = 1
    WRITTEN = 2
    EMPTY = 3


class ItemType(enum.IntEnum):
    """What an entry holds. The low four bits of numbers are their size in bytes."""

    U8 = 0x01
    I8 = 0x11
    U16 = 0x02
    I16 = 0x12
    U32 = 0x04
    I32 = 0x14
    U64 = 0x08
    I64 = 0x18
    FLOAT = 0x24
    DOUBLE = 0x28
    STRING = 0x21
    BLOB = 0x41
    BLOB_DATA = 0x42
    BLOB_INDEX = 0x48


class NvsError(ImageError):
    """The bytes are not an NVS partition, or not one that ESP-IDF could use."""

    code = "bad-nvs"


class NvsMissing(NvsError):
    """There is no such namespace or no such key in it."""

    code = "nvs-missing"


class NvsWrongType(NvsError):
    """The key is there, but what it holds is not a string."""

    code = "nvs-type"


class NvsBadKey(NvsError):
    """A name that NVS cannot hold as namespace or key."""

    code = "nvs-key"


class NvsBadValue(NvsError):
    """A string that NVS cannot hold, or that is stored in a form that is no string."""

    code = "nvs-value"


class NvsUnreadable(NvsError):
    """Entries are written, and none is sound: the partition is encrypted, or wrecked."""

    code = "nvs-unreadable"


class NvsFull(NvsError):
    """The partition has no room for the entry, even after it was compacted."""

    code = "nvs-full"


def key_bytes(name: str, what: str) -> bytes:
    """Return a namespace or key as bytes. Raises `NvsBadKey` unless it is 1 to 15 printable ASCII characters."""
    if not (name.isascii() and name.isprintable() and 1 <= len(name) <= KEY_MAX_BYTES):
        raise NvsBadKey(
            f"not a {what} that NVS can hold",
            expected=f"1 to {KEY_MAX_BYTES} printable ASCII characters",
            found=repr(name[: KEY_MAX_BYTES + 1]),
        )
    return name.encode("ascii")


def page_crc(header: Buffer) -> int:
    """Return the CRC of a page header, given its bytes 4 to 27."""
    return zlib.crc32(header, 0xFFFF_FFFF)


def entry_crc(entry: Buffer) -> int:
    """Return the CRC of an entry (32 bytes): over everything but the CRC's own field."""
    return zlib.crc32(entry[8:ENTRY_SIZE], zlib.crc32(entry[:4], 0xFFFF_FFFF))


def is_blank(data: Buffer) -> bool:
    """Whether every byte reads as erased flash."""
    return bytes(data).count(0xFF) == len(data)


def entry_states(bitmap: Buffer) -> tuple[int, ...]:
    """Return the state of each of the 126 entries from the 32 bytes of the bitmap."""
    bits = int.from_bytes(bitmap[:BITMAP_SIZE], "little")
    return tuple(bits >> 2 * index & 3 for index in range(ENTRIES_PER_PAGE))
