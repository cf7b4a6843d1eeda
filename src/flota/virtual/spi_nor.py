"""A serial NOR flash behind its SPI pins, and the driver that an application reaches it with.

The chip answers a JEDEC id and describes itself by SFDP: boot programs look at the first, Mbed OS's driver at the
second. A chip that is not fitted answers FF to everything, and so does one whose /HOLD pin floats.
Source: docs/reference/nuvoton.md, "SPI flash"; JEDEC JESD216, the basic flash parameter table.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from flota.errors import FlotaError
from flota.virtual.flash import NorFlash

W25Q32_ID: Final = bytes.fromhex("ef4016")
"""The stock part: Winbond, 4 MiB."""

PROGRAM_PAGE_SIZE: Final = 256
"""What the chip programs with one command, inside a page of its own."""

NOBODY: Final = 0xFF
FAST_READ: Final = 0x0B
READ_ID: Final = 0x9F
READ_SFDP: Final = 0x5A
PROGRAM: Final = 0x02
READ_STATUS: Final = 0x05
READ_BANK: Final = 0x16
READ_SECURITY: Final = 0x2B
_ANSWERS_ZERO: Final = frozenset({READ_STATUS, READ_BANK, READ_SECURITY})

_SFDP_START: Final = struct.Struct("<4sBBBB")
_SFDP_TABLE: Final = struct.Struct("<BBBB3sB")
_BASIC_TABLE: Final = struct.Struct("<9I")
_TABLE_ADDRESS: Final = _SFDP_START.size + _SFDP_TABLE.size
assert _TABLE_ADDRESS == 16
_SIGNATURE: Final = b"SFDP"
_ERASE_4K_OPCODE: Final = 0x20
_ERASE_64K_OPCODE: Final = 0xD8
_SUBSECTOR: Final = 4096
_ERASE_TYPES: Final = 4


class SpiFlashMissing(FlotaError):
    """No SPI flash answers, or none that describes itself."""

    code = "spi-flash-missing"


@dataclass(frozen=True, slots=True)
class SpiGeometry:
    """What a chip says by SFDP: its size and its smallest erase block (bytes)."""

    size: int
    erase_size: int


class SpiNor:
    """The chip: cells in `flash`, whose sector is its smallest erase block. `fitted` may change between boots."""

    def __init__(
        self, flash: NorFlash, *, jedec_id: bytes = W25Q32_ID, fitted: bool = True, has_sfdp: bool = True
    ) -> None:
        self.flash = flash
        self.jedec_id = jedec_id
        self.fitted = fitted
        self.has_sfdp = has_sfdp

    def transfer(self, command: bytes, answer_length: int = 0) -> bytes:
        """Send a command and return its answer; commands that only change modes have none."""
        if not self.fitted:
            return bytes((NOBODY,)) * answer_length
        code = command[0]
        if code == READ_ID:
            answer = self.jedec_id
        elif code == FAST_READ:
            answer = self._wrapped(int.from_bytes(command[1:4], "big"), answer_length)
        elif code == READ_SFDP and self.has_sfdp:
            description = pack_sfdp(SpiGeometry(self.flash.size, self.flash.sector_size))
            answer = description[int.from_bytes(command[1:4], "big") :]
        elif code in _ANSWERS_ZERO:
            answer = bytes(answer_length)
        else:
            answer = b""
            self._change(code, command[1:])
        return answer[:answer_length].ljust(answer_length, bytes((NOBODY,)))

    def _change(self, code: int, rest: bytes) -> None:
        """Do what changes cells: a program within one page, an erase of a block that the part has."""
        address = int.from_bytes(rest[:3], "big") % self.flash.size
        if code == PROGRAM and len(rest) > 3:
            self.clear_bits(address, rest[3:])
        elif code == _ERASE_4K_OPCODE and self.flash.sector_size == _SUBSECTOR:
            self.flash.erase_sector(address // _SUBSECTOR * _SUBSECTOR)

    def clear_bits(self, address: int, data: bytes) -> None:
        """Program bytes as the cells do: only 1 becomes 0."""
        before = self.flash.read(address, len(data))
        self.flash.program(address, (int.from_bytes(before) & int.from_bytes(data)).to_bytes(len(data)))

    def _wrapped(self, address: int, length: int) -> bytes:
        """Return cells from `address` on; behind the last cell comes the first."""
        address %= self.flash.size
        first = self.flash.read(address, min(length, self.flash.size - address))
        return first + (self.flash.read(0, length - len(first)) if len(first) < length else b"")


class SpiDriver:
    """The application's driver: knows the chip by its SFDP table. Raises `SpiFlashMissing` where there is none."""

    def __init__(self, chip: SpiNor) -> None:
        self._chip = chip

    @property
    def geometry(self) -> SpiGeometry:
        """Return what the chip says of itself. Raises `SpiFlashMissing`."""
        command = bytes((READ_SFDP, 0, 0, 0, 0))
        table = self._chip.transfer(command, _TABLE_ADDRESS + _BASIC_TABLE.size)
        return parse_sfdp(table)

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes. Raises `SpiFlashMissing` beyond the chip's end too."""
        self._check(address, length)
        return self._chip.flash.read(address, length)

    def erase(self, address: int, length: int) -> None:
        """Erase whole blocks, one after the other. Raises `SpiFlashMissing`."""
        self._check(address, length)
        self._chip.flash.erase(address, length)

    def program(self, address: int, data: bytes, *, skip_blank: bool = False) -> None:
        """Program page by page; as the cells do, only 1 becomes 0. Raises `SpiFlashMissing`.

        `skip_blank`: a page in which no bit is to be cleared is left out.
        """
        self._check(address, len(data))
        position = 0
        while position < len(data):
            room = PROGRAM_PAGE_SIZE - (address + position) % PROGRAM_PAGE_SIZE
            piece = data[position : position + room]
            if not (skip_blank and piece.count(NOBODY) == len(piece)):
                self._chip.clear_bits(address + position, piece)
            position += len(piece)

    def _check(self, address: int, length: int) -> None:
        if not self._chip.fitted:
            raise SpiFlashMissing("no SPI flash answers")
        if address + length > self._chip.flash.size:
            raise SpiFlashMissing(
                "behind the end of the SPI flash",
                offset=address,
                expected=f"{self._chip.flash.size} bytes",
                found=length,
            )


