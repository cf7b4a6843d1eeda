"""The OTA calls of an ESP-IDF application, on virtual flash: begin, write, end, set boot, mark valid, mark invalid.

Each call does the flash operations of the original, in its order, and fails with its error codes.
Source: docs/reference/virtual-devices.md, "OTA calls"; espressif/esp-idf:components/app_update/esp_ota_ops.c.
Checked against vectors made by running that code.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from flota.errors import FlotaError
from flota.images.esp_app import IMAGE_MAGIC
from flota.images.esp_otadata import (
    ENTRY_OFFSETS,
    ENTRY_SIZE,
    SECTOR_SIZE,
    OtaEntry,
    OtaState,
    active_entry,
    pack_entry,
    parse_entry,
)
from flota.images.esp_partitions import PartitionTable
from flota.images.esp_partitions.table import SUBTYPE_OTA_FIRST
from flota.virtual.boot.esp_idf import (
    FACTORY,
    TEST_APP,
    AppRows,
    BootBuild,
    BurnSecureVersion,
    SecureVersions,
    SetState,
    WriteEntry,
    names_a_slot,
)
from flota.virtual.flash import NorFlash

SIZE_UNKNOWN: Final = 0xFFFF_FFFF
WITH_SEQUENTIAL_WRITES: Final = 0xFFFF_FFFE


class EspError(enum.IntEnum):
    """Error codes of ESP-IDF that the OTA calls give (esp_err.h, esp_ota_ops.h)."""

    FAIL = -1
    INVALID_ARG = 0x102
    OTA_PARTITION_CONFLICT = 0x1501
    OTA_SELECT_INFO_INVALID = 0x1502
    OTA_VALIDATE_FAILED = 0x1503
    OTA_SMALL_SECURE_VERSION = 0x1504
    OTA_ROLLBACK_FAILED = 0x1505
    OTA_ROLLBACK_INVALID_STATE = 0x1506
    OTA_ALREADY_IN_PROGRESS = 0x1507


class EspOtaFailure(FlotaError):
    """An OTA call on the device gave an error code; nothing but what the original writes was written."""

    code = "esp-ota-failed"

    def __init__(self, error: EspError, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{message} ({error.name}, {error.value & 0xFFFF_FFFF:#x})", hint=hint)
        self.error = error


@dataclass(frozen=True, slots=True)
class AppPartition:
    """An app row: `index` as in the boot choice, `address` and `size` in bytes of flash."""

    index: int
    label: str
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class OtaLayout:
    """Where otadata (None = no such row) and the apps are."""

    otadata_address: int | None
    apps: Mapping[int, AppPartition]

    @property
    def rows(self) -> AppRows:
        """The app rows as the boot loader counts them."""
        return AppRows(
            frozenset(index for index in self.apps if index >= 0),
            factory=FACTORY in self.apps,
            test=TEST_APP in self.apps,
        )


def layout_of(table: PartitionTable) -> OtaLayout:
    """Return the rows of a partition table that booting and updating need."""
    apps = {
        row.subtype - SUBTYPE_OTA_FIRST: AppPartition(row.subtype - SUBTYPE_OTA_FIRST, row.label, row.offset, row.size)
        for row in table.ota_slots
    }
    for index, row in ((FACTORY, table.factory), (TEST_APP, table.test)):
        if row is not None:
            apps[index] = AppPartition(index, row.label, row.offset, row.size)
    return OtaLayout(table.otadata.offset if table.otadata is not None else None, apps)


class OtaData:
    """The two sectors of otadata on a flash: read, and rewrite in the way both boot loader and app do it."""

    def __init__(self, flash: NorFlash, address: int) -> None:
        self._flash = flash
        self._address = address

    def read(self) -> tuple[OtaEntry, OtaEntry]:
        """Return the entries of sector 0 and 1."""
        return self._entry(0), self._entry(1)

    def erase(self, sector: int) -> None:
        """Erase sector 0 or 1."""
        self._flash.erase(self._address + ENTRY_OFFSETS[sector], SECTOR_SIZE)

    def rewrite(self, sector: int, entry: OtaEntry) -> None:
        """Erase the sector, then program the entry's 32 bytes: two operations with a moment in between."""
        self.erase(sector)
        self._flash.program(self._address + ENTRY_OFFSETS[sector], pack_entry(entry))

    def apply(self, write: SetState | WriteEntry) -> None:
        """Make one write that the boot choice asked for."""
        if isinstance(write, SetState):
            self.rewrite(write.sector, replace(self._entry(write.sector), state=write.state))
        else:
            self.rewrite(write.sector, OtaEntry.for_seq(write.seq, write.state))

    def _entry(self, sector: int) -> OtaEntry:
        return parse_entry(self._flash.read(self._address + ENTRY_OFFSETS[sector], ENTRY_SIZE))


