"""otadata: the two sectors in which ESP-IDF keeps which app slot boots, and how far that choice is trusted.

Source: docs/reference/esp-partitions.md;
espressif/esp-idf:components/bootloader_support/include/esp_flash_partitions.h.
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from flota.images.model import ImageError, TruncatedImage

Buffer = bytes | memoryview

OTADATA_SIZE: Final = 0x2000
SECTOR_SIZE: Final = 0x1000
ENTRY_SIZE: Final = 32
ENTRY_OFFSETS: Final = (0, SECTOR_SIZE)
SLOTS_MAX: Final = 16
"""ota_0 to ota_15."""
SEQ_BLANK: Final = 0xFFFF_FFFF

_ENTRY: Final = struct.Struct("<I20sII")
assert _ENTRY.size == ENTRY_SIZE


class OtaState(enum.IntEnum):
    """The states that have a name; a state without one counts as valid in the boot loader."""

    NEW = 0
    PENDING_VERIFY = 1
    VALID = 2
    INVALID = 3
    ABORTED = 4
    UNDEFINED = 0xFFFF_FFFF


def otadata_crc(seq: int) -> int:
    """Return the CRC of an entry: over the four bytes of the sequence number only, not over the state."""
    return zlib.crc32(seq.to_bytes(4, "little"), 0xFFFF_FFFF)


def state_name(state: int) -> str:
    """Return the state's name in lower case, or its number in hex when it has none."""
    try:
        return OtaState(state).name.lower().replace("_", "-")
    except ValueError:
        return f"{state:#010x}"


@dataclass(frozen=True, slots=True)
class OtaEntry:
    """One entry as it stands in flash: sequence number, 20 unused label bytes, state and stored CRC."""

    seq: int = SEQ_BLANK
    state: int = OtaState.UNDEFINED
    crc: int = 0xFFFF_FFFF
    label: bytes = b"\xff" * 20

    @classmethod
    def for_seq(cls, seq: int, state: int = OtaState.UNDEFINED, *, label: bytes = b"\xff" * 20) -> OtaEntry:
        """Return an entry with the right CRC for `seq`."""
        return cls(seq, state, otadata_crc(seq), label)

    @property
    def blank(self) -> bool:
        """Whether the entry reads as erased flash."""
        return self == OtaEntry()

    @property
    def crc_ok(self) -> bool:
        """Whether the stored CRC is that of the sequence number."""
        return self.crc == otadata_crc(self.seq)

    @property
    def invalid(self) -> bool:
        """The boot loader's `invalid()`: never written, or rejected. The CRC plays no part."""
        return self.seq == SEQ_BLANK or self.state in (OtaState.INVALID, OtaState.ABORTED)

    @property
    def valid(self) -> bool:
        """The boot loader's `valid()`: not invalid, and the CRC is right."""
        return not self.invalid and self.crc_ok

    def slot_index(self, slot_count: int) -> int:
        """Return which of `slot_count` app slots the entry names: (seq - 1) mod count in 32-bit arithmetic."""
        return ((self.seq - 1) & 0xFFFF_FFFF) % slot_count


def parse_entry(data: Buffer) -> OtaEntry:
    """Return the entry in the first 32 bytes of a sector; any 32 bytes are one. Raises `TruncatedImage` below that."""
    if len(data) < ENTRY_SIZE:
        raise TruncatedImage("the otadata entry is cut off", expected=f"{ENTRY_SIZE} bytes", found=len(data))
    seq, label, state, crc = _ENTRY.unpack_from(data)
    return OtaEntry(seq, state, crc, label)


def pack_entry(entry: OtaEntry) -> bytes:
    """Return the 32 bytes of `entry`, its CRC as it stands. Raises `ImageError` when a number does not fit 32 bits."""
    if len(entry.label) != 20:
        raise ImageError("bad otadata label", expected="20 bytes", found=f"{len(entry.label)} bytes")
    try:
        return _ENTRY.pack(entry.seq, entry.label, entry.state, entry.crc)
    except struct.error as error:
        raise ImageError("a number does not fit its field of an otadata entry", found=str(error)) from error


