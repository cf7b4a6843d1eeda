"""The slots of an ESP32 as its update agents see them: by label, with writers that go through the OTA calls."""

from __future__ import annotations

from typing import Final

from flota.images.esp_app import IMAGE_MAGIC
from flota.images.esp_otadata import OtaState
from flota.virtual.esp_nvs import FlashNvs
from flota.virtual.esp_ota import (
    SIZE_UNKNOWN,
    WITH_SEQUENTIAL_WRITES,
    AppPartition,
    EspError,
    EspOta,
    EspOtaFailure,
    OtaHandle,
    OtaLayout,
)
from flota.virtual.flash import NorFlash
from flota.virtual.pace import Pace
from flota.virtual.slots import BadImage, RunningApp, SlotState, SlotWriter

WRITE_BUFFER_BYTES: Final = 4096
"""What is collected before a flash write: one sector, in arduino-esp32 and in esp_https_ota's users alike."""

HELD_BACK_BYTES: Final = 16
"""arduino-esp32 writes the first 16 bytes of an image last, so that no unfinished image ever looks like one."""

_STATES: Final = {
    OtaState.NEW: SlotState.NEW,
    OtaState.PENDING_VERIFY: SlotState.PENDING_VERIFY,
    OtaState.VALID: SlotState.VALID,
    OtaState.INVALID: SlotState.INVALID,
    OtaState.ABORTED: SlotState.ABORTED,
}


class EspSlots:
    """The slots of the running app."""

    def __init__(
        self,
        ota: EspOta,
        layout: OtaLayout,
        flash: NorFlash,
        running: RunningApp,
        pace: Pace,
        *,
        nvs: FlashNvs | None = None,
    ) -> None:
        self.ota = ota
        self.running = running
        self.nvs = nvs
        self._flash = flash
        self._pace = pace
        self._by_label = {partition.label: partition for partition in layout.apps.values()}

    @property
    def rolls_back(self) -> bool:
        """Whether a new app has to confirm itself."""
        return self.ota.build.rolls_back

    def next_slot(self) -> str:
        """Return the label of the next update partition."""
        return self.ota.partition(self.ota.next_update_partition()).label

    def capacity(self, slot: str) -> int:
        """Return the partition's size in bytes."""
        return self._partition(slot).size

    async def begin(self, slot: str, size: int) -> SlotWriter:
        """Open the slot; sectors are erased as the writing reaches them, as esp_https_ota does by default."""
        handle = self.ota.begin(self._partition(slot).index, WITH_SEQUENTIAL_WRITES)
        await self._pace.pay()
        return EspSlotWriter(self.ota, handle, self._pace)

    async def begin_erased(self, slot: str) -> EspFrameWriter:
        """Open the slot for an image of unknown size: the whole slot is erased before this returns."""
        handle = self.ota.begin(self._partition(slot).index, SIZE_UNKNOWN)
        await self._pace.pay()
        return EspFrameWriter(self.ota, handle, self._pace)

    async def resume(self, slot: str, size: int, written: int) -> SlotWriter:
        """Open the slot again at a whole number of sectors."""
        return EspSlotWriter(self.ota, self.ota.resume(self._partition(slot).index, written), self._pace)

    def begin_arduino(self, slot: str, size: int) -> ArduinoUpdateWriter:
        """Open the slot the way arduino-esp32's `Update` does, beside the OTA calls. Raises `BadImage` if too large."""
        partition = self._partition(slot)
        if size > partition.size:
            raise BadImage("not enough space", expected=f"at most {partition.size} bytes", found=size)
        return ArduinoUpdateWriter(self._flash, partition, size, self._pace)

    def read(self, slot: str, length: int) -> bytes:
        """Return the first bytes of a slot."""
        return self._flash.read(self._partition(slot).address, length)

    def chosen(self) -> str | None:
        """Return the slot that otadata names."""
        return self.ota.partition(self.ota.boot_partition()).label

    def set_boot(self, slot: str) -> None:
        """Choose the slot for the next boot."""
        self.ota.set_boot(self._partition(slot).index)

    def confirm(self) -> None:
        """Mark the active entry valid."""
        self.ota.mark_valid()

    def reject(self) -> None:
        """Mark the active entry invalid; the caller restarts."""
        self.ota.mark_invalid()

    def state_of(self, slot: str) -> SlotState | None:
        """Return what otadata says of a slot."""
        index = self._partition(slot).index
        state = self.ota.state_of(index) if index >= 0 else None
        return (
            None
            if state is None
            else _STATES.get(OtaState(state) if state in _STATES else OtaState.UNDEFINED, SlotState.UNDEFINED)
        )

    def last_rejected(self) -> str | None:
        """Return the slot whose app was rolled back, if otadata still says so."""
        index = self.ota.last_invalid_partition()
        return None if index is None else self.ota.partition(index).label

    def _partition(self, slot: str) -> AppPartition:
        partition = self._by_label.get(slot)
        if partition is None:
            raise EspOtaFailure(EspError.INVALID_ARG, f"there is no app partition {slot!r}")
        return partition


