"""From an ELF file to an app image, as the vendor's `elf2image` does it.

Source: docs/reference/esp-image.md; espressif/esptool:esptool/bin_image.py (`ELFFile`).
"""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass, replace
from typing import Any, Final

from elftools.common.exceptions import ELFError, ELFParseError
from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from flota.images.esp_app import pack_app
from flota.images.esp_chips import chip_named
from flota.images.esp_layout import DEFAULT_OPTIONS, AppIdentity, MemoryPiece, PackOptions, build_app
from flota.images.model import ImageError

ELF_MAX_BYTES: Final = 256 * 1024 * 1024
SECTIONS_MAX: Final = 4096

_MACHINES: Final = frozenset({"EM_XTENSA", "EM_RISCV"})
_LOADED_TYPES: Final = frozenset({"SHT_PROGBITS", "SHT_INIT_ARRAY", "SHT_FINI_ARRAY", "SHT_PREINIT_ARRAY"})
_SHF_ALLOC: Final = 2


@dataclass(frozen=True, slots=True)
class ElfProgram:
    """What of an ELF file goes into an image: the entry address and the bytes of each section that is loaded."""

    entry: int
    pieces: tuple[MemoryPiece, ...]
    sha256: bytes


def parse_elf(elf: bytes) -> ElfProgram:
    """Return the loadable sections of a 32-bit little-endian Xtensa or RISC-V executable.

    Raises `ImageError` for anything else, and for files that are cut off or lie about their contents.
    """
    if len(elf) > ELF_MAX_BYTES:
        raise ImageError("the ELF file is too large", expected=f"at most {ELF_MAX_BYTES} bytes", found=len(elf))
    if not elf.startswith(b"\x7fELF"):
        raise ImageError("not an ELF file", offset=0, expected="7f454c46", found=elf[:4].hex())
    try:
        return _parse(elf)
    except (ELFError, ELFParseError, struct.error, ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise ImageError("the ELF file is broken", found=str(error)[:100] or type(error).__name__) from error


def app_from_elf(
    elf: bytes,
    *,
    chip: str,
    version: str | None = None,
    project: str | None = None,
    secure_version: int | None = None,
    pad_to: int | None = None,
    padding: bytes = b"\0",
    options: PackOptions = DEFAULT_OPTIONS,
) -> bytes:
    """Return the bytes of the app image made of `elf` for the chip called `chip`.

    `version`, `project` and `secure_version` replace what the app descriptor says (None = keep; without a descriptor
    in the file, version and project are needed). With `pad_to` (bytes, multiple of 16) the image is filled up to
    exactly that length with `padding`, repeated. Raises `ImageError`, or `NotFound` for an unknown chip.
    """
    program = parse_elf(elf)
    identity = AppIdentity(version, project, secure_version, program.sha256)
    if pad_to is not None:
        options = replace(options, pad_to=pad_to, padding=padding)
    return pack_app(
        build_app(program.pieces, chip=chip_named(chip), entry=program.entry, identity=identity, options=options)
    )


def _parse(elf: bytes) -> ElfProgram:
    stream = io.BytesIO(elf)
    file: Any = ELFFile(stream)
    machine = file["e_machine"]
    if machine not in _MACHINES or file.elfclass != 32 or not file.little_endian:
        raise ImageError(
            "the ELF file is not for an ESP chip",
            offset=18,
            expected="32-bit little-endian Xtensa or RISC-V",
            found=f"{file.elfclass}-bit {machine}",
        )
    table_offset, row_size, count = file["e_shoff"], file["e_shentsize"], file["e_shnum"]
    if count > SECTIONS_MAX:
        raise ImageError("too many sections", expected=f"at most {SECTIONS_MAX}", found=count)
    pieces: list[MemoryPiece] = []
    loaded_bytes = 0
    for index in range(count):
        section = struct_parse(file.structs.Elf_Shdr, stream, stream_pos=table_offset + index * row_size)
        address, size, offset = section["sh_addr"], section["sh_size"], section["sh_offset"]
        if section["sh_type"] not in _LOADED_TYPES or not section["sh_flags"] & _SHF_ALLOC or not address or not size:
            continue
        loaded_bytes += size
        if offset + size > len(elf) or loaded_bytes > len(elf):
            raise ImageError(
                "the sections hold more than the file", offset=offset, expected=f"{len(elf)} bytes", found=size
            )
        pieces.append(MemoryPiece(address, elf[offset : offset + size]))
    if not pieces:
        raise ImageError("the ELF file has nothing to load", hint="Link it first; an object file is not a program.")
    return ElfProgram(file["e_entry"], tuple(pieces), hashlib.sha256(elf).digest())
