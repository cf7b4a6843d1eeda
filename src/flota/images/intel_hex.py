"""Intel HEX: text <-> `MemoryMap`. Strict: what another reader might understand otherwise is an error.

A record is `:LLAAAATT`, data and a checksum, all hex digits; all its bytes add up to 0 (mod 256). LL counts the data,
AAAA is the low half of an address, TT the type.
Source: docs/reference/intel-hex.md; Intel, Hexadecimal Object File Format Specification, Revision A, 1988.
"""

from __future__ import annotations

import enum
import io
import re
from collections.abc import Iterator
from typing import Final

from flota.images.memory_map import MemoryBlock, MemoryMap, memory_map
from flota.images.model import ImageError, TruncatedImage

Buffer = bytes | memoryview

HEX_FILE_MAX_BYTES: Final = 64 * 1024 * 1024
PIECES_MAX: Final = 65_536
"""Runs of data that do not follow each other; a linker makes a handful."""
ADDRESS_SPACE: Final = 1 << 32
SEGMENT_SIZE: Final = 1 << 16
DATA_PER_RECORD: Final = 16
DATA_PER_RECORD_MAX: Final = 255

_RECORD = re.compile(rb":((?:[0-9A-Fa-f]{2}){5,260})\Z")
_BLANK: Final = b" \t\r\n"


class HexError(ImageError):
    """The text is not well-formed Intel HEX; the message says in which line."""

    code = "bad-hex"


class RecordType(enum.IntEnum):
    """TT of a record."""

    DATA = 0
    END = 1
    SEGMENT = 2
    START_SEGMENT = 3
    LINEAR = 4
    START_LINEAR = 5


_TYPES: Final = {kind.value: kind for kind in RecordType}
_DATA_SIZE_OF: Final = {
    RecordType.END: 0,
    RecordType.SEGMENT: 2,
    RecordType.START_SEGMENT: 4,
    RecordType.LINEAR: 2,
    RecordType.START_LINEAR: 4,
}


def looks_like_hex(data: Buffer) -> bool:
    """Say whether `data` begins with a record whose checksum is right. Never raises."""
    line = bytes(data[: 2 * DATA_PER_RECORD_MAX + 16]).split(b"\n", 1)[0].rstrip(_BLANK)
    match = _RECORD.match(line)
    return match is not None and sum(bytes.fromhex(match.group(1).decode("ascii"))) & 0xFF == 0


def parse_hex(text: Buffer) -> MemoryMap:
    """Return what the file holds and where the program starts.

    Memory grows with the data in the file, never with the addresses. Raises `HexError` for lines that are no record,
    checksums, types, lengths and addresses, `TruncatedImage` without an end record, `OverlappingMemory`, or
    `ImageError` when nothing is in it.
    """
    if len(text) > HEX_FILE_MAX_BYTES:
        raise HexError("the file is too large", expected=f"at most {HEX_FILE_MAX_BYTES} bytes", found=len(text))
    pieces: list[MemoryBlock] = []
    run, run_address = bytearray(), 0
    base, segmented, entry, ended = 0, False, None, False
    for number, offset, raw in _records(bytes(text)):
        if ended:
            raise HexError(f"line {number}: a record after the end record", offset=offset)
        kind, address, data = _fields(raw, number, offset)
        if kind is RecordType.DATA:
            place = _place(base, segmented, address, len(data), number, offset)
            if place != run_address + len(run):
                _keep(pieces, run_address, run)
                run, run_address = bytearray(), place
            run += data
        elif kind is RecordType.END:
            ended = True
        elif kind is RecordType.LINEAR:
            base, segmented = int.from_bytes(data, "big") << 16, False
        elif kind is RecordType.SEGMENT:
            base, segmented = int.from_bytes(data, "big") << 4, True
        else:
            if entry is not None:
                raise HexError(f"line {number}: a second start address", offset=offset)
            entry = int.from_bytes(data, "big")
            if kind is RecordType.START_SEGMENT:
                entry = ((entry >> 16) << 4) + (entry & 0xFFFF)
    if not ended:
        raise TruncatedImage("the file has no end record", offset=len(text), expected=":00000001FF")
    _keep(pieces, run_address, run)
    return memory_map(pieces, entry=entry)


