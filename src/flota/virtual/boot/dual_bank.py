"""The boot choice of an MCU with two banks: a new image has three boots to confirm itself, or is given up. Pure.

    offset  size
    0       4      magic "FLDB"
    4       4      number of the record, the higher one counts
    8       1      bank to boot: 0 = a, 1 = b
    9       1      boots that the image on trial has left
    10      2      reserved, FF
    12      80     two entries: state (1), reserved (3), size (4), SHA-256 (32)
    92      4      CRC-32 over all before it

Two copies in two sectors that take turns: until the CRC of a new one stands, the old one counts.
Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

MAGIC: Final = b"FLDB"
_HEAD: Final = struct.Struct("<4sIBB2s")
_ENTRY: Final = struct.Struct("<B3sI32s")
_CRC: Final = struct.Struct("<I")
BANKS: Final = ("a", "b")
RECORD_SIZE: Final = 96
assert _HEAD.size + len(BANKS) * _ENTRY.size + _CRC.size == RECORD_SIZE

NO_ENTRY: Final = 0xFF
TRIAL_BOOTS: Final = 3
"""How often an image that has not confirmed itself is started before the old one is back."""
REFERENCE_TRIAL_BOOTS: Final = 1
"""MCUboot's test swap, which the vendor's reference uses: the next boot goes back."""


class BankState(enum.IntEnum):
    """What the record says of a bank's image."""

    VALID = 1
    TRIAL = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class BankEntry:
    """An image in a bank: `size` in bytes, lower-case hex SHA-256."""

    state: BankState
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DualBankRecord:
    """`boot` is the bank to start; banks without an entry hold nothing bootable. `boots_left` is of a trial."""

    boot: str = BANKS[0]
    banks: Mapping[str, BankEntry] = field(default_factory=dict)
    boots_left: int = 0
    number: int = 0

    def with_state(self, bank: str, state: BankState) -> DualBankRecord:
        """Return the record with another state for `bank`."""
        return replace(self, banks={**self.banks, bank: replace(self.banks[bank], state=state)})

    def without(self, bank: str) -> DualBankRecord:
        """Return the record with nothing bootable in `bank`."""
        return replace(self, banks={name: entry for name, entry in self.banks.items() if name != bank})

    def trying(self, bank: str, size: int, sha256: str, *, boots: int) -> DualBankRecord:
        """Return the record that starts this image on trial, at most `boots` times."""
        entry = BankEntry(BankState.TRIAL, size, sha256)
        return replace(self, boot=bank, banks={**self.banks, bank: entry}, boots_left=boots)


def other_bank(bank: str) -> str:
    """Return the bank that is not `bank`."""
    return BANKS[1] if bank == BANKS[0] else BANKS[0]


@dataclass(frozen=True, slots=True)
class DualBankDecision:
    """The record to write before anything is started (the same object if unchanged), and the order of tries."""

    record: DualBankRecord
    order: tuple[str, ...]


def decide(record: DualBankRecord) -> DualBankDecision:
    """Return what one boot does: count a boot of an image on trial, or give it up."""
    first = record.boot
    entry = record.banks.get(first)
    if entry is not None and entry.state is BankState.TRIAL:
        if record.boots_left > 0:
            record = replace(record, boots_left=record.boots_left - 1)
        else:
            first = other_bank(first)
            record = replace(record.with_state(record.boot, BankState.FAILED), boot=first)
    order = [bank for bank in (first, other_bank(first)) if bank in record.banks]
    # An image that failed its trial is the last resort, and better than nothing.
    order.sort(key=lambda bank: record.banks[bank].state is BankState.FAILED)
    return DualBankDecision(record, tuple(order))


def pack_record(record: DualBankRecord) -> bytes:
    """Return the 96 bytes of a record."""
    body = _HEAD.pack(MAGIC, record.number, BANKS.index(record.boot), record.boots_left, b"\xff" * 2)
    for name in BANKS:
        entry = record.banks.get(name)
        if entry is None:
            body += b"\xff" * _ENTRY.size
        else:
            body += _ENTRY.pack(entry.state, b"\xff" * 3, entry.size, bytes.fromhex(entry.sha256))
    return body + _CRC.pack(zlib.crc32(body))


def parse_record(data: bytes) -> DualBankRecord | None:
    """Return the record at the start of a sector, None if there is none that is whole."""
    body, crc = data[: RECORD_SIZE - _CRC.size], data[RECORD_SIZE - _CRC.size : RECORD_SIZE]
    if len(crc) < _CRC.size or body[: len(MAGIC)] != MAGIC or _CRC.unpack(crc)[0] != zlib.crc32(body):
        return None
    _, number, boot, boots_left, _ = _HEAD.unpack_from(body)
    if boot >= len(BANKS):
        return None
    banks: dict[str, BankEntry] = {}
    for index, name in enumerate(BANKS):
        code, _, size, digest = _ENTRY.unpack_from(body, _HEAD.size + index * _ENTRY.size)
        if code == NO_ENTRY:
            continue
        if code not in _STATES:
            return None
        banks[name] = BankEntry(_STATES[code], size, digest.hex())
    return DualBankRecord(BANKS[boot], banks, boots_left, number)


_STATES: Final[Mapping[int, BankState]] = MappingProxyType({state.value: state for state in BankState})
