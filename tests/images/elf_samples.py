"""Small ELF files that the tests bend."""

from __future__ import annotations

import struct

Segment = tuple[int, bytes]
"""Load address and contents."""


def small_elf(segments: list[Segment], *, bits: int = 32, order: str = "<", kind: int = 2, load: int = 1) -> bytes:
    """An ELF file with segments only, as after `strip` of the section table."""
    header, row = (struct.Struct(order + "HHIIIIIHHHHHH"), struct.Struct(order + "IIIIIIII"))
    if bits == 64:
        header, row = (struct.Struct(order + "HHIQQQIHHHHHH"), struct.Struct(order + "IIQQQQQQ"))
    rows, contents, table = b"", b"", 16 + header.size
    offset = table + row.size * len(segments)
    for address, data in segments:
        place = offset + len(contents)
        if bits == 64:
            rows += row.pack(load, 5, place, 0x1000, address, len(data), len(data), 4)
        else:
            rows += row.pack(load, place, 0x1000, address, len(data), len(data), 5, 4)
        contents += data
    ident = b"\x7fELF" + bytes([1 if bits == 32 else 2, 1 if order == "<" else 2, 1]) + bytes(9)
    fields = (kind, 0xF3, 1, 0x1004, table, 0, 0, table, row.size, len(segments), 0, 0, 0)
    return ident + header.pack(*fields) + rows + contents