class EspSlotWriter:
    """Collects a sector's worth of bytes, then writes it through `esp_ota_write`."""

    def __init__(self, ota: EspOta, handle: OtaHandle, pace: Pace) -> None:
        self._ota = ota
        self._handle = handle
        self._pace = pace
        self._buffer = bytearray()

    @property
    def slot(self) -> str:
        """Label of the slot."""
        return self._handle.partition.label

    @property
    def durable(self) -> int:
        """Bytes in flash: whole sectors until the end."""
        return self._handle.written

    async def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._buffer += data
        while len(self._buffer) >= WRITE_BUFFER_BYTES:
            self._ota.write(self._handle, bytes(self._buffer[:WRITE_BUFFER_BYTES]))
            del self._buffer[:WRITE_BUFFER_BYTES]
            await self._pace.pay()

    async def finish(self) -> None:
        """Write the rest and verify."""
        self._ota.write(self._handle, bytes(self._buffer))
        self._buffer.clear()
        self._ota.end(self._handle)
        await self._pace.pay()

    def abandon(self) -> None:
        """Close without making bootable."""
        self._ota.abort(self._handle)


class EspFrameWriter:
    """Writes what it is given at once through `esp_ota_write`, into a slot that is erased already."""

    def __init__(self, ota: EspOta, handle: OtaHandle, pace: Pace) -> None:
        self._ota = ota
        self._handle = handle
        self._pace = pace

    @property
    def slot(self) -> str:
        """Label of the slot."""
        return self._handle.partition.label

    @property
    def durable(self) -> int:
        """Nothing: who erases everything first never resumes."""
        return 0

    async def write(self, data: bytes) -> None:
        """Write the next bytes, in pieces that end with a sector."""
        while data:
            room = WRITE_BUFFER_BYTES - self._handle.written % WRITE_BUFFER_BYTES
            self._ota.write(self._handle, data[:room])
            data = data[room:]
        await self._pace.pay()

    async def finish(self) -> None:
        """Verify the image."""
        self._ota.end(self._handle)
        await self._pace.pay()

    def abandon(self) -> None:
        """Close without making bootable."""
        self._ota.abort(self._handle)


class ArduinoUpdateWriter:
    """arduino-esp32's `Update`: a 4 KiB buffer, erase before write, the first 16 bytes held back until the end.

    Source: espressif/arduino-esp32:libraries/Update/src/Updater.cpp.
    """

    def __init__(self, flash: NorFlash, partition: AppPartition, size: int, pace: Pace) -> None:
        self._flash = flash
        self._partition = partition
        self._size = size
        self._pace = pace
        self._buffer = bytearray()
        self._written = 0
        self._held_back = b""

    @property
    def slot(self) -> str:
        """Label of the slot."""
        return self._partition.label

    @property
    def durable(self) -> int:
        """Nothing: this client never resumes."""
        return 0

    async def write(self, data: bytes) -> None:
        """Take the next bytes. Raises `BadImage` for a wrong first byte or too many bytes."""
        if not self._written and not self._buffer and data[:1] and data[0] != IMAGE_MAGIC:
            raise BadImage(
                "the first byte is not an app image's",
                offset=0,
                expected=f"{IMAGE_MAGIC:#04x}",
                found=f"{data[0]:#04x}",
            )
        if self._written + len(self._buffer) + len(data) > self._size:
            raise BadImage("more bytes than announced", expected=self._size)
        self._buffer += data
        while len(self._buffer) >= WRITE_BUFFER_BYTES:
            await self._write_sector(bytes(self._buffer[:WRITE_BUFFER_BYTES]))
            del self._buffer[:WRITE_BUFFER_BYTES]

    async def finish(self) -> None:
        """Write the rest, then the 16 bytes that make it an image. Raises `BadImage` if bytes are missing."""
        if self._buffer:
            await self._write_sector(bytes(self._buffer))
            self._buffer.clear()
        if self._written != self._size:
            raise BadImage("bytes are missing", expected=self._size, found=self._written)
        self._flash.program(self._partition.address, self._held_back.ljust(HELD_BACK_BYTES, b"\xff"))
        await self._pace.pay()

    def abandon(self) -> None:
        """Give up; without its first bytes the slot holds no image."""

    async def _write_sector(self, data: bytes) -> None:
        address = self._partition.address + self._written
        self._flash.erase_sector(address)
        unit = self._flash.write_alignment
        padded = data.ljust(-(-len(data) // unit) * unit, b"\xff")
        if self._written == 0:
            self._held_back = data[:HELD_BACK_BYTES]
            address, padded = address + HELD_BACK_BYTES, padded[HELD_BACK_BYTES:]
        if padded:
            self._flash.program(address, padded)
        self._written += len(data)
        await self._pace.pay()
