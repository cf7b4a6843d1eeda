"""The descriptors at file offset 32 of ESP images: `esp_app_desc_t` of apps, `esp_bootloader_desc_t` of boot loaders.

Source: docs/reference/esp-image.md; espressif/esp-idf:components/esp_app_format/include/esp_app_desc.h and
components/esp_bootloader_format/include/esp_bootloader_desc.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from flota.images.model import ImageError, TruncatedImage
from flota.images.text import cleaned_text

Buffer = bytes | memoryview

APP_DESC_MAGIC: Final = 0xABCD5432
APP_DESC_SIZE: Final = 256
APP_DESC_FILE_OFFSET: Final = 32
"""Image header (24) and first segment header (8) come before it."""
VERSION_MAX_BYTES: Final = 31
PROJECT_MAX_BYTES: Final = 31

_APP_DESC: Final = struct.Struct("<II8s32s32s16s16s32s32sHHBB2s72s")
assert _APP_DESC.size == APP_DESC_SIZE

BOOTLOADER_DESC_MAGIC: Final = 0x50
BOOTLOADER_DESC_SIZE: Final = 80
_BOOTLOADER_DESC: Final = struct.Struct("<B2sBI32s24s16s")
assert _BOOTLOADER_DESC.size == BOOTLOADER_DESC_SIZE

_FIELD_OFFSETS: Final = {"secure_version": 4, "version": 16, "project": 48, "elf_sha256": 144, "page_size_log2": 180}


@dataclass(frozen=True, slots=True)
class EspAppDesc:
    """What an app says about itself. Texts are cleaned; `elf_sha256` is 32 bytes.

    `min_efuse_block_revision` and `max_efuse_block_revision` are major x 100 + minor. `page_size_log2` is the MMU page
    size as a power of two, 0 = the chip's default. `spi_flash_mode_check` is 0 when unknown.
    """

    version: str
    project: str
    secure_version: int = 0
    time: str = ""
    date: str = ""
    idf_version: str = ""
    elf_sha256: bytes = bytes(32)
    min_efuse_block_revision: int = 0
    max_efuse_block_revision: int = 0
    page_size_log2: int = 0
    spi_flash_mode_check: int = 0


@dataclass(frozen=True, slots=True)
class EspBootloaderDesc:
    """What a boot loader of ESP-IDF 5.1 and later says about itself. Texts are cleaned."""

    secure_version: int
    version: int
    idf_version: str
    date_time: str


def has_app_desc(data: Buffer) -> bool:
    """Whether `data` (a segment's bytes) begins with the magic of an app descriptor."""
    return len(data) >= APP_DESC_SIZE and bytes(data[:4]) == APP_DESC_MAGIC.to_bytes(4, "little")


def parse_app_desc(data: Buffer) -> EspAppDesc:
    """Return the app descriptor at the start of `data` (at least 256 bytes).

    Raises `TruncatedImage` if there are fewer bytes, `ImageError` if the magic is another.
    """
    if len(data) < APP_DESC_SIZE:
        raise TruncatedImage("the app descriptor is cut off", expected=f"{APP_DESC_SIZE} bytes", found=len(data))
    fields = _APP_DESC.unpack_from(data)
    if fields[0] != APP_DESC_MAGIC:
        raise ImageError(
            "no app descriptor",
            offset=APP_DESC_FILE_OFFSET,
            expected=f"{APP_DESC_MAGIC:#010x}",
            found=f"{fields[0]:#010x}",
        )
    return EspAppDesc(
        secure_version=fields[1],
        version=cleaned_text(fields[3]),
        project=cleaned_text(fields[4]),
        time=cleaned_text(fields[5]),
        date=cleaned_text(fields[6]),
        idf_version=cleaned_text(fields[7]),
        elf_sha256=fields[8],
        min_efuse_block_revision=fields[9],
        max_efuse_block_revision=fields[10],
        page_size_log2=fields[11],
        spi_flash_mode_check=fields[12],
    )


def pack_app_desc(desc: EspAppDesc) -> bytes:
    """Return the 256 bytes of the descriptor. Raises `ImageError` when a text or number does not fit its field."""
    if len(desc.elf_sha256) != 32:
        raise ImageError("not a SHA-256", expected="32 bytes", found=f"{len(desc.elf_sha256)} bytes")
    try:
        return _APP_DESC.pack(
            APP_DESC_MAGIC,
            desc.secure_version,
            bytes(8),
            _text_field("version", desc.version, 32),
            _text_field("project", desc.project, 32),
            _text_field("time", desc.time, 16),
            _text_field("date", desc.date, 16),
            _text_field("IDF version", desc.idf_version, 32),
            desc.elf_sha256,
            desc.min_efuse_block_revision,
            desc.max_efuse_block_revision,
            desc.page_size_log2,
            desc.spi_flash_mode_check,
            bytes(2),
            bytes(72),
        )
    except struct.error as error:
        raise ImageError("a number does not fit its field of the app descriptor", found=str(error)) from error


def retag_app_desc(
    raw: Buffer,
    *,
    version: str | None = None,
    project: str | None = None,
    secure_version: int | None = None,
    elf_sha256: bytes | None = None,
    page_size_log2: int | None = None,
) -> bytes:
    """Return the 256 descriptor bytes `raw` with the given fields replaced and every other byte kept.

    Raises `ImageError` if `raw` has no descriptor or a value does not fit.
    """
    parse_app_desc(raw)
    edited = bytearray(raw[:APP_DESC_SIZE])
    if secure_version is not None:
        if not 0 <= secure_version <= 0xFFFF_FFFF:
            raise ImageError("the secure version does not fit", expected="0 to 4294967295", found=secure_version)
        _replace(edited, "secure_version", secure_version.to_bytes(4, "little"))
    if version is not None:
        _replace(edited, "version", _text_field("version", version, 32))
    if project is not None:
        _replace(edited, "project", _text_field("project", project, 32))
    if elf_sha256 is not None:
        _replace(edited, "elf_sha256", elf_sha256)
    if page_size_log2 is not None:
        _replace(edited, "page_size_log2", bytes([page_size_log2]))
    return bytes(edited)


def parse_bootloader_desc(data: Buffer) -> EspBootloaderDesc | None:
    """Return the boot loader descriptor at the start of `data` (the first segment), or None if there is none.

    The magic is a single byte, so the reserved bytes and the texts must look like a descriptor too.
    """
    if len(data) < BOOTLOADER_DESC_SIZE or data[0] != BOOTLOADER_DESC_MAGIC:
        return None
    _, reserved, secure_version, version, idf_version, date_time, _ = _BOOTLOADER_DESC.unpack_from(data)
    text = idf_version.split(b"\0", 1)[0]
    if reserved not in (b"\0\0", b"\xff\xff") or not text.isascii() or not text.decode("ascii").isprintable():
        return None
    return EspBootloaderDesc(secure_version, version, cleaned_text(idf_version), cleaned_text(date_time))


def pack_bootloader_desc(desc: EspBootloaderDesc) -> bytes:
    """Return the 80 bytes of a boot loader descriptor. Raises `ImageError` when something does not fit its field."""
    try:
        return _BOOTLOADER_DESC.pack(
            BOOTLOADER_DESC_MAGIC,
            bytes(2),
            desc.secure_version,
            desc.version,
            _text_field("IDF version", desc.idf_version, 32),
            _text_field("date", desc.date_time, 24),
            bytes(16),
        )
    except struct.error as error:
        raise ImageError("a number does not fit its field of the boot loader descriptor", found=str(error)) from error


def _replace(edited: bytearray, field: str, value: bytes) -> None:
    offset = _FIELD_OFFSETS[field]
    edited[offset : offset + len(value)] = value


def _text_field(name: str, text: str, size: int) -> bytes:
    """Return `text` as a NUL-terminated field of `size` bytes."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) >= size or not text.isprintable():
        raise ImageError(
            f"the {name} does not fit the app descriptor",
            expected=f"at most {size - 1} printable bytes",
            found=f"{len(encoded)} bytes" if text.isprintable() else repr(text[:size]),
        )
    return encoded.ljust(size, b"\0")