def pack_hex(held: MemoryMap, *, data_per_record: int = DATA_PER_RECORD) -> bytes:
    """Return `held` as Intel HEX with linear addresses, upper-case digits and bare line feeds.

    Records hold up to `data_per_record` bytes (1 to 255). Raises `HexError` for addresses above 32 bits.
    """
    if not 1 <= data_per_record <= DATA_PER_RECORD_MAX:
        raise HexError("bad record length", expected=f"1 to {DATA_PER_RECORD_MAX}", found=data_per_record)
    if held.end > ADDRESS_SPACE or (held.entry or 0) >= ADDRESS_SPACE:
        raise HexError("Intel HEX has addresses of 32 bits", found=f"{max(held.end - 1, held.entry or 0):#x}")
    lines: list[str] = []
    upper = 0
    for block in held.blocks:
        position = block.address
        while position < block.end:
            if position >> 16 != upper:
                upper = position >> 16
                lines.append(_line(RecordType.LINEAR, 0, upper.to_bytes(2, "big")))
            stop = min(position + data_per_record, block.end, (upper + 1) << 16)
            data = block.data[position - block.address : stop - block.address]
            lines.append(_line(RecordType.DATA, position & 0xFFFF, data))
            position = stop
    if held.entry is not None:
        lines.append(_line(RecordType.START_LINEAR, 0, held.entry.to_bytes(4, "big")))
    lines.append(_line(RecordType.END, 0, b""))
    return ("\n".join(lines) + "\n").encode("ascii")


def _records(text: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield line number, file offset and bytes of each record, its checksum verified; blank lines are skipped."""
    offset = 0
    for number, full in enumerate(io.BytesIO(text), 1):
        line = full.strip(_BLANK)
        if line:
            match = _RECORD.match(line)
            if match is None:
                raise HexError(
                    f"line {number} is no record", offset=offset, expected=":LLAAAATT…", found=ascii(line[:24])[1:]
                )
            raw = bytes.fromhex(match.group(1).decode("ascii"))
            if sum(raw) & 0xFF:
                raise HexError(
                    f"line {number}: the checksum is wrong",
                    offset=offset,
                    expected=f"{-sum(raw[:-1]) & 0xFF:02X}",
                    found=f"{raw[-1]:02X}",
                )
            yield number, offset, raw
        offset += len(full)


def _fields(raw: bytes, number: int, offset: int) -> tuple[RecordType, int, bytes]:
    data = raw[4:-1]
    if raw[0] != len(data):
        raise HexError(f"line {number}: the record's length is wrong", offset=offset, expected=raw[0], found=len(data))
    kind = _TYPES.get(raw[3])
    if kind is None:
        raise HexError(
            f"line {number}: unknown type of record", offset=offset, expected="00 to 05", found=f"{raw[3]:02X}"
        )
    size = _DATA_SIZE_OF.get(kind, len(data))
    if len(data) != size:
        raise HexError(
            f"line {number}: bad length of a {kind.name} record", offset=offset, expected=size, found=len(data)
        )
    return kind, int.from_bytes(raw[1:3], "big"), data


def _place(base: int, segmented: bool, address: int, size: int, number: int, offset: int) -> int:
    """Return where a data record goes. What would wrap around, in readers that do, is refused."""
    if segmented and address + size > SEGMENT_SIZE:
        raise HexError(f"line {number}: the data leaves its segment of 64 KiB", offset=offset, found=f"{address:#x}")
    if base + address + size > ADDRESS_SPACE:
        raise HexError(f"line {number}: the data leaves the 32 bits of addresses", offset=offset, found=f"{address:#x}")
    return base + address


def _keep(pieces: list[MemoryBlock], address: int, run: bytearray) -> None:
    if not run:
        return
    if len(pieces) >= PIECES_MAX:
        raise HexError("the file jumps to and fro too often", expected=f"at most {PIECES_MAX} runs of data")
    pieces.append(MemoryBlock(address, bytes(run)))


def _line(kind: RecordType, address: int, data: bytes) -> str:
    body = bytes((len(data),)) + address.to_bytes(2, "big") + bytes((kind,)) + data
    return f":{(body + bytes((-sum(body) & 0xFF,))).hex().upper()}"
