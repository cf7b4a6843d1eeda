"""A board is a hardware model: declared data. A device type names a board and adds what the product decides."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from flota.images.model import ImageFormat

BOOT_AB_RECORD: Final = "ab-record"
"""Two slots, and a boot record in two sectors that take turns (our reference device for AWS's OTA agent)."""
BOOT_NUVOTON_CLONER: Final = "nuvoton-cloner"
"""An image staged in SPI flash is copied over the application by the Cloner (NuMaker M487)."""
BOOT_MCUBOOT_OVERWRITE: Final = "mcuboot-overwrite"
"""MCUboot copies a staged image over the primary slot and keeps no old one (NuMaker-M2354)."""

BOOT_DUAL_BANK: Final = "dual-bank"
"""Two banks in the MCU itself, a trial of the new one, and the way back (primary MCU behind a Blynk NCP)."""
BOOT_NCP_ASSISTED: Final = "ncp-assisted"
"""One bank, which the boot loader fills from the NCP, however often it takes (primary MCU behind a Blynk NCP)."""


class Route(enum.StrEnum):
    """How bytes reach a device (the dialect it speaks)."""

    HTTP_UPDATE = "http-update"
    ESP_HTTPS_OTA = "esp-https-ota"
    DDI = "ddi"
    VIAM = "viam"
    AMEBA_PUSH = "ameba-push"
    AWS_IOT = "aws-iot"
    BLYNK_NCP = "blynk-ncp"


class CodeSignature(enum.StrEnum):
    """A signature over the whole file that a device checks itself: the name under which its job document has it.

    Source: docs/reference/code-signing.md, "Signatures for devices".
    """

    SHA256_ECDSA = "sig-sha256-ecdsa"
    SHA256_RSA = "sig-sha256-rsa"


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
class AgentLimits:
    """What AWS's OTA agent, as a board's usual firmware is built, has room for. It fetches over MQTT alone.

    `block_size` in bytes; `blocks_held` is how many messages it holds before it has worked one off: further ones are
    lost. `packet_max_bytes` is the longest MQTT packet that it reads, header and topic included.
    Source: docs/reference/nuvoton.md, "The agent's build".
    """

    block_size: int
    blocks_held: int
    packet_max_bytes: int
    in_order: bool = False
    """Whether blocks have to come in order: a file that is hashed as it arrives is lost with a hole in it."""


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
    """Which boot decision it has: `esp-otadata`, `ameba-signature`, `two-files`, or one of the `BOOT_` names."""
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
    code_signatures: tuple[CodeSignature, ...] = ()
    """What its devices can check a file with; a release needs one of them. None: they check no such signature."""
    agent_limits: AgentLimits | None = None
    """What its AWS OTA agent has room for; None: nothing that a server has to mind."""
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
    firmware_type: str | None = None
    """The `fw-type` that a firmware tag has to have, None = any (boards behind a Blynk NCP)."""
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
