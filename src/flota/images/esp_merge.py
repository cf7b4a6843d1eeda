"""Make a merged image: boot loader, partition table, otadata and app in one file for flash address 0.

`flota.images.esp_merged` takes such a file apart again.
Source: docs/reference/esp-merged-image.md; espressif/esptool:esptool/cmds.py (`merge_bin`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from flota.images.esp_app import EspAppImage, EspImageHeader, pack_app, parse_app
from flota.images.esp_chips import FLASH_SIZES, SPI_MODES, EspChip, chip_name_of
from flota.images.esp_otadata import blank_otadata, boot_app0
from flota.images.esp_partitions import (
    DEFAULT_TABLE_OFFSET,
    TABLE_SECTOR_SIZE,
    PartitionTable,
    parse_table,
    require_valid,
)
from flota.images.esp_secure_boot import find_signature_blocks
from flota.images.flash_layout import flash_bytes
from flota.images.model import ImageError

OtadataContent = Literal["blank", "boot_app0"]

ERASED: Final = b"\xff"
FLASH_MAX: Final = 128 * 1024 * 1024
"""The largest flash that an image header can name (bytes): nothing lies beyond it, and no result is longer."""

_OTADATA: Final = MappingProxyType({"blank": blank_otadata, "boot_app0": boot_app0})


class MergeError(ImageError):
    """These pieces do not make a merged image."""

    code = "cannot-merge"


class WrongPart(MergeError):
    """An app where the boot loader belongs, or a boot loader in the app's place."""

    code = "wrong-part"


class WrongChip(MergeError):
    """A piece was built for another chip."""

    code = "wrong-chip"


class BootLoaderTooLong(MergeError):
    """The boot loader reaches into the partition table."""

    code = "boot-loader-too-long"


class TableTooLong(MergeError):
    """The partition table's file is longer than the sector that it has in flash."""

    code = "table-too-long"


class NoPlaceForApp(MergeError):
    """The partition table has no app partition that boots first."""

    code = "no-place-for-app"


class AppTooLong(MergeError):
    """The app is longer than its partition."""

    code = "app-too-long"


class NoOtadata(MergeError):
    """`boot_app0` was asked for, but cannot choose the app: no otadata partition, or the app goes to `factory`."""

    code = "no-otadata"


class PadTooShort(MergeError):
    """The content is longer than the length to pad to."""

    code = "pad-too-short"


class SignedBootLoader(MergeError):
    """The flash settings of a signed boot loader cannot be changed: its signature would not hold any more."""

    code = "signed-boot-loader"


@dataclass(frozen=True, slots=True)
class FlashSettings:
    """What the boot loader's header is to say about the flash chip; None = keep.

    `mode` and `size` as in `SPI_MODES` and `FLASH_SIZES`, `speed` one of the chip's own.
    """

    mode: str | None = None
    size: str | None = None
    speed: str | None = None


KEEP: Final = FlashSettings()


def merge(
    chip: EspChip,
    bootloader: bytes,
    table: bytes,
    app: bytes,
    *,
    otadata: OtadataContent = "blank",
    flash: FlashSettings = KEEP,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    pad_to: int | None = None,
) -> bytes:
    """Return the merged image: every piece at its place, 0xFF between.

    `bootloader` and `app` are image files, `table` is a binary partition table; the app goes to `factory`, else to the
    first ota slot. The result ends with the last piece, or is `pad_to` bytes long.
    Raises `MergeError` or one of its kind when the pieces do not belong together or do not fit, `PartitionTableError`
    for a table that no device could use, `ImageError` for a damaged image.
    """
    parsed = _checked_table(table, table_offset, flash)
    pieces = {
        chip.bootloader_offset: _bootloader(chip, bootloader, flash, room=table_offset - chip.bootloader_offset),
        table_offset: table,
    }
    if parsed.otadata is not None:
        pieces[parsed.otadata.offset] = _OTADATA[otadata]()
    if otadata == "boot_app0":
        _require_slot_choice(parsed)
    pieces |= _app(chip, app, parsed)
    return _laid_out(pieces, pad_to)


def with_flash_settings(chip: EspChip, image: bytes, flash: FlashSettings) -> bytes:
    """Return the image with `flash` in its header and, if it has an appended hash, with the new hash.

    Raises `SignedBootLoader` when that would break a signature, `MergeError` for a setting that the chip does not have.
    """
    parsed = parse_app(image)
    header = _with_settings(chip, parsed.header, flash)
    if header == parsed.header:
        return image
    if parsed.trailer and find_signature_blocks(image, len(image) - len(parsed.trailer)):
        raise SignedBootLoader(
            "the boot loader is signed: its flash settings cannot be changed",
            hint="Keep them here, or build and sign the boot loader with other ones.",
        )
    return pack_app(replace(parsed, header=header))