def parse_otadata(data: Buffer) -> tuple[OtaEntry, OtaEntry]:
    """Return both entries of an otadata partition (0x2000 bytes). Raises `TruncatedImage` when it is shorter."""
    if len(data) < OTADATA_SIZE:
        raise TruncatedImage("otadata is cut off", expected=f"{OTADATA_SIZE} bytes", found=len(data))
    view = memoryview(data)
    return parse_entry(view[:ENTRY_SIZE]), parse_entry(view[SECTOR_SIZE : SECTOR_SIZE + ENTRY_SIZE])


def pack_otadata(first: OtaEntry, second: OtaEntry) -> bytes:
    """Return the 0x2000 bytes of an otadata partition with these entries, the rest erased."""
    return pack_entry(first).ljust(SECTOR_SIZE, b"\xff") + pack_entry(second).ljust(SECTOR_SIZE, b"\xff")


def blank_otadata() -> bytes:
    """Return what ESP-IDF flashes at first (`ota_data_initial.bin`): all erased, so that factory or ota_0 boots."""
    return b"\xff" * OTADATA_SIZE


def boot_app0() -> bytes:
    """Return what the Arduino core flashes at first (`boot_app0.bin`): sequence numbers 1 and 0, ota_0 boots."""
    return pack_otadata(OtaEntry.for_seq(1), OtaEntry.for_seq(0))


def otadata_for_slot(slot: int, *, state: int = OtaState.UNDEFINED) -> bytes:
    """Return a fresh otadata partition that boots ota slot `slot` (0 = ota_0), whatever the number of slots above it.

    Raises `ImageError` for a slot that cannot be: there are ota_0 to ota_15.
    """
    _check_slot(slot, SLOTS_MAX)
    return pack_otadata(OtaEntry.for_seq(slot + 1, state), OtaEntry())


def next_choice(
    entries: tuple[OtaEntry, OtaEntry], slot: int, slot_count: int, *, state: int = OtaState.UNDEFINED
) -> tuple[int, OtaEntry]:
    """Return which sector an app rewrites to boot ota slot `slot` of `slot_count` next, and the entry it writes there.

    As `esp_ota_set_boot_partition`: the active entry again when it names the slot already, else the other sector with
    the next sequence number that names it; the label bytes stay. Raises `ImageError` for a slot that is not there, or
    when the sequence numbers are used up (the device then loses the choice without a word).
    """
    _check_slot(slot, slot_count)
    active = active_entry(*entries)
    if active is None:
        sector, seq = 0, slot + 1
    elif entries[active].slot_index(slot_count) == slot:
        sector, seq = active, entries[active].seq
    else:
        sector, current = 1 - active, entries[active].seq
        seq = current + ((slot + 1 - current) % slot_count or slot_count)
    if seq >= SEQ_BLANK:
        raise ImageError("the sequence numbers of otadata are used up", expected=f"below {SEQ_BLANK:#x}", found=seq)
    return sector, OtaEntry.for_seq(seq, state, label=entries[sector].label)


def with_entry(otadata: Buffer, sector: int, entry: OtaEntry) -> bytes:
    """Return the otadata partition after sector 0 or 1 was erased and `entry` written to it."""
    first, second = parse_otadata(otadata)
    return pack_otadata(entry, second) if sector == 0 else pack_otadata(first, entry)


def _check_slot(slot: int, slot_count: int) -> None:
    if not 0 <= slot < slot_count <= SLOTS_MAX:
        raise ImageError("no such ota slot", expected=f"0 to {min(slot_count, SLOTS_MAX) - 1}", found=slot)


def active_entry(first: OtaEntry, second: OtaEntry) -> int | None:
    """Return the index of the valid entry with the higher sequence number (a tie goes to 0), None if there is none."""
    candidates = [(entry.seq, -index) for index, entry in enumerate((first, second)) if entry.valid]
    return -max(candidates)[1] if candidates else None


def looks_like_otadata(data: Buffer) -> bool:
    """Whether `data` is a dump of an otadata partition: 0x2000 bytes, two plausible entries, nothing else written."""
    if len(data) != OTADATA_SIZE:
        return False
    view = memoryview(data)
    for offset in ENTRY_OFFSETS:
        entry = parse_entry(view[offset : offset + ENTRY_SIZE])
        rest = bytes(view[offset + ENTRY_SIZE : offset + SECTOR_SIZE])
        if rest.count(0xFF) != len(rest) or not (entry.blank or entry.crc_ok):
            return False
    return True