def pack_sfdp(geometry: SpiGeometry) -> bytes:
    """Return the description of a chip: header, one parameter header, nine words."""
    start = _SFDP_START.pack(_SIGNATURE, 0, 1, 0, NOBODY)
    table = _SFDP_TABLE.pack(0, 0, 1, _BASIC_TABLE.size // 4, _TABLE_ADDRESS.to_bytes(3, "little"), NOBODY)
    small = geometry.erase_size == _SUBSECTOR
    opcode = _ERASE_4K_OPCODE if small else _ERASE_64K_OPCODE
    first = (0x01 if small else 0x03) | (_ERASE_4K_OPCODE if small else NOBODY) << 8
    erase_type = (geometry.erase_size.bit_length() - 1) | opcode << 8
    words = (first, geometry.size * 8 - 1, 0, 0, 0, 0, 0, erase_type, 0)
    return start + table + _BASIC_TABLE.pack(*words)


def parse_sfdp(data: bytes) -> SpiGeometry:
    """Return size and smallest erase block. Raises `SpiFlashMissing` for what is no such description."""
    if len(data) < _TABLE_ADDRESS + _BASIC_TABLE.size or data[:4] != _SIGNATURE:
        raise SpiFlashMissing("the SPI flash does not describe itself (SFDP)", found=data[:4].hex() or "nothing")
    place = int.from_bytes(data[12:15], "little")
    if place + _BASIC_TABLE.size > len(data):
        raise SpiFlashMissing("the table of the SPI flash is not where its header says", offset=12, found=place)
    words = _BASIC_TABLE.unpack_from(data, place)
    density = words[1]
    bits = 1 << (density & 0x7FFF_FFFF) if density >> 31 and density & 0x7FFF_FFFF < 40 else density + 1
    types = struct.pack("<2I", *words[7:9])
    sizes = [1 << types[2 * number] for number in range(_ERASE_TYPES) if 0 < types[2 * number] < 32]
    if bits < 8 or not sizes:
        raise SpiFlashMissing("the SPI flash says neither size nor erase block", found=data[place:].hex()[:72])
    return SpiGeometry(bits // 8, min(sizes))