def _with_settings(chip: EspChip, header: EspImageHeader, flash: FlashSettings) -> EspImageHeader:
    return replace(
        header,
        spi_mode=_code("flash mode", flash.mode, SPI_MODES, header.spi_mode, chip),
        flash_size_code=_code("flash size", flash.size, FLASH_SIZES, header.flash_size_code, chip),
        speed_code=_code("flash frequency", flash.speed, chip.speeds, header.speed_code, chip),
    )


def _code(
    what: str, name: str | None, known: MappingProxyType[str, int] | dict[str, int], kept: int, chip: EspChip
) -> int:
    if name is None:
        return kept
    if name not in known:
        raise MergeError(f"{chip.title} has no such {what}", expected=", ".join(known), found=repr(name[:32]))
    return known[name]


def _checked_table(table: bytes, table_offset: int, flash: FlashSettings) -> PartitionTable:
    if len(table) > TABLE_SECTOR_SIZE:
        raise TableTooLong("the partition table is too long", expected=f"{TABLE_SECTOR_SIZE} bytes", found=len(table))
    if table_offset % TABLE_SECTOR_SIZE or table_offset <= 0:
        raise MergeError("a partition table lies at a multiple of 0x1000", found=hex(table_offset))
    code = FLASH_SIZES.get(flash.size or "")
    flash_size = FLASH_MAX if code is None else flash_bytes(code)
    return require_valid(parse_table(table), table_offset=table_offset, flash_size=flash_size)


def _bootloader(chip: EspChip, data: bytes, flash: FlashSettings, *, room: int) -> bytes:
    image = _for_chip(chip, data, "boot loader")
    if image.app_desc is not None:
        raise WrongPart(
            "this is an app, not a boot loader",
            expected="the boot loader that the app's build made",
            found=f"an app descriptor: {image.app_desc.project} {image.app_desc.version}",
        )
    if len(data) > room:
        raise BootLoaderTooLong(
            "the boot loader reaches into the partition table",
            offset=chip.bootloader_offset,
            expected=f"at most {max(room, 0)} bytes",
            found=len(data),
            hint="Move the table (--table-offset) as the boot loader's own configuration has it.",
        )
    return with_flash_settings(chip, data, flash)


def _app(chip: EspChip, data: bytes, table: PartitionTable) -> dict[int, bytes]:
    image = _for_chip(chip, data, "app")
    if image.bootloader_desc is not None:
        raise WrongPart("this is a boot loader, not an app", found=f"ESP-IDF {image.bootloader_desc.idf_version}")
    place = table.first_app
    if place is None:
        raise NoPlaceForApp(
            "the partition table has no place for the app",
            expected="a factory partition or an ota slot",
            found=", ".join(row.kind for row in table.partitions[:16]),
        )
    if len(data) > place.size:
        raise AppTooLong(
            f"the app does not fit partition {place.label!r}",
            offset=place.offset,
            expected=f"at most {place.size} bytes",
            found=len(data),
        )
    return {place.offset: data}


def _for_chip(chip: EspChip, data: bytes, what: str) -> EspAppImage:
    image = parse_app(data)
    if image.header.chip_id != chip.chip_id:
        raise WrongChip(
            f"the {what} is for another chip",
            offset=12,
            expected=chip.name,
            found=chip_name_of(image.header.chip_id),
        )
    return image


def _require_slot_choice(table: PartitionTable) -> None:
    if table.otadata is None:
        raise NoOtadata("boot_app0 needs an otadata partition", expected="a data/ota partition", found="none")
    if table.factory is not None:
        raise NoOtadata(
            "boot_app0 chooses ota_0, but the app goes to the factory partition",
            offset=table.factory.offset,
            hint="Use blank otadata: then factory boots.",
        )


def _laid_out(pieces: dict[int, bytes], pad_to: int | None) -> bytes:
    """Return the pieces (flash offset -> bytes, none overlapping) as one file that begins at flash offset 0."""
    length = max(offset + len(data) for offset, data in pieces.items())
    if pad_to is not None and not length <= pad_to <= FLASH_MAX:
        raise PadTooShort(
            "the merged image cannot have this length",
            expected=f"{length} to {FLASH_MAX} bytes",
            found=pad_to,
        )
    flash = bytearray(ERASED) * (length if pad_to is None else pad_to)
    for offset, data in pieces.items():
        flash[offset : offset + len(data)] = data
    return bytes(flash)
