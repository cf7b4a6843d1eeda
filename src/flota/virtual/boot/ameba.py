"""The boot decision of an AmebaD board: KM0's boot loader selects a slot, KM4's checks its own part. Pure.

There is no boot counter, no record of what is new and no way back: OTA2 if its signature is good, else OTA1, else the
ROM's shell. What a bad image leads to depends on how it is bad (`BootEnd`).
Source: docs/reference/ameba-boot.md. Checked against vectors made by running the vendor's boot images.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flota.images.ameba.flash_map import AmebaFlashMap
from flota.images.ameba.image2 import SECURE_BLOCK_SIZE, SECURE_FILLER_SIZE
from flota.images.ameba.segment import HEADER_SIZE, IMAGE2_SIGNATURE, NOT_SET, RAM_TEXT, SECTOR_SIZE

ReadFlash = Callable[[int, int], bytes]
"""(offset in flash, length) -> that many bytes; beyond the end of the chip FF."""

Verify = Callable[[bytes, bytes], bool]
"""(Ed25519 signature, message) -> whether it holds with the key in the eFuses."""

KM0_WINDOW: Final = 0x0C00_0000
KM4_WINDOW: Final = 0x0E00_0000
KM0_TEXT_ADDRESS: Final = 0x0008_300C
KM0_ENTRY_ADDRESS: Final = 0x0008_3000
KM4_TEXT_ADDRESS: Final = 0x1000_500C
RAM_SIZE_MAX: Final = 0x10_0000
TEXT_SHOWN_MAX: Final = 16
"""The log prints the text up to its NUL; we print at most so many bytes."""

U32: Final = 0xFFFF_FFFF

_INFO: Final = "[MODULE_BOOT-LEVEL_INFO]:"
_ERROR: Final = "[MODULE_BOOT-LEVEL_ERROR]:"


class BootEnd(enum.StrEnum):
    """How a boot loader ends."""

    STARTED = "started"
    NO_IMAGE = "no-image"
    """No slot is valid: the ROM's shell, for ever."""
    BAD_RAM_HEADER = "bad-ram-header"
    BAD_RAM_TEXT = "bad-ram-text"
    """Both: the ROM's shell, although the other slot may be good."""
    HANG = "hang"
    """KM4's part is missing behind a good first signature: an endless loop, whatever the other slot holds."""
    FAULT = "fault"
    """A header read off its alignment."""
    SECURE_BOOT_FAILED = "secure-boot-failed"
    BAD_XIP_SIZE = "bad-xip-size"


class BootBinary(enum.StrEnum):
    """Whose KM0 boot image it is: they map different lengths for KM4."""

    ARDUINO = "arduino"
    SDK = "sdk"


@dataclass(frozen=True, slots=True)
class ForcePin:
    """The pin that forces OTA1, as the byte `Force_OTA1_GPIO` of the boot image says it; FF = there is none."""

    code: int

    @property
    def pin(self) -> int:
        """The pin's number as the SDK has it: port x 32 + pin."""
        return self.code & 0x3F

    @property
    def pull(self) -> int:
        """What is set before the pin is read: 1 = pull-down, 2 = pull-up; always away from the active level."""
        return 1 if self.code & 0x80 else 2

    def forces(self, level: int) -> bool:
        """Return whether the level read (0 or 1) forces OTA1."""
        return self.code != 0xFF and level == self.code >> 7


@dataclass(frozen=True, slots=True)
class SlotCheck:
    """What the check of one slot found. `km4_place` is KM4's offset in the flash; None when it was not reached."""

    valid: bool
    end: BootEnd | None = None
    km4_place: int | None = None


@dataclass(frozen=True, slots=True)
class Km0Boot:
    """How KM0's boot loader ended. `slot` is the one it ended in (1 or 2), None without one.

    `km4_place` and `km4_mapped`: offset in flash and length (bytes) of KM4's window, if it got that far. `log` as with
    Boot_Log_En set; error lines come without it too.
    """

    end: BootEnd
    slot: int | None = None
    km4_place: int | None = None
    km4_mapped: int | None = None
    log: tuple[str, ...] = ()

    @property
    def started(self) -> bool:
        """Whether KM0's image2 runs."""
        return self.end is BootEnd.STARTED


