"""Files that are not ESP images but often offered as ones: told apart by what they begin with.

Source: docs/reference/esp-image.md; the formats' own documents (gABI for ELF, RFC 1952 for gzip, APPNOTE for zip,
microsoft/uf2:README.md, Intel's hexadecimal object file format specification).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from flota.images.model import ImageFormat, Property

Buffer = bytes | memoryview

PROBE_SIZE: Final = 4096
"""Nothing here looks further into a file than this (bytes)."""

_ELF_MACHINES: Final = {0x5E: "Xtensa", 0xF3: "RISC-V", 0x28: "Arm", 0xB7: "AArch64", 0x3E: "x86-64", 0x03: "x86"}
_ELF_IDENT: Final = struct.Struct("<4sBBBBB7x")
_UF2_BLOCK: Final = struct.Struct("<IIIIIIII")
_UF2_HAS_FAMILY: Final = 0x2000
"""Flag: the last header field is a family id (`UF2_FAMILY_ID` in espressif/esptool:esptool/targets/)."""
_UF2_FAMILIES: Final = {
    0x1C5F21B0: "esp32",
    0xBFDD4EEE: "esp32-s2",
    0xC47E5767: "esp32-s3",
    0xD42BA06C: "esp32-c3",
    0x2B88D29C: "esp32-c2",
    0x540DDF62: "esp32-c6",
    0x332726F6: "esp32-h2",
    0x3D308E94: "esp32-p4",
    0xF71C0343: "esp32-c5",
    0x77D850C4: "esp32-c61",
    0xB6DD00AF: "esp32-h21",
    0x9E0BAA8A: "esp32-h4",
    0x3101F7C1: "esp32-s31",
    0x7EAB61ED: "esp8266",
}
_DELTA_HEADER: Final = struct.Struct("<I32s28x")
_ENCRYPTED_LENGTH_OFFSET: Final = 404
_HEX_RECORD = re.compile(rb":((?:[0-9A-Fa-f]{2}){5,260})\r?(?:\n|\Z)")


@dataclass(frozen=True, slots=True)
class OtherFile:
    """What a file is instead, what can be read from its start, and what to do with it."""

    format: ImageFormat
    properties: tuple[Property, ...]
    hint: str


def recognise(data: Buffer) -> OtherFile | None:
    """Return what `data` is if one of the known kinds of other files, else None. Never raises."""
    start = bytes(data[:PROBE_SIZE])
    for magic, packed_format, hint in _PACKED:
        if start.startswith(magic):
            return OtherFile(packed_format, (), hint)
    for magic, read in _BY_MAGIC:
        if start.startswith(magic):
            return read(start)
    record = _HEX_RECORD.match(start)
    if record and sum(bytes.fromhex(record.group(1).decode("ascii"))) & 0xFF == 0:
        return OtherFile(
            ImageFormat.INTEL_HEX,
            (),
            "Devices take no Intel HEX over the air; make plain bytes of it: flota image convert FILE -o app.bin",
        )
    return None


def _elf(start: bytes) -> OtherFile:
    properties: list[Property] = []
    if len(start) >= 24:
        _, bits, order, _, _, _ = _ELF_IDENT.unpack_from(start)
        (machine,) = struct.unpack_from("<H" if order == 1 else ">H", start, 18)
        properties.append(Property("machine", _ELF_MACHINES.get(machine, f"{machine:#x}")))
        if bits == 1 and len(start) >= 28:
            properties.append(
                Property("entry", f"{struct.unpack_from('<I' if order == 1 else '>I', start, 24)[0]:#010x}")
            )
    return OtherFile(
        ImageFormat.ELF,
        tuple(properties),
        "Pack it first: flota image pack esp-app FILE --chip CHIP --version VERSION -o app.bin",
    )


def _uf2(start: bytes) -> OtherFile:
    properties: list[Property] = []
    if len(start) >= _UF2_BLOCK.size:
        _, _, flags, target, size, _, count, family = _UF2_BLOCK.unpack_from(start)
        properties += [Property("first address", f"{target:#x}"), Property("blocks", str(count))]
        properties.append(Property("block payload", f"{size} bytes"))
        if flags & _UF2_HAS_FAMILY:
            properties.append(Property("family", _UF2_FAMILIES.get(family, f"{family:#010x}")))
    return OtherFile(
        ImageFormat.UF2,
        tuple(properties),
        "Take the app image that it was made from; devices take no UF2 over the air.",
    )


def _delta(start: bytes) -> OtherFile:
    properties: tuple[Property, ...] = ()
    if len(start) >= _DELTA_HEADER.size:
        _, base = _DELTA_HEADER.unpack_from(start)
        properties = (Property("base image hash", base.hex()),)
    return OtherFile(
        ImageFormat.ESP_DELTA_PATCH,
        properties,
        "Only a device that runs the base image can apply it; ship the app image.",
    )


def _encrypted(start: bytes) -> OtherFile:
    properties: tuple[Property, ...] = ()
    if len(start) >= _ENCRYPTED_LENGTH_OFFSET + 4:
        (length,) = struct.unpack_from("<I", start, _ENCRYPTED_LENGTH_OFFSET)
        properties = (Property("plain text", f"{length} bytes"),)
    return OtherFile(
        ImageFormat.ESP_ENCRYPTED,
        properties,
        "Nothing inside can be checked; ship the plain app image, or a type that takes it.",
    )


_PACKED: Final = (
    (b"\x1f\x8b", ImageFormat.GZIP, "Unpack it first (gzip -d)."),
    (b"PK\x03\x04", ImageFormat.ZIP, "Unpack it first and take the app image out of it."),
)
_BY_MAGIC: Final = (
    (b"\x7fELF", _elf),
    (b"UF2\n\x57\x51\x5d\x9e", _uf2),
    (b"\x10\xde\xcd\xfc", _delta),
    (b"\xcf\xb6\x88\x07", _encrypted),
)
