"""What an ELF file of any machine puts into flash: the bytes that `objcopy -O binary` takes, with their addresses.

These are the sections that are allocated and have contents, at their load addresses: those of the segment that each
lies in. A stripped file without sections gives its loadable segments. For ESP images there is `images.esp_elf`.
Source: docs/reference/intel-hex.md; System V gABI, chapters 4 (object files) and 5 (program loading).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from flota.images.memory_map import MemoryBlock, MemoryMap, memory_map
from flota.images.model import ImageError, TruncatedImage

Buffer = bytes | memoryview

ELF_MAGIC: Final = b"\x7fELF"
SEGMENTS_MAX: Final = 1024
SECTIONS_MAX: Final = 16_384
IDENT_SIZE: Final = 16

_PT_LOAD: Final = 1
_SHT_NULL: Final = 0
_SHT_NOBITS: Final = 8
_SHF_ALLOC: Final = 2
_ET_REL: Final = 1
_ET_CORE: Final = 4


class ElfError(ImageError):
    """The bytes are not an ELF file that can be loaded."""

    code = "bad-elf"


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where the fields lie in files of one class (32 or 64 bits); formats without byte order."""

    header: str
    segment: str
    section: str


_SHAPES: Final = {
    1: _Shape("HHIIIIIHHHHHH", "IIIIIIII", "IIIIIIIIII"),
    2: _Shape("HHIQQQIHHHHHH", "IIQQQQQQ", "IIQQQQIIQQ"),
}
_ORDERS: Final = {1: "<", 2: ">"}


@dataclass(frozen=True, slots=True)
class _Header:
    kind: int
    entry: int
    segments_offset: int
    sections_offset: int
    segment_size: int
    segment_count: int
    section_size: int
    section_count: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes in the file and where they are wanted; a segment's `address` is its load (physical) one."""

    kind: int
    flags: int
    offset: int
    address: int
    size: int


def parse_elf(elf: Buffer) -> MemoryMap:
    """Return what the file has for flash, and its entry address.

    Raises `TruncatedImage` when tables or contents end outside the file, `OverlappingMemory`, or `ElfError`: other
    bytes, an object file that is not linked yet, a core dump, too many segments or sections, nothing to load.
    """
    view = memoryview(elf)
    shape, order = _kind_of(view)
    header = _read_header(view, shape, order)
    segments = [one for one in _segments(view, header, shape, order) if one.kind == _PT_LOAD and one.size]
    sections = [
        one
        for one in _sections(view, header, shape, order)
        if one.flags & _SHF_ALLOC and one.kind not in (_SHT_NULL, _SHT_NOBITS) and one.size
    ]
    for piece in (*segments, *sections):
        if piece.offset + piece.size > len(view):
            raise TruncatedImage(
                "the file ends inside what it says to load",
                offset=piece.offset,
                expected=f"{piece.offset + piece.size} bytes",
                found=len(view),
            )
    wanted = [_loaded(one, segments) for one in sections] if sections else segments
    pieces = [one for one in wanted if one is not None]
    if not pieces:
        raise ElfError("the ELF file has nothing to load", hint="Link it first; an object file is not a program.")
    if sum(one.size for one in pieces) > len(view):
        raise ElfError("the pieces to load are larger than the file", expected=f"at most {len(view)} bytes")
    blocks = [MemoryBlock(one.address, bytes(view[one.offset : one.offset + one.size])) for one in pieces]
    return memory_map(blocks, entry=header.entry)


def is_elf(data: Buffer) -> bool:
    """Say whether `data` begins as an ELF file does."""
    return bytes(data[:4]) == ELF_MAGIC


def _kind_of(view: memoryview) -> tuple[_Shape, str]:
    if not is_elf(view):
        raise ElfError("not an ELF file", offset=0, expected=ELF_MAGIC.hex(), found=bytes(view[:4]).hex() or "nothing")
    if len(view) < IDENT_SIZE:
        raise TruncatedImage("the file ends inside the ELF header", offset=len(view), found=len(view))
    if view[4] not in _SHAPES or view[5] not in _ORDERS:
        raise ElfError("unknown class or byte order", offset=4, expected="1 or 2", found=f"{view[4]} and {view[5]}")
    return _SHAPES[view[4]], _ORDERS[view[5]]


def _read_header(view: memoryview, shape: _Shape, order: str) -> _Header:
    layout = struct.Struct(order + shape.header)
    if IDENT_SIZE + layout.size > len(view):
        raise TruncatedImage(
            "the file ends inside the ELF header", offset=len(view), expected=IDENT_SIZE + layout.size, found=len(view)
        )
    kind, _, _, entry, segments, sections, _, _, segment_size, segment_count, section_size, section_count, _ = (
        layout.unpack_from(view, IDENT_SIZE)
    )
    if kind in (_ET_REL, _ET_CORE):
        raise ElfError(
            "not a linked program",
            offset=IDENT_SIZE,
            expected="an executable",
            found="an object file" if kind == _ET_REL else "a core dump",
        )
    return _Header(kind, entry, segments, sections, segment_size, segment_count, section_size, section_count)


def _segments(view: memoryview, header: _Header, shape: _Shape, order: str) -> Iterator[_Piece]:
    if header.segment_count > SEGMENTS_MAX:
        raise ElfError("too many segments", expected=f"at most {SEGMENTS_MAX}", found=header.segment_count)
    layout = struct.Struct(order + shape.segment)
    for row in _rows(view, layout, header.segments_offset, header.segment_size, header.segment_count):
        if layout.size == 32:
            kind, offset, _, address, size, _, flags, _ = row
        else:
            kind, flags, offset, _, address, size, _, _ = row
        yield _Piece(kind, flags, offset, address, size)


def _sections(view: memoryview, header: _Header, shape: _Shape, order: str) -> Iterator[_Piece]:
    if header.section_count > SECTIONS_MAX:
        raise ElfError("too many sections", expected=f"at most {SECTIONS_MAX}", found=header.section_count)
    layout = struct.Struct(order + shape.section)
    for row in _rows(view, layout, header.sections_offset, header.section_size, header.section_count):
        _, kind, flags, address, offset, size, _, _, _, _ = row
        yield _Piece(kind, flags, offset, address, size)


def _rows(view: memoryview, layout: struct.Struct, offset: int, row_size: int, count: int) -> Iterator[tuple[int, ...]]:
    if not count:
        return
    if row_size < layout.size:
        raise ElfError("the rows of a header table are too short", expected=layout.size, found=row_size)
    if offset + row_size * count > len(view):
        raise TruncatedImage(
            "a header table ends outside the file",
            offset=offset,
            expected=f"{offset + row_size * count} bytes",
            found=len(view),
        )
    for index in range(count):
        yield layout.unpack_from(view, offset + index * row_size)


def _loaded(section: _Piece, segments: list[_Piece]) -> _Piece | None:
    """Return the section at its load address; None when no segment loads it."""
    for segment in segments:
        inside = section.offset - segment.offset
        if inside >= 0 and inside + section.size <= segment.size:
            return _Piece(section.kind, section.flags, section.offset, segment.address + inside, section.size)
    return None
