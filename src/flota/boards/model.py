"""A board is a hardware model: declared data. A device type names a board and adds what the product decides."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from flota.images.model import ImageFormat


class Route(enum.StrEnum):
    """How bytes reach a device (the dialect it speaks)."""

    HTTP_UPDATE = "http-update"
    ESP_HTTPS_OTA = "esp-https-ota"
    DDI = "ddi"
    VIAM = "viam"
    AMEBA_PUSH = "ameba-push"


class VerifiedBy(enum.StrEnum):
    """Who checks our signature on the last stretch."""

    NOBODY = "nobody"
    AGENT = "agent"
    GATEWAY = "gateway"
    BOOT_LOADER = "boot-loader"


@dataclass(frozen=True, slots=True)
class Slot:
    """A named region of flash that can hold one image. Offset and size in bytes; `offset` is None for plain files."""

    name: str
    offset: int | None
    size: int


@dataclass(frozen=True, slots=True)
class Board:
    """A hardware model.

    `flash_size`, `sector_size` in bytes; `write_alignment` is the smallest programmable unit in bytes.
    `max_file_size` caps boards without a fixed slot (bytes). `partition_csv` is the default table of ESP boards.
    """

    name: str
    title: str
    formats: frozenset[ImageFormat]
    routes: frozenset[Route]
    verified_by: VerifiedBy
    boot: str
    """Which boot decision it has: `esp-otadata`, `ameba-signature` or `two-files`."""
    chip: str | None = None
    chip_revision: int | None = None
    """Revision of the virtual device's chip, major x 100 + minor."""
    flash_size: int = 0
    sector_size: int = 4096
    write_alignment: int = 4
    bootloader_offset: int | None = None
    partition_csv: str | None = None
    slots: tuple[Slot, ...] = ()
    """The slots of boards whose flash map is fixed, in boot order; empty where a partition table says it."""
    max_file_size: int = 0
    rolls_back: bool = True
    """Whether its usual firmware is built to confirm itself or be rolled back (otadata boards)."""
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class VersionFrom(enum.StrEnum):
    """Where a release's version comes from; anything but RELEASE makes a difference an error."""

    RELEASE = "release"
    APP_DESC = "app_desc"


@dataclass(frozen=True, slots=True)
class TypeProfile:
    """What the fit check needs to know of a device type: its board, and its own partition table if it has one.

    `partition_table` is the binary table (docs/reference/esp-image.md), None = the board's default.
    """

    board: Board
    partition_table: bytes | None = None
    version_from: VersionFrom = VersionFrom.RELEASE
    hardware_revision: str | None = None
    minimum_secure_version: int = 0
    secure_boot_keys: frozenset[str] = frozenset()
    """Key digests (hex) in the efuses of the type's devices; empty = they take unsigned images."""
    bootloader_idf_version: str | None = None
    """The ESP-IDF version of the boot loader that the type's devices have, None = not known."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """One reason why an image does not suit a device type; or, with `blocking=False`, a warning."""

    code: str
    text: str
    offset: int | None = None
    expected: str | None = None
    found: str | None = None
    hint: str | None = None
    blocking: bool = True