@dataclass(slots=True)
class OtaHandle:
    """An update that has begun; `written` bytes of the image are in the partition or in `tail` (an unfinished unit)."""

    partition: AppPartition
    sequential: bool
    written: int = 0
    erased_to: int = 0
    tail: bytes = b""
    open: bool = True


class EspOta:
    """The OTA calls of the app that runs from the partition `running`.

    `verify(partition)` returns None for a good image, else why it is none. `secure_versions()` tells what anti-rollback
    compares, now; `burn(version)` burns the efuse. All calls raise `EspOtaFailure`.
    """

    def __init__(
        self,
        flash: NorFlash,
        layout: OtaLayout,
        *,
        running: int,
        build: BootBuild,
        verify: Callable[[AppPartition], str | None],
        secure_versions: Callable[[], SecureVersions] | None = None,
        burn: Callable[[int], None] | None = None,
    ) -> None:
        if layout.otadata_address is None:
            raise EspOtaFailure(EspError.OTA_SELECT_INFO_INVALID, "the partition table has no otadata row")
        self._flash = flash
        self._layout = layout
        self._count = layout.rows.ota_count
        self._otadata = OtaData(flash, layout.otadata_address)
        self._verify = verify
        self._secure_versions = secure_versions
        self._burn = burn
        self._handle: OtaHandle | None = None
        self.running = running
        self.build = build

    # --- what is where ------------------------------------------------------------------------------------------------

    def partition(self, index: int) -> AppPartition:
        """Return the app partition of that index."""
        partition = self._layout.apps.get(index)
        if partition is None:
            raise EspOtaFailure(EspError.INVALID_ARG, f"there is no app partition with index {index}")
        return partition

    def entries(self) -> tuple[OtaEntry, OtaEntry]:
        """Return the two otadata entries."""
        return self._otadata.read()

    def next_update_partition(self) -> int:
        """Return the index of the OTA slot after the running one, the first one after the last."""
        slots = sorted(index for index in self._layout.apps if index >= 0)
        if not slots:
            raise EspOtaFailure(EspError.INVALID_ARG, "the partition table has no ota slots")
        return next((index for index in slots if index > self.running), slots[0])

    def boot_partition(self) -> int:
        """Return the index that the next boot would choose by otadata alone, without looking at the images."""
        entries = self.entries()
        default = FACTORY if FACTORY in self._layout.apps else 0
        if entries[0].invalid and entries[1].invalid:
            return default
        active = active_entry(*entries)
        return default if active is None else entries[active].slot_index(self._count)

    def state_of(self, index: int) -> int | None:
        """Return the state of an OTA slot: of the first entry that names it with a right CRC; None if there is none."""
        for entry in self.entries():
            if entry.crc_ok and entry.slot_index(self._count) == index:
                return entry.state
        return None

    def last_invalid_partition(self) -> int | None:
        """Return the slot that was marked invalid or aborted, of two the one with the lower number; or None."""
        entries = self.entries()
        bad = [
            sector
            for sector in (0, 1)
            if entries[sector].crc_ok and entries[sector].state in (OtaState.INVALID, OtaState.ABORTED)
        ]
        if not bad:
            return None
        sector = min(bad, key=lambda sector: entries[sector].seq)
        return entries[sector].slot_index(self._count)

    # --- writing ------------------------------------------------------------------------------------------------------

    def begin(self, index: int, size: int = SIZE_UNKNOWN) -> OtaHandle:
        """Open the slot `index` for an image of `size` bytes and erase as the size says."""
        handle = self._open(index, sequential=size == WITH_SEQUENTIAL_WRITES)
        if not handle.sequential:
            sector = self._flash.sector_size
            length = handle.partition.size if size in (0, SIZE_UNKNOWN) else -(-size // sector) * sector
            if length > handle.partition.size:
                self._handle = None
                raise EspOtaFailure(
                    EspError.INVALID_ARG,
                    f"{size} bytes do not fit into {handle.partition.size} bytes of {handle.partition.label}",
                )
            self._flash.erase(handle.partition.address, length)
            handle.erased_to = length
        if self.build.rolls_back:
            self._erase_inactive_entry()
        return handle

    def resume(self, index: int, written: int) -> OtaHandle:
        """Open the slot `index` again after a restart, `written` bytes (whole sectors) being known to be in it."""
        if written % self._flash.sector_size:
            raise EspOtaFailure(EspError.INVALID_ARG, f"cannot resume at {written}: not a whole number of sectors")
        handle = self._open(index, sequential=True)
        handle.written = handle.erased_to = written
        return handle

    def write(self, handle: OtaHandle, data: bytes) -> None:
        """Write the next bytes of the image; the first must be the magic 0xE9."""
        if not handle.open:
            raise EspOtaFailure(EspError.INVALID_ARG, "the update is not open")
        if not data:
            return
        end = handle.written + len(data)
        if end > handle.partition.size:
            raise EspOtaFailure(
                EspError.INVALID_ARG,
                f"{end} bytes do not fit into {handle.partition.size} bytes of {handle.partition.label}",
            )
        while handle.sequential and handle.erased_to < end:
            self._flash.erase_sector(handle.partition.address + handle.erased_to)
            handle.erased_to += self._flash.sector_size
        if handle.written == 0 and data[0] != IMAGE_MAGIC:
            raise EspOtaFailure(
                EspError.OTA_VALIDATE_FAILED, f"the first byte is {data[0]:#04x}, not {IMAGE_MAGIC:#04x}"
            )
        self._program(handle, data)
        handle.written = end

    def end(self, handle: OtaHandle) -> None:
        """Finish the image: write what is left of the last unit and verify the whole."""
        handle.open = False
        self._handle = None
        if handle.written == 0:
            raise EspOtaFailure(EspError.INVALID_ARG, "nothing was written")
        if handle.tail:
            unit = self._flash.write_alignment
            start = handle.partition.address + handle.written - len(handle.tail)
            self._flash.program(start, handle.tail.ljust(unit, b"\xff"))
            handle.tail = b""
        self._verify_or_fail(handle.partition)

    def abort(self, handle: OtaHandle) -> None:
        """Give the update up; what was written stays as it is and is not bootable."""
        handle.open = False
        self._handle = None

    def erase_last_boot_app_partition(self) -> None:
        """Erase the slot that the inactive entry names, then that entry."""
        sector = self._inactive_sector_to_erase()
        if sector is None:
            raise EspOtaFailure(EspError.FAIL, "there is no last boot app to erase")
        partition = self.partition(self.entries()[sector].slot_index(self._count))
        self._flash.erase(partition.address, partition.size)
        self._otadata.erase(sector)

    # --- choosing -----------------------------------------------------------------------------------------------------

    def set_boot(self, index: int) -> None:
        """Make `index` the choice of the next boot, after verifying its image once more."""
        partition = self.partition(index)
        self._verify_or_fail(partition)
        if index == FACTORY:
            self._otadata.erase(0)
            self._otadata.erase(1)
            return
        if self._too_old(index):
            self._flash.erase(partition.address, partition.size)
            raise EspOtaFailure(
                EspError.OTA_SMALL_SECURE_VERSION, f"{partition.label} holds an app that anti-rollback rules out"
            )
        entries = self.entries()
        active = active_entry(*entries)
        state = OtaState.NEW if self.build.rolls_back else OtaState.UNDEFINED
        if active is None:
            sector, seq = 0, index + 1
        elif entries[active].slot_index(self._count) == index:
            sector, seq = active, entries[active].seq
        else:
            sector, seq = 1 - active, next_seq(entries[active].seq, index, self._count)
        self._otadata.rewrite(sector, OtaEntry.for_seq(seq, state, label=entries[sector].label))

    def mark_valid(self) -> None:
        """Confirm: the active entry (not necessarily the running slot's) becomes VALID."""
        entries = self.entries()
        active = active_entry(*entries)
        if active is None:
            raise EspOtaFailure(EspError.FAIL, "no otadata entry is valid")
        if entries[active].state == OtaState.VALID:
            return
        self._otadata.rewrite(active, replace(entries[active], state=OtaState.VALID))
        if self.build is BootBuild.ANTI_ROLLBACK and self._secure_versions is not None:
            burn = self._secure_versions().burn(self.running)
            if isinstance(burn, BurnSecureVersion) and self._burn is not None:
                self._burn(burn.version)

    def rollback_is_possible(self) -> bool:
        """Return whether another app could take over if the active entry were marked invalid."""
        entries = self.entries()
        active = active_entry(*entries)
        if active is None or self._count == 0:
            return False
        other = entries[1 - active]
        if other.valid:
            index = other.slot_index(self._count)
            if self._too_old(index):
                return False
            return index in self._layout.apps and self._verify(self._layout.apps[index]) is None
        if self.build is BootBuild.ANTI_ROLLBACK or FACTORY not in self._layout.apps:
            return False
        return self._verify(self._layout.apps[FACTORY]) is None

    def mark_invalid(self) -> None:
        """Reject: the active entry becomes INVALID. The caller restarts the chip next, as the original does itself."""
        entries = self.entries()
        active = active_entry(*entries)
        if active is None:
            raise EspOtaFailure(EspError.FAIL, "no otadata entry is valid")
        if not self.rollback_is_possible():
            raise EspOtaFailure(EspError.OTA_ROLLBACK_FAILED, "there is no other app that could run")
        self._otadata.rewrite(active, replace(entries[active], state=OtaState.INVALID))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _open(self, index: int, *, sequential: bool) -> OtaHandle:
        partition = self.partition(index)
        if index < 0:
            raise EspOtaFailure(EspError.INVALID_ARG, f"{partition.label} is not an ota slot")
        if index == self.running:
            raise EspOtaFailure(EspError.OTA_PARTITION_CONFLICT, f"{partition.label} is running")
        if self.build.rolls_back and self.state_of(self.running) == OtaState.PENDING_VERIFY:
            raise EspOtaFailure(
                EspError.OTA_ROLLBACK_INVALID_STATE,
                "the running app has not confirmed itself yet",
                hint="Confirm first.",
            )
        if self._handle is not None and self._handle.partition.index == index:
            raise EspOtaFailure(EspError.OTA_ALREADY_IN_PROGRESS, f"an update of {partition.label} is in progress")
        self._handle = OtaHandle(partition, sequential)
        return self._handle

    def _program(self, handle: OtaHandle, data: bytes) -> None:
        unit = self._flash.write_alignment
        start = handle.partition.address + handle.written - len(handle.tail)
        pending = handle.tail + data
        whole = len(pending) // unit * unit
        if whole:
            self._flash.program(start, pending[:whole])
        handle.tail = pending[whole:]

    def _inactive_sector_to_erase(self) -> int | None:
        entries = self.entries()
        active = active_entry(*entries)
        if active is None:
            return None
        other = entries[1 - active]
        if not names_a_slot(other) or other.slot_index(self._count) == self.running:
            return None
        return 1 - active

    def _erase_inactive_entry(self) -> None:
        sector = self._inactive_sector_to_erase()
        if sector is not None:
            self._otadata.erase(sector)

    def _too_old(self, index: int) -> bool:
        if self.build is not BootBuild.ANTI_ROLLBACK or self._secure_versions is None:
            return False
        return not self._secure_versions().allows(index)

    def _verify_or_fail(self, partition: AppPartition) -> None:
        reason = self._verify(partition)
        if reason is not None:
            raise EspOtaFailure(EspError.OTA_VALIDATE_FAILED, f"the image in {partition.label} is not valid: {reason}")


def next_seq(active_seq: int, index: int, ota_count: int) -> int:
    """Return the smallest sequence number >= `active_seq` that names `index`, in the original's 32-bit arithmetic.

    The original counts up in a loop, wrapping at 2^32: at the very top that can give 0xFFFFFFFF, which is invalid.
    """
    candidate = (index + 1) % ota_count
    while candidate < active_seq:
        candidate += -(-(min(active_seq, 0xFFFF_FFFF) - candidate) // ota_count) * ota_count
        candidate &= 0xFFFF_FFFF
    return candidate