@dataclass(frozen=True, slots=True)
class Km4Boot:
    """How KM4's boot loader ended; anything but STARTED is an endless loop."""

    end: BootEnd
    log: tuple[str, ...] = ()


def boot_km0(
    read: ReadFlash,
    layout: AmebaFlashMap,
    *,
    force_ota1: bool = False,
    binary: BootBinary = BootBinary.ARDUINO,
    firmware_check: Callable[[int], int] | None = None,
    select_hook: Callable[[], int] | None = None,
) -> Km0Boot:
    """Return what KM0's boot loader does with this flash.

    `force_ota1`: the pin is at its active level, and OTA2 is not looked at. `firmware_check` is the boot image's
    FwCheckCallback (slot -> 1 for good); stock images have none, and check no sum at boot. `select_hook` is its
    OTASelectHook, which replaces the decision: 0 = nothing to boot, else it has mapped an image itself.
    """
    if select_hook is not None:
        return Km0Boot(BootEnd.STARTED if select_hook() else BootEnd.NO_IMAGE)
    log = [f"{_INFO}IMG1 ENTER ROMSUB:0"]
    if force_ota1:
        log.append(f"{_INFO}GPIO force OTA1 ")
    for slot in (1,) if force_ota1 else (2, 1):
        checked = check_slot(read, layout.slot_offset(slot))
        if checked.end is not None:
            return Km0Boot(checked.end, slot, log=tuple(log))
        if checked.valid and (firmware_check is None or firmware_check(slot) == 1):
            assert checked.km4_place is not None
            mapped = km4_map_length(read, checked.km4_place, binary)
            if not force_ota1:
                log.append(f"{_INFO}OTA{slot} USE")
            end, lines = _load_km0(read, layout.slot_offset(slot))
            return Km0Boot(end, slot, checked.km4_place, mapped, (*log, *lines))
    return Km0Boot(BootEnd.NO_IMAGE, log=(*log, f"{_ERROR}IMG2 Invalid"))


def check_slot(read: ReadFlash, base: int) -> SlotCheck:
    """Return whether the slot at offset `base` of the flash is valid, or how the check of it ends the boot.

    Only the two signatures count, and the place of the second follows from two sizes.
    """
    if read(base, len(IMAGE2_SIGNATURE)) != IMAGE2_SIGNATURE:
        return SlotCheck(False)
    (xip_size,) = struct.unpack("<I", read(base + 8, 4))
    if xip_size % 4:
        return SlotCheck(False, BootEnd.FAULT)
    ram_header = HEADER_SIZE + xip_size & U32
    (ram_size,) = struct.unpack("<I", read(base + ram_header + 8, 4))
    place = base + (_rounded_up(xip_size + ram_size + 2 * HEADER_SIZE & U32))
    if read(place, len(IMAGE2_SIGNATURE)) != IMAGE2_SIGNATURE:
        return SlotCheck(False, BootEnd.HANG)
    return SlotCheck(True, km4_place=place)


def km4_map_length(read: ReadFlash, place: int, binary: BootBinary) -> int:
    """Return how many bytes KM0 maps for KM4, whose part lies at offset `place` of the flash."""
    (xip_size,) = struct.unpack("<I", read(place + 8, 4))
    (secure_block,) = struct.unpack("<I", read(place + 16, 4))
    ram = place + (HEADER_SIZE + xip_size & U32)
    (ram_size,) = struct.unpack("<I", read(ram + 8, 4))
    if binary is BootBinary.SDK:
        return _rounded_up(xip_size + ram_size + 2 * HEADER_SIZE & U32)
    psram = ram + (HEADER_SIZE + ram_size & U32)
    (psram_size,) = struct.unpack("<I", read(psram + 8, 4))  # a blank header counts as -1
    extra = SECTOR_SIZE if secure_block != NOT_SET else 0
    return _rounded_up(xip_size + ram_size + 3 * HEADER_SIZE + psram_size + extra & U32)


