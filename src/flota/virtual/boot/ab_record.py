"""The boot record of the A/B board: which slot boots and what each holds, in two flash sectors that take turns. Pure.

    offset  size
    0       4      magic "FLAB"
    4       4      number of the record, the higher one counts
    8       1      slot to boot: 0 = a, 1 = b
    9       3      reserved, FF
    12      88     two entries: state (1), reserved (3), size (4), reserved (4), SHA-256 (32)
    100     4      CRC-32 over all before it

A new record goes into the sector of the older one, which is erased first: until its CRC stands, the other one counts.
The decision is that of `flota.virtual.boot.two_files`.

Source: docs/reference/virtual-devices.md, "aws-reference".
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flota.virtual.boot.two_files import SLOTS, BootRecord, SlotFile
from flota.virtual.slots import SlotState

MAGIC: Final = b"FLAB"
_HEAD: Final = struct.Struct("<4sIB3s")
_ENTRY: Final = struct.Struct("<B3sI4s32s")
_CRC: Final = struct.Struct("<I")
RECORD_SIZE: Final = 104
assert _HEAD.size + len(SLOTS) * _ENTRY.size + _CRC.size == RECORD_SIZE

RECORD_SECTORS: Final = 2
NUMBER_MAX: Final = 0xFFFF_FFFF
NO_ENTRY: Final = 0xFF

_CODES: Final = MappingProxyType(
    {
        SlotState.NEW: 1,
        SlotState.PENDING_VERIFY: 2,
        SlotState.VALID: 3,
        SlotState.INVALID: 4,
        SlotState.ABORTED: 5,
    }
)
_STATES: Final = MappingProxyType({code: state for state, code in _CODES.items()})


@dataclass(frozen=True, slots=True)
class NumberedRecord:
    """A record with its number."""

    number: int
    record: BootRecord


def pack_record(numbered: NumberedRecord) -> bytes:
    """Return the 104 bytes of a record."""
    body = _HEAD.pack(MAGIC, numbered.number, SLOTS.index(numbered.record.boot), b"\xff" * 3)
    for name in SLOTS:
        entry = numbered.record.files.get(name)
        if entry is None:
            body += b"\xff" * _ENTRY.size
        else:
            digest = bytes.fromhex(entry.sha256)
            body += _ENTRY.pack(_CODES[entry.state], b"\xff" * 3, entry.size, b"\xff" * 4, digest)
    return body + _CRC.pack(zlib.crc32(body))


def parse_record(data: bytes) -> NumberedRecord | None:
    """Return the record at the start of a sector, None if there is none that is whole."""
    body, crc = data[: RECORD_SIZE - _CRC.size], data[RECORD_SIZE - _CRC.size : RECORD_SIZE]
    if len(crc) < _CRC.size or body[: len(MAGIC)] != MAGIC or _CRC.unpack(crc)[0] != zlib.crc32(body):
        return None
    _, number, boot, _ = _HEAD.unpack_from(body)
    if boot >= len(SLOTS):
        return None
    files: dict[str, SlotFile] = {}
    for index, name in enumerate(SLOTS):
        code, _, size, _, digest = _ENTRY.unpack_from(body, _HEAD.size + index * _ENTRY.size)
        if code == NO_ENTRY:
            continue
        if code not in _STATES:
            return None
        files[name] = SlotFile(_STATES[code], size, digest.hex())
    return NumberedRecord(number, BootRecord(SLOTS[boot], files))


def newest(records: tuple[NumberedRecord | None, ...]) -> tuple[int | None, NumberedRecord]:
    """Return the sector of the record that counts, and the record; (None, an empty one) if no sector holds one."""
    found = [(one.number, index, one) for index, one in enumerate(records) if one is not None]
    if not found:
        return None, NumberedRecord(0, BootRecord())
    _, index, record = max(found, key=lambda each: each[:2])
    return index, record