def boot_km4(read: ReadFlash, place: int, *, secure_boot: bool = False, verify: Verify | None = None) -> Km4Boot:
    """Return what KM4's boot loader does with its part at offset `place` of the flash.

    `secure_boot`: the chip option is set, and `verify` tells whether a signature holds; without `verify` none does.
    """
    log = []
    if secure_boot:
        if not _secure_boot_passes(read, place, verify):
            return Km4Boot(BootEnd.SECURE_BOOT_FAILED, ("IMG2 SBOOT FAIL",))
        log.append("IMG2 SBOOT OK")
    else:
        log.append("IMG2 SBOOT OFF")
    (xip_size,) = struct.unpack("<I", read(place + 8, 4))
    if xip_size == U32:
        return Km4Boot(BootEnd.BAD_XIP_SIZE, (*log, f"{_ERROR}IMG2 SIZE Invalid"))
    end, lines = _load_ram(read, place, KM4_WINDOW, xip_size, KM4_TEXT_ADDRESS)
    return Km4Boot(end, (*log, *lines))


def _secure_boot_passes(read: ReadFlash, place: int, verify: Verify | None) -> bool:
    (secure_block,) = struct.unpack("<I", read(place + 16, 4))
    if secure_block == NOT_SET or verify is None or not KM4_WINDOW + HEADER_SIZE <= secure_block <= KM4_WINDOW + 2**24:
        return False
    length = secure_block - KM4_WINDOW
    block = read(place + length, SECURE_BLOCK_SIZE)
    return verify(block[SECURE_FILLER_SIZE:], read(place + HEADER_SIZE, length - HEADER_SIZE))


def _load_km0(read: ReadFlash, base: int) -> tuple[BootEnd, list[str]]:
    (xip_size,) = struct.unpack("<I", read(base + 8, 4))
    return _load_ram(read, base, KM0_WINDOW, xip_size, KM0_TEXT_ADDRESS)


def _load_ram(read: ReadFlash, base: int, window: int, xip_size: int, text_address: int) -> tuple[BootEnd, list[str]]:
    """Load the RAM segment behind the XIP segment; the text is looked for at a fixed address."""
    header = HEADER_SIZE + xip_size & U32
    size, address = struct.unpack("<II", read(base + header + 8, 8))
    payload = header + HEADER_SIZE & U32
    lines = [f"{_INFO}IMG2 DATA[{window + payload & U32:#x}:{size}:{address:#x}]"]
    if address == U32 or size > RAM_SIZE_MAX:
        return BootEnd.BAD_RAM_HEADER, [*lines, f"{_ERROR}IMG2 ADDR Invalid"]
    text = _copied(read, base + payload, size, address, text_address, TEXT_SHOWN_MAX)
    entry = _copied(read, base + payload, size, address, text_address - 12, 4)
    shown = text.partition(b"\0")[0].decode("latin-1")
    lines.append(f"{_INFO}IMG2 SIGN[{shown}({text_address:x})]")
    lines.append(f"{_INFO}IMG2 ENTRY[{text_address - 12:#x}:{int.from_bytes(entry, 'little'):#x}]")
    if not text.startswith(RAM_TEXT):
        return BootEnd.BAD_RAM_TEXT, [*lines, f"{_ERROR}IMG2 SIGN Invalid"]
    return BootEnd.STARTED, lines


def _copied(read: ReadFlash, payload: int, size: int, address: int, wanted: int, length: int) -> bytes:
    """Return RAM at `wanted` once `size` bytes from offset `payload` were copied to `address`; zero where none went."""
    ram = bytearray(length)
    start, end = max(wanted, address), min(wanted + length, address + size)
    if start < end:
        ram[start - wanted : end - wanted] = read(payload + start - address, end - start)
    return bytes(ram)


def _rounded_up(size: int) -> int:
    return (size + SECTOR_SIZE - 1 & U32) // SECTOR_SIZE * SECTOR_SIZE
